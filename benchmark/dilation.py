"""
Time Dilation10 in full width on a CPU, beside other engines, and the correlation of two images.

The network has random weights and sees a whole image, reflected outwards as published. Each rival
takes turns with ours and is let go before the next one is built, so that what else the machine
does hits both, and memory holds two at a time. A ratio is the rival's time over ours in the same
turns. So is the ceiling: before each call, matrices of its number type are multiplied, and what it
reaches of their rate is told of both medians and of both fastest. A rival's turns end early once
they have taken `--seconds`.
"""

import argparse
from collections.abc import Callable, Sequence
import ctypes
from dataclasses import dataclass, field
import gc
import math
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
from dense_perception.evaluation.engine_rates import Product
from dense_perception.evaluation.result_files import machine, table_path, write_table
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
    'of it, fastest',
    'equal labels',
    'relative error',
    'extra MB',
)
WIDTHS = (28, 10, 11, 8, 7, 8, 11, 15, 13, 15, 9)


@dataclass(frozen=True)
class Subject:
    """The network, what it is given, and what is known of it."""

    task: Task
    macs: float  # multiplications of one pass, 1e9
    products: dict[str, Product]  # of matrices, by number type; they are the ceiling


@dataclass
class Times:
    """Seconds of an engine's calls, and of the products before each."""

    calls: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)


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
    parser.add_argument('--runs', type=int, default=7, help='turns with each rival, 2 at least')
    parser.add_argument('--seconds', type=float, default=60.0, help='after which turns end')
    parser.add_argument('--out', type=Path, help='table; default: beside this file')
    parser.add_argument('--memory', choices=sorted(CORRELATIONS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        print(extra_mb(CORRELATIONS[options.memory]))
        return 0
    keep_memory()  # as the node does; for all alike
    cv2.setNumThreads(torch.get_num_threads())
    cpu = torch.device('cpu')
    title = f'{options.width} x {options.height}, {machine(cpu)}'
    print(title)
    table = Table()
    time_network(table, options)
    time_correlations(table)
    print(f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB')
    path = options.out or table_path('dilation', cpu, Path(__file__).parent)
    write_table(path, COLUMNS, table.rows, title)
    return 0


@torch.inference_mode()
def time_network(table: Table, options: argparse.Namespace) -> None:
    """Time the network in each rival's turns with ours."""
    subject = make_subject(options.height, options.width)
    ours = ENGINES[OURS].load(subject.task, Path())
    reference = plain(subject.task, Path())(*subject.task.inputs[0])
    output = ours(*subject.task.inputs[0])
    all_of_ours = Times()
    products: dict[str, list[float]] = {name: [] for name in subject.products}
    with tempfile.TemporaryDirectory() as folder:
        for name in GOALS:
            try:
                rival = made(name, subject.task, Path(folder))
            except Exception as error:  # noqa: BLE001 - not installed, or not for this network
                table.add(f'{name}: {type(error).__name__}', [])
                continue
            times, rivals, scores = turns(ours, name, rival, subject, options)
            all_of_ours.calls += times.calls
            all_of_ours.products += times.products
            products[number_type(OURS)] += times.products
            products[number_type(name)] += rivals.products
            ratio = statistics.median(rivals.calls) / statistics.median(times.calls)
            compared = {'x_ours': f'{ratio:.2f}', 'goal': str(GOALS[name] or '')}
            describe(table, subject, name, rivals, scores, reference, compared)
            del rival, scores
            give_back()
    describe(table, subject, f'{OURS} (ours)', all_of_ours, output, reference, {})
    for name, times in products.items():
        rate = subject.products[name].gigamacs / statistics.median(times) if times else math.nan
        table.add(f'matrix product {PRODUCT} {name}', times, **{'GMAC/s': f'{rate:.0f}'})


def make_subject(height: int, width: int) -> Subject:
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
    cpu = torch.device('cpu')
    products = {name: Product(name, cpu, PRODUCT) for name in ('bfloat16', 'float32')}
    for product in products.values():
        product(0)  # warms it up
    return Subject(task, counter.get_total_flops() / 2e9, products)


def number_type(name: str) -> str:
    """Return the number type that an engine computes in."""
    return 'bfloat16' if 'bfloat16' in name else 'float32'


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
    ours: Engine, name: str, rival: Engine, subject: Subject, options: argparse.Namespace
) -> tuple[Times, Times, Tensor]:
    """Return the times of our calls and of the rival's, one after the other, and its scores."""
    inputs = subject.task.inputs[0]
    scores = rival(*inputs).clone()  # warms it up; ours is warm
    pair = ((OURS, ours, Times()), (name, rival, Times()))
    end = time.perf_counter() + options.seconds
    for turn in range(options.runs):
        if turn >= 2 and time.perf_counter() > end:
            break
        for title, engine, times in pair:
            product = subject.products[number_type(title)]
            times.products.append(seconds(lambda product=product: product(0)))
            times.calls.append(seconds(lambda engine=engine: engine(*inputs)))
    return pair[0][2], pair[1][2], scores


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def describe(
    table: Table,
    subject: Subject,
    name: str,
    times: Times,
    scores: Tensor,
    reference: Tensor,
    compared: dict[str, str],
) -> None:
    """Add a row of the network in an engine."""
    work = subject.macs / subject.products[number_type(name)].gigamacs  # in products
    median, fastest = (
        f'{work * typical(times.products) / typical(times.calls):.2f}'
        for typical in (statistics.median, min)
    )
    rate = subject.macs / statistics.median(times.calls)
    error = (scores - reference).norm() / reference.norm()
    table.add(
        name,
        times.calls,
        **compared,
        equal_labels=f'{equal_labels(scores, reference):.3%}',
        relative_error=f'{error:.1e}',
        of_ceiling=median,
        **{'of it, fastest': fastest, 'GMAC/s': f'{rate:.0f}'},
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
