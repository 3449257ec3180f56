"""
Networks on every image of a set or stream, and the figures of their results.

`Scorer` is the one place where results become figures, whether the networks ran here or in the
node on a robot.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
import time

from dense_perception.arrays import Confidence, Flow, Image, Labels, Mask
from dense_perception.data.flow import FlowFolder
from dense_perception.data.segmentation import LabelledFolder
from dense_perception.errors import InputError, SettingError
from dense_perception.evaluation.report import (
    FrameRecord,
    LabelCounts,
    ModelRecord,
    Problem,
    Report,
    SegmentationCounts,
    SourceRecord,
)
from dense_perception.labels import (
    CITYSCAPES,
    CITYSCAPES_INSTANCE_AREA,
    conversion,
    Instances,
    LABEL_SETS,
    LabelSet,
)
from dense_perception.metrics.boundary import BoundaryMatches
from dense_perception.metrics.calibration import Calibration
from dense_perception.metrics.flow import FlowErrors
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.metrics.temporal import TemporalConsistency
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.settings import PerceptionSettings
from dense_perception.weights.importing import hash_file
from dense_perception.weights.published import find_weights
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


@dataclass(frozen=True)
class Predictors:
    """The networks that are evaluated, as a node with the same settings has them."""

    segmenter: Segmenter | None
    flow_estimator: FlowEstimator | None
    models: tuple[ModelRecord, ...]
    max_flow_gap_s: float

    @property
    def placement(self) -> str:
        """Device and number type."""
        parts = (self.segmenter, self.flow_estimator)
        return ', '.join(sorted({str(part.placement) for part in parts if part is not None}))


def load_predictors(settings: PerceptionSettings) -> Predictors:
    """
    Load the networks whose weights are named.

    :raises WeightsError: a file is missing, damaged, or of another task.
    :raises SettingError: neither is named, or device, precision or refinement is not to be had.
    """
    segmenter = flow_estimator = None
    models = []
    if settings.segmentation_weights:
        segmenter = Segmenter.from_file(
            find_weights(settings.segmentation_weights),
            device=settings.device,
            precision=settings.precision,
            width=settings.segmentation_width,
            refinement=settings.refinement,
        )
        models.append(_model('segmentation', settings.segmentation_weights, segmenter))
    if settings.flow_weights:
        flow_estimator = FlowEstimator.from_file(
            find_weights(settings.flow_weights),
            device=settings.device,
            precision=settings.precision,
            width=settings.flow_width,
            refinement=settings.flow_refinement,
        )
        models.append(_model('flow', settings.flow_weights, flow_estimator))
    if not models:
        raise SettingError('segmentation_weights and flow_weights are both empty; name one')
    return Predictors(segmenter, flow_estimator, tuple(models), settings.max_flow_gap_s)


def _model(task: str, weights: str, predictor: Segmenter | FlowEstimator) -> ModelRecord:
    return ModelRecord(task, weights, predictor.card.network, hash_file(find_weights(weights)))


def known_label_set(name: str, weights: LabelSet) -> LabelSet:
    """
    Return a label set by its name.

    :param name: of a set in `LABEL_SETS`, or of that of the weights; empty for the latter.
    :raises InputError: there is no such set.
    """
    if name in ('', weights.name):
        return weights
    if name not in LABEL_SETS:
        known = ', '.join(sorted({*LABEL_SETS, weights.name}))
        raise InputError(f'label set is {name!r}; known are {known}')
    return LABEL_SETS[name]


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


class StreamRunner:
    """Runs the networks on a stream as the node does that has time for every image."""

    def __init__(self, predictors: Predictors) -> None:
        self._predictors = predictors
        self._previous: Sample | None = None

    def run(self, sample: Sample) -> Result:
        """
        Return labels with confidence, and flow from the image before if it is near in time.

        :raises InputError: an image that the networks do not take.
        """
        started = time.monotonic()
        labels = confidence = flow = None
        if self._predictors.segmenter is not None:
            found = self._predictors.segmenter.segment(sample.image, confidence=True)
            labels, confidence = found.labels, found.confidence
        previous, self._previous = self._previous, sample
        estimator = self._predictors.flow_estimator
        if estimator is not None and previous is not None and self._continues(previous, sample):
            flow = estimator.estimate(previous.image, sample.image)
        name = previous.name if previous is not None and flow is not None else ''
        latency_ms = 1e3 * (time.monotonic() - started)
        return Result(labels, confidence, flow, name, round(latency_ms, 3))

    def _continues(self, previous: Sample, sample: Sample) -> bool:
        if previous.stamp_ns is None or sample.stamp_ns is None:
            return False
        gap_s = (sample.stamp_ns - previous.stamp_ns) / 1e9
        alike = previous.image.shape == sample.image.shape
        return alike and 0 < gap_s <= self._predictors.max_flow_gap_s


def evaluate_stream(
    samples: Iterable[Sample],
    predictors: Predictors,
    scorer: Scorer,
    keep: Callable[[Sample, Result], None] | None = None,
) -> Report:
    """
    Run the networks on every image of a stream.

    :param keep: is given every result, to record it.
    :raises InputError: an image that the networks do not take.
    """
    runner = StreamRunner(predictors)
    for sample in samples:
        result = runner.run(sample)
        scorer.add(sample, result)
        if keep is not None:
            keep(sample, result)
    return replace(scorer.report(), models=predictors.models)


def evaluate_labelled(
    folder: LabelledFolder, name: str, predictors: Predictors, *, boundary_px: float = BOUNDARY_PX
) -> Report:
    """
    Label every image of a data set; one that cannot be read is a problem, not the end.

    :param name: of the data set, as the user gave it.
    :raises SettingError: no segmentation weights are named.
    :raises InputError: labels of the weights cannot be converted to those of the data set.
    """
    if predictors.segmenter is None:
        raise SettingError('segmentation_weights are empty; images with labels need them')
    scorer = Scorer(
        SourceRecord(name, 'segmentation'),
        predictors.segmenter.label_set,
        folder.label_set,
        boundary_px=boundary_px,
    )
    runner = StreamRunner(replace(predictors, flow_estimator=None))
    for index, (path, _) in enumerate(folder.pairs):
        try:
            read = folder[index]
            instances = folder.instances(index) if folder.read_instances else None
        except InputError as error:
            scorer.problems.add(name, '', str(error), str(error))
            continue
        sample = Sample(_name(path), read.image, labels=read.labels, instances=instances)
        scorer.add(sample, runner.run(sample))
    models = tuple(model for model in predictors.models if model.task == 'segmentation')
    return replace(scorer.report(), models=models)


def _name(image: Path) -> str:
    """Return a name that no other image of a data set has, with folders of cities."""
    return f'{image.parent.name}/{image.stem}'


def evaluate_pairs(folder: FlowFolder, name: str, predictors: Predictors) -> Report:
    """
    Estimate the flow of every pair of a data set; one that cannot be read is a problem.

    :param name: of the data set, as the user gave it.
    :raises SettingError: no flow weights are named.
    """
    estimator = predictors.flow_estimator
    if estimator is None:
        raise SettingError('flow_weights are empty; pairs with flow need them')
    total, problems, frames = FlowErrors(), Problems(), []
    for index in range(len(folder)):
        try:
            pair = folder[index]
        except InputError as error:
            problems.add(name, '', str(error), str(error))
            continue
        started = time.monotonic()
        flow = estimator.estimate(pair.first, pair.second)
        latency_ms = round(1e3 * (time.monotonic() - started), 3)
        errors = FlowErrors()
        errors.add(flow, pair.flow, pair.valid, pair.occluded)
        total += errors
        frames.append(FrameRecord(name, pair.name, flow=errors['all'], latency_ms=latency_ms))
    return Report(
        models=tuple(model for model in predictors.models if model.task == 'flow'),
        sources=(SourceRecord(name, 'flow', frames=len(frames)),),
        problems=problems.found(),
        flow=total if frames else None,
        frames=tuple(frames),
    )
