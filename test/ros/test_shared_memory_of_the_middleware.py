"""A segment of shared memory, which DDS sends images through, is too small or not to be had."""

from pathlib import Path
import re
import resource
import signal
import subprocess
import sys
import time

from diagnostic_msgs.msg import DiagnosticStatus
import pytest
from sensor_msgs.msg import Image

pytestmark = [pytest.mark.ros, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / 'config' / 'fastdds_large_images.xml'
PROFILES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
SMALL = 128 * 1024  # bytes of a segment; less than an image of 480 x 360
NODE = (
    *('-p', 'autostart:=true', '-p', 'device:=cpu', '-p', 'segmentation_width:=64'),
    *('-p', "flow_weights:=''"),
)
# Publishes images of 36 MB, and small ones instead as soon as there is a file of that name.
CAMERA = """
import pathlib, sys, time
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

def image(height, width):
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    message.data.frombytes(bytes(height * width * 3))
    return message

small = pathlib.Path(sys.argv[1])
large, little = image(3000, 4000), image(48, 64)
rclpy.init()
publisher = rclpy.create_node('camera').create_publisher(Image, '/image', qos_profile_sensor_data)
while True:
    publisher.publish(little if small.exists() else large)
    time.sleep(0.1)
"""


@pytest.fixture
def small_segment(ros_environment, tmp_path):
    """Return the environment of a process with a segment that holds no large image."""
    text = PROFILE.read_text()
    for name in ('segment_size', 'maxMessageSize'):
        text, count = re.subn(rf'(<{name}>)\d+', rf'\g<1>{SMALL}', text)
        assert count == 1
    path = tmp_path / 'small.xml'
    path.write_text(text)
    return {**ros_environment, **dict.fromkeys(PROFILES, str(path))}


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a process; what a failed test leaves is killed."""
    processes = []

    def run(*arguments, **options):
        log = tmp_path / f'process_{len(processes)}.txt'
        with log.open('wb') as output:
            command = [sys.executable, *arguments]
            processes.append(subprocess.Popen(command, stdout=output, stderr=output, **options))
        return processes[-1], log

    yield run
    for process in processes:
        process.kill()
        process.wait()


def labelled(peer, camera, labels, second, timeout_s):
    """Publish a small image until its labels come."""
    message = Image(height=48, width=64, encoding='rgb8', step=192, data=bytes(48 * 192))
    message.header.stamp.sec = second

    def sent():
        camera.publish(message)
        return any(heard.header == message.header for heard in labels)

    peer.spin(sent, timeout_s)


def test_images_that_the_segment_of_the_camera_does_not_hold_are_told_and_smaller_ones_labelled(
    bench, start, small_segment, tmp_path
):
    running = bench(flow_weights='', silence_warning_s=1.0)
    labels = running.listen('labels')
    start('-c', CAMERA, str(tmp_path / 'small'), env=small_segment)
    running.spin(lambda: running.node.count_publishers('/image') == 1, timeout_s=60)
    status, _ = running.diagnostics(lambda status, _: status.level == DiagnosticStatus.ERROR)
    assert '1 publisher(s) of /image, but no image arrives' in status.message
    assert 'its shared memory must hold several' in status.message
    (tmp_path / 'small').touch()
    running.spin(lambda: bool(labels))
    running.diagnostics(lambda status, _: status.level == DiagnosticStatus.OK)


def test_a_node_that_can_have_no_segment_says_so_in_its_log_and_labels_over_the_network(
    start, peer, ros_environment
):
    def no_room_for_a_segment():  # as where /dev/shm is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    script = str(ROOT / 'scripts' / 'perception_node')
    arguments = (script, '--ros-args', *NODE)
    process, log = start(*arguments, env=ros_environment, preexec_fn=no_room_for_a_segment)
    labels = peer.listen('/dense_perception/labels')
    camera = peer.node.create_publisher(Image, '/image', 10)
    labelled(peer, camera, labels, 1, 120.0)
    assert 'Failed to create segment' in log.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_a_node_whose_segment_holds_no_result_labels_the_next_image_that_it_does_hold(
    start, peer, small_segment
):
    script = str(ROOT / 'scripts' / 'perception_node')
    process, log = start(script, '--ros-args', *NODE, env=small_segment)
    labels = peer.listen('/dense_perception/labels')
    camera = peer.node.create_publisher(Image, '/image', 10)
    labelled(peer, camera, labels, 1, 120.0)
    large = Image(height=720, width=1280, encoding='rgb8', step=3840, data=bytes(720 * 3840))
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        large.header.stamp.sec += 1
        camera.publish(large)
        peer.executor.spin_once(timeout_sec=0.05)
    labelled(peer, camera, labels, 10_000, 10.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert 'Traceback' not in log.read_text()
