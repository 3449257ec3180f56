"""
The player node: publishes the messages of a bag with their original timing.

For machines without `ros2 bag`, and for measuring: messages go out as the bytes that were
recorded, so that playing costs little beside what is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import struct
import sys
from threading import Event, Thread
import time
from typing import Any

from builtin_interfaces.msg import Time
from dense_perception.errors import InputError, SettingError
from dense_perception.memory import keep_memory
from dense_perception.ros.bags import Bag, IMAGE_TYPES, message_class, RawMessage, Topic
from dense_perception.ros.parameters import declare_parameters, read_parameters
from dense_perception.ros.process import quiet_interrupts
from dense_perception.ros.quality import latched_quality
from dense_perception.settings import setting, Settings
import rclpy
from rclpy.duration import Duration
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterException,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import TimeReference
from std_msgs.msg import Header

POLL_S = 0.02  # between looks at who subscribes; nothing reports a new match on every distribution
# A publisher may know of a subscription before that one knows of it, and what is sent meanwhile is
# lost; nothing tells when both know.
SETTLE_S = 0.25
ACKNOWLEDGE_S = 2.0  # what reliable subscribers get to take the last messages


@dataclass(frozen=True)
class PlayerSettings(Settings):
    """How a bag is played."""

    bag: str = setting('', 'folder of the bag, or one .db3 or .mcap file')
    topics: str = setting('', 'names of topics to play, with commas between; empty: all')
    rate: float = setting(1.0, 'speed; 1 is that of the recording', low=0.01, high=100.0)
    loop: bool = setting(False, 'start again at the end')
    start_delay_s: float = setting(
        0.0, 'seconds from the last subscriber waited for to the first message', low=0, high=3600
    )
    wait_for_subscribers: int = setting(
        0, "begin once the bag's topics have this many subscriptions in all", low=0, high=1000
    )
    wait_timeout_s: float = setting(
        30.0, 'seconds; begin even so after waiting this long', low=0, high=3600
    )
    clock: bool = setting(False, 'publish the time of the recording on /clock')
    clock_hz: float = setting(100.0, 'messages a second on /clock', low=1, high=1000)
    restamp: bool = setting(
        False, 'shift every header stamp, by the same time for all, so that the bag begins now'
    )
    reliability: str = setting(
        'reliable', 'what is offered to subscribers', choices=('reliable', 'best_effort')
    )


@dataclass(frozen=True)
class Channel:
    """Where the messages of one topic go."""

    publisher: 'Publisher[Any]'
    stamped: bool  # the message begins with a std_msgs/Header


class Player(Node):
    """Publish a bag from the thread that calls `play`; any other thread may spin the node."""

    def __init__(self) -> None:
        super().__init__('player')
        declare_parameters(self, PlayerSettings)
        self.settings = read_parameters(self, PlayerSettings)
        self._stop = Event()
        self._late_s = 0.0
        # Latched, so that whoever comes later can tell which recorded image a result belongs to.
        self._time_reference = (
            self.create_publisher(TimeReference, '~/time_reference', latched_quality())
            if self.settings.restamp
            else None
        )
        self._ticker = self.create_publisher(Clock, '/clock', 10) if self.settings.clock else None

    def stop(self) -> None:
        """End `play` soon; from any thread."""
        self._stop.set()

    def play(self) -> int:
        """
        Publish the whole bag, or for ever when it loops.

        :returns: how many messages were published.
        :raises InputError: the bag cannot be read, or none of its types is installed.
        """
        if not self.settings.bag:
            raise InputError('parameter bag is empty; it must be the path of a bag')
        with Bag(Path(self.settings.bag).expanduser(), mend=True) as bag:
            for damage in bag.damage:
                self.get_logger().warning(damage)
            channels = self._channels(bag)
            self._wait_for_subscribers(channels)
            self._stop.wait(self.settings.start_delay_s)
            start_s = begin_s = time.monotonic()
            count = self._play_once(bag, channels, start_s)
            while self.settings.loop and not self._stop.is_set():
                start_s += _lap_s(bag) / self.settings.rate
                count += self._play_once(bag, channels, start_s)
            self._wait_for_acknowledgement(channels)
        self.get_logger().info(
            f'played {count} messages of {self.settings.bag} in '
            f'{time.monotonic() - begin_s:.2f} s, at most {self._late_s * 1e3:.1f} ms late'
        )
        return count

    def run(self, done: 'Future[int]') -> None:
        """Play, tell a failure to the log, and put the exit status into `done`."""
        status = 1
        try:
            self.play()
            status = 0
        except InputError as error:
            self.get_logger().fatal(str(error))
        except Exception:
            if not self.context.ok():  # interrupted in the middle of publishing
                status = 0
            else:
                raise
        finally:
            done.set_result(status)

    def _channels(self, bag: Bag) -> dict[str, Channel]:
        """Make a publisher for every topic whose message type is installed."""
        channels = {}
        chosen = [name.strip() for name in self.settings.topics.split(',') if name.strip()]
        if missing := sorted(set(chosen) - set(bag.topics)):
            raise InputError(
                f'{bag.path}: no topic {", ".join(missing)}; it has {", ".join(bag.topics)}'
            )
        for name, topic in bag.topics.items():
            if chosen and name not in chosen:
                continue
            try:
                kind = message_class(topic.type_name)
            except InputError as error:
                self.get_logger().warning(f'{name} is not played: {error}')
                continue
            publisher = self.create_publisher(kind, name, self._quality(topic))
            channels[name] = Channel(publisher, _begins_with_header(kind))
        if not channels:
            raise InputError(f'{bag.path}: none of its {len(bag.topics)} topics can be played')
        return channels

    def _quality(self, topic: Topic) -> QoSProfile:
        # Five camera images fill a good part of the shared memory, small messages come in bursts.
        quality = QoSProfile(depth=5 if topic.type_name in IMAGE_TYPES else 100)
        quality.reliability = ReliabilityPolicy.RELIABLE
        if topic.latched:
            quality.durability = DurabilityPolicy.TRANSIENT_LOCAL
        elif self.settings.reliability == 'best_effort':
            quality.reliability = ReliabilityPolicy.BEST_EFFORT
        return quality

    def _wait_for_subscribers(self, channels: dict[str, Channel]) -> None:
        wanted = self.settings.wait_for_subscribers
        deadline_s = time.monotonic() + self.settings.wait_timeout_s
        while (found := _subscriptions(channels)) < wanted and not self._stop.is_set():
            if time.monotonic() > deadline_s:
                self.get_logger().warning(
                    f'{found} of {wanted} subscriptions after {self.settings.wait_timeout_s} s; '
                    'playing now'
                )
                return
            self._stop.wait(POLL_S)
        if wanted:
            self._stop.wait(SETTLE_S)

    def _play_once(self, bag: Bag, channels: dict[str, Channel], start_s: float) -> int:
        """Publish every message when it is due; lateness of one does not shift the next."""
        count = 0
        ticks = 0
        shift = self._begin_lap(bag.start_ns, start_s)
        for message in bag.messages(list(channels)):
            due_s = start_s + (message.stamp_ns - bag.start_ns) * 1e-9 / self.settings.rate
            ticks = self._tick_until(due_s, start_s, bag.start_ns, ticks)
            if self._sleep_until(due_s):
                break
            self._late_s = max(self._late_s, time.monotonic() - due_s)
            self._publish(message, channels[message.topic], shift)
            count += 1
        return count

    def _tick_until(self, due_s: float, start_s: float, start_ns: int, ticks: int) -> int:
        """Publish the clock at its own pace up to a moment; returns its ticks since the start."""
        if self._ticker is None:
            return ticks
        while (tick_s := start_s + ticks / self.settings.clock_hz) <= due_s:
            if self._sleep_until(tick_s):
                break
            passed_ns = ticks * 1e9 / self.settings.clock_hz * self.settings.rate
            self._ticker.publish(Clock(clock=_time(start_ns + round(passed_ns))))
            ticks += 1
        return ticks

    def _sleep_until(self, due_s: float) -> bool:
        """Sleep and return whether to stop."""
        return self._stop.wait(max(0.0, due_s - time.monotonic()))

    def _publish(self, message: RawMessage, channel: Channel, shift: 'Shift | None') -> None:
        data = message.data
        if shift is not None and channel.stamped:
            data = shift.apply(data)
        channel.publisher.publish(data)

    def _begin_lap(self, start_ns: int, start_s: float) -> 'Shift | None':
        """Tell on `~/time_reference` how stamps are shifted in this lap, where they are."""
        if self._time_reference is None:
            return None
        ahead_ns = round((start_s - time.monotonic()) * 1e9)
        played_ns = self.get_clock().now().nanoseconds + ahead_ns
        self._time_reference.publish(
            TimeReference(
                header=Header(stamp=_time(played_ns)), time_ref=_time(start_ns), source='bag'
            )
        )
        return Shift(start_ns, played_ns, self.settings.rate)

    def _wait_for_acknowledgement(self, channels: dict[str, Channel]) -> None:
        deadline_s = time.monotonic() + ACKNOWLEDGE_S
        for channel in channels.values():
            if not self._stop.is_set():
                rest_s = max(0.0, deadline_s - time.monotonic())
                channel.publisher.wait_for_all_acked(Duration(nanoseconds=round(rest_s * 1e9)))


@dataclass(frozen=True)
class Shift:
    """How the time of a bag maps to the time at which it is played."""

    recorded_ns: int  # beginning of the bag
    played_ns: int  # the same moment when played
    rate: float

    def apply(self, data: bytes) -> bytes:
        """
        Shift the stamp of a serialised message that begins with a std_msgs/Header.

        A stamp that has no place in time after the shift, such as zero in a slow replay, stays.

        :param data: CDR: four bytes that tell the byte order, int32 seconds, uint32 nanoseconds,
            rest.
        """
        order = '<' if data[1] & 1 else '>'
        seconds, nanoseconds = struct.unpack_from(f'{order}iI', data, 4)
        passed_ns = (seconds * 10**9 + nanoseconds - self.recorded_ns) / self.rate
        stamp = divmod(self.played_ns + round(passed_ns), 10**9)
        if not 0 <= stamp[0] < 2**31:
            return data
        return data[:4] + struct.pack(f'{order}iI', *stamp) + data[12:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a bag to its end or until interrupted; returns the exit status."""
    keep_memory()
    with quiet_interrupts():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    rclpy.init(args=None if arguments is None else list(arguments))
    try:
        player = Player()
    except (
        InvalidParameterTypeException,
        InvalidParameterValueException,
        ParameterException,
        SettingError,
    ) as error:
        get_logger('player').fatal(str(error))
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(player)
    done: Future[int] = Future(executor=executor)
    worker = Thread(target=player.run, args=(done,), name='player')
    worker.start()
    try:
        executor.spin_until_future_complete(done)
    except ExternalShutdownException:
        pass
    finally:
        player.stop()
        worker.join()
        executor.shutdown()
        player.destroy_node()
        rclpy.try_shutdown()
    return done.result() or 0


def _begins_with_header(kind: type[Any]) -> bool:
    return next(iter(kind.get_fields_and_field_types().values()), '') == 'std_msgs/Header'


def _subscriptions(channels: dict[str, Channel]) -> int:
    return sum(channel.publisher.get_subscription_count() for channel in channels.values())


def _lap_s(bag: Bag) -> float:
    """Time from one beginning to the next in a loop: one more period of the busiest topic."""
    periods = max(topic.count for topic in bag.topics.values()) - 1
    return bag.duration_ns * 1e-9 * (1 + 1 / periods) if periods > 0 else 1.0


def _time(stamp_ns: int) -> Time:
    seconds, nanoseconds = divmod(stamp_ns, 10**9)
    return Time(sec=seconds, nanosec=nanoseconds)


if __name__ == '__main__':
    sys.exit(main())
