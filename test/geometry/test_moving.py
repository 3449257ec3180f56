import cv2
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Camera, pixel_grid
from dense_perception.geometry.ego_motion import EgoMotion, estimate_ego_motion
from dense_perception.geometry.moving import find_moving, MovingSettings, static_mask
from dense_perception.labels import CITYSCAPES
import numpy as np
import pytest

ROAD, CAR, WALL, SKY = (CITYSCAPES.index(name) for name in ('road', 'car', 'wall', 'sky'))
K = np.array(((200.0, 0, 79.5), (0, 200.0, 49.5), (0, 0, 1)))
CAMERA = Camera(160, 120, K)
PATH = np.array((0, 0, 0.8))
MOTION = EgoMotion(np.eye(3), np.array((0, 0, 1.0)))
WITHOUT_GROUND = MovingSettings(ground='')


def road_with_car(*, speed=(0.0, 0.0, 0.0), distance=10.0):
    """
    Draw a road 1.5 m below the camera with a car's rear on it, to the left, and its flow.

    :param speed: metres a frame, of the car, in optical axes.
    """
    x, y = np.moveaxis(CAMERA.rays, -1, 0)
    depth = np.where(y > 0, 1.5 / np.maximum(y, 1e-9), 1e6)
    labels = np.where(y > 0, ROAD, SKY).astype(np.uint8)
    # 2 m wide, from the ground to a height of 1.5 m, its middle 2.5 m to the left.
    car = (np.abs(x * distance + 2.5) < 1) & (y * distance < 1.5) & (y > 0)
    depth[car], labels[car] = distance, CAR
    points = np.concatenate((CAMERA.rays * depth[..., None], depth[..., None]), axis=-1)
    points[car] += speed
    flow = CAMERA.pixels(points - PATH) - pixel_grid(120, 160)
    return flow.astype(np.float32), labels, car


def share(mask, where):
    return mask[where].mean()


def test_a_parked_car_does_not_move():
    flow, labels, _ = road_with_car()
    found = find_moving(flow, labels, CAMERA, MOTION, CITYSCAPES)
    assert not found.mask.any()
    assert np.abs(found.residual[labels != CAR]).max() < 0.01


@pytest.mark.parametrize(
    'speed',
    [(0.3, 0, 0), (0, 0, 0.8), (0, 0, -1.0), (0, 0, 1.2)],
    ids=['across', 'ahead as fast', 'oncoming', 'driving away'],
)
def test_a_car_that_drives_is_found(speed):
    flow, labels, car = road_with_car(speed=speed)
    found = find_moving(flow, labels, CAMERA, MOTION, CITYSCAPES)
    assert share(found.mask, car) > 0.9
    assert not found.mask[~car].any()


def test_without_ground_what_moves_across_or_away_is_found_but_not_what_keeps_ahead():
    for speed, expected in (((0.3, 0, 0), 1), ((0, 0, 1.2), 1), ((0, 0, 0.8), 0), ((0, 0, -1), 0)):
        flow, labels, car = road_with_car(speed=speed)
        found = find_moving(flow, labels, CAMERA, MOTION, CITYSCAPES, WITHOUT_GROUND)
        assert share(found.mask, car) == pytest.approx(expected, abs=0.2)


def test_only_labels_that_can_move_do():
    flow, labels, car = road_with_car(speed=(0.3, 0, 0))
    labels[car] = WALL
    found = find_moving(flow, labels, CAMERA, MOTION, CITYSCAPES)
    assert not found.mask.any()
    assert np.linalg.norm(found.residual[car], axis=-1).mean() > 2  # told all the same
    walls = MovingSettings(movable='wall')
    assert share(find_moving(flow, labels, CAMERA, MOTION, CITYSCAPES, walls).mask, car) > 0.9


def test_beside_a_camera_that_stays_everything_with_flow_moves():
    flow = np.zeros((120, 160, 2), np.float32)
    flow[60:80, 20:40] = (0.7, -1.2)
    still = EgoMotion(np.eye(3), np.zeros(3))
    _, labels, _ = road_with_car()
    labels[50:100, 10:60] = CAR
    expected = np.zeros((120, 160), bool)
    expected[60:80, 20:40] = True
    assert np.array_equal(find_moving(flow, labels, CAMERA, still, CITYSCAPES).mask, expected)


def test_unknown_flow_does_not_move():
    flow, labels, car = road_with_car(speed=(0.3, 0, 0))
    flow[:, :40] = np.nan
    found = find_moving(flow, labels, CAMERA, MOTION, CITYSCAPES)
    assert not found.mask[:, :40].any()
    assert found.mask[:, 40:].any()


def true_moving(truth):
    far = np.linalg.norm(truth.flow - truth.static_flow(), axis=-1) > 1
    return far & ~truth.static


def test_most_that_moves_in_a_drive_is_found_and_hardly_anything_else(pair):
    hits = misses = false = 0
    for seed in range(6):
        truth = pair(seed)
        motion = estimate_ego_motion(truth.flow, truth.camera, static=truth.static)
        found = find_moving(truth.flow, truth.labels, truth.camera, motion, CITYSCAPES).mask
        moving = true_moving(truth)
        hits += (found & moving).sum()
        misses += (moving & ~found).sum()
        false += (found & ~moving).sum()
    assert hits / (hits + false) > 0.95
    assert hits / (hits + misses) > 0.75


def test_flow_that_was_estimated_from_the_images_serves_too(pair):
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    hits = total = claimed = 0
    for seed in range(6):
        truth = pair(seed)
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in truth.images]
        flow = estimator.calc(*grey, None)
        motion = estimate_ego_motion(flow, truth.camera, static=truth.static)
        found = find_moving(flow, truth.labels, truth.camera, motion, CITYSCAPES).mask
        moving = true_moving(truth)
        hits += (found & moving).sum()
        total += moving.sum()
        claimed += found.sum()
    assert hits / total > 0.4
    assert hits / claimed > 0.6


def test_static_pixels_are_labelled_and_cannot_move():
    labels = np.array([[ROAD, CAR, 255, SKY]], np.uint8)
    mask = static_mask(labels, CITYSCAPES, MovingSettings())
    assert mask.tolist() == [[True, False, False, True]]


def test_bad_input_is_refused():
    flow, labels, _ = road_with_car()
    with pytest.raises(InputError, match='labels is'):
        find_moving(flow, labels[:-1], CAMERA, MOTION, CITYSCAPES)
    with pytest.raises(InputError, match="no class 'tank'"):
        find_moving(flow, labels, CAMERA, MOTION, CITYSCAPES, MovingSettings(movable='tank'))
    bent = Camera(160, 120, K, np.array((-0.2, 0, 0, 0)))
    with pytest.raises(InputError, match='rectify_flow'):
        find_moving(flow, labels, bent, MOTION, CITYSCAPES)
