"""drone.launch.py: perception and the motion node beside it, from a bag and an IMU."""

import shutil
import subprocess

from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
import pytest
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Imu
from std_msgs.msg import Float32MultiArray

pytestmark = pytest.mark.ros


@pytest.fixture
def figures(peer):
    """Return what the motion node told last on /diagnostics, names to values."""
    found: dict[str, str] = {}

    def keep(message):
        for status in message.status:
            if status.name.endswith('/motion: images'):
                found.update((pair.key, pair.value) for pair in status.values)

    peer.node.create_subscription(DiagnosticArray, '/diagnostics', keep, 10)
    return found


def measure(peer, topic):
    """Publish an IMU that stands still, a hundred times a second."""
    publisher = peer.node.create_publisher(Imu, topic, qos_profile_sensor_data)

    def publish():
        message = Imu()
        message.header.stamp = peer.node.get_clock().now().to_msg()
        publisher.publish(message)

    peer.node.create_timer(0.01, publish)


def test_a_bag_and_an_imu_become_times_to_contact_and_what_moves(
    launched, peer, figures, bag, parameters
):
    times = peer.listen('/drone/motion/time_to_contact', Float32MultiArray)
    masks = peer.listen('/drone/motion/moving')
    measure(peer, '/body/imu')
    process = launched(
        'drone.launch.py',
        *(f'bag:={bag}', 'loop:=true', parameters, 'image_transport:=raw'),
        *('namespace:=drone', 'imu:=/body/imu', 'mounting:=parameters'),
    )
    peer.spin(lambda: times and masks and int(figures.get('turn from imu', 0)) > 0, 120.0)
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
        topic = f'/drone/dense_perception/left/{name}'
        peer.spin(lambda topic=topic: subscribed(peer, topic), 120.0)
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
