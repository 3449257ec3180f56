"""
Faults put into a real node; docs/faults.md tells of each what the node does.

The name of a case is the row of that page. A case passes where the node says a clear word on
/diagnostics or in its log, is alive and labels the next good image; or, where that cannot be, ends
or waits as the page says.
"""

from collections.abc import Callable
from contextlib import contextmanager
from math import inf, nan
from pathlib import Path
import pickle
import re
import resource
import signal
import subprocess
import sys
import time

import cv2
from dense_perception.errors import InputError
from dense_perception.labels import CITYSCAPES
from dense_perception.networks import NETWORKS, SEGMENTATION_NETWORKS
from dense_perception.ros.inference import LOST_AFTER
from dense_perception.ros.latest import Ended
from dense_perception.ros.messages import image_to_array
from dense_perception.ros.parameters import read_parameters
from dense_perception.ros.recorder import Recorder
from dense_perception.settings import PerceptionSettings
from dense_perception.weights.checkpoint import Card, Preprocessing, save_weights
from dense_perception.weights.published import find_weights
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import hypothesis
from hypothesis import strategies
from lifecycle_msgs.srv import GetState
import numpy as np
import psutil
import pytest
from rcl_interfaces.srv import ListParameters, SetParameters, SetParametersAtomically
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from safetensors.torch import save_file
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
import torch

pytestmark = pytest.mark.ros

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / 'docs' / 'faults.md'
OUTPUTS = ('labels', 'confidence', 'labels_color', 'flow', 'flow_color')


class Rig:
    """One active node that many faults are put into, and everything that it says."""

    def __init__(self, bench, frame, **parameters):
        self.running, self.frame = bench(**parameters), frame
        self.number = 0
        self.told: list[tuple[bytes, str]] = []  # of /diagnostics: level and text
        self.figures: dict[str, str] = {}  # of the newest diagnostics
        peer = self.running.peer
        peer.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 50)
        for timer in self.running.node.timers:
            timer.timer_period_ns = 50_000_000  # of diagnostics; so that tests need not wait

    def _on_diagnostics(self, message):
        (status,) = message.status  # of the only camera
        self.figures = {pair.key: pair.value for pair in status.values}
        self.told.append((status.level, status.message))
        self.told.append((status.level, self.figures['last error']))

    def activate(self):
        """Bring the node to work and connect a camera and a listener."""
        assert self.running.change('configure', 'activate')
        self.connect()

    def connect(self, kind=Image, topic='/image'):
        self.labels = self.running.listen('labels')
        self.camera = self.running.camera(kind, topic)

    def good(self, **changes):
        """Publish a good image and wait for its labels, which come within ten seconds."""
        self.number += 1
        message = self.frame(self.number, **changes)
        self.publish(message)
        self.labelled(message)
        return message

    def publish(self, message):
        if self.camera.msg_type is CompressedImage and isinstance(message, Image):
            _, data = cv2.imencode('.png', image_to_array(message)[:, :, ::-1])
            message = CompressedImage(header=message.header, format='png', data=data.tobytes())
        self.camera.publish(message)

    def labelled(self, message):
        self.running.spin(
            lambda: any(heard.header == message.header for heard in self.labels), timeout_s=10
        )
        self.labels.clear()

    def goes_on(self):
        """Label the next good image, and say nothing of it but that the node is well."""
        self.told.clear()
        self.good()
        self.says('running', level=DiagnosticStatus.OK)

    def restarts(self):
        """How often flow has begun anew, as /diagnostics tells it next."""
        self.told.clear()
        self.running.spin(lambda: bool(self.told))
        return int(self.figures['flow restarts'])

    def says(self, word, *, level=None):
        """Wait until the node tells a word on /diagnostics."""

        def heard():
            return any(word in text and level in (None, told) for told, text in self.told)

        try:
            self.running.spin(heard, timeout_s=10)
        except AssertionError:
            raise AssertionError(f'{word!r} is not in {self.told[-10:]}') from None


def part_of(request, folder, name):
    """Something of a conftest.py; fixtures for a whole file cannot use those of one test."""
    return getattr(request.config.pluginmanager.get_plugin(str(folder / 'conftest.py')), name)


@contextmanager
def shared(request, **parameters):
    """Start a node for a whole file, in a domain of its own, and close it afterwards."""
    domain, claim = part_of(request, HERE.parent, 'claim_domain')()
    profile = part_of(request, HERE.parent, 'PROFILE')
    with claim, pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', str(domain))
        patch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', str(profile))
        rig = Rig(part_of(request, HERE, 'Bench'), part_of(request, HERE, 'frame'), **parameters)
        rig.domain = domain
        try:
            yield rig
        finally:
            rig.running.close()


@pytest.fixture(scope='module')
def raw(request):
    """An active node whose labels and flow are wanted."""
    with shared(request) as rig:
        rig.activate()
        rig.flow = rig.running.listen('flow')
        yield rig


@pytest.fixture
def rig(raw):
    """The shared node, as after a good image, and nothing told of it yet."""
    raw.good()
    raw.told.clear()
    return raw


def spoiled(frame, **changes):
    message = frame(5)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


# Images that cannot be read. frame() is rgb8, 64 x 48, step 192, 9216 bytes.

BAD_IMAGES = {
    'encoding empty': ({'encoding': ''}, "image encoding is ''"),
    'encoding unknown': ({'encoding': 'rgb565'}, "image encoding is 'rgb565'"),
    'encoding in capitals': ({'encoding': 'RGB8'}, "image encoding is 'RGB8'"),
    'encoding not ASCII': ({'encoding': 'rgb8é'}, "image encoding is 'rgb8é'"),
    'encoding of a megabyte': ({'encoding': 'x' * 2**20}, f"image encoding is '{'x' * 40}'"),
    'encoding of floats': ({'encoding': '32FC1'}, "image encoding is '32FC1'"),
    'encoding with a channel more': ({'encoding': 'rgba8'}, 'has step 192; it must be 256'),
    'encoding with wider samples': ({'encoding': 'bgr16'}, 'has step 192; it must be 384'),
    'step 0': ({'step': 0}, 'has step 0; it must be 192'),
    'step a byte short': ({'step': 191}, 'has step 191; it must be 192'),
    'step absurd': ({'step': 2**32 - 1}, 'step 4294967295 has 9216 bytes'),
    'width 0': ({'width': 0}, 'is 0 x 48'),
    'height 0': ({'height': 0}, 'is 64 x 0'),
    'no size and no data': ({'width': 0, 'height': 0, 'step': 0, 'data': b''}, 'is 0 x 0'),
    'width absurd': ({'width': 2**32 - 1}, 'is 4294967295 x 48; at most'),
    'height absurd': ({'height': 2**32 - 1}, 'is 64 x 4294967295; at most'),
    'size absurd': ({'width': 2**31, 'height': 2**31}, 'is 2147483648 x 2147483648; at most'),
    'a row more than the data': ({'height': 49}, 'has 9216 bytes of data; it must have 9408'),
    'data empty': ({'data': b''}, 'has 0 bytes of data'),
    'data a byte short': ({'data': bytes(9215)}, 'has 9215 bytes of data; it must have 9216'),
    'odd height of nv12': ({'encoding': 'nv12', 'height': 47}, 'is 64 x 47; colour pairs'),
    'odd width of yuyv': ({'encoding': 'yuyv', 'width': 63}, 'is 63 x 48; colour pairs'),
}


@pytest.mark.parametrize('name', BAD_IMAGES)
def test_a_bad_image_is_told_and_costs_only_itself(rig, name):
    changes, word = BAD_IMAGES[name]
    bad = rig.running.statistics().bad
    rig.publish(spoiled(rig.frame, **changes))
    rig.says(word, level=DiagnosticStatus.WARN)
    assert rig.running.statistics().bad == bad + 1
    assert not rig.labels
    rig.good()


# Images that look wrong and can be read.

ODD_IMAGES = {
    'data longer than the size': {'data': bytes(9216 + 1000)},
    'padded rows': {'step': 200, 'data': bytes(200 * 48)},
    'big-endian flag on bytes': {'is_bigendian': 1},
    'big-endian flag of 255': {'is_bigendian': 255},
    'big-endian 16 bits': {
        'encoding': 'rgb16',
        'step': 384,
        'data': bytes(384 * 48),
        'is_bigendian': 1,
    },
    'one pixel': {'width': 1, 'height': 1, 'step': 3, 'data': b'abc'},
    'one row': {'height': 1},
    'one column': {'width': 1},
    'all of one grey': {'data': b'\x7f' * 9216},
}


@pytest.mark.parametrize('name', ODD_IMAGES)
def test_an_odd_image_is_labelled_on_its_own_grid(rig, name):
    rig.number += 1
    message = rig.frame(rig.number)
    for field, value in ODD_IMAGES[name].items():
        setattr(message, field, value)
    rig.publish(message)
    rig.running.spin(lambda: bool(rig.labels))
    (labels,) = rig.labels
    assert (labels.height, labels.width) == (message.height, message.width)
    assert labels.header == message.header
    rig.labels.clear()
    rig.goes_on()


FRAME_IDS = {'empty': '', 'no name': '/no/such frame', 'of 100 kilobytes': 'x' * 100_000}


@pytest.mark.parametrize('name', FRAME_IDS)
def test_a_strange_frame_id_is_carried_over(rig, name):
    rig.number += 1
    message = rig.frame(rig.number)
    message.header.frame_id = FRAME_IDS[name]
    rig.publish(message)
    rig.labelled(message)
    rig.goes_on()


# Stamps, in seconds and nanoseconds; the image before has 1000 s and a tenth for each image.

STAMPS = {
    'frozen': [(2000, 0), (2000, 0), (2000, 0)],
    'backward': [(2000, 0), (1999, 0), (1998, 0)],
    'back to zero': [(0, 0)],
    'a day ahead': [(2000 + 86400, 0)],
    'the last second of 32 bits': [(2**31 - 1, 999_999_999)],
    'more nanoseconds than a second': [(2000, 2**32 - 1)],
}


@pytest.mark.parametrize('name', STAMPS)
def test_images_with_strange_stamps_are_labelled_and_flow_begins_anew(rig, name):
    strange, restarts = [], rig.restarts()
    for seconds, nanoseconds in STAMPS[name]:
        message = rig.frame(5)
        message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanoseconds
        rig.publish(message)
        rig.labelled(message)
        strange.append(message.header)
    rig.goes_on()
    assert rig.restarts() == restarts + len(strange) + 1  # and at the good image after them
    message = rig.good()
    rig.running.spin(lambda: any(heard.header == message.header for heard in rig.flow))
    assert not any(heard.header in strange for heard in rig.flow)
    rig.flow.clear()


def test_a_stamp_before_time_is_told_and_costs_only_its_image(rig):
    message = rig.frame(5)
    message.header.stamp.sec = -5
    rig.publish(message)
    rig.says('image stamp is -5 s', level=DiagnosticStatus.WARN)
    rig.flow.clear()
    rig.good()
    rig.good()
    rig.running.spin(lambda: bool(rig.flow))


# Camera descriptions.

BAD_CAMERAS = {
    'k not a number': ({'k': [nan] * 9}, 'camera info k is'),
    'd infinite': ({'d': [inf]}, 'camera info d is'),
    'r not a number': ({'r': [nan] * 9}, 'camera info r is'),
    'p not a number': ({'p': [nan] * 12}, 'camera info p is'),
    'size 0': ({'width': 0}, 'camera info is for 0 x 48'),
    'not calibrated': ({'k': [0.0] * 9}, 'is the camera calibrated?'),
    'focal length negative': ({'k': [-50.0, 0, 0, 0, 50.0, 0, 0, 0, 1]}, 'lengths -50.0 and 50'),
}


@pytest.mark.parametrize('name', BAD_CAMERAS)
def test_a_bad_camera_info_is_told_and_labels_go_on(rig, name):
    changes, word = BAD_CAMERAS[name]
    running = rig.running
    outgoing = running.listen('camera_info', CameraInfo)
    infos = running.camera(CameraInfo, '/camera_info')
    right = {'width': 64, 'height': 48, 'k': [50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1]}

    def until(condition, info):
        def sent():
            infos.publish(info)
            rig.good()
            return condition()

        running.spin(sent)

    until(lambda: any(word in text for _, text in rig.told), CameraInfo(**{**right, **changes}))
    outgoing.clear()
    rig.good()
    rig.good()
    assert not outgoing
    until(lambda: bool(outgoing), CameraInfo(**right))
    running.peer.destroy_publisher(infos)


# Compressed images.


@pytest.fixture(scope='module')
def packed(request):
    """An active node that reads compressed images."""
    with shared(request, image_transport='compressed', flow_weights='') as rig:
        assert rig.running.change('configure', 'activate')
        rig.connect(CompressedImage, '/image/compressed')
        yield rig


def png(height=48, width=64):
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode('.png', pixels)[1].tobytes()


def jpeg():
    return cv2.imencode('.jpg', np.zeros((48, 64, 3), np.uint8))[1].tobytes()


def claiming(data, width, height):
    """A PNG whose header claims another size."""
    return data[:16] + width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + data[24:]


def behind(data, added, place=2):
    """A picture with bytes added, by default behind the start of a JPEG."""
    return data[:place] + added + data[place:]


# JPEG segments: a frame of 8 x 8, and a scan.
FRAME = b'\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00'
SCAN = b'\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x10'
# A marker without a length, and a comment in which a length read there finds the frame.
MISLEADING = b'\xff\xd0\x00\x06\xff\xfe\x00\x0f' + FRAME
ANIMATION = b'\0\0\0\x08acTL\0\0\0\x02\0\0\0\0\xf3\x8d\x93\x70'  # a PNG chunk

BAD_PACKETS = {
    'nothing': (b'', 'of 0 bytes is neither JPEG nor PNG'),
    'garbage': (b'garbage', 'of 7 bytes is neither JPEG nor PNG'),
    'another format': (b'GIF89a' + bytes(100), 'is neither JPEG nor PNG'),
    'JPEG cut short': (jpeg()[:-20], 'is cut short or damaged'),
    'PNG cut short': (png()[: len(png()) // 2], 'is cut short or damaged'),
    'JPEG of a header alone': (jpeg()[:10] + b'\xff\xd9', 'is cut short or damaged'),
    'PNG damaged': (png()[:100] + bytes(200) + png()[300:], 'is damaged and cannot be decoded'),
    'PNG of an absurd size': (claiming(png(), 2**31 - 1, 2**31 - 1), 'at most 67108864 pixels'),
    'PNG of size 0': (claiming(png(), 0, 48), '0 x 48'),
    'JPEG with a marker out of place': (behind(jpeg(), MISLEADING), 'is cut short or damaged'),
    'JPEG of two frames': (behind(jpeg(), FRAME), 'is cut short or damaged'),
    'JPEG of a thousand scans': (behind(jpeg(), SCAN * 1000, -2), 'has 1001 scans; at most 64'),
    'PNG that is animated': (behind(png(), ANIMATION, 33), 'is animated'),
}


@pytest.mark.parametrize('name', BAD_PACKETS)
def test_a_bad_compressed_image_is_told_and_costs_only_itself(packed, name):
    data, word = BAD_PACKETS[name]
    packed.told.clear()
    packed.publish(CompressedImage(format='jpeg', data=data))
    packed.says(word, level=DiagnosticStatus.WARN)
    packed.good()


# Streams.


def test_the_encoding_may_change_in_mid_stream(rig):
    for encoding, step in (('mono8', 64), ('bgra8', 256), ('mono16', 128), ('rgb8', 192)):
        rig.number += 1
        message = rig.frame(rig.number)
        message.encoding, message.step, message.data = encoding, step, bytes(48 * step)
        rig.publish(message)
        rig.labelled(message)
    rig.goes_on()


def test_two_cameras_on_one_topic_are_labelled_in_turn(rig):
    restarts = rig.restarts()
    sent = [rig.good(size=size).header for size in ((30, 40), (48, 64)) * 3]
    assert rig.restarts() == restarts + 6
    assert not any(heard.header in sent for heard in rig.flow)
    rig.goes_on()


def test_a_camera_that_is_lost_is_told_and_its_return_too(rig):
    running = rig.running
    assert running.set(silence_warning_s=0.2).successful
    running.peer.destroy_publisher(rig.camera)
    rig.says('nobody publishes /image', level=DiagnosticStatus.WARN)
    rig.camera = running.camera()
    rig.good()
    rig.told.clear()
    assert running.set(silence_warning_s=2.0).successful
    rig.good()
    rig.says('running', level=DiagnosticStatus.OK)


def test_a_frozen_camera_is_told(rig):
    assert rig.running.set(silence_warning_s=0.2).successful
    rig.says('but no image arrives', level=DiagnosticStatus.ERROR)
    assert rig.running.set(silence_warning_s=2.0).successful
    rig.good()


def test_of_a_second_at_100_hz_the_newest_is_labelled_and_dropped_images_are_counted(rig):
    before = settled(rig)
    due = time.monotonic()
    for _ in range(100):
        rig.number += 1
        message = rig.frame(rig.number)
        rig.publish(message)
        due += 0.01
        rig.running.spin_for(max(0.0, due - time.monotonic()))
    rig.running.spin(
        lambda: any(heard.header == message.header for heard in rig.labels), timeout_s=10
    )
    stamps = [heard.header.stamp.sec * 10**9 + heard.header.stamp.nanosec for heard in rig.labels]
    assert stamps == sorted(stamps)
    received, dropped, processed = np.subtract(settled(rig), before)
    assert received == dropped + processed
    assert processed >= len(stamps)
    rig.goes_on()
    assert int(rig.figures['images dropped']) == rig.running.statistics().dropped


def settled(rig):
    """Images received, dropped and processed, once none is in work."""
    statistics = rig.running.statistics()

    def figures():
        return statistics.received, statistics.dropped, statistics.processed + statistics.bad

    rig.running.spin(lambda: figures()[0] == sum(figures()[1:]))
    return figures()


def test_ten_subscribers_come_and_go_and_leave_nothing_behind(rig):
    running, node = rig.running, rig.running.node
    labels = next(p for p in node.publishers if p.topic_name.endswith('/labels'))
    before = labels.get_subscription_count()
    for _ in range(3):
        visitors = [
            running.peer.create_subscription(
                Image, f'/dense_perception/{OUTPUTS[i % 5]}', lambda _: None, 1
            )
            for i in range(10)
        ]
        running.spin(lambda: labels.get_subscription_count() == before + 2)
        rig.good()
        for visitor in visitors:
            running.peer.destroy_subscription(visitor)
        running.spin(lambda: labels.get_subscription_count() == before)
        rig.goes_on()


def test_bytes_that_are_no_message_cost_nothing(rig):
    for data in (b'', b'\0\1\0\0', b'\0\1\0\0garbage', b'\xff' * 100, b'\0\1\0\0' + b'\xff' * 99):
        rig.camera.publish(data)
        rig.running.spin_for(0.02)
    rig.goes_on()


def test_a_publisher_of_another_type_on_the_topic_costs_nothing(rig):
    context = Context()  # one participant gives a topic one type
    rclpy.init(context=context, domain_id=rig.domain)
    stranger = rclpy.create_node('stranger', context=context)
    other = stranger.create_publisher(CompressedImage, '/image', 1)
    rig.running.spin(lambda: rig.running.node.count_publishers('/image') == 2)
    other.publish(CompressedImage(format='jpeg', data=b'abc'))
    rig.good()
    stranger.destroy_node()
    context.try_shutdown()
    rig.goes_on()


QUALITIES = {
    'best effort': QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT),
    'reliable and latched': QoSProfile(
        depth=1,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    ),
    'a thousand deep': QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE),
}


@pytest.mark.parametrize('name', QUALITIES)
def test_a_camera_of_any_quality_is_labelled(rig, name):
    running, usual = rig.running, rig.camera
    rig.camera = running.peer.create_publisher(Image, '/image', QUALITIES[name])
    running.spin(lambda: rig.camera.get_subscription_count() > 0)
    rig.goes_on()
    running.peer.destroy_publisher(rig.camera)
    rig.camera = usual


def test_without_the_clock_that_it_is_told_to_use_the_node_labels_on(rig):
    running = rig.running
    clock = running.peer.create_publisher(Clock, '/clock', 10)
    assert running.set(use_sim_time=True).successful
    running.spin(lambda: clock.get_subscription_count() > 0)
    clock.publish(Clock())
    rig.good()
    running.peer.destroy_publisher(clock)
    rig.told.clear()

    def told():
        rig.good()
        return any('/clock has stood still' in text for _, text in rig.told)

    running.spin(told)
    rig.says('/clock has stood still', level=DiagnosticStatus.WARN)
    assert running.set(use_sim_time=False).successful
    rig.goes_on()


# Parameters.

BAD_PARAMETERS = {
    'unknown name': ('no_such_parameter', 1, 'declared'),
    'another type': ('overlay_opacity', 'much', 'type'),
    'an array': ('overlay_opacity', [0.5, 0.6], 'type'),
    'unset': ('overlay_opacity', None, 'cannot be undeclared'),
    'out of range': ('overlay_opacity', 1.5, 'overlay_opacity'),
    'not a number': ('overlay_opacity', nan, 'overlay_opacity'),
    'infinite': ('max_flow_gap_s', inf, 'max_flow_gap_s'),
    'not changeable now': ('device', 'cuda:7', 'cannot change while the node is configured'),
    'a megabyte': ('segmentation_weights', '/' * 2**20, 'cannot change while the node'),
    'not a choice': ('image_transport', 'theora', 'must be one of raw, compressed'),
    'a path upwards': ('flow_weights', '../../../../etc/passwd', 'a path must not hold ..'),
}


@pytest.mark.parametrize('name', BAD_PARAMETERS)
def test_a_bad_parameter_is_refused_with_a_reason(rig, name):
    parameter, value, reason = BAD_PARAMETERS[name]
    before = values_of(rig)
    result = rig.running.set(**{parameter: value})
    assert not result.successful
    assert reason in result.reason
    assert values_of(rig) == before
    rig.good()


def values_of(rig):
    """Every setting of the node, as its parameters hold it."""
    names = PerceptionSettings.__dataclass_fields__
    return {name: rig.running.node.get_parameter(name).value for name in names}


def test_a_good_parameter_together_with_a_bad_one_is_refused_too(rig):
    before = values_of(rig)
    values = {'overlay_opacity': 0.25, 'max_flow_gap_s': -1.0}
    request = SetParametersAtomically.Request(
        parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
    )
    response = rig.running.call(SetParametersAtomically, 'set_parameters_atomically', request)
    assert not response.result.successful
    assert values_of(rig) == before
    rig.good()


def test_any_parameters_are_taken_or_refused_and_the_node_labels_on(rig):
    client = rig.running.peer.create_client(SetParameters, '/dense_perception/set_parameters')
    rig.running.spin(client.service_is_ready)
    values = (
        strategies.booleans()
        | strategies.integers(-(2**63), 2**63 - 1)
        | strategies.floats()
        | strategies.text(max_size=50)
        | strategies.lists(strategies.floats(), min_size=1, max_size=3)
    )
    names = strategies.sampled_from(sorted(PerceptionSettings.__dataclass_fields__))
    text = strategies.text(min_size=1, max_size=20)

    @hypothesis.settings(max_examples=60, deadline=None, database=None)
    @hypothesis.given(strategies.dictionaries(names | text, values, min_size=1, max_size=3))
    def check(chosen):
        parameters = [
            Parameter(name, value=value).to_parameter_msg()
            for name, value in chosen.items()
            if '\0' not in name and '\0' not in str(value)  # ends a string in C
        ]
        future = client.call_async(SetParameters.Request(parameters=parameters))
        rig.running.spin(future.done)
        results = future.result().results
        assert len(results) == len(parameters)
        assert all(result.successful or result.reason for result in results)
        read_parameters(rig.running.node, PerceptionSettings)  # raises on what is not allowed

    check()
    rig.running.peer.destroy_client(client)
    rig.good()
    defaults = PerceptionSettings()
    assert rig.running.set(silence_warning_s=defaults.silence_warning_s).successful


# Weights.


@pytest.fixture(scope='module')
def idle(request):
    """A node that is not configured; its parameters may change."""
    with shared(request, flow_weights='') as rig:
        yield rig


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def trapped(path, good):
    path.write_bytes(pickle.dumps(Trap(path.with_name('sprung'))))


def trapped_checkpoint(path, good):
    torch.save({'conv1_1.weight': Trap(path.with_name('sprung'))}, path)


BAD_WEIGHTS = {
    'missing': (lambda path, good: None, 'no such file'),
    'a folder': (lambda path, good: path.mkdir(), 'no such file'),
    'empty': (lambda path, good: path.write_bytes(b''), 'truncated'),
    'random bytes': (lambda path, good: path.write_bytes(b'\x99' * 5000), 'truncated'),
    'header cut short': (lambda path, good: path.write_bytes(good[:200]), 'truncated'),
    'tensors cut short': (lambda path, good: path.write_bytes(good[:-1000]), 'damaged'),
    'header absurd': (lambda path, good: path.write_bytes(b'\xff' * 8 + good[8:]), 'truncated'),
    'header damaged': (lambda path, good: path.write_bytes(good[:8] + b'[' + good[9:]), 'damaged'),
    'without a card': (lambda path, good: save_file({'a': torch.ones(1)}, path), 'no card in it'),
    'for flow': (
        lambda path, good: path.write_bytes(find_weights('flow').read_bytes()),
        'is no segmentation network',
    ),
    'a pickle': (trapped, 'truncated'),
    'a torch checkpoint': (trapped_checkpoint, 'truncated'),
}


@pytest.mark.parametrize('name', BAD_WEIGHTS)
def test_bad_weights_are_told_and_the_node_works_once_they_are_right(idle, tmp_path, name):
    spoil, word = BAD_WEIGHTS[name]
    running, path = idle.running, tmp_path / 'weights.safetensors'
    spoil(path, find_weights('drive').read_bytes())
    idle.told.clear()
    assert running.set(segmentation_weights=str(path)).successful
    assert not running.change('configure')
    assert running.state() == 'unconfigured'
    idle.says('cannot be configured: ', level=DiagnosticStatus.ERROR)
    idle.says(word, level=DiagnosticStatus.ERROR)
    idle.says(str(path), level=DiagnosticStatus.ERROR)
    assert not path.with_name('sprung').exists()
    assert running.set(segmentation_weights='drive').successful
    idle.activate()
    idle.good()
    assert running.change('deactivate', 'cleanup')


# Networks that fail, as on a GPU that is out of memory or lost.


class Failing(torch.nn.Module):
    """A network that scores 19 classes by three numbers, or raises what a test puts in."""

    error: BaseException | None = None
    lost = False  # whether every call raises what one on a lost device does

    def __init__(self, classes: int) -> None:
        super().__init__()
        # Padded, so that scores cover every input; out of memory, a smaller one is tried.
        self.score = torch.nn.Conv2d(3, classes, 8, stride=8, padding=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        error, Failing.error = Failing.error, None
        if Failing.lost:
            raise device_lost()
        if error is not None:
            raise error
        rows, columns = images.shape[2:]  # a score stands for what is left at the border, too
        return self.score(torch.nn.functional.pad(images, (0, -columns % 8, 0, -rows % 8)))


@pytest.fixture(scope='module')
def failing_weights(tmp_path_factory):
    """Weights of a network that raises what a test puts in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, 'failing', Failing)
        patch.setitem(SEGMENTATION_NETWORKS, 'failing', Failing)
        path = tmp_path_factory.mktemp('weights') / 'failing.safetensors'
        card = Card('failing', {'classes': len(CITYSCAPES)}, Preprocessing(), CITYSCAPES.name)
        save_weights(path, card.build(), card)
        yield path


@pytest.fixture(scope='module')
def fragile(request, failing_weights):
    """An active node whose network raises what is put into `Failing.error`, once."""
    with shared(request, segmentation_weights=str(failing_weights), flow_weights='') as rig:
        rig.activate()
        yield rig


def out_of_memory():
    return torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')


def device_lost():
    kind = getattr(torch, 'AcceleratorError', RuntimeError)  # of newer torch
    return kind('CUDA error: unspecified launch failure')


ERRORS: dict[str, tuple[Callable[[], BaseException], str]] = {
    'out of GPU memory': (out_of_memory, 'OutOfMemoryError: CUDA out of memory'),
    'GPU lost': (device_lost, 'Error: CUDA error'),
    'GPU driver gone': (lambda: RuntimeError('No CUDA GPUs are available'), 'No CUDA GPUs'),
    'out of memory': (MemoryError, 'MemoryError'),
    'disk full': (lambda: OSError(28, 'No space left on device'), 'No space left on device'),
    'recursion': (lambda: RecursionError('maximum depth'), 'RecursionError'),
    'assertion': (lambda: AssertionError('shape'), 'AssertionError: shape'),
}


@pytest.mark.parametrize('name', ERRORS)
def test_an_error_of_the_network_is_told_and_costs_only_its_image(fragile, name):
    make, word = ERRORS[name]
    fragile.good()
    fragile.told.clear()
    Failing.error = make()
    fragile.publish(fragile.frame(5))
    fragile.says(word, level=DiagnosticStatus.WARN)
    fragile.good()


def test_a_gpu_that_stays_lost_costs_a_few_images_and_then_ends_the_node(
    bench, frame, failing_weights, monkeypatch
):
    ends: list = []
    monkeypatch.setattr('threading.excepthook', lambda end: ends.append(end.exc_value))
    monkeypatch.setattr(Failing, 'lost', False)
    rig = Rig(bench, frame, segmentation_weights=str(failing_weights), flow_weights='')
    rig.connect()
    rig.good()
    Failing.lost = True
    for number in range(LOST_AFTER):
        assert rig.running.thread.is_alive()
        rig.publish(frame(10 + number))
        rig.running.spin(lambda: rig.running.statistics().bad == number + 1)  # noqa: B023
    rig.says('inference has stopped: the device fails all', level=DiagnosticStatus.ERROR)
    rig.says('CUDA error: unspecified launch failure', level=DiagnosticStatus.ERROR)
    rig.running.thread.join(10)
    assert not rig.running.thread.is_alive()
    (end,) = ends
    assert isinstance(end, Ended)  # of which `run` makes a fatal line and status 1


def test_errors_of_the_device_between_good_images_are_no_end(fragile):
    for _ in range(LOST_AFTER + 1):
        bad = fragile.running.statistics().bad
        Failing.error = device_lost()
        fragile.publish(fragile.frame(5))
        fragile.running.spin(lambda: fragile.running.statistics().bad == bad + 1)  # noqa: B023
        fragile.good()


ENDING = """
import sys

from dense_perception.ros import free_space_node, node
from dense_perception.ros.latest import LatestOfEach


def killed(*arguments):
    raise SystemExit('killed')


LatestOfEach.take = killed
sys.exit({module}.main())
"""
ENDINGS = {  # module of the node, and what it is told
    'perception node': ('node', ['autostart:=true', 'device:=cpu', 'segmentation_width:=64']),
    'free-space node': ('free_space_node', ['mounting:=parameters']),
}


@pytest.mark.parametrize('name', ENDINGS)
def test_a_process_whose_thread_of_work_is_gone_ends_with_status_1(ros_environment, name):
    module, values = ENDINGS[name]
    parameters = [argument for value in values for argument in ('-p', value)]
    command = [sys.executable, '-c', ENDING.format(module=module), '--ros-args', *parameters]
    done = subprocess.run(
        command, env=dict(ros_environment), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r'\[FATAL\].* has stopped: SystemExit: killed', done.stderr)
    assert 'Traceback' not in done.stderr


def test_the_thread_that_runs_the_networks_outlives_a_call_to_exit(fragile):
    fragile.good()
    fragile.told.clear()
    Failing.error = SystemExit('killed')
    fragile.publish(fragile.frame(5))
    fragile.says('SystemExit')
    fragile.good()


def test_the_thread_that_runs_the_networks_outlives_an_error_of_its_own(rig, monkeypatch):
    def raises(*arguments):
        patch.undo()
        raise RuntimeError('thrown between two steps')

    bad = rig.running.statistics().bad
    with monkeypatch.context() as patch:
        patch.setattr('dense_perception.ros.predictions.Predictions.labels', raises)
        rig.publish(rig.frame(5))
        rig.says('RuntimeError: thrown between two steps', level=DiagnosticStatus.WARN)
    assert rig.running.statistics().bad == bad + 1
    rig.good()


# Transitions.

TRANSITIONS = {  # what rclpy raises in, and what is said of it
    'deactivate': ('destroy_subscription', 'cannot be deactivated'),
    'cleanup': ('destroy_lifecycle_publisher', 'cannot be cleaned up'),
    'shutdown': ('destroy_subscription', 'cannot be shut down'),
}


def raising(monkeypatch, node, function, times=1):
    """Let a function of a node raise when it is called next."""
    original = getattr(node, function)
    left = [times]

    def raises(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            monkeypatch.setattr(node, function, original)
        raise RuntimeError('thrown by rclpy')

    monkeypatch.setattr(node, function, raises)


@pytest.mark.parametrize('name', TRANSITIONS)
def test_an_error_in_a_transition_is_told_and_the_node_can_be_configured_again(
    idle, monkeypatch, capfd, name
):
    running = idle.running
    function, complaint = TRANSITIONS[name]
    idle.activate()
    if name == 'cleanup':
        assert running.change('deactivate')
    idle.told.clear()
    raising(monkeypatch, running.node, function)
    running.change(name)
    cause = f'{complaint}: RuntimeError: thrown by rclpy'
    assert f'a transition failed; everything is let go: {cause}' in capfd.readouterr().err
    assert running.state() == 'unconfigured'
    idle.says(cause, level=DiagnosticStatus.ERROR)
    idle.activate()
    idle.good()
    assert running.change('deactivate', 'cleanup')


def test_an_activation_that_cannot_be_taken_back_either_is_told_and_may_be_tried_again(
    idle, monkeypatch
):
    running = idle.running
    assert running.change('configure')
    idle.told.clear()
    original = running.node.create_subscription

    def create(kind, topic, *arguments, **options):
        if topic == 'camera_info':  # the image's is there already, and has to be taken back
            monkeypatch.setattr(running.node, 'create_subscription', original)
            raising(monkeypatch, running.node, 'destroy_subscription')
            raise RuntimeError('thrown by rclpy')
        return original(kind, topic, *arguments, **options)

    monkeypatch.setattr(running.node, 'create_subscription', create)
    running.change('activate')
    assert running.state() == 'unconfigured'
    idle.says('cannot be activated, nor left as it was', level=DiagnosticStatus.ERROR)
    idle.activate()
    idle.good()
    assert running.change('deactivate', 'cleanup')


# Callbacks, whatever rclpy calls in the node.


def subscription_of(node, topic):
    return next(entry for entry in node.subscriptions if entry.topic_name == topic)


def service_of(node, name):
    return next(entry for entry in node.services if entry.srv_name.endswith(name))


CALLED = {  # in the node: what has the callback, and what makes rclpy call it
    'image': (
        lambda node: subscription_of(node, '/image'),
        lambda rig: rig.publish(rig.frame(5)),
    ),
    'camera_info': (
        lambda node: subscription_of(node, '/camera_info'),
        lambda rig: rig.running.camera(CameraInfo, '/camera_info').publish(CameraInfo()),
    ),
    'timer': (lambda node: next(iter(node.timers)), lambda rig: None),
    'service': (
        lambda node: service_of(node, '/list_parameters'),
        lambda rig: rig.running.ask(ListParameters, 'list_parameters', ListParameters.Request()),
    ),
    'transition service': (
        lambda node: service_of(node, '/get_state'),
        lambda rig: rig.running.ask(GetState, 'get_state', GetState.Request()),
    ),
    'event of a topic': (
        lambda node: subscription_of(node, '/image').event_handlers[0],
        lambda rig: stranger(rig),
    ),
}


def stranger(rig):
    """Publish the image with a quality that the node's does not accept."""
    quality = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    rig.stranger = rig.running.peer.create_publisher(Image, '/image', quality)


@pytest.fixture(scope='module')
def strict(request):
    """An active node that asks for reliable images."""
    asked = {'qos_overrides./image.subscription.reliability': 'reliable'}
    with shared(request, flow_weights='', **asked) as rig:
        rig.activate()
        yield rig


@pytest.mark.parametrize('name', CALLED)
def test_what_a_callback_raises_is_told_and_costs_that_call_alone(strict, capfd, name):
    find, call = CALLED[name]
    strict.good()
    strict.told.clear()
    entity = find(strict.running.node)
    original = entity.callback

    def raises(*arguments):
        entity.callback = original
        raise RuntimeError(f'thrown in {name}')

    entity.callback = raises
    call(strict)
    strict.says(f'error in a callback: RuntimeError: thrown in {name}')
    assert f'thrown in {name}' in capfd.readouterr().err
    strict.good()


def test_parameters_that_cannot_be_checked_are_refused_with_the_reason(rig, monkeypatch):
    def fails(*arguments):
        raise RuntimeError('thrown in the check')

    with monkeypatch.context() as patch:
        patch.setattr('dense_perception.ros.node.change_settings', fails)
        result = rig.running.set(overlay_opacity=0.3)
    assert not result.successful
    assert 'thrown in the check' in result.reason
    rig.says('parameters cannot be checked: RuntimeError: thrown in the check')
    rig.good()


# Recording.


def test_a_bag_on_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    code = (
        'import resource, signal, sys; from pathlib import Path; import numpy as np; '
        'from dense_perception.data.drives import DriveFrame; '
        'from dense_perception.errors import InputError; '
        'from dense_perception.ros.bags import write_drive; '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); '
        'frames = (DriveFrame(i * 10**8, np.random.default_rng(i).integers(0, 256, (96, 128, 3), '
        'np.uint8), None) for i in range(50))\n'
        'try:\n    write_drive(Path(sys.argv[1]), frames)\n'
        'except InputError as error:\n    print(error)'
    )
    command = [sys.executable, '-c', code, str(tmp_path / 'bag')]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f'{tmp_path / "bag"}: cannot be written: ' in done.stdout
    assert not (tmp_path / 'bag').exists()


def test_labels_that_cannot_be_recorded_end_the_recording_with_the_reason(rig, tmp_path):
    message = rig.frame(7)
    stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
    (tmp_path / f'labels_{stamp_ns}.npy').symlink_to('/dev/full')
    rclpy.init(domain_id=rig.domain)
    recorder = Recorder(tmp_path, '/image')
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)

    def record():
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            rig.publish(message)
            executor.spin_once(timeout_sec=0.1)

    try:
        with pytest.raises(InputError, match=f'labels_{stamp_ns}.npy: cannot be written: No sp'):
            record()
    finally:
        executor.shutdown()
        recorder.destroy_node()
        rclpy.try_shutdown()
    rig.labels.clear()
    rig.good()


# Processes: a node that dies is started again by launch.

RESPAWNING = """
import sys
from launch import LaunchDescription
from launch.actions import ExecuteProcess


def generate_launch_description():
    return LaunchDescription(
        [ExecuteProcess(cmd={command!r}, respawn=True, respawn_delay=0.5, output='screen')]
    )
"""
# Raises once in the callback that a file names, or for `work` in the thread of the networks, as
# soon as that file appears.
TRAPS = """
import pathlib
import sys

from dense_perception.ros.latest import LatestOfEach
from dense_perception.ros.node import main
from rclpy.node import Node

trap = pathlib.Path(sys.argv.pop(1))


def guarded(name, callback):
    def call(*arguments):
        if trap.exists() and trap.read_text() == name:
            trap.unlink()
            raise RuntimeError(f'thrown in {name}')
        return callback(*arguments)

    return call


def wrap(method, place, name_of):
    original = getattr(Node, method)

    def create(self, *arguments, **options):
        arguments = list(arguments)
        arguments[place] = guarded(name_of(arguments), arguments[place])
        return original(self, *arguments, **options)

    setattr(Node, method, create)


LatestOfEach.take = guarded('work', LatestOfEach.take)
wrap('create_subscription', 2, lambda arguments: arguments[1])
wrap('create_timer', 1, lambda arguments: 'timer')
wrap('create_service', 2, lambda arguments: arguments[1].split('/')[-1])
wrap('add_on_set_parameters_callback', 0, lambda arguments: 'parameters')
sys.exit(main())
"""
ARGUMENTS = [
    '--ros-args',
    *('-p', 'autostart:=true', '-p', 'device:=cpu', '-p', 'segmentation_width:=64'),
    *('-p', "flow_weights:=''"),
]


class Process:
    """A launched node that is started again when it dies, and a peer that uses it."""

    def __init__(self, launched, rig_of_peer, tmp_path):
        self.trap = tmp_path / 'trap'
        script = tmp_path / 'node.py'
        script.write_text(TRAPS)
        file = tmp_path / 'respawn.launch.py'
        command = [sys.executable, str(script), str(self.trap), *ARGUMENTS]
        file.write_text(RESPAWNING.format(command=command))
        self.launch = launched(file)
        self.peer = rig_of_peer
        self.labels = []
        self.told = []
        node = self.peer.peer
        node.create_subscription(Image, '/dense_perception/labels', self.labels.append, 10)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self.camera = node.create_publisher(Image, '/image', 1)
        self.infos = node.create_publisher(CameraInfo, '/camera_info', 1)

    def _on_diagnostics(self, message):
        for status in message.status:
            self.told.append(status.message)

    def labelled(self, timeout_s=10.0):
        """Publish until labels of a new image come."""
        number = int(time.monotonic() * 1000)
        message = self.peer.frame(1, stamp_ns=number * 10**6)

        def sent():
            self.camera.publish(message)
            return any(heard.header == message.header for heard in self.labels)

        self.peer.spin(sent, timeout_s=timeout_s)

    def node(self):
        """The process that runs the node now."""
        children = psutil.Process(self.launch.process.pid).children()
        (found,) = [child for child in children if 'node.py' in ' '.join(child.cmdline())]
        return found


class Peer:
    """A node of another process than the launched one."""

    def __init__(self, frame):
        self.frame = frame
        self.context = Context()
        rclpy.init(context=self.context)
        self.peer = rclpy.create_node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.peer)

    def spin(self, condition, timeout_s):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, 'what the test waits for does not come'
            self.executor.spin_once(timeout_sec=0.05)

    def close(self):
        self.executor.shutdown()
        self.peer.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def process(ros_environment, launched, frame, tmp_path):
    peer = Peer(frame)
    try:
        process = Process(launched, peer, tmp_path)
        process.labelled(timeout_s=90)
        yield process
    finally:
        peer.close()


def ask(process, kind, name, request):
    client = process.peer.peer.create_client(kind, f'/dense_perception/{name}')
    process.peer.spin(client.service_is_ready, timeout_s=10)
    client.call_async(request)


def set_opacity(process):
    value = Parameter('overlay_opacity', value=0.5).to_parameter_msg()
    ask(process, SetParameters, 'set_parameters', SetParameters.Request(parameters=[value]))


CALLBACKS = {  # name in TRAPS -> what makes the node call it
    'image': lambda process: process.camera.publish(process.peer.frame(1)),
    'camera_info': lambda process: process.infos.publish(CameraInfo()),
    'timer': lambda process: None,
    'parameters': set_opacity,
    'list_parameters': lambda process: ask(
        process, ListParameters, 'list_parameters', ListParameters.Request()
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CALLBACKS)
def test_an_error_in_a_callback_is_told_and_the_node_labels_on(process, name):
    before = process.node().pid
    process.trap.write_text(name)
    CALLBACKS[name](process)
    process.peer.spin(lambda: not process.trap.exists(), timeout_s=10)
    process.labelled()
    assert process.node().pid == before
    said = [process.launch.output(), *process.told]
    assert any(f'thrown in {name}' in text for text in said)


SIGNALS = {  # and what launch says of it in its log
    'kill -9': (signal.SIGKILL, 'process has died'),
    'segmentation fault': (signal.SIGSEGV, 'process has died'),
    'abort': (signal.SIGABRT, 'process has died'),
    'SIGTERM': (signal.SIGTERM, 'process has finished cleanly'),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', SIGNALS)
def test_a_node_that_dies_is_started_again_and_labels(process, name):
    number, word = SIGNALS[name]
    before, said = process.node(), len(process.launch.output())
    before.send_signal(number)
    process.peer.spin(lambda: alive(process) not in (None, before.pid), timeout_s=10)
    assert word in process.launch.output()[said:]
    process.labelled(timeout_s=90)


def alive(process):
    try:
        return process.node().pid
    except (ValueError, psutil.Error):
        return None


@pytest.mark.slow
def test_a_node_whose_thread_of_work_is_gone_is_started_again_and_labels(process):
    before, said = process.node(), len(process.launch.output())
    process.trap.write_text('work')
    process.camera.publish(process.peer.frame(1))  # the thread takes no other after it
    process.peer.spin(lambda: alive(process) not in (None, before.pid), timeout_s=15)
    heard = process.launch.output()[said:]
    assert 'inference has stopped: RuntimeError: thrown in work' in heard
    assert 'process has died' in heard
    assert 'exit code 1' in heard
    process.labelled(timeout_s=90)


@pytest.mark.slow
def test_a_node_that_was_stopped_for_a_while_labels_on(process):
    node = process.node()
    node.suspend()
    time.sleep(5)
    node.resume()
    process.labelled()
    assert process.node().pid == node.pid


@pytest.mark.slow
def test_a_node_that_may_have_no_more_memory_says_so_and_labels_on(process):
    node = process.node()
    said = len(process.launch.output())
    process.told.clear()
    limit = node.memory_info().vms + 2**20
    resource.prlimit(node.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    large = process.peer.frame(2, size=(4000, 4000))
    # Where the middleware has no room for the image, it drops it, and the node misses images.
    word = re.compile('allocate|bad_alloc|MemoryError|process has died|but no image arrives')

    def told():
        process.camera.publish(large)
        return word.search(process.launch.output()[said:]) or word.search(' '.join(process.told))

    process.peer.spin(told, timeout_s=30)
    if alive(process) == node.pid:
        resource.prlimit(node.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    process.labelled(timeout_s=90)


@pytest.mark.slow
def test_a_node_that_may_open_no_more_files_labels_on(process):
    node = process.node()
    _, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (node.num_fds(), hard))
    process.labelled()
    visitor = process.peer.peer.create_subscription(
        Image, '/dense_perception/labels_color', lambda _: None, 1
    )
    process.labelled()
    process.peer.peer.destroy_subscription(visitor)
    assert process.node().pid == node.pid


# The page.


def rows():
    """Test and case of every row of the page, in its order."""
    heading = ''
    for line in PAGE.read_text(encoding='utf-8').splitlines():
        if line.startswith('## '):
            heading = line[3:].strip('`')
        cell = re.match(r'\| `(.+?)` \|', line)
        if cell:
            yield heading, cell[1]


def test_every_row_of_the_page_has_its_test_and_every_test_its_row(request):
    module = request.node.getparent(pytest.Module)
    here = {item.name for item in module.collect()} - {request.node.name}
    told, elsewhere = [], []
    for heading, cell in rows():
        if heading.startswith('test_'):
            told.append(heading if cell == heading else f'{heading}[{cell}]')
        else:
            elsewhere.append(cell)
    assert len(told) == len(set(told))
    assert set(told) - here == set()
    assert here - set(told) == set()
    assert len(told) + len(elsewhere) >= 60
    for name in elsewhere:
        file, _, function = name.partition('::')
        source = (PAGE.parents[1] / file).read_text(encoding='utf-8')
        assert re.search(rf'^def {function}\(', source, re.MULTILINE), name
