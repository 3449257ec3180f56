"""
Textures of the road world: what street surfaces look like, drawn with numpy and cv2.

Every painter is deterministic in its arguments and cached, so that all worlds of a process share
their textures. A texture is an RGBA picture of a flat piece of surface; alpha cuts out its shape.
"""

from collections.abc import Sequence
from typing import Any

import cv2
from dense_perception.labels import CITYSCAPES
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, 4) RGBA
Color = Sequence[float] | NDArray[Any]  # red, green, blue in 0 to 255

PAD = 2  # texels around every level, so that edges fade or overlap by about one pixel


class Texture:
    """An RGBA picture with one label, or one label per texel, and its smaller versions."""

    def __init__(
        self,
        picture: Picture,
        label: str,
        *,
        overlap: bool = False,
        labels: NDArray[np.uint8] | None = None,
    ) -> None:
        """
        Keep a picture; smaller versions are made when first asked for.

        :param picture: (H, W, 4) uint8 RGBA; colour also where alpha is 0, for clean edges.
        :param label: class name of the texels.
        :param overlap: let the surface reach half a pixel over its edge, to close seams with
            neighbours; otherwise the edge fades out.
        :param labels: (H, W) uint8 where texels differ in class.
        """
        self.picture = picture
        self.label = CITYSCAPES.index(label)
        self.overlap = overlap
        self.labels = labels
        self.height, self.width = picture.shape[:2]
        self.solid = bool((picture[..., 3] == 255).all())
        self._levels: dict[tuple[int, int], Picture] = {}

    def level(self, halvings_x: int, halvings_y: int) -> Picture:
        """Return the picture shrunk by powers of two per axis, with a border of `PAD` texels."""
        key = (halvings_x, halvings_y)
        if key not in self._levels:
            size = (max(1, self.width >> halvings_x), max(1, self.height >> halvings_y))
            small = cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA)
            padded = cv2.copyMakeBorder(small, PAD, PAD, PAD, PAD, cv2.BORDER_REPLICATE)
            edge = 1 if self.overlap else PAD
            for rim in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
                padded[rim][..., 3] = 0
            self._levels[key] = np.asarray(padded, np.uint8)
        return self._levels[key]

    def padded_labels(self) -> NDArray[np.uint8]:
        """Return the labels per texel with the border of level (0, 0)."""
        assert self.labels is not None
        padded = cv2.copyMakeBorder(self.labels, PAD, PAD, PAD, PAD, cv2.BORDER_REPLICATE)
        return np.asarray(padded, np.uint8)


def generator(*key: int) -> np.random.Generator:
    """Return the random generator that belongs to a tuple of non-negative numbers."""
    return np.random.default_rng(key)


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, cells: Sequence[int]
) -> NDArray[np.float32]:
    """
    Sum of interpolated noise, zero mean and unit deviation; it tiles in both directions.

    :param cells: texels per noise cell, one entry per octave; coarse octaves weigh more.
    """
    total = np.zeros((height, width), np.float32)
    for cell in cells:
        rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
        grid = rng.standard_normal((rows, columns), np.float32)
        grid = np.pad(grid, 2, mode='wrap')
        scale_y, scale_x = height / rows, width / columns
        ys = (np.arange(height, dtype=np.float32) / scale_y + 2)[:, None]
        xs = (np.arange(width, dtype=np.float32) / scale_x + 2)[None]
        total += cell**0.5 * cv2.remap(
            grid,
            np.broadcast_to(xs, total.shape).copy(),
            np.broadcast_to(ys, total.shape).copy(),
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_WRAP,
        )
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def joined(color: NDArray[np.float32] | NDArray[np.uint8], alpha: Any = 255) -> Picture:
    """Join colour and alpha to an RGBA picture."""
    picture = np.empty((*color.shape[:2], 4), np.uint8)
    picture[..., :3] = np.clip(color, 0, 255)
    picture[..., 3] = alpha
    return picture


def plain(height: int, width: int, color: Color) -> NDArray[np.float32]:
    """Return a sheet of one colour."""
    return np.full((height, width, 3), np.asarray(color, np.float32), np.float32)


def fill(canvas: Any, x: float, y: float, width: float, height: float, color: Color) -> None:
    """Fill a rectangle given by its upper left corner and size in texels."""
    x0, y0 = max(0, round(x)), max(0, round(y))
    canvas[y0 : max(0, round(y + height)), x0 : max(0, round(x + width))] = color


class Sheet:
    """A sheet in metres, y up, that is drawn four times as large as the texture."""

    def __init__(self, width: float, height: float, scale: int) -> None:
        self.scale = 4 * scale
        self.height = height
        self.size = (round(width * scale), round(height * scale))
        shape = (4 * self.size[1], 4 * self.size[0])
        self.color = np.zeros((*shape, 3), np.uint8)
        self.alpha = np.zeros(shape, np.uint8)
        self.labels = np.zeros(shape, np.uint8)
        self.label = 0

    def _texels(self, points: Any) -> NDArray[np.int32]:
        flat = np.asarray(points, np.float64).reshape(-1, 2)
        xy = np.stack((flat[:, 0], self.height - flat[:, 1]), axis=1)
        return np.round(xy * self.scale).astype(np.int32)

    def polygon(self, points: Any, color: Any) -> None:
        """Fill a polygon given by its (x, y) corners."""
        corners = [self._texels(points)]
        cv2.fillPoly(self.color, corners, tuple(float(c) for c in color))
        cv2.fillPoly(self.alpha, corners, 255)
        cv2.fillPoly(self.labels, corners, self.label)

    def box(self, x: float, y: float, width: float, height: float, color: Any) -> None:
        """Fill a rectangle given by its lower left corner."""
        corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
        self.polygon(corners, color)

    def line(self, points: Any, thickness: float, color: Any) -> None:
        """Draw a polyline with round ends."""
        corners, wide = [self._texels(points)], max(1, round(thickness * self.scale))
        cv2.polylines(self.color, corners, False, tuple(float(c) for c in color), wide)
        cv2.polylines(self.alpha, corners, False, 255, wide)
        cv2.polylines(self.labels, corners, False, self.label, wide)

    def oval(self, x: float, y: float, rx: float, ry: float, color: Any) -> None:
        """Fill an ellipse given by its centre and radii."""
        angle = np.linspace(0, 2 * np.pi, 33)
        self.polygon(np.stack((x + rx * np.cos(angle), y + ry * np.sin(angle)), axis=1), color)

    def ring(self, x: float, y: float, radius: float, thickness: float, color: Any) -> None:
        """Draw a circle line."""
        angle = np.linspace(0, 2 * np.pi, 41)
        points = np.stack((x + radius * np.cos(angle), y + radius * np.sin(angle)), axis=1)
        self.line(points, thickness, color)

    def texture(self, label: str, *, overlap: bool = False, several: bool = False) -> Texture:
        """Return the sheet as a texture; `several` keeps the label of every texel."""
        seen = (self.alpha > 0).astype(np.float32)
        near = cv2.blur(self.color.astype(np.float32), (25, 25))
        share = cv2.blur(seen, (25, 25))
        spread = near / np.maximum(share, 1e-3)[..., None]
        color = np.where(self.alpha[..., None] > 0, self.color, spread)
        picture: Picture = np.empty((*self.alpha.shape, 4), np.uint8)
        picture[..., :3] = np.clip(color, 0, 255)
        picture[..., 3] = self.alpha
        small = np.asarray(cv2.resize(picture, self.size, interpolation=cv2.INTER_AREA), np.uint8)
        if not several:
            return Texture(small, label, overlap=overlap)
        labels = cv2.resize(self._spread_labels(), self.size, interpolation=cv2.INTER_NEAREST)
        return Texture(small, label, labels=np.asarray(labels, np.uint8))

    def _spread_labels(self) -> NDArray[np.uint8]:
        """Return the labels, where nothing was drawn those of the nearest drawn place."""
        empty = (self.alpha == 0).astype(np.uint8)
        _, nearest = cv2.distanceTransformWithLabels(
            empty, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )
        table = np.zeros(int(nearest.max()) + 1, np.uint8)
        table[nearest[empty == 0]] = self.labels[empty == 0]
        return np.asarray(table[nearest], np.uint8)


def shaded(color: Any, factor: float) -> Any:
    """Return a colour made brighter or darker."""
    return np.clip(np.asarray(color, np.float64) * factor + 2, 0, 255)
