"""The networks of a configured node, and what they remember of the stream."""

from dataclasses import dataclass, field
from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
from dense_perception.arrays import Image
from dense_perception.errors import SettingError
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.settings import PerceptionSettings
from dense_perception.weights.published import find_weights
import numpy as np
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.time import Time

_WARM_UP_RUNS = 3  # the first runs allocate and choose kernels


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
    segmenter: Segmenter | None
    flow_estimator: FlowEstimator | None
    outputs: 'dict[str, LifecyclePublisher[Any]]' = field(default_factory=dict)
    previous: Previous | None = None

    def predictors(self) -> dict[str, Segmenter | FlowEstimator]:
        """Return the networks that are not switched off."""
        both = {'segmentation': self.segmenter, 'flow': self.flow_estimator}
        return {name: predictor for name, predictor in both.items() if predictor is not None}

    def wanted(self) -> set[str]:
        """Return the names of the outputs that somebody subscribes to."""
        return {
            name for name, output in self.outputs.items() if output.get_subscription_count() > 0
        }


def load_networks(
    settings: PerceptionSettings,
) -> tuple[Segmenter | None, FlowEstimator | None]:
    """
    Load the networks that are not switched off.

    :raises WeightsError: a file is missing, damaged, or of the wrong kind.
    :raises SettingError: both are switched off, or device or precision is not to be had.
    """
    if not (settings.segmentation_weights or settings.flow_weights):
        raise SettingError(
            'segmentation_weights and flow_weights are both empty; one must name weights'
        )
    segmenter, flow_estimator = None, None
    if settings.segmentation_weights:
        segmenter = Segmenter.from_file(
            find_weights(settings.segmentation_weights),
            device=settings.device,
            precision=settings.precision,
            width=settings.segmentation_width,
        )
    if settings.flow_weights:
        flow_estimator = FlowEstimator.from_file(
            find_weights(settings.flow_weights),
            device=settings.device,
            precision=settings.precision,
            width=settings.flow_width,
        )
    return segmenter, flow_estimator


def warm_up(pipeline: Pipeline) -> None:
    """Run each network a few times on an empty image of its usual size."""
    image = np.zeros((360, 480, 3), np.uint8)
    for _ in range(_WARM_UP_RUNS):
        if pipeline.segmenter is not None:
            pipeline.segmenter.segment(image, confidence=True)
        if pipeline.flow_estimator is not None:
            pipeline.flow_estimator.estimate(image, image)


def continues(previous: Previous, current: Previous, settings: PerceptionSettings) -> bool:
    """Whether two frames are close enough in time, and alike enough, for flow between them."""
    gap_s = (current.time_ns - previous.time_ns) / 1e9
    return 0 < gap_s <= settings.max_flow_gap_s and previous.image.shape == current.image.shape
