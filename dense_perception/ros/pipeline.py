"""The networks of a configured node."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
import time

from dense_perception.arrays import Image
from dense_perception.errors import SettingError
from dense_perception.networks.frontend import STRIDE
from dense_perception.predictors.choice import (
    Choice,
    choose_network,
    FLOW,
    PROPOSALS,
    SEGMENTATION,
    Task,
)
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.engines.settings import EngineSettings
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.keyframes import carry_labels
from dense_perception.predictors.latency import Deadline, LADDER, rung_times
from dense_perception.predictors.mask_proposer import MaskProposer
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.calibration_bags import read_calibration_bags
from dense_perception.settings import PerceptionSettings
import numpy as np

_WARM_UP_RUNS = 3  # the first runs allocate and choose kernels
_WARM_UP_S = 5.0  # after which none is begun, for networks that take that long
_MEASURED_RUNS = 5  # of each network and size
_MEASURING_S = 2.0  # after which none is begun

Predictor = Segmenter | FlowEstimator | MaskProposer


@dataclass
class Pipeline:
    """What exists only while the node is configured."""

    settings: PerceptionSettings
    segmenter: Segmenter | None = None
    flow_estimator: FlowEstimator | None = None
    mask_proposer: MaskProposer | None = None
    choices: dict[str, Choice] = field(default_factory=dict)  # by the name of the task
    # Of labels; None where no limit is set, until memory is short.
    deadline: Deadline | None = None
    late: str = ''  # why results come too late nevertheless; the inference says so
    camera_width: int = 0  # columns of the narrowest image at work; the inference says so

    @property
    def waits_for_engine(self) -> str:
        """What is told of an engine for which images wait while it is built; empty: none."""
        for name, predictor in (('segmentation', self.segmenter), ('flow', self.flow_estimator)):
            if predictor is not None and predictor.waits_for_engine:
                return f'{name}: {predictor.engine_note}'
        return ''

    def predictors(self) -> dict[str, Predictor]:
        """Return the networks that are not switched off."""
        every = {
            'segmentation': self.segmenter,
            'flow': self.flow_estimator,
            'proposal': self.mask_proposer,
        }
        return {name: predictor for name, predictor in every.items() if predictor is not None}

    @property
    def keyframe_interval(self) -> int:
        """Every how many images the network labels one, at present."""
        interval = self.settings.keyframe_interval
        return max(interval, self.deadline.rung.keyframe_interval) if self.deadline else interval

    @property
    def labelling_width(self) -> int:
        """Columns of the network that labels, at present; 0: those of the image."""
        width = self.settings.segmentation_width
        if self.deadline is None or self.deadline.rung.scale == 1:
            return width  # 0 stays 0, for cameras of several sizes
        return _scaled(width or self.camera_width, self.deadline.rung.scale)

    def untrained(self) -> list[str]:
        """Return the networks whose weights are random, as they are told to people."""
        return [
            f'{task} network {choice.card.network}'
            for task, choice in self.choices.items()
            if not choice.trained
        ]


def load_pipeline(settings: PerceptionSettings, tell: Callable[[str], None]) -> Pipeline:
    """
    Load the networks that are not switched off, or build those that have no weights.

    :param tell: receives what becomes of an engine, from any thread.
    :raises WeightsError: a file is missing, damaged, or of another network than is asked for.
    :raises SettingError: all are switched off, one both is and is asked for, there is no network
        or engine of a name, or device or precision is not to be had.
    :raises InputError: frames for calibration are missing, or there are too few.
    """
    placement = choose_placement(settings.device, settings.precision)
    read_calibration_bags()
    engine = EngineSettings(
        engine=settings.engine,
        engine_cache=settings.engine_cache,
        calibration_frames=settings.calibration_frames,
    )
    choices = _choices(settings)
    pipeline = Pipeline(settings, choices=choices, deadline=_deadline(settings, choices))
    if labels := choices.get('segmentation'):
        pipeline.segmenter = Segmenter(
            labels.network,
            replace(labels.card, tile=None),  # tiles are for the published figures, and slow
            placement,
            width=settings.segmentation_width,
            refinement=settings.refinement,
            engine=engine,
            tell=lambda note: tell(f'segmentation: {note}'),
        )
    if flow := choices.get('flow'):
        pipeline.flow_estimator = FlowEstimator(
            flow.network,
            flow.card,
            placement,
            width=settings.flow_width,
            refinement=settings.flow_refinement,
            engine=engine,
            tell=lambda note: tell(f'flow: {note}'),
        )
    if proposals := choices.get('proposal'):
        pipeline.mask_proposer = MaskProposer(
            proposals.network, proposals.card, placement, width=settings.proposal_width
        )
    return pipeline


def _deadline(settings: PerceptionSettings, choices: Mapping[str, Choice]) -> Deadline | None:
    """
    Return what holds the limit of age.

    :raises SettingError: what it, or carrying labels along flow, needs is switched off.
    """
    if settings.keyframe_interval > 1 and not {'segmentation', 'flow'} <= set(choices):
        raise SettingError(
            f'keyframe_interval is {settings.keyframe_interval}, but there are no labels or no '
            'flow to carry them along; leave it 1 or name weights of both'
        )
    if not settings.max_latency_ms:
        return None
    if 'segmentation' not in choices or not settings.segmentation_width:
        raise SettingError(
            f'max_latency_ms is {settings.max_latency_ms:g}, which needs labels and a '
            'segmentation_width to reduce'
        )
    ladder = [rung for rung in LADDER if rung.keyframe_interval == 1 or 'flow' in choices]
    return Deadline(settings.max_latency_ms / 1000, ladder)


def _choices(settings: PerceptionSettings) -> dict[str, Choice]:
    """Choose the networks that are not switched off."""
    choices = {
        SEGMENTATION.name: _chosen(
            SEGMENTATION, settings.segmentation_network, settings.segmentation_weights
        ),
        FLOW.name: _chosen(FLOW, settings.flow_network, settings.flow_weights),
        PROPOSALS.name: None,
    }
    if settings.proposal_network:
        choices[PROPOSALS.name] = choose_network(
            PROPOSALS, settings.proposal_network, settings.proposal_weights
        )
    elif settings.proposal_weights:
        raise SettingError('proposal_weights are given, but proposal_network is empty')
    if not any(choices.values()):
        raise SettingError(
            'segmentation_weights and flow_weights are both empty, and so is proposal_network; '
            'one of them must name something'
        )
    return {name: choice for name, choice in choices.items() if choice is not None}


def _chosen(task: Task, network: str, weights: str) -> Choice | None:
    """Return the network of a task that empty weights switch off."""
    if weights:
        return choose_network(task, network, weights)
    if network:
        raise SettingError(
            f'{task.name}_network is {network!r}, but {task.name}_weights are empty, which '
            f'switches it off; leave them {task.default_weights!r} or name a file'
        )
    return None


def prepare_engines(pipeline: Pipeline) -> None:
    """
    Build the engines for the size of images that the settings name, if they do.

    Where there is a limit of age, also for the smaller inputs that it may choose: in torch, these
    may take longer than the largest in an engine.

    :raises InputError: a frame for calibration cannot be read.
    """
    if not pipeline.settings.engine_image_size:
        return
    columns, rows = pipeline.settings.engine_image_size
    if pipeline.segmenter is not None:
        for _ in _scales(pipeline, pipeline.segmenter):
            pipeline.segmenter.prepare_for((columns, rows))
    if pipeline.flow_estimator is not None:
        pipeline.flow_estimator.prepare_for((columns, rows))


def _scales(pipeline: Pipeline, segmenter: Segmenter) -> Iterator[float]:
    """Have the network that labels take inputs of each scale that a limit of age may choose."""
    ladder = pipeline.deadline.ladder if pipeline.deadline else LADDER[:1]
    width = segmenter.width
    # The largest last, which stays and is told as the newest.
    for scale in sorted({rung.scale for rung in ladder}):
        segmenter.width = _scaled(width, scale)
        yield scale


def warm_up(pipeline: Pipeline) -> None:
    """
    Run each network a few times on an empty image of its usual size.

    Where there is a limit of age, also measure what labels take on each rung: of one image, and
    without confidence. Where the settings do not name the size of images, it is one of four by
    three, as wide as the widest input. Of other images, or of several, labels take longer by about
    the same factor on each rung, and it is by the ratios that rungs are chosen once there are
    images. Engines that are built later change the ratios, too; ages tell.
    """
    _run_all(pipeline)
    if pipeline.deadline is not None:
        pipeline.deadline = _measured(pipeline, pipeline.deadline)


def _run_all(pipeline: Pipeline) -> None:
    settings = pipeline.settings
    size = settings.engine_image_size
    deadline = time.monotonic() + _WARM_UP_S
    for _ in range(_WARM_UP_RUNS):
        if pipeline.segmenter is not None:
            image = _blank(settings.segmentation_width, size)
            pipeline.segmenter.segment(image, confidence=True)
        if pipeline.flow_estimator is not None:
            image = _blank(settings.flow_width, size)
            pipeline.flow_estimator.estimate(image, image)
        if pipeline.mask_proposer is not None:
            pipeline.mask_proposer.propose(_blank(settings.proposal_width, size))
        if time.monotonic() > deadline:
            return


def _measured(pipeline: Pipeline, deadline: Deadline) -> Deadline:
    """Return a limit that knows what labels take on each of its rungs."""
    settings, segmenter = pipeline.settings, pipeline.segmenter
    assert segmenter is not None  # else the limit would have been refused
    widest = max(settings.segmentation_width, settings.flow_width)
    image = _blank(widest, settings.engine_image_size)
    labelling_s = {
        scale: _least_s(lambda _: segmenter.segment(image))
        for scale in _scales(pipeline, segmenter)
    }
    carrying_s = 0.0
    if estimator := pipeline.flow_estimator:
        labels = image[..., 0]
        # Each image is another, as features of those that are alike are not computed again.
        images = [np.full_like(image, number) for number in range(_MEASURED_RUNS + 2)]
        carrying_s = _least_s(
            lambda run: carry_labels(labels, estimator.estimate(*images[run : run + 2]))
        )
    # Fewer frames than those of a rung are labelled where the parameter says so.
    rungs = [
        replace(rung, keyframe_interval=max(rung.keyframe_interval, settings.keyframe_interval))
        for rung in deadline.ladder
    ]
    times = rung_times(rungs, labelling_s, carrying_s)
    return Deadline(deadline.max_latency_s, deadline.ladder, measured_s=times)


def _least_s(run: Callable[[int], object]) -> float:
    """
    Return the seconds that the quickest of a few runs takes.

    Not their median: what else the computer does while the node is configured makes runs slower,
    never quicker, and a smaller input that seems to take longer would not be chosen for good.

    :param run: takes its number.
    """
    times: list[float] = []
    started = time.monotonic()
    while len(times) <= _MEASURED_RUNS and time.monotonic() - started <= _MEASURING_S:
        began = time.monotonic()
        run(len(times))
        times.append(time.monotonic() - began)
    return max(1e-6, min(times[1:] or times))  # the first allocates


def _scaled(width: int, scale: float) -> int:
    """Return a share of a network's width that its stride divides."""
    return width if scale == 1 else max(1, round(width * scale / STRIDE)) * STRIDE


def _blank(width: int, size: tuple[int, ...] = ()) -> Image:
    """Return an empty image of four by three, or of some columns and rows."""
    usual = width or 480
    columns, rows = size or (usual, max(1, usual * 3 // 4))
    return np.zeros((rows, columns, 3), np.uint8)
