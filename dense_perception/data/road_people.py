"""Pictures of people, on foot and on two wheels, in the road world; sizes are in metres."""

from functools import cache
from typing import Any

from dense_perception.data.road_textures import generator, shaded, Sheet, Texture
from dense_perception.labels import CITYSCAPES
import numpy as np

TYRE = (22, 22, 24)

_CLOTHES = (
    (34, 36, 44), (52, 56, 66), (84, 84, 88), (40, 52, 84), (120, 36, 38), (148, 132, 106),
    (66, 74, 52), (188, 184, 176), (110, 84, 62), (26, 26, 28), (70, 96, 128), (168, 120, 60),
)  # fmt: skip
_TROUSERS = ((34, 36, 44), (44, 54, 82), (62, 58, 54), (24, 24, 26), (96, 88, 74), (58, 66, 88))
_SKIN = ((206, 162, 136), (186, 140, 112), (140, 96, 72), (220, 180, 156), (96, 66, 50))
_HAIR = ((38, 28, 22), (22, 20, 20), (96, 70, 44), (150, 122, 80), (120, 116, 112))
PEOPLE = 64  # distinct walkers


def _person_colors(rng: np.random.Generator) -> dict[str, Any]:
    tables = {'coat': _CLOTHES, 'legs': _TROUSERS, 'skin': _SKIN, 'hair': _HAIR}
    return {
        name: np.array(table[rng.integers(len(table))]) * rng.uniform(0.85, 1.2)
        for name, table in tables.items()
    }


@cache
def walker(variant: int) -> Texture:
    """Draw a person on foot, 1 m wide and 1.8 m high; even variants are seen from the side."""
    rng = generator(51, variant)
    tone = _person_colors(rng)
    sheet = Sheet(1.0, 1.8, 56)
    side = variant % 2 == 0
    stride = rng.uniform(0.12, 0.3) if side else rng.uniform(0.02, 0.09)
    for sign in (-1, 1):
        _draw_leg(sheet, tone['legs'], sign, stride, side=side)
    hem = float(rng.choice((0.85, 0.82, 0.62)))
    _draw_coat(sheet, tone, hem, 0.5 * stride + 0.05, side=side)
    if rng.random() < 0.4:
        place = (0.31, 1.15) if side else (0.82, 0.75)
        sheet.oval(*place, 0.13, 0.2, rng.integers(20, 150, 3))  # bag
    sheet.box(0.45, 1.46, 0.1, 0.1, shaded(tone['skin'], 0.8))
    sheet.oval(0.5, 1.66, 0.1, 0.13, tone['skin'])
    sheet.oval(0.48 if side else 0.5, 1.71, 0.105, 0.09, tone['hair'])
    if variant % 3 == 0:
        sheet.oval(0.46, 1.6, 0.07, 0.13, tone['hair'])
    return sheet.texture('person')


def _draw_leg(sheet: Sheet, color: Any, sign: int, stride: float, *, side: bool) -> None:
    hip = 0.5 + (0.03 if side else 0.09) * sign
    knee, foot = hip + 0.45 * stride * sign, hip + stride * sign
    lift, toe = (0.06 if side and sign < 0 else 0.0), (0.12 if side else 0.0)
    shade = shaded(color, 0.78 if sign < 0 else 1.0)
    sheet.line(((hip, 0.9), (knee, 0.5), (foot, 0.12 + lift)), 0.15, shade)
    sheet.line(((foot, 0.06 + lift), (foot + toe, 0.05 + lift)), 0.09, (26, 24, 24))


def _draw_coat(sheet: Sheet, tone: dict[str, Any], hem: float, arm: float, *, side: bool) -> None:
    """Draw trunk and arms; `arm` is how far they swing in metres."""
    coat, half = tone['coat'], 0.17 if side else 0.22
    if side:
        back = ((0.5, 1.38), (0.5 - arm, 1.1), (0.5 - 0.8 * arm, 0.88))
        sheet.line(back, 0.1, shaded(coat, 0.75))
    right = ((0.4, 1.5), (1.0, 1.4), (0.9, 1.2), (1.0, hem))
    outline = [(0.5 - half * x, y) for x, y in right[::-1]]
    outline += [(0.5 + half * x, y) for x, y in right]
    sheet.polygon(outline, coat)
    shadow = ((0.5, hem), (0.5, 1.48), (0.5 + half, 1.4), (0.5 + half, hem))
    sheet.polygon(shadow, shaded(coat, 0.86))
    if side:
        front = ((0.48, 1.4), (0.5 + arm, 1.12), (0.56 + arm, 0.9))
        sheet.line(front, 0.1, shaded(coat, 1.1))
        sheet.oval(0.57 + arm, 0.86, 0.05, 0.06, tone['skin'])
        return
    for sign in (-1, 1):
        x = 0.5 + sign * (half + 0.03)
        shade = shaded(coat, 1.08 if sign < 0 else 0.8)
        sheet.line(((x - 0.03 * sign, 1.4), (x + 0.02 * sign, 0.95)), 0.11, shade)
        sheet.oval(x + 0.02 * sign, 0.87, 0.05, 0.06, tone['skin'])


@cache
def two_wheeler(variant: int, side: bool, ridden: bool) -> Texture:
    """
    Bicycle (even variants) or motorcycle (odd), parked or with its rider; 1.8 m wide and high.

    :param side: seen from the side, front to the right; otherwise from the rear.
    """
    rng = generator(52, variant)
    motor = variant % 2 == 1
    label = 'motorcycle' if motor else 'bicycle'
    frame = rng.integers(20, 190, 3)
    tone = _person_colors(rng)
    sheet = Sheet(1.8, 1.8, 56)
    sheet.label = CITYSCAPES.index(label)
    (_draw_side if side else _draw_rear)(sheet, frame, motor)
    if ridden:
        sheet.label = CITYSCAPES.index('rider')
        _draw_rider(sheet, tone, side=side, helmet=motor or rng.random() < 0.4)
    return sheet.texture(label, several=True)


def _draw_side(sheet: Sheet, frame: Any, motor: bool) -> None:
    """Draw a two-wheeler from the side."""
    tyre, radius, bar = (0.14, 0.29, 0.17) if motor else (0.055, 0.32, 0.05)
    for x in (0.36, 1.44):
        if motor:
            sheet.oval(x, 0.33, radius, radius, (46, 48, 50))
        else:
            for turn in np.deg2rad(range(0, 180, 20)):
                dx, dy = radius * np.cos(turn), radius * np.sin(turn)
                sheet.line(((x - dx, 0.34 - dy), (x + dx, 0.34 + dy)), 0.012, (120, 122, 124))
        sheet.ring(x, 0.34, radius - tyre / 2 + 0.03, tyre, TYRE)
    tubes = ((0.36, 0.34), (0.72, 0.8), (1.26, 0.82), (0.82, 0.36), (0.36, 0.34))
    sheet.line(tubes, bar, frame)
    sheet.line(((0.82, 0.36), (0.68, 0.94)), bar, frame)
    sheet.line(((1.44, 0.34), (1.24, 1.0)), max(0.05, bar / 2), frame)
    sheet.line(((1.24, 1.0), (1.1, 1.06)), 0.05, (40, 40, 42))
    sheet.line(((0.55, 0.95), (0.8, 0.96)), 0.09, (24, 24, 26))
    if motor:
        sheet.polygon(((0.66, 0.4), (1.2, 0.4), (1.28, 0.86), (0.98, 0.98), (0.5, 0.84)), frame)
        sheet.oval(0.95, 0.48, 0.22, 0.16, (60, 62, 66))


def _draw_rear(sheet: Sheet, frame: Any, motor: bool) -> None:
    """Draw a two-wheeler from behind."""
    wide = 0.13 if motor else 0.06
    sheet.box(0.9 - wide / 2, 0, wide, 0.72, TYRE)
    sheet.line(((0.62, 1.05), (1.18, 1.05)), 0.05, (44, 44, 46))
    sheet.box(0.86, 0.6, 0.08, 0.4, frame)
    sheet.box(0.8, 0.66, 0.2, 0.1, (150, 24, 20))
    sheet.line(((0.78, 0.36), (1.02, 0.3)), 0.05, (40, 40, 42))
    if motor:
        sheet.polygon(((0.7, 0.4), (1.1, 0.4), (1.06, 0.95), (0.74, 0.95)), frame)


def _draw_rider(sheet: Sheet, tone: dict[str, Any], *, side: bool, helmet: bool) -> None:
    """Draw a person sitting on a two-wheeler."""
    coat, legs, hat = tone['coat'], tone['legs'], tone['hair'] + (70 if helmet else 0)
    if side:
        sheet.line(((0.7, 0.98), (1.05, 0.78), (0.92, 0.38)), 0.15, legs)
        sheet.line(((0.9, 0.34), (1.02, 0.34)), 0.08, (24, 24, 24))
        sheet.line(((0.7, 1.0), (0.8, 1.22), (0.92, 1.44)), 0.26, coat)
        sheet.line(((0.92, 1.42), (1.08, 1.18), (1.2, 1.06)), 0.1, shaded(coat, 1.12))
        sheet.oval(1.02, 1.63, 0.1, 0.12, tone['skin'])
        sheet.oval(1.0, 1.68, 0.12, 0.1, hat)
        return
    for sign in (-1, 1):
        sheet.line(((0.9 + 0.1 * sign, 0.95), (0.9 + 0.15 * sign, 0.66 + 0.1 * sign),
                    (0.9 + 0.11 * sign, 0.36 + 0.08 * sign)), 0.13, shaded(legs, 0.9))  # fmt: skip
        sheet.line(((0.9 + 0.2 * sign, 1.42), (0.9 + 0.3 * sign, 1.2), (0.9 + 0.26 * sign, 1.06)),
                   0.1, shaded(coat, 1.1 if sign < 0 else 0.8))  # fmt: skip
    sheet.polygon(
        ((0.7, 0.92), (0.68, 1.4), (0.82, 1.5), (0.98, 1.5), (1.12, 1.4), (1.1, 0.92)), coat
    )
    sheet.oval(0.9, 1.64, 0.1, 0.13, shaded(tone['skin'], 0.9))
    sheet.oval(0.9, 1.68, 0.115, 0.11, hat)
