"""The picture of a long run: a strip for each quantity, and a row for each fault."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Picture = NDArray[np.uint8]

WIDTH, LEFT, RIGHT = 1200, 250, 20
STRIP, GAP, ROW, TOP, AXIS = 110, 22, 16, 34, 30
BLACK, GREY, BLUE, RED = (0, 0, 0), (130, 130, 130), (0, 70, 160), (200, 30, 30)
WARM, GRID = (236, 236, 236), (215, 215, 215)
STEPS_MIN = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 360, 1440)  # between the lines of time


@dataclass(frozen=True)
class Strip:
    """One quantity over time."""

    name: str  # with its unit
    values: Values  # (N,); nan is not drawn
    least_span: float = 0.0  # that the height of the strip stands for; noise stays small in it
    note: str = ''


@dataclass(frozen=True)
class Axis:
    """Time along the picture."""

    times_s: Values  # (N,)
    warm_up_s: float

    @property
    def last_s(self) -> float:
        """The right end."""
        return max(float(self.times_s.max(initial=0.0)), self.warm_up_s, 1.0)

    def column(self, time_s: float) -> int:
        """Return where a time lies."""
        return LEFT + round(time_s / self.last_s * (WIDTH - LEFT - RIGHT))


def draw(
    title: str,
    axis: Axis,
    strips: list[Strip],
    faults: Mapping[str, list[float]],
) -> Picture:
    """
    Draw strips and faults above one another, with one axis of time in minutes.

    Each strip spans the values after the warm-up, which is grey; before, they may leave it.

    :param faults: name to the seconds at which it was put in.
    :returns: (H, W, 3) uint8 RGB.
    """
    height = TOP + len(strips) * (STRIP + GAP) + len(faults) * ROW + AXIS
    picture = np.full((height, WIDTH, 3), 255, np.uint8)
    end = axis.column(min(axis.warm_up_s, axis.last_s))
    cv2.rectangle(picture, (LEFT, TOP), (end, height - AXIS), WARM, -1)
    _text(picture, title, (8, 22), scale=0.55)
    _draw_time(picture, axis)
    for place, strip in enumerate(strips):
        _draw_strip(picture, TOP + place * (STRIP + GAP), axis, strip)
    top = TOP + len(strips) * (STRIP + GAP)
    for place, (name, times_s) in enumerate(faults.items()):
        row = top + place * ROW
        _text(picture, f'{name} ({len(times_s)})', (8, row + 12), color=RED)
        cv2.line(picture, (LEFT, row + ROW - 1), (WIDTH - RIGHT, row + ROW - 1), GRID, 1)
        for time_s in times_s:
            column = axis.column(time_s)
            cv2.line(picture, (column, row + 3), (column, row + ROW - 3), RED, 1)
    return picture


def _draw_time(picture: Picture, axis: Axis) -> None:
    minutes = axis.last_s / 60
    step = next((step for step in STEPS_MIN if minutes / step <= 12), STEPS_MIN[-1])
    bottom = len(picture) - AXIS
    for number in range(int(minutes / step) + 1):
        column = axis.column(number * step * 60)
        cv2.line(picture, (column, TOP), (column, bottom), GRID, 1)
        _text(picture, f'{number * step:g}', (column - 6, bottom + 16), color=GREY)
    _text(picture, 'minutes', (8, bottom + 16), color=GREY)


def _draw_strip(picture: Picture, top: int, axis: Axis, strip: Strip) -> None:
    bottom = top + STRIP
    cv2.rectangle(picture, (LEFT, top), (WIDTH - RIGHT, bottom), GREY, 1)
    low, high = _limits(strip, axis)
    _text(picture, strip.name, (8, top + 48), scale=0.5)
    _text(picture, strip.note, (8, top + 68), color=GREY)
    for text, row in ((f'{high:.4g}', top + 12), (f'{low:.4g}', bottom)):
        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
        _text(picture, text, (LEFT - width - 8, row))
    rows = bottom - (strip.values - low) / (high - low) * (bottom - top)
    rows = np.clip(rows, top + 1, bottom - 1)
    points = [
        (axis.column(time_s), round(row))
        for time_s, row in zip(axis.times_s, rows, strict=True)
        if np.isfinite(row)
    ]
    if points:
        cv2.polylines(picture, [np.array(points, np.int32)], False, BLUE, 1, cv2.LINE_AA)


def _limits(strip: Strip, axis: Axis) -> tuple[float, float]:
    """Return what lower and upper edge of a strip stand for."""
    known = np.isfinite(strip.values)
    counted = known & (axis.times_s >= axis.warm_up_s)
    values = strip.values[counted if counted.any() else known]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    missing = max(strip.least_span - (high - low), 0.04 * (high - low), 1e-9)
    low = low - missing / 2 if low < 0 or low > missing / 2 else 0.0
    return low, high + missing / 2


def _text(
    picture: Picture,
    text: str,
    place: tuple[int, int],
    *,
    color: tuple[int, int, int] = BLACK,
    scale: float = 0.42,
) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(picture, text, place, font, scale, color, 1, cv2.LINE_AA)
