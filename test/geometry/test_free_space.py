import math

import cv2
from dense_perception.errors import InputError, SettingError
from dense_perception.geometry.camera import Camera, mounted
from dense_perception.geometry.free_space import (
    find_free_space,
    FREE,
    FreeSpaceSettings,
    GridSettings,
    GroundView,
    occupancy_grid,
    OCCUPIED,
    UNKNOWN,
)
from dense_perception.labels import CITYSCAPES
import numpy as np
import pytest

ROAD, CAR, SKY = (CITYSCAPES.index(name) for name in ('road', 'car', 'sky'))
K = np.array(((300.0, 0, 159.5), (0, 300.0, 119.5), (0, 0, 1)))
BARREL = np.array((-0.2, 0.05, 0.0, 0.0, 0.0))
LONG = FreeSpaceSettings(range_m=100.0)


def street(camera, pose, *, wall=math.inf, side=100.0, top=9.0):
    """
    Draw an endless road, and a wall across it, by following each pixel's ray.

    :param wall: metres ahead, x of the wall's near side.
    :param side: metres, half of its width.
    :param top: metres, its height.
    """
    rays = np.concatenate((camera.rays, np.ones((camera.height, camera.width, 1))), axis=-1)
    rays = rays @ pose[:3, :3].T
    position = pose[:3, 3]
    with np.errstate(divide='ignore', invalid='ignore'):
        to_ground = np.where(rays[..., 2] < 0, -position[2] / rays[..., 2], np.inf)
        to_wall = np.where(rays[..., 0] > 0, (wall - position[0]) / rays[..., 0], np.inf)
        y, z = (position[axis] + to_wall * rays[..., axis] for axis in (1, 2))
        hit = (np.abs(y) <= side) & (z >= 0) & (z <= top) & (to_wall < to_ground)
    return np.where(hit, CAR, np.where(np.isfinite(to_ground), ROAD, SKY)).astype(np.uint8)


@pytest.mark.parametrize('distance', [4.0, 9.0, 18.0, 30.0])
@pytest.mark.parametrize('distortion', [np.zeros(0), BARREL], ids=['pinhole', 'barrel'])
def test_free_distance_reaches_to_the_wall(distance, distortion):
    camera = Camera(320, 240, K, distortion)
    pose = mounted((0.5, 0, 1.4), pitch=0.08, roll=0.02, yaw=-0.05)
    labels = street(camera, pose, wall=distance)
    space = find_free_space(labels, GroundView(camera, pose), CITYSCAPES, LONG)
    # Along its ray, a column meets the wall farther away than straight ahead.
    foot = camera.normalised(np.stack((np.arange(320.0), space.limit + 0.5), axis=-1))
    ray = np.concatenate((foot, np.ones((320, 1))), axis=-1) @ pose[:3, :3].T
    side = ray[:, 1] / ray[:, 0] * (distance - 0.5)
    assert space.blocked.all()
    assert np.allclose(space.distance, np.hypot(distance, side), rtol=0.05)


def in_base(truth):
    """Where the points of a drive lie in base_footprint, (H, W, 3); far away on the sky."""
    return truth.points @ truth.pose[:3, :3].T + truth.pose[:3, 3]


def test_free_distance_of_a_drive_is_that_of_the_rendered_ground(pair):
    seen = 0
    for seed in range(4):
        truth = pair(seed)
        view = GroundView(truth.camera, truth.pose)
        space = find_free_space(truth.labels, view, CITYSCAPES, FreeSpaceSettings(range_m=20))
        base = in_base(truth)
        reach = np.hypot(base[..., 0], base[..., 1])
        for column in np.flatnonzero(space.blocked & (space.distance > 0)):
            row = space.limit[column] + 1
            assert truth.labels[row, column] == ROAD
            assert abs(base[row, column, 2]) < 0.02
            # The edge lies between the middles of this pixel and the next.
            half = 0.5 * (reach[row - 1, column] - reach[row, column])
            expected = reach[row, column]
            assert expected * 0.99 < space.distance[column] < expected * 1.05 + max(half, 0)
            seen += 1
    assert seen > 150


def test_free_cells_of_a_drive_are_road_and_occupied_ones_hold_something(pair):
    for seed in range(4):
        truth = pair(seed)
        view = GroundView(truth.camera, truth.pose)
        settings = GridSettings(resolution_m=0.25, width=80, height=80)
        space = find_free_space(truth.labels, view, CITYSCAPES, FreeSpaceSettings(range_m=20))
        grid = occupancy_grid(space, view, settings)
        assert set(np.unique(grid)) <= {UNKNOWN, FREE, OCCUPIED}
        base = in_base(truth).reshape(-1, 3)
        labels = truth.labels.ravel()
        road = base[(labels == ROAD) & (base[:, 0] < 100)]
        cells = np.floor((road[:, :2] - (0, -10)) / 0.25).astype(int)
        inside = ((cells >= 0) & (cells < 80)).all(axis=1)
        x, y = cells[inside].T
        # Road that is seen is never occupied but at the edge of what stands on it.
        assert (grid[y, x] == OCCUPIED).mean() < 0.1
        is_road = np.zeros((80, 80), bool)
        is_road[y, x] = True
        near = np.hypot(*np.meshgrid(np.arange(80) + 0.5, np.arange(80) - 39.5)) * 0.25 < 8
        grown = cv2.dilate(is_road.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert (grid[near] == FREE).sum() > 20
        assert grown[near & (grid == FREE)].all()


def test_a_box_on_the_road_hides_what_is_behind_it():
    camera, pose = Camera(320, 240, K), mounted((0, 0, 1.4), pitch=0.1)
    labels = street(camera, pose, wall=6.0, side=1.0, top=1.5)
    view = GroundView(camera, pose)
    space = find_free_space(labels, view, CITYSCAPES)
    grid = occupancy_grid(space, view, GridSettings(resolution_m=0.1))

    def at(x, y):
        return grid[math.floor((y + 10) / 0.1), math.floor(x / 0.1)]

    assert at(5.55, 0.05) == FREE
    assert {at(x, 0.05) for x in (5.85, 5.95, 6.05, 6.15)} >= {OCCUPIED}
    assert at(10.05, 0.05) == UNKNOWN
    assert at(10.05, 4.05) == FREE  # beside it
    assert at(0.55, 0.05) == UNKNOWN  # below the view
    assert at(3.05, -9.05) == UNKNOWN  # beside the view
    occupied = np.argwhere(grid == OCCUPIED)
    ahead = 0.1 * occupied[:, 1]
    # Seen from above, upright edges lean, so that two columns meet only the top of the wall.
    assert (np.abs(ahead - 6.0) < 0.2).sum() >= len(occupied) - 2
    assert (ahead > 5.8).all()
    assert (np.abs(0.1 * occupied[:, 0] - 10) < 1.6).all()
    assert len(occupied) >= 18  # two metres without a gap


def test_distortion_does_not_fold_ground_beside_the_view_into_it():
    camera = Camera(320, 240, K, np.array((-0.35, 0.0, 0.0, 0.0)))
    pose = mounted((0, 0, 1.0), pitch=0.3)
    space = find_free_space(
        np.full((240, 320), ROAD, np.uint8), GroundView(camera, pose), CITYSCAPES
    )
    grid = occupancy_grid(space, GroundView(camera, pose), GridSettings(resolution_m=0.05))
    y, x = np.nonzero(grid == FREE)
    bearing = np.degrees(np.arctan2((y + 0.5) * 0.05 - 10, (x + 0.5) * 0.05))
    assert np.abs(bearing).max() < 45
    assert len(x) > 1000


def test_where_the_view_ends_nothing_blocks():
    camera, pose = Camera(320, 240, K), mounted((0, 0, 1.4))
    view = GroundView(camera, pose)
    labels = street(camera, pose)
    space = find_free_space(labels, view, CITYSCAPES, FreeSpaceSettings(range_m=12))
    assert not space.blocked.any()
    assert (space.distance == 12).all()
    labels[150:] = 255  # not a label: not free, but nothing that blocks
    space = find_free_space(labels, view, CITYSCAPES, FreeSpaceSettings(range_m=12))
    assert not space.blocked.any()
    assert (space.distance == 0).all()
    looking_up = GroundView(camera, mounted((0, 0, 1.4), pitch=-1))
    assert np.isnan(find_free_space(labels, looking_up, CITYSCAPES).distance).all()


def test_what_stands_at_the_very_bottom_leaves_no_free_space():
    camera, pose = Camera(320, 240, K), mounted((0, 0, 1.4))
    labels = np.full((240, 320), CAR, np.uint8)
    space = find_free_space(labels, GroundView(camera, pose), CITYSCAPES)
    assert (space.distance == 0).all()
    assert space.blocked.all()


def test_a_camera_that_looks_down_sees_all_of_its_ground_free():
    camera, pose = Camera(320, 240, K), mounted((0, 0, 3.0), pitch=math.pi / 2)
    view = GroundView(camera, pose)
    space = find_free_space(np.full((240, 320), ROAD, np.uint8), view, CITYSCAPES)
    assert (space.limit == -1).all()
    assert not space.blocked.any()
    assert space.distance[160] == pytest.approx(1.2, rel=0.01)  # 3 m * 120 px / 300 px
    grid = occupancy_grid(space, view, GridSettings(resolution_m=0.1))
    # The half before the camera, 3.2 m wide and 1.2 m deep.
    assert (grid == FREE).sum() == pytest.approx(32 * 12, rel=0.1)


def test_single_wrong_rows_do_not_end_free_space_unless_wanted():
    camera, pose = Camera(320, 240, K), mounted((0, 0, 1.4), pitch=0.1)
    labels = street(camera, pose, wall=10.0)
    clean = find_free_space(labels, GroundView(camera, pose), CITYSCAPES)
    labels[200:202] = CAR
    view = GroundView(camera, pose)
    assert np.array_equal(find_free_space(labels, view, CITYSCAPES).distance, clean.distance)
    strict = find_free_space(labels, view, CITYSCAPES, FreeSpaceSettings(obstacle_rows=1))
    assert (strict.limit == 201).all()
    assert strict.blocked.all()


def test_what_is_drivable_and_how_sure_it_must_be_are_settings():
    camera, pose = Camera(320, 240, K), mounted((0, 0, 1.4), pitch=0.1)
    view = GroundView(camera, pose)
    labels = street(camera, pose, wall=10.0)
    labels[180:] = CITYSCAPES.index('terrain')
    assert not find_free_space(labels, view, CITYSCAPES).distance.any()
    grass = FreeSpaceSettings(drivable='road, terrain')
    assert find_free_space(labels, view, CITYSCAPES, grass).distance[160] > 9
    confidence = np.full((240, 320), 200, np.uint8)
    confidence[:200] = 90
    sure = FreeSpaceSettings(drivable='road, terrain', least_confidence=100)
    space = find_free_space(labels, view, CITYSCAPES, sure, confidence)
    assert (space.limit == 199).all()
    assert not space.blocked.any()
    with pytest.raises(InputError, match="no class 'lava'"):
        find_free_space(labels, view, CITYSCAPES, FreeSpaceSettings(drivable='road,lava'))
    with pytest.raises(SettingError, match='resolution_m'):
        GridSettings(resolution_m=0.0)


def test_bad_poses_and_sizes_are_refused():
    camera = Camera(320, 240, K)
    for pose, reason in (
        (np.eye(3), 'must be \\(4, 4\\)'),
        (mounted((0, 0, -1.0)), '-1.0 m above the ground'),
        (np.diag((2.0, 2, 2, 1)), 'must be a \\(3, 3\\) rotation'),
        (np.full((4, 4), np.nan), 'finite'),
    ):
        with pytest.raises(InputError, match=reason):
            GroundView(camera, pose)
    view = GroundView(camera, mounted((0, 0, 1)))
    with pytest.raises(InputError, match='labels is'):
        find_free_space(np.zeros((10, 10), np.uint8), view, CITYSCAPES)
