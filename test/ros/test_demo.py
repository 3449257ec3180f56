import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import cv2
from dense_perception.cli.demo import main
from dense_perception.data.drives import DriveFrame, rendered_drive
from dense_perception.ros.bags import Bag, write_drive
from dense_perception.ros.drive_demo import image_topic, playable_bag
import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.ros

BAGS = Path(__file__).parents[2].parent / 'shared' / 'data' / 'bags'
CAMERA_BAG = BAGS / 'camera_sqlite3_crystal' / 'sample.db3'
needs_bags = pytest.mark.skipif(not BAGS.is_dir(), reason=f'{BAGS} is not there')


def read_summary(out):
    return json.loads((out / 'summary.json').read_text())


def test_the_bundled_drive_leaves_summary_pictures_and_video(ros_environment, tmp_path):
    out = tmp_path / 'out'
    command = [sys.executable, '-m', 'dense_perception.cli.demo', '--count', '12', '--out', out]
    done = subprocess.run(command, env=ros_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = read_summary(out)
    assert summary['frames_published'] == 12
    assert 1 < summary['labels_received'] <= 12
    assert 0 < summary['flow_received'] < summary['labels_received']
    assert summary['dropped'] >= 0
    assert 0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p95']
    assert summary['latency_ms']['p95'] <= summary['latency_ms']['p99']
    assert 0 <= summary['mean_iou'] <= 1
    assert summary['end_point_error_px'] > 0
    assert summary['device'].keys() == summary['weights'].keys() == {'segmentation', 'flow'}
    assert summary['weights'] == {'segmentation': 'drive', 'flow': 'flow'}
    assert len(list(out.glob('frame_*.png'))) >= 2
    video = cv2.VideoCapture(str(out / 'drive.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == summary['labels_received']
    for text in ('labels received', 'mean IoU (cityscapes)', str(out)):
        assert text in done.stdout


def test_a_folder_of_frames_is_judged_by_the_labels_beside_it(ros_environment, tmp_path):
    frames, truth = tmp_path / 'street', tmp_path / 'streetannot'
    frames.mkdir()
    truth.mkdir()
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        cv2.imwrite(str(frames / f'{number}.png'), image)
        cv2.imwrite(str(truth / f'{number}.png'), np.full((60, 80), number % 11, np.uint8))
    assert main(['--frames', str(frames), '--out', str(tmp_path / 'out')]) == 0
    summary = read_summary(tmp_path / 'out')
    assert summary['label_set'] == 'camvid'
    assert 0 <= summary['mean_iou'] <= 1
    assert summary['end_point_error_px'] is None


@needs_bags
def test_a_foreign_bag_without_stamps_or_truth_is_shown(ros_environment, tmp_path):
    assert main(['--bag', str(CAMERA_BAG), '--out', str(tmp_path / 'out')]) == 0
    summary = read_summary(tmp_path / 'out')
    assert (summary['frames_published'], summary['labels_received']) == (1, 1)
    assert summary['mean_iou'] is None
    assert len(list((tmp_path / 'out').glob('frame_*.png'))) == 1


def test_a_bag_of_compressed_images_is_shown(ros_environment, tmp_path):
    from rclpy.serialization import serialize_message
    from rosbags.rosbag2 import Writer
    from rosbags.typesys import get_typestore, Stores
    from sensor_msgs.msg import CompressedImage

    drive = rendered_drive(3, 4)
    with Writer(tmp_path / 'bag', version=8) as writer:
        connection = writer.add_connection(
            '/front/rgb/compressed',
            'sensor_msgs/msg/CompressedImage',
            typestore=get_typestore(Stores.ROS2_HUMBLE),
        )
        for frame in drive.frames():
            _, data = cv2.imencode('.jpg', frame.image)
            message = CompressedImage(format='jpeg', data=data.tobytes())
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(frame.stamp_ns, 10**9)
            writer.write(connection, frame.stamp_ns, serialize_message(message))
    assert main(['--bag', str(tmp_path / 'bag'), '--out', str(tmp_path / 'out')]) == 0
    assert read_summary(tmp_path / 'out')['labels_received'] >= 1


@needs_bags
def test_a_bag_without_images_is_an_error_that_names_its_topics(tmp_path, capsys):
    bag = BAGS / 'rosbag2_mcap' / 'cdr_test'
    assert main(['--bag', str(bag), '--out', str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert 'no image topic; its topics are /array_topic, /test_topic' in message


def test_a_missing_bag_is_an_error(tmp_path, capsys):
    assert main(['--bag', '/nowhere', '--out', str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith('demo: /nowhere: no such bag')


def test_a_bag_with_stamps_is_played_as_it_is(tmp_path):
    write_drive(tmp_path / 'bag', [DriveFrame(10**9, np.zeros((8, 8, 3), np.uint8))])
    assert playable_bag(tmp_path / 'bag', tmp_path / 'copy') == tmp_path / 'bag'


@needs_bags
def test_images_without_stamps_get_those_of_their_recording(tmp_path):
    path = playable_bag(CAMERA_BAG, tmp_path / 'copy')
    assert path == tmp_path / 'copy'
    with Bag(path) as bag:
        ((topic, stamp_ns, _),) = bag.messages([image_topic(bag)])
    assert (topic, stamp_ns) == ('/camera/image_raw', 1553145698459670219)


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['weights:=/nowhere'], 'cannot be configured: /nowhere: no such file'),
        (['params_file:={tmp_path}/wrong.yaml'], 'the launch ended'),
    ],
)
def test_a_node_that_cannot_work_is_noticed_soon_and_told_with_the_log(
    ros_environment, tmp_path, capsys, arguments, reason
):
    (tmp_path / 'wrong.yaml').write_text('/**: {ros__parameters: {flow_width: wide}}')
    started = time.monotonic()
    arguments = [argument.format(tmp_path=tmp_path) for argument in arguments]
    assert main(['--count', '4', '--out', str(tmp_path / 'out'), *arguments]) == 1
    assert time.monotonic() - started < 30
    message = capsys.readouterr().err
    assert reason in message
    assert 'process started' in message


@pytest.mark.parametrize('victim', ['perception_node', 'player_node'])
def test_a_part_that_is_killed_is_noticed_soon(ros_environment, tmp_path, victim):
    command = [sys.executable, '-m', 'dense_perception.cli.demo', '--count', '8']
    process = subprocess.Popen(
        [*command, '--out', tmp_path / 'out', 'rate:=0.1'],
        env=ros_environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        killed = kill_child(process.pid, victim)
        _, message = process.communicate(timeout=killed + 20 - time.monotonic())
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=20)
    assert process.returncode == 1
    assert 'the launch ended' in message
    assert 'process has died' in message


def kill_child(pid, name, timeout_s=30.0):
    """Kill a process that another has started, once it runs; return when."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children(recursive=True):
            try:
                if any(word.endswith(name) for word in child.cmdline()):
                    child.kill()
                    return time.monotonic()
            except psutil.Error:
                continue
        time.sleep(0.1)
    raise AssertionError(f'{name} was not started')
