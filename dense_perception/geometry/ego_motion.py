"""
The camera's own motion, and what is left of flow without it.

A static point at X in the first camera lies at R (X - t) in the second: R is the turn of the
camera, t its path. Flow tells R, the direction of t, and for each pixel how long t is beside the
depth; Hartley and Zisserman (2004), chapter 9.
"""

from dataclasses import dataclass
import math
from typing import Any

import cv2
from dense_perception.arrays import Flow, Mask
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Array, Camera, check_rotation, pixel_grid
from dense_perception.settings import setting, Settings
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

_FEWEST = 32  # pixels that an estimate is made from
_DRAWS = 200  # of two pixels; with half of them astray, one draw is good but for 1e-25
_CONFIDENCE = 0.999  # that findEssentialMat has drawn well
_NEAR = 1e-3  # the least z, at z = 1, of a turned direction; keeps what turns out of view finite


@dataclass(frozen=True)
class EgoMotionSettings(Settings):
    """How the camera's motion is found in flow."""

    threshold_px: float = setting(
        1.0, 'pixels off the motion that still agree with it', low=0.01, high=100
    )
    step: int = setting(8, 'pixels; every so many rows and columns are looked at', low=1, high=256)
    still_share: float = setting(
        0.9, 'share of pixels that a turn alone explains: the camera stays', low=0.5, high=1
    )
    seed: int = setting(0, 'of the draws', low=0, high=2**31 - 1)


@dataclass(frozen=True, eq=False)
class EgoMotion:
    """What the camera did between two images."""

    rotation: Array  # (3, 3), directions in the first camera's axes to those in the second's
    direction: Array  # (3,), unit vector of its path, in the first camera's axes; zeros: it stays
    agreement: float = 1.0  # share of the looked-at pixels that agree

    def __post_init__(self) -> None:
        """
        Check rotation and direction.

        :raises InputError: no rotation, or neither a unit vector nor zeros.
        """
        check_rotation('camera rotation', self.rotation)
        length = float(np.linalg.norm(self.direction))
        if self.direction.shape != (3,) or not (length == 0 or abs(length - 1) < 1e-6):
            raise InputError(f'direction is {self.direction.tolist()}; it must be a unit vector')


def rotation_from_rate(
    angular_velocity: NDArray[Any], seconds: float, imu_to_optical: NDArray[Any]
) -> Array:
    """
    Return the turn of the camera that an IMU has measured.

    :param angular_velocity: (3,), rad/s, mean between the two images, as in sensor_msgs/Imu.
    :param seconds: from the first image to the second.
    :param imu_to_optical: (3, 3), turns vectors from the IMU's axes into the camera's.
    :returns: (3, 3) float64; directions in the first camera's axes to those in the second's.
    :raises InputError: a number that is not finite, another shape, or no rotation.
    """
    rate = np.asarray(angular_velocity, np.float64)
    if rate.shape != (3,) or not np.isfinite(rate).all():
        raise InputError(f'angular velocity is {rate.tolist()}; it must be three finite rad/s')
    if not math.isfinite(seconds):
        raise InputError(f'time between images is {seconds} s; it must be finite')
    turn = np.asarray(imu_to_optical, np.float64)
    check_rotation('rotation from IMU to camera', turn)
    # What stands still turns the other way.
    return np.asarray(cv2.Rodrigues(-seconds * (turn @ rate))[0], np.float64)


def rotational_flow(camera: Camera, rotation: Array) -> Flow:
    """
    Return the flow that a turn of the camera alone makes, at any depth.

    :param camera: without distortion; `Camera.rectify_flow` serves others.
    :param rotation: (3, 3), as `EgoMotion` has it.
    :returns: (H, W, 2) float32, pixels.
    :raises InputError: the camera is distorted, or no rotation.
    """
    check_undistorted(camera)
    check_rotation('camera rotation', rotation)
    ends = camera.pixels(_in_front(_directions(camera.rays) @ rotation.T))
    return (ends - pixel_grid(camera.height, camera.width)).astype(np.float32)


def without_rotation(flow: Flow, camera: Camera, rotation: Array) -> Flow:
    """
    Return the flow of a camera that moves the same but does not turn.

    Exact, not flow minus `rotational_flow`: where a point ends is turned back.

    :param flow: (H, W, 2) float32, pixels.
    :param camera: without distortion; `Camera.rectify_flow` serves others.
    :param rotation: (3, 3), as `EgoMotion` has it.
    :returns: (H, W, 2) float32, pixels; points in the distance have none left.
    :raises InputError: sizes differ, the camera is distorted, or no rotation.
    """
    check_undistorted(camera)
    check_rotation('camera rotation', rotation)
    camera.check_size('flow', flow)
    grid = pixel_grid(camera.height, camera.width)
    ends = _directions(camera.normalised(grid + flow))
    return (camera.pixels(_in_front(ends @ rotation)) - grid).astype(np.float32)


def estimate_ego_motion(
    flow: Flow,
    camera: Camera,
    settings: EgoMotionSettings = EgoMotionSettings(),
    *,
    static: Mask | None = None,
    rotation: Array | None = None,
) -> EgoMotion:
    """
    Find how the camera has moved.

    Robust to things that move by themselves, as long as most pixels do not.

    :param flow: (H, W, 2) float32, pixels; nan where unknown.
    :param camera: without distortion; `Camera.rectify_flow` serves others.
    :param static: (H, W) bool, where to look; None looks everywhere.
    :param rotation: where an IMU has measured it; None finds it in the flow.
    :raises InputError: sizes differ, the camera is distorted, or there are too few pixels.
    """
    check_undistorted(camera)
    camera.check_size('flow', flow)
    first, second = _matches(flow, camera, settings.step, static)
    known = rotation is not None
    threshold = settings.threshold_px / camera.matrix[0, 0]  # at z = 1
    turn = _fit_rotation(first, second) if rotation is None else rotation
    check_rotation('camera rotation', turn)
    still = float((_turn_error(first, second, turn) < threshold).mean())
    if still >= settings.still_share:
        return EgoMotion(turn, np.zeros(3), still)
    if not known:
        turn = _essential_rotation(first, second, threshold)
    direction = _fit_direction(first, _turned(second, turn.T), threshold, settings.seed)
    if not known:
        turn, direction = _refine(first, second, turn, direction, threshold)
    back = _turned(second, turn.T)
    agreement = float((_epipolar_error(first, back, direction) < threshold).mean())
    if (_closeness(first, back, direction) < 0).mean() > 0.5:
        direction = -direction
    return EgoMotion(turn, direction, agreement)


def closeness(flow: Flow, camera: Camera, direction: Array) -> NDArray[np.float32]:
    """
    Return how long the camera's path is beside the depth of each pixel.

    :param flow: (H, W, 2) float32, pixels, without rotation.
    :param camera: without distortion.
    :param direction: (3,), unit vector of the path, as `EgoMotion` has it.
    :returns: (H, W) float32, path / depth in the first image; a tenth where a point at 10 m is
        seen from a camera that moves 1 m. Negative where no static point moves like that.
    :raises InputError: sizes differ, or the camera is distorted.
    """
    check_undistorted(camera)
    camera.check_size('flow', flow)
    ends = camera.rays + flow / np.diag(camera.matrix)[:2]
    return _closeness(camera.rays, ends, direction).astype(np.float32)


def parallax(camera: Camera, direction: Array) -> Array:
    """Return (H, W, 2), pixels: the flow without rotation of closeness 1, but for its growth."""
    lever = direction[2] * camera.rays - direction[:2]
    return np.asarray(lever * np.diag(camera.matrix)[:2], np.float64)


def check_undistorted(camera: Camera) -> None:
    """
    Check that a camera has no distortion.

    :raises InputError: it has.
    """
    if camera.distorted:
        raise InputError(
            'the camera is distorted; turn its flow with rectify_flow and take rectified()'
        )


def _directions(rays: Array) -> Array:
    return np.concatenate((rays, np.ones_like(rays[..., :1])), axis=-1)


def _in_front(directions: Array) -> Array:
    """Keep what has turned out of view finite, with only its rough direction."""
    directions[..., 2] = np.maximum(directions[..., 2], _NEAR)
    return directions


def _turned(rays: Array, rotation: Array) -> Array:
    turned = _in_front(_directions(rays) @ rotation.T)
    return np.asarray(turned[..., :2] / turned[..., 2:])


def _matches(flow: Flow, camera: Camera, step: int, static: Mask | None) -> tuple[Array, Array]:
    """Return x and y at z = 1 of every step-th pixel in both images, (N, 2) each."""
    usable: Mask = np.asarray(np.isfinite(flow).all(axis=-1))
    if static is not None:
        camera.check_size('mask of static pixels', static)
        usable &= static
    part = (slice(step // 2, None, step),) * 2
    chosen = usable[part]
    if chosen.sum() < _FEWEST:
        raise InputError(
            f'{int(chosen.sum())} pixels to find the motion of the camera in; '
            f'it takes {_FEWEST} or more'
        )
    grid = pixel_grid(camera.height, camera.width)[part][chosen]
    return camera.normalised(grid), camera.normalised(grid + flow[part][chosen])


def _turn_error(first: Array, second: Array, rotation: Array) -> Array:
    return np.asarray(np.linalg.norm(_turned(first, rotation) - second, axis=-1))


def _fit_rotation(first: Array, second: Array) -> Array:
    """Fit a turn to directions, robustly: Kabsch (1976) with weights of Cauchy."""
    one, two = _directions(first), _directions(second)
    one /= np.linalg.norm(one, axis=-1, keepdims=True)
    two /= np.linalg.norm(two, axis=-1, keepdims=True)
    weight = np.ones(len(one))
    for _ in range(10):
        u, _, v = np.linalg.svd((two * weight[:, None]).T @ one)
        rotation = u @ np.diag((1, 1, np.linalg.det(u @ v))) @ v
        error = np.linalg.norm(one @ rotation.T - two, axis=-1)
        weight = 1 / (1 + (error / (1e-6 + np.median(error))) ** 2)
    return np.asarray(rotation, np.float64)


def _essential_rotation(first: Array, second: Array, threshold: float) -> Array:
    eye = np.eye(3)
    essential, mask = cv2.findEssentialMat(
        first, second, eye, cv2.RANSAC, prob=_CONFIDENCE, threshold=threshold
    )
    if essential is None or essential.shape != (3, 3):
        raise InputError('the flow does not tell how the camera has moved')
    _, rotation, _, _ = cv2.recoverPose(essential, first, second, eye, mask=mask)
    return np.asarray(rotation, np.float64)


def _epipolar_error(first: Array, second: Array, direction: Array) -> Array:
    """Distance of the second points, turned back, from their epipolar lines; (..., N) at z = 1."""
    lever = direction[..., None, 2:] * first - direction[..., None, :2]
    moved = second - first
    cross = lever[..., 0] * moved[..., 1] - lever[..., 1] * moved[..., 0]
    return np.asarray(np.abs(cross) / np.maximum(np.linalg.norm(lever, axis=-1), 1e-12))


def _closeness(first: Array, second: Array, direction: Array) -> Array:
    """Path / depth in the first image, of points whose rotation is taken out."""
    lever = direction[2] * first - direction[:2]
    power = np.maximum((lever**2).sum(axis=-1), 1e-12)
    later = ((second - first) * lever).sum(axis=-1) / power  # path / depth in the second image
    return np.asarray(later / np.maximum(1 + direction[2] * later, 1e-3))


def _fit_direction(first: Array, second: Array, threshold: float, seed: int) -> Array:
    """Find the path's direction from pixels whose rotation is taken out, by drawing pairs."""
    normals = np.cross(_directions(first), _directions(second))  # each at right angles to the path
    pairs = np.random.default_rng(seed).integers(0, len(first), (_DRAWS, 2))
    drawn = np.cross(normals[pairs[:, 0]], normals[pairs[:, 1]])
    length = np.linalg.norm(drawn, axis=-1)
    drawn = drawn[length > 1e-12] / length[length > 1e-12, None]
    if not len(drawn):
        raise InputError('the flow does not tell in which direction the camera has moved')
    # Bounded errors, so that pixels astray weigh the same however far they are.
    errors = np.minimum(_epipolar_error(first, second, drawn), threshold)
    direction = drawn[errors.mean(axis=-1).argmin()]
    for _ in range(5):
        lever = direction[2] * first - direction[:2]
        scale = np.maximum(np.linalg.norm(lever, axis=-1), 1e-6)
        error = _epipolar_error(first, second, direction)
        rows = normals[error < threshold] / scale[error < threshold, None]
        direction = np.linalg.svd(rows, full_matrices=False)[2][-1]
    return np.asarray(direction, np.float64)


def _refine(
    first: Array, second: Array, rotation: Array, direction: Array, threshold: float
) -> tuple[Array, Array]:
    """Adjust turn and direction together, to the least epipolar errors."""
    sides = np.linalg.svd(direction[None])[2][1:]  # (2, 3), at right angles to the direction

    def motion(change: Array) -> tuple[Array, Array]:
        turned = cv2.Rodrigues(change[:3])[0] @ rotation
        moved = direction + change[3:] @ sides
        return turned, moved / np.linalg.norm(moved)

    def error(change: Array) -> Array:
        turned, moved = motion(change)
        return _epipolar_error(first, _turned(second, turned.T), moved)

    result = least_squares(error, np.zeros(5), loss='cauchy', f_scale=0.5 * threshold)
    return motion(result.x)
