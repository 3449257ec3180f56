"""A node that consumes, in a thread of its own, and a node beside it that publishes to it."""

from collections.abc import Callable
import json
from pathlib import Path
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
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header, String

SCRIPTS = Path(__file__).parents[2] / 'scripts'
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
        self.thread = Thread(target=self._serve)
        self.thread.start()
        self.peer = rclpy.create_node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.peer)
        self._publishers: dict = {}
        self._diagnostics: list = []
        self.peer.create_subscription(DiagnosticArray, '/diagnostics', self._keep, 10)

    def _serve(self):
        try:
            self.node_executor.spin()
        except ExternalShutdownException:
            pass
        except RuntimeError:  # the context may end between two steps of the executor
            if self.context.ok():
                raise

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


def ends_in_good_order(script, environment, arguments, number, *, wait_for):
    """Start a script, wait for what it publishes, signal it; return status and output."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / script), '--ros-args', *arguments],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for()
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
        return process.returncode, output.decode()
    finally:
        process.kill()
        process.wait()


SIGNALS = (signal.SIGINT, signal.SIGTERM)
K = np.array(((300.0, 0, 159.5), (0, 300.0, 119.5), (0, 0, 1)))
