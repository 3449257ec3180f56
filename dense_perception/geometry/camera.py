"""
The geometry of a camera, from the numbers of a `sensor_msgs/CameraInfo`.

Axes are optical, as in REP-103: x right, y down, z forward. The centre of a pixel has whole
coordinates, as in OpenCV.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
import math
from typing import Any, Protocol

import cv2
from dense_perception.arrays import Flow, Image, Labels
from dense_perception.errors import InputError
from dense_perception.labels import UNLABELLED
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# How many coefficients `sensor_msgs/distortion_models.hpp` gives each model that is a polynomial.
DISTORTION_MODELS = {'': (0,), 'plumb_bob': (0, 4, 5), 'rational_polynomial': (0, 8)}

# Pixels; a focal length or a principal point beyond these is of no camera, and squares of it, or
# of its inverse, would not be finite.
SHORTEST, LONGEST = 1e-3, 1e9

# Optical axes in those of a body, REP-103: x forward, y left, z up.
OPTICAL_IN_BODY = np.array(((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)))


class CameraInfoNumbers(Protocol):
    """The fields of `sensor_msgs/CameraInfo` that are read; the message itself will do."""

    width: int
    height: int
    distortion_model: str
    k: Any
    d: Any
    r: Any
    p: Any


@dataclass(frozen=True, eq=False)
class Camera:
    """
    A calibrated camera, checked when built.

    A rotation or projection of zeros, as drivers send them, stands for none: no rotation, and the
    camera's own matrix.
    """

    width: int  # pixels
    height: int  # pixels
    matrix: Array  # K, (3, 3)
    distortion: Array = field(default_factory=lambda: np.zeros(0))  # D
    distortion_model: str = 'plumb_bob'
    rotation: Array = field(default_factory=lambda: np.eye(3))  # R, of rectification
    projection: Array = field(default_factory=lambda: np.zeros((3, 4)))  # P

    def __post_init__(self) -> None:
        """
        Check every number.

        :raises InputError: a size of zero, a number that is not finite, an uncalibrated or
            sheared matrix, a rotation that is none, or a distortion that is not known.
        """
        if self.width < 1 or self.height < 1:
            raise InputError(f'camera is {self.width} x {self.height}; both sizes must be over 0')
        shapes = {'matrix': (3, 3), 'distortion': (-1,), 'rotation': (3, 3), 'projection': (3, 4)}
        for name, shape in shapes.items():
            object.__setattr__(self, name, _numbers(name, getattr(self, name), shape))
        if not self.rotation.any():
            object.__setattr__(self, 'rotation', np.eye(3))
        if not self.projection.any():
            object.__setattr__(self, 'projection', np.column_stack((self.matrix, np.zeros(3))))
        _check_matrix('matrix K', self.matrix)
        _check_matrix('projection P', self.projection[:, :3])
        check_rotation('rectification R', self.rotation)
        counts = DISTORTION_MODELS.get(self.distortion_model)
        if counts is None:
            raise InputError(
                f'distortion model is {self.distortion_model!r}; it must be one of '
                f'{", ".join(repr(name) for name in DISTORTION_MODELS)}'
            )
        if len(self.distortion) not in counts:
            raise InputError(
                f'{self.distortion_model!r} distortion has {len(self.distortion)} coefficients; '
                f'it must have {" or ".join(map(str, counts))}'
            )

    @classmethod
    def from_info(cls, info: CameraInfoNumbers) -> 'Camera':
        """
        Build from a camera info message that describes a whole image, such as `~/camera_info`.

        :raises InputError: as when built from numbers.
        """
        return cls(info.width, info.height, info.k, info.d, info.distortion_model, info.r, info.p)

    @property
    def distorted(self) -> bool:
        """Whether straight lines come out bent."""
        return bool(self.distortion.any())

    @cached_property
    def rays(self) -> Array:
        """(H, W, 2) float64; x and y, at z = 1, of the direction that each pixel looks in."""
        return self.normalised(pixel_grid(self.height, self.width))

    def normalised(self, pixels: NDArray[Any]) -> Array:
        """
        Return the directions that pixels look in.

        :param pixels: (..., 2); column and row, any fraction.
        :returns: (..., 2) float64; x and y at z = 1, in the optical frame.
        """
        points = np.asarray(pixels, np.float64)
        if self.distorted:
            # Far more rounds than needed, as those of an edge pixel converge slowly.
            criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-9)
            flat = np.ascontiguousarray(points.reshape(-1, 1, 2))
            straight = cv2.undistortPointsIter(
                flat, self.matrix, self.distortion, np.eye(3), np.eye(3), criteria
            )
            return np.asarray(straight, np.float64).reshape(points.shape)
        centre, focal = self.matrix[:2, 2], np.diag(self.matrix)[:2]
        return np.asarray((points - centre) / focal, np.float64)

    def pixels(self, points: NDArray[Any]) -> Array:
        """
        Return where points are seen.

        :param points: (..., 3); metres or any unit, in the optical frame.
        :returns: (..., 2) float64, column and row; nan for what is not in front of the camera.
        """
        points = np.asarray(points, np.float64)
        depth = np.where(points[..., 2:] > 1e-9, points[..., 2:], np.nan)
        straight = points[..., :2] / depth
        if not self.distorted:
            return np.asarray(straight * np.diag(self.matrix)[:2] + self.matrix[:2, 2])
        flat = np.concatenate((straight, np.ones_like(depth)), axis=-1).reshape(-1, 1, 3)
        none = np.zeros(3)
        bent, _ = cv2.projectPoints(flat, none, none, self.matrix, self.distortion)
        return np.asarray(bent, np.float64).reshape(straight.shape)

    def rectified(self) -> 'Camera':
        """Return the camera that a rectified image comes from: no distortion, and P for K."""
        return Camera(self.width, self.height, self.projection[:, :3])

    def rectify_image(self, image: Image) -> Image:
        """
        Rectify an image as `image_proc` does.

        :param image: (H, W, 3) uint8 of this camera.
        :returns: the same of `rectified()`; black where nothing was seen.
        :raises InputError: the image is not of the camera's size.
        """
        self.check_size('image', image)
        return np.asarray(cv2.remap(image, *self._maps, cv2.INTER_LINEAR), np.uint8)

    def rectify_labels(self, labels: Labels) -> Labels:
        """
        Rectify labels; each pixel takes the nearest one.

        :param labels: (H, W) uint8 of this camera; confidence will do as well.
        :returns: the same of `rectified()`; 255 where nothing was seen.
        :raises InputError: the labels are not of the camera's size.
        """
        self.check_size('labels', labels)
        border = cv2.BORDER_CONSTANT
        rectified = cv2.remap(
            labels, *self._maps, cv2.INTER_NEAREST, borderMode=border, borderValue=UNLABELLED
        )
        return np.asarray(rectified, np.uint8)

    def rectify_flow(self, flow: Flow) -> Flow:
        """
        Turn flow between two images of this camera into flow between their rectified images.

        :param flow: (H, W, 2) float32, pixels, on this camera's grid.
        :returns: the same on the grid of `rectified()`; nan where nothing was seen.
        :raises InputError: the flow is not of the camera's size.
        """
        self.check_size('flow', flow)
        target = self.normalised(pixel_grid(self.height, self.width) + flow)
        turned = _homogeneous(target) @ (self.projection[:, :3] @ self.rotation).T
        ends = (turned[..., :2] / turned[..., 2:]).astype(np.float32)
        unseen = (math.nan, math.nan)
        moved = cv2.remap(
            ends,
            *self._maps,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=unseen,
        )
        return np.asarray(moved - pixel_grid(self.height, self.width), np.float32)

    def check_size(self, name: str, array: NDArray[Any]) -> None:
        """
        Check that an array lies on the camera's pixel grid.

        :raises InputError: its rows and columns are other.
        """
        if array.shape[:2] != (self.height, self.width):
            raise InputError(
                f'{name} is {array.shape[1::-1]}, its camera {(self.width, self.height)} wide and '
                'high; sizes must match'
            )

    @cached_property
    def _maps(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Column and row, in the camera's image, of each pixel of the rectified one."""
        size = (self.width, self.height)
        columns, rows = cv2.initUndistortRectifyMap(
            self.matrix,
            self.distortion,
            self.rotation,
            self.projection[:, :3],
            size,
            cv2.CV_32FC1,
        )
        return np.asarray(columns, np.float32), np.asarray(rows, np.float32)


def pixel_grid(height: int, width: int) -> NDArray[np.float32]:
    """Return column and row of each pixel, (H, W, 2) float32."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack((columns, rows), axis=-1)


def mounted(
    position: Sequence[float], *, roll: float = 0.0, pitch: float = 0.0, yaw: float = 0.0
) -> Array:
    """
    Return the pose of a camera on its robot, as the static transform to its body frame gives it.

    :param position: metres, x forward, y left, z up, in `base_footprint` (REP-105): z is the
        height above the ground.
    :param roll: radians, of the camera's body about x.
    :param pitch: radians about y; positive looks down.
    :param yaw: radians about z; positive looks left.
    :returns: (4, 4) float64, optical axes to `base_footprint`.
    """
    cr, sr, cp, sp, cy, sy = (f(a) for a in (roll, pitch, yaw) for f in (math.cos, math.sin))
    about_x = np.array(((1, 0, 0), (0, cr, -sr), (0, sr, cr)))
    about_y = np.array(((cp, 0, sp), (0, 1, 0), (-sp, 0, cp)))
    about_z = np.array(((cy, -sy, 0), (sy, cy, 0), (0, 0, 1)))
    pose = np.eye(4)
    pose[:3, :3] = about_z @ about_y @ about_x @ OPTICAL_IN_BODY
    pose[:3, 3] = position
    return pose


def check_rotation(name: str, matrix: NDArray[Any]) -> None:
    """
    Check that a matrix is a rotation.

    :raises InputError: it is not (3, 3), not finite, or no rotation.
    """
    right = matrix.shape == (3, 3) and bool(np.isfinite(matrix).all())
    if not right or not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-4):
        raise InputError(f'{name} is {matrix.tolist()}; it must be a (3, 3) rotation')
    if np.linalg.det(matrix) < 0:
        raise InputError(f'{name} is {matrix.tolist()}; it mirrors, a rotation does not')


def _homogeneous(directions: Array) -> Array:
    return np.concatenate((directions, np.ones_like(directions[..., :1])), axis=-1)


def _numbers(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    """Return values as a read-only array of float64 in a shape."""
    array = np.array(values, np.float64)
    if shape != (-1,) and array.size != math.prod(shape):
        raise InputError(f'camera {name} has {array.size} numbers; it must have {shape}')
    if not np.isfinite(array).all():
        raise InputError(f'camera {name} is {array.tolist()}; all must be finite')
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _check_matrix(name: str, matrix: Array) -> None:
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise InputError(
            f'camera {name} has focal lengths {matrix[0, 0]} and {matrix[1, 1]}; '
            'both must be over 0, is the camera calibrated?'
        )
    numbers = np.abs(matrix[[0, 1, 0, 1], [0, 1, 2, 2]])
    if numbers[:2].min() < SHORTEST or numbers.max() > LONGEST:
        raise InputError(
            f'camera {name} is {matrix.tolist()}; focal lengths must be {SHORTEST:g} to '
            f'{LONGEST:g} pixels, and the principal point within {LONGEST:g}'
        )
    shape = np.array(((matrix[0, 0], 0, matrix[0, 2]), (0, matrix[1, 1], matrix[1, 2]), (0, 0, 1)))
    if not np.allclose(matrix, shape, atol=1e-6 * matrix[0, 0]):
        raise InputError(f'camera {name} is {matrix.tolist()}; it must be fx 0 cx, 0 fy cy, 0 0 1')
