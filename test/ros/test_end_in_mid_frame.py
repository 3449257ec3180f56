"""A signal that comes while the networks run: the image in work is finished, and the node ends."""

from pathlib import Path
import signal
import subprocess
import sys

import pytest
from sensor_msgs.msg import Image

pytestmark = pytest.mark.ros

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'perception_node'
PARAMETERS = (
    *('autostart:=true', 'device:=cpu', 'segmentation_width:=64', 'max_flow_gap_s:=60.0'),
    'flow_width:=1024',  # so that flow takes a while after the labels of its image
)


@pytest.fixture
def node(ros_environment):
    """Return the process of a node that works; it is killed where a test leaves it."""
    arguments = [argument for value in PARAMETERS for argument in ('-p', value)]
    process = subprocess.Popen(
        [sys.executable, SCRIPT, '--ros-args', *arguments],
        env=ros_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    'number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_between_labels_and_flow_of_an_image_ends_the_node_in_good_order(
    node, peer, number
):
    labels = peer.listen('/dense_perception/labels')
    flow = peer.listen('/dense_perception/flow')
    camera = peer.node.create_publisher(Image, '/image', 10)

    def labelled(second):
        message = Image(height=48, width=64, encoding='rgb8', step=192, data=bytes(48 * 192))
        message.header.stamp.sec = second
        peer.spin(lambda: camera.get_subscription_count() > 0, 120.0)
        camera.publish(message)
        peer.spin(lambda: any(heard.header == message.header for heard in labels))

    labelled(1)  # without flow
    labelled(2)
    assert not flow
    node.send_signal(number)
    output, _ = node.communicate(timeout=30)
    assert node.returncode == 0, output
    for word in ('Traceback', 'ERROR', 'transition'):
        assert word not in output
