"""Plants of the road world: trees, hedges and groves with ragged outlines."""

from functools import cache
import math

import cv2
from dense_perception.data.road_textures import (
    Color,
    generator,
    joined,
    plain,
    smooth_noise,
    Texture,
)
import numpy as np
from numpy.typing import NDArray

LEAF_COLORS = (
    (62, 84, 36),
    (74, 96, 40),
    (52, 72, 36),
    (88, 104, 48),
    (96, 98, 44),
    (58, 80, 48),
    (118, 98, 48),
)


def _leaves(
    rng: np.random.Generator, canvas: NDArray[np.float32], alpha: NDArray[np.uint8], color: Color
) -> None:
    """Turn flat blobs into foliage: leaf clusters, ragged outline, small gaps."""
    height, width = alpha.shape
    shift_x = 3.2 * smooth_noise(rng, height, width, (3, 7))
    shift_y = 3.2 * smooth_noise(rng, height, width, (3, 7))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    alpha[:] = cv2.remap(alpha, x + shift_x, y + shift_y, cv2.INTER_LINEAR)
    canvas[:] = cv2.remap(canvas, x + shift_x, y + shift_y, cv2.INTER_LINEAR)
    leaf = smooth_noise(rng, height, width, (2, 4, 9))
    canvas *= (1 + 0.24 * np.clip(leaf, -2.2, 2.5))[..., None]
    canvas[..., 0] += 5 * smooth_noise(rng, height, width, (12, 30))
    thin = cv2.blur(alpha, (25, 25)).astype(np.float32) / 255
    gaps = leaf < -1.15 - 1.3 * thin
    alpha[gaps & (thin < 0.93)] = 0


@cache
def tree(variant: int) -> Texture:
    """Whole tree with trunk, as wide as 0.75 of its height; every texel is vegetation."""
    rng = generator(21, variant)
    height, width = 320, 240
    canvas = plain(height, width, (46, 56, 30))
    alpha = np.zeros((height, width), np.uint8)
    color = np.array(LEAF_COLORS[rng.choice(7, p=(0.2, 0.2, 0.2, 0.15, 0.1, 0.1, 0.05))])
    color = color * rng.uniform(0.85, 1.2)
    narrow = rng.uniform(0.75, 1.05)
    crown_y, radius_y = rng.uniform(118, 138), rng.uniform(96, 112)
    radius_x = 100 * narrow
    clusters = []
    for _ in range(110):
        angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0, 1) ** 0.6
        x = width / 2 + 0.82 * radius_x * reach * math.cos(angle)
        y = crown_y + 0.82 * radius_y * reach * math.sin(angle)
        clusters.append((y + rng.normal(0, 25), x, y, rng.uniform(11, 26)))
    trunk_top = round(crown_y)
    half = rng.uniform(4.5, 8)
    for _, x, y, size in sorted(clusters, reverse=True):
        lit = 1.12 - 0.5 * (y - crown_y + radius_y) / (2 * radius_y) + rng.normal(0, 0.08)
        for step in range(3):
            place = (round(x - 0.22 * step * size), round(y - 0.3 * step * size))
            tone = tuple(float(c) for c in color * (lit * (0.62 + 0.24 * step)))
            cv2.circle(canvas, place, max(2, round(size * (1 - 0.27 * step))), tone, -1)
        cv2.circle(alpha, (round(x), round(y)), round(size), 255, -1)
    _leaves(rng, canvas, alpha, color)
    _trunk(rng, canvas, alpha, (trunk_top, half))
    return Texture(joined(canvas, alpha), 'vegetation')


def _trunk(
    rng: np.random.Generator,
    canvas: NDArray[np.float32],
    alpha: NDArray[np.uint8],
    shape: tuple[int, float],
) -> None:
    """Draw trunk and branches where no leaf is; `shape` is the trunk's top row and half width."""
    height, width = alpha.shape
    top, half = shape
    middle = width / 2
    body = np.zeros_like(alpha)
    sides = (-half, height), (-0.6 * half, top), (0.6 * half, top), (half, height)
    outline = np.array([(middle + x, y) for x, y in sides])
    cv2.fillPoly(body, [np.round(outline).astype(np.int32)], 255, cv2.LINE_AA)
    for _ in range(4):
        end = (round(middle + rng.uniform(-70, 70)), round(top + rng.uniform(-40, 30)))
        start = (round(middle), round(top + rng.uniform(50, 90)))
        cv2.line(body, start, end, 255, 4, cv2.LINE_AA)
    offset = np.arange(width, dtype=np.float32) - np.float32(middle)
    lit = 1 - 0.35 * np.clip(offset / 10, -1, 1)  # light from the left
    grain = 1 + 0.12 * smooth_noise(rng, height, width, (2, 6))
    bark = np.array((78, 68, 56)) * rng.uniform(0.7, 1.2)
    show = (body > 0) & (alpha < 128)
    canvas[show] = (bark * (grain * lit)[..., None])[show]
    np.maximum(alpha, body, out=alpha)


@cache
def hedge(variant: int) -> Texture:
    """Hedge or bushes with ragged top, 4 m wide and 1.6 m high."""
    rng = generator(22, variant)
    height, width = 104, 240
    color = np.array(LEAF_COLORS[variant % 6]) * rng.uniform(0.7, 1.0)
    canvas = plain(height, width, color)
    canvas *= np.linspace(1.25, 0.62, height, dtype=np.float32)[:, None, None]
    alpha = np.zeros((height, width), np.uint8)
    alpha[14:] = 255
    if variant % 2:
        alpha[:] = 0
        for _ in range(60):
            x, y = rng.uniform(0, width), rng.uniform(26, height)
            tone = tuple(float(c) for c in color * (1.3 - 0.6 * y / height + rng.normal(0, 0.1)))
            cv2.circle(canvas, (round(x), round(y)), round(rng.uniform(8, 17)), tone, -1)
            cv2.circle(alpha, (round(x), round(y)), round(rng.uniform(10, 18)), 255, -1)
        alpha[50:] = 255
    _leaves(rng, canvas, alpha, color)
    alpha[40:] = 255
    return Texture(joined(canvas, alpha), 'vegetation')


@cache
def grove(variant: int) -> Texture:
    """Row of background trees, 30 m wide and 10 m high."""
    rng = generator(23, variant)
    height, width = 100, 300
    color = np.array(LEAF_COLORS[variant % 6]) * 0.85
    canvas = plain(height, width, color)
    alpha = np.zeros((height, width), np.uint8)
    for _ in range(170):
        x, y = rng.uniform(0, width), rng.uniform(0.12, 1) * height
        y += 14 * math.sin(x / 23 + variant) * (y < 60)
        tone = color * (1.3 - 0.7 * y / height + rng.normal(0, 0.12)) + rng.normal(0, 4)
        size = round(rng.uniform(6, 14))
        cv2.circle(canvas, (round(x), round(y)), size, tuple(float(c) for c in tone), -1)
        cv2.circle(alpha, (round(x), round(y)), size, 255, -1)
    _leaves(rng, canvas, alpha, color)
    alpha[60:] = 255
    return Texture(joined(canvas, alpha), 'vegetation')
