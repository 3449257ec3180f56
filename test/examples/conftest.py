"""An example and the real node as processes, and rendered frames that are published to them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
import signal
import subprocess
import sys
import time

from dense_perception.data.drives import rendered_drive, SHOWN_SEED
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.ros.bags import write_drive
from dense_perception.ros.messages import color_message
import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

ROOT = Path(__file__).parents[2]
FRAMES = 4
PERIOD_S = 0.1
WAIT_S = 60.0  # on a busy machine; a few seconds do on a quiet one
NODE = (
    *('autostart:=true', 'device:=cpu', 'precision:=float32'),
    *('segmentation_width:=240', 'flow_width:=256', 'max_flow_gap_s:=60.0'),
)


def start_script(
    script: str, parameters: Sequence[str], environment: Mapping[str, str], output: Path
) -> subprocess.Popen[bytes]:
    """Start a script of the repository, which prints into a file."""
    arguments = [argument for value in parameters for argument in ('-p', value)]
    with output.open('wb') as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / script), '--ros-args', *arguments],
            env={**environment, 'PYTHONPATH': str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


class Stage:
    """Plays a rendered drive, back and forth, to a perception node and an example beside it."""

    def __init__(
        self, environment: Mapping[str, str], folder: Path, parameters: Sequence[str] = ()
    ) -> None:
        self.environment, self.folder = environment, folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.outputs: list[Path] = []
        self.context = Context()
        # It loads while the frames are rendered.
        self.start('scripts/perception_node', *NODE, *parameters)
        rclpy.init(context=self.context)
        self.node = rclpy.create_node('stage', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.images = self.node.create_publisher(Image, '/image', 10)
        self.infos = self.node.create_publisher(CameraInfo, '/camera_info', 10)
        self.world = RoadWorld(3, RoadWorldSettings(height=180, width=240))
        self.frames = [self.world.frame(index).image for index in range(FRAMES)]

    def start(self, script: str, *parameters: str) -> Path:
        """Start a script of the repository; return the file of what it prints."""
        output = self.folder / f'{len(self.processes)}.txt'
        self.outputs.append(output)
        self.processes.append(start_script(script, parameters, self.environment, output))
        return output

    def listen(self, kind: type, topic: str) -> list:
        heard: list = []
        self.node.create_subscription(kind, topic, heard.append, 10)
        return heard

    def play_until(
        self,
        condition: Callable[[], bool],
        beside: Callable[[int], None] = lambda _: None,
    ) -> None:
        """
        Publish the frames until a condition holds.

        :param beside: called with each frame's stamp in nanoseconds, before it.
        """
        deadline = time.monotonic() + WAIT_S
        number = 0
        while not condition():
            late = time.monotonic() > deadline
            ended = any(process.poll() is not None for process in self.processes)
            if late or ended:
                raise AssertionError('\n'.join(file.read_text() for file in self.outputs))
            self._publish(number, beside)
            number += 1
            due = time.monotonic() + PERIOD_S
            while (left := due - time.monotonic()) > 0:
                self.executor.spin_once(timeout_sec=left)

    def _publish(self, number: int, beside: Callable[[int], None]) -> None:
        stamp_ns = 10**12 + round(number * PERIOD_S * 1e9)
        header = Header(frame_id='camera')
        header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 10**9)
        info = CameraInfo(header=header, width=240, height=180, distortion_model='plumb_bob')
        info.k, info.d = self.world.camera_matrix.ravel(), [0.0] * 5
        beside(stamp_ns)
        self.infos.publish(info)
        # Back and forth, so that the drive has no cut in it.
        index = number % (2 * FRAMES - 2)
        self.images.publish(color_message(self.frames[min(index, 2 * FRAMES - 2 - index)], header))

    def close(self) -> list[int]:
        """Interrupt what was started, and return how it ended."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        try:
            return [process.wait(WAIT_S) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            self.executor.shutdown()
            self.node.destroy_node()
            self.context.try_shutdown()


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, ros_environment: Mapping[str, str], tmp_path: Path
) -> Iterator[Stage]:
    """Return a stage on which a perception node runs; its parameters may be told indirectly."""
    stage = Stage(ros_environment, tmp_path, getattr(request, 'param', ()))
    yield stage
    stage.close()


@pytest.fixture(scope='session')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bag of the beginning of the bundled drive, with its camera."""
    path = tmp_path_factory.mktemp('drive') / 'bag'
    drive = rendered_drive(SHOWN_SEED, 8)
    write_drive(path, drive.frames(), camera_matrix=drive.camera_matrix)
    return path


@pytest.fixture
def example(
    ros_environment: Mapping[str, str], tmp_path: Path
) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Path]]]:
    """Return a function that starts an example, and returns it and the file that it prints to."""
    processes = []

    def start(script: str, *parameters: str) -> tuple[subprocess.Popen[bytes], Path]:
        output = tmp_path / f'{Path(script).stem}.txt'
        processes.append(start_script(script, parameters, ros_environment, output))
        return processes[-1], output

    yield start
    for process in processes:
        process.kill()
        process.wait()
