"""
Drawing of the road world: textured quads into colour, inverse depth, labels and bodies.

The inverse depth of a flat surface is affine in pixel coordinates, and its texture is warped by a
homography; both come from one 3 x 3 matrix per quad.
"""

from dataclasses import dataclass
import math

import cv2
from dense_perception.data.road_bodies import Quads, Solid
from dense_perception.data.road_light import Light
from dense_perception.data.road_textures import PAD, Texture
from dense_perception.labels import CITYSCAPES
import numpy as np
from numpy.typing import NDArray

_SKY = CITYSCAPES.index('sky')
_NEAR = 0.25  # metres; nothing nearer is drawn
STATIC, NOTHING = 0, -1  # body of a pixel: the world itself, the sky


class Canvas:
    """The picture in the making, with inverse depth, labels and bodies."""

    def __init__(
        self, camera_matrix: NDArray[np.float64], pose: NDArray[np.float64], size: tuple[int, int]
    ) -> None:
        self.height, self.width = size
        self.camera_matrix = camera_matrix
        self.focal = float(camera_matrix[0, 0])
        self.position = pose[:3, 3]
        self.rotation = pose[:3, :3]  # camera to world
        self.unprojected = np.linalg.inv(camera_matrix)
        self.color = np.zeros((*size, 3), np.float32)
        self.inverse = np.zeros(size, np.float32)
        self.labels = np.full(size, _SKY, np.uint8)
        self.bodies = np.full(size, NOTHING, np.int32)
        self.columns = np.arange(self.width, dtype=np.float32)
        self.rows = np.arange(self.height, dtype=np.float32)


class Batch:
    """Quads of one frame, projected together and drawn far to near."""

    def __init__(self) -> None:
        self._geometry: list[NDArray[np.float64]] = []
        self._textures: list[Texture] = []
        self._facing: list[int] = []
        self._tint: list[float] = []
        self._bodies: list[int] = []

    def add(self, solid: Solid, geometry: NDArray[np.float64], body: int) -> None:
        """Add the surfaces of a body at their place in the world."""
        self._extend(solid.surfaces, geometry, body)

    def add_shadows(self, solid: Solid, geometry: NDArray[np.float64]) -> None:
        """Add the shadows of a body at their place in the world."""
        self._extend(solid.shadows, geometry, STATIC)

    def _extend(self, quads: Quads, geometry: NDArray[np.float64], body: int) -> None:
        self._geometry.append(geometry)
        self._textures += quads.texture
        self._facing += quads.facing
        self._tint += quads.tint
        self._bodies += [body] * len(quads.texture)

    def world(self) -> NDArray[np.float64]:
        """Return corner, across and down of every quad in the world, (N, 3, 3)."""
        return np.concatenate(self._geometry)

    def draw(self, canvas: Canvas, light: Light, sunlit: NDArray[np.float32]) -> None:
        """Draw every visible quad into colour, depth, labels and bodies."""
        world = self.world()
        shades = light.on_quads(world, np.array(self._facing), np.array(self._tint))
        shades *= sunlit[:, None]
        for view in _views(canvas, world, np.array(self._facing)):
            _draw(canvas, view, self._textures[view.index], shades[view.index],
                  self._bodies[view.index])  # fmt: skip

    def darken(self, canvas: Canvas) -> None:
        """Darken what lies under every shadow quad."""
        world = self.world()
        for view in _views(canvas, world, np.zeros(len(world))):
            window = np.s_[view.y0 : view.y1, view.x0 : view.x1]
            alpha = _warped(self._textures[view.index], view)[..., 3]
            shade = 1 - (self._tint[view.index] / 255) * alpha.astype(np.float32)
            shade[view.inverse(canvas) <= 0] = 1
            canvas.color[window] *= shade[..., None]


@dataclass(frozen=True)
class _View:
    """One quad as the camera sees it."""

    index: int
    plane: NDArray[np.float64]  # (3, 3): pixel to (u, v, 1) / z
    x0: int
    y0: int
    x1: int
    y1: int
    pixels: tuple[float, float]  # length across and down at its middle

    def inverse(self, canvas: Canvas) -> NDArray[np.float32]:
        """Return inverse depth over the window."""
        a, b, c = self.plane[2].astype(np.float32)
        columns, rows = canvas.columns[self.x0 : self.x1], canvas.rows[self.y0 : self.y1]
        return (a * columns)[None] + (b * rows + c)[:, None]


def _views(canvas: Canvas, world: NDArray[np.float64], facing: NDArray[np.float64]) -> list[_View]:
    """Project quads, drop what cannot be seen, and sort the rest far to near."""
    local = world.copy()
    local[:, 0] -= canvas.position
    local = local @ canvas.rotation  # (N, 3, 3) in camera axes
    corner, across, down = local[:, 0], local[:, 1], local[:, 2]
    corners = corner[:, None] + np.stack(
        (np.zeros_like(across), across, across + down, down), axis=1
    )  # (N, 4, 3)
    depth = corners[..., 2]
    toward = np.einsum('ni,ni->n', corner, np.cross(across, down))
    area = np.linalg.norm(np.cross(across, down), axis=1)
    keep = (depth.max(axis=1) > _NEAR) & (toward * facing >= 0) & (np.abs(toward) > 1e-3 * area)
    low, high = _windows(canvas, corners, keep & ~(depth.min(axis=1) > _NEAR))
    keep &= ((high - low) >= 1).all(axis=1)
    chosen = np.nonzero(keep)[0]
    chosen = chosen[np.argsort(-depth[chosen].mean(axis=1), kind='stable')]
    columns = np.stack((across[chosen], down[chosen], corner[chosen]), axis=2)
    planes = np.linalg.inv(columns) @ canvas.unprojected
    lengths = _lengths(canvas.focal, corners[chosen], across[chosen], down[chosen])
    views = []
    for index, plane, pixels in zip(chosen.tolist(), planes, lengths, strict=True):
        (x0, y0), (x1, y1) = low[index].tolist(), high[index].tolist()
        views.append(_View(index, plane, x0, y0, x1, y1, pixels))
    return views


def _windows(
    canvas: Canvas, corners: NDArray[np.float64], cut: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and past-the-last column and row of quads; `cut` marks those to clip."""
    with np.errstate(divide='ignore', invalid='ignore'):
        shown = corners @ canvas.camera_matrix.T
        flat = shown[..., :2] / shown[..., 2:]
    low, high = flat.min(axis=1), flat.max(axis=1)
    for n in np.nonzero(cut)[0]:
        clipped = _clipped(corners[n]) @ canvas.camera_matrix.T
        points = clipped[:, :2] / clipped[:, 2:]
        low[n], high[n] = points.min(axis=0), points.max(axis=0)
    limit = (canvas.width, canvas.height)
    low = np.clip(np.nan_to_num(np.floor(low - 1)), 0, limit)
    high = np.clip(np.nan_to_num(np.ceil(high + 2)), 0, limit)
    return low.astype(np.int64), high.astype(np.int64)


def _lengths(
    focal: float,
    corners: NDArray[np.float64],
    across: NDArray[np.float64],
    down: NDArray[np.float64],
) -> list[tuple[float, float]]:
    """Return how many pixels each quad spans across and down, judged near its middle."""
    middle = corners.copy()
    middle[..., 2] = np.maximum(middle[..., 2], 0.8)
    point = middle.mean(axis=1)
    spans = []
    for edge in (across, down):
        screen = edge[:, :2] - point[:, :2] / point[:, 2:] * edge[:, 2:]
        spans.append(focal * np.linalg.norm(screen, axis=1) / point[:, 2])
    return list(zip(spans[0].tolist(), spans[1].tolist(), strict=True))


def _clipped(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut a quad at the near plane."""
    kept = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if a[2] > _NEAR:
            kept.append(a)
        if (a[2] > _NEAR) != (b[2] > _NEAR):
            kept.append(a + (b - a) * ((_NEAR - a[2]) / (b[2] - a[2])))
    points = np.array(kept)
    points[:, 2] = np.maximum(points[:, 2], _NEAR)
    return points


def _halvings(texels: int, pixels: float) -> int:
    """Return how often to halve a texture for about one texel per pixel."""
    if pixels >= 0.71 * texels:
        return 0
    return min(int(math.log2(texels / max(pixels, 0.5)) + 0.5), int(math.log2(texels)))


def _warped(texture: Texture, view: _View) -> NDArray[np.uint8]:
    """Return the texture as seen in the view's window, RGBA."""
    level = texture.level(
        _halvings(texture.width, view.pixels[0]), _halvings(texture.height, view.pixels[1])
    )
    return _warp(level, view, cv2.INTER_LINEAR)


def _warp(padded: NDArray[np.uint8], view: _View, how: int) -> NDArray[np.uint8]:
    height, width = padded.shape[0] - 2 * PAD, padded.shape[1] - 2 * PAD
    scale = np.array(((width, 0, PAD - 0.5), (0, height, PAD - 0.5), (0, 0, 1)))
    shift = np.array(((1, 0, view.x0), (0, 1, view.y0), (0, 0, 1)))
    seen = cv2.warpPerspective(
        padded,
        scale @ view.plane @ shift,
        (view.x1 - view.x0, view.y1 - view.y0),
        flags=how | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(seen, np.uint8)


def _draw(
    canvas: Canvas, view: _View, texture: Texture, shade: NDArray[np.float32], body: int
) -> None:
    """Draw one quad where it is nearer than what is there."""
    window = np.s_[view.y0 : view.y1, view.x0 : view.x1]
    inverse = view.inverse(canvas)
    target = canvas.inverse[window]
    nearer = inverse > target
    if not nearer.any():
        return
    seen = _warped(texture, view)
    alpha = seen[..., 3] * nearer
    color = canvas.color[window]
    change = seen[..., :3] * shade
    change -= color
    change *= (alpha * np.float32(1 / 255))[..., None]
    color += change
    solid = alpha > 127
    np.copyto(target, inverse, where=solid)
    np.copyto(canvas.bodies[window], body, where=solid)
    if texture.labels is None:
        np.copyto(canvas.labels[window], texture.label, where=solid)
    else:
        labels = _warp(texture.padded_labels(), view, cv2.INTER_NEAREST)
        np.copyto(canvas.labels[window], labels, where=solid)
