"""How numba compiles what `labelling_cpu` and `confidence_cpu` run, and an exponential for it."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Function = Callable[..., Any]

# Cephes' expf: 2 ** n times a polynomial, right to one unit in the last place.
_LOG2E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(0.5)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(87)
_ONE, _HALF = np.float32(1), np.float32(0.5)

# Contraction alone keeps comparisons as written; the interpreter's lock is not held.
compiled = numba.njit(nogil=True, cache=True, fastmath={'contract'}, error_model='numpy')
inlined = numba.njit(
    nogil=True, cache=True, fastmath={'contract'}, error_model='numpy', inline='always'
)


@inlined
def exp(value: Any) -> Any:
    """Return exp of a number between -87 and 87, in a form of which compilers make vectors."""
    value = min(max(value, _LOWEST), _HIGHEST)
    part = np.floor(value * _LOG2E + _HALF)
    rest = value - part * _LN2_HIGH - part * _LN2_LOW
    series = ((((_P0 * rest + _P1) * rest + _P2) * rest + _P3) * rest + _P4) * rest + _P5
    series = series * rest * rest + rest + _ONE
    return series * np.int32((np.int32(part) + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled
def even_stretches(
    lower: Integers, weight: Floats
) -> tuple[Integers, Integers, Integers, Floats, Floats]:
    """
    Cut an axis of pixels where a score lies, and where their distance changes, as at the border.

    :param lower: (pixels,) score before each pixel.
    :param weight: (pixels,) share of the score after it.
    :returns: per stretch its score, first pixel, number of pixels, first weight, and what the
        weight rises by from pixel to pixel.
    """
    pixels = lower.size
    score, first = np.empty(pixels, np.int32), np.empty(pixels, np.int32)
    count = np.empty(pixels, np.int32)
    start, step = np.empty(pixels, np.float32), np.zeros(pixels, np.float32)
    found = 0
    begin = 0
    while begin < pixels:
        end = begin + 1
        while (
            end < pixels
            and lower[end] == lower[begin]
            and (
                end - begin < 2
                or abs(weight[end] - 2 * weight[end - 1] + weight[end - 2]) < np.float32(1e-3)
            )
        ):
            end += 1
        if end - begin == 2 and weight[begin] == 0 and end < pixels and lower[end] == lower[begin]:
            end = begin + 1  # one pixel at the border, not the first step
        score[found], first[found], count[found] = lower[begin], begin, end - begin
        start[found] = weight[begin]
        if end - begin > 1:
            step[found] = (weight[end - 1] - weight[begin]) / np.float32(end - begin - 1)
        found += 1
        begin = end
    return score[:found], first[:found], count[:found], start[:found], step[:found]
