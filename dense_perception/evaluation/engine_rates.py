"""What engines make of the shipped networks, beside plain torch, OpenCV and matrix products."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
import time

import cv2
from dense_perception.arrays import Image
from dense_perception.evaluation.stages import (
    Call,
    device_peak_mib,
    finished,
    FLOW,
    Group,
    input_gigamacs,
    LABELS,
    Row,
    timing_of,
)
from dense_perception.evaluation.timing import time_enough_turns
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.engines.cache import Cache
from dense_perception.predictors.engines.choice import (
    build_engine,
    ENGINES,
    first_line,
)
from dense_perception.predictors.engines.engine import (
    Agreement,
    close_flow,
    Engine,
    EngineError,
    equal_labels,
    Inputs,
    Task,
)
from dense_perception.predictors.engines.onnx_export import export_onnx
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import load_weights
from dense_perception.weights.published import find_weights
import torch
from torch import Tensor

PLAIN = 'plain torch-float32'  # channels first, as torch has it where nobody asks for more
OPENCV = 'OpenCV dnn-float32'

_DTYPES = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'float16': torch.float16,
    'int8': torch.int8,
}
_LEAST_SIDE = 256  # of the matrices of a ceiling
_MOST_SIDE = {'cpu': 2048, 'cuda': 8192}
_LONG_ENOUGH_S = 0.02  # of a product; larger matrices would reach no more


@dataclass(frozen=True)
class Subject:
    """A network that is timed alone."""

    name: str
    weights: str  # the shipped ones
    predictor: type[Segmenter] | type[FlowEstimator]
    images: int  # that it takes at once, successive ones
    agreement: Agreement


SUBJECTS = {
    LABELS: Subject('labelling network', LABELS, Segmenter, 1, equal_labels),
    FLOW: Subject('flow network', FLOW, FlowEstimator, 2, close_flow),
}


@dataclass(frozen=True)
class Rivals:
    """What is timed beside plain torch."""

    engines: Sequence[str]  # names in `ENGINES`
    scaling: Sequence[Image] = ()  # of the frames' size; they scale int8; empty: no int8
    subject: Subject = SUBJECTS[LABELS]
    tell: Callable[[str], None] = print  # receives progress, and what cannot be had


def usual_engines(device: torch.device) -> list[str]:
    """Return the engines for a device, without those in a number type that a CPU emulates."""
    emulated = device.type == 'cpu' and choose_placement('cpu').dtype != torch.bfloat16
    return [
        name
        for name, maker in ENGINES.items()
        if maker.device in ('any', device.type) and not (emulated and name.endswith('bfloat16'))
    ]


def time_networks(
    frames: Sequence[Image],
    device: torch.device,
    rivals: Rivals,
    folder: Path,
    *,
    seconds: float | None,
) -> Group:
    """
    Time a shipped network alone, in each engine, on images' own size.

    The ceilings are matrix products of torch, timed in the same turns. Float32 on a CUDA device
    may exceed its own: there, convolutions round to TF32 unless torch is told otherwise.

    :param frames: (H, W, 3) uint8 RGB, of one size; what comes of these is compared.
    :param folder: where engines are built.
    :param seconds: how long to time; None: as `time_enough_turns` does.
    """
    task, work = _task(frames, device, rivals)
    engines = {PLAIN: _plain(task, rivals.subject), **_built(task, rivals, folder)}
    inputs = [tuple(value.to(device) for value in values) for values in task.inputs]
    calls = {name: _call(engine, inputs) for name, engine in engines.items()}
    types = dict.fromkeys(name.rpartition('-')[2] for name in engines)
    products = {dtype: Product.fitting(dtype, device) for dtype in types}
    titles = {dtype: f'matrix product {one.side}, {dtype}' for dtype, one in products.items()}
    ceilings = {titles[dtype]: one for dtype, one in products.items()}
    times = {
        name: timing_of(values)
        for name, values in time_enough_turns(
            {**calls, **ceilings}, device, seconds=seconds
        ).items()
    }
    rows = [Row(name, times[name], one.gigamacs) for name, one in ceilings.items()]
    reached = {row.what: row.gigamacs_per_s for row in rows}
    rows += [
        Row(
            name,
            times[name],
            work,
            _ceiling(name, device, reached[titles[name.rpartition('-')[2]]]),
            times[PLAIN].p50_ms / times[name].p50_ms,
            task.agreement_of(engine),
            device_peak_mib(calls[name], device),
        )
        for name, engine in engines.items()
    ]
    return finished(rivals.subject.name, rows)


def _ceiling(name: str, device: torch.device, reached: float | None) -> float | None:
    """Return what an engine is held against: nothing where it does not run on the device."""
    return None if name == OPENCV and device.type != 'cpu' else reached


def _task(
    frames: Sequence[Image], device: torch.device, rivals: Rivals
) -> tuple[Task, float | None]:
    """Return the network with its inputs, and 10^9 multiply-accumulates of one."""
    subject = rivals.subject
    path = find_weights(subject.weights)
    network, card = load_weights(path)
    on_cpu = Placement(torch.device('cpu'), torch.float32)
    predictor = subject.predictor(*load_weights(path), on_cpu)
    taken, scaling = (
        # Cloned, as tensors made in inference mode cannot be exported.
        [
            tuple(value.clone() for value in predictor.inputs(*images[at : at + subject.images]))
            for at in range(len(images) - subject.images + 1)
        ]
        for images in (frames, rivals.scaling)
    )
    task = Task(network, taken, subject.agreement, 0.0, scaling, device, rivals.tell)
    return task, input_gigamacs(card, taken[0])


def _plain(task: Task, subject: Subject) -> Engine:
    network = load_weights(find_weights(subject.weights))[0].eval().to(task.device)

    @torch.inference_mode()
    def run(*inputs: Tensor) -> Tensor:
        scores: Tensor = network(*(value.to(task.device).contiguous() for value in inputs))
        return scores

    return run


def _built(task: Task, rivals: Rivals, folder: Path) -> dict[str, Engine]:
    """Return what can be had of the engines, and OpenCV's; tell of the others why not."""
    makers: dict[str, Callable[[], Engine]] = {
        name: partial(build_engine, name, task, Cache(folder)) for name in rivals.engines
    }
    makers[OPENCV] = partial(_in_opencv, task, folder)
    engines = {}
    for name, make in makers.items():
        try:
            engines[name] = make()
        except EngineError as error:
            rivals.tell(str(error))
    return engines


def _in_opencv(task: Task, folder: Path) -> Engine:
    """
    Return the network in OpenCV's dnn, on the CPU.

    :raises EngineError: it cannot be exported, or OpenCV cannot read it or run it.
    """
    path = folder / 'opencv.onnx'

    def run(*inputs: Tensor) -> Tensor:
        for at, value in enumerate(inputs):
            network.setInput(value.cpu().contiguous().numpy(), f'input{at}')
        return torch.from_numpy(network.forward().copy())

    try:
        export_onnx(task, path)
        network = cv2.dnn.readNetFromONNX(str(path))
        run(*task.inputs[0])
    except Exception as error:  # export and OpenCV have exceptions of their own
        raise EngineError(f'{OPENCV} cannot be had: {first_line(error)}') from error
    return run


def _call(engine: Engine, inputs: Sequence[Inputs]) -> Call:
    return lambda turn: engine(*inputs[turn % len(inputs)])


class Product:
    """A product of two square matrices, which says what a device reaches in a number type."""

    def __init__(self, dtype: str, device: torch.device, side: int) -> None:
        """
        Make the matrices.

        :param dtype: float32, bfloat16, float16 or int8.
        :param side: rows and columns.
        """
        self.side = side
        kind = _DTYPES[dtype]
        pair = torch.randn(2, side, side, device=device)
        self._first, self._second = (pair * 40).to(kind) if kind == torch.int8 else pair.to(kind)
        # torch.matmul has no fast way for int8, and would wrap its sums around.
        self._multiply = torch._int_mm if kind == torch.int8 else torch.matmul

    @classmethod
    def fitting(cls, dtype: str, device: torch.device) -> 'Product':
        """Return the smallest product that takes long enough, or the largest there is."""
        side = _LEAST_SIDE
        while True:
            product = cls(dtype, device, side)
            if (
                side >= _MOST_SIDE.get(device.type, _LEAST_SIDE)
                or product.seconds() >= _LONG_ENOUGH_S
            ):
                return product
            side *= 2

    @property
    def gigamacs(self) -> float:
        """10^9 multiply-accumulates of the product."""
        return self.side**3 / 1e9

    @torch.inference_mode()
    def __call__(self, turn: int) -> Tensor:
        """Multiply."""
        return self._multiply(self._first, self._second)

    def seconds(self) -> float:
        """Return how long it takes about."""
        self(0)[0, 0].item()
        start = time.perf_counter()
        self(0)[0, 0].item()  # waits for the device
        return time.perf_counter() - start
