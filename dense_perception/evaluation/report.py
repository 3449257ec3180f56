"""
What an evaluation found: counts, a table of frames, and the figures that follow from them.

A report keeps counts and no means, so that reports of parts of a set merge to that of the whole
exactly, whatever the parts and their order. `report_json` writes and reads it, `report_html` shows
it, `report_comparison` sets it against others and `report_gates` against limits.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
import math
from typing import Protocol, TypeVar

from dense_perception.errors import InputError
from dense_perception.labels import LabelSet
from dense_perception.metrics.boundary import BoundaryMatches
from dense_perception.metrics.calibration import Calibration
from dense_perception.metrics.flow import FlowErrors, RegionErrors
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix, known_mean, ratio
from dense_perception.metrics.temporal import TemporalConsistency
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelCounts:
    """Pixels per class of one frame, from which its IoU and that of any set of frames follow."""

    right: tuple[int, ...]
    true: tuple[int, ...]
    predicted: tuple[int, ...]  # those of labelled pixels alone

    @classmethod
    def of(cls, matrix: ConfusionMatrix) -> 'LabelCounts':
        """Return the counts of a frame from its confusion matrix."""
        return cls(
            tuple(matrix.right.tolist()),
            tuple(matrix.counts.sum(1).tolist()),
            tuple((matrix.right + matrix.false_positives).tolist()),
        )

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class; nan for a class neither true nor predicted."""
        right = np.array(self.right)
        return ratio(right, np.array(self.true) + np.array(self.predicted) - right)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur; nan where none does."""
        return known_mean(self.iou)


@dataclass(frozen=True)
class FrameRecord:
    """One image, or one pair of images by its first, and how its labels and flow were."""

    source: str  # name of a SourceRecord
    name: str  # unique in its source
    stamp_ns: int | None = None  # of the image; None where files have no time
    labels: LabelCounts | None = None  # None without true labels
    flow: RegionErrors | None = None  # over every known pixel; None without true flow
    latency_ms: float | None = None  # from image to result; None where it was not measured

    @property
    def key(self) -> tuple[str, str]:
        """What names the frame: source and name."""
        return self.source, self.name


@dataclass(frozen=True)
class SourceRecord:
    """Where frames came from: a folder of a data set, a bag, a video."""

    name: str  # as the user gave it
    kind: str  # 'segmentation', 'flow', 'bag', 'video', ...
    topics: tuple[str, ...] = ()  # of a bag
    frames: int = 0  # evaluated


@dataclass(frozen=True, order=True)
class Problem:
    """What kept something from being evaluated, or makes a figure doubtful."""

    source: str  # file or folder
    topic: str  # empty where there is none
    message: str


@dataclass(frozen=True, order=True)
class ModelRecord:
    """Weights that were evaluated."""

    task: str  # 'segmentation' or 'flow'
    name: str  # as the user gave it: a published name or a file
    network: str  # a name in NETWORKS
    sha256: str  # of the weights file


@dataclass(frozen=True)
class SegmentationCounts:
    """
    Counts of labels against their truth; parts of a set add up (`+`).

    What one of two parts lacks is taken from the other: it then speaks of fewer images.
    """

    confusion: ConfusionMatrix
    instances: InstanceCounts | None = None  # None where objects are not told apart
    boundary: BoundaryMatches | None = None
    calibration: Calibration | None = None  # None without confidences

    def __add__(self, other: 'SegmentationCounts') -> 'SegmentationCounts':
        return SegmentationCounts(
            self.confusion + other.confusion,
            _joined(self.instances, other.instances),
            _joined(self.boundary, other.boundary),
            _joined(self.calibration, other.calibration),
        )


@dataclass(frozen=True, order=True)
class Delivery:
    """A result that went out on the robot."""

    source: str
    stamp_ns: int  # of the image
    age_ms: float  # when the result went out, minus the stamp


@dataclass(frozen=True)
class RobotRecord:
    """What became of the images of a camera that does not wait; parts of a run add up (`+`)."""

    frames_in: int = 0
    frames_dropped: int = 0  # a newer one came before their turn
    frames_bad: int = 0  # could not be used
    deliveries: tuple[Delivery, ...] = ()  # kept in the order of source and stamp
    # Labels against the truth of the moment at which they went out, not of the image's: how true
    # they are when they can be used.
    delivered: ConfusionMatrix | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'deliveries', tuple(sorted(self.deliveries)))

    def __add__(self, other: 'RobotRecord') -> 'RobotRecord':
        return RobotRecord(
            self.frames_in + other.frames_in,
            self.frames_dropped + other.frames_dropped,
            self.frames_bad + other.frames_bad,
            self.deliveries + other.deliveries,
            _joined(self.delivered, other.delivered),
        )

    @property
    def frames_out(self) -> int:
        """Images whose results went out."""
        return len(self.deliveries)


@dataclass(frozen=True)
class RunRecord:
    """What differs between two evaluations of the same: the command, the machine, the time."""

    command: str = ''  # as it can be pasted into a shell
    commit: str = ''  # of this package; empty where it is not known
    placement: str = ''  # device and number type of the networks
    machine: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ''  # ISO 8601, UTC
    wall_s: float = 0.0


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
        _joined(first.segmentation, second.segmentation),
        _joined(first.flow, second.flow),
        _joined(first.temporal, second.temporal),
        first.frames + second.frames,
        _joined(first.robot, second.robot),
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


class _Addable(Protocol):
    def __add__(self: 'Addable', other: 'Addable', /) -> 'Addable': ...


Addable = TypeVar('Addable', bound=_Addable)


def _joined(first: Addable | None, second: Addable | None) -> Addable | None:
    """Add two counts; what is not there counts as nothing."""
    if first is None or second is None:
        return first if second is None else second
    return first + second


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


def _rows(labels: LabelCounts) -> tuple[tuple[int, ...], ...]:
    return labels.right, labels.true, labels.predicted
