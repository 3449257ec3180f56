"""The launched node that `node.py` measures, its cameras and its consumer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
import math
import os
from pathlib import Path
import signal
import time
from typing import Any

from dense_perception.arrays import Image
from dense_perception.ros.consuming import nanoseconds
from dense_perception.ros.messages import color_message
from dense_perception.ros.quality import camera_quality, result_quality
from dense_perception.ros.running import launch_command, listening, Running, running, spin_once
from diagnostic_msgs.msg import DiagnosticArray
from node_rows import Meter, OUTPUTS, Shot, Take
import psutil  # type: ignore[import-untyped]  # has no stubs
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header
import yaml

NODE = '/benchmark/dense_perception'
START_S = 60.0  # longest wait for the node; loading torch alone takes seconds
SETTLE_S = 0.25  # a publisher may know of a subscription before that one knows of it
LOST_S = 5.0  # longest wait for what becomes of an image
MOST_LOST = 3  # images in a row
LEAST = 5  # images that a row rests on, however long they take
LONGER = 10  # times the time asked for, after which a row ends with fewer
POLL_S = 0.1
WARM_UPS = 5  # an engine is begun on the fourth
ENGINES_S = 900.0  # longest wait for engines


class Bench(Node):
    """Cameras that a perception node listens to, and a consumer of its labels and flow."""

    def __init__(self, cameras: Sequence[str], images: Sequence[Image]) -> None:
        """
        Begin to listen; nothing is published yet.

        :param cameras: names of a rig's; one empty name: a single camera.
        :param images: (H, W, 3) uint8 RGB each; published in a loop.
        """
        super().__init__('benchmark', start_parameter_services=False)
        self.figures: dict[str, str] = {}  # of the node's newest diagnostics
        self._shots: dict[tuple[str, int], Shot] = {}
        self._messages = [color_message(image, Header(frame_id='camera')) for image in images]
        self._publishers_of = {}
        for name in cameras:
            self._publishers_of[name] = self.create_publisher(
                ImageMessage, image_topic(name), camera_quality()
            )
            for output in OUTPUTS:
                topic = '/'.join(part for part in (NODE, name, output) if part)
                arrived = partial(self._arrived, name, output)
                self.create_subscription(ImageMessage, topic, arrived, result_quality())
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    @property
    def matched(self) -> bool:
        """Whether the node listens to every camera and is listened to."""
        heard = all(output.get_subscription_count() for output in self._publishers_of.values())
        mine = [topic.topic_name for topic in self.subscriptions if NODE in topic.topic_name]
        return heard and all(self.count_publishers(topic) for topic in mine)

    def shoot(self, camera: str, number: int) -> Shot:
        """Publish an image of now."""
        message = self._messages[number % len(self._messages)]
        stamp_ns = time.time_ns()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        shot = self._shots[camera, stamp_ns] = Shot(camera, stamp_ns)
        self._publishers_of[camera].publish(message)
        shot.publish_ms = (time.time_ns() - stamp_ns) / 1e6
        return shot

    def _arrived(self, camera: str, output: str, message: ImageMessage) -> None:
        now_ns = time.time_ns()
        shot = self._shots.get((camera, nanoseconds(message.header.stamp)))
        if shot is not None:
            shot.arrivals_ns[output] = now_ns

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f'{NODE}: '):
                self.figures = {pair.key: pair.value for pair in status.values}


def image_topic(camera: str) -> str:
    """Return where a camera publishes."""
    return f'/benchmark/{camera or "camera"}/image_raw'


@dataclass
class Launched:
    """A launched node with its cameras and its consumer."""

    bench: Bench
    cameras: Sequence[str]
    executor: SingleThreadedExecutor
    launch: Running
    process: psutil.Process

    def warm_up(self) -> None:
        """
        Have the node see images of this size until its engines are built; the first has no flow.

        :raises RunError: they are not built in time.
        """
        for number in range(WARM_UPS):
            outputs = OUTPUTS if number else OUTPUTS[:1]
            self._wait_for(self._shoot(number), *outputs)
        deadline = time.monotonic() + ENGINES_S
        while any('until an engine' in value for value in self.next_figures().values()):
            if time.monotonic() > deadline:
                raise self.launch.failure(f'no engines after {ENGINES_S:.0f} s')

    def one_by_one(
        self, seconds: float, between: Callable[[int], object] = lambda number: None
    ) -> Take:
        """
        Publish the next image of each camera once labels and flow of the last have arrived.

        :param between: is called with the number of an image after that has been served.
        :raises RunError: nothing comes back.
        """
        take, lost, number = Take([], Meter(self.process)), 0, 0
        while self._goes_on(take, seconds):
            new = self._shoot(number)
            take.shots += new
            lost = 0 if self._wait_for(new, *OUTPUTS, meter=take.meter) else lost + 1
            if lost == MOST_LOST:
                break
            between(number)
            number += 1
        take.meter.stop()
        if math.isnan(take.fps):
            raise self.launch.failure(f'{number} images, but no labels and flow of two')
        return take

    def at_rate(self, seconds: float, rate_hz: float) -> Take:
        """
        Publish images of each camera at a rate, whatever becomes of them; cameras take turns.

        :param rate_hz: of each camera.
        """
        take, turn = Take([], Meter(self.process)), 0
        period_s, began = 1 / rate_hz / len(self.cameras), time.monotonic()
        while self._goes_on(take, seconds):
            self.wait(lambda: False, began + turn * period_s - time.monotonic(), take.meter)
            number, camera = divmod(turn, len(self.cameras))
            take.shots.append(self.bench.shoot(self.cameras[camera], number))
            # A camera that cannot keep its rate leaves images out, as one does.
            turn = max(turn + 1, int((time.monotonic() - began) / period_s))
        take.meter.stop()
        self._wait_for(take.shots[-len(self.cameras) :], *OUTPUTS)
        return take

    def _shoot(self, number: int) -> list[Shot]:
        return [self.bench.shoot(name, number) for name in self.cameras]

    def _wait_for(self, shots: Sequence[Shot], *outputs: str, meter: Meter | None = None) -> bool:
        return self.wait(lambda: all(shot.has(*outputs) for shot in shots), LOST_S, meter)

    def next_figures(self) -> Mapping[str, str]:
        """Return what the node tells next of itself on /diagnostics."""
        self.bench.figures = {}
        self.wait(lambda: bool(self.bench.figures), LOST_S)
        return self.bench.figures

    def wait(
        self, condition: Callable[[], bool], timeout_s: float, meter: Meter | None = None
    ) -> bool:
        """
        Serve the consumer until a condition holds; return whether it does.

        :raises RunError: the node has ended, or this process was interrupted.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if (rest_s := deadline - time.monotonic()) <= 0:
                return False
            spin_once(self.executor, min(rest_s, POLL_S))
            self.launch.check()
            if meter is not None:
                try:
                    meter.look()
                except psutil.NoSuchProcess:
                    raise self.launch.failure('the node has ended') from None
        return True

    def _goes_on(self, take: Take, seconds: float) -> bool:
        """Whether more is measured: for a time, and longer where results are few."""
        passed_s = time.monotonic() - take.meter.began
        if passed_s < seconds or passed_s > LONGER * seconds:
            return passed_s < seconds
        return len(take.complete) < LEAST * len(self.cameras)


@contextmanager
def launched(
    parameters: Mapping[str, Any], cameras: Sequence[str], images: Sequence[Image], folder: Path
) -> Iterator[Launched]:
    """
    Launch the installed node for cameras of this process; it ends with the block.

    :param parameters: of the node.
    :param cameras: as for `Bench`.
    :param folder: for the files that launch reads and its log.
    :raises RunError: the node does not come, with the end of its log.
    """
    file = folder / 'parameters.yaml'
    file.write_text(yaml.safe_dump({'/**': {'ros__parameters': dict(parameters)}}))
    command = launch_command(image_topic(''), 'namespace:=benchmark', f'params_file:={file}')
    if any(cameras):
        rig = folder / 'rig.yaml'
        places = {name: {'namespace': f'/benchmark/{name}'} for name in cameras}
        rig.write_text(yaml.safe_dump({'cameras': places}))
        command.append(f'rig:={rig}')
    groups: list[int] = []
    try:
        with (
            listening(lambda: Bench(cameras, images)) as (bench, executor),
            running(command, folder / 'launch.log') as launch,
        ):
            groups.append(launch.process.pid)
            launched = Launched(bench, cameras, executor, launch, psutil.Process())
            if not launched.wait(lambda: bench.matched, START_S):
                raise launch.failure(f'the node is not there after {START_S:.0f} s')
            launched.process = next(
                child
                for child in psutil.Process(launch.process.pid).children(recursive=True)
                if any('perception_node' in word for word in child.cmdline())
            )
            launched.wait(lambda: False, SETTLE_S)
            launched.warm_up()
            yield launched
    finally:
        for group in groups:  # whatever outlived launch
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
