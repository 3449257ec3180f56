"""
Confidence of labels on a CPU: 255 times the softmax of the best class at each pixel.

Between four scores the difference of two classes is bilinear in the place: along a row of evenly
spaced pixels it changes by equal steps, and from row to row so do these. Its exponential is then a
product of powers of four numbers, so four exponentials serve a whole cell of pixels, and vectors
run over the cells of a row. What cannot matter is left out:

- a cell in which one class is best throughout and the others cannot bring its rounded share below
  255 is filled;
- a class whose exponential is nowhere as much as `_LEFT_OUT` over the number of classes is not
  summed; together these move no share by more than 1/512 of a step.

Powers of rounded numbers add less than 1/1000 of a step. Cells with differences too steep for
float32's range are evaluated pixel by pixel.
"""

from typing import Any

from dense_perception.arrays import Confidence
from dense_perception.predictors.compiled import compiled, exp, Floats, inlined, Integers
import numpy as np

_BLOCK = 64  # cells that are worked on together
_ALL = np.uint64(2**64 - 1)  # eight pixels of 255
_LANES = 16  # blocks are filled up to multiples of these
_FULL, _HALF = np.float32(255), np.float32(0.5)
_LEFT_OUT = np.float32(1 / 512 / 255)
_SURE = _FULL - _HALF + np.float32(1e-4)  # what is more is 255
_STEEPEST = np.float32(80)  # below float32's range of exponents
_HIGHEST = np.float32(40)  # of a difference to the class that others are compared with
_NOTHING = np.float32(-50)  # a difference that adds nothing to a sum of at least 1


@inlined
def _share(corners: tuple[Floats, ...], down: Any, across: Any, exponential: Any) -> Any:
    """Return the best class's share at one pixel with every class evaluated."""
    top_left, top_right, low_left, low_right = corners
    best = np.float32(-np.inf)
    total = np.float32(0)
    for index in range(top_left.size):
        high = top_left[index] + across * (top_right[index] - top_left[index])
        low = low_left[index] + across * (low_right[index] - low_left[index])
        value = high + down * (low - high)
        if not exponential:
            best = max(best, value)
        elif value > best:
            total = total * exp(best - value) + np.float32(1)
            best = value
        else:
            total += exp(value - best)
    return np.float32(1) / total if exponential else best


@inlined
def _compare_row(
    planes: Floats, rows: tuple[Any, Any], winners: Any, own: Floats, found: Floats, least: Any
) -> None:
    """
    Compare all classes with one at the four scores around each cell of a row.

    :param planes: (C, rows, columns + 1) scores, the last column twice.
    :param winners: (columns,) the class that a cell's others are compared with.
    :param own: (4, columns) receives that class's scores.
    :param found: (3, columns) receives, of each cell, the sum of the classes' largest
        exponentials; the highest difference; and the lowest one of a class that counts.
    """
    above, below = rows
    columns = winners.size
    for column in range(columns):
        winner = winners[column]
        own[0, column] = planes[winner, above, column]
        own[1, column] = planes[winner, above, column + 1]
        own[2, column] = planes[winner, below, column]
        own[3, column] = planes[winner, below, column + 1]
        found[0, column] = found[1, column] = found[2, column] = np.float32(0)
    for index in range(planes.shape[0]):
        for column in range(columns):
            a = planes[index, above, column] - own[0, column]
            b = planes[index, above, column + 1] - own[1, column]
            c = planes[index, below, column] - own[2, column]
            d = planes[index, below, column + 1] - own[3, column]
            high = max(max(a, b), max(c, d))
            low = min(min(a, b), min(c, d))
            found[0, column] += exp(high)
            found[1, column] = max(found[1, column], high)
            found[2, column] = min(found[2, column], low if high >= least else np.float32(0))


@inlined
def _gather(
    planes: Floats,
    rows: tuple[Any, Any],
    own: Floats,
    members: Integers,
    filled: Any,
    least: Any,
    block: Floats,
    kept: Any,
) -> None:
    """Write the differences at the corners of a block's cells; say which classes count."""
    above, below = rows
    for index in range(planes.shape[0]):
        most = np.float32(-1e9)
        for cell in range(filled):
            column = members[cell]
            a = planes[index, above, column] - own[0, column]
            b = planes[index, above, column + 1] - own[1, column]
            c = planes[index, below, column] - own[2, column]
            d = planes[index, below, column + 1] - own[3, column]
            high = max(max(a, b), max(c, d))
            counts = high >= least
            most = max(most, high)
            block[index, 0, cell] = a if counts else _NOTHING
            block[index, 1, cell] = b if counts else _NOTHING
            block[index, 2, cell] = c if counts else _NOTHING
            block[index, 3, cell] = d if counts else _NOTHING
        kept[index] = most >= least


@inlined
def _raise_powers(block: Floats, cells: Any, down: Any, across: Floats, powers: Floats) -> None:
    """
    Write what a class's exponentials at the pixels of a block of cells are products of.

    :param block: (4, cells) the class's differences at the corners.
    :param down: weight of the first pixel row, and what it rises by; `across`: (2, cells) the same
        of the columns.
    :param powers: (6, cells) receives the exponential at the first pixel, the factor from column
        to column, the factor from row to row in the first column, and that one's factor.
    """
    first, step = down
    for cell in range(cells):
        left_rise, right_rise = block[2, cell] - block[0, cell], block[3, cell] - block[1, cell]
        left, right = block[0, cell] + first * left_rise, block[1, cell] + first * right_rise
        bend = step * (right_rise - left_rise)
        powers[0, cell] = exp(left + across[0, cell] * (right - left))
        powers[1, cell] = exp(across[1, cell] * (right - left))
        powers[2, cell] = exp(step * left_rise + across[0, cell] * bend)
        powers[3, cell] = exp(across[1, cell] * bend)


@inlined
def _add_class(
    cells: Any, powers: Floats, size: tuple[Any, Any], sums: tuple[Floats, ...], mixed: Any
) -> None:
    """
    Add a class's exponentials at all pixels of a block of cells.

    Loops run over a whole column of pixels of all cells: short ones cost more than what they do.
    """
    total, best, value, factor = sums
    height, width = size
    for cell in range(cells):
        value[cell], factor[cell] = powers[0, cell], powers[1, cell]
    for row in range(1, height):
        values, factors = value[row * cells :], factor[row * cells :]
        values_above, factors_above = value[(row - 1) * cells :], factor[(row - 1) * cells :]
        for cell in range(cells):
            values[cell] = values_above[cell] * powers[2, cell]
            factors[cell] = factors_above[cell] * powers[3, cell]
    many = height * cells
    for column in range(width):
        # Slices, as vectors are made only of loops whose places are known not to be negative.
        total_there, best_there = total[column * many :], best[column * many :]
        if mixed:
            for place in range(many):
                best_there[place] = max(best_there[place], value[place])
        for place in range(many):
            total_there[place] += value[place]
            value[place] *= factor[place]


@compiled
def _rate_block(
    block: Floats,
    kept: Any,
    filled: int,
    down: tuple[Any, Any],
    across: Floats,
    size: tuple[int, int],
    mixed: bool,
    space: tuple[Floats, ...],
    share: Confidence,
) -> int:
    """
    Rate all pixels of a block of cells.

    :param share: (width * height * cells,) receives it, column by column of pixels.
    :returns: how many cells that are, some more than are filled.
    """
    total, best, value, factor, powers = space
    height, width = size
    cells = -(-filled // _LANES) * _LANES
    many = height * width * cells
    total[:many] = 0
    best[:many] = 0 if mixed else 1
    sums = total, best, value, factor
    for index in range(kept.size):
        if kept[index]:
            _raise_powers(block[index], cells, down, across, powers)
            _add_class(cells, powers, size, sums, mixed)
    for place in range(many):
        share[place] = np.uint8(np.int32(_FULL * best[place] / total[place] + _HALF))
    return cells


@inlined
def _pack(
    share: Confidence,
    of_block: Any,
    cells: Any,
    filled: Any,
    size: tuple[int, int],
    packed: Any,
    words: Any,
) -> None:
    """
    Put the pixels of a block's cells into words of eight, side by side as in the image.

    :param share: (width * height * of_block,).
    :param cells: numbers of the block's cells in the row.
    :param size: rows and columns of pixels, of the widest cell.
    :param words: (rows, columns / 8, cells of the row) uint64; `packed` is working space.
    """
    height, width = size
    for row in range(height):
        for first in range(0, width, 8):
            packed[:] = 0
            for column in range(first, min(first + 8, width)):
                place, shift = (column * height + row) * of_block, np.uint64(8 * (column - first))
                part = share[place:]
                for cell in range(of_block):
                    packed[cell] |= np.uint64(part[cell]) << shift
            for cell in range(filled):
                words[row, first // 8, cells[cell]] = packed[cell]


@compiled
def _runs(lefts: Integers, widths: Integers, groups: int) -> Integers:
    """
    Find what lies side by side in a row of words and in a row of pixels.

    :param lefts: (cells,) first pixel of each, `widths`: how many there are.
    :param groups: words of the widest cell.
    :returns: (runs, 4) group of words, first cell, first pixel and the one after the last.
    """
    found, count = np.empty((groups * lefts.size, 4), np.int32), 0
    for group in range(groups):
        for cell in range(lefts.size):
            first = lefts[cell] + 8 * group
            end = first + max(min(widths[cell] - 8 * group, 8), 0)
            last = found[count - 1]
            if (
                cell
                and last[0] == group
                and last[3] == first
                and first - last[2] == 8 * (cell - last[1])
            ):
                last[3] = end
            else:
                found[count, 0], found[count, 1] = group, cell
                found[count, 2], found[count, 3] = first, end
                count += 1
    return found[:count]


@inlined
def _write(octets: Confidence, runs: Integers, top: Any, height: Any, confidence: Any) -> None:
    """
    Write rows of pixels.

    :param octets: (rows, columns / 8, 8 * cells) what `_pack` made.
    :param runs: as `_runs` finds them.
    """
    for row in range(height):
        for run in range(len(runs)):
            group, cell, first, end = runs[run]
            target, source = confidence[top + row, first:end], octets[row, group, 8 * cell :]
            for pixel in range(target.size):
                target[pixel] = source[pixel]


@inlined
def _rate_slowly(
    planes: Floats,
    rows: tuple[Any, Any],
    column: Any,
    classes: tuple[Any, Any],
    down: tuple[Any, Any],
    across: tuple[Any, Any],
    exponential: Any,
    part: Confidence,
) -> None:
    """Rate the pixels of one cell one by one, with all classes from one to another evaluated."""
    first, last = classes
    corners = (
        planes[first:last, rows[0], column],
        planes[first:last, rows[0], column + 1],
        planes[first:last, rows[1], column],
        planes[first:last, rows[1], column + 1],
    )
    for y in range(part.shape[0]):
        for x in range(part.shape[1]):
            share = _share(
                corners,
                down[0] + np.float32(y) * down[1],
                across[0] + np.float32(x) * across[1],
                exponential,
            )
            part[y, x] = np.uint8(np.rint(_FULL * share))


@inlined
def _common(winners: Integers, rows: tuple[Any, Any], column: Any, beside: Any) -> Any:
    """Whether one class is best at the four scores around a cell."""
    winner = winners[rows[0], column]
    return (
        winner == winners[rows[0], beside]
        and winner == winners[rows[1], column]
        and winner == winners[rows[1], beside]
    )


@inlined
def _is_steep(found: Floats, column: Any) -> Any:
    """Whether differences in a cell span more than powers in float32 can."""
    return found[1, column] > _HIGHEST or found[2, column] < -_STEEPEST


@compiled
def rate_rows(
    planes: Floats,
    winners: Integers,
    row_stretches: Any,
    column_stretches: Any,
    first: int,
    last: int,
    exponential: bool,
    confidence: Confidence,
) -> None:
    """
    Rate the pixels that follow some rows of scores.

    :param planes: (C, rows, columns + 1) scores, the last column twice; or probabilities.
    :param winners: (rows, columns) the best class of each.
    :param row_stretches: of `even_stretches`, as `column_stretches`.
    :param first: row of scores, `last`: the one after the last.
    :param exponential: whether softmax makes probabilities of scores; else they are such.
    :param confidence: (height, width) receives the shares.
    """
    classes, _, columns = planes.shape
    columns -= 1
    row_score, row_first, row_count, row_start, row_step = row_stretches
    score, place, count, start, step = column_stretches
    least = np.log(_LEFT_OUT / np.float32(classes))
    own, found = np.empty((4, columns), np.float32), np.empty((3, columns), np.float32)
    block, kept = np.zeros((classes, 4, _BLOCK), np.float32), np.zeros(classes, np.bool_)
    across = np.zeros((2, _BLOCK), np.float32)
    members, columns_of = np.zeros(_BLOCK, np.int32), np.zeros(_BLOCK, np.int32)
    most = row_count.max(), count.max()
    pixels, rows_of = most[0] * most[1] * _BLOCK, most[0] * _BLOCK
    total, best = np.empty(pixels, np.float32), np.empty(pixels, np.float32)
    value, factor = np.empty(rows_of, np.float32), np.empty(rows_of, np.float32)
    space = total, best, value, factor, np.zeros((4, _BLOCK), np.float32)
    share, packed = np.empty(pixels, np.uint8), np.empty(_BLOCK, np.uint64)
    words = np.empty((most[0], -(-most[1] // 8), score.size), np.uint64)
    octets = words.view(np.uint8)
    runs = _runs(place, count, words.shape[1])
    for stretch in range(row_score.size):
        row = row_score[stretch]
        if row < first or row >= last:
            continue
        rows = row, min(row + 1, winners.shape[0] - 1)
        down = row_start[stretch], row_step[stretch]
        top, height = row_first[stretch], row_count[stretch]
        words[:height] = _ALL
        if exponential:
            _compare_row(planes, rows, winners[row], own, found, least)
        filled, mixed, widest, slow = 0, False, 0, not exponential
        for cell in range(score.size if exponential else 0):
            column = score[cell]
            beside = min(column + 1, columns - 1)
            common = _common(winners, rows, column, beside)
            if _is_steep(found, column):
                slow = True
            elif not common or _FULL / found[0, column] < _SURE:
                members[filled], columns_of[filled] = cell, column
                across[0, filled], across[1, filled] = start[cell], step[cell]
                mixed |= not common
                widest = max(widest, count[cell])
                filled += 1
            if filled == _BLOCK or (filled and cell == score.size - 1):
                _gather(planes, rows, own, columns_of, filled, least, block, kept)
                size = (height, widest)
                cells = _rate_block(block, kept, filled, down, across, size, mixed, space, share)
                _pack(share, cells, members, filled, size, packed, words)
                filled, mixed, widest = 0, False, 0
        _write(octets, runs, top, height, confidence)
        for cell in range(score.size if slow else 0):
            column = score[cell]
            if exponential and not _is_steep(found, column):
                continue
            # Where one probability is the largest throughout, the others do not matter.
            only = not exponential and _common(winners, rows, column, min(column + 1, columns - 1))
            winner = winners[row, column]
            _rate_slowly(
                planes,
                rows,
                column,
                (winner if only else 0, winner + 1 if only else classes),
                down,
                (start[cell], step[cell]),
                exponential,
                confidence[top : top + height, place[cell] : place[cell] + count[cell]],
            )
