"""How long each stage from an image to labels and flow takes, timed in turns on one machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
import re
import resource
import time

import cv2
from dense_perception.arrays import Flow, Image
from dense_perception.data.drives import SHOWN_SEED
from dense_perception.data.picture_files import MAX_PIXELS
from dense_perception.data.road_world import RoadWorld
from dense_perception.errors import SettingError
from dense_perception.evaluation.peers import PEERS
from dense_perception.evaluation.timing import time_enough_turns, Timing
from dense_perception.predictors.device import Placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import Card, load_weights
from dense_perception.weights.listing import gigamacs
from dense_perception.weights.published import find_weights
import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn, Tensor

Call = Callable[[int], object]  # takes the number of the round
Calls = Mapping[str, Call]

LABELS, FLOW, CORRELATING_FLOW = 'drive', 'flow', 'flow_corr'  # the shipped weights
_LEAST_SIDE = 32  # pixels; DIS finds no patches in a smaller image
_FRAMES = 6  # of a stream, more than an estimator keeps features of
_FIRST_FRAME = 40
_SCALING_FRAMES = 8  # that scale int8
_MIB = 2**20


@dataclass(frozen=True)
class ImageSize:
    """Pixels of an image."""

    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> 'ImageSize':
        """
        Read a size such as 480x360, width first.

        :raises SettingError: it is none, a side is too short, or there are too many pixels.
        """
        found = re.fullmatch(r'([0-9]{1,6})x([0-9]{1,6})', text)
        if not found:
            raise SettingError(f'size is {text[:40]!r}; it must be WIDTHxHEIGHT, such as 480x360')
        size = cls(int(found[1]), int(found[2]))
        if min(size.width, size.height) < _LEAST_SIDE:
            raise SettingError(f'size is {size}; each side must be {_LEAST_SIDE} pixels or more')
        if size.width * size.height > MAX_PIXELS:
            raise SettingError(f'size is {size}; at most {MAX_PIXELS} pixels are taken')
        return size

    def __str__(self) -> str:
        return f'{self.width}x{self.height}'


@dataclass(frozen=True)
class Row:
    """What one call takes."""

    what: str
    timing: Timing
    gigamacs: float | None = None  # 10^9 multiply-accumulates of a call; None: not counted
    ceiling: float | None = None  # 10^9 of them a second in a matrix product of that number type
    speed: float | None = None  # times that of plain torch
    agreement: float | None = None  # share of the places of scores whose label is plain torch's
    device_mib: float | None = None  # most device memory during a call; None on a CPU

    @property
    def gigamacs_per_s(self) -> float | None:
        """10^9 multiply-accumulates a second."""
        return None if self.gigamacs is None else self.gigamacs * self.timing.rate_hz

    @property
    def share(self) -> float | None:
        """What it reaches of the ceiling."""
        done = self.gigamacs_per_s
        return None if done is None or self.ceiling is None else done / self.ceiling


@dataclass(frozen=True)
class Group:
    """Calls that were timed in turns, so that their ratios hold on a busy machine."""

    name: str
    rows: Sequence[Row]
    process_mib: float  # most memory that the process has had until the end of this group


def finished(name: str, rows: Sequence[Row]) -> Group:
    """Return a group with the memory that the process has needed so far."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    return Group(name, rows, peak_kib / 1024)


def timing_of(seconds: Sequence[float] | NDArray[np.float64]) -> Timing:
    """Return the percentiles of the times of calls."""
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return Timing(float(p50), float(p99), len(seconds))


def device_peak_mib(call: Call, device: torch.device) -> float | None:
    """
    Return the most memory of a CUDA device that is taken during a call; None on another.

    What was loaded before counts.
    """
    if device.type != 'cuda':
        return None
    torch.cuda.reset_peak_memory_stats(device)
    call(0)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / _MIB


def stream(size: ImageSize) -> list[Image]:
    """Return successive frames of the rendered drive, (H, W, 3) uint8 RGB, resized."""
    numbers = range(_FIRST_FRAME, _FIRST_FRAME + _FRAMES)
    return [_resized(image, size) for image in _rendered(SHOWN_SEED, numbers)]


def scaling_frames(size: ImageSize) -> list[Image]:
    """Return frames of another rendered drive, which scale int8 where there is no camera's."""
    numbers = range(0, 10 * _SCALING_FRAMES, 10)
    return [_resized(image, size) for image in _rendered(SHOWN_SEED + 1, numbers)]


@cache  # the frames of all sizes are made of these
def _rendered(seed: int, numbers: range) -> list[Image]:
    world = RoadWorld(seed)
    return [world.frame(number).image for number in numbers]


def _resized(image: Image, size: ImageSize) -> Image:
    return np.asarray(cv2.resize(image, (size.width, size.height)), np.uint8)


def input_gigamacs(card: Card, inputs: tuple[Tensor, ...]) -> float | None:
    """Count 10^9 multiply-accumulates of a card's network, which needs no margin, for inputs."""
    with torch.device('meta'):
        network = card.build().eval()
    rows, columns = inputs[0].shape[2:]
    return gigamacs(network, rows, columns)


class Split:
    """A predictor's call, with its time before, in and behind the network."""

    def __init__(self, network: nn.Module, device: torch.device, run: Call) -> None:
        """
        Watch a network; the device is synchronised where its time begins and ends.

        :param run: calls the network once.
        """
        self._device, self._run = device, run
        self._marks: list[float] | None = None  # seconds; only while this call runs
        self._times: list[NDArray[np.float64]] = []
        network.register_forward_pre_hook(lambda *_: self._mark())
        network.register_forward_hook(lambda *_: self._mark())

    def __call__(self, turn: int) -> None:
        """Run it once."""
        self._marks = []
        self._mark()
        self._run(turn)
        self._mark()
        self._times.append(np.diff(self._marks))
        self._marks = None

    def timings(self) -> tuple[Timing, Timing, Timing]:
        """Return what precedes the network, the network, and what follows it."""
        before, inside, behind = np.transpose(self._times[1:])  # the first call warmed up
        return timing_of(before), timing_of(inside), timing_of(behind)

    def _mark(self) -> None:
        if self._marks is None:
            return
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        self._marks.append(time.perf_counter())


def time_stages(
    frames: Sequence[Image],
    placement: Placement,
    *,
    seconds: float | None,
    incoming: Calls,
    outgoing: Calls,
) -> Group:
    """
    Time every stage of a frame with the shipped weights, on inputs of the images' own size.

    :param frames: successive ones, (H, W, 3) uint8 RGB, of one size.
    :param placement: where the networks run.
    :param seconds: how long to go on; None: as `time_enough_turns` does.
    :param incoming: what is done with a message until there is an image.
    :param outgoing: what is done with results until they are a message's bytes.
    """
    segmenter = Segmenter(*load_weights(find_weights(LABELS)), placement)
    estimator = FlowEstimator(*load_weights(find_weights(FLOW)), placement)
    device, count = placement.device, len(frames)
    labels = Split(segmenter.network, device, lambda at: segmenter.segment(frames[at % count]))
    rated = Split(
        segmenter.network,
        device,
        lambda at: segmenter.segment(frames[at % count], confidence=True),
    )
    flow = Split(estimator.network, device, _of_pairs(estimator.estimate, frames))
    whole: dict[str, Split] = {
        'image to labels': labels,
        'image to labels and confidence': rated,
        'images to flow': flow,
    }
    times = time_enough_turns({**incoming, **whole, **outgoing}, device, seconds=seconds)
    rows = [Row(name, timing_of(times[name])) for name in incoming]
    work = input_gigamacs(segmenter.card, segmenter.inputs(frames[0]))
    rows += _parts(labels, 'labels', placement, work, 'scores to labels')
    rows.append(Row('labels: scores to labels and confidence', rated.timings()[2]))
    work = input_gigamacs(estimator.card, estimator.inputs(*frames[:2]))
    rows += _parts(flow, 'flow', placement, work, 'upscale')
    rows += [
        Row(name, timing_of(times[name]), device_mib=device_peak_mib(call, device))
        for name, call in whole.items()
    ]
    rows += [Row(name, timing_of(times[name])) for name in outgoing]
    return finished('stages', rows)


def _parts(
    split: Split, result: str, placement: Placement, work: float | None, last: str
) -> list[Row]:
    before, inside, behind = split.timings()
    return [
        Row(f'{result}: preprocess', before),
        Row(f'{result}: network, {placement}', inside, work),
        Row(f'{result}: {last}', behind),
    ]


def time_flow(frames: Sequence[Image], placement: Placement, *, seconds: float | None) -> Group:
    """
    Time the shipped flow networks and OpenCV's flow, from two images to the flow of each pixel.

    Pairs follow each other as in a stream, so a correlating network looks at each image once.

    :param frames: successive ones, (H, W, 3) uint8 RGB, of one size.
    """
    estimators: dict[str, Call] = {}
    for weights in (FLOW, CORRELATING_FLOW):
        estimator = FlowEstimator(*load_weights(find_weights(weights)), placement)
        estimators[f'{weights}, {placement}'] = _of_pairs(estimator.estimate, frames)
    peers = {f'OpenCV {name}': _of_pairs(method, frames) for name, method in PEERS.items()}
    device = placement.device
    times = time_enough_turns({**estimators, **peers}, device, seconds=seconds)
    rows = [
        Row(name, timing_of(times[name]), device_mib=device_peak_mib(call, device))
        for name, call in estimators.items()
    ]
    rows += [Row(name, timing_of(times[name])) for name in peers]
    return finished('flow', rows)


def _of_pairs(estimate: Callable[[Image, Image], Flow], frames: Sequence[Image]) -> Call:
    count = len(frames)
    return lambda turn: estimate(frames[turn % count], frames[(turn + 1) % count])
