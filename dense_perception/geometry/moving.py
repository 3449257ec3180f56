"""
Which pixels move by themselves: flow minus what the camera's motion explains.

A static point flows along a line that the camera's path gives, the faster the nearer it is. What
flows off that line moves. So does what flows back on it, and, where ground can be seen, what
stands on the ground but flows faster or slower than something so far away can: planar parallax,
which also tells a car ahead that drives at the same speed.
"""

from dataclasses import dataclass

from dense_perception.arrays import Flow, Labels, Mask
from dense_perception.geometry.camera import Array, Camera
from dense_perception.geometry.ego_motion import closeness, EgoMotion, parallax, without_rotation
from dense_perception.geometry.free_space import class_indices
from dense_perception.labels import LabelSet
from dense_perception.settings import setting, Settings
import numpy as np
from numpy.typing import NDArray

_FEWEST = 64  # ground pixels that a plane is fitted to
_LARGEST = 0.95  # path / depth that is still believed; nearer, a point goes by within the frame


@dataclass(frozen=True)
class MovingSettings(Settings):
    """What can move, and what counts as moving."""

    movable: str = setting(
        'person, rider, car, truck, bus, train, motorcycle, bicycle',
        'names of the classes that can move by themselves, with commas between',
    )
    ground: str = setting(
        'road, sidewalk, terrain',
        'names of the classes of the plane that they stand on, with commas between; empty: none',
    )
    threshold_px: float = setting(
        1.0, 'pixels that flow must differ from that of a static point', low=0.01, high=100
    )
    depth_tolerance: float = setting(
        0.25, 'share by which a thing may be farther or nearer than its foot', low=0, high=1
    )


@dataclass(frozen=True)
class Moving:
    """What moves by itself."""

    mask: Mask  # (H, W)
    residual: Flow  # (H, W, 2), pixels; flow that no static point explains, for every label


def static_mask(labels: Labels, label_set: LabelSet, settings: MovingSettings) -> Mask:
    """
    Return the labelled pixels that cannot move by themselves, (H, W) bool.

    :raises InputError: a movable class does not exist.
    """
    movable = class_indices(settings.movable, label_set)
    return np.asarray((labels < len(label_set)) & ~np.isin(labels, movable))


def find_moving(
    flow: Flow,
    labels: Labels,
    camera: Camera,
    motion: EgoMotion,
    label_set: LabelSet,
    settings: MovingSettings = MovingSettings(),
) -> Moving:
    """
    Find the pixels that move by themselves.

    :param flow: (H, W, 2) float32, pixels from the first image to the second; nan where unknown,
        which does not count as moving.
    :param labels: (H, W) uint8, of the first image.
    :param camera: without distortion.
    :param motion: of the camera, from an estimate or an odometer.
    :param label_set: names the classes.
    :raises InputError: sizes differ, the camera is distorted, or a class does not exist.
    """
    camera.check_size('labels', labels)
    movable = np.isin(labels, class_indices(settings.movable, label_set))
    ground = np.isin(labels, class_indices(settings.ground, label_set))
    straight = without_rotation(flow, camera, motion.rotation)
    near = np.nan_to_num(closeness(straight, camera, motion.direction))
    low, high = _bounds(near, movable, ground, camera, settings)
    # The flow nearest to the true one that a static point can have.
    depth = np.clip(near, low, high)
    lever = parallax(camera, motion.direction)
    explained = (depth / (1 - depth * motion.direction[2]))[..., None] * lever
    residual = (straight - explained).astype(np.float32)
    with np.errstate(invalid='ignore'):
        far = np.linalg.norm(residual, axis=-1) > settings.threshold_px
    return Moving(movable & far, residual)


def _bounds(
    near: NDArray[np.float32],
    movable: Mask,
    ground: Mask,
    camera: Camera,
    settings: MovingSettings,
) -> tuple[Array, Array]:
    """Return the least and the largest path / depth, (H, W) each, that a static point can have."""
    low, high = np.zeros(near.shape), np.full(near.shape, _LARGEST)
    plane = _ground_plane(near, ground, camera)
    if plane is None:
        return low, high
    foot = _foot_rows(movable)  # (H, W)
    columns = np.arange(camera.width)[None]
    stands = movable & ground[np.minimum(foot + 1, camera.height - 1), columns]
    rays = camera.rays
    expected = rays[..., 0] * plane[0] + plane[2]
    # The lower edge of the foot's pixel is where the ground begins.
    edge = (foot + 0.5 - camera.matrix[1, 2]) / camera.matrix[1, 1]
    expected = np.clip(expected + edge * plane[1], 0, _LARGEST)
    low[movable] = ((1 - settings.depth_tolerance) * expected)[movable]
    high[stands] = np.minimum((1 + settings.depth_tolerance) * expected, _LARGEST)[stands]
    return low, high


def _ground_plane(near: NDArray[np.float32], ground: Mask, camera: Camera) -> Array | None:
    """
    Fit the ground: path / depth that is affine in x and y at z = 1, as any plane has it.

    :returns: (3,), slopes along x and y, and the value at 0; None: there is too little ground.
    """
    rows, columns = np.nonzero(ground)
    if len(rows) < _FEWEST:
        return None
    every = max(1, len(rows) // 5000)
    rows, columns = rows[::every], columns[::every]
    points = np.column_stack((camera.rays[rows, columns], np.ones(len(rows))))
    values = near[rows, columns].astype(np.float64)
    weight = np.ones(len(rows))
    for _ in range(10):  # weights of Cauchy, against what is no ground
        plane = np.linalg.lstsq(points * weight[:, None], values * weight, rcond=None)[0]
        error = np.abs(points @ plane - values)
        weight = 1 / np.sqrt(1 + (error / (1e-6 + 2 * np.median(error))) ** 2)
    return np.asarray(plane, np.float64)


def _foot_rows(mask: Mask) -> NDArray[np.intp]:
    """Return the row where the run of set pixels that each pixel belongs to ends below."""
    height = len(mask)
    rows = np.broadcast_to(np.arange(height)[:, None], mask.shape)
    # The nearest unset row below each pixel, from the bottom up.
    unset = np.where(mask, height, rows)
    below = np.minimum.accumulate(unset[::-1], axis=0)[::-1]
    return np.asarray(below - 1, np.intp)
