"""drone.launch.py: perception and the motion node beside it, from a bag and an IMU."""

import shutil
import subprocess
import time

from dense_perception.data.drives import rendered_drive
from dense_perception.ros.bags import write_drive
from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, Imu
from std_msgs.msg import Float32MultiArray

pytestmark = pytest.mark.ros

PARAMETERS = """
/**:
  ros__parameters:
    device: cpu
    segmentation_width: 128
    flow_width: 128
    max_flow_gap_s: 60.0
"""


class Peer:
    """A node beside the launched ones, with an IMU that it can publish."""

    def __init__(self):
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.figures: dict[str, str] = {}
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._keep, 10)

    def _keep(self, message):
        for status in message.status:
            if status.name.endswith('/motion: images'):
                self.figures = {pair.key: pair.value for pair in status.values}

    def measure(self, topic):
        """Publish an IMU that stands still, a hundred times a second."""
        publisher = self.node.create_publisher(Imu, topic, qos_profile_sensor_data)

        def publish():
            message = Imu()
            message.header.stamp = self.node.get_clock().now().to_msg()
            publisher.publish(message)

        self.node.create_timer(0.01, publish)

    def listen(self, kind, topic):
        heard: list = []
        self.node.create_subscription(kind, topic, heard.append, 10)
        return heard

    def spin(self, condition, timeout_s=120.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, 'what the test waits for does not come'
            self.executor.spin_once(timeout_sec=0.05)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def peer(ros_environment):
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """Six rendered frames at 10 Hz on /camera/image_raw."""
    path = tmp_path_factory.mktemp('drive') / 'bag'
    drive = rendered_drive(3, 6)
    write_drive(path, drive.frames(), camera_matrix=drive.camera_matrix)
    return path


def test_a_bag_and_an_imu_become_times_to_contact_and_what_moves(launched, peer, bag, tmp_path):
    parameters = tmp_path / 'parameters.yaml'
    parameters.write_text(PARAMETERS)
    times = peer.listen(Float32MultiArray, '/drone/motion/time_to_contact')
    masks = peer.listen(Image, '/drone/motion/moving')
    peer.measure('/body/imu')
    process = launched(
        'drone.launch.py',
        *(f'bag:={bag}', 'loop:=true', f'params_file:={parameters}', 'image_transport:=raw'),
        *('namespace:=drone', 'imu:=/body/imu', 'mounting:=parameters'),
    )
    peer.spin(lambda: times and masks and int(peer.figures.get('turn from imu', 0)) > 0)
    found = np.array(times[0].data)
    assert found.size == 15
    assert (np.isnan(found) | (found > 0)).all()
    assert (masks[0].encoding, masks[0].header.frame_id) == ('mono8', 'camera')
    assert (masks[0].height, masks[0].width) == (360, 480)
    assert process.stop() == 0
    assert 'Traceback' not in process.output()


def test_the_motion_node_reads_the_camera_of_the_rig_that_is_named(launched, peer):
    launched(
        'drone.launch.py',
        *('autostart:=false', 'mounting:=parameters', 'use_labels:=false'),
        *('motion_camera:=left', 'namespace:=drone'),
    )
    for name in ('flow', 'flow_reference', 'camera_info'):
        peer.spin(lambda name=name: subscribed(peer, f'/drone/dense_perception/left/{name}'))
    assert not subscribed(peer, '/drone/dense_perception/left/labels')


def subscribed(peer, topic):
    return [end.node_name for end in peer.node.get_subscriptions_info_by_topic(topic)] == [
        'motion'
    ]


def test_every_argument_of_both_nodes_is_shown_with_its_description(ros_environment):
    output = subprocess.run(
        [shutil.which('ros2'), 'launch', 'dense_perception', 'drone.launch.py', '--show-args'],
        env=ros_environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in ('imu', 'motion_params_file', 'mounting', 'use_labels', 'camera', 'bag', 'loop'):
        assert f"'{name}':" in output
    assert 'drone.yaml' in output
    assert 'no description given' not in output
