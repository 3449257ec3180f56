"""
What an evaluation found: counts, a table of frames, and the figures that follow from them.

A report keeps counts and no means, so that reports of parts of a set merge to that of the whole
exactly, whatever the parts and their order. `report_json` writes and reads it, `report_html` shows
it, `report_comparison` sets it against others and `report_gates` against limits.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
import math

from dense_perception.errors import InputError
from dense_perception.evaluation.report_records import (
    FrameRecord,
    joined,
    LabelCounts,
    ModelRecord,
    Problem,
    RobotRecord,
    RunRecord,
    SegmentationCounts,
    SourceRecord,
)
from dense_perception.labels import LabelSet
from dense_perception.metrics.flow import FlowErrors, RegionErrors
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix, known_mean
from dense_perception.metrics.temporal import TemporalConsistency
import numpy as np


@dataclass(frozen=True)
class Report:
    """
    Everything that an evaluation found.

    Frames are kept in the order of source, stamp and name.
    """

    label_set: LabelSet | None = None
    models: tuple[ModelRecord, ...] = ()
    sources: tuple[SourceRecord, ...] = ()
    problems: tuple[Problem, ...] = ()
    segmentation: SegmentationCounts | None = None
    flow: FlowErrors | None = None
    temporal: TemporalConsistency | None = None
    frames: tuple[FrameRecord, ...] = ()
    robot: RobotRecord | None = None
    run: RunRecord = RunRecord()

    def __post_init__(self) -> None:
        """
        Bring the tables into order.

        :raises InputError: two frames have one name, or the counts are of another label set.
        """
        frames = sorted(self.frames, key=_frame_order)
        seen: set[tuple[str, str]] = set()
        for frame in frames:
            if frame.key in seen:
                raise InputError(f'{frame.source}: frame {frame.name} is there twice')
            seen.add(frame.key)
        object.__setattr__(self, 'frames', tuple(frames))
        object.__setattr__(self, 'models', tuple(sorted(set(self.models))))
        object.__setattr__(self, 'problems', tuple(sorted(set(self.problems))))
        object.__setattr__(self, 'sources', _merged_sources(self.sources))
        self._check_classes()

    def _check_classes(self) -> None:
        classes = len(self.label_set) if self.label_set else 0
        name = self.label_set.name if self.label_set else 'no label set'
        if self.segmentation and self.segmentation.confusion.classes != classes:
            found = self.segmentation.confusion.classes
            raise InputError(f'confusion matrix of {found} classes; {name} has {classes}')
        for frame in self.frames:
            if frame.labels and {len(row) for row in _rows(frame.labels)} != {classes}:
                raise InputError(
                    f'{frame.source}: frame {frame.name} has counts of {len(frame.labels.right)} '
                    f'classes; {name} has {classes}'
                )

    def figures(self) -> dict[str, float]:
        """Return the headline figures by name, those that are there; see FIGURES."""
        values = {name: figure.of(self) for name, figure in FIGURES.items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}


def merge(reports: Iterable[Report], run: RunRecord | None = None) -> Report:
    """
    Join reports of parts of a set: the result is that of the whole.

    :param run: how the whole was run; None takes the first part's record.
    :raises InputError: the parts are of different weights or label sets, or share a frame.
    """
    total: Report | None = None
    for report in reports:
        total = report if total is None else _sum(total, report)
    if total is None:
        raise InputError('no reports to merge; at least one is needed')
    return total if run is None else replace(total, run=run)


def _sum(first: Report, second: Report) -> Report:
    if first.label_set and second.label_set and first.label_set != second.label_set:
        raise InputError(
            f'reports in {first.label_set.name} and {second.label_set.name} do not merge; '
            'they must have one label set'
        )
    for task in ('segmentation', 'flow'):
        hashes = [
            {model.sha256 for model in report.models if model.task == task}
            for report in (first, second)
        ]
        if all(hashes) and hashes[0] != hashes[1]:
            names = ' and '.join(' '.join(sorted(part)) for part in hashes)
            raise InputError(f'reports of different {task} weights do not merge: SHA-256 {names}')
    return Report(
        first.label_set or second.label_set,
        first.models + second.models,
        first.sources + second.sources,
        first.problems + second.problems,
        joined(first.segmentation, second.segmentation),
        joined(first.flow, second.flow),
        joined(first.temporal, second.temporal),
        first.frames + second.frames,
        joined(first.robot, second.robot),
        first.run,
    )


@dataclass(frozen=True)
class Figure:
    """A headline figure."""

    title: str
    group: str  # 'Labels', 'Flow', 'Time' or 'Robot'
    unit: str  # '%' for a share, 'px', 'deg', 'ms', 'frames'
    of: Callable[[Report], float]  # nan where the report does not have it
    higher_is_better: bool = True
    # Counted, not clocked: the same in every run of the same weights on the same data.
    repeatable: bool = True

    def text(self, value: float, *, signed: bool = False) -> str:
        """
        Return a value with its unit, as people read it; a dash for nan.

        :param signed: for a difference of two values; that of shares is in percentage points.
        """
        if math.isnan(value):
            return '–'
        sign = '+' if signed else ''
        if self.unit == 'frames':
            return f'{value:{sign}.0f}'
        if self.unit == '%':
            return f'{100 * value:{sign}.2f} {"pp" if signed else "%"}'
        digits = 1 if self.unit == 'ms' else 2
        return f'{value:{sign}.{digits}f} {self.unit}'


def _segmentation(value: Callable[[SegmentationCounts], float]) -> Callable[[Report], float]:
    return lambda report: value(report.segmentation) if report.segmentation else math.nan


def _category_iou(report: Report) -> float:
    categories = report.label_set.categories if report.label_set else {}
    if not report.segmentation or not categories:
        return math.nan
    return report.segmentation.confusion.grouped(list(categories.values())).mean_iou


def _instances(
    value: Callable[[InstanceCounts], Callable[[ConfusionMatrix], dict[str, float]]],
) -> Callable[[Report], float]:
    """Return the mean over classes, or categories, of an instance-weighted IoU."""

    def figure(counts: SegmentationCounts) -> float:
        if counts.instances is None:
            return math.nan
        return known_mean(np.array([*value(counts.instances)(counts.confusion).values()]))

    return _segmentation(figure)


def _flow(region: str, value: Callable[[RegionErrors], float]) -> Callable[[Report], float]:
    return lambda report: value(report.flow[region]) if report.flow else math.nan


def _robot(value: Callable[[RobotRecord], float]) -> Callable[[Report], float]:
    return lambda report: value(report.robot) if report.robot else math.nan


def _delivered(value: Callable[[ConfusionMatrix], float]) -> Callable[[Report], float]:
    return _robot(lambda robot: value(robot.delivered) if robot.delivered else math.nan)


def _latency(rank: int) -> Callable[[Report], float]:
    return lambda report: percentile(
        [frame.latency_ms for frame in report.frames if frame.latency_ms is not None], rank
    )


def _age(rank: int) -> Callable[[Report], float]:
    return _robot(lambda robot: percentile([result.age_ms for result in robot.deliveries], rank))


def percentile(values: Iterable[float], rank: int) -> float:
    """Return a percentile; nan of nothing."""
    known = list(values)
    return float(np.percentile(known, rank)) if known else math.nan


# The names are those of gates and of the JSON.
FIGURES: dict[str, Figure] = {
    'mean_iou': Figure('mean IoU', 'Labels', '%', _segmentation(lambda c: c.confusion.mean_iou)),
    'category_iou': Figure('category IoU', 'Labels', '%', _category_iou),
    'instance_iou': Figure('iIoU', 'Labels', '%', _instances(lambda counts: counts.iou)),
    'category_instance_iou': Figure(
        'category iIoU', 'Labels', '%', _instances(lambda counts: counts.category_iou)
    ),
    'pixel_accuracy': Figure(
        'pixel accuracy', 'Labels', '%', _segmentation(lambda c: c.confusion.pixel_accuracy)
    ),
    'mean_accuracy': Figure(
        'mean accuracy', 'Labels', '%', _segmentation(lambda c: c.confusion.mean_accuracy)
    ),
    'frequency_weighted_iou': Figure(
        'frequency-weighted IoU',
        'Labels',
        '%',
        _segmentation(lambda c: c.confusion.frequency_weighted_iou),
    ),
    'boundary_f_measure': Figure(
        'boundary F-measure',
        'Labels',
        '%',
        _segmentation(lambda c: c.boundary.mean_f_measure if c.boundary else math.nan),
    ),
    'calibration_error': Figure(
        'expected calibration error',
        'Labels',
        '%',
        _segmentation(lambda c: c.calibration.expected_error() if c.calibration else math.nan),
        higher_is_better=False,
    ),
    'temporal_consistency': Figure(
        'temporal consistency',
        'Labels',
        '%',
        lambda report: report.temporal.share if report.temporal else math.nan,
    ),
    'temporal_mean_iou': Figure(
        'temporal mean IoU',
        'Labels',
        '%',
        lambda report: report.temporal.mean_iou if report.temporal else math.nan,
    ),
    **{
        name: Figure(title, 'Flow', 'px', _flow(region, lambda e: e.end_point_error_px), False)
        for name, title, region in (
            ('epe', 'EPE', 'all'),
            ('epe_noc', 'EPE, visible', 'noc'),
            ('epe_occ', 'EPE, occluded', 'occ'),
            ('epe_s0_10', 'EPE, below 10 px', 's0-10'),
            ('epe_s10_40', 'EPE, 10 to 40 px', 's10-40'),
            ('epe_s40', 'EPE, above 40 px', 's40+'),
        )
    },
    'fl': Figure('Fl outliers', 'Flow', '%', _flow('all', lambda e: e.outlier_share), False),
    'angular_error': Figure(
        'angular error', 'Flow', 'deg', _flow('all', lambda e: e.angular_error_deg), False
    ),
    **{
        f'latency_p{rank}': Figure(
            f'latency p{rank}', 'Time', 'ms', _latency(rank), False, repeatable=False
        )
        for rank in (50, 95, 99)
    },
    **{
        name: Figure(title, 'Robot', 'frames', _robot(value), better, repeatable=False)
        for name, title, value, better in (
            ('frames_in', 'frames in', lambda robot: robot.frames_in, True),
            ('frames_out', 'frames out', lambda robot: robot.frames_out, True),
            ('frames_dropped', 'frames dropped', lambda robot: robot.frames_dropped, False),
            ('frames_bad', 'frames bad', lambda robot: robot.frames_bad, False),
        )
    },
    **{
        f'age_p{rank}': Figure(f'age p{rank}', 'Robot', 'ms', _age(rank), False, repeatable=False)
        for rank in (50, 95, 99)
    },
    'delivered_mean_iou': Figure(
        'mean IoU on delivery',
        'Robot',
        '%',
        _delivered(lambda matrix: matrix.mean_iou),
        repeatable=False,
    ),
    'delivered_pixel_accuracy': Figure(
        'pixel accuracy on delivery',
        'Robot',
        '%',
        _delivered(lambda matrix: matrix.pixel_accuracy),
        repeatable=False,
    ),
}


def _merged_sources(sources: Iterable[SourceRecord]) -> tuple[SourceRecord, ...]:
    """Add up the records of the parts of each source."""
    found: dict[tuple[str, str], SourceRecord] = {}
    for source in sources:
        known = found.get((source.name, source.kind), replace(source, frames=0))
        found[source.name, source.kind] = replace(
            known,
            frames=known.frames + source.frames,
            topics=tuple(sorted({*known.topics, *source.topics})),
        )
    return tuple(found[key] for key in sorted(found))


def _frame_order(frame: FrameRecord) -> tuple[str, int, str]:
    return frame.source, -1 if frame.stamp_ns is None else frame.stamp_ns, frame.name


def _rows(labels: LabelCounts) -> tuple[Sequence[int], ...]:
    return labels.right, labels.true, labels.predicted
