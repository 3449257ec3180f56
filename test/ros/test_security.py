"""The policy of the enclaves, against running nodes and against real ROS 2 security."""

from pathlib import Path
import runpy
import shutil
import subprocess
import sys
import time
from xml.etree import ElementTree

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import pytest
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parents[2]
POLICY = ROOT / 'config' / 'sros2_policy.xml'
TOOL = runpy.run_path(str(ROOT / 'tools' / 'make_keystore.py'))
# Ends of names that a node uses only where the distribution or another package gives it them.
SOMETIMES = (
    '/label_info/vision',  # with vision_msgs
    '/get_type_description',  # from Iron on
    *('/tf', '/tf_static'),  # with tf2_ros, by `mounting: tf`
)
RIG = """cameras:
  front:
  left: {namespace: /rear, image_topic: rgb, info_topic: info}
"""


# Of a camera beside the nodes of this package.
CAMERA_POLICY = """<policy version="0.2.0">
  <enclaves>
    <enclave path="/camera">
      <profiles>
        <profile ns="/" node="camera">
          <topics subscribe="ALLOW">
            <topic>/clock</topic>
          </topics>
          <topics publish="ALLOW">
            <topic>/camera/image_raw</topic>
            <topic>/parameter_events</topic>
            <topic>/rosout</topic>
          </topics>
          <services reply="ALLOW">
            <service>~/describe_parameters</service>
            <service>~/get_parameter_types</service>
            <service>~/get_parameters</service>
            <service>~/list_parameters</service>
            <service>~/set_parameters</service>
            <service>~/set_parameters_atomically</service>
            <service>~/get_type_description</service>
          </services>
        </profile>
      </profiles>
    </enclave>
  </enclaves>
</policy>
"""


@pytest.fixture
def peer(ros_environment):
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node('peer', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    node.executor = executor
    yield node
    executor.shutdown()
    node.destroy_node()
    context.try_shutdown()


def spin(peer, condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, 'what the test waits for does not come'
        peer.executor.spin_once(timeout_sec=0.05)


def call(peer, kind, name, request):
    client = peer.create_client(kind, f'/dense_perception/{name}')
    spin(peer, client.service_is_ready)
    # An answer is lost where the server does not know of the client yet, and nothing tells when.
    settled = time.monotonic() + 0.5
    spin(peer, lambda: time.monotonic() > settled)
    future = client.call_async(request)
    spin(peer, future.done)
    return future.result()


def graph(peer, name):
    """What a node has, by the kinds of right of the policy."""
    node = (name, '/')
    found = {
        'publish': peer.get_publisher_names_and_types_by_node(*node),
        'subscribe': peer.get_subscriber_names_and_types_by_node(*node),
        'reply': peer.get_service_names_and_types_by_node(*node),
        'request': peer.get_client_names_and_types_by_node(*node),
    }
    return {kind: {name for name, _ in entries} for kind, entries in found.items()}


def has(peer, name, *subscriptions):
    """Whether the peer knows these of a node already; discovery brings them one by one."""
    try:
        return {*subscriptions} <= graph(peer, name)['subscribe']
    except rclpy.node.NodeNameNonExistentError:
        return False


def check(used, allowed):
    """Compare what a node has with what its enclave allows."""
    assert used.pop('request') == set()  # it calls nobody
    missing = {kind: used[kind] - allowed[kind] for kind in used}
    assert not any(missing.values()), f'the policy lacks {missing}'
    idle = {kind: allowed[kind] - used[kind] for kind in used}
    idle = {kind: {n for n in names if not n.endswith(SOMETIMES)} for kind, names in idle.items()}
    assert not any(idle.values()), f'the node does not use {idle}'


def change_everything(peer, images):
    """Let the perception node read compressed images, and propose masks too."""
    for label in ('deactivate', 'cleanup'):
        request = ChangeState.Request(transition=Transition(label=label))
        assert call(peer, ChangeState, 'change_state', request).success
    other = {'image_transport': 'compressed', 'proposal_network': 'deep_mask'}
    request = SetParameters.Request(
        parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in other.items()
        ]
    )
    results = call(peer, SetParameters, 'set_parameters', request).results
    assert all(result.successful for result in results)
    for label in ('configure', 'activate'):
        request = ChangeState.Request(transition=Transition(label=label))
        assert call(peer, ChangeState, 'change_state', request).success
    spin(peer, lambda: has(peer, 'dense_perception', *(f'{image}/compressed' for image in images)))


@pytest.fixture
def rig(tmp_path):
    path = tmp_path / 'rig.yaml'
    path.write_text(RIG)
    return path


@pytest.fixture
def started(launched, tmp_path):
    """Return a function that starts all three nodes, so that they use all that they may."""
    parameters = tmp_path / 'free_space.yaml'
    parameters.write_text(
        '/**:\n  ros__parameters: {mounting: parameters, camera_height: 1.5, '
        'least_confidence: 1}\n'
    )
    return lambda *arguments: launched(
        'drone.launch.py',
        *('use_sim_time:=true', 'device:=cpu', 'image_transport:=raw', 'mounting:=parameters'),
        *('free_space:=true', f'free_space_params_file:={parameters}', *arguments),
    )


def used_by_all(peer, nodes, images):
    """What each node of the enclaves uses, under all parameters together."""
    for name in nodes:
        last = {'dense_perception': images[-1], 'motion': '/imu'}.get(name, '/clock')
        spin(peer, lambda name=name, last=last: has(peer, name, last, '/clock'))
    settled = time.monotonic() + 1  # the rest of what each has
    spin(peer, lambda: time.monotonic() > settled)
    used = {name: graph(peer, name) for name in nodes}
    change_everything(peer, images)
    for kind, names in graph(peer, 'dense_perception').items():
        used['dense_perception'][kind] |= names
    return used


def allowed_in(place):
    """What the policy allows each node, by its name."""
    enclaves = TOOL['rights'](ElementTree.parse(POLICY).getroot(), place)
    return {path.strip('/'): rights for path, rights in enclaves.items()}


def test_the_policy_allows_what_the_running_nodes_do_and_nothing_else(started, peer):
    started()
    allowed = allowed_in(TOOL['Place']())
    assert set(allowed) == {'dense_perception', 'free_space', 'motion'}
    used = used_by_all(peer, allowed, ['/camera/image_raw'])
    for name, rights in allowed.items():
        check(used[name], rights)


def test_so_it_does_with_the_cameras_of_a_rig(started, peer, rig):
    started(f'rig:={rig}', 'motion_camera:=left')
    allowed = allowed_in(TOOL['Place'](tuple(TOOL['read_cameras'](rig)), motion_camera='left'))
    nodes = {'dense_perception', 'free_space_front', 'free_space_left', 'motion'}
    assert set(allowed) == nodes
    used = used_by_all(peer, nodes, ['/front/image_raw', '/rear/rgb'])
    for name, rights in allowed.items():
        check(used[name], rights)


@pytest.fixture
def secured(ros_environment, tmp_path):
    """The environment of a process under the policy, in a keystore that has a camera, too."""
    if not shutil.which('openssl'):
        pytest.skip('openssl is not installed')
    keystore = tmp_path / 'keystore'
    tool = [sys.executable, ROOT / 'tools' / 'make_keystore.py', keystore]
    camera = tmp_path / 'camera.xml'
    camera.write_text(CAMERA_POLICY)
    for policy in (POLICY, camera):
        command = [*tool, '--policy', policy]
        subprocess.run(command, env=ros_environment, check=True, capture_output=True)
    return {
        **ros_environment,
        'ROS_SECURITY_KEYSTORE': str(keystore),
        'ROS_SECURITY_ENABLE': 'true',
        'ROS_SECURITY_STRATEGY': 'Enforce',
        'ROS_SECURITY_ENCLAVE_OVERRIDE': '/dense_perception',
    }


def start_of_a_participant(environment):
    """What comes of a node in the enclave of the environment: nothing, or the error."""
    code = 'import rclpy; rclpy.init(); rclpy.create_node("some_node"); rclpy.shutdown()'
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode else ''


NO_SECURITY = "This Fast DDS version doesn't have the security libraries"


@pytest.mark.parametrize('enclave', ['/dense_perception', '/free_space', '/motion', '/camera'])
def test_ros_takes_the_keystore_of_the_tool_as_far_as_its_middleware_goes(secured, enclave):
    # Without an enclave of this name, or with a file less, ROS 2 would say so instead.
    error = start_of_a_participant(secured | {'ROS_SECURITY_ENCLAVE_OVERRIDE': enclave})
    assert not error or NO_SECURITY in error


def test_under_enforcement_no_node_starts_without_an_enclave(secured):
    error = start_of_a_participant(secured | {'ROS_SECURITY_ENCLAVE_OVERRIDE': '/stranger'})
    assert 'SECURITY ERROR' in error


class Part:
    """A process that takes part, and what it has printed."""

    def __init__(self, command, environment, output):
        self._file = output
        with output.open('wb') as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)

    @property
    def output(self):
        return self._file.read_text()

    def wait_for(self, condition, timeout_s=60.0):
        """Wait until a condition on what was printed holds; what has ended prints no more."""
        deadline = time.monotonic() + timeout_s
        while not condition(self.output):
            ended = self.process.poll() is not None
            assert time.monotonic() < deadline, self.output
            assert not ended or condition(self.output), self.output
            time.sleep(0.1)

    def wait_until_tried(self):
        """Wait until it takes part, or was refused and has ended."""
        deadline = time.monotonic() + 60
        while 'ready' not in self.output and self.process.poll() is None:
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)


# The argument is the name of the node, whose services its enclave allows.
CAMERA = """
import sys
import time
import rclpy
from sensor_msgs.msg import Image

rclpy.init()
publisher = rclpy.create_node(sys.argv[1]).create_publisher(Image, '/camera/image_raw', 10)
image = Image(height=48, width=64, encoding='rgb8', step=192, data=bytes(48 * 192))
print('ready', flush=True)
while True:
    publisher.publish(image)
    time.sleep(0.1)
"""
READER = """
import sys
import rclpy
from sensor_msgs.msg import Image

rclpy.init()
node = rclpy.create_node(sys.argv[1])
read = lambda message: print('labels', flush=True)
node.create_subscription(Image, '/dense_perception/labels', read, 10)
print('ready', flush=True)
rclpy.spin(node)
"""


def labels_in(output):
    return output.count('labels\n')


@pytest.fixture
def start(tmp_path):
    """Return a function that starts Python in an environment; it ends with the test."""
    parts = []

    def run(environment, *arguments):
        command = [sys.executable, *arguments]
        parts.append(Part(command, environment, tmp_path / f'part_{len(parts)}.txt'))
        return parts[-1]

    yield run
    for part in parts:
        part.process.terminate()
    for part in parts:
        try:
            part.process.wait(20)
        finally:
            part.process.kill()


@pytest.fixture
def perception(start):
    """Return a function that starts a perception node and waits until it listens to a camera."""

    def run(environment):
        node = start(
            environment,
            *(ROOT / 'scripts' / 'perception_node', '--ros-args'),
            *('-p', 'autostart:=true', '-p', 'device:=cpu', '-p', 'segmentation_width:=64'),
            *('-p', "flow_weights:=''", '-r', 'image:=/camera/image_raw'),
            *('-r', 'camera_info:=/camera/camera_info'),
        )
        node.wait_for(lambda output: 'active; listening' in output, timeout_s=120)

    return run


def test_without_security_a_stranger_reads_labels_and_injects_images(
    ros_environment, perception, start
):
    perception(ros_environment)
    start(ros_environment, '-c', CAMERA, 'stranger')
    start(ros_environment, '-c', READER, 'stranger').wait_for(labels_in)


@pytest.fixture
def enforced(secured):
    """As `secured`, where the middleware has security."""
    error = start_of_a_participant(secured)
    if NO_SECURITY in error:
        pytest.skip(NO_SECURITY)
    assert not error
    return secured


@pytest.fixture
def start_in(enforced, start):
    """Return a function that starts a program in an enclave; empty: without keys."""
    bare = {name: value for name, value in enforced.items() if 'ROS_SECURITY' not in name}

    def run(enclave, program):
        keys = enforced | {'ROS_SECURITY_ENCLAVE_OVERRIDE': f'/{enclave}'}
        return start(keys if enclave else bare, '-c', program, enclave or 'stranger')

    return run


@pytest.mark.parametrize('other', ['', 'camera'], ids=['no keys', 'no right'])
def test_labels_reach_the_reader_that_may_have_them_and_no_other(
    enforced, perception, start_in, other
):
    perception(enforced)
    start_in('camera', CAMERA)
    stranger = start_in(other, READER)
    stranger.wait_until_tried()
    # So many that the other one, which began earlier, would have had some.
    start_in('free_space', READER).wait_for(lambda output: labels_in(output) >= 50)
    assert labels_in(stranger.output) == 0


@pytest.mark.parametrize('other', ['', 'motion'], ids=['no keys', 'no right'])
def test_images_come_from_the_camera_that_may_send_them_and_from_no_other(
    enforced, perception, start_in, other
):
    perception(enforced)
    reader = start_in('free_space', READER)
    reader.wait_for(lambda output: 'ready' in output)
    start_in(other, CAMERA).wait_until_tried()
    time.sleep(5)  # of 50 images
    assert labels_in(reader.output) == 0
    start_in('camera', CAMERA)
    reader.wait_for(labels_in)


def test_every_node_that_a_launch_file_starts_is_in_the_enclave_of_its_name(started, peer, rig):
    started(f'rig:={rig}', 'motion_camera:=left', 'autostart:=false')
    place = TOOL['Place'](tuple(TOOL['read_cameras'](rig)), motion_camera='left')
    expected = {name: f'/{name}' for name in allowed_in(place)}

    def found():  # told by discovery, with security or without
        nodes = peer.get_node_names_and_namespaces_with_enclaves()
        return {name: enclave for name, _, enclave in nodes if name in expected}

    # A node of the test before may still be known, under the same name.
    spin(peer, lambda: found() == expected, timeout_s=90)
    assert found() == expected


def test_the_enclave_of_the_command_line_is_the_one_that_is_looked_for(secured):
    del secured['ROS_SECURITY_ENCLAVE_OVERRIDE']
    code = 'import rclpy, sys; rclpy.init(args=sys.argv); rclpy.create_node("some_node")'
    errors = {
        enclave: subprocess.run(
            [sys.executable, '-c', code, '--ros-args', '--enclave', enclave],
            env=secured,
            capture_output=True,
            text=True,
            check=False,
        ).stderr
        for enclave in ('/free_space', '/stranger')
    }
    assert 'SECURITY ERROR' in errors['/stranger']
    assert 'SECURITY ERROR' not in errors['/free_space']
