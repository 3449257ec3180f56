"""The networks of a configured node."""

from collections.abc import Callable, Mapping
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
from dense_perception.predictors.latency import Deadline, LADDER
from dense_perception.predictors.mask_proposer import MaskProposer
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.settings import PerceptionSettings
import numpy as np

_WARM_UP_RUNS = 3  # the first runs allocate and choose kernels
_WARM_UP_S = 5.0  # after which none is begun, for networks that take that long

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
            return width
        width = width or self.camera_width
        return max(1, round(width * self.deadline.rung.scale / STRIDE)) * STRIDE

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
    :raises InputError: the folder of calibration frames is missing or holds too few.
    """
    placement = choose_placement(settings.device, settings.precision)
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


def warm_up(pipeline: Pipeline) -> None:
    """Run each network a few times on an empty image of its usual size."""
    settings = pipeline.settings
    deadline = time.monotonic() + _WARM_UP_S
    for _ in range(_WARM_UP_RUNS):
        if pipeline.segmenter is not None:
            image = _blank(settings.segmentation_width)
            pipeline.segmenter.segment(image, confidence=True)
        if pipeline.flow_estimator is not None:
            image = _blank(settings.flow_width)
            pipeline.flow_estimator.estimate(image, image)
        if pipeline.mask_proposer is not None:
            pipeline.mask_proposer.propose(_blank(settings.proposal_width))
        if time.monotonic() > deadline:
            return


def _blank(width: int) -> Image:
    """Return an empty image of four by three."""
    columns = width or 480
    return np.zeros((max(1, columns * 3 // 4), columns, 3), np.uint8)
