"""
Print what was aimed at and what is reached, from the tables that the other benchmarks left.

Every figure is read or computed from the newest table of its kind; a row whose table, column or
line is missing says "not measured". Nothing is timed here.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import csv
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
import sys

from dense_perception.evaluation.result_files import newest_table

Line = Mapping[str, str]
SIZES = ('480x360', '1024x512', '2048x1024')
PLAIN, INT8, BFLOAT16 = 'plain torch float32', 'openvino-int8*', 'torch-bfloat16*'
OPENVINO = 'openvino-bfloat16*'
COLUMNS = ('measure', 'at least', 'aim', 'reached', 'state', 'table')


class MissingError(Exception):
    """A figure was not measured."""


class Table:
    """What one benchmark wrote."""

    def __init__(self, path: Path | None) -> None:
        self.lines: list[dict[str, str]] = []
        if path:
            with path.open(newline='', encoding='utf-8') as file:
                self.lines = list(csv.DictReader(file))

    @property
    def title(self) -> str:
        """What it was measured on: the name of the last column, or what stands in it."""
        name, cell = list(self.lines[0].items())[-1] if self.lines else ('', 'empty')
        return cell or name

    def where(self, cells: Line) -> list[dict[str, str]]:
        """Return lines whose cells are as these patterns, in which * is anything."""
        return [
            line
            for line in self.lines
            if all(fnmatchcase(line.get(name, ''), cell) for name, cell in cells.items())
        ]

    def number(self, column: str, what: str, cells: Line) -> float:
        """
        Return a figure.

        :raises MissingError: there is no such line or column, or the cell is empty.
        """
        for line in self.where({'what': what, **cells}):
            if line.get(column):
                return float(line[column])
        raise MissingError


Read = Callable[[Table], float]


@dataclass(frozen=True)
class Unit:
    """How a figure is written, and whether it shall be large or small."""

    text: str
    digits: int
    small: bool = False


TIMES, FPS, LINES = Unit('x', 2), Unit(' fps', 1), Unit('', 0)
PERCENT, MB, SHARE = Unit(' %', 1, small=True), Unit(' MB', 0, small=True), Unit('', 4, small=True)


@dataclass(frozen=True)
class Goal:
    """A line that is printed."""

    measure: str
    kind: str  # of the table that has it
    reached: Read
    unit: Unit
    least: float | Read | None = None
    aim: float | None = None

    def cells(self, table: Table) -> list[str]:
        """Return the line."""
        try:
            reached = self.reached(table)
            least = self.least(table) if callable(self.least) else self.least
        except MissingError:
            wanted = '' if callable(self.least) else self._wanted(self.least)
            return [self.measure, wanted, self._wanted(self.aim), 'not measured', '', self.kind]
        wanted = self._wanted(least)
        shown = f'{reached:.{self.unit.digits}f}{self.unit.text}'
        state = self._state(reached, least)
        return [self.measure, wanted, self._wanted(self.aim), shown, state, self.kind]

    def _wanted(self, figure: float | None) -> str:
        return '' if figure is None else f'{figure:g}{self.unit.text}'

    def _state(self, reached: float, least: float | None) -> str:
        """Say how a figure compares; nothing where nothing was aimed at."""
        for wanted, name in ((least, 'goal'), (self.aim, 'aim')):
            if wanted is None or (reached <= wanted if self.unit.small else reached >= wanted):
                continue
            return f'short of the {name}'
        return '' if least is None and self.aim is None else 'met'


def figure(column: str, what: str, **cells: str) -> Read:
    """Return what reads a figure."""
    return lambda table: table.number(column, what, cells)


def quotient(column: str, over: str, under: str, factor: float = 1.0, **cells: str) -> Read:
    """Return what divides a figure of one line by that of another."""
    return lambda table: (
        factor * table.number(column, over, cells) / table.number(column, under, cells)
    )


def lost(table: Table) -> float:
    """Return the mean IoU that int8 loses."""
    plain, scaled = (table.number('mean IoU', what, {}) for what in (PLAIN, INT8))
    return round(plain - scaled, 6)  # they have four digits


def end_to_end(column: str, what: str, image: str, seen: str) -> Read:
    """Return what reads a figure of the node; `seen` is the size that its labels see."""
    return figure(column, what, **{'image': image, 'labels see': seen})


def over_bare(image: str, seen: str) -> Read:
    """Return what tells how much longer than its bare inference an image takes, %."""
    more = end_to_end('over bare ms', 'unloaded', image, seen)
    bare = end_to_end('p50 ms', 'bare', image, seen)
    return lambda table: 100 * more(table) / bare(table)


def overloaded(limit: str, *, kept: bool) -> Read:
    """Return what counts lines at overload: those whose age p99 keeps a limit, or all."""

    def count(table: Table) -> float:
        lines = [line for line in table.where({'what': '*overload'}) if line.get(limit)]
        if not lines:
            raise MissingError
        return sum(not kept or float(line['p99 ms']) <= float(line[limit]) for line in lines)

    return count


MEDIAN, SLOW = 'median ms', 'deconvolution, softmax, argmax'
RATED, WHOLE = 'labels: scores to labels and confidence', 'image to labels and confidence'
DILATION = 'Dilation10 in bfloat16'
OURS = 'torch-bfloat16 (ours)'
ENGINES = (
    ('engine of auto against plain torch float32', PLAIN, '*(auto)', 4, 6),
    ('int8 against torch bfloat16', BFLOAT16, INT8, 1.5, 1.8),
    ('int8 against OpenVINO bfloat16', OPENVINO, INT8, 1.5, 1.8),
)
FLOWS = (
    (way, least, f'FlowNetCorr x {width}')
    for width in ('1.0', '0.25')
    for way, least in (('in bands', 1.35), ('in bands, features kept', None))
)
NODES = (  # table, the image, how, the size that labels see, frames a second
    ('node', '480x360', 'networks as configured, which is whole', '480x360', 20, 30),
    ('node-auto', '480x360', 'the same with the engine of auto, int8', '480x360', 20, 30),
    ('node', '1024x512', 'networks as configured', '480x*', 10, 25),
    ('node-auto', '1024x512', 'the same with the engine of auto, int8', '480x*', 10, 25),
    ('node', '1024x512', 'networks at its size', '1024x512', 10, 25),
    ('node', '2048x1024', 'networks as configured', '480x*', None, None),
    ('node', '2048x1024', 'networks at its size', '2048x1024', None, None),
)
OVER_BARE = {('2048x1024', '2048x1024'): (15, 5)}  # where messages are not most of it
GOALS = (
    *(
        Goal(f'labels, {what}, {size}', 'engines', ratio, TIMES, least, aim)
        for what, slow, fast, least, aim in ENGINES
        for size in SIZES[:2]
        for ratio in (quotient(MEDIAN, slow, fast, input=size),)
    ),
    Goal('mean IoU that int8 loses, CamVid val', 'engines', lost, SHARE, 0.01, 0.003),
    *(
        Goal(f'{DILATION} against {what}', 'dilation', figure('x ours', rival), TIMES, *wanted)
        for what, rival, *wanted in (
            ('OpenVINO bfloat16', OPENVINO, 0.95, 1.25),
            ('ONNX Runtime float32', 'onnxruntime*', 1.6),
            ('OpenCV dnn float32', 'OpenCV dnn*', 3.3),
        )
    ),
    Goal(
        f'{DILATION}, distance to float32, of its norm',
        'dilation',
        figure('relative error', OURS),
        SHARE,
        0.015,
    ),
    *(
        Goal(f'{DILATION} against a matrix product, {what}', 'dilation', figure(cell, OURS), TIMES)
        for what, cell in (('medians', 'of ceiling'), ('fastest', 'of it, fastest'))
    ),
    Goal(
        'memory of the correlation, 64x128x256',
        'dilation',
        figure('extra MB', 'correlation, bands, float32'),
        MB,
        100,
    ),
    *(
        Goal(f'{name}, {way}, against a loop of shifts', 'predictors', ratio, TIMES, least, 1.7)
        for way, least, name in FLOWS
        for ratio in (quotient('p50 ms', f'{name}, shift by shift', f'{name}, {way}'),)
    ),
    *(
        Goal(f'scores to {what}, 2048x1024, against {SLOW}', 'engines', ratio, TIMES, *wanted)
        for what, *wanted in (('labels',), ('labels and confidence', 50, 100))
        for ratio in (quotient(MEDIAN, SLOW, f'fused {what}', input='2048x1024'),)
    ),
    *(
        Goal(
            f'scores to labels and confidence, share of both, {size}',
            'bench',
            share,
            PERCENT,
            5,
            2,
        )
        for size in SIZES
        for share in (quotient('p50 ms', RATED, WHOLE, 100, input=size),)
    ),
    *(
        Goal(f'node end to end, {image}, {how}', kind, rate, FPS, least, aim)
        for kind, image, how, seen, least, aim in NODES
        for rate in (end_to_end('fps', 'saturated', image, seen),)
    ),
    *(
        Goal(f'end to end over bare, {image}, {how}', kind, more, PERCENT, *wanted)
        for kind, image, how, seen, *_ in NODES
        for more in (over_bare(image, seen),)
        for wanted in (OVER_BARE.get((image, seen), ()),)
    ),
    *(
        Goal(
            f'lines at 3x overload, age p99 within 2 bare {rank} + 1 period{how}',
            kind,
            overloaded(f'limit {rank} ms', kept=True),
            LINES,
            overloaded(f'limit {rank} ms', kept=False),
        )
        for kind, how in (('node', ''), ('node-auto', ', engine of auto'))
        for rank in ('p50', 'p99')
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, in Markdown, and what machine each part is of."""
    parser = argparse.ArgumentParser(prog='goals', description=__doc__.splitlines()[1])
    folder = Path(__file__).parent
    parser.add_argument('--folder', type=Path, default=folder, help='default: beside this file')
    folder = parser.parse_args(arguments).folder
    kinds = dict.fromkeys(goal.kind for goal in GOALS)
    files = {kind: newest_table(kind, folder) for kind in kinds}
    tables = {kind: Table(path) for kind, path in files.items()}
    for cells in (COLUMNS, ['---'] * len(COLUMNS), *(g.cells(tables[g.kind]) for g in GOALS)):
        print(f'| {" | ".join(cells)} |')
    for kind, path in files.items():
        print(f'\n{kind}: {f"{path.name}, {tables[kind].title}" if path else "no table"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
