"""
Time Dilation10 in full width on a CPU, beside other engines, and the correlation of two images.

The network has random weights and sees a whole image, reflected outwards as published. Each rival
takes turns with ours and is let go before the next one is built, so that what else the machine
does hits both, and memory holds two at a time. A ratio is the rival's time over ours in the same
turns. A rival's turns end early once they have taken `--seconds`.
"""

import argparse
from collections.abc import Callable, Sequence
import csv
import ctypes
from dataclasses import dataclass
import gc
import os
from pathlib import Path
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import cv2
from dense_perception.data.road_world import RoadWorld
from dense_perception.memory import keep_memory
from dense_perception.networks import NETWORKS
from dense_perception.networks.layers import correlation
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.engines.choice import ENGINES, time_in_turns
from dense_perception.predictors.engines.engine import Engine, equal_labels, Task
from dense_perception.predictors.engines.in_onnx_runtime import build as build_onnx
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import Card, Preprocessing
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ARGUMENTS = {'classes': 19, 'width': 'full', 'layers': 10}
OURS = 'torch-bfloat16'
PLAIN = 'plain torch float32'
OPENCV = 'OpenCV dnn float32'
# By which our time shall be shorter; None: no more than told.
GOALS = {PLAIN: None, 'openvino-bfloat16': 0.95, 'onnxruntime-float32': 1.6, OPENCV: 3.3}
MAPS = (1, 256, 64, 128)  # of features at 512 x 1024 that FlowNetCorr correlates
MOST_EXTRA_MB = 100
PRODUCT = 4096  # rows and columns of the matrices that tell the ceiling
COLUMNS = (
    'what',
    'median ms',
    'fastest ms',
    'x ours',
    'goal',
    'GMAC/s',
    'of ceiling',
    'equal labels',
    'relative error',
    'extra MB',
)
WIDTHS = (28, 10, 11, 8, 6, 8, 11, 13, 15, 9)


@dataclass(frozen=True)
class Subject:
    """The network, what it is given, and what is known of it."""

    task: Task
    macs: float  # multiplications of one pass, 1e9
    ceilings: dict[str, float]  # of each number type, 1e9 multiplications a second


class Table:
    """Prints rows as they come and keeps them."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self._show(COLUMNS)

    def add(self, what: str, times: Sequence[float], **cells: str) -> None:
        """Add a row; `cells` are named as the columns are, with _ for what names cannot hold."""
        known = {'what': what}
        if times:
            known['median ms'] = f'{1e3 * statistics.median(times):.1f}'
            known['fastest ms'] = f'{1e3 * min(times):.1f}'
        known |= {name.replace('_', ' '): cell for name, cell in cells.items()}
        self.rows.append([known.get(name, '') for name in COLUMNS])
        self._show(self.rows[-1])

    def _show(self, cells: Sequence[str]) -> None:
        first, *others = (f'{c:>{w}}' for c, w in zip(cells, WIDTHS, strict=True))
        print(f'{first.strip():<{WIDTHS[0]}}' + ''.join(others), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--height', type=int, default=512, help='rows of the image')
    parser.add_argument('--width', type=int, default=1024, help='columns of the image')
    parser.add_argument('--runs', type=int, default=3, help='turns with each rival, 2 at least')
    parser.add_argument('--seconds', type=float, default=25.0, help='after which turns end')
    parser.add_argument('--out', type=Path, default=Path(__file__).with_name('dilation_cpu.csv'))
    parser.add_argument('--memory', choices=sorted(CORRELATIONS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        print(extra_mb(CORRELATIONS[options.memory]))
        return 0
    keep_memory()  # as the node does; for all alike
    threads = torch.get_num_threads()
    cv2.setNumThreads(threads)
    title = f'{options.width} x {options.height}, {threads} threads, torch {torch.__version__}'
    print(title)
    table = Table()
    time_network(table, options)
    time_correlations(table)
    print(f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB')
    with options.out.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, title])
        writer.writerows([*row, ''] for row in table.rows)
    return 0


@torch.inference_mode()
def time_network(table: Table, options: argparse.Namespace) -> None:
    """Time the network in each rival's turns with ours."""
    subject = make_subject(options.height, options.width, ceilings(table))
    ours = ENGINES[OURS].load(subject.task, Path())
    reference = plain(subject.task, Path())(*subject.task.inputs[0])
    output = ours(*subject.task.inputs[0])
    all_of_ours: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in GOALS:
            try:
                rival = made(name, subject.task, Path(folder))
            except Exception as error:  # noqa: BLE001 - not installed, or not for this network
                table.add(f'{name}: {type(error).__name__}', [])
                continue
            times, rivals, scores = turns(ours, rival, subject.task, options)
            all_of_ours += times
            ratio = statistics.median(rivals) / statistics.median(times)
            compared = {'x_ours': f'{ratio:.2f}', 'goal': str(GOALS[name] or '')}
            describe(table, subject, name, rivals, scores, reference, compared)
            del rival, scores
            give_back()
    describe(table, subject, f'{OURS} (ours)', all_of_ours, output, reference, {})


def make_subject(height: int, width: int, rates: dict[str, float]) -> Subject:
    """Return the network with random weights and one image of a rendered road."""
    torch.manual_seed(0)
    network = NETWORKS['front_end_context'](**ARGUMENTS)
    card = Card('front_end_context', ARGUMENTS, Preprocessing(), 'cityscapes')
    image = cv2.resize(RoadWorld(3).frame(40).image, (width, height))
    inputs = Segmenter(network, card, choose_placement('cpu', 'float32')).inputs(image)
    network.to(memory_format=torch.contiguous_format)  # as torch has it where nobody asks for more
    with torch.device('meta'), FlopCounterMode(display=False) as counter:
        NETWORKS['front_end_context'](**ARGUMENTS).eval()(torch.empty(inputs[0].shape))
    task = Task(network, [inputs], equal_labels)
    return Subject(task, counter.get_total_flops() / 2e9, rates)


def ceilings(table: Table) -> dict[str, float]:
    """Return how many multiplications a second a matrix product does, 1e9."""
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        first, second = (torch.randn(PRODUCT, PRODUCT).to(dtype) for _ in range(2))
        times = seconds(lambda a=first, b=second: a @ b, 4)
        name = str(dtype).removeprefix('torch.')
        rates[name] = PRODUCT**3 / min(times) / 1e9
        table.add(f'matrix product {PRODUCT} {name}', times, **{'GMAC/s': f'{rates[name]:.0f}'})
    return rates


def seconds(call: Callable[[], object], runs: int) -> list[float]:
    """Return the seconds of calls after one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times[1:]


def made(name: str, task: Task, folder: Path) -> Engine:
    """
    Build an engine.

    :param folder: for files; both that read ONNX share one.
    """
    if name == PLAIN:
        return plain(task, folder)
    if 'openvino' not in name and not any(folder.glob('*.onnx')):
        build_onnx(task, folder)
    if name == OPENCV:
        return with_opencv(task, folder)
    maker = ENGINES[name]
    if 'openvino' in name and maker.build:
        maker.build(task, folder)
    return maker.load(task, folder)


def plain(task: Task, folder: Path) -> Engine:
    """Return the network as it is, channels first."""
    return lambda *inputs: task.network(*(value.contiguous() for value in inputs))


def with_opencv(task: Task, folder: Path) -> Engine:
    """Return the network in OpenCV's dnn module."""
    (file,) = folder.glob('*.onnx')
    network = cv2.dnn.readNetFromONNX(str(file))

    def run(*inputs: Tensor) -> Tensor:
        network.setInput(inputs[0].contiguous().numpy())
        return torch.from_numpy(network.forward())

    return run


def turns(
    ours: Engine, rival: Engine, task: Task, options: argparse.Namespace
) -> tuple[list[float], list[float], Tensor]:
    """Return the seconds of our calls and of the rival's, one after the other, and its scores."""
    scores = rival(*task.inputs[0]).clone()  # warms it up; ours is warm
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + options.seconds
    for turn in range(options.runs):
        if turn >= 2 and time.perf_counter() > end:
            break
        for engine, into in zip((ours, rival), times, strict=True):
            start = time.perf_counter()
            engine(*task.inputs[0])
            into.append(time.perf_counter() - start)
    return *times, scores


def describe(
    table: Table,
    subject: Subject,
    name: str,
    times: Sequence[float],
    scores: Tensor,
    reference: Tensor,
    compared: dict[str, str],
) -> None:
    """Add a row of the network in an engine."""
    rate = subject.macs / statistics.median(times)
    ceiling = subject.ceilings['bfloat16' if 'bfloat16' in name else 'float32']
    error = (scores - reference).norm() / reference.norm()
    table.add(
        name,
        times,
        **compared,
        equal_labels=f'{equal_labels(scores, reference):.3%}',
        relative_error=f'{error:.1e}',
        of_ceiling=f'{rate / ceiling:.2f}',
        **{'GMAC/s': f'{rate:.0f}'},
    )


def give_back() -> None:
    """Return what a rival held to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


# The correlation of two feature maps.


def shift_by_shift(first: Tensor, second: Tensor) -> Tensor:
    """Correlate with one product of whole maps for each of the 441 shifts."""
    rows, columns = first.shape[2:]
    padded = torch.nn.functional.pad(second, (20, 20, 20, 20))
    shifts = [(y, x) for y in range(0, 41, 2) for x in range(0, 41, 2)]
    matches = [
        (first * padded[:, :, y : y + rows, x : x + columns]).mean(1, keepdim=True)
        for y, x in shifts
    ]
    return torch.cat(matches, 1)


CORRELATIONS = {'bands': correlation, 'shifts': shift_by_shift}


@torch.inference_mode()
def time_correlations(table: Table) -> None:
    """Time both ways in turns, and measure what memory each takes."""
    for dtype in (torch.float32, torch.bfloat16):
        maps = [torch.randn(MAPS).to(dtype) for _ in range(2)]
        calls = {
            name: lambda _, run=run, maps=maps: run(*maps) for name, run in CORRELATIONS.items()
        }
        times = time_in_turns(calls, torch.device('cpu'), seconds=3.0)
        ours = statistics.median(times['bands'])
        wanted = shift_by_shift(*(value.float() for value in maps))
        for name, run in CORRELATIONS.items():
            error = (run(*maps).float() - wanted).norm() / wanted.norm()
            cells = {'relative_error': f'{error:.1e}'}
            if name != 'bands':
                cells['x_ours'] = f'{statistics.median(times[name]) / ours:.2f}'
            if dtype == torch.float32:
                cells['extra_MB'] = f'{memory_of(name):.0f}'
                cells['goal'] = f'{MOST_EXTRA_MB} MB' if name == 'bands' else ''
            what = f'correlation, {name}, {str(dtype).removeprefix("torch.")}'
            table.add(what, times[name], **cells)


def memory_of(name: str) -> float:
    """Return by how many MB a fresh process grows at most in one call."""
    # Blocks of 64 KiB and more go back to the system when they are freed: else glibc may keep
    # gigabytes in pieces, or nothing, by what happened before.
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': str(2**16)}
    command = [sys.executable, __file__, '--memory', name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(done.stdout)


@torch.inference_mode()
def extra_mb(run: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return by how many MB this process grows at most in a call; its result counts."""
    run(*(torch.randn(1, 8, 44, 44) for _ in range(2)))  # loads what is loaded once
    maps = [torch.randn(MAPS) for _ in range(2)]
    Path('/proc/self/clear_refs').write_text('5')  # the peak so far is forgotten
    before = peak_kb()
    run(*maps)
    return (peak_kb() - before) * 1024 / 1e6


def peak_kb() -> int:
    """Return the largest resident size of this process, KiB."""
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))


if __name__ == '__main__':
    sys.exit(main())
