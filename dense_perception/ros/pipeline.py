"""The networks of a configured node, and what they remember of the stream."""

from dataclasses import dataclass, field
import time

from builtin_interfaces.msg import Time as TimeMessage
from dense_perception.arrays import Image
from dense_perception.errors import SettingError
from dense_perception.predictors.choice import (
    Choice,
    choose_network,
    FLOW,
    PROPOSALS,
    SEGMENTATION,
    Task,
)
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.mask_proposer import MaskProposer
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.settings import PerceptionSettings
import numpy as np
from rclpy.time import Time

_WARM_UP_RUNS = 3  # the first runs allocate and choose kernels
_WARM_UP_S = 5.0  # after which none is begun, for networks that take that long

Predictor = Segmenter | FlowEstimator | MaskProposer


@dataclass
class Previous:
    """The frame that flow starts from."""

    image: Image
    stamp: TimeMessage

    @property
    def time_ns(self) -> int:
        """Stamp in nanoseconds."""
        return Time.from_msg(self.stamp).nanoseconds


@dataclass
class Pipeline:
    """What exists only while the node is configured."""

    settings: PerceptionSettings
    segmenter: Segmenter | None = None
    flow_estimator: FlowEstimator | None = None
    mask_proposer: MaskProposer | None = None
    previous: Previous | None = None
    choices: dict[str, Choice] = field(default_factory=dict)  # by the name of the task

    def predictors(self) -> dict[str, Predictor]:
        """Return the networks that are not switched off."""
        every = {
            'segmentation': self.segmenter,
            'flow': self.flow_estimator,
            'proposal': self.mask_proposer,
        }
        return {name: predictor for name, predictor in every.items() if predictor is not None}

    def untrained(self) -> list[str]:
        """Return the networks whose weights are random, as they are told to people."""
        return [
            f'{task} network {choice.card.network}'
            for task, choice in self.choices.items()
            if not choice.trained
        ]


def load_pipeline(settings: PerceptionSettings) -> Pipeline:
    """
    Load the networks that are not switched off, or build those that have no weights.

    :raises WeightsError: a file is missing, damaged, or of another network than is asked for.
    :raises SettingError: all are switched off, one both is and is asked for, there is no network
        of a name, or device or precision is not to be had.
    """
    placement = choose_placement(settings.device, settings.precision)
    choices = _choices(settings)
    pipeline = Pipeline(settings, choices=choices)
    if labels := choices.get('segmentation'):
        pipeline.segmenter = Segmenter(
            labels.network,
            labels.card,
            placement,
            width=settings.segmentation_width,
            refinement=settings.refinement,
        )
    if flow := choices.get('flow'):
        pipeline.flow_estimator = FlowEstimator(
            flow.network,
            flow.card,
            placement,
            width=settings.flow_width,
            refinement=settings.flow_refinement,
        )
    if proposals := choices.get('proposal'):
        pipeline.mask_proposer = MaskProposer(
            proposals.network, proposals.card, placement, width=settings.proposal_width
        )
    return pipeline


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


def continues(previous: Previous, current: Previous, settings: PerceptionSettings) -> bool:
    """Whether two frames are close enough in time, and alike enough, for flow between them."""
    gap_s = (current.time_ns - previous.time_ns) / 1e9
    return 0 < gap_s <= settings.max_flow_gap_s and previous.image.shape == current.image.shape
