import math

import cv2
from dense_perception.errors import InputError, SettingError
from dense_perception.geometry.camera import Camera, OPTICAL_IN_BODY, pixel_grid
from dense_perception.geometry.ego_motion import (
    closeness,
    EgoMotion,
    EgoMotionSettings,
    estimate_ego_motion,
    parallax,
    rotation_from_rate,
    rotational_flow,
    without_rotation,
)
import numpy as np
import pytest

K = np.array(((200.0, 0, 79.5), (0, 200.0, 59.5), (0, 0, 1)))
CAMERA = Camera(160, 120, K)


def test_a_turn_to_the_left_moves_the_picture_to_the_right():
    # An IMU with the axes of a car, x forward, y left, z up, turns left about z.
    rotation = rotation_from_rate(np.array((0, 0, 0.5)), 0.1, OPTICAL_IN_BODY.T)
    flow = rotational_flow(CAMERA, rotation)
    middle = flow[59:61, 79:81].mean(axis=(0, 1))
    assert middle == pytest.approx((200 * math.tan(0.05), 0), abs=1e-2)


def test_a_nod_down_moves_the_picture_up_and_a_roll_to_the_right_turns_it_left():
    down = rotation_from_rate(np.array((0, 0.2, 0)), 0.1, OPTICAL_IN_BODY.T)
    assert rotational_flow(CAMERA, down)[60, 80, 1] < -3.9
    rolled = rotational_flow(
        CAMERA, rotation_from_rate(np.array((0.2, 0, 0)), 0.1, OPTICAL_IN_BODY.T)
    )
    assert rolled[60, 150, 1] < -1  # right of the middle, up
    assert rolled[60, 10, 1] > 1


@pytest.mark.parametrize('seed', range(4))
def test_flow_without_the_measured_turn_is_that_of_the_path_alone(pair, seed):
    truth = pair(seed, step=2)
    mounting = cv2.Rodrigues(np.array((0.3, -1.1, 0.7)))[0]  # of an IMU that sits askew
    seconds = 0.2
    # What a gyroscope reads that turns evenly from the first pose to the second.
    rate = mounting.T @ cv2.Rodrigues(truth.rotation.T)[0].ravel() / seconds
    rotation = rotation_from_rate(rate, seconds, mounting)
    assert np.allclose(rotation, truth.rotation, atol=1e-9)
    flow = without_rotation(truth.flow, truth.camera, rotation)
    expected = truth.static_flow(rotation=False)
    # Points that end beside or behind the camera have no flow to speak of.
    ahead = truth.points[..., 2] > 2 * truth.path[2]
    where = truth.static & ahead
    error = np.linalg.norm(flow - expected, axis=-1)[where]
    assert error.max() < 0.2
    turned = np.linalg.norm(truth.flow - expected, axis=-1)[where]
    assert np.median(turned) > 0.1  # there was something to take out


def test_a_large_turn_comes_out_where_a_plain_difference_does_not():
    rotation = rotation_from_rate(np.array((0.8, -0.6, 1.0)), 0.3, np.eye(3))
    points = np.concatenate((CAMERA.rays, np.ones((120, 160, 1))), axis=-1) * 8
    path = np.array((0.1, -0.05, 0.9))
    grid = pixel_grid(120, 160)
    flow = (CAMERA.pixels((points - path) @ rotation.T) - grid).astype(np.float32)
    expected = CAMERA.pixels(points - path) - grid
    found = without_rotation(flow, CAMERA, rotation)
    assert np.abs(found - expected).max() < 0.01
    assert np.abs(flow - rotational_flow(CAMERA, rotation) - expected).max() > 1


def test_closeness_is_path_over_depth(pair):
    truth = pair(1)
    length = np.linalg.norm(truth.path)
    direction = truth.path / length
    straight = truth.static_flow(rotation=False).astype(np.float32)
    near = closeness(straight, truth.camera, direction)
    lever = np.linalg.norm(parallax(truth.camera, direction), axis=-1)
    where = (lever > 5) & (truth.points[..., 2] > 2) & (truth.points[..., 2] < 60)
    assert np.allclose(near[where], length / truth.points[where][:, 2], rtol=0.02)


@pytest.mark.parametrize('seed', range(4))
def test_the_motion_of_a_drive_is_found_in_its_flow(pair, angle, seed):
    truth = pair(seed)
    found = estimate_ego_motion(truth.flow, truth.camera)  # moving things are part of it
    turn = cv2.Rodrigues(found.rotation @ truth.rotation.T)[0]
    assert np.degrees(np.linalg.norm(turn)) < 0.02
    assert angle(found.direction, truth.path) < 0.3
    assert found.agreement > 0.7


@pytest.mark.parametrize('seed', range(2))
def test_the_motion_is_found_in_flow_that_was_estimated_from_the_images(pair, angle, seed):
    truth = pair(seed)
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in truth.images]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
    found = estimate_ego_motion(flow, truth.camera, static=truth.static)
    turn = cv2.Rodrigues(found.rotation @ truth.rotation.T)[0]
    assert np.degrees(np.linalg.norm(turn)) < 0.1
    assert angle(found.direction, truth.path) < 2
    known = estimate_ego_motion(flow, truth.camera, static=truth.static, rotation=truth.rotation)
    assert angle(known.direction, truth.path) < 1.5


@pytest.mark.parametrize(
    'path', [(0, 0, 1), (0, 0, -1), (1, 0, 0), (0.6, 0, 0.8), (0, -1, 0)], ids=str
)
@pytest.mark.parametrize('known', [False, True], ids=['free', 'gyro'])
def test_every_direction_of_flight_is_found_and_nothing_lies_behind(path, known, angle):
    # Hills of all depths, and a fifth of the image moves on its own.
    rng = np.random.default_rng(3)
    depth = 6 + 3 * cv2.resize(rng.standard_normal((6, 8)), (160, 120))[..., None].clip(-1, 1)
    points = np.concatenate((CAMERA.rays * depth, depth), axis=-1)
    rotation = cv2.Rodrigues(np.array((0.02, -0.03, 0.05)))[0]
    path = np.array(path, np.float64)
    flow = CAMERA.pixels((points - 0.8 * path) @ rotation.T) - pixel_grid(120, 160)
    flow[40:100, 90:150] += (4, 3)
    found = estimate_ego_motion(
        flow.astype(np.float32), CAMERA, rotation=rotation if known else None
    )
    assert angle(found.direction, path) < 1
    assert found.agreement > 0.6


def test_a_camera_that_stays_or_only_turns_has_no_direction():
    flow = np.zeros((120, 160, 2), np.float32)
    flow[50:80, 50:80] = (6, 1)  # somebody walks by
    found = estimate_ego_motion(flow, CAMERA)
    assert not found.direction.any()
    assert np.allclose(found.rotation, np.eye(3), atol=1e-4)
    rotation = cv2.Rodrigues(np.array((0.05, 0.02, -0.1)))[0]
    found = estimate_ego_motion(rotational_flow(CAMERA, rotation), CAMERA)
    assert not found.direction.any()
    assert np.allclose(found.rotation, rotation, atol=1e-4)
    assert not closeness(np.ones_like(flow), CAMERA, found.direction).any()


def test_the_same_flow_gives_the_same_motion(pair):
    truth = pair(0)
    one, two = (estimate_ego_motion(truth.flow, truth.camera) for _ in range(2))
    assert np.array_equal(one.rotation, two.rotation)
    assert np.array_equal(one.direction, two.direction)


def test_bad_input_is_refused_by_name():
    flow = np.zeros((120, 160, 2), np.float32)
    bent = Camera(160, 120, K, np.array((-0.2, 0, 0, 0)))
    with pytest.raises(InputError, match='rectify_flow'):
        estimate_ego_motion(flow, bent)
    with pytest.raises(InputError, match='flow is'):
        without_rotation(flow[:-1], CAMERA, np.eye(3))
    with pytest.raises(InputError, match='camera rotation'):
        rotational_flow(CAMERA, np.ones((3, 3)))
    with pytest.raises(InputError, match='0 pixels to find the motion'):
        estimate_ego_motion(np.full_like(flow, np.nan), CAMERA)
    with pytest.raises(InputError, match='three finite rad/s'):
        rotation_from_rate(np.array((0, np.nan, 0)), 0.1, np.eye(3))
    with pytest.raises(InputError, match='time between images is inf'):
        rotation_from_rate(np.zeros(3), math.inf, np.eye(3))
    with pytest.raises(InputError, match='from IMU to camera'):
        rotation_from_rate(np.zeros(3), 0.1, np.zeros((3, 3)))
    with pytest.raises(InputError, match='must be a unit vector'):
        EgoMotion(np.eye(3), np.array((0, 0, 2.0)))
    with pytest.raises(SettingError, match='step'):
        EgoMotionSettings(step=0)
