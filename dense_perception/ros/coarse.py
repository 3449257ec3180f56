"""Every so many-th pixel of flow and labels: enough for motion, at a fraction of the cost."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import cv2
from dense_perception.arrays import Flow, Labels, Mask
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Array, Camera
import numpy as np
from numpy.typing import NDArray

AnyScalar = TypeVar('AnyScalar', bound=np.generic)


SMALLEST_SCALE = 0.05  # of flow; that of `flow_output_scale`


@dataclass(frozen=True, eq=False)
class CoarseGrid:
    """
    Every so many-th row and column of a camera, without distortion.

    Flow may be smaller than the camera's images by one scale, with vectors in pixels of its own
    size, as `flow_output_scale` makes it; it is then thinned out by so much less.
    """

    camera: Camera  # of every pixel
    stride: int  # pixels of the camera
    flow_size: tuple[int, int] | None = None  # width and height; None: the camera's

    def __post_init__(self) -> None:
        """
        Check the size of flow, before anything of the camera's size is made.

        :raises InputError: it is not the camera's at a scale between `SMALLEST_SCALE` and 1.
        """
        camera, (width, height) = self.camera, self._size
        scales = width / camera.width, height / camera.height
        # Both sizes were rounded.
        slack = 0.5 / camera.width + 0.5 / camera.height
        alike = abs(scales[0] - scales[1]) <= slack + 1e-9
        if not alike or not SMALLEST_SCALE - slack <= min(scales) <= max(scales) <= 1:
            raise InputError(
                f'flow is {(width, height)}, its camera {(camera.width, camera.height)} wide and '
                'high; sizes must match, or flow be smaller by a scale of '
                f'{SMALLEST_SCALE} or more'
            )

    @property
    def pixels(self) -> float:
        """Pixels of the camera from one column of the grid to the next."""
        return self._step * self.camera.width / self._size[0]

    @cached_property
    def straight(self) -> Camera:
        """The camera that coarse flow and labels come from: no distortion."""
        return self._coarse.rectified()

    @property
    def _size(self) -> tuple[int, int]:
        """Width and height of flow."""
        return self.flow_size or (self.camera.width, self.camera.height)

    @cached_property
    def _step(self) -> int:
        """Pixels of flow from one row or column to the next; one is left at least."""
        width, height = self._size
        return max(1, min(round(self.stride * width / self.camera.width), width, height))

    @cached_property
    def _coarse(self) -> Camera:
        step, camera, (width, height) = self._step, self.camera, self._size
        offset = step // 2
        scale_x, scale_y = width / camera.width, height / camera.height
        # The centre of a pixel has whole coordinates, on either grid.
        change = np.array(
            (
                (scale_x / step, 0, (scale_x / 2 - 0.5 - offset) / step),
                (0, scale_y / step, (scale_y / 2 - 0.5 - offset) / step),
                (0, 0, 1),
            )
        )
        return Camera(
            len(range(offset, width, step)),
            len(range(offset, height, step)),
            change @ camera.matrix,
            camera.distortion,
            camera.distortion_model,
            camera.rotation,
            change @ camera.projection,
        )

    def flow(self, flow: Flow) -> Flow:
        """
        Thin flow out.

        :param flow: `flow_size`, float32, pixels of that size.
        :returns: (h, w, 2) float32, coarse pixels, of `straight`; nan where nothing was seen.
        :raises InputError: the flow is not of that size.
        """
        if flow.shape[1::-1] != self._size:
            raise InputError(f'flow is {flow.shape[1::-1]} wide and high; it must be {self._size}')
        thin = self._thin(flow) / np.float32(self._step)
        if self._is_straight:
            return thin
        return self._coarse.rectify_flow(thin)

    def labels(self, labels: Labels) -> Labels:
        """
        Thin labels out.

        :param labels: (H, W) uint8 of the camera.
        :returns: (h, w) uint8 of `straight`; 255 where nothing was seen.
        :raises InputError: the labels are not of the camera's size.
        """
        self.camera.check_size('labels', labels)
        if labels.shape[1::-1] != self._size:
            sized = cv2.resize(labels, self._size, interpolation=cv2.INTER_NEAREST_EXACT)
            labels = np.asarray(sized, np.uint8)
        thin = np.ascontiguousarray(self._thin(labels))
        return thin if self._is_straight else self._coarse.rectify_labels(thin)

    def fine(self, mask: Mask) -> Mask:
        """
        Bring a mask back to every pixel of the camera, distortion and all.

        :param mask: (h, w) bool of `straight`.
        :returns: (H, W) bool; False where `straight` sees nothing.
        """
        fine = cv2.remap(mask.astype(np.uint8), *self._places, cv2.INTER_NEAREST)
        return np.asarray(fine, np.uint8) > 0

    def to_straight(self, directions: Array) -> Array:
        """Turn directions, (..., 3), from the axes of the camera into those of `straight`."""
        return np.asarray(directions @ self.camera.rotation.T)

    def to_camera(self, directions: Array) -> Array:
        """Turn directions, (..., 3), from the axes of `straight` into those of the camera."""
        return np.asarray(directions @ self.camera.rotation)

    def _thin(self, pixels: NDArray[AnyScalar]) -> NDArray[AnyScalar]:
        return pixels[self._step // 2 :: self._step, self._step // 2 :: self._step]

    @cached_property
    def _is_straight(self) -> bool:
        camera = self._coarse
        same = np.array_equal(camera.projection[:, :3], camera.matrix)
        return same and not camera.distorted and np.array_equal(camera.rotation, np.eye(3))

    @cached_property
    def _places(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Column and row in `straight` of each pixel of the camera."""
        rays = self.camera.rays
        ends = np.concatenate((rays, np.ones_like(rays[..., :1])), axis=-1)
        ends = ends @ (self.straight.matrix @ self.camera.rotation).T
        # Behind the straight camera nothing is seen.
        places = np.where(ends[..., 2:] > 1e-9, ends[..., :2] / ends[..., 2:], -1e6)
        return places[..., 0].astype(np.float32), places[..., 1].astype(np.float32)
