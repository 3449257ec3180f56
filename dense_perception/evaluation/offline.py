"""Networks on every image of a set or stream, and the figures of their results."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
import time

from dense_perception.arrays import Image
from dense_perception.data.flow import FlowFolder
from dense_perception.data.segmentation import LabelledFolder
from dense_perception.errors import InputError, SettingError
from dense_perception.evaluation.engine_use import EngineUse
from dense_perception.evaluation.report import Report
from dense_perception.evaluation.report_records import (
    FrameRecord,
    ModelRecord,
    SourceRecord,
)
from dense_perception.evaluation.scoring import BOUNDARY_PX, Problems, Result, Sample, Scorer
from dense_perception.labels import (
    LABEL_SETS,
    LabelSet,
)
from dense_perception.metrics.flow import FlowErrors
from dense_perception.predictors.engines.settings import EngineSettings
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.settings import PerceptionSettings
from dense_perception.weights.importing import hash_file
from dense_perception.weights.published import find_weights


@dataclass(frozen=True)
class Predictors:
    """The networks that are evaluated, as a node with the same settings has them."""

    segmenter: Segmenter | None
    flow_estimator: FlowEstimator | None
    models: tuple[ModelRecord, ...]
    max_flow_gap_s: float
    engines: EngineUse = field(default_factory=EngineUse, compare=False)

    @property
    def placement(self) -> str:
        """Device and number type, and engines where any was asked for."""
        parts = (self.segmenter, self.flow_estimator)
        places = ', '.join(sorted({str(part.placement) for part in parts if part is not None}))
        return '; '.join(filter(None, (places, str(self.engines))))

    def prepare_labels(self, image: Image) -> None:
        """Build the engine that labels images of this size, if one was asked for."""
        if self.segmenter is not None:
            self.engines.prepare('segmentation', self.segmenter, image)

    def prepare_flow(self, first: Image, second: Image) -> None:
        """Build the engine that estimates flow of images of this size, if one was asked for."""
        if self.flow_estimator is not None:
            self.engines.prepare('flow', self.flow_estimator, first, second)


def load_predictors(settings: PerceptionSettings) -> Predictors:
    """
    Load the networks whose weights are named.

    :raises WeightsError: a file is missing, damaged, or of another task.
    :raises SettingError: neither is named, or device, precision, engine or refinement is not to be
        had.
    :raises InputError: frames for calibration are named and cannot be used.
    """
    segmenter = flow_estimator = None
    engine = EngineSettings(
        engine=settings.engine,
        engine_cache=settings.engine_cache,
        calibration_frames=settings.calibration_frames,
    )
    models = []
    if settings.segmentation_weights:
        segmenter = Segmenter.from_file(
            find_weights(settings.segmentation_weights),
            device=settings.device,
            precision=settings.precision,
            width=settings.segmentation_width,
            refinement=settings.refinement,
            engine=engine,
        )
        models.append(_model('segmentation', settings.segmentation_weights, segmenter))
    if settings.flow_weights:
        flow_estimator = FlowEstimator.from_file(
            find_weights(settings.flow_weights),
            device=settings.device,
            precision=settings.precision,
            width=settings.flow_width,
            refinement=settings.flow_refinement,
            engine=engine,
        )
        models.append(_model('flow', settings.flow_weights, flow_estimator))
    if not models:
        raise SettingError('segmentation_weights and flow_weights are both empty; name one')
    return Predictors(
        segmenter,
        flow_estimator,
        tuple(models),
        settings.max_flow_gap_s,
        EngineUse(settings.engine),
    )


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


class StreamRunner:
    """Runs the networks on a stream as the node does that has time for every image."""

    def __init__(self, predictors: Predictors) -> None:
        self._predictors = predictors
        self._previous: Sample | None = None

    def run(self, sample: Sample) -> Result:
        """
        Return labels with confidence, and flow from the image before if it is near in time.

        :raises InputError: an image that the networks do not take.
        :raises EngineError: the engine that was asked for cannot be had.
        """
        predictors, previous = self._predictors, self._previous
        self._previous = sample
        if previous is not None and not self._continues(previous, sample):
            previous = None
        predictors.prepare_labels(sample.image)
        if previous is not None:
            predictors.prepare_flow(previous.image, sample.image)
        started = time.monotonic()
        labels = confidence = flow = None
        if predictors.segmenter is not None:
            found = predictors.segmenter.segment(sample.image, confidence=True)
            labels, confidence = found.labels, found.confidence
            predictors.engines.check('segmentation', predictors.segmenter)
        if predictors.flow_estimator is not None and previous is not None:
            flow = predictors.flow_estimator.estimate(previous.image, sample.image)
            predictors.engines.check('flow', predictors.flow_estimator)
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
        sample = Sample(frame_name(path), read.image, labels=read.labels, instances=instances)
        scorer.add(sample, runner.run(sample))
    models = tuple(model for model in predictors.models if model.task == 'segmentation')
    return replace(scorer.report(), models=models)


def frame_name(image: Path) -> str:
    """Return a name that no other image of a data set has, with folders of cities."""
    return f'{image.parent.name}/{image.stem}'


def evaluate_pairs(folder: FlowFolder, name: str, predictors: Predictors) -> Report:
    """
    Estimate the flow of every pair of a data set; one that cannot be read is a problem.

    :param name: of the data set, as the user gave it.
    :raises SettingError: no flow weights are named.
    :raises EngineError: the engine that was asked for cannot be had.
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
        predictors.prepare_flow(pair.first, pair.second)
        started = time.monotonic()
        flow = estimator.estimate(pair.first, pair.second)
        predictors.engines.check('flow', estimator)
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
