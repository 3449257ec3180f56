"""The thread that runs the networks on the newest image."""

from collections.abc import Callable
from threading import Thread
import time
import traceback
from typing import TypeAlias, TypeVar

from dense_perception.arrays import Image
from dense_perception.data.pictures import color_flow, overlay_labels
from dense_perception.errors import DensePerceptionError, InputError
from dense_perception.ros import messages
from dense_perception.ros.diagnostics import StreamStatistics
from dense_perception.ros.latest import Latest
from dense_perception.ros.outputs import (
    FLOW_OUTPUTS,
    LABEL_OUTPUTS,
    Outputs,
    PROPOSAL_OUTPUTS,
)
from dense_perception.ros.pipeline import continues, Pipeline, Previous
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, TimeReference
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header

CameraMessage: TypeAlias = ImageMessage | CompressedImage
Result = TypeVar('Result')


class Inference:
    """
    Take the newest image, run the networks whose results somebody wants, publish these.

    Runs in a thread of its own from `start` to `stop`, and once.
    """

    def __init__(
        self, node: Node, pipeline: Pipeline, outputs: Outputs, statistics: StreamStatistics
    ) -> None:
        self.camera_info: CameraInfo | None = None  # the newest one
        self._node, self._pipeline = node, pipeline
        self._outputs, self._statistics = outputs, statistics
        self._latest: Latest[CameraMessage] = Latest()
        self._thread = Thread(target=self._work, name='inference')

    @property
    def dropped(self) -> int:
        """Images that newer ones replaced."""
        return self._latest.dropped

    def start(self) -> None:
        """Begin to wait for images; flow begins anew."""
        self._pipeline.previous = None
        self._thread.start()

    def put(self, message: CameraMessage) -> None:
        """Hand over an image in place of one that waits; never blocks."""
        self._latest.put(message)

    def stop(self) -> None:
        """Let the image in work be finished, and wait for that."""
        self._latest.close()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._latest.closed:
            message = self._latest.take()
            if message is None:
                continue
            try:
                self._process(message)
            except InputError as error:
                self._count_bad(str(error))
            # Whatever a frame brings, the next one is served: out of GPU memory, for example, or
            # a library that calls sys.exit, which would end this thread without a word.
            except BaseException as error:  # noqa: BLE001
                if not self._node.context.ok():  # interrupted while publishing
                    return
                self._count_bad(explain(error))
                self._node.get_logger().error(traceback.format_exc(), throttle_duration_sec=10.0)

    def _count_bad(self, error: str) -> None:
        self._statistics.count_bad(error)
        self._node.get_logger().warning(f'image not used: {error}', throttle_duration_sec=1.0)

    def _process(self, message: CameraMessage) -> None:
        """Run the networks whose results somebody wants, and publish them."""
        wanted = self._outputs.wanted()
        if not wanted.intersection(FLOW_OUTPUTS):
            self._pipeline.previous = None  # flow of the next one who wants it begins anew
        if not wanted:
            return
        image = messages.to_array(message)
        header = message.header
        if wanted.intersection(LABEL_OUTPUTS):
            self._publish_labels(header, image, wanted)
        if wanted.intersection(FLOW_OUTPUTS):
            self._publish_flow(header, image, wanted)
        if wanted.intersection(PROPOSAL_OUTPUTS):
            self._publish_proposals(header, image)
        if 'camera_info' in wanted:
            self._publish_camera_info(header, image)
        age = self._node.get_clock().now() - Time.from_msg(header.stamp)
        self._statistics.count_processed(age.nanoseconds / 1e9)

    def _publish_labels(self, header: Header, image: Image, wanted: set[str]) -> None:
        segmenter = self._pipeline.segmenter
        assert segmenter is not None
        confidence = 'confidence' in wanted
        result = self._timed(
            'segmentation', lambda: segmenter.segment(image, confidence=confidence)
        )
        if 'labels' in wanted:
            self._outputs.publish('labels', messages.labels_message(result.labels, header))
        if result.confidence is not None:
            message = messages.labels_message(result.confidence, header)
            self._outputs.publish('confidence', message)
        if 'labels_color' in wanted:
            opacity = self._pipeline.settings.overlay_opacity
            picture = overlay_labels(image, result.labels, segmenter.label_set, opacity)
            self._outputs.publish('labels_color', messages.color_message(picture, header))

    def _publish_flow(self, header: Header, image: Image, wanted: set[str]) -> None:
        pipeline = self._pipeline
        estimator = pipeline.flow_estimator
        assert estimator is not None
        previous = pipeline.previous
        pipeline.previous = Previous(image, header.stamp)
        if previous is None or not continues(previous, pipeline.previous, pipeline.settings):
            self._statistics.count_flow_restart()
            return
        flow = self._timed('flow', lambda: estimator.estimate(previous.image, image))
        if 'flow' in wanted:
            self._outputs.publish('flow', messages.flow_message(flow, header))
        if 'flow_reference' in wanted:
            reference = TimeReference(
                header=header, time_ref=previous.stamp, source='previous frame'
            )
            self._outputs.publish('flow_reference', reference)
        if 'flow_color' in wanted:
            picture = color_flow(flow, pipeline.settings.flow_color_range_px)
            self._outputs.publish('flow_color', messages.color_message(picture, header))

    def _publish_proposals(self, header: Header, image: Image) -> None:
        proposer = self._pipeline.mask_proposer
        assert proposer is not None
        proposals = self._timed('proposal', lambda: proposer.propose(image))
        # One byte for each pixel, as labels are.
        self._outputs.publish('proposals', messages.labels_message(proposals.ranks(), header))

    def _timed(self, network: str, run: Callable[[], Result]) -> Result:
        """Run a network and count the run and its time."""
        started = time.monotonic()
        result = run()
        self._statistics.count_run(network, time.monotonic() - started)
        return result

    def _publish_camera_info(self, header: Header, image: Image) -> None:
        if self.camera_info is None:
            return
        height, width = image.shape[:2]
        try:
            info = messages.scale_camera_info(self.camera_info, width, height)
        except InputError as error:
            self._statistics.note_error(str(error))
            self._node.get_logger().warning(
                f'camera_info not used: {error}', throttle_duration_sec=5.0
            )
            return
        info.header = header
        self._outputs.publish('camera_info', info)


def explain(error: BaseException) -> str:
    """Say what went wrong; the type of an error that is not ours says more than its text."""
    ours = isinstance(error, DensePerceptionError)
    return str(error) if ours else f'{type(error).__name__}: {error}'
