"""What the bundled road world promises."""

import cv2
from dense_perception.arrays import Flow, Image, Mask
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings, WorldFrame
from dense_perception.errors import InputError, SettingError
from dense_perception.labels import CITYSCAPES
import numpy as np
import pytest

SMALL = RoadWorldSettings(height=120, width=160)
CLEAN = RoadWorldSettings(sensor=False)


def same(one: WorldFrame, two: WorldFrame) -> bool:
    return (
        np.array_equal(one.image, two.image)
        and np.array_equal(one.labels, two.labels)
        and np.array_equal(one.depth, two.depth)
        and one.stamp_ns == two.stamp_ns
    )


def warped_back(image: Image, flow: Flow) -> Image:
    rows, columns = np.mgrid[0 : flow.shape[0], 0 : flow.shape[1]].astype(np.float32)
    return cv2.remap(image, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR)


def grey_error(one: Image, two: Image, where: Mask) -> float:
    difference = np.abs(one.mean(axis=-1) - two.mean(axis=-1))
    return float(difference[where].mean())


def test_the_same_seed_gives_the_same_drive():
    one, two = RoadWorld(4, SMALL), RoadWorld(4, SMALL)
    assert same(one.frame(7), two.frame(7))
    assert np.array_equal(one.flow(7, 8)[0], two.flow(7, 8)[0])


def test_another_seed_gives_another_drive():
    one, two = RoadWorld(4, SMALL).frame(0), RoadWorld(5, SMALL).frame(0)
    assert (one.labels != two.labels).mean() > 0.05
    assert grey_error(one.image, two.image, np.ones((120, 160), bool)) > 10


def test_frames_do_not_depend_on_the_order_of_access():
    forward, jumping = RoadWorld(8, SMALL), RoadWorld(8, SMALL)
    sequence = [forward.frame(index) for index in range(0, 120, 12)]
    jumping.frame(599)
    for index in (9, 2, 5, 0, 9):
        assert same(jumping.frame(12 * index), sequence[index])


def test_changing_a_returned_frame_does_not_change_the_world():
    world = RoadWorld(1, SMALL)
    frame = world.frame(0)
    frame.image[:] = 0
    assert world.frame(0).image.any()


@pytest.mark.parametrize('seed', range(6))
def test_every_pixel_has_a_label_and_a_depth_that_is_infinite_exactly_on_the_sky(seed):
    frame = RoadWorld(seed, SMALL).frame(50 * seed)
    assert frame.labels.max() < len(CITYSCAPES)
    assert (frame.depth > 0).all()
    assert np.array_equal(np.isinf(frame.depth), frame.labels == CITYSCAPES.index('sky'))


def test_arrays_have_the_documented_types():
    world = RoadWorld(0, SMALL)
    frame = world.frame(3)
    flow, valid = world.flow(3, 4)
    assert (frame.image.dtype, frame.labels.dtype) == (np.uint8, np.uint8)
    assert (frame.depth.dtype, flow.dtype, valid.dtype) == (np.float32, np.float32, np.bool_)
    assert frame.image.shape == (120, 160, 3)
    assert flow.shape == (120, 160, 2)


def test_stamps_follow_the_frame_rate():
    assert RoadWorld(0, RoadWorldSettings(rate_hz=20.0, height=32, width=32)).frame(
        3
    ).stamp_ns == (150_000_000)


def test_flow_of_a_frame_to_itself_is_zero_and_valid_nearly_everywhere():
    flow, valid = RoadWorld(2, SMALL).flow(5, 5)
    assert not flow.any()
    assert valid.mean() > 0.999


@pytest.mark.parametrize('seed', range(8))
def test_warping_the_second_frame_by_the_flow_gives_the_first(seed):
    world = RoadWorld(seed, CLEAN)
    first, second = world.frame(30).image, world.frame(31).image
    flow, valid = world.flow(30, 31)
    error = grey_error(first, warped_back(second, flow), valid)
    assert valid.mean() > 0.6
    assert error < 4.0
    assert error < 0.5 * grey_error(first, second, valid)


def test_moving_bodies_are_warped_as_well_as_the_rest():
    vehicles = [CITYSCAPES.index(name) for name in ('car', 'truck', 'bus', 'motorcycle')]
    errors, still = [], []
    for seed in range(8):
        world = RoadWorld(seed, CLEAN)
        frame, second = world.frame(30), world.frame(31).image
        flow, valid = world.flow(30, 31)
        where = valid & np.isin(frame.labels, vehicles)
        errors.append(grey_error(frame.image, warped_back(second, flow), where) * where.sum())
        still.append(grey_error(frame.image, second, where) * where.sum())
    assert sum(errors) < 0.5 * sum(still)


def test_flow_of_a_ground_pixel_is_its_reprojection():
    world = RoadWorld(3)
    frame, flow = world.frame(10), world.flow(10, 12)[0]
    rows, columns = np.nonzero(frame.labels == CITYSCAPES.index('road'))
    for row, column in list(zip(rows, columns, strict=True))[:: len(rows) // 20]:
        ray = np.linalg.inv(world.camera_matrix) @ (column, row, 1)
        point = world.camera_pose(10) @ np.append(ray * frame.depth[row, column], 1)
        assert abs(point[2]) < 0.02  # on the ground plane
        pixel = world.camera_matrix @ (np.linalg.inv(world.camera_pose(12)) @ point)[:3]
        expected = pixel[:2] / pixel[2] - (column, row)
        assert np.allclose(flow[row, column], expected, atol=1e-2)


def test_flow_of_the_sky_is_the_turn_of_the_camera():
    world = RoadWorld(3)
    frame, flow = world.frame(10), world.flow(10, 12)[0]
    turn = np.linalg.inv(world.camera_pose(12)[:3, :3]) @ world.camera_pose(10)[:3, :3]
    rows, columns = np.nonzero(frame.labels == CITYSCAPES.index('sky'))
    row, column = rows[len(rows) // 2], columns[len(rows) // 2]
    ray = np.linalg.inv(world.camera_matrix) @ (column, row, 1)
    pixel = world.camera_matrix @ turn @ ray
    assert np.allclose(flow[row, column], pixel[:2] / pixel[2] - (column, row), atol=1e-2)


def test_flow_there_and_back_cancels_where_both_see_the_point():
    world = RoadWorld(6, CLEAN)
    there, valid = world.flow(20, 21)
    back = world.flow(21, 20)[0]
    residual = np.linalg.norm(there + warped_back(back, there), axis=-1)[valid]
    assert np.median(residual) < 0.05
    assert (residual < 1).mean() > 0.97


def test_all_nineteen_classes_occur():
    seen = np.zeros(256, bool)
    for seed in range(60):
        for index in (0, 150):
            seen[np.unique(RoadWorld(seed, SMALL).frame(index).labels)] = True
        if seen.sum() == len(CITYSCAPES):
            break
    missing = [n for n, there in zip(CITYSCAPES.names, seen, strict=False) if not there]
    assert not missing


def test_a_drive_lasts_a_minute_without_leaving_the_road():
    world = RoadWorld(9, SMALL)
    road = CITYSCAPES.index('road')
    for index in range(0, 600, 60):
        labels = world.frame(index).labels
        assert (labels == road).mean() > 0.1


@pytest.mark.parametrize('size', [(16, 16), (97, 131), (240, 320), (375, 1242)])
def test_other_sizes_work(size):
    world = RoadWorld(0, RoadWorldSettings(height=size[0], width=size[1]))
    assert world.frame(2).image.shape == (*size, 3)
    assert world.flow(2, 3)[0].shape == (*size, 2)


def test_a_noiseless_camera_differs_from_the_sensor_but_not_in_truth():
    noisy, clean = RoadWorld(0).frame(0), RoadWorld(0, CLEAN).frame(0)
    assert not np.array_equal(noisy.image, clean.image)
    assert np.array_equal(noisy.labels, clean.labels)


def test_negative_numbers_and_sizes_out_of_range_are_refused():
    with pytest.raises(InputError, match='seed is -1'):
        RoadWorld(-1)
    with pytest.raises(InputError, match='index is -2'):
        RoadWorld(0, SMALL).frame(-2)
    with pytest.raises(SettingError, match='height'):
        RoadWorldSettings(height=4)
