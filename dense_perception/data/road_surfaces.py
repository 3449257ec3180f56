"""Surfaces of the road world: facades, roofs, walls, fences, ground, clouds, shadows."""

from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
from dense_perception.data.road_textures import (
    Color,
    fill,
    generator,
    joined,
    plain,
    smooth_noise,
    Texture,
)
import numpy as np
from numpy.typing import NDArray


def _bricks(
    rng: np.random.Generator, height: int, width: int, color: Color, scale: float
) -> NDArray[np.float32]:
    """Draw a running bond, each brick in its own tone; `scale` in texels per metre."""
    row_height, length = max(2, round(0.085 * scale)), max(4, round(0.25 * scale))
    rows, columns = height // row_height + 1, width // length + 2
    tone = rng.normal(1, 0.09, (rows, columns)).astype(np.float32)
    y, x = np.mgrid[0:height, 0:width]
    row = y // row_height
    shifted = x + (row % 2) * (length // 2)
    canvas = np.asarray(color, np.float32) * tone[row, shifted // length][..., None]
    joint = (y % row_height == 0) | (shifted % length == 0)
    canvas[joint] = 0.55 * canvas[joint] + 0.45 * np.array((176, 168, 156), np.float32)
    return canvas


FACADE_COLORS = (
    (196, 184, 160),
    (214, 206, 190),
    (180, 164, 138),
    (222, 214, 200),
    (168, 150, 128),
    (188, 176, 168),
    (200, 172, 128),
    (150, 142, 134),
    (206, 188, 170),
    (176, 182, 184),
    (190, 150, 120),
    (228, 224, 214),
)
BRICK_COLORS = ((138, 82, 62), (150, 96, 72), (122, 78, 64), (164, 124, 92), (176, 148, 108))
FACADES = 96  # distinct facades
FACADE_SCALE = 30  # texels per metre
FLOOR = 3.1  # metres


@dataclass(frozen=True)
class _Facade:
    """What the bays of one facade have in common."""

    floors: int
    brick: bool
    color: Color
    windows: int  # per bay and floor
    window_height: float  # share of the floor
    window_width: float  # share of the space
    frame: Color
    surround: bool
    band: bool
    base: float  # brightness of the ground floor


@cache
def _facade(variant: int) -> _Facade:
    rng = generator(11, variant)
    floors = int(rng.choice((2, 2, 3, 3, 4, 4, 5, 6)))
    brick = bool(rng.random() < 0.4)
    table = BRICK_COLORS if brick else FACADE_COLORS
    color = np.asarray(table[rng.integers(len(table))])
    color = np.clip(color * rng.uniform(0.82, 1.12) + rng.normal(0, 6, 3), 20, 245)
    windows = int(rng.integers(2, 4))
    window_height, window_width = rng.uniform(0.45, 0.62), rng.uniform(0.38, 0.62)
    frame = ((226, 224, 218), (84, 66, 52), (60, 62, 66))[rng.choice(3, p=(0.7, 0.15, 0.15))]
    surround, band, darker = rng.random() < 0.4, rng.random() < 0.5, rng.random() < 0.5
    base = rng.uniform(0.5, 0.95) if band and darker else 1.0
    return _Facade(floors, brick, color, windows, window_height, window_width, frame,
                   bool(surround), bool(band), base)  # fmt: skip


def facade_floors(variant: int) -> int:
    """Return the number of floors of a facade."""
    return _facade(variant).floors


def _window(
    canvas: NDArray[np.float32],
    rng: np.random.Generator,
    place: tuple[int, int, int, int],
    frame: Color,
) -> None:
    """Draw a window with reveal, frame, panes, curtain or reflection, and sill."""
    x, y, w, h = place
    fill(canvas, x - 1, y - 1, w + 2, h + 2, [0.6 * c for c in frame])
    fill(canvas, x, y, w, h, frame)
    glass = np.array(rng.choice(((38, 44, 52), (56, 64, 74), (84, 96, 108), (28, 30, 34))))
    ramp = np.linspace(1.35, 0.75, max(1, h - 2), dtype=np.float32)[:, None, None]
    canvas[y + 1 : y + h - 1, x + 1 : x + w - 1] = glass * ramp
    if rng.random() < 0.35:
        curtain = rng.uniform(0.2, 0.7) * h
        fill(canvas, x + 1, y + 1, w - 2, curtain, (168, 164, 156))
    if rng.random() < 0.3:
        fill(canvas, x + 1, y + 1, 0.25 * w, h - 2, (150, 146, 140))
    fill(canvas, x + w // 2, y + 1, 1, h - 2, frame)
    if h > 1.2 * w:
        fill(canvas, x + 1, y + round(0.35 * h), w - 2, 1, frame)
    fill(canvas, x - 2, y + h, w + 4, 2, (186, 182, 174))
    canvas[y + h + 2 : y + h + 4, x - 2 : x + w + 2] *= 0.72


def _shop(canvas: NDArray[np.float32], rng: np.random.Generator, top: int) -> None:
    """Draw a shop front with its sign board from row `top` down."""
    height, width = canvas.shape[:2]
    sign = rng.integers(30, 210, 3)
    board = round(0.6 * FACADE_SCALE)
    fill(canvas, 0, top, width, board, sign)
    x = int(rng.integers(4, 20))
    while x < width - 24:
        letter = int(rng.integers(4, 9))
        fill(canvas, x, top + 4, letter, board - 9, 255 - 0.6 * sign)
        x += letter + 3
    fill(canvas, 0, top + board, width, height, 0.5 * sign + 20)
    glass_top = top + board + 4
    for left, right in ((4, 0.62 * width), (0.68 * width, width - 5)):
        ramp = np.linspace(1.2, 0.7, height - glass_top, dtype=np.float32)[:, None, None]
        pane = canvas[glass_top : height - 8, round(left) : round(right)]
        pane[:] = (np.array((52, 56, 60)) * ramp)[: pane.shape[0]]
        for _ in range(7):
            w, h = rng.integers(4, 16), rng.integers(6, 22)
            px, py = rng.integers(0, pane.shape[1]), pane.shape[0] - h
            pane[py : py + h, px : px + w] = rng.integers(40, 190, 3)


@cache
def facade(variant: int, bay: int) -> Texture:
    """
    Draw one bay of a street front, 5 m wide.

    :param variant: 0 to FACADES - 1; decides material, colours, floors and windows.
    :param bay: 0 windows only, 1 door, 2 shop, 3 blank side wall.
    """
    plan, rng = _facade(variant), generator(12, variant, bay)
    floor = round(FLOOR * FACADE_SCALE)
    height, width = plan.floors * floor + 12, round(5 * FACADE_SCALE)
    if plan.brick:
        canvas = _bricks(rng, height, width, plan.color, FACADE_SCALE)
    else:
        canvas = plain(height, width, plan.color)
    canvas *= 1 + 0.035 * smooth_noise(rng, height, width, (2, 12, 60))[..., None]
    canvas *= 1 - 0.03 * np.abs(smooth_noise(rng, 1, width, (4, 14)))[..., None]
    canvas[-floor:] *= plan.base
    for level in range(plan.floors):
        top, ground = 12 + level * floor, level == plan.floors - 1
        if plan.band:
            fill(canvas, 0, top - 3, width, 3, np.clip(np.asarray(plan.color) * 1.12, 0, 250))
            canvas[top : top + 2] *= 0.75
        if bay < 2 or (bay == 2 and not ground):
            _windows(canvas, rng, plan, top, door=bay == 1 and ground)
    if bay == 2:
        _shop(canvas, rng, 12 + (plan.floors - 1) * floor + 2)
    canvas[:8] = np.clip(np.asarray(plan.color) * 1.1, 0, 245)  # cornice
    canvas[8:12] *= 0.6
    canvas[-8:] *= np.linspace(0.95, 0.7, 8, dtype=np.float32)[:, None, None]
    if bay in (0, 3) and rng.random() < 0.4:
        fill(canvas, 2, 8, 3, height, (92, 90, 88))  # downpipe
    return Texture(joined(canvas), 'building', overlap=True)


def _windows(
    canvas: NDArray[np.float32], rng: np.random.Generator, plan: _Facade, top: int, *, door: bool
) -> None:
    """Draw the windows of one floor whose ceiling is at row `top`, the first maybe a door."""
    floor, span = round(FLOOR * FACADE_SCALE), canvas.shape[1] / plan.windows
    w, h = round(span * plan.window_width), round(floor * plan.window_height)
    for index in range(plan.windows):
        x, y = round(index * span + (span - w) / 2), top + round(0.22 * floor)
        if door and index == 0:
            tone = rng.choice(((72, 46, 34), (34, 48, 62), (44, 62, 46), (110, 34, 30)))
            fill(canvas, x - 3, top + 0.2 * floor, w + 6, floor, (196, 190, 180))
            fill(canvas, x, top + 0.25 * floor, w, floor, tone)
            fill(canvas, x + 4, top + 0.3 * floor, w - 8, 0.2 * floor, (60, 66, 72))
            continue
        if plan.surround:
            tone = np.clip(np.asarray(plan.color) * 1.15 + 8, 0, 250)
            fill(canvas, x - 4, y - 5, w + 8, h + 9, tone)
        _window(canvas, rng, (x, y, w, h), plan.frame)


@cache
def roof(variant: int) -> Texture:
    """Tiled or slated roof slope, 5 m wide and 4 m deep."""
    rng = generator(13, variant)
    color = np.array(((122, 74, 56), (96, 62, 52), (78, 78, 82), (92, 88, 84))[variant % 4])
    canvas = plain(96, 120, color)
    canvas *= 1 + 0.07 * smooth_noise(rng, 96, 120, (2, 8, 40))[..., None]
    canvas[::6] *= 0.75
    canvas[:3] *= 0.8
    if variant % 3 == 0:
        fill(canvas, 44, 30, 26, 30, (60, 66, 74))
        cv2.rectangle(canvas, (44, 30), (70, 60), (150, 148, 144), 2)
    return Texture(joined(canvas), 'building', overlap=True)


@cache
def gable(variant: int) -> Texture:
    """Triangular upper end of a house wall, 1 by 1, to be stretched."""
    rng = generator(14, variant)
    source = facade(variant, 3).picture[20:116, :96, :3].astype(np.float32)
    canvas = np.resize(source, (96, 96, 3)) * rng.uniform(0.95, 1.05)
    alpha = np.zeros((96, 96), np.uint8)
    cv2.fillPoly(alpha, [np.array(((0, 96), (48, 0), (96, 96)))], 255, cv2.LINE_AA)
    return Texture(joined(canvas, alpha), 'building')


@cache
def wall(variant: int) -> Texture:
    """Garden or retaining wall, 4 m wide and 1.6 m high."""
    rng = generator(15, variant)
    height, width = 52, 128
    if variant % 3 == 0:
        canvas = _bricks(rng, height, width, BRICK_COLORS[variant % 5], 32)
    elif variant % 3 == 1:
        canvas = _bricks(rng, height, width, (156, 148, 132), 14)
    else:
        canvas = plain(height, width, FACADE_COLORS[variant % len(FACADE_COLORS)]) * 0.9
        canvas[:, ::64] *= 0.7
    canvas *= 1 + 0.06 * smooth_noise(rng, height, width, (2, 9, 40))[..., None]
    canvas[:5] = np.array((178, 172, 162)) * rng.uniform(0.85, 1.05)
    canvas[5:7] *= 0.65
    canvas[-10:] *= np.linspace(1, 0.72, 10, dtype=np.float32)[:, None, None]
    return Texture(joined(canvas), 'wall', overlap=True)


@cache
def fence(variant: int) -> Texture:
    """Fence, 4 m wide and 1.4 m high: railings, planks, pickets or wire mesh."""
    rng = generator(16, variant)
    height, width = 70, 200
    color = ((44, 48, 50), (122, 98, 72), (196, 194, 188), (98, 108, 104))[variant % 4]
    canvas = plain(height, width, color)
    alpha = np.zeros((height, width), np.uint8)
    if variant % 4 == 1:
        alpha[2:] = 255
        canvas *= np.repeat(rng.normal(1, 0.1, 25), 8)[:, None].astype(np.float32)
        canvas[:, ::8] *= 0.45
        canvas *= 1 + 0.07 * smooth_noise(rng, height, width, (2, 5))[..., None]
    elif variant % 4 == 3:
        for offset in range(-height, width, 5):
            cv2.line(alpha, (offset, 0), (offset + height, height), 150, 1)
            cv2.line(alpha, (offset + height, 0), (offset, height), 150, 1)
        alpha[:, :4] = alpha[:, 98:102] = 255
        alpha[:4] = 255
    else:
        bar, gap = ((2, 6), None, (6, 10))[variant % 4] or (2, 6)
        for x in range(0, width, gap):
            alpha[3:, x : x + bar] = 255
        for y in (6, height - 12):
            alpha[y : y + 4] = 255
        alpha[:, :5] = alpha[:, 98:103] = 255
        canvas[:, ::gap] *= 0.75
    return Texture(joined(canvas, alpha), 'fence')


# ---- ground and sky ----

GROUND_SCALE = 40  # texels per metre
GROUND_TILE = 512  # texels


@lru_cache(maxsize=8)
def ground_detail(variant: int) -> NDArray[np.float32]:
    """Relative brightness of asphalt, slabs and grass, (TILE, TILE, 3), mean 0, tiling."""
    rng = generator(31, variant)
    size = GROUND_TILE
    asphalt = 0.05 * smooth_noise(rng, size, size, (1, 2)) + 0.03 * smooth_noise(
        rng, size, size, (20, 90)
    )
    slab = 0.04 * smooth_noise(rng, size, size, (2, 4)) + 0.03 * smooth_noise(
        rng, size, size, (60,)
    )
    step = (16, 32)[variant % 2]
    tones = rng.normal(0, 0.05, (size // step, size // step)).astype(np.float32)
    slab += np.kron(tones, np.ones((step, step), np.float32))
    slab[::step] -= 0.22
    slab[:, ::step] -= 0.22
    grass = 0.14 * smooth_noise(rng, size, size, (1, 3)) + 0.10 * smooth_noise(
        rng, size, size, (30, 120)
    )
    return np.ascontiguousarray(np.stack((asphalt, slab - slab.mean(), grass), axis=-1))


@lru_cache(maxsize=8)
def ground_stains(variant: int) -> NDArray[np.float32]:
    """Slow brightness changes of the road: repairs, tyre wear, stains; 64 m tile at 8 per m."""
    rng = generator(32, variant)
    size = 512
    stains = 0.05 * smooth_noise(rng, size, size, (6, 24, 100))
    for _ in range(26):
        x, y = rng.integers(0, size, 2)
        w, h = rng.integers(8, 90), rng.integers(6, 16)
        stains[y : y + h, x : x + w] += rng.choice((-0.1, -0.07, 0.06))
    for _ in range(30):
        points = rng.integers(0, size, 2) + np.cumsum(rng.integers(-9, 10, (9, 2)), axis=0)
        cv2.polylines(stains, [points.astype(np.int32)], False, -0.16, 1, cv2.LINE_AA)
    for _ in range(22):
        x, y = rng.integers(8, size - 8, 2)
        cv2.circle(stains, (int(x), int(y)), 2, -0.25, -1)
    return stains - stains.mean()


@lru_cache(maxsize=8)
def clouds(variant: int) -> NDArray[np.float32]:
    """Cloud cover of the sky, (128, 512) in 0 to 1; columns are azimuth, tiling; row 0 is top."""
    rng = generator(33, variant)
    # Noise whose amplitude falls with frequency, like that of real clouds; flatter than high.
    spectrum = np.fft.rfft2(rng.standard_normal((128, 512)))
    high, wide = np.fft.fftfreq(128, 1 / 128)[:, None], np.fft.rfftfreq(512, 1 / 512)[None]
    frequency = np.hypot(high, 0.6 * wide)
    frequency[0, 0] = np.inf
    cover = np.fft.irfft2(spectrum / np.maximum(frequency, 2.0) ** 1.75, (128, 512))
    cover /= cover.std()
    return (1 / (1 + np.exp(-1.6 * cover))).astype(np.float32)


@cache
def blob() -> Texture:
    """Soft dark spot for contact shadows; its label is never used."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    edge = np.clip((1 - np.maximum(np.abs(x), np.abs(y))) / 0.35, 0, 1)
    alpha = 255 * edge**1.3
    return Texture(joined(np.zeros((64, 64, 3), np.float32), alpha), 'road')


@cache
def tree_shadow() -> Texture:
    """Mottled dark spot that a crown throws on the ground; its label is never used."""
    rng = generator(34)
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    field = 1 - np.hypot(x, y) + 0.16 * smooth_noise(rng, 96, 96, (4, 10))
    alpha = 255 * np.clip(field * 5, 0, 1)
    return Texture(joined(np.zeros((96, 96, 3), np.float32), alpha), 'road')
