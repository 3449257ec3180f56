"""Fixtures for tests of nodes, inside the test's own process and launched."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Thread
import time

from dense_perception.data.drives import rendered_drive
from dense_perception.ros.bags import write_drive
from dense_perception.ros.node import PerceptionNode
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
import pytest
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

# Small and on the CPU, so that a frame takes milliseconds.
SMALL = {'device': 'cpu', 'precision': 'float32', 'segmentation_width': 64, 'flow_width': 64}


class Bench:
    """A perception node in a thread of its own, and a node beside it that uses it over DDS."""

    def __init__(self, **parameters):
        self.context = Context()
        rclpy.init(context=self.context)
        overrides = [
            Parameter(name, value=value) for name, value in {**SMALL, **parameters}.items()
        ]
        try:
            self.node = PerceptionNode(context=self.context, parameter_overrides=overrides)
        except Exception:
            self.context.try_shutdown()
            raise
        self.node_executor = SingleThreadedExecutor(context=self.context)
        self.node_executor.add_node(self.node)
        self.thread = Thread(target=self.node.serve, args=[self.node_executor])
        self.thread.start()
        self.peer = rclpy.create_node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.peer)

    def statistics(self, camera=''):
        """Return what a camera's stream did so far."""
        return next(c.statistics for c in self.node.cameras if c.name == camera)

    def close(self):
        self.context.try_shutdown()
        self.thread.join(20)
        self.node.close()
        self.node.destroy_node()
        self.peer.destroy_node()

    def spin(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Serve the peer until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, 'what the test waits for does not come'
            self.executor.spin_once(timeout_sec=0.02)

    def spin_for(self, time_s: float) -> None:
        """Serve the peer for a time, to see that something does not come."""
        deadline = time.monotonic() + time_s
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind, name, request):
        """Call a service of the node and return the response."""
        client = self.peer.create_client(kind, f'/dense_perception/{name}')
        self.spin(client.service_is_ready)
        future = client.call_async(request)
        self.spin(future.done, 60.0)  # the first configuration after a change compiles kernels
        self.peer.destroy_client(client)
        return future.result()

    def ask(self, kind, name, request):
        """Call a service of the node whose answer nobody waits for."""
        client = self.peer.create_client(kind, f'/dense_perception/{name}')
        self.spin(client.service_is_ready)
        client.call_async(request)

    def change(self, *labels: str) -> bool:
        """Ask for transitions such as `configure`; return whether the last one succeeded."""
        for label in labels:
            request = ChangeState.Request(transition=Transition(label=label))
            success = self.call(ChangeState, 'change_state', request).success
        return success

    def state(self) -> str:
        return self.call(GetState, 'get_state', GetState.Request()).current_state.label

    def set(self, **parameters):
        """Set parameters by service; return one result."""
        request = SetParameters.Request(
            parameters=[
                Parameter(name, value=value).to_parameter_msg()
                for name, value in parameters.items()
            ]
        )
        return self.call(SetParameters, 'set_parameters', request).results[0]

    def listen(self, name, kind=Image, *, latched=False):
        """Subscribe to an output; return the list of what comes, once the node knows of it."""
        heard = []
        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        quality = QoSProfile(
            depth=50, reliability=ReliabilityPolicy.RELIABLE, durability=durability
        )
        topic = f'/dense_perception/{name}'
        self.peer.create_subscription(kind, topic, heard.append, quality)

        def known() -> bool:
            return any(
                output.topic_name == topic and output.get_subscription_count()
                for output in list(self.node.publishers)
            )

        if self.node.count_publishers(topic):
            self.spin(known)
        return heard

    def camera(self, kind=Image, topic='/image', reliability=ReliabilityPolicy.RELIABLE):
        """Return a publisher that the node listens to."""
        publisher = self.peer.create_publisher(
            kind, topic, QoSProfile(depth=10, reliability=reliability)
        )
        self.spin(lambda: publisher.get_subscription_count() > 0)
        return publisher

    def next_diagnostics(self) -> tuple[DiagnosticStatus, dict[str, str]]:
        """Return what the node tells next of itself."""
        return self.diagnostics(lambda status, values: True)

    def diagnostics(
        self,
        condition: Callable[[DiagnosticStatus, Mapping[str, str]], bool],
        camera: str = '',
    ) -> tuple[DiagnosticStatus, dict[str, str]]:
        """Wait for diagnostics of a camera of which a condition holds, and return them."""
        found = []
        name = f'/dense_perception: stream {camera}'.rstrip()

        def keep(message):
            (status,) = [status for status in message.status if status.name == name]
            values = {pair.key: pair.value for pair in status.values}
            if condition(status, values):
                found.append((status, values))

        subscription = self.peer.create_subscription(DiagnosticArray, '/diagnostics', keep, 10)
        self.spin(lambda: bool(found))
        self.peer.destroy_subscription(subscription)
        return found[0]


@pytest.fixture
def bench(ros_environment: Mapping[str, str]) -> Iterator[Callable[..., Bench]]:
    """
    Return a function that starts an active perception node.

    Its arguments are parameters of the node; `state` says how far it is brought.
    """
    benches = []

    def start(state: str = 'active', **parameters) -> Bench:
        bench = Bench(**parameters)
        benches.append(bench)
        steps = {'unconfigured': 0, 'inactive': 1, 'active': 2}[state]
        for label in ('configure', 'activate')[:steps]:
            assert bench.change(label)
        return bench

    yield start
    for bench in benches:
        bench.close()


def frame(number: int = 0, *, size=(48, 64), stamp_ns: int | None = None) -> Image:
    """Return an rgb8 image message; those of other numbers look otherwise and come later."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    message = Image(height=size[0], width=size[1], encoding='rgb8', step=size[1] * 3)
    message.data.frombytes(pixels.tobytes())
    message.header.frame_id = 'front'
    if stamp_ns is None:
        stamp_ns = 10**12 + number * 10**8
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return message


@pytest.fixture(name='frame')
def frame_fixture() -> Callable[..., Image]:
    """Return the function that makes image messages."""
    return frame


# Small networks for a launched node.
PARAMETERS = """
/**:
  ros__parameters:
    device: cpu
    segmentation_width: 128
    flow_width: 128
    proposal_width: 128
    max_flow_gap_s: 60.0
"""


class Peer:
    """A node of another process than the launched ones."""

    def __init__(self):
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def spin(self, condition, timeout_s=30.0):
        """Serve the peer until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, 'what the test waits for does not come'
            self.executor.spin_once(timeout_sec=0.05)

    def listen(self, topic, kind=Image, quality=10):
        """Subscribe to a topic; return the list of what comes."""
        heard: list = []
        self.node.create_subscription(kind, topic, heard.append, quality)
        return heard

    def state(self, node='/dense_perception'):
        """Return the lifecycle state of a node."""
        client = self.node.create_client(GetState, f'{node}/get_state')
        self.spin(client.service_is_ready)
        asked = []

        def answered():
            # An answer is lost where the server does not know of the client yet; ask again.
            if not asked or time.monotonic() > asked[-1][0] + 2:
                asked.append((time.monotonic(), client.call_async(GetState.Request())))
            return any(future.done() for _, future in asked)

        self.spin(answered)
        (answer,) = [future.result() for _, future in asked if future.done()][:1]
        return answer.current_state.label


@pytest.fixture
def peer(ros_environment: Mapping[str, str]) -> Iterator[Peer]:
    """Return a node beside those that the test launches."""
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(scope='session')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bag of six rendered frames at 10 Hz on /camera/image_raw."""
    path = tmp_path_factory.mktemp('drive') / 'bag'
    drive = rendered_drive(3, 6)
    write_drive(path, drive.frames(), camera_matrix=drive.camera_matrix)
    return path


@pytest.fixture
def parameters(tmp_path: Path) -> str:
    """Return the launch argument of a file of parameters with which a frame takes little."""
    path = tmp_path / 'parameters.yaml'
    path.write_text(PARAMETERS)
    return f'params_file:={path}'
