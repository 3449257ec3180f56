"""Every so many-th pixel of flow and labels: enough for motion, at a fraction of the cost."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import cv2
from dense_perception.arrays import Flow, Labels, Mask
from dense_perception.geometry.camera import Array, Camera
import numpy as np
from numpy.typing import NDArray

AnyScalar = TypeVar('AnyScalar', bound=np.generic)


@dataclass(frozen=True, eq=False)
class CoarseGrid:
    """Every so many-th row and column of a camera, without distortion."""

    camera: Camera  # of every pixel
    stride: int

    @cached_property
    def straight(self) -> Camera:
        """The camera that coarse flow and labels come from: no distortion."""
        return self._coarse.rectified()

    @cached_property
    def _coarse(self) -> Camera:
        offset = self.stride // 2
        camera = self.camera
        change = np.array(
            (
                (1 / self.stride, 0, -offset / self.stride),
                (0, 1 / self.stride, -offset / self.stride),
                (0, 0, 1),
            )
        )
        return Camera(
            len(range(offset, camera.width, self.stride)),
            len(range(offset, camera.height, self.stride)),
            change @ camera.matrix,
            camera.distortion,
            camera.distortion_model,
            camera.rotation,
            change @ camera.projection,
        )

    def flow(self, flow: Flow) -> Flow:
        """
        Thin flow out.

        :param flow: (H, W, 2) float32, pixels, of the camera.
        :returns: (h, w, 2) float32, coarse pixels, of `straight`; nan where nothing was seen.
        :raises InputError: the flow is not of the camera's size.
        """
        self.camera.check_size('flow', flow)
        thin = self._thin(flow) / np.float32(self.stride)
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
        return pixels[self.stride // 2 :: self.stride, self.stride // 2 :: self.stride]

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
