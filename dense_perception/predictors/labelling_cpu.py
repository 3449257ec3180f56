"""
Labels from scores on a CPU, compiled by numba; see `labelling`, and `confidence_cpu` for the rest.

Between four neighbouring scores every class is a bilinear function of the place, and so is the
difference of two classes, which is largest at a corner. This settles most of the work exactly:

- where one class is best at all four corners, it is best at every pixel between them;
- a class that another one equals or exceeds at all four corners is best at none.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TYPE_CHECKING

from dense_perception.arrays import Confidence, Labels
from dense_perception.predictors.compiled import (
    compiled,
    even_stretches,
    Floats,
    inlined,
    Integers,
)
from dense_perception.predictors.confidence_cpu import rate_rows
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dense_perception.predictors.labelling import Axis

_LEAST_ROWS = 16  # of scores, below which handing a band to a thread takes longer than the band


@compiled
def _separate(scores: Floats, first: int, last: int, planes: Floats) -> None:
    """Write some rows of scores class by class, the last column twice."""
    columns = scores.shape[1]
    for row in range(first, last):
        for column in range(columns + 1):
            values = scores[row, min(column, columns - 1)]
            for index in range(values.size):
                planes[index, row, column] = values[index]


@compiled
def _winners(planes: Floats, first: int, last: int, best: Integers) -> None:
    """Find the best class of each score in some rows; the first of equal ones."""
    top = np.empty(best.shape[1], np.float32)
    for row in range(first, last):
        for column in range(top.size):
            best[row, column] = 0
            top[column] = planes[0, row, column]
        for index in range(1, len(planes)):
            for column in range(top.size):
                value = planes[index, row, column]
                better = value > top[column]
                best[row, column] = index if better else best[row, column]
                top[column] = value if better else top[column]


@inlined
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


@inlined
def _list(values: Floats, least: Any, kept: Integers) -> Any:
    """List the classes whose value is at least so large, ascending, and return their number."""
    count = 0
    for index in range(values.size):
        kept[count] = index
        count += values[index] >= least
    return count


@inlined
def _lay_out(down: Floats, across: Floats, vertical: Floats, horizontal: Floats) -> Any:
    """Write the weights of a cell's pixels one after the other and return how many they are."""
    width = across.size
    for row in range(down.size):
        for column in range(width):
            vertical[row * width + column] = down[row]
            horizontal[row * width + column] = across[column]
    return down.size * width


@inlined
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


@inlined
def _most_pixels(row_starts: Integers, column_starts: Integers) -> Any:
    """Return how many pixels lie between four scores, at most."""
    return np.diff(row_starts).max() * np.diff(column_starts).max()


@compiled
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
    planes = np.empty((len(scores), rows, columns + 1), np.float32)
    down, across = even_stretches(*vertical), even_stretches(*horizontal)

    def work(first: int, last: int) -> None:
        beyond = min(last + 1, rows)  # two bands may write one row alike
        _separate(values, first, beyond, planes)
        _winners(planes, first, beyond, best)
        _label_rows(values, best, *places, first, last, labels)
        if certain is not None:
            rate_rows(planes, best, down, across, first, last, exponential, certain)

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
