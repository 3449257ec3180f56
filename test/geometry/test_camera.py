import math

import cv2
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Camera, mounted, pixel_grid
import numpy as np
import pytest

K = np.array(((310.0, 0, 158.0), (0, 305.0, 122.0), (0, 0, 1)))
BARREL = (-0.28, 0.09, 0.0006, -0.0004, -0.012)


def test_points_ahead_are_seen_at_the_principal_point_and_to_the_right_and_below_of_it():
    camera = Camera(320, 240, K)
    points = np.array(((0, 0, 5.0), (1, 0, 5.0), (0, 1, 5.0), (0, 0, -5.0)))
    pixels = camera.pixels(points)
    assert np.allclose(pixels[:3], ((158, 122), (158 + 62, 122), (158, 122 + 61)))
    assert np.isnan(pixels[3]).all()


@pytest.mark.parametrize(
    ('model', 'coefficients'),
    [
        ('plumb_bob', BARREL),
        ('plumb_bob', BARREL[:4]),
        ('rational_polynomial', (0.9, 0.1, 0, 0, 0.002, 1.2, 0.25, 0.01)),
        ('', ()),
    ],
)
def test_every_pixel_is_seen_where_its_ray_leads(model, coefficients):
    camera = Camera(320, 240, K, np.array(coefficients), model)
    directions = np.concatenate((camera.rays, np.ones((240, 320, 1))), axis=-1)
    pixels, _ = cv2.projectPoints(
        directions.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), K, np.array(coefficients)
    )
    grid = pixel_grid(240, 320)
    assert np.abs(pixels.reshape(240, 320, 2) - grid).max() < 1e-3
    assert np.abs(camera.pixels(7 * directions) - grid).max() < 1e-3


def test_a_message_gives_its_numbers():
    class Info:
        width, height, distortion_model = 320, 240, 'plumb_bob'
        k, d, r, p = K.ravel(), list(BARREL), np.zeros(9), np.zeros(12)

    camera = Camera.from_info(Info())
    assert np.array_equal(camera.matrix, K)
    assert camera.distorted
    assert np.array_equal(camera.rotation, np.eye(3))  # zeros stand for none
    assert np.array_equal(camera.rectified().matrix, K)
    assert not camera.rectified().distorted


def test_a_plumb_bob_of_zeros_is_no_distortion():
    assert not Camera(320, 240, K, np.zeros(5)).distorted


P = np.array(((280.0, 0, 150, 0), (0, 280, 118, 0), (0, 0, 1, 0)))


def bent_and_straight(rotation):
    """A camera with distortion, and the same without, by the projection matrix."""
    bent = Camera(320, 240, K, np.array(BARREL), 'plumb_bob', rotation, P)
    return bent, bent.rectified()


def test_a_rectified_image_has_points_where_the_projection_matrix_puts_them():
    turn = cv2.Rodrigues(np.array((0.02, -0.03, 0.01)))[0]
    bent, straight = bent_and_straight(turn)
    image = np.zeros((240, 320, 3), np.uint8)
    points = np.array([(x, y, 4.0) for x in (-1.2, 0, 1.2) for y in (-0.8, 0, 0.8)])
    for column, row in bent.pixels(points):
        cv2.circle(
            image, (round(column * 16), round(row * 16)), 48, (255,) * 3, -1, cv2.LINE_AA, 4
        )
    rectified = bent.rectify_image(image)
    for column, row in straight.pixels(points @ turn.T):
        part = rectified[round(row) - 6 : round(row) + 7, round(column) - 6 : round(column) + 7, 0]
        weight = part / part.sum()
        offset = pixel_grid(13, 13) - 6 + (round(column), round(row))
        centre = (offset * weight[..., None]).sum(axis=(0, 1))
        assert np.allclose(centre, (column, row), atol=0.2)


def test_rectified_labels_are_not_mixed_and_are_unlabelled_outside_of_the_view():
    bent, _ = bent_and_straight(np.eye(3))
    labels = np.where(pixel_grid(240, 320)[..., 0] < 158, 3, 17).astype(np.uint8)
    rectified = bent.rectify_labels(labels)
    assert set(np.unique(rectified)) <= {3, 17, 255}
    assert (rectified == 3).any()
    wide = Camera(320, 240, K, np.array(BARREL), projection=P * ((0.5,), (0.5,), (1,)))
    assert (wide.rectify_labels(labels)[:, -1] == 255).all()


def test_rectified_flow_is_that_of_the_rectified_camera():
    turn = cv2.Rodrigues(np.array((0.02, -0.03, 0.01)))[0]
    bent, straight = bent_and_straight(turn)
    move = np.array((0.05, -0.02, 0.4))  # of a wall 5 m away

    def wall_flow(camera, axes):
        rays = np.concatenate((camera.rays, np.ones((240, 320, 1))), axis=-1) @ axes
        points = rays * (5 / rays[..., 2:])
        return camera.pixels((points - move) @ axes.T) - pixel_grid(240, 320)

    rectified = bent.rectify_flow(wall_flow(bent, np.eye(3)).astype(np.float32))
    seen = np.isfinite(rectified).all(axis=-1)
    assert seen.mean() > 0.85
    error = np.linalg.norm(rectified - wall_flow(straight, turn), axis=-1)
    assert error[seen].max() < 0.05


def test_a_mounted_camera_looks_where_its_angles_say():
    pose = mounted((1.0, 0.2, 1.5))
    ahead = pose @ (0, 0, 10, 1)
    assert np.allclose(ahead[:3], (11, 0.2, 1.5))
    down = mounted((0, 0, 1), pitch=math.radians(90)) @ (0, 0, 1, 1)
    assert np.allclose(down[:3], 0, atol=1e-12)
    left = mounted((0, 0, 0), yaw=math.radians(90)) @ (0, 0, 1, 1)
    assert np.allclose(left[:3], (0, 1, 0), atol=1e-12)
    # Rolled to the right, what is right of the camera lies lower.
    rolled = mounted((0, 0, 0), roll=math.radians(30)) @ (1, 0, 0, 1)
    assert rolled[2] == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'width': 0}, '0 x 240; both sizes must be over 0'),
        ({'matrix': np.zeros((3, 3))}, 'is the camera calibrated'),
        ({'matrix': np.full((3, 3), np.nan)}, 'matrix is .* all must be finite'),
        ({'matrix': np.eye(4)}, 'has 16 numbers'),
        ({'matrix': K + ((0, 5, 0), (0, 0, 0), (0, 0, 0))}, 'it must be fx 0 cx'),
        ({'distortion': np.full(5, np.inf)}, 'distortion is .* all must be finite'),
        ({'distortion': np.ones(3)}, '3 coefficients; it must have 0 or 4 or 5'),
        ({'distortion_model': 'equidistant'}, "'equidistant'; it must be one of"),
        ({'rotation': 2 * np.eye(3)}, 'must be a \\(3, 3\\) rotation'),
        ({'rotation': np.diag((1, 1, -1))}, 'it mirrors'),
        ({'projection': np.full((3, 4), np.nan)}, 'projection is .* all must be finite'),
    ],
)
def test_numbers_of_no_camera_are_refused(change, reason):
    numbers = {'width': 320, 'height': 240, 'matrix': K, **change}
    with pytest.raises(InputError, match=reason):
        Camera(**numbers)


def test_arrays_of_another_size_are_refused():
    camera = Camera(320, 240, K)
    with pytest.raises(InputError, match=r'labels is \(240, 320\), its camera \(320, 240\)'):
        camera.rectify_labels(np.zeros((320, 240), np.uint8))
