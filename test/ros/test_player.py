from contextlib import contextmanager
import json
import signal
import struct
import subprocess
import sys
import time

from dense_perception.data.drives import DriveFrame
from dense_perception.ros.bags import write_drive
from dense_perception.ros.messages import image_to_array, message_to_labels
from dense_perception.ros.player import Shift
import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, TimeReference
from std_msgs.msg import Header

pytestmark = pytest.mark.ros

START_NS = 7_000_000_001
PERIOD_NS = 50_000_000
COUNT = 10


@pytest.fixture
def bag(tmp_path):
    """Ten frames at 20 Hz with truth and camera info."""
    frames = (
        DriveFrame(
            START_NS + number * PERIOD_NS,
            np.full((48, 64, 3), number, np.uint8),
            np.full((48, 64), number, np.uint8),
        )
        for number in range(COUNT)
    )
    write_drive(tmp_path / 'bag', frames, camera_matrix=np.eye(3), frame_id='front')
    return tmp_path / 'bag'


class Listener:
    """A node that keeps what it hears, each message with the time of its arrival."""

    def __init__(self, *, reliability=ReliabilityPolicy.RELIABLE):
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('listener', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.quality = QoSProfile(depth=100, reliability=reliability)
        self.heard = {}

    def listen(self, kind, topic):
        heard = self.heard.setdefault(topic, [])
        self.node.create_subscription(
            kind, topic, lambda message: heard.append((time.monotonic(), message)), self.quality
        )
        return heard

    def spin(self, condition, timeout_s=15.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, {
                topic: len(heard) for topic, heard in self.heard.items()
            }
            self.executor.spin_once(timeout_sec=0.02)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def listener(ros_environment):
    listener = Listener()
    yield listener
    listener.close()


@contextmanager
def player(environment, path, *remaps, **parameters):
    """The player as a process of its own."""
    arguments = [sys.executable, '-m', 'dense_perception.ros.player', '--ros-args']
    for name, value in {'bag': path, 'wait_timeout_s': 10.0, **parameters}.items():
        arguments += ['-p', f'{name}:={json.dumps(value, default=str)}']
    for remap in remaps:
        arguments += ['-r', remap]
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:  # killed, it would leave its shared memory behind
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=15)


def stamps_ns(heard):
    return [
        message.header.stamp.sec * 10**9 + message.header.stamp.nanosec for _, message in heard
    ]


def test_every_message_arrives_in_order_as_it_was_recorded(ros_environment, listener, bag):
    images = listener.listen(Image, '/camera/image_raw')
    labels = listener.listen(Image, '/camera/labels_truth')
    infos = listener.listen(CameraInfo, '/camera/camera_info')
    with player(ros_environment, bag, wait_for_subscribers=3) as process:
        listener.spin(lambda: min(map(len, (images, labels, infos))) == COUNT)
        output, _ = process.communicate(timeout=10)
    expected = [START_NS + number * PERIOD_NS for number in range(COUNT)]
    assert stamps_ns(images) == stamps_ns(labels) == stamps_ns(infos) == expected
    assert {message.header.frame_id for _, message in images} == {'front'}
    assert [image_to_array(message)[5, 5, 0] for _, message in images] == list(range(COUNT))
    assert [message_to_labels(message)[5, 5] for _, message in labels] == list(range(COUNT))
    assert process.returncode == 0
    assert 'played 30 messages' in output


@pytest.mark.parametrize('rate', [1.0, 2.5])
def test_messages_keep_their_distance_at_every_rate(ros_environment, listener, bag, rate):
    images = listener.listen(Image, '/camera/image_raw')
    with player(ros_environment, bag, wait_for_subscribers=1, rate=rate):
        listener.spin(lambda: len(images) == COUNT)
    arrivals = np.array([arrival for arrival, _ in images])
    # A loaded machine delays single messages; a drift would show in most of them.
    expected = np.arange(COUNT) * PERIOD_NS * 1e-9 / rate
    late = arrivals - arrivals[0] - expected
    assert np.abs(late - np.median(late)).mean() < 0.015


def test_a_loop_starts_again_one_period_after_the_last_frame(ros_environment, listener, bag):
    images = listener.listen(Image, '/camera/image_raw')
    with player(ros_environment, bag, wait_for_subscribers=1, loop=True, rate=2.0) as process:
        listener.spin(lambda: len(images) >= 3 * COUNT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 0
    numbers = [message.data[0] for _, message in images]
    assert numbers[: 3 * COUNT] == [*range(COUNT)] * 3
    span_s = images[2 * COUNT][0] - images[0][0]
    assert span_s == pytest.approx(2 * COUNT * PERIOD_NS * 1e-9 / 2, abs=0.05)


def _seconds(message):
    return message.clock.sec + message.clock.nanosec * 1e-9


def test_the_clock_shows_the_time_of_the_recording(ros_environment, listener, bag):
    clocks = listener.listen(Clock, '/clock')
    images = listener.listen(Image, '/camera/image_raw')
    with player(ros_environment, bag, wait_for_subscribers=1, clock=True, rate=0.5) as process:
        listener.spin(lambda: len(images) == COUNT)
        process.communicate(timeout=10)
        end_s = (START_NS + (COUNT - 1) * PERIOD_NS) * 1e-9
        listener.spin(lambda: clocks and _seconds(clocks[-1][1]) >= end_s - 1e-3)
    times = [message.clock.sec * 10**9 + message.clock.nanosec for _, message in clocks]
    # At half the speed, 100 messages a second are 5 ms of the recording apart.
    assert set(np.diff(times)) == {5_000_000}
    assert START_NS <= times[0] <= START_NS + 100_000_000
    assert times[-1] == START_NS + (COUNT - 1) * PERIOD_NS


def test_restamping_shifts_every_header_so_that_the_bag_begins_now(ros_environment, listener, bag):
    images = listener.listen(Image, '/camera/image_raw')
    infos = listener.listen(CameraInfo, '/camera/camera_info')
    before_ns = time.time_ns()
    with player(ros_environment, bag, wait_for_subscribers=2, restamp=True):
        listener.spin(lambda: len(images) == len(infos) == COUNT)
    stamps = stamps_ns(images)
    assert before_ns < stamps[0] < stamps[-1] < time.time_ns()
    assert set(np.diff(stamps)) == {PERIOD_NS}
    assert stamps_ns(infos) == stamps
    assert [message.data[0] for _, message in images] == list(range(COUNT))
    assert {message.header.frame_id for _, message in infos} == {'front'}


def test_the_shift_of_the_stamps_is_told(ros_environment, listener, bag):
    images = listener.listen(Image, '/camera/image_raw')
    references = listener.listen(TimeReference, '/player/time_reference')
    with player(ros_environment, bag, wait_for_subscribers=1, restamp=True):
        listener.spin(lambda: images and references)
    ((_, reference),) = references
    assert reference.time_ref.sec * 10**9 + reference.time_ref.nanosec == START_NS
    assert stamps_ns(references)[0] == stamps_ns(images)[0]


def test_topics_can_be_remapped(ros_environment, listener, bag):
    images = listener.listen(Image, '/drone/image')
    remap = '/camera/image_raw:=/drone/image'
    with player(ros_environment, bag, remap, wait_for_subscribers=1):
        listener.spin(lambda: len(images) == COUNT)


def test_best_effort_is_not_offered_to_reliable_subscribers(ros_environment, listener, bag):
    best_effort = Listener(reliability=ReliabilityPolicy.BEST_EFFORT)
    try:
        images = best_effort.listen(Image, '/camera/image_raw')
        refused = listener.listen(Image, '/camera/image_raw')
        parameters = {'wait_for_subscribers': 1, 'reliability': 'best_effort'}
        with player(ros_environment, bag, **parameters) as process:
            best_effort.spin(lambda: len(images) >= COUNT - 1)
            process.communicate(timeout=10)
    finally:
        best_effort.close()
    listener.executor.spin_once(timeout_sec=0.1)
    assert refused == []


def test_playing_begins_after_the_time_limit_without_subscribers(ros_environment, bag):
    parameters = {'wait_for_subscribers': 1, 'wait_timeout_s': 0.2, 'rate': 50.0}
    with player(ros_environment, bag, **parameters) as process:
        output, _ = process.communicate(timeout=15)
    assert process.returncode == 0
    assert '0 of 1 subscriptions after 0.2 s; playing now' in output
    assert 'played 30 messages' in output


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_player_in_good_order(ros_environment, listener, bag, number):
    images = listener.listen(Image, '/camera/image_raw')
    with player(ros_environment, bag, wait_for_subscribers=1, loop=True) as process:
        listener.spin(lambda: images)
        process.send_signal(number)
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert 'Traceback' not in output


@pytest.mark.parametrize(
    ('parameters', 'match'),
    [
        ({'bag': '/nowhere'}, '/nowhere: no such bag'),
        ({'bag': ''}, 'parameter bag is empty'),
        ({'rate': 0.0}, 'rate'),
        ({'reliability': 'perhaps'}, "reliability is 'perhaps'; it must be one of"),
        ({'loop': 3}, 'loop'),
    ],
)
def test_a_wrong_parameter_is_told_and_ends_the_player(ros_environment, parameters, match):
    with player(ros_environment, '/nowhere', **parameters) as process:
        output, _ = process.communicate(timeout=15)
    assert process.returncode == 1
    assert match in output
    assert 'Traceback' not in output


def test_a_topic_of_a_missing_type_is_passed_over_with_a_warning(
    ros_environment, listener, bag, tmp_path
):
    metadata = bag / 'metadata.yaml'
    for path in (metadata, next(bag.glob('*.mcap'))):
        # Of the same length, so that no offset in the file changes.
        path.write_bytes(
            path.read_bytes().replace(b'sensor_msgs/msg/CameraInfo', b'absent_msgs/msg/CameraInfo')
        )
    images = listener.listen(Image, '/camera/image_raw')
    with player(ros_environment, bag, wait_for_subscribers=1, rate=10.0) as process:
        listener.spin(lambda: len(images) == COUNT)
        output, _ = process.communicate(timeout=10)
    assert 'camera_info is not played: message type absent_msgs/msg/CameraInfo' in output
    assert process.returncode == 0


def test_a_shift_changes_the_stamp_alone():
    image = Image(header=Header(frame_id='a'), encoding='mono8', data=[1, 2, 3])
    image.header.stamp.sec = 5
    shift = Shift(recorded_ns=4 * 10**9, played_ns=100_000_000_007, rate=2.0)
    changed = deserialize_message(shift.apply(serialize_message(image)), Image)
    # One second after the beginning is half a second when played at twice the speed.
    assert (changed.header.stamp.sec, changed.header.stamp.nanosec) == (100, 500_000_007)
    image.header.stamp = changed.header.stamp
    assert changed == image


def test_a_shift_keeps_the_byte_order_of_the_recording():
    data = b'\0\0\0\0' + struct.pack('>iI', 1, 2) + b'rest'
    shifted = Shift(recorded_ns=1_000_000_000, played_ns=9_000_000_000, rate=1.0).apply(data)
    assert shifted == b'\0\0\0\0' + struct.pack('>iI', 9, 2) + b'rest'


def test_a_stamp_that_cannot_be_shifted_stays():
    data = b'\0\1\0\0' + struct.pack('<iI', 0, 0) + b'rest'
    now_ns = 1_700_000_000 * 10**9
    assert Shift(recorded_ns=now_ns, played_ns=now_ns, rate=0.01).apply(data) == data
