"""
Run the launched node for a long time, disturb it, and see whether it grows.

A player publishes a drive in a loop, subscribers come and go, and faults are put in one after the
other. Every second, memory, threads and file descriptors of the node's process are noted, and what
it says of itself on /diagnostics. Results: `soak.csv`, `soak.png`, `launch.log` in the folder that
`--out` names. The exit status is 1 where the node grew, died or ended without labels.

It grew where the slope of a quantity over time, by Theil and Sen, times the time after the warm-up
is more than the allowance of that quantity, with 95 % confidence. Single peaks do not count, and
a slow leak shows once the run is long enough: 16 MiB in an hour is 4.6 KiB a second.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
import csv
from dataclasses import asdict, dataclass, fields
import os
from pathlib import Path
import random
import signal
import sys
import time
from typing import Any

import cv2
from dense_perception.data.drives import rendered_drive
from dense_perception.data.pictures import save_picture
from dense_perception.ros.bags import write_drive
from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from numpy.typing import NDArray
import psutil  # type: ignore[import-untyped]  # has no stubs
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from scipy.stats import theilslopes
from sensor_msgs.msg import CameraInfo, Image

PROFILE = Path(__file__).parent.parent / 'config' / 'fastdds_large_images.xml'
IMAGE, INFO = '/camera/image_raw', '/camera/camera_info'
NODE = '/dense_perception'
OUTPUTS = ('labels', 'confidence', 'labels_color', 'flow', 'flow_color')
# What a quantity may grow by after the warm-up.
ALLOWED = {'memory_mib': 16.0, 'threads': 1.0, 'descriptors': 2.0}
POINTS = 500  # that slopes are computed from; each is a median of samples
START_S = 120.0  # longest wait for the first results
FIGURES = {  # key of the node's diagnostics -> column
    'age p50 (ms)': 'age_p50_ms',
    'age p99 (ms)': 'age_p99_ms',
    'images received': 'received',
    'images processed': 'processed',
    'images dropped': 'dropped',
    'bad images': 'bad',
}
DRAWN = ('memory_mib', 'threads', 'descriptors', 'age_p50_ms', 'age_p99_ms', 'dropped', 'bad')


@dataclass
class Sample:
    """The node at one moment."""

    time_s: float  # since the first sample
    memory_mib: float  # resident
    threads: int
    descriptors: int
    subscribers: int  # of this tool
    age_p50_ms: float = np.nan
    age_p99_ms: float = np.nan
    received: float = np.nan
    processed: float = np.nan
    dropped: float = np.nan
    bad: float = np.nan
    fault: str = ''  # put in since the last sample


class Soak(Node):
    """Subscribes now here, now there, puts faults in, and hears what the node says of itself."""

    def __init__(self, seed: int) -> None:
        super().__init__('soak')
        self.figures: dict[str, str] = {}
        self.labels = 0
        self._random = random.Random(seed)
        self._visitors: list[Any] = []
        self._images = self.create_publisher(Image, IMAGE, 1)
        self._infos = self.create_publisher(CameraInfo, INFO, 1)
        service = f'{NODE}/set_parameters'
        self._parameter_client: Any = self.create_client(SetParameters, service)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self.create_subscription(Image, f'{NODE}/labels', self._on_labels, 1)
        self.create_timer(1.0, self._change_visitors)

    @property
    def visitors(self) -> int:
        """How many subscriptions there are beside the one that stays."""
        return len(self._visitors)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.hardware_id == 'dense_perception':
                self.figures = {pair.key: pair.value for pair in status.values}

    def _on_labels(self, message: Image) -> None:
        self.labels += 1

    def _change_visitors(self) -> None:
        """Let one subscriber come or go."""
        if self._visitors and self._random.random() < len(self._visitors) / 10:
            place = self._random.randrange(len(self._visitors))
            self.destroy_subscription(self._visitors.pop(place))
            return
        topic = f'{NODE}/{self._random.choice(OUTPUTS)}'
        self._visitors.append(self.create_subscription(Image, topic, lambda _: None, 1))

    def _image(self, **changes: Any) -> Image:
        """Make a small good image of now, or one with other values in some fields."""
        message = Image(height=48, width=64, encoding='rgb8', step=192, data=bytes(48 * 192))
        message.header.stamp = self.get_clock().now().to_msg()
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    # The faults; the name of each is that of its method.

    def unknown_encoding(self) -> None:
        """Publish an image in an encoding that does not exist."""
        self._images.publish(self._image(encoding='rgb565'))

    def short_data(self) -> None:
        """Publish an image with fewer bytes than its size needs."""
        self._images.publish(self._image(data=b'abc'))

    def absurd_size(self) -> None:
        """Publish an image that claims to have a billion pixels."""
        self._images.publish(self._image(width=2**31, height=2**31))

    def other_size(self) -> None:
        """Publish a good image of another size in mid-stream."""
        self._images.publish(self._image())

    def no_message(self) -> None:
        """Publish bytes that are no message."""
        self._images.publish(b'\0\1\0\0' + bytes(self._random.randrange(256) for _ in range(99)))

    def no_camera(self) -> None:
        """Publish a camera description of numbers that are none."""
        self._infos.publish(CameraInfo(width=64, height=48, k=[np.nan] * 9))

    def wrong_parameter(self) -> None:
        """Ask for a parameter out of its range, and for one that does not exist."""
        values: dict[str, Any] = {'overlay_opacity': 99.0, 'no_such_parameter': 'x'}
        request = SetParameters.Request(
            parameters=[
                Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
            ]
        )
        self._parameter_client.call_async(request)

    def burst(self) -> None:
        """Publish thirty images as fast as that goes."""
        for _ in range(30):
            self._images.publish(self._image())


FAULTS = (
    *('unknown_encoding', 'short_data', 'absurd_size', 'other_size', 'no_message', 'no_camera'),
    *('wrong_parameter', 'burst', 'camera_loss'),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 where the node grew or failed."""
    options = _parser().parse_args(arguments)
    unknown = set(options.faults) - set(FAULTS)
    if unknown:
        print(f'soak: no fault {", ".join(sorted(unknown))}; there are {", ".join(FAULTS)}')
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    samples, failure = _run(options)
    _write(options.out / 'soak.csv', samples)
    save_picture(options.out / 'soak.png', draw(samples, options.warm_up * 60))
    rest = [sample for sample in samples if sample.time_s >= options.warm_up * 60]
    grown = growth(rest)
    for name, (change, surely) in grown.items():
        values = [getattr(sample, name) for sample in rest]
        print(
            f'{name}: {min(values):.1f} to {max(values):.1f}, trend {change:+.2f} in all, '
            f'surely {surely:+.2f} (allowed {ALLOWED[name]:g})'
        )
    failures = [f'{name} grew' for name, (_, surely) in grown.items() if surely > ALLOWED[name]]
    failures += [failure] if failure else []
    print(f'soak: {"; ".join(failures) or "steady"}; results in {options.out}')
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='soak', description=__doc__)
    parser.add_argument('--minutes', type=float, default=60.0, help='default: %(default)s')
    parser.add_argument(
        '--warm-up',
        type=float,
        default=2.0,
        metavar='MINUTES',
        help='at the start, which does not count; default: %(default)s',
    )
    parser.add_argument('--out', type=Path, default=Path('out/soak'), help='%(default)s')
    parser.add_argument('--faults', nargs='*', default=FAULTS, help='default: all; none: none')
    parser.add_argument(
        '--fault-period',
        type=float,
        default=5.0,
        metavar='SECONDS',
        help='from one fault to the next, default: %(default)s',
    )
    parser.add_argument('--seed', type=int, default=0, help='of what comes when')
    parser.add_argument('--launch', nargs='*', default=[], help='name:=value for the launch file')
    return parser


def _run(options: argparse.Namespace) -> tuple[list[Sample], str]:
    """Run the node for the time asked for; returns what was seen, and why it ended early."""
    bag = options.out / 'bag'
    if not bag.exists():
        drive = rendered_drive(1, 60)
        write_drive(bag, drive.frames(), camera_matrix=drive.camera_matrix)
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(PROFILE))
    rclpy.init()
    soak = Soak(options.seed)
    executor = SingleThreadedExecutor()
    executor.add_node(soak)
    arguments = [f'bag:={bag.resolve()}', 'loop:=true', *options.launch]
    try:
        with _launched(arguments, options.out / 'launch.log') as launch:
            node = _wait_for_node(executor, soak, launch)
            if node is None:
                return [], 'no labels came'
            return _sample(options, executor, soak, launch, node)
    finally:
        executor.shutdown()
        soak.destroy_node()
        rclpy.try_shutdown()


@contextmanager
def _launched(arguments: list[str], log: Path) -> Iterator[psutil.Popen]:
    command = ['ros2', 'launch', 'dense_perception', 'drive.launch.py', *arguments]
    with log.open('wb') as output:
        launch = psutil.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield launch
    finally:
        _continue(launch)  # a stopped player would not hear the interrupt
        children = launch.children(recursive=True) if launch.is_running() else []
        for process in [launch, *children]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs([launch, *children], 15)
        for process in alive:
            process.kill()


def _child(launch: psutil.Popen, name: str) -> psutil.Process | None:
    """Find the process of an executable that launch has started."""
    with suppress(psutil.Error):
        for child in launch.children():
            if any(name in word for word in child.cmdline()):
                return child
    return None


def _continue(launch: psutil.Popen) -> None:
    player = _child(launch, 'player_node')
    if player is not None:
        player.resume()


def _wait_for_node(
    executor: SingleThreadedExecutor, soak: Soak, launch: psutil.Popen
) -> psutil.Process | None:
    deadline = time.monotonic() + START_S
    while not (soak.labels and soak.figures):
        executor.spin_once(timeout_sec=0.2)
        if time.monotonic() > deadline or launch.poll() is not None:
            return None
    return _child(launch, 'perception_node')


def _sample(
    options: argparse.Namespace,
    executor: SingleThreadedExecutor,
    soak: Soak,
    launch: psutil.Popen,
    node: psutil.Process,
) -> tuple[list[Sample], str]:
    """Look once a second, and put the faults in on the way."""
    samples: list[Sample] = []
    start_s = time.monotonic()
    next_fault_s = options.fault_period
    faults, labels_before = 0, soak.labels
    for second in range(round(options.minutes * 60)):
        name = ''
        if options.faults and second >= next_fault_s:
            name = options.faults[faults % len(options.faults)]
            _put_in(name, soak, launch, lambda seconds: _spin(executor, seconds))
            faults, next_fault_s = faults + 1, second + options.fault_period
        _spin(executor, start_s + second + 1 - time.monotonic())
        try:
            with node.oneshot():
                sample = Sample(
                    time_s=time.monotonic() - start_s,
                    memory_mib=node.memory_info().rss / 2**20,
                    threads=node.num_threads(),
                    descriptors=node.num_fds(),
                    subscribers=soak.visitors,
                    fault=name,
                )
        except psutil.NoSuchProcess:
            return samples, f'the node died after {second} s, after {name or "no fault"}'
        for key, column in FIGURES.items():
            setattr(sample, column, float(soak.figures.get(key, 'nan')))
        samples.append(sample)
        if second % 60 == 59:
            if soak.labels == labels_before:
                return samples, f'no labels in the minute before {second + 1} s'
            labels_before = soak.labels
            print(
                f'{second + 1:6d} s  {sample.memory_mib:8.1f} MiB  {sample.threads} threads  '
                f'{sample.descriptors} descriptors  {faults} faults',
                flush=True,
            )
    return samples, ''


def _put_in(name: str, soak: Soak, launch: psutil.Popen, spin: Callable[[float], None]) -> None:
    """Put one fault in."""
    if name != 'camera_loss':
        getattr(soak, name)()
        return
    player = _child(launch, 'player_node')
    if player is not None:
        player.suspend()
        spin(3.0)  # longer than the node's silence_warning_s
        player.resume()


def _spin(executor: SingleThreadedExecutor, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (rest := deadline - time.monotonic()) > 0:
        executor.spin_once(timeout_sec=rest)


def growth(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """
    Tell how much each quantity grew from the first sample to the last.

    :returns: name to the change by the median slope, and to that by the lower end of the slope's
        95 % confidence; nan where there are too few samples.
    """
    result = {}
    for name in ALLOWED:
        times, values = _reduced(samples, name)
        if len(values) < 10:
            result[name] = (np.nan, np.nan)
            continue
        slope, _, low, _ = theilslopes(values, times)
        span_s = times[-1] - times[0]
        result[name] = (float(slope * span_s), float(low * span_s))
    return result


def _reduced(samples: Sequence[Sample], name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give times and values, at most POINTS of each; every pair of them is compared."""
    parts = np.array_split(np.arange(len(samples)), min(POINTS, max(len(samples), 1)))
    kept = [part for part in parts if len(part)]
    times = np.array([np.median([samples[place].time_s for place in part]) for part in kept])
    values = np.array([np.median([getattr(samples[i], name) for i in part]) for part in kept])
    return times, values


def _write(path: Path, samples: Sequence[Sample]) -> None:
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, [entry.name for entry in fields(Sample)])
        writer.writeheader()
        writer.writerows(asdict(sample) for sample in samples)


def draw(samples: Sequence[Sample], warm_up_s: float) -> NDArray[np.uint8]:
    """Draw quantities over time, one strip each; grey is the warm-up, red lines are faults."""
    height, width, margin = 110, 1000, 170
    picture = np.full((height * len(DRAWN), width, 3), 255, np.uint8)
    last_s = max((sample.time_s for sample in samples), default=1.0)
    columns = [margin + round(s.time_s / last_s * (width - margin - 10)) for s in samples]
    for strip, name in enumerate(DRAWN):
        top, bottom = strip * height + 10, (strip + 1) * height - 10
        end = margin + round(min(warm_up_s / last_s, 1) * (width - margin - 10))
        cv2.rectangle(picture, (margin, top), (end, bottom), (235, 235, 235), -1)
        for column, sample in zip(columns, samples, strict=True):
            if sample.fault:
                cv2.line(picture, (column, top), (column, bottom), (255, 200, 200), 1)
        values = np.array([getattr(sample, name) for sample in samples], float)
        known = np.isfinite(values)
        low, high = (values[known].min(), values[known].max()) if known.any() else (0.0, 1.0)
        for text, row in ((name, top + 45), (f'{high:.4g}', top + 12), (f'{low:.4g}', bottom)):
            cv2.putText(
                picture, text, (8, row), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
            )
        rows = bottom - (values - low) / max(high - low, 1e-9) * (bottom - top)
        points = [(c, round(r)) for c, r in zip(columns, rows, strict=True) if np.isfinite(r)]
        cv2.polylines(
            picture, [np.array(points or [(0, 0)], np.int32)], False, (0, 70, 160), 1, cv2.LINE_AA
        )
    return picture


if __name__ == '__main__':
    sys.exit(main())
