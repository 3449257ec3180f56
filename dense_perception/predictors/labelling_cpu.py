"""
Labels and confidence from scores on a CPU, compiled by numba; see `labelling`.

Between four neighbouring scores every class is a bilinear function of the place, and so is the
difference of two classes, which is largest at a corner. This settles most of the work exactly:

- where one class is best at all four corners, it is best at every pixel between them;
- a class that another one equals or exceeds at all four corners is best at none;
- exp of a difference nowhere exceeds its largest corner, which bounds what left-out classes would
  add to the softmax; where that could change the rounded confidence, nothing is left out.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TYPE_CHECKING

from dense_perception.arrays import Confidence, Labels
import numba
import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dense_perception.predictors.labelling import Axis

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
Function = Callable[..., Any]

_TINY = np.float32(2e-5)  # what exp must reach at a corner for a class to be summed
_LEAST_ROWS = 32  # of scores, below which handing a band to a thread takes longer than the band
_ONE, _HALF = np.float32(1), np.float32(0.5)
_FULL = np.float32(255)
_ROUNDING = np.float32(2e-5)  # of a confidence of 0 to 255
# Cephes' expf: 2 ** n times a polynomial, right to one unit in the last place.
_LOG2E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(0.5)
_LOWEST = np.float32(-87)

# Contraction alone keeps comparisons as written; the interpreter's lock is not held.
_compiled = numba.njit(nogil=True, cache=True, fastmath={'contract'}, error_model='numpy')
_inlined = numba.njit(
    nogil=True, cache=True, fastmath={'contract'}, error_model='numpy', inline='always'
)


@_inlined
def _exp(value: Any) -> Any:
    """Return exp of a number of at most 0, in a form of which compilers make vectors."""
    value = max(value, _LOWEST)
    power = np.int32(value * _LOG2E - _HALF)  # rounds to the nearest, as the value is negative
    part = np.float32(power)
    rest = value - part * _LN2_HIGH - part * _LN2_LOW
    series = ((((_P0 * rest + _P1) * rest + _P2) * rest + _P3) * rest + _P4) * rest + _P5
    series = series * rest * rest + rest + _ONE
    return series * np.int32((power + np.int32(127)) << np.int32(23)).view(np.float32)


@_compiled
def _winners(scores: Floats, best: Integers, first: int, last: int) -> None:
    """Find the best class of each score in some rows; the first of equal ones."""
    for row in range(first, last):
        for column in range(scores.shape[1]):
            values = scores[row, column]
            winner = 0
            for index in range(1, values.size):
                if values[index] > values[winner]:
                    winner = index
            best[row, column] = winner


@_inlined
def _exceed(corners: tuple[Floats, ...], winners: tuple[int, ...], excess: Floats) -> None:
    """
    Say how far each class gets between four scores.

    :param excess: receives, per class, its largest difference to the winner that it trails most;
        below 0, the class is best at none of the pixels.
    """
    top_left, top_right, low_left, low_right = corners
    for position, winner in enumerate(winners):
        if position and winner == winners[position - 1]:
            continue
        a, b, c, d = top_left[winner], top_right[winner], low_left[winner], low_right[winner]
        for index in range(excess.size):
            ahead = max(
                max(top_left[index] - a, top_right[index] - b),
                max(low_left[index] - c, low_right[index] - d),
            )
            excess[index] = min(ahead, excess[index]) if position else ahead


@_inlined
def _list(values: Floats, least: Any, kept: Integers) -> Any:
    """List the classes whose value is at least so large, ascending, and return their number."""
    count = 0
    for index in range(values.size):
        kept[count] = index
        count += values[index] >= least
    return count


@_inlined
def _lay_out(down: Floats, across: Floats, vertical: Floats, horizontal: Floats) -> Any:
    """Write the weights of a cell's pixels one after the other and return how many they are."""
    width = across.size
    for row in range(down.size):
        for column in range(width):
            vertical[row * width + column] = down[row]
            horizontal[row * width + column] = across[column]
    return down.size * width


@_inlined
def _interpolate(
    corners: tuple[Floats, ...],
    index: int,
    vertical: Floats,
    horizontal: Floats,
    count: int,
    values: Floats,
) -> None:
    """Write one class's scores at the pixels between four scores."""
    top_left, top_right, low_left, low_right = corners
    a, b, c, d = top_left[index], top_right[index], low_left[index], low_right[index]
    for pixel in range(count):
        top = a + horizontal[pixel] * (b - a)
        low = c + horizontal[pixel] * (d - c)
        values[pixel] = top + vertical[pixel] * (low - top)


@_inlined
def _most_pixels(row_starts: Integers, column_starts: Integers) -> Any:
    """Return how many pixels lie between four scores, at most."""
    return np.diff(row_starts).max() * np.diff(column_starts).max()


@_compiled
def _label_rows(
    scores: Floats,
    best: Integers,
    row_starts: Integers,
    down: Floats,
    column_starts: Integers,
    across: Floats,
    first: int,
    last: int,
    labels: Labels,
) -> None:
    """Label the pixels that follow some rows of scores."""
    rows, columns, classes = scores.shape
    most = _most_pixels(row_starts, column_starts)
    vertical, horizontal = np.empty(most, np.float32), np.empty(most, np.float32)
    values, top = np.empty(most, np.float32), np.empty(most, np.float32)
    label = np.empty(most, np.int32)
    excess, kept = np.empty(classes, np.float32), np.empty(classes, np.int32)
    for row in range(first, last):
        start, end = row_starts[row], row_starts[row + 1]
        if start == end:
            continue
        for column in range(columns):
            labels[start, column_starts[column] : column_starts[column + 1]] = best[row, column]
        for pixel_row in range(start + 1, end):
            labels[pixel_row] = labels[start]
        below = min(row + 1, rows - 1)
        for column in range(columns):
            left, right = column_starts[column], column_starts[column + 1]
            beside = min(column + 1, columns - 1)
            winners = (
                best[row, column],
                best[row, beside],
                best[below, column],
                best[below, beside],
            )
            if left == right or winners[0] == winners[1] == winners[2] == winners[3]:
                continue
            corners = (
                scores[row, column],
                scores[row, beside],
                scores[below, column],
                scores[below, beside],
            )
            pixels = _lay_out(down[start:end], across[left:right], vertical, horizontal)
            _exceed(corners, winners, excess)
            count = _list(excess, np.float32(0), kept)
            _interpolate(corners, kept[0], vertical, horizontal, pixels, top)
            label[:pixels] = kept[0]
            for position in range(1, count):
                index = kept[position]
                _interpolate(corners, index, vertical, horizontal, pixels, values)
                for pixel in range(pixels):
                    better = values[pixel] > top[pixel]
                    label[pixel] = index if better else label[pixel]
                    top[pixel] = values[pixel] if better else top[pixel]
            width = right - left
            for pixel_row in range(start, end):
                for pixel in range(width):
                    labels[pixel_row, left + pixel] = label[(pixel_row - start) * width + pixel]


@_inlined
def _sum_all(corners: tuple[Floats, ...], vertical: Any, horizontal: Any, top: Any) -> Any:
    """Return the softmax's denominator at one pixel with every class in it."""
    top_left, top_right, low_left, low_right = corners
    total = np.float32(0)
    for index in range(top_left.size):
        high = top_left[index] + horizontal * (top_right[index] - top_left[index])
        low = low_left[index] + horizontal * (low_right[index] - low_left[index])
        total += _exp(high + vertical * (low - high) - top)
    return total


@_compiled
def _rate_rows(
    scores: Floats,
    best: Integers,
    row_starts: Integers,
    down: Floats,
    column_starts: Integers,
    across: Floats,
    first: int,
    last: int,
    exponential: bool,
    confidence: Confidence,
) -> None:
    """Rate the pixels that follow some rows of scores: 255 times the softmax of the best class."""
    rows, columns, classes = scores.shape
    most = _most_pixels(row_starts, column_starts)
    vertical, horizontal = np.empty(most, np.float32), np.empty(most, np.float32)
    values = np.empty((classes, most), np.float32)
    top, total = np.empty(most, np.float32), np.empty(most, np.float32)
    share = np.empty(most, np.float32)
    excess, kept = np.empty(classes, np.float32), np.empty(classes, np.int32)
    bounds = np.empty(classes, np.float32)
    for row in range(first, last):
        start, end = row_starts[row], row_starts[row + 1]
        if start == end:
            continue
        below = min(row + 1, rows - 1)
        for column in range(columns):
            left, right = column_starts[column], column_starts[column + 1]
            if left == right:
                continue
            beside = min(column + 1, columns - 1)
            winners = (
                best[row, column],
                best[row, beside],
                best[below, column],
                best[below, beside],
            )
            corners = (
                scores[row, column],
                scores[row, beside],
                scores[below, column],
                scores[below, beside],
            )
            _exceed(corners, winners, excess)
            left_out = np.float32(0)
            if exponential:
                total_bound = np.float32(0)
                for index in range(classes):
                    bound = _exp(min(excess[index], np.float32(0)))
                    bounds[index] = bound
                    total_bound += bound
                    left_out += np.float32(0) if bound >= _TINY else bound
                common = winners[0] == winners[1] == winners[2] == winners[3]
                if common and _FULL / total_bound > _FULL - _HALF + _ROUNDING:
                    confidence[start:end, left:right] = 255
                    continue
                count = _list(bounds, _TINY, kept)
            else:
                count = _list(excess, np.float32(0), kept)
            pixels = _lay_out(down[start:end], across[left:right], vertical, horizontal)
            for position in range(count):
                _interpolate(
                    corners, kept[position], vertical, horizontal, pixels, values[position]
                )
            top[:pixels] = values[0, :pixels]
            for position in range(1, count):
                for pixel in range(pixels):
                    top[pixel] = max(top[pixel], values[position, pixel])
            if exponential:
                total[:pixels] = 0
                for position in range(count):
                    for pixel in range(pixels):
                        total[pixel] += _exp(values[position, pixel] - top[pixel])
                doubt = 0
                for pixel in range(pixels):
                    share[pixel] = np.rint(_FULL / total[pixel])
                    doubt += share[pixel] != np.rint(_FULL / (total[pixel] + left_out))
                if doubt:
                    for pixel in range(pixels):
                        if share[pixel] != np.rint(_FULL / (total[pixel] + left_out)):
                            exact = _sum_all(
                                corners, vertical[pixel], horizontal[pixel], top[pixel]
                            )
                            share[pixel] = np.rint(_FULL / exact)
            else:
                for pixel in range(pixels):
                    share[pixel] = np.rint(_FULL * top[pixel])
            width = right - left
            for pixel_row in range(start, end):
                for pixel in range(width):
                    confidence[pixel_row, left + pixel] = np.uint8(
                        share[(pixel_row - start) * width + pixel]
                    )


def label(
    scores: Tensor, vertical: 'Axis', horizontal: 'Axis', exponential: bool, confidence: bool
) -> tuple[Labels, Confidence | None]:
    """
    Label every pixel; rows of scores are shared out among as many threads as torch uses.

    :param scores: (C, rows, columns) float32; fastest where the classes are last in memory.
    :param vertical: places of the pixel rows, `horizontal`: of the pixel columns.
    :param exponential: whether softmax makes probabilities of scores; else they are such.
    """
    values = scores.permute(1, 2, 0).contiguous().numpy()
    rows, columns = values.shape[:2]
    best = np.empty((rows, columns), np.int32)
    size = (vertical.lower.size, horizontal.lower.size)
    places = (
        vertical.starts(rows),
        vertical.weight,
        horizontal.starts(columns),
        horizontal.weight,
    )
    labels = np.empty(size, np.uint8)
    certain = np.empty(size, np.uint8) if confidence else None

    def work(first: int, last: int) -> None:
        _winners(values, best, first, min(last + 1, rows))  # two bands may write one row alike
        _label_rows(values, best, *places, first, last, labels)
        if certain is not None:
            _rate_rows(values, best, *places, first, last, exponential, certain)

    _in_bands(rows, work)
    return labels, certain


def _in_bands(rows: int, work: Callable[[int, int], None]) -> None:
    """Call with the first row of a band and the first after it until all rows are done."""
    threads = torch.get_num_threads()
    count = min(4 * threads, rows // _LEAST_ROWS)  # several a thread: some take longer
    if threads == 1 or count < 2:
        work(0, rows)
        return
    height = -(-rows // count)
    bands = [(first, min(first + height, rows)) for first in range(0, rows, height)]
    for done in [_pool(threads).submit(work, *band) for band in bands]:
        done.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, 'labelling')
