"""The records of which a report is made: counts and tables, and no means."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from dense_perception.metrics.boundary import BoundaryMatches
from dense_perception.metrics.calibration import Calibration
from dense_perception.metrics.flow import RegionErrors
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix, known_mean, ratio
import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 2**32 - 1  # of a frame


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """
    Pixels per class of one frame, from which its IoU and that of any set of frames follow.

    A report keeps them of every frame, so they are stored as four bytes each.
    """

    right: Sequence[int]
    true: Sequence[int]
    predicted: Sequence[int]  # those of labelled pixels alone

    def __post_init__(self) -> None:
        for name in ('right', 'true', 'predicted'):
            object.__setattr__(self, name, array('I', getattr(self, name)))

    @classmethod
    def of(cls, matrix: ConfusionMatrix) -> 'LabelCounts':
        """Return the counts of a frame from its confusion matrix."""
        return cls(
            matrix.right.tolist(),
            matrix.counts.sum(1).tolist(),
            (matrix.right + matrix.false_positives).tolist(),
        )

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class; nan for a class neither true nor predicted."""
        right, true, predicted = (
            np.array(row, np.int64) for row in (self.right, self.true, self.predicted)
        )
        return ratio(right, true + predicted - right)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur; nan where none does."""
        return known_mean(self.iou)


@dataclass(frozen=True, slots=True)
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
            joined(self.instances, other.instances),
            joined(self.boundary, other.boundary),
            joined(self.calibration, other.calibration),
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
            joined(self.delivered, other.delivered),
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


class _Addable(Protocol):
    def __add__(self: 'Addable', other: 'Addable', /) -> 'Addable': ...


Addable = TypeVar('Addable', bound=_Addable)


def joined(first: Addable | None, second: Addable | None) -> Addable | None:
    """Add two counts; what is not there counts as nothing."""
    if first is None or second is None:
        return first if second is None else second
    return first + second
