"""
How sure a difference over frames is: the bootstrap, by blocks.

Neighbours in time are alike, so frames drawn one by one would pass for more evidence than they
are. Blocks of consecutive frames are drawn instead, the last frame followed by the first: the
circular block bootstrap of Politis and Romano (1992). Their length grows with the cube root of the
number of frames, as Hall, Horowitz and Jing (1995) find best for a variance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import math

from dense_perception.errors import SettingError
import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 100  # keeps the weights of many frames within memory

# From how often each frame counts, (draws, frames), to a value of each draw, (draws,).
Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A value over all frames, and between which values it lies with 95 % confidence."""

    value: float
    low: float  # nan, as `high`, where fewer than two blocks would be drawn
    high: float


def block_length(frames: int) -> int:
    """Return how many consecutive frames are drawn together where nobody says."""
    # Rounded before: the cube root of 27 comes out a little above 3.
    return max(1, math.ceil(round(frames ** (1 / 3), 9)))


def bootstrap(
    statistic: Statistic, frames: int, *, block: int = 0, draws: int = 2000, seed: int = 0
) -> Interval:
    """
    Return a value over frames with its 95 % percentile interval.

    :param statistic: computes the value of each draw; of differences, from the same draw of both.
    :param frames: how many there are, in the order of time; frames of several sequences follow
        each other, so that a few blocks hold the end of one and the beginning of the next.
    :param block: frames that are drawn together; 0 for `block_length`.
    :param draws: how often a set of `frames` is drawn.
    :param seed: of the generator.
    :raises SettingError: there is no frame, or the block or the number of draws is out of range.
    """
    if frames < 1:
        raise SettingError('no frames to draw from; at least one is needed')
    if not 0 <= block <= frames:
        raise SettingError(f'block of {block} frames; it must be 1 to {frames}, or 0')
    if draws < 1:
        raise SettingError(f'{draws} draws; at least 1 is needed')
    length = block or block_length(frames)
    value = float(statistic(np.ones((1, frames), np.int64))[0])
    if frames < 2 * length:
        return Interval(value, math.nan, math.nan)
    parts = [
        statistic(weights)
        for weights in _weights(frames, length, draws, np.random.default_rng(seed))
    ]
    low, high = np.percentile(np.concatenate(parts), (2.5, 97.5))  # nan if one draw has no value
    return Interval(value, float(low), float(high))


def _weights(
    frames: int, length: int, draws: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each frame is drawn, (draws at once, frames)."""
    blocks = -(-frames // length)
    for first in range(0, draws, _DRAWS_AT_ONCE):
        rows = min(_DRAWS_AT_ONCE, draws - first)
        starts = generator.integers(frames, size=(rows, blocks, 1))
        drawn = (starts + np.arange(length)).reshape(rows, -1)[:, :frames] % frames
        places = drawn + np.arange(rows)[:, None] * frames
        yield np.bincount(places.ravel(), minlength=rows * frames).reshape(rows, frames)
