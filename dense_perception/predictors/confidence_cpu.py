"""
Confidence of labels on a CPU: 255 times the softmax of the best class at each pixel.

Between four scores the difference of two classes is bilinear in the place: along a row of evenly
spaced pixels it changes by equal steps, and from row to row so do these. Its exponential is then
a product of powers of four numbers, so four exponentials serve a tile of pixels, and vectors run
over the tiles of several cells. What cannot matter is left out:

- a cell in which one class is best throughout and the others cannot bring its rounded share below
  255 is filled;
- classes whose exponentials add nowhere up to more than `_LEFT_OUT` are not summed; this moves no
  share by more than 1/512 of a step.

Powers of rounded numbers add less than 1/1000 of a step. Cells with differences too steep for
float32's range are evaluated pixel by pixel.

What decides the speed: loops of a constant number of turns, 16 or more, become vectors, and
shorter ones only where nothing that they read could be what they write, so what the inner loops
use lies at fixed places of one array. Functions that take arrays are not inlined, nor slices taken
in loops, as counting references costs more than what is done with them.
"""

from typing import Any, NamedTuple

from dense_perception.arrays import Confidence
from dense_perception.predictors.compiled import compiled, exp, Floats, inlined, Integers
import numpy as np
from numpy.typing import NDArray

_LANES = 16  # cells that are worked on together
_SIDE = 8  # pixels of a tile, across and down
_ROW = _SIDE * _LANES
_AREA = _SIDE * _ROW
_FULL, _HALF = np.float32(255), np.float32(0.5)
_LEFT_OUT = np.float32(1 / 512 / 255)
_SURE = np.float32(255 / (254.5 + 1e-4))  # sum of exponentials whose inverse is a share of 255
_STEEPEST = np.float32(80)  # below float32's range of exponents
_HIGHEST = np.float32(40)  # of a difference to the class that others are compared with
_TO_BITS, _BITS_OF_ONE = np.float32(2**23 / np.log(2)), np.float32(127 * 2**23 + 64)

# Where in the working space lie the sums of the exponentials of all pixels of a tile, and the
# largest; then of each cell four corners, later powers; the same of the class that is compared
# with; the weight of the first column, and what it rises by.
_SUMS, _BEST, _CORNERS = 0, _AREA, 2 * _AREA
_RIGHT, _LOW, _LOW_RIGHT = _CORNERS + _LANES, _CORNERS + 2 * _LANES, _CORNERS + 3 * _LANES
_OWN = _CORNERS + 4 * _LANES
_START, _STEP = _OWN + 4 * _LANES, _OWN + 5 * _LANES
_SPACE = _OWN + 6 * _LANES

Places = NDArray[np.uint64]  # unsigned, so that nothing is done for places before the first


class _Row(NamedTuple):
    """Rows of scores that pixels lie between, and where they lie."""

    above: int
    below: int
    first: np.float32  # weight, of the row of scores below, in the first row of pixels
    step: np.float32  # what it rises by from row to row


class _Found(NamedTuple):
    """How the classes compare at the four scores around each cell of a row."""

    own: Floats  # (4, columns) scores of the class that the others are compared with
    highest: Floats  # (C, columns) what a class's exponentials are at most
    total: Floats  # (columns,) their sum
    high: Floats  # (columns,) the highest difference
    low: Floats  # (columns,) the lowest one of a class that counts


class _Space(NamedTuple):
    """Where a block of cells is worked on."""

    members: Places  # (_LANES,) columns of scores of the cells
    kept: Places  # (C + 1,) classes that count there
    block: Floats  # (C, 4 * _LANES) their scores at the corners
    sums: Floats  # (_SPACE,)
    words: NDArray[np.uint32]  # (2, _ROW) shares of a tile's pixels, the left four and the right
    octets: Confidence  # (2, _ROW, 4) the same


@inlined
def _bound(value: Any) -> Any:
    """Return what exp of a number from -80 to 80 is at most; it is less by up to 6 %."""
    value = min(max(value, -_STEEPEST), _STEEPEST)
    return np.int32(value * _TO_BITS + _BITS_OF_ONE).view(np.float32)


@compiled
def _compare_row(
    planes: Floats, row: _Row, winners: Integers, least: np.float32, found: _Found
) -> None:
    """
    Compare all classes with one in each cell of a row.

    :param planes: (C, rows, columns + 1) scores, the last column twice.
    :param winners: (columns,) the class that a cell's others are compared with.
    :param least: difference below which a class does not count.
    :param found: receives what is found.
    """
    above, below, own = row.above, row.below, found.own
    highest, total, highs, lows = found.highest, found.total, found.high, found.low
    columns = winners.size
    for column in range(columns):
        winner = winners[column]
        own[0, column] = planes[winner, above, column]
        own[1, column] = planes[winner, above, column + 1]
        own[2, column] = planes[winner, below, column]
        own[3, column] = planes[winner, below, column + 1]
        total[column] = highs[column] = lows[column] = np.float32(0)
    for index in range(planes.shape[0]):
        for column in range(columns):
            a = planes[index, above, column] - own[0, column]
            b = planes[index, above, column + 1] - own[1, column]
            c = planes[index, below, column] - own[2, column]
            d = planes[index, below, column + 1] - own[3, column]
            high = max(max(a, b), max(c, d))
            low = min(min(a, b), min(c, d))
            most = _bound(high)
            highest[index, column] = most
            total[column] += most
            highs[column] = max(highs[column], high)
            lows[column] = min(lows[column], low if high >= least else np.float32(0))


@compiled
def _list_cells(
    winners: Integers, row: _Row, found: _Found, score: Integers, lists: Integers
) -> tuple[int, int, int]:
    """
    List the cells of a row that are to be evaluated.

    :param winners: (rows, columns) the best class of each score.
    :param score: (cells,) column of scores of each.
    :param lists: (3, cells + 1) receives those with one best class throughout, those with several,
        and those too steep.
    :returns: how many are on each list.
    """
    above, below, last = row.above, row.below, winners.shape[1] - 1
    total, high, low = found.total, found.high, found.low
    one, several, steep = 0, 0, 0
    for cell in range(score.size):
        column = score[cell]
        beside = min(column + 1, last)
        winner = winners[above, column]
        common = (
            (winner == winners[above, beside])
            & (winner == winners[below, column])
            & (winner == winners[below, beside])
        )
        is_steep = (high[column] > _HIGHEST) | (low[column] < -_STEEPEST)
        lists[0, one] = lists[1, several] = lists[2, steep] = cell
        one += (not is_steep) & common & (total[column] > _SURE)
        several += (not is_steep) & (not common)
        steep += is_steep
    return one, several, steep


@compiled
def _list_classes(highest: Floats, members: Places, kept: Places) -> int:
    """List the classes that count in a block of cells, and return how many they are."""
    left_out = _LEFT_OUT
    count = 0
    for index in range(highest.shape[0]):
        most = np.float32(0)
        for lane in range(_LANES):
            most = max(most, highest[index, members[lane]])
        kept[count] = index
        if most <= left_out:
            left_out -= most
        else:
            count += 1
    return count


@compiled
def _gather(planes: Floats, row: _Row, count: int, space: _Space) -> None:
    """Write the scores of so many classes at the corners of a block's cells side by side."""
    above, below = row.above, row.below
    members, kept, block = space.members, space.kept, space.block
    for position in range(count):
        index = kept[position]
        for lane in range(_LANES):
            column = members[lane]
            beside = column + np.uint64(1)
            block[position, lane] = planes[index, above, column]
            block[position, _LANES + lane] = planes[index, above, beside]
            block[position, 2 * _LANES + lane] = planes[index, below, column]
            block[position, 3 * _LANES + lane] = planes[index, below, beside]


@compiled
def _add_class(
    scores: Floats, position: int, tile: tuple[Any, Any, Any], mixed: bool, space: Floats
) -> None:
    """
    Add a class's exponentials at the pixels of one tile of each of a block's cells.

    :param scores: (C, 4 * _LANES) of which those at `position` are the class's.
    :param tile: weight of its first row of pixels, what that rises by, and its first column.
    :param mixed: whether the largest exponentials are wanted as well.
    """
    first, step, offset = tile
    for place in range(4 * _LANES):
        # Cells where the class does not count may have it further below than powers reach.
        difference = scores[position, place] - space[_OWN + place]
        space[_CORNERS + place] = max(difference, -_STEEPEST)
    for lane in range(_LANES):
        left, right = space[_CORNERS + lane], space[_RIGHT + lane]
        left_rise, right_rise = space[_LOW + lane] - left, space[_LOW_RIGHT + lane] - right
        across = space[_STEP + lane]
        start = space[_START + lane] + offset * across
        left += first * left_rise
        right += first * right_rise
        bend = step * (right_rise - left_rise)
        # The exponential at the first pixel, the factor from column to column, the factor from row
        # to row in the first column, and that one's factor.
        space[_CORNERS + lane] = exp(left + start * (right - left))
        space[_RIGHT + lane] = exp(across * (right - left))
        space[_LOW + lane] = exp(step * left_rise + start * bend)
        space[_LOW_RIGHT + lane] = exp(across * bend)
    for row in range(_SIDE):
        for lane in range(_LANES):
            value, factor = space[_CORNERS + lane], space[_RIGHT + lane]
            for column in range(_SIDE):
                pixel = column * _ROW + row * _LANES + lane
                space[_SUMS + pixel] += value
                if mixed:
                    space[_BEST + pixel] = max(space[_BEST + pixel], value)
                value *= factor
            space[_CORNERS + lane] *= space[_LOW + lane]
            space[_RIGHT + lane] *= space[_LOW_RIGHT + lane]


@compiled
def _pack(sums: Floats, words: NDArray[np.uint32]) -> None:
    """Make shares of the sums."""
    for half in range(2):
        for place in range(_ROW):
            word = np.uint32(0)
            for column in range(4):
                pixel = (4 * half + column) * _ROW + place
                share = np.int32(_FULL * sums[_BEST + pixel] / sums[_SUMS + pixel] + _HALF)
                word |= np.uint32(np.uint32(share) << np.uint32(8 * column))
            words[half, place] = word


@compiled
def _write(octets: Confidence, lane: int, tile: tuple[int, int, int, int], part: Any) -> None:
    """
    Write the pixels of one cell's tile.

    :param tile: its first row, first column, rows and columns in `part`.
    """
    top, left, height, width = tile
    for row in range(height):
        place, line = np.uint64(row * _LANES + lane), np.uint64(top + row)
        if width == _SIDE:
            # All are read before the first is written, so that they are moved together.
            for half in range(2):
                a, b = octets[half, place, 0], octets[half, place, 1]
                c, d = octets[half, place, 2], octets[half, place, 3]
                at = np.uint64(left + 4 * half)
                part[line, at], part[line, at + np.uint64(1)] = a, b
                part[line, at + np.uint64(2)], part[line, at + np.uint64(3)] = c, d
        else:
            for column in range(width):
                part[line, left + column] = octets[column // 4, place, column % 4]


@compiled
def _rate_cells(
    planes: Floats,
    row: _Row,
    found: _Found,
    cells: Integers,
    column_stretches: Any,
    mixed: bool,
    space: _Space,
    part: Confidence,
) -> None:
    """
    Rate all pixels of a block of cells.

    :param cells: (1 to _LANES,) numbers of them in the row.
    :param mixed: whether another class may be best than the one that is compared with.
    :param part: (rows, width of the image) receives the shares.
    """
    score, place, count, start, across = column_stretches
    members, kept, block, sums, words, octets = space
    own = found.own
    widest = 0
    for lane in range(_LANES):
        cell = cells[min(lane, cells.size - 1)]  # lanes to spare repeat the last cell
        column = score[cell]
        members[lane] = column
        for corner in range(4):
            sums[_OWN + corner * _LANES + lane] = own[corner, column]
        sums[_START + lane], sums[_STEP + lane] = start[cell], across[cell]
        widest = max(widest, count[cell])
    classes = _list_classes(found.highest, members, kept)
    _gather(planes, row, classes, space)
    for top in range(0, part.shape[0], _SIDE):
        for left in range(0, widest, _SIDE):
            sums[_SUMS:_BEST] = 0
            sums[_BEST:_CORNERS] = 0 if mixed else 1
            tile = row.first + np.float32(top) * row.step, row.step, np.float32(left)
            for position in range(classes):
                _add_class(block, position, tile, mixed, sums)
            _pack(sums, words)
            height = min(part.shape[0] - top, _SIDE)
            for lane in range(cells.size):
                cell = cells[lane]
                width = min(count[cell] - left, _SIDE)
                _write(octets, lane, (top, place[cell] + left, height, width), part)


@inlined
def _share(planes: Floats, row: Any, column: Any, place: tuple[Any, Any], exponential: Any) -> Any:
    """Return the best class's share at one pixel with every class evaluated."""
    down, across = place
    best = np.float32(-np.inf)
    total = np.float32(0)
    for index in range(len(planes)):
        a, c = planes[index, row.above, column], planes[index, row.below, column]
        high = a + across * (planes[index, row.above, column + 1] - a)
        low = c + across * (planes[index, row.below, column + 1] - c)
        value = high + down * (low - high)
        if not exponential:
            best = max(best, value)
        elif value > best:
            total = total * exp(best - value) + np.float32(1)
            best = value
        else:
            total += exp(value - best)
    return np.float32(1) / total if exponential else best


@compiled
def _rate_slowly(
    planes: Floats,
    row: _Row,
    cells: Integers,
    column_stretches: Any,
    exponential: bool,
    part: Confidence,
) -> None:
    """Rate the pixels of some cells of a row one by one, with all classes evaluated."""
    score, place, count, start, across = column_stretches
    for cell in cells:
        for y in range(part.shape[0]):
            for x in range(count[cell]):
                down = row.first + np.float32(y) * row.step
                right = start[cell] + np.float32(x) * across[cell]
                share = _share(planes, row, score[cell], (down, right), exponential)
                part[y, place[cell] + x] = np.uint8(np.rint(_FULL * share))


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
    classes, columns, score = len(planes), winners.shape[1], column_stretches[0]
    cells = np.arange(score.size).astype(np.int32)
    lists = np.empty((3, score.size + 1), np.int32)
    least = np.log(_LEFT_OUT / np.float32(classes))
    found = _Found(
        np.empty((4, columns), np.float32),
        np.empty((classes, columns), np.float32),
        np.empty(columns, np.float32),
        np.empty(columns, np.float32),
        np.empty(columns, np.float32),
    )
    words = np.empty((2, _ROW), np.uint32)
    space = _Space(
        np.empty(_LANES, np.uint64),
        np.empty(classes + 1, np.uint64),
        np.empty((classes, 4 * _LANES), np.float32),
        np.empty(_SPACE, np.float32),
        words,
        words.view(np.uint8).reshape((2, _ROW, 4)),
    )
    for stretch in range(row_stretches[0].size):
        above, top = row_stretches[0][stretch], row_stretches[1][stretch]
        height = row_stretches[2][stretch]
        if above < first or above >= last:
            continue
        below = min(above + 1, len(winners) - 1)
        row = _Row(above, below, row_stretches[3][stretch], row_stretches[4][stretch])
        part = confidence[top : top + height]
        if not exponential:
            _rate_slowly(planes, row, cells, column_stretches, exponential, part)
            continue
        part[:] = 255
        _compare_row(planes, row, winners[above], least, found)
        one, several, steep = _list_cells(winners, row, found, score, lists)
        for mixed, count in ((False, one), (True, several)):
            for begin in range(0, count, _LANES):
                some = lists[int(mixed), begin : min(begin + _LANES, count)]
                _rate_cells(planes, row, found, some, column_stretches, mixed, space, part)
        _rate_slowly(planes, row, lists[2, :steep], column_stretches, exponential, part)
