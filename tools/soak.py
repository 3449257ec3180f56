"""
Run the launched node for a long time, disturb it, and see whether it grows.

A player publishes a drive in a loop, subscribers come and go, and faults are put in one after the
other. Every second, memory, threads and file descriptors of the node's process are noted, and what
it says of itself on /diagnostics. The faults are those of `docs/faults.md` that a node lives
through: bad messages, and faults that begin and end, such as a camera that stops or a node that is
stopped, inactive or configured anew. Results: `soak.csv`, `soak.png`, `launch.log` in the folder
that `--out` names. The exit status is 1 where the node grew, died or ended without labels.

It grew where the slope of a quantity over time, by Theil and Sen, times the time after the warm-up
is more than the allowance of that quantity, with 95 % confidence. Single peaks do not count, and
a slow leak shows once the run is long enough: 4 MiB in an hour is 1.2 KiB a second.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
import csv
from dataclasses import asdict, dataclass, fields
import os
from pathlib import Path
import signal
import sys
import time
from typing import Any

from dense_perception.data.drives import rendered_drive
from dense_perception.data.pictures import save_picture
from dense_perception.ros.bags import write_drive
import numpy as np
from numpy.typing import NDArray
import psutil  # type: ignore[import-untyped]  # has no stubs
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from scipy.stats import theilslopes
from soak_faults import child, FAULTS, put_in, resume, Soak
from soak_picture import Axis, draw, Strip
from soak_visitors import Visitors

PROFILE = Path(__file__).parent.parent / 'config' / 'fastdds_large_images.xml'
# What a quantity may grow by after the warm-up.
ALLOWED = {'memory_mib': 4.0, 'threads': 1.0, 'descriptors': 2.0}
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
DRAWN = {  # column -> name in the picture
    'memory_mib': 'memory, MiB',
    'threads': 'threads',
    'descriptors': 'file descriptors',
    'age_p50_ms': 'age p50, ms',
    'age_p99_ms': 'age p99, ms',
    'dropped': 'images dropped so far',
    'bad': 'bad images so far',
}


@dataclass
class Sample:
    """The node at one moment."""

    time_s: float  # since the first sample
    memory_mib: float  # resident and its own: the middleware's shared segment fills up to its size
    threads: int
    descriptors: int
    subscribers: int  # that come and go
    age_p50_ms: float = np.nan
    age_p99_ms: float = np.nan
    received: float = np.nan
    processed: float = np.nan
    dropped: float = np.nan
    bad: float = np.nan
    fault: str = ''  # put in since the last sample


@dataclass(frozen=True)
class Run:
    """What takes part."""

    executor: SingleThreadedExecutor
    soak: Soak
    visitors: Visitors
    launch: psutil.Popen


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
    rest = [sample for sample in samples if sample.time_s >= options.warm_up * 60]
    grown = growth(rest)
    save_picture(options.out / 'soak.png', picture(samples, options.warm_up * 60, grown))
    for name, (change, surely) in grown.items():
        values = [getattr(sample, name) for sample in rest]
        if not values:  # it ended before anything counted
            continue
        print(
            f'{name}: {min(values):.1f} to {max(values):.1f}, trend {change:+.2f} in all, '
            f'surely {surely:+.2f} (allowed {ALLOWED[name]:g})'
        )
    failures = [f'{name} grew' for name, (_, surely) in grown.items() if surely > ALLOWED[name]]
    failures += [failure] if failure else []
    print(f'soak: {"; ".join(failures) or "steady"}; results in {options.out}')
    return 1 if failures else 0


def _own_memory(process: psutil.Process) -> int:
    """Return the bytes of a process that no file and no other process stands behind."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


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
    rclpy.init(args=[])  # those of the command line are for launch
    soak = Soak(options.seed)
    executor = SingleThreadedExecutor()
    executor.add_node(soak)
    arguments = [f'bag:={bag.resolve()}', 'loop:=true', *options.launch]
    try:
        with _launched(arguments, options.out / 'launch.log') as launch:
            visitors = Visitors(options.seed)
            samples: list[Sample] = []
            run = Run(executor, soak, visitors, launch)
            try:
                node = _wait_for_node(run)
                return samples, _sample(options, run, node, samples) if node else 'no labels came'
            except (KeyboardInterrupt, ExternalShutdownException):  # what there is counts
                return samples, f'stopped by hand, of {options.minutes:g} minutes'
            finally:
                visitors.close()
                if visitors.replaced:
                    print(f'subscribers that hung and were replaced: {visitors.replaced}')
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
        for name in ('player_node', 'perception_node'):  # stopped, they would not hear it
            resume(child(launch, name))
        children = launch.children(recursive=True) if launch.is_running() else []
        for process in [launch, *children]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs([launch, *children], 15)
        for process in alive:
            process.kill()


def _wait_for_node(run: Run) -> psutil.Process | None:
    deadline = time.monotonic() + START_S
    while not (run.visitors.labels and run.soak.figures):
        run.executor.spin_once(timeout_sec=0.2)
        run.visitors.look()
        if time.monotonic() > deadline or run.launch.poll() is not None:
            return None
    return child(run.launch, 'perception_node')


def _sample(
    options: argparse.Namespace, run: Run, node: psutil.Process, samples: list[Sample]
) -> str:
    """Add a sample a second, and put the faults in on the way; returns why it ended early."""
    start_s = time.monotonic()
    next_fault_s, next_minute_s = options.fault_period, 60.0
    faults = labels = 0
    while (now_s := time.monotonic() - start_s) < options.minutes * 60:
        name = ''
        if options.faults and now_s >= next_fault_s:
            name = options.faults[faults % len(options.faults)]
            put_in(name, run.soak, run.launch, lambda seconds: _spin(run.executor, seconds))
            faults, next_fault_s = faults + 1, now_s + options.fault_period
        _spin(run.executor, 1 - (time.monotonic() - start_s - now_s))
        run.visitors.look()
        labels += run.visitors.labels
        sample = _look(node, run, time.monotonic() - start_s, name)
        if sample is None:
            return f'the node died after {now_s:.0f} s, after {name or "no fault"}'
        samples.append(sample)
        if sample.time_s >= next_minute_s:
            next_minute_s += 60
            if not labels:
                return f'no labels in the minute before {sample.time_s:.0f} s'
            labels = 0
            print(
                f'{sample.time_s:6.0f} s  {sample.memory_mib:8.1f} MiB  '
                f'{sample.threads} threads  {sample.descriptors} descriptors  {faults} faults',
                flush=True,
            )
    return ''


def _look(node: psutil.Process, run: Run, time_s: float, fault: str) -> Sample | None:
    """Take a sample of a process, and of what it says of itself; None where it is gone."""
    try:
        with node.oneshot():
            sample = Sample(
                time_s=time_s,
                memory_mib=_own_memory(node) / 2**20,
                threads=node.num_threads(),
                descriptors=node.num_fds(),
                subscribers=run.visitors.count,
                fault=fault,
            )
    except psutil.NoSuchProcess:
        return None
    for key, column in FIGURES.items():
        setattr(sample, column, float(run.soak.figures.get(key, 'nan')))
    return sample


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


def picture(
    samples: Sequence[Sample], warm_up_s: float, grown: Mapping[str, tuple[float, float]]
) -> NDArray[np.uint8]:
    """
    Draw quantities over time, one strip each, and when which fault was put in.

    :param grown: as `growth` tells it; stands beside what may not grow.
    """
    strips = []
    for name, title in DRAWN.items():
        values = np.array([getattr(sample, name) for sample in samples], np.float64)
        note, span = '', 0.0
        if name in grown:
            note = f'trend {grown[name][0]:+.2f}, allowed {ALLOWED[name]:g}'
            span = 2 * ALLOWED[name]
        strips.append(Strip(title, values, span, note))
    faults = {
        name: [sample.time_s for sample in samples if sample.fault == name]
        for name in FAULTS
        if any(sample.fault == name for sample in samples)
    }
    axis = Axis(np.array([sample.time_s for sample in samples], np.float64), warm_up_s)
    title = f'{axis.last_s / 60:.1f} minutes; grey: warm-up, which does not count; red: faults'
    return draw(title, axis, strips, faults)


if __name__ == '__main__':
    sys.exit(main())
