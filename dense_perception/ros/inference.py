"""The thread that runs the networks on the newest images."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
import traceback
from typing import Any, TypeAlias, TypeVar

from dense_perception.errors import InputError
from dense_perception.predictors.flow_features import KeptFeatures
from dense_perception.predictors.latency import Deadline, SMALLER, UNLIMITED_S
from dense_perception.predictors.segmenter import Segmentation
from dense_perception.predictors.shortage import give_memory_back, is_shortage
from dense_perception.ros.camera import Camera, CameraMessage
from dense_perception.ros.frame import Frame
from dense_perception.ros.latest import Ended, in_words, LatestOfEach, Worker
from dense_perception.ros.messages import to_array
from dense_perception.ros.outputs import FLOW_OUTPUTS, LABEL_OUTPUTS, PROPOSAL_OUTPUTS
from dense_perception.ros.pipeline import Pipeline
from dense_perception.ros.predictions import Predictions, together
from rclpy.node import Node
from rclpy.time import Time
import torch

Result = TypeVar('Result')
Waiting: TypeAlias = Mapping[Camera, CameraMessage]

LOST_AFTER = 5  # rounds in turn in which the device failed and no network ran


class Inference:
    """
    Take the newest image of every camera, run the networks whose results somebody wants.

    Runs in a thread of its own from `start` to `stop`, and once. Each round serves every camera
    that has an image, so that none waits for another that sends more. What goes wrong with an
    image costs that image alone; where memory was short for it, the next ones are made smaller.
    A device that has failed a few times in turn ends the thread, which `worker` tells: it fails
    every later call of the process, and a new one may find it well again.
    """

    def __init__(self, node: Node, pipeline: Pipeline) -> None:
        self._node, self._pipeline = node, pipeline
        self._predictions = Predictions(pipeline, self._attempt)
        self._newest: LatestOfEach[Camera, CameraMessage] = LatestOfEach()
        self.worker: Worker[Waiting] = Worker('inference', self._newest, self._work, self._blame)
        self._device_error = ''  # of this round
        self._failed_rounds = 0  # in turn, by an error of the device

    def start(self) -> None:
        """Begin to wait for images."""
        self.worker.start()

    def put(self, camera: Camera, message: CameraMessage) -> None:
        """Hand over an image in place of the camera's that waits; never blocks."""
        if self._newest.put(camera, message):
            camera.statistics.count_dropped()

    def stop(self) -> None:
        """Let the images in work be finished, and wait for that."""
        for camera in self._newest.close():
            camera.statistics.count_dropped()
        self.worker.join()

    def _work(self, waiting: Waiting) -> None:
        """
        Serve a round.

        :raises Ended: the device has failed in too many rounds in turn.
        """
        self._device_error, self._predictions.ran = '', False
        self._serve(waiting)
        if self._predictions.ran:
            self._failed_rounds = 0
        elif self._device_error:
            self._failed_rounds += 1
        if self._failed_rounds >= LOST_AFTER:
            raise Ended(
                f'the device fails all that it is asked, {self._failed_rounds} rounds of images '
                f'in turn, which a new process may help: {self._device_error}'
            )

    def _blame(self, waiting: Waiting, error: BaseException) -> None:
        """Count every image of a round as bad, for an error of no camera: our own bug."""
        for camera in waiting:
            self._count_bad(camera, error, in_words(error))

    def _serve(self, waiting: Waiting) -> None:
        """Publish what is wanted of one image of each camera; the labels of all come first."""
        frames = [
            frame
            for camera, message in waiting.items()
            if (frame := self._attempt(camera, self._read, camera, message))
        ]
        ready = list(together(frames, self._resized, self._attempt).values())
        clock = self._node.get_clock()
        began = clock.now()
        labels = together(
            [frame for frame in ready if frame.wants(*LABEL_OUTPUTS)],
            self._predictions.labels,
            self._attempt,
        )
        labelling_s = (clock.now() - began).nanoseconds / 1e9
        for frame in [
            frame
            for frame in ready
            if self._attempt(frame.camera, self._publish_labels, frame, labels)
        ]:
            self._attempt(frame.camera, self._finish, frame, labelling_s)

    def _attempt(
        self, camera: Camera, step: Callable[..., Result], *arguments: Any
    ) -> Result | None:
        """Take a step for a camera; what it raises costs that camera its image."""
        try:
            return step(*arguments)
        # Whatever a frame brings, the next one is served: out of GPU memory, for example, or
        # a library that calls sys.exit, which would end this thread without a word.
        except BaseException as error:  # noqa: BLE001
            text = in_words(error)
            shortage = text if is_shortage(error) else ''
            if is_device_error(error, text):
                self._device_error = text
            self._count_bad(camera, error, text)
        finally:
            self.worker.progress()
        # No longer with the error, which holds what the network was working on.
        if shortage and not self._tried_to_make_room(shortage):
            camera.statistics.note_error(f'no room can be made: {shortage}')
        return None

    def _tried_to_make_room(self, shortage: str) -> bool:
        """Whether that went well; on a device that is lost, it raises, too."""
        with suppress(BaseException):
            self._make_room(shortage)
            return True
        return False

    def _make_room(self, shortage: str) -> None:
        """Let networks take smaller images from now on, if there are any."""
        pipeline = self._pipeline
        if pipeline.deadline is None:
            pipeline.deadline = Deadline(UNLIMITED_S, SMALLER)
        found = pipeline.deadline.make_room(shortage)
        text, log = f'labels and flow: {pipeline.deadline.reason}', self._node.get_logger()
        if found:
            log.warning(text)
        else:
            log.error(text, throttle_duration_sec=10.0)
        if pipeline.flow_estimator is not None:
            pipeline.flow_estimator.features = KeptFeatures()
        give_memory_back()

    def _resized(self, frames: Sequence[Frame]) -> dict[Camera, Frame]:
        """Have networks take images of a size that suits these; returns them by camera."""
        self._pipeline.camera_width = min(frame.image.shape[1] for frame in frames)
        self._resize_flow()
        return {frame.camera: frame for frame in frames}

    def _resize_flow(self) -> None:
        """Give flow the share of its width that memory allows."""
        estimator, deadline = self._pipeline.flow_estimator, self._pipeline.deadline
        if estimator is None or deadline is None:
            return
        width = self._pipeline.settings.flow_width
        if deadline.short:
            width = max(1, round((width or self._pipeline.camera_width) * deadline.rung.scale))
        if width != estimator.width:
            # Features are known by their image alone, and of the size before.
            estimator.width, estimator.features = width, KeptFeatures()

    def _count_bad(self, camera: Camera, error: BaseException, text: str) -> None:
        """Count the image of a camera as bad, and say why."""
        if not self._node.context.ok():  # interrupted while publishing
            return
        camera.keyframes.reset()  # the labels there may be of another frame than `previous`
        camera.statistics.count_bad(text)
        with suppress(BaseException):  # memory may be short for the log, too
            self._warn(camera, f'image not used: {text}', 1.0)
            if not isinstance(error, InputError):
                details = ''.join(traceback.format_exception(error))
                self._node.get_logger().error(details, throttle_duration_sec=10.0)

    def _warn(self, camera: Camera, text: str, throttle_s: float) -> None:
        name = f'{camera.name}: ' if camera.name else ''
        self._node.get_logger().warning(name + text, throttle_duration_sec=throttle_s)

    def _read(self, camera: Camera, message: CameraMessage) -> Frame | None:
        """Return an image of which somebody wants something."""
        assert camera.outputs is not None
        wanted = camera.outputs.wanted()
        if wanted.isdisjoint(LABEL_OUTPUTS):
            camera.keyframes.reset()
        if wanted.isdisjoint(FLOW_OUTPUTS) and not self._predictions.carries(wanted):
            camera.forget()  # flow of the next one who wants it begins anew
        if not wanted:
            return None
        image = to_array(message)
        return Frame(camera, camera.outputs, message.header, image, wanted)

    def _publish_labels(self, frame: Frame, labels: Mapping[Camera, Segmentation]) -> bool:
        """Publish labels where they are wanted; return whether the image could be used."""
        if not frame.wants(*LABEL_OUTPUTS):
            return True
        segmenter = self._pipeline.segmenter
        assert segmenter is not None
        if frame.camera not in labels:
            return False  # the image has been counted as bad
        result = labels[frame.camera]
        clock = self._node.get_clock()
        frame.publish_labels(result, segmenter.label_set, self._pipeline.settings, clock)
        return True

    def _finish(self, frame: Frame, labelling_s: float) -> None:
        """
        Publish all but labels.

        :param labelling_s: seconds that labels of the whole round took.
        """
        predictions = self._predictions
        if frame.wants(*FLOW_OUTPUTS):
            motion = predictions.motion(frame)
            if motion is not None:
                frame.publish_flow(motion, self._pipeline.settings)
        elif predictions.carries(frame.wanted):
            predictions.follow(frame)
        if frame.wants(*PROPOSAL_OUTPUTS):
            frame.publish_proposals(predictions.proposals(frame))
        if frame.wants('camera_info'):
            self._publish_camera_info(frame)
        now, stamp = self._node.get_clock().now(), Time.from_msg(frame.header.stamp)
        age_s = (now - stamp).nanoseconds / 1e9
        frame.camera.statistics.count_processed(age_s)
        deadline = self._pipeline.deadline
        if frame.wants(*LABEL_OUTPUTS) or (deadline and deadline.short):
            self._keep_deadline(age_s, labelling_s)

    def _keep_deadline(self, age_s: float, labelling_s: float) -> None:
        """Let the limit of age, where there is one, choose how the next images are labelled."""
        deadline = self._pipeline.deadline
        if deadline is None:
            return
        # Stamps may be ahead of the clock, and that may jump back.
        labelling_s = max(0.0, labelling_s)
        if deadline.measure(max(0.0, age_s - labelling_s), labelling_s):
            self._node.get_logger().info(f'labels: {deadline.reason}')
        self._pipeline.late = '' if deadline.holds else deadline.reason

    def _publish_camera_info(self, frame: Frame) -> None:
        try:
            frame.publish_camera_info()
        except InputError as error:
            frame.camera.statistics.note_error(str(error))
            self._warn(frame.camera, str(error), 5.0)


def is_device_error(error: BaseException, text: str) -> bool:
    """
    Whether a device failed, as one that is lost does for good; short memory is no such failure.

    :param text: of the error.
    """
    if is_shortage(error) or 'out of memory' in text or 'ALLOC_FAILED' in text:
        return False
    kind = getattr(torch, 'AcceleratorError', None)  # of newer torch
    typed = kind is not None and isinstance(error, kind)
    return typed or (isinstance(error, RuntimeError) and 'CUDA error' in text)
