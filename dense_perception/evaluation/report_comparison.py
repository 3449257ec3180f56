"""Reports of the same frames against each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dense_perception.errors import InputError
from dense_perception.evaluation.bootstrap import block_length, bootstrap, Interval
from dense_perception.evaluation.report import FIGURES, Report
from dense_perception.evaluation.report_records import FrameRecord
from dense_perception.metrics.segmentation import ratio
import numpy as np
from numpy.typing import NDArray

Pairs = Sequence[tuple[FrameRecord, FrameRecord]]
_Value = Callable[[NDArray[np.int64]], NDArray[np.float64]]  # as bootstrap.Statistic


@dataclass(frozen=True)
class Difference:
    """One figure of a report and a baseline over the frames that both have."""

    name: str  # in FIGURES
    value: float
    baseline: float
    difference: Interval  # of value minus baseline
    frames: int
    block: int  # consecutive frames that were drawn together

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval leaves out 0, else `not clear`."""
        if not (self.difference.low > 0 or self.difference.high < 0):
            return 'not clear'
        higher = self.difference.value > 0
        return 'better' if higher == FIGURES[self.name].higher_is_better else 'worse'


@dataclass(frozen=True)
class Comparison:
    """A report against a baseline."""

    name: str  # of the baseline
    baseline: Report
    differences: tuple[Difference, ...]


def compare(
    report: Report, baseline: Report, name: str, *, block: int = 0, seed: int = 0
) -> Comparison:
    """
    Compare mean IoU and end-point error over the frames that two reports share.

    :param name: of the baseline, such as its file.
    :param block: frames that the bootstrap draws together; 0 chooses, see `bootstrap`.
    :raises InputError: they share no frame with truth, or their label sets differ.
    :raises SettingError: the block is longer than there are frames.
    """
    others = {frame.key: frame for frame in baseline.frames}
    pairs = [(frame, others[frame.key]) for frame in report.frames if frame.key in others]
    labelled = [(ours, theirs) for ours, theirs in pairs if ours.labels and theirs.labels]
    moving = [(ours, theirs) for ours, theirs in pairs if ours.flow and theirs.flow]
    if not labelled and not moving:
        raise InputError(
            f'{name} has no frame in common with the report; its sources are '
            f'{_source_names(baseline)}, those of the report {_source_names(report)}'
        )
    if labelled and report.label_set != baseline.label_set:
        sets = [entry.label_set.name for entry in (report, baseline) if entry.label_set]
        raise InputError(f'{name}: label sets differ: {" and ".join(sets)}')
    found = []
    for figure, shared, value_of in (('mean_iou', labelled, _mean_iou), ('epe', moving, _epe)):
        if shared:
            ours = value_of([pair[0] for pair in shared])
            theirs = value_of([pair[1] for pair in shared])
            found.append(_difference(figure, ours, theirs, len(shared), block, seed))
    return Comparison(name, baseline, tuple(found))


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Return the differences as lines of text, for a terminal."""
    head = ('baseline', 'figure', 'here', 'there', 'difference', '95 % interval', '', 'frames')
    rows = [head]
    for comparison in comparisons:
        for entry in comparison.differences:
            figure, interval = FIGURES[entry.name], entry.difference
            rows.append(
                (
                    comparison.name,
                    figure.title,
                    figure.text(entry.value),
                    figure.text(entry.baseline),
                    figure.text(interval.value, signed=True),
                    f'{figure.text(interval.low, signed=True)} to '
                    f'{figure.text(interval.high, signed=True)}',
                    entry.verdict,
                    str(entry.frames),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return '\n'.join(lines)


def _difference(
    name: str, ours: _Value, theirs: _Value, frames: int, block: int, seed: int
) -> Difference:
    whole = np.ones((1, frames), np.int64)
    return Difference(
        name,
        float(ours(whole)[0]),
        float(theirs(whole)[0]),
        bootstrap(lambda weights: ours(weights) - theirs(weights), frames, block=block, seed=seed),
        frames,
        block or block_length(frames),
    )


def _mean_iou(frames: Sequence[FrameRecord]) -> _Value:
    """Return the function from how often each frame counts to the mean IoU over them."""
    counts = [frame.labels for frame in frames if frame.labels]
    right, true, predicted = (
        np.array([getattr(entry, name) for entry in counts], np.float64)  # exact up to 2**53
        for name in ('right', 'true', 'predicted')
    )

    def value(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        inside = weights @ right  # (draws, classes)
        iou = ratio(inside, weights @ (true + predicted) - inside)
        known = ~np.isnan(iou)
        return ratio(np.where(known, iou, 0).sum(1), known.sum(1))

    return value


def _epe(frames: Sequence[FrameRecord]) -> _Value:
    """Return the function from how often each frame counts to the error over their pixels."""
    errors = [frame.flow for frame in frames if frame.flow]
    pixels = np.array([entry.count for entry in errors], np.float64)
    distance = np.array([entry.distance.mean(1) for entry in errors])
    return lambda weights: ratio(weights @ distance, weights @ pixels)


def _source_names(report: Report) -> str:
    return ', '.join(sorted({frame.source for frame in report.frames})) or 'none'
