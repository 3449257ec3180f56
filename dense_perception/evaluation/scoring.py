"""
Comparing results with truth, image by image.

`Scorer` is the one place where results become figures, whether the networks ran here or in the
node on a robot.
"""

from dataclasses import dataclass, field, replace

from dense_perception.arrays import Confidence, Flow, Image, Labels, Mask
from dense_perception.evaluation.report import Report
from dense_perception.evaluation.report_records import (
    FrameRecord,
    LabelCounts,
    Problem,
    SegmentationCounts,
    SourceRecord,
)
from dense_perception.labels import (
    CITYSCAPES,
    CITYSCAPES_INSTANCE_AREA,
    conversion,
    Instances,
    LabelSet,
)
from dense_perception.metrics.boundary import BoundaryMatches
from dense_perception.metrics.calibration import Calibration
from dense_perception.metrics.flow import FlowErrors
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.metrics.temporal import TemporalConsistency
import numpy as np
from numpy.typing import NDArray

BOUNDARY_PX = 3.0  # how far a boundary may lie from the true one


@dataclass(frozen=True)
class TrueFlow:
    """Flow from the image before to an image, on the grid of the image before."""

    flow: Flow
    valid: Mask  # where it is known
    occluded: Mask | None = None  # None where that is not known


@dataclass(frozen=True)
class Sample:
    """One image of a set or stream and what is known of it."""

    name: str
    image: Image
    stamp_ns: int | None = None
    labels: Labels | None = None
    instances: Instances | None = None
    flow: TrueFlow | None = None


@dataclass(frozen=True)
class Result:
    """What the networks made of one image."""

    labels: Labels | None = None  # in the classes of the weights
    confidence: Confidence | None = None
    flow: Flow | None = None  # from the image before
    previous: str = ''  # name of the image before
    latency_ms: float | None = None


class Scorer:
    """Compares results of one source, image by image in order, with what is known of them."""

    def __init__(
        self,
        source: SourceRecord,
        predicted: LabelSet | None,
        compared: LabelSet | None,
        *,
        boundary_px: float = BOUNDARY_PX,
    ) -> None:
        """
        Begin to count.

        :param predicted: the classes of the weights; None where nothing is labelled.
        :param compared: the classes of the truth.
        :raises InputError: the one cannot be converted to the other.
        """
        self.source = source
        self.label_set = compared if predicted else None
        self._table: NDArray[np.uint8] | None = None
        self._flow: FlowErrors | None = None
        self._counts: SegmentationCounts | None = None
        self._temporal: TemporalConsistency | None = None
        if predicted and compared:
            self._table = conversion(predicted, compared)
        self._boundary_px = boundary_px
        self._frames: list[FrameRecord] = []
        self._last_name = ''  # of the image before, the last in `frames`
        self._last_labels: Labels | None = None
        self._problems = Problems()

    @property
    def problems(self) -> 'Problems':
        """What kept images from being compared."""
        return self._problems

    def converted(self, labels: Labels) -> Labels:
        """Return predicted labels in the classes of the truth."""
        assert self._table is not None
        return self._table[labels]

    def add(self, sample: Sample, result: Result | None) -> None:
        """
        Count one image.

        :param sample: in the order of the stream.
        :param result: None where the image was left out; labels and flow then have no successor.
        """
        record = FrameRecord(
            self.source.name,
            sample.name,
            sample.stamp_ns,
            latency_ms=result.latency_ms if result else None,
        )
        labels = None
        if result and result.labels is not None and self._table is not None:
            labels = self.converted(result.labels)
            if sample.labels is not None:
                counts = self._compared(sample, labels, result.confidence)
                record = replace(record, labels=counts)
        if result and result.flow is not None and result.previous == self._last_name:
            self._add_flow(sample, result.flow, labels)
        self._frames.append(record)
        self._last_name, self._last_labels = sample.name, labels

    def report(self) -> Report:
        """Return what was found so far; frames without a figure of their own count, too."""
        source = replace(self.source, frames=len(self._frames))
        return Report(
            self.label_set,
            sources=(source,),
            problems=self._problems.found(),
            segmentation=self._counts,
            flow=self._flow,
            temporal=self._temporal,
            frames=tuple(self._frames),
        )

    def _compared(
        self, sample: Sample, labels: Labels, confidence: Confidence | None
    ) -> LabelCounts:
        """Count labels against their truth; returns the counts of this image."""
        assert self.label_set is not None
        assert sample.labels is not None
        classes = len(self.label_set)
        if self._counts is None:
            self._counts = SegmentationCounts(
                ConfusionMatrix(classes), boundary=BoundaryMatches(classes, self._boundary_px)
            )
        matrix = ConfusionMatrix(classes)
        matrix.add(labels, sample.labels)
        counts = self._counts
        assert counts.boundary is not None
        counts.boundary.add(labels, sample.labels)
        calibration, instances = counts.calibration, counts.instances
        if confidence is not None:
            calibration = calibration or Calibration(classes)
            calibration.add(labels, confidence, sample.labels)
        if sample.instances is not None and self.label_set == CITYSCAPES:
            instances = instances or InstanceCounts(CITYSCAPES, CITYSCAPES_INSTANCE_AREA)
            instances.add(labels, sample.instances)
        self._counts = SegmentationCounts(
            counts.confusion + matrix, instances, counts.boundary, calibration
        )
        return LabelCounts.of(matrix)

    def _add_flow(self, sample: Sample, flow: Flow, labels: Labels | None) -> None:
        """
        Count flow from the image before, and labels along it.

        Labels are followed along the true flow where it is known, without what it hides, and else
        along the estimated one.
        """
        truth = sample.flow
        visible = np.ones(flow.shape[:2], bool)
        if truth is not None:
            errors = FlowErrors()
            errors.add(flow, truth.flow, truth.valid, truth.occluded)
            self._flow = errors if self._flow is None else self._flow + errors
            self._frames[-1] = replace(self._frames[-1], flow=errors['all'])
            flow, visible = truth.flow, truth.valid
            if truth.occluded is not None:
                visible = visible & ~truth.occluded
        if labels is not None and self._last_labels is not None and self.label_set is not None:
            self._temporal = self._temporal or TemporalConsistency(len(self.label_set))
            self._temporal.add(self._last_labels, labels, flow, visible)


@dataclass
class Problems:
    """Problems of one kind told once, with how often they were met."""

    _met: dict[tuple[str, str, str], tuple[str, int]] = field(default_factory=dict)

    def add(self, source: str, topic: str, kind: str, message: str) -> None:
        """
        Note a problem.

        :param kind: what problems have in common of which only the first is told.
        """
        first, count = self._met.get((source, topic, kind), (message, 0))
        self._met[source, topic, kind] = first, count + 1

    def found(self) -> tuple[Problem, ...]:
        """Return the problems."""
        return tuple(
            Problem(source, topic, message if count == 1 else f'{message} ({count} times)')
            for (source, topic, _), (message, count) in self._met.items()
        )
