"""A node that consumes, in a thread of its own, and a node beside it that publishes to it."""

from collections.abc import Callable, Mapping
import json
from pathlib import Path
import re
import signal
import subprocess
import sys
from threading import Thread
import time

from dense_perception.ros.messages import label_info_json
from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header, String
import yaml

ROOT = Path(__file__).parents[2]
MOUNTED_ARGUMENTS = ('--ros-args', '-p', 'mounting:=parameters')
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class ConsumerBench:
    """Runs the node; `send` publishes to it and `listen` hears it, over DDS."""

    def __init__(self, kind: type, **parameters):
        self.context = Context()
        rclpy.init(context=self.context)
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        try:
            self.node = kind(context=self.context, parameter_overrides=overrides)
        except Exception:
            self.context.try_shutdown()
            raise
        self.name = self.node.get_name()
        self.node_executor = SingleThreadedExecutor(context=self.context)
        self.node_executor.add_node(self.node)
        self.thread = Thread(target=self.node.serve, args=[self.node_executor])
        self.thread.start()
        self.peer = rclpy.create_node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.peer)
        self._publishers: dict = {}
        self._diagnostics: list = []
        self.peer.create_subscription(DiagnosticArray, '/diagnostics', self._keep, 10)

    def _keep(self, message):
        (status,) = message.status
        self._diagnostics.append((status, {pair.key: pair.value for pair in status.values}))

    def close(self):
        self.context.try_shutdown()
        self.thread.join(20)
        self.node.close()
        self.node.destroy_node()
        self.peer.destroy_node()

    def spin(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Serve the peer until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, 'what the test waits for does not come'
            self.executor.spin_once(timeout_sec=0.02)

    def listen(self, topic: str, kind: type, quality=10) -> list:
        """Subscribe to an output; return the list of what comes, once the node knows of it."""
        heard: list = []
        self.peer.create_subscription(kind, f'/{self.name}/{topic}', heard.append, quality)
        self.spin(lambda: topic in self.node.wanted())
        return heard

    def send(self, topic: str, message, quality=10) -> None:
        """Publish to the node, once it listens."""
        if topic not in self._publishers:
            kind = type(message)
            self._publishers[topic] = self.peer.create_publisher(kind, topic, quality)
        publisher = self._publishers[topic]
        self.spin(lambda: publisher.get_subscription_count() > 0)
        publisher.publish(message)

    def tell_camera(self, info: CameraInfo) -> None:
        """Publish a camera info, and wait until the node has it."""
        before = self.node.inputs['camera_info'].heard
        self.send('/camera_info', info)
        self.spin(lambda: self.node.inputs['camera_info'].heard > before)

    def bad(self, text: str) -> None:
        """Wait until an image was refused with a text."""
        self.spin(lambda: text in self.node.statistics.last_error)

    def diagnostics(self, condition: Callable) -> tuple:
        """Wait for diagnostics of which a condition holds, and return them."""
        self._diagnostics.clear()
        self.spin(lambda: any(condition(*entry) for entry in self._diagnostics))
        return next(entry for entry in self._diagnostics if condition(*entry))

    def set(self, **parameters):
        """Set parameters by service; return the results."""
        client = self.peer.create_client(SetParameters, f'/{self.name}/set_parameters')
        self.spin(client.service_is_ready)
        request = SetParameters.Request(
            parameters=[
                Parameter(name, value=value).to_parameter_msg()
                for name, value in parameters.items()
            ]
        )
        future = client.call_async(request)
        self.spin(future.done)
        return future.result().results


def header(stamp_ns=None, frame_id='front_optical'):
    """Return a header of a time; None: of now."""
    message = Header(frame_id=frame_id)
    now_ns = time.time_ns() if stamp_ns is None else stamp_ns
    message.stamp.sec, message.stamp.nanosec = divmod(now_ns, 10**9)
    return message


def camera_info(camera, head=None):
    """Describe a camera."""
    message = CameraInfo(header=head or header(), width=camera.width, height=camera.height)
    message.distortion_model, message.d = camera.distortion_model, camera.distortion.tolist()
    message.k, message.r = camera.matrix.ravel(), camera.rotation.ravel()
    message.p = camera.projection.ravel()
    return message


def label_info(label_set, **changes):
    """Return the message of a label set, with other content where that is wanted."""
    return String(data=json.dumps({**json.loads(label_info_json(label_set)), **changes}))


def check_parameter_file(kind: type, file: str) -> None:
    """Check that a file of parameters holds every one of a node with its default."""
    context = Context()
    rclpy.init(context=context)
    mounting = [Parameter('mounting', value='parameters')]  # the default, tf, needs tf2
    node = kind(context=context, parameter_overrides=mounting)
    try:
        declared = {
            name: node.get_parameter(name).value
            for name in node._parameters
            if not name.startswith(('qos_overrides', 'use_sim_time', 'start_type'))
        }
    finally:
        node.close()
        node.destroy_node()
        context.try_shutdown()
    written = yaml.safe_load((ROOT / 'config' / file).read_text())['/**']['ros__parameters']
    assert written == {**declared, 'mounting': 'tf'}


def check_documents(running: ConsumerBench, least: int) -> None:
    """
    Check that the documents have the topics of a node with their types.

    :param least: topics that the node has beside those that every node has.
    """
    folder = ROOT / 'docs'
    node, prefix = running.node, f'/{running.name}/'
    seen = set(re.findall(rf'{prefix}\w+', (folder / 'seeing.md').read_text()))
    assert seen
    assert seen <= {output.topic_name for output in node.publishers}
    written, known = (folder / 'integration.md').read_text(), 0
    for topic in (*node.publishers, *node.subscriptions):
        name = topic.topic_name.replace(prefix, '~/').lstrip('/')
        if name in ('rosout', 'parameter_events', 'clock'):
            continue
        package = topic.msg_type.__module__.partition('.')[0]
        assert f'| `{name}` | {package}/{topic.msg_type.__name__} |' in written
        known += 1
    assert known >= least


def check_good_end(script: str, environment: Mapping[str, str], number: signal.Signals) -> None:
    """Start a script, wait for its diagnostics, signal it, and check that it ends in order."""
    context = Context()
    rclpy.init(context=context)
    peer = rclpy.create_node('peer', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(peer)
    heard: list = []
    peer.create_subscription(DiagnosticArray, '/diagnostics', heard.append, 10)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'scripts' / script), *MOUNTED_ARGUMENTS],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not heard and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.1)
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
        executor.shutdown()
        peer.destroy_node()
        context.try_shutdown()
    assert heard
    assert process.returncode == 0, output
    assert 'Traceback' not in output


SIGNALS = (signal.SIGINT, signal.SIGTERM)
K = np.array(((300.0, 0, 159.5), (0, 300.0, 119.5), (0, 0, 1)))
