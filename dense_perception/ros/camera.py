"""One camera of the node."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from builtin_interfaces.msg import Time as TimeMessage
from dense_perception.arrays import Image
from dense_perception.predictors.keyframes import Keyframes
from dense_perception.ros.diagnostics import StreamStatistics
from dense_perception.ros.outputs import Outputs
from dense_perception.ros.quality import camera_quality, other_quality
from dense_perception.settings import PerceptionSettings
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage
from sensor_msgs.msg import Image as ImageMessage

CameraMessage: TypeAlias = ImageMessage | CompressedImage


@dataclass
class Previous:
    """The frame that flow starts from."""

    image: Image
    stamp: TimeMessage

    @property
    def time_ns(self) -> int:
        """Stamp in nanoseconds."""
        return Time.from_msg(self.stamp).nanoseconds


class Camera:
    """The topics of one camera, and what is known of its stream; the node's other parts set it."""

    def __init__(self, node: Node, name: str) -> None:
        """
        Name a camera; nothing is listened to yet.

        :param name: first part of its topics; empty for the only camera, whose topics have none.
        """
        self.name = name
        self.statistics = StreamStatistics()
        self.outputs: Outputs | None = None  # while the node is configured
        self.topic = ''  # full name of the image's; empty while the node is not active
        self.info: CameraInfo | None = None  # the newest one
        self.previous: Previous | None = None  # what the next flow starts from
        self.keyframes = Keyframes(1)  # labels of `previous`, or nothing
        self.other_quality = ''  # what a publisher of the image offers otherwise than asked
        self._node = node
        self._subscriptions: list[Any] = []

    def listen(self, *, compressed: bool, put: Callable[[CameraMessage], None]) -> None:
        """
        Subscribe to images and their calibration; flow begins anew.

        :param compressed: whether images come as `CompressedImage`.
        :param put: takes each image, from the thread that serves the node.
        """
        self.info, self.other_quality = None, ''
        self.forget()
        group = MutuallyExclusiveCallbackGroup()  # the node's own would keep a trace of each

        def receive(message: CameraMessage) -> None:
            self.statistics.count_received()
            put(message)

        topic = self._named('image/compressed' if compressed else 'image')
        image = self._subscribe(
            CompressedImage if compressed else ImageMessage,
            topic,
            receive,
            callback_group=group,
            event_callbacks=other_quality(self._node, topic, self._on_other_quality),
        )
        self._subscribe(
            CameraInfo, self._named('camera_info'), self._on_info, callback_group=group
        )
        self.topic = image.topic_name
        self.statistics.restart_clock()

    def forget(self) -> None:
        """Begin flow, and labels carried along it, anew."""
        self.previous = None
        self.keyframes.reset()

    def stop(self) -> None:
        """Listen no longer; may be said again where it has failed."""
        self.topic = ''
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions[-1])
            self._subscriptions.pop()

    def _named(self, topic: str) -> str:
        return f'{self.name}/{topic}' if self.name else topic

    def _subscribe(
        self, kind: type, topic: str, receive: Callable[[Any], None], **options: Any
    ) -> Any:
        subscription = self._node.create_subscription(
            kind,
            topic,
            receive,
            camera_quality(),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            **options,
        )
        self._subscriptions.append(subscription)
        return subscription

    def _on_info(self, message: CameraInfo) -> None:
        self.info = message

    def _on_other_quality(self, told: str) -> None:
        self.other_quality = told
        self.statistics.note_error(told)


def continues(previous: Previous, current: Previous, settings: PerceptionSettings) -> bool:
    """Whether two frames are close enough in time, and alike enough, for flow between them."""
    gap_s = (current.time_ns - previous.time_ns) / 1e9
    return 0 < gap_s <= settings.max_flow_gap_s and previous.image.shape == current.image.shape
