"""
Endless image pairs with exact flow: pieces of pictures that move affinely over a picture.

After the Flying Chairs data set of Dosovitskiy et al. (2015), section 4.2, with random shapes cut
from photographs in the place of rendered chairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
from dense_perception.arrays import Image, Mask
from dense_perception.data.flow import FlowPair
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]  # (3, 3) affine, pixel coordinates


@dataclass(frozen=True)
class ChairsShape:
    """Size of the images and how many pieces move over them."""

    height: int = 384  # pixels
    width: int = 512
    fewest: int = 16  # pieces
    most: int = 24


@dataclass(frozen=True)
class _Layer:
    """One moving piece: its picture and mask in each image, and how it moved between them."""

    pictures: tuple[Image, Image]
    masks: tuple[Mask, Mask]
    motion: Matrix


def chairs_pair(
    random: np.random.Generator, pictures: Sequence[Image], shape: ChairsShape | None = None
) -> FlowPair:
    """
    Make one image pair with its exact flow.

    :param random: source of every choice.
    :param pictures: photographs for the background and the pieces.
    :param shape: size and number of pieces; those of the paper if left out.
    :returns: a pair whose `valid` is False where the point is hidden or outside in the second.
    """
    shape = shape or ChairsShape()
    # Pieces and motions of the paper are in pixels of 512-wide images.
    scale = shape.width / 512
    background = _background(random, pictures, shape, scale)
    layers = [background]
    for _ in range(random.integers(shape.fewest, shape.most + 1)):
        layers.append(_piece(random, pictures, shape, scale, background.motion))
    return _compose(layers, shape)


def _background(
    random: np.random.Generator, pictures: Sequence[Image], shape: ChairsShape, scale: float
) -> _Layer:
    picture = _patch(random, pictures, shape.height, shape.width)
    motion = _motion(random, shape, scale, translation=12, zoom=0.04, turn=0.03)
    place = np.eye(3)
    everywhere = np.ones(picture.shape[:2], bool)
    images = (_warp(picture, place, shape), _warp(picture, motion @ place, shape))
    return _Layer(images, (everywhere, everywhere), motion)


def _piece(
    random: np.random.Generator,
    pictures: Sequence[Image],
    shape: ChairsShape,
    scale: float,
    background: Matrix,
) -> _Layer:
    size = int(np.clip(random.normal(200, 200), 50, 640) * scale)
    picture = _patch(random, pictures, size, size)
    mask = _outline(random, size)
    center = random.uniform(0, (shape.width, shape.height))
    place = _about(center - size / 2, np.eye(2), center)
    own = _motion(random, shape, scale, translation=16, zoom=0.06, turn=0.08, center=center)
    motion = own @ background
    images = (_warp(picture, place, shape), _warp(picture, motion @ place, shape))
    masks = (_warp(mask, place, shape) > 127, _warp(mask, motion @ place, shape) > 127)
    return _Layer(images, masks, motion)


def _compose(layers: Sequence[_Layer], shape: ChairsShape) -> FlowPair:
    """Paint the layers in their order and read the flow off the topmost one."""
    size = (shape.height, shape.width)
    first, second = np.zeros((*size, 3), np.uint8), np.zeros((*size, 3), np.uint8)
    top_first, top_second = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    flow = np.zeros((*size, 2), np.float32)
    columns, rows = np.meshgrid(np.arange(shape.width), np.arange(shape.height))
    points = np.stack([columns, rows], -1).astype(np.float32)
    for index, layer in enumerate(layers):
        for image, top, picture, mask in zip(
            (first, second), (top_first, top_second), layer.pictures, layer.masks, strict=True
        ):
            cv2.copyTo(picture, mask.view(np.uint8), image)
            top[mask] = index
        change = (layer.motion - np.eye(3)).astype(np.float32)
        mask = layer.masks[0]
        flow[mask] = points[mask] @ change[:2, :2].T + change[:2, 2]
    target = np.rint(points + flow).astype(np.int32)
    inside = (target >= 0).all(-1) & (target < (shape.width, shape.height)).all(-1)
    x, y = np.where(inside, target[..., 0], 0), np.where(inside, target[..., 1], 0)
    valid = inside & (top_second[y, x] == top_first)
    return FlowPair('chairs', first, second, flow, valid)


def _patch(
    random: np.random.Generator, pictures: Sequence[Image], height: int, width: int
) -> Image:
    """Cut a random part of a random picture, mirrored and tinted at random."""
    picture = pictures[int(random.integers(len(pictures)))]
    share = random.uniform(0.4, 1.0)
    factor = min(picture.shape[0] / height, picture.shape[1] / width) * share
    rows, columns = max(2, int(height * factor)), max(2, int(width * factor))
    top = random.integers(picture.shape[0] - rows + 1)
    left = random.integers(picture.shape[1] - columns + 1)
    patch = picture[top : top + rows, left : left + columns]
    if random.random() < 0.5:
        patch = patch[:, ::-1]
    resized = cv2.resize(patch, (width, height), interpolation=cv2.INTER_LINEAR)
    gain = random.uniform(0.6, 1.4) * random.uniform(0.85, 1.15, 3)
    return np.clip(resized * gain + random.uniform(-25, 25), 0, 255).astype(np.uint8)


def _outline(random: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Draw a random shape, smooth or angular, sometimes with holes or as a frame of bars."""
    mask = np.zeros((size, size), np.uint8)
    corners = int(random.integers(3, 13))
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    radii = random.uniform(0.3, 1.0, corners) * size / 2
    if random.random() < 0.5:  # smooth: a closed curve of a few harmonics
        angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        phases, sizes = random.uniform(0, 2 * np.pi, 4), random.uniform(0, 0.18, 4)
        wave = sum(
            a * np.cos(k * angles + p)
            for k, (a, p) in enumerate(zip(sizes, phases, strict=True), 1)
        )
        radii = (0.6 + wave) * size / 2
    outline = size / 2 + np.stack([np.cos(angles), np.sin(angles)], -1) * radii[:, None]
    contour = [np.rint(outline).astype(np.int32)]
    if random.random() < 0.25:  # thin, as a chair's legs are
        cv2.polylines(mask, contour, True, 255, thickness=max(2, int(size * 0.08)))
    else:
        cv2.fillPoly(mask, contour, 255)
        for _ in range(random.integers(0, 3)):
            hole = (random.uniform(0.25, 0.75, 2) * size).astype(int).tolist()
            cv2.circle(mask, hole, int(random.uniform(0.03, 0.15) * size), 0, -1)
    return mask


def _motion(
    random: np.random.Generator,
    shape: ChairsShape,
    scale: float,
    *,
    translation: float,
    zoom: float,
    turn: float,
    center: NDArray[np.float64] | None = None,
) -> Matrix:
    """Draw an affine motion; most are small, a few are large, as in the data set's histogram."""
    center = np.array([shape.width / 2, shape.height / 2]) if center is None else center
    heavy = random.exponential() ** 1.3
    angle = random.uniform(0, 2 * np.pi)
    shift = translation * scale * heavy * np.array([np.cos(angle), np.sin(angle)])
    size = np.exp(random.normal(0, zoom))
    turned = random.normal(0, turn)
    cosine, sine = np.cos(turned), np.sin(turned)
    linear = size * np.array([[cosine, -sine], [sine, cosine]])
    linear += random.normal(0, zoom / 4, (2, 2))
    return _about(shift, linear, center)


def _about(shift: NDArray[np.float64], linear: Matrix, center: NDArray[np.float64]) -> Matrix:
    """Return the map x -> linear (x - center) + center + shift as a (3, 3) matrix."""
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = center + shift - linear @ center
    return matrix


def _warp(picture: NDArray[np.uint8], matrix: Matrix, shape: ChairsShape) -> NDArray[np.uint8]:
    border = cv2.BORDER_REFLECT_101 if picture.ndim == 3 else cv2.BORDER_CONSTANT
    warped = cv2.warpAffine(
        picture, matrix[:2], (shape.width, shape.height), flags=cv2.INTER_LINEAR, borderMode=border
    )
    return np.asarray(warped, np.uint8)
