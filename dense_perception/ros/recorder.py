"""Receives what the node publishes, as any other process of a robot would."""

from dataclasses import dataclass, field
from pathlib import Path
import time

from dense_perception.arrays import Confidence, Flow, Labels
from dense_perception.errors import InputError
from dense_perception.ros.messages import message_to_flow, message_to_labels
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import Image, TimeReference

_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED_QOS = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


@dataclass
class Recording:
    """
    What was received; the images lie in a folder, so that a long drive needs no memory.

    Stamps are those of the camera images, in nanoseconds, as the player sent them.
    """

    folder: Path
    labels_ns: list[int] = field(default_factory=list)
    flow_ns: list[int] = field(default_factory=list)
    previous_ns: dict[int, int] = field(default_factory=dict)  # stamp -> frame that flow is from
    latency_ms: list[float] = field(default_factory=list)  # arrival of labels minus stamp
    offset_ns: int = 0  # what the player added to the stamps of the bag
    diagnostics: dict[str, str] = field(default_factory=dict)  # the newest of the node

    def save(self, name: str, pixels: Labels | Confidence | Flow) -> None:
        """
        Write a received image.

        :raises InputError: it cannot be written; the disk is full, for example.
        """
        path = self.folder / f'{name}.npy'
        try:
            np.save(path, pixels)
        except OSError as error:
            raise InputError(f'{path}: cannot be written: {error.strerror or error}') from error

    def labels(self, stamp_ns: int) -> Labels:
        """Read a received label image."""
        labels: Labels = np.load(self.folder / f'labels_{stamp_ns}.npy')
        return labels

    def confidence(self, stamp_ns: int) -> Confidence:
        """Read a received confidence image."""
        confidence: Confidence = np.load(self.folder / f'confidence_{stamp_ns}.npy')
        return confidence

    def flow(self, stamp_ns: int) -> Flow:
        """Read a received flow image."""
        flow: Flow = np.load(self.folder / f'flow_{stamp_ns}.npy')
        return flow


class Recorder(Node):
    """Node that records the outputs of one perception node."""

    def __init__(self, folder: Path, image_topic: str, node: str = '/dense_perception') -> None:
        """
        Begin to record.

        :param folder: for the received images.
        :param image_topic: what the node listens to; tells when its player has gone.
        :param node: full name of the perception node.
        """
        super().__init__('drive_recorder')
        self.recording = Recording(folder)
        self.complaint = ''  # of the newest diagnostics, where they tell an error
        self.last_arrival = time.monotonic()  # of labels; before any, of a change of the graph
        self._complaint_since = time.monotonic()
        self._image_topic = image_topic
        self._player_seen = False
        self.player_has_gone = False
        self.create_timer(0.5, self._look_for_player)
        self.create_subscription(Image, f'{node}/labels', self._on_labels, _QOS)
        self.create_subscription(Image, f'{node}/flow', self._on_flow, _QOS)
        self.create_subscription(
            TimeReference, f'{node}/flow_reference', self._on_flow_reference, _QOS
        )
        self.create_subscription(
            TimeReference, '/player/time_reference', self._on_time_reference, _LATCHED_QOS
        )
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    @property
    def complaint_s(self) -> float:
        """Seconds since diagnostics have told errors only; 0 while they tell none."""
        return time.monotonic() - self._complaint_since if self.complaint else 0.0

    def _look_for_player(self) -> None:
        there = self.count_publishers(self._image_topic) > 0
        if self._player_seen and not there and not self.player_has_gone:
            self.player_has_gone = True
            self.last_arrival = time.monotonic()
        self._player_seen = self._player_seen or there

    def _on_labels(self, message: Image) -> None:
        now_ns = self.get_clock().now().nanoseconds
        stamp_ns = Time.from_msg(message.header.stamp).nanoseconds
        self.recording.latency_ms.append((now_ns - stamp_ns) / 1e6)
        self.recording.labels_ns.append(stamp_ns)
        self.recording.save(f'labels_{stamp_ns}', message_to_labels(message))
        self.last_arrival = time.monotonic()

    def _on_flow(self, message: Image) -> None:
        stamp_ns = Time.from_msg(message.header.stamp).nanoseconds
        self.recording.flow_ns.append(stamp_ns)
        self.recording.save(f'flow_{stamp_ns}', message_to_flow(message))

    def _on_flow_reference(self, message: TimeReference) -> None:
        stamp_ns = Time.from_msg(message.header.stamp).nanoseconds
        self.recording.previous_ns[stamp_ns] = Time.from_msg(message.time_ref).nanoseconds

    def _on_time_reference(self, message: TimeReference) -> None:
        played_ns = Time.from_msg(message.header.stamp).nanoseconds
        self.recording.offset_ns = played_ns - Time.from_msg(message.time_ref).nanoseconds

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.hardware_id != 'dense_perception':
                continue
            self.recording.diagnostics = {pair.key: pair.value for pair in status.values}
            if not self.complaint:
                self._complaint_since = time.monotonic()
            failed = status.level == DiagnosticStatus.ERROR
            self.complaint = status.message if failed else ''
