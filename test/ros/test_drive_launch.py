from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

from dense_perception.ros.messages import message_to_labels
import psutil
import pytest
from sensor_msgs.msg import Image

pytestmark = pytest.mark.ros

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'perception_node'


def stamp_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


# drive.launch.py


def test_networks_and_refinements_are_chosen_by_arguments(launched, peer, bag, parameters):
    labels = peer.listen('/dense_perception/labels')
    proposals = peer.listen('/dense_perception/proposals')
    flow = peer.listen('/dense_perception/flow')
    process = launched(
        'drive.launch.py',
        f'bag:={bag}',
        parameters,
        'loop:=true',
        'segmentation_network:=fcn8s',
        'refinement:=crf_rnn',
        'flow_network:=flownet_corr',
        'flow_refinement:=variational',
        'proposal_network:=deep_mask',
    )
    process.wait_for('segmentation: fcn8s on cpu')
    process.wait_for('untrained: segmentation network fcn8s, proposal network deep_mask')
    peer.spin(lambda: labels and flow and proposals, 60.0)
    assert proposals[0].encoding == 'mono8'
    assert (proposals[0].height, proposals[0].width) == (360, 480)


def test_a_bag_becomes_labels_and_flow(launched, peer, bag, parameters):
    labels = peer.listen('/dense_perception/labels')
    flow = peer.listen('/dense_perception/flow')
    process = launched('drive.launch.py', f'bag:={bag}', parameters)
    peer.spin(lambda: len(labels) >= 3 and flow)
    assert message_to_labels(labels[0]).shape == (360, 480)
    assert labels[0].header.frame_id == 'camera'
    # Played as if it were filmed now.
    assert abs(time.time_ns() - stamp_ns(labels[0])) < 60 * 10**9
    assert process.stop() == 0
    output = [line for line in process.output().splitlines() if 'perception_node' in line]
    assert any('listening to /camera/image_raw' in line for line in output)
    assert not any('Traceback' in line or 'ERROR' in line for line in output)


def test_under_simulated_time_stamps_are_those_of_the_bag(launched, peer, bag, parameters):
    labels = peer.listen('/dense_perception/labels')
    launched('drive.launch.py', f'bag:={bag}', 'use_sim_time:=true', parameters)
    peer.spin(lambda: bool(labels))
    assert 10**9 <= stamp_ns(labels[0]) < 2 * 10**9


def test_namespace_and_camera_place_every_topic(launched, peer, parameters):
    labels = peer.listen('/drone/dense_perception/labels')
    launched(
        'drive.launch.py', 'namespace:=drone', 'camera:=/front', 'image_topic:=rgb', parameters
    )
    camera = peer.node.create_publisher(Image, '/front/rgb', 10)
    peer.spin(lambda: camera.get_subscription_count() > 0)
    message = Image(height=48, width=64, encoding='rgb8', step=192, data=bytes(48 * 192))

    def sent():
        camera.publish(message)
        return labels

    peer.spin(sent)


def test_without_autostart_the_node_waits_unconfigured(launched, peer, parameters):
    launched('drive.launch.py', 'autostart:=false', parameters)
    assert peer.state() == 'unconfigured'


def test_respawn_brings_labels_back_after_the_node_was_killed(launched, peer, bag, parameters):
    labels = peer.listen('/dense_perception/labels')
    arguments = [f'bag:={bag}', 'loop:=true', 'respawn:=true', parameters]
    process = launched('drive.launch.py', *arguments)
    peer.spin(lambda: bool(labels))
    (node,) = nodes(process)
    node.kill()
    node.wait(10)
    peer.spin(lambda: len(nodes(process)) == 1)
    labels.clear()
    peer.spin(lambda: bool(labels))


def nodes(process):
    """Processes of the perception node that a launch has started."""
    found = []
    for child in psutil.Process(process.process.pid).children():
        try:
            if any('perception_node' in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_a_replay_ends_when_the_node_cannot_start(launched, bag, tmp_path):
    path = tmp_path / 'wrong.yaml'
    path.write_text('/**: {ros__parameters: {segmentation_width: wide}}')
    process = launched('drive.launch.py', f'bag:={bag}', f'params_file:={path}')
    process.process.wait(30)
    output = process.output()
    assert "parameter 'segmentation_width' to 'wide'" in output
    assert "expecting type 'INTEGER'" in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('file', ['drive.launch.py', 'drive_multi.launch.py'])
def test_every_argument_is_shown_with_its_description(ros_environment, file):
    command = [shutil.which('ros2'), 'launch', 'dense_perception', file, '--show-args']
    output = subprocess.run(
        command, env=ros_environment, capture_output=True, text=True, check=True
    ).stdout
    words = output.split("'")
    names = {word for word, after in zip(words, words[1:], strict=False) if after.startswith(':')}
    assert names == {
        *('camera', 'image_topic', 'image_transport', 'namespace', 'params_file', 'device'),
        *('weights', 'flow_weights', 'bag', 'rate', 'loop', 'use_sim_time', 'autostart'),
        *('respawn', 'log_level', 'segmentation_network', 'flow_network', 'refinement'),
        *('flow_refinement', 'proposal_network', 'proposal_weights', 'rig', 'engine'),
        *('free_space', 'free_space_params_file'),
    }
    assert 'no description given' not in output


@pytest.mark.parametrize('own', [True, False])
def test_the_fast_dds_profile_is_set_unless_there_is_one(
    launched, ros_environment, parameters, tmp_path, own
):
    for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
        ros_environment.pop(name)
    mine = tmp_path / 'mine.xml'
    mine.write_text('<dds/>')
    if own:
        ros_environment['FASTDDS_DEFAULT_PROFILES_FILE'] = str(mine)
    process = launched('drive.launch.py', 'autostart:=false', parameters)
    process.wait_for('process started')
    (node,) = nodes(process)
    profile = node.environ().get('FASTDDS_DEFAULT_PROFILES_FILE')
    assert Path(profile).name == ('mine.xml' if own else 'fastdds_large_images.xml')


# drive_multi.launch.py

RIG = """
cameras:
  front:
  left:
    namespace: /wing
    image_topic: rgb
"""


@pytest.fixture
def rig(tmp_path):
    path = tmp_path / 'rig.yaml'
    path.write_text(RIG)
    return f'rig:={path}'


def test_every_camera_of_a_rig_is_labelled(launched, peer, rig, parameters):
    topics = {'front': '/front/image_raw', 'left': '/wing/rgb'}
    labels = {name: peer.listen(f'/car/dense_perception/{name}/labels') for name in topics}
    process = launched('drive_multi.launch.py', rig, 'namespace:=car', parameters)
    process.wait_for('listening to /front/image_raw, /wing/rgb')
    cameras = {name: peer.node.create_publisher(Image, topics[name], 10) for name in topics}

    def sent():
        for name, camera in cameras.items():
            message = Image(height=48, width=64, encoding='rgb8', step=192, data=bytes(48 * 192))
            message.header.frame_id = name
            camera.publish(message)
        return all(labels.values())

    peer.spin(sent)
    for name, heard in labels.items():
        assert heard[0].header.frame_id == name


def test_a_rig_that_cannot_be_ends_the_launch_with_what_would_be_right(launched, tmp_path):
    path = tmp_path / 'rig.yaml'
    path.write_text('cameras: {2nd: }')
    process = launched('drive_multi.launch.py', f'rig:={path}')
    assert process.process.wait(30) == 1
    assert f"{path}: cameras has '2nd'; a name must begin with a letter" in process.output()
    assert 'process started' not in process.output()


# The process itself.


@pytest.fixture
def start(ros_environment):
    """Return a function that starts the node's process; what a failed test leaves is killed."""
    processes = []

    def run(*parameters):
        arguments = [argument for value in parameters for argument in ('-p', value)]
        processes.append(
            subprocess.Popen(
                [sys.executable, SCRIPT, '--ros-args', *arguments],
                env=ros_environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_in_good_order_while_it_works(start, peer, number):
    labels = peer.listen('/dense_perception/labels')
    process = start('autostart:=true', 'segmentation_width:=128')
    camera = peer.node.create_publisher(Image, '/image', 10)
    message = Image(height=48, width=64, encoding='rgb8', step=192, data=bytes(48 * 192))

    def sent():
        camera.publish(message)
        return labels

    peer.spin(sent)
    process.send_signal(number)
    if number == signal.SIGINT:
        process.send_signal(number)  # as through launch, after that of the terminal
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 0, output
    assert 'Traceback' not in output
    assert 'ERROR' not in output
    assert 'transition' not in output


def test_a_node_that_cannot_be_configured_at_start_says_why_and_waits(start, peer):
    process = start('autostart:=true', 'segmentation_weights:=/nowhere')
    assert peer.state() == 'unconfigured'
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=15)
    assert process.returncode == 0
    assert 'cannot be configured: /nowhere: no such file' in output
    assert 'Traceback' not in output
    assert 'transition' not in output


def test_a_wrong_parameter_ends_the_process_with_what_would_be_right(start):
    process = start('max_flow_gap_s:=99.0')
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert 'max_flow_gap_s' in output
    assert '60' in output
    assert 'Traceback' not in output


@pytest.mark.parametrize(
    ('parameter', 'log_folder', 'cause'),
    [
        ('nonsense', '', "override rule: '-p nonsense'"),
        ('autostart:=false', '/proc/no', '/proc/no'),
    ],
    ids=['wrong argument', 'no place for logs'],
)
def test_a_ros_that_cannot_be_started_is_one_line_of_why(
    start, ros_environment, parameter, log_folder, cause
):
    if log_folder:
        ros_environment['ROS_LOG_DIR'] = log_folder
    process = start(parameter)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    (line,) = [line for line in output.splitlines() if '[FATAL]' in line]
    assert 'ROS cannot be started: ' in line
    assert cause in line
    assert 'Traceback' not in output
