import math

import cv2
from dense_perception.errors import InputError
from dense_perception.geometry.approach import sector_motion, SectorSettings
from dense_perception.geometry.camera import Camera, pixel_grid
from dense_perception.geometry.ego_motion import EgoMotion, estimate_ego_motion
import numpy as np
import pytest

K = np.array(((200.0, 0, 79.5), (0, 200.0, 59.5), (0, 0, 1)))
CAMERA = Camera(160, 120, K)
AHEAD = EgoMotion(np.eye(3), np.array((0, 0, 1.0)))
SECONDS = 0.1
EVERYWHERE = SectorSettings(blind_px=0.5)


def wall(depth):
    """A photograph-like wall that faces the camera from some metres, as it sees it."""
    rng = np.random.default_rng(1)
    texture = np.zeros((480, 640))
    for size in (8, 20, 50, 120):
        texture += cv2.resize(rng.standard_normal((size * 3 // 4, size)), (640, 480)) / 2
    texture = np.clip(128 + 50 * texture, 0, 255).astype(np.uint8)
    # 60 texture pixels a metre; its middle is straight ahead.
    scale = 200 / (60 * depth)
    warp = np.array(((scale, 0, 79.5 - 319.5 * scale), (0, scale, 59.5 - 239.5 * scale)))
    return cv2.warpAffine(texture, warp, (160, 120), flags=cv2.INTER_AREA)


@pytest.mark.parametrize(('depth', 'step'), [(4.0, 0.1), (3.0, 0.15), (2.0, 0.2)])
def test_time_to_a_wall_is_right_in_flow_estimated_from_rendered_images(depth, step):
    first, second = wall(depth), wall(depth - step)
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(first, second, None)
    motion = estimate_ego_motion(flow, CAMERA, rotation=np.eye(3))
    sectors = sector_motion(flow, CAMERA, motion, SECONDS)
    expected = (depth - step) / step * SECONDS
    assert np.allclose(sectors.time_to_contact_s, expected, rtol=0.1)
    # From the divergence alone, where the flow is not spoilt by the image's edge.
    assert np.allclose(sectors.looming_time_s[1, 1:4], expected, rtol=0.1)
    assert np.allclose(sectors.divergence_per_s, 2 / sectors.looming_time_s)


def test_times_of_a_drive_are_those_of_its_depth(pair):
    compared = 0
    for seed in range(4):
        truth = pair(seed)
        usable = truth.static & truth.valid
        motion = estimate_ego_motion(truth.flow, truth.camera, static=usable)
        found = sector_motion(truth.flow, truth.camera, motion, SECONDS, EVERYWHERE, usable=usable)
        left = (truth.points[..., 2] / truth.path[2] - 1) * SECONDS
        for row, column in np.ndindex(3, 5):
            part = (slice(row * 60, row * 60 + 60), slice(column * 48, column * 48 + 48))
            expected = np.median(left[part][usable[part]]) if usable[part].mean() > 0.3 else 1e9
            if expected < 100 and np.isfinite(found.time_to_contact_s[row, column]):
                assert found.time_to_contact_s[row, column] == pytest.approx(expected, rel=0.1)
                compared += 1
    assert compared > 30


def test_the_turn_of_the_camera_changes_nothing():
    points = np.concatenate((CAMERA.rays, np.ones((120, 160, 1))), axis=-1) * 5
    rotation = cv2.Rodrigues(np.array((0.03, -0.05, 0.04)))[0]
    path = np.array((0, 0, 0.25))
    flow = (CAMERA.pixels((points - path) @ rotation.T) - pixel_grid(120, 160)).astype(np.float32)
    found = sector_motion(flow, CAMERA, EgoMotion(rotation, AHEAD.direction), SECONDS)
    assert np.allclose(found.time_to_contact_s, 1.9, rtol=0.01)
    assert np.allclose(found.divergence_per_s, 2 / 1.9, rtol=0.01)
    middle = found.flow_px[1, 2]
    assert np.allclose(middle, 0, atol=0.05)
    assert found.flow_px[1, 0, 0] < -1  # to the left of the middle, to the left
    assert found.flow_px[2, 2, 1] > 1


def test_only_divergence_sees_what_comes_by_itself():
    flow = np.zeros((120, 160, 2), np.float32)  # the camera stays
    grid = pixel_grid(120, 160)
    part = np.s_[40:80, 64:96]  # the sector in the middle
    flow[part] = 0.05 * (grid[part] - (79.5, 59.5))
    still = EgoMotion(np.eye(3), np.zeros(3))
    found = sector_motion(flow, CAMERA, still, SECONDS)
    assert found.looming_time_s[1, 2] == pytest.approx(2.0, rel=0.01)
    others = np.ones((3, 5), bool)
    others[1, 2] = False
    assert np.isinf(found.looming_time_s[others]).all()
    assert np.isinf(found.time_to_contact_s).all()


def test_what_is_left_behind_is_never_met():
    points = np.concatenate((CAMERA.rays, np.ones((120, 160, 1))), axis=-1) * 5
    flow = (CAMERA.pixels(points + (0, 0, 0.25)) - pixel_grid(120, 160)).astype(np.float32)
    found = sector_motion(flow, CAMERA, EgoMotion(np.eye(3), -AHEAD.direction), SECONDS)
    assert np.isinf(found.time_to_contact_s).all()
    assert np.isinf(found.looming_time_s).all()


def test_the_quantile_chooses_how_soon_a_sector_counts():
    depth = np.full((120, 160, 1), 10.0)
    depth[:, :32:4] = 2.5  # thin poles in the leftmost sectors
    points = np.concatenate((CAMERA.rays * depth, depth), axis=-1)
    flow = (CAMERA.pixels(points - (0, 0, 0.5)) - pixel_grid(120, 160)).astype(np.float32)
    usual = sector_motion(flow, CAMERA, AHEAD, SECONDS).time_to_contact_s
    wary = SectorSettings(quantile=0.1)
    soonest = sector_motion(flow, CAMERA, AHEAD, SECONDS, wary).time_to_contact_s
    assert np.allclose(usual, 1.9, rtol=0.01)
    assert np.allclose(soonest[:, 0], 0.4, rtol=0.01)
    assert np.allclose(soonest[:, 1:], 1.9, rtol=0.01)


def test_sectors_without_enough_pixels_tell_nothing():
    flow = np.zeros((120, 160, 2), np.float32)
    flow[:, :80] = math.nan
    usable = np.ones((120, 160), bool)
    usable[60:] = False
    settings = SectorSettings(rows=2, columns=2)
    found = sector_motion(flow, CAMERA, AHEAD, SECONDS, settings, usable=usable)
    told = np.isfinite(found.flow_px).all(axis=-1)
    assert told.tolist() == [[False, True], [False, False]]
    assert np.isfinite(found.divergence_per_s).tolist() == told.tolist()
    assert np.isnan(found.time_to_contact_s).tolist() == (~told).tolist()
    assert math.isinf(found.time_to_contact_s[0, 1])


def test_sectors_cover_sizes_that_they_do_not_divide():
    camera = Camera(101, 67, K)
    found = sector_motion(
        np.ones((67, 101, 2), np.float32), camera, AHEAD, 1.0, SectorSettings(rows=5, columns=7)
    )
    assert np.allclose(found.flow_px, 1, atol=1e-3)


def test_a_time_of_zero_and_a_wrong_size_are_refused():
    flow = np.zeros((120, 160, 2), np.float32)
    for seconds in (0, -1, math.nan):
        with pytest.raises(InputError, match='time between images'):
            sector_motion(flow, CAMERA, AHEAD, seconds)
    with pytest.raises(InputError, match='mask of usable pixels'):
        sector_motion(flow, CAMERA, AHEAD, 1.0, usable=np.ones((4, 4), bool))
