"""
What nodes have in common that look at the outputs of a perception node.

Subscription callbacks only store; one thread works on the newest image, so that slowness costs
images, never latency. An image that cannot be used costs itself, and is told in the log and on
`/diagnostics`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import time
import traceback
from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
from dense_perception.errors import InputError, SettingError
from dense_perception.ros.diagnostics import StreamStatistics
from dense_perception.ros.latest import in_words, Latest, Worker
from dense_perception.ros.parameters import declare_parameters, read_parameters, rejected
from dense_perception.ros.quality import other_quality
from dense_perception.ros.serving import serve
from dense_perception.settings import AnySettings, setting, Settings
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions


@dataclass(frozen=True)
class ConsumerSettings(Settings):
    """What every node has that looks at the outputs of a perception node."""

    max_age_s: float = setting(
        1.0,
        'seconds; an image that is older, or so far ahead, is not used; 0: any',
        low=0,
        high=1e9,
    )
    rectified: bool = setting(
        False,
        'images are rectified, as by image_proc: the camera is P of camera_info, without D',
    )
    silence_warning_s: float = setting(
        2.0, 'seconds without an input before diagnostics warn', low=0.1, high=3600
    )


class Waiting(Exception):
    """An image cannot be used, because something that comes once has not come yet."""


@dataclass
class Input:
    """A topic that a node listens to."""

    topic: str
    once: bool  # latched; silence after the first message is right
    needed: bool
    heard_s: float  # on the monotonic clock; of the subscription, until something comes
    heard: int = 0
    other_quality: str = ''  # what a publisher offers otherwise than asked


class Consumer(ABC, Node):
    """
    Node that works on the newest image, in a thread of its own from `start` to `close`.

    A subclass listens, hands over what belongs together with `put`, and says in `process` what
    becomes of it.
    """

    def __init__(self, name: str, kinds: Sequence[type[Settings]], **options: Any) -> None:
        """
        Declare parameters.

        :param kinds: settings, each field of which becomes a parameter that may change any time.
        :raises SettingError: a parameter is out of its range.
        """
        super().__init__(name, **options)
        self.statistics = StreamStatistics()
        self.inputs: dict[str, Input] = {}
        self.outputs: dict[str, Any] = {}  # name to publisher
        self.waiting = ''  # for what the last image was not used
        every: list[type[Settings]] = [ConsumerSettings, *kinds]
        for kind in every:
            declare_parameters(self, kind)
        self._settings: dict[type[Settings], Any] = {
            kind: read_parameters(self, kind) for kind in every
        }
        self.check_settings(self._settings)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._latest: Latest[Any] = Latest()
        self.worker = Worker(name, self._latest, self._work, self._blame)

    @abstractmethod
    def process(self, job: Any) -> None:
        """
        Work on what was handed over, in the thread.

        :raises InputError: it cannot be used.
        :raises Waiting: it cannot be used yet.
        """

    def check_settings(self, settings: 'dict[type[Settings], Any]') -> None:
        """
        Check what no single setting can; called before settings count.

        :raises SettingError: they do not go together.
        """

    def settings(self, kind: type[AnySettings]) -> AnySettings:
        """Return the settings of a class as they are now."""
        found: AnySettings = self._settings[kind]
        return found

    def start(self) -> None:
        """Begin to work."""
        self.worker.start()

    def serve(self, executor: SingleThreadedExecutor) -> None:
        """Serve until the context ends; an error in a callback is told and is no end."""
        serve(self, executor, self.statistics.note_error)

    def put(self, job: Any) -> None:
        """Hand over work in place of any that waits; never blocks."""
        self.statistics.count_received()
        self._latest.put(job)

    def close(self) -> None:
        """Let the work in hand be finished, and wait for that; the context may have ended."""
        self._latest.close()
        self.worker.join()

    @property
    def dropped(self) -> int:
        """Images that newer ones replaced."""
        return self._latest.dropped

    # Topics.

    def listen(
        self,
        name: str,
        kind: type,
        callback: Callable[[Any], None],
        quality: QoSProfile,
        *,
        once: bool = False,
        needed: bool = True,
    ) -> None:
        """
        Subscribe to a topic, with QoS that parameters may override.

        :param once: it is latched, and comes once.
        :param needed: without it, nothing can be worked on.
        """

        def note(message: Any) -> None:
            entry = self.inputs[name]
            entry.heard += 1
            entry.heard_s = time.monotonic()
            callback(message)

        def note_other_quality(told: str) -> None:
            self.inputs[name].other_quality = told

        subscription = self.create_subscription(
            kind,
            name,
            note,
            quality,
            event_callbacks=other_quality(self, name, note_other_quality),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self.inputs[name] = Input(subscription.topic_name, once, needed, time.monotonic())

    def offer(self, name: str, kind: type, quality: QoSProfile) -> None:
        """Publish a topic under the node's name, with QoS that parameters may override."""
        self.outputs[name] = self.create_publisher(
            kind,
            f'~/{name}',
            quality,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def wanted(self) -> set[str]:
        """Return the outputs that somebody subscribes to."""
        return {
            name for name, output in self.outputs.items() if output.get_subscription_count() > 0
        }

    def check_age(self, stamp: TimeMessage) -> float:
        """
        Return how old an image is, in seconds.

        :raises InputError: it is too old or too far ahead, by the node's clock.
        """
        age_s = (self.get_clock().now().nanoseconds - nanoseconds(stamp)) / 1e9
        limit_s = self.settings(ConsumerSettings).max_age_s
        if limit_s and abs(age_s) > limit_s:
            way = 'old' if age_s > 0 else 'ahead of the clock'
            raise InputError(
                f'image is {abs(age_s):.1f} s {way}; max_age_s allows {limit_s:g} (with stamps of '
                'a bag, use_sim_time and /clock are needed)'
            )
        return age_s

    # The thread.

    def _work(self, job: Any) -> None:
        try:
            self.process(job)
            self.waiting = ''
        except Waiting as reason:
            self.waiting = str(reason)

    def _blame(self, job: Any, error: BaseException) -> None:
        """Count an image as bad, and say why; whatever it was, the next one is served."""
        if not self.context.ok():  # interrupted while publishing
            return
        self.tell(in_words(error))
        if not isinstance(error, InputError):
            text = ''.join(traceback.format_exception(error))
            self.get_logger().error(text, throttle_duration_sec=10.0)

    def tell(self, error: str) -> None:
        """Count an image that cannot be used, and say why."""
        self.waiting = ''
        self.statistics.count_bad(error)
        self.get_logger().warning(f'image not used: {error}', throttle_duration_sec=1.0)

    def _on_parameters(self, parameters: 'list[Parameter[Any]]') -> SetParametersResult:
        values = {entry.name: entry.value for entry in parameters}
        changed = dict(self._settings)
        try:
            for kind, settings in self._settings.items():
                names = values.keys() & settings.__dataclass_fields__.keys()
                changed[kind] = replace(settings, **{name: values[name] for name in names})
            self.check_settings(changed)
        except SettingError as error:
            return rejected(error)
        self._settings = changed
        return SetParametersResult(successful=True)


def nanoseconds(stamp: TimeMessage) -> int:
    """Return a stamp in nanoseconds; unlike `rclpy.time.Time`, of any sign."""
    result: int = stamp.sec * 10**9 + stamp.nanosec
    return result
