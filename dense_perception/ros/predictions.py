"""What the networks say of frames."""

from collections.abc import Callable, Collection, Sequence
import time
from typing import Any, Protocol, TypeVar

from dense_perception.arrays import Labels
from dense_perception.predictors.mask_proposer import Proposals
from dense_perception.predictors.segmenter import Segmentation
from dense_perception.ros.camera import Camera, continues, Previous
from dense_perception.ros.frame import Frame, Motion
from dense_perception.ros.latest import in_words
from dense_perception.ros.outputs import LABEL_OUTPUTS
from dense_perception.ros.pipeline import Pipeline

Result = TypeVar('Result')


class Attempt(Protocol):
    """Takes a step for a camera; what it raises costs that camera its image, and gives None."""

    def __call__(
        self, camera: Camera, step: Callable[..., Result], *arguments: Any
    ) -> Result | None:
        """Return what the step returns."""


class Predictions:
    """Runs the networks on frames and counts that; carries labels from keyframes to others."""

    def __init__(self, pipeline: Pipeline, attempt: Attempt) -> None:
        self._pipeline, self._attempt = pipeline, attempt
        self.ran = False  # whether a network has, since who asks has set this so

    def carries(self, wanted: Collection[str]) -> bool:
        """Whether labels of some frames are carried along flow, for the outputs of a camera."""
        return self._pipeline.keyframe_interval > 1 and not set(LABEL_OUTPUTS).isdisjoint(wanted)

    def labels(self, frames: Sequence[Frame]) -> dict[Camera, Segmentation]:
        """
        Label images, those of keyframes together.

        :param frames: one of each camera at most.
        :returns: by camera; without those whose image could not be used.
        """
        due = {frame: self._attempt(frame.camera, self._is_key, frame) for frame in frames}
        labelled = together([frame for frame in frames if due[frame]], self._label, self._attempt)
        labels = {
            camera: kept
            for camera, result in labelled.items()
            if (kept := self._attempt(camera, self._keep, camera, result)) is not None
        }
        for frame in frames:
            if due[frame] is False:  # None has been counted as bad
                carried = self._attempt(frame.camera, self._carry, frame)
                if carried is not None:
                    labels[frame.camera] = Segmentation(carried, None)
        return labels

    def motion(self, frame: Frame) -> Motion | None:
        """Return flow to an image from its camera's previous one, unless it begins anew."""
        previous = self.follow(frame)
        if previous is None:
            return frame.motion  # estimated before, or there is none
        estimator = self._pipeline.flow_estimator
        assert estimator is not None
        flow = self._timed(
            'flow', [frame], lambda: estimator.estimate(previous.image, frame.image)
        )
        frame.motion = Motion(flow, previous)
        return frame.motion

    def follow(self, frame: Frame) -> Previous | None:
        """Make an image its camera's previous one; return that before, unless flow begins anew."""
        if frame.followed:
            return None
        camera, current = frame.camera, Previous(frame.image, frame.header.stamp)
        previous, camera.previous, frame.followed = camera.previous, current, True
        if previous is None or not continues(previous, current, self._pipeline.settings):
            camera.statistics.count_flow_restart()
            return None
        return previous

    def proposals(self, frame: Frame) -> Proposals:
        """Propose masks of objects."""
        proposer = self._pipeline.mask_proposer
        assert proposer is not None
        return self._timed('proposal', [frame], lambda: proposer.propose(frame.image))

    def _is_key(self, frame: Frame) -> bool:
        """Whether the network labels an image, rather than that labels are carried to it."""
        if not self.carries(frame.wanted):
            return True
        keyframes, previous = frame.camera.keyframes, frame.camera.previous
        keyframes.interval = self._pipeline.keyframe_interval
        alone = previous is None or not continues(
            previous, Previous(frame.image, frame.header.stamp), self._pipeline.settings
        )
        return alone or keyframes.due(frame.image.shape)

    def _carry(self, frame: Frame) -> Labels:
        motion = self.motion(frame)
        assert motion is not None  # else the image would be a keyframe
        return frame.camera.keyframes.carry(motion.flow)

    def _keep(self, camera: Camera, result: Segmentation) -> Segmentation:
        camera.keyframes.set(result.labels)
        return result

    def _label(self, frames: Sequence[Frame]) -> dict[Camera, Segmentation]:
        """Have the network label images in one pass."""
        segmenter = self._pipeline.segmenter
        assert segmenter is not None
        segmenter.width = self._pipeline.labelling_width
        images = [frame.image for frame in frames]
        confidence = any(frame.wants('confidence') for frame in frames)
        results = self._timed(
            'segmentation', frames, lambda: segmenter.segment_all(images, confidence=confidence)
        )
        return {frame.camera: result for frame, result in zip(frames, results, strict=True)}

    def _timed(self, network: str, frames: Sequence[Frame], run: Callable[[], Result]) -> Result:
        """Run a network and count the run and its time for each image that it ran on."""
        started = time.monotonic()
        result = run()
        self.ran = True
        for frame in frames:
            frame.camera.statistics.count_run(network, time.monotonic() - started)
        return result


def together(
    frames: Sequence[Frame],
    step: Callable[[Sequence[Frame]], dict[Camera, Result]],
    attempt: Attempt,
) -> dict[Camera, Result]:
    """
    Take a step for images of several cameras at once; should that fail, for each by itself.

    :param frames: one of each camera at most.
    :param step: returns something for each camera.
    :param attempt: takes the step for one camera, and costs that one alone its image.
    :returns: by camera; without those for which the step failed.
    """
    if not frames:
        return {}
    if len(frames) > 1:
        try:
            return step(frames)
        # Whatever it is, such as too little memory for all, it may be due to one of them alone.
        except BaseException as error:  # noqa: BLE001
            why = f'not with others: {in_words(error)}'
        # No longer with the error, which holds what the network was working on.
        for frame in frames:
            frame.camera.statistics.note_error(why)
    alone = [attempt(frame.camera, step, [frame]) or {} for frame in frames]
    return {camera: result for results in alone for camera, result in results.items()}
