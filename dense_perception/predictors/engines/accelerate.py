"""Predictors whose networks run in an engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging
from pathlib import Path
from typing import TypedDict

import cv2
from dense_perception.arrays import Image
from dense_perception.data.frames import pictures, read_picture
from dense_perception.errors import InputError
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.engines.cache import Cache
from dense_perception.predictors.engines.choice import AUTO, Choice, choose_engine, ENGINES
from dense_perception.predictors.engines.engine import (
    Agreement,
    close_flow,
    Engine,
    equal_labels,
    Inputs,
    Task,
)
from dense_perception.predictors.engines.in_torch import TorchEngine
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.settings import setting, Settings
import numpy as np
import torch
from torch import nn, Tensor


class _Where(TypedDict):
    device: str
    precision: str


_LOG = logging.getLogger(__name__)
_CHECKED = 4  # frames that engines are compared on, from either source
_HELD_BACK = 8  # every eighth frame of the folder judges int8 instead of scaling it
_REFERENCE: _Where = {'device': 'cpu', 'precision': 'float32'}


@dataclass(frozen=True)
class EngineSettings(Settings):
    """What a predictor's network runs in."""

    engine: str = setting(
        AUTO,
        'auto: the fastest that agrees with torch, measured once on this machine; or its name',
        choices=(AUTO, *ENGINES),
    )
    engine_agreement: float = setting(
        0.97,
        "least share of an engine's labels (flow vectors) that are those of torch in float32",
        low=0.0,
        high=1.0,
    )
    engine_timing_s: float = setting(
        2.0, 'seconds for which auto times each engine', low=0.01, high=60.0
    )
    engine_cache: str = setting(
        '~/.cache/dense_perception', 'folder of built engines; empty: built at every start'
    )
    calibration_frames: str = setting(
        '', "folder of the camera's images that scale int8; empty: no int8"
    )
    calibration_count: int = setting(
        64, 'frames of that folder to use, evenly spaced', low=2, high=1000
    )

    def cache(self) -> Cache | None:
        """Return where engines are kept."""
        return Cache(Path(self.engine_cache).expanduser()) if self.engine_cache else None


class Accelerated(nn.Module):
    """
    A network in an engine, for a predictor to call.

    An engine takes one size of input; any other runs in torch.
    """

    def __init__(self, engine: Engine, task: Task, placement: Placement) -> None:
        """Take an engine that was built for a task, and place its network beside it."""
        super().__init__()
        # Kept out of the module's reach, as `Placement.place` would convert them.
        self._run = (engine, TorchEngine(task.network, placement))
        self._sizes = task.sizes
        _describe(self, task.network)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the network would, in float32."""
        engine, otherwise = self._run
        sizes = tuple(tuple(value.shape) for value in inputs)
        return engine(*inputs) if sizes == self._sizes else otherwise(*inputs)


class _Listener(nn.Module):
    """Stands where a network does and keeps what a predictor gives it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.heard: list[Inputs] = []
        _describe(self, network)

    def forward(self, *inputs: Tensor) -> Tensor:
        self.heard.append(tuple(value.clone() for value in inputs))
        margin, stride = getattr(self, 'margin', 0), getattr(self, 'stride', 1)
        rows, columns = (-(-(size - 2 * margin) // stride) for size in inputs[0].shape[2:])
        return inputs[0].new_zeros(1, 2, rows, columns)


def _describe(module: nn.Module, network: nn.Module) -> None:
    """Give a module what predictors ask a network for besides its output."""
    for name in ('margin', 'stride'):
        if hasattr(network, name):
            setattr(module, name, getattr(network, name))


@dataclass(frozen=True)
class Accelerator:
    """Loads the predictors of one camera into engines."""

    settings: EngineSettings
    images: Sequence[Image]  # of the camera's size, one after the other; engines are compared here
    device: str = 'auto'  # as for `choose_placement`
    tell: Callable[[str], None] = _LOG.info  # what is being built, and what could not be had

    def segmenter(
        self, path: Path, *, width: int = 0, refinement: str = 'none'
    ) -> tuple[Segmenter, Choice]:
        """
        Load a segmentation network.

        :param width: as for `Segmenter`, `refinement` too.
        :raises WeightsError: as `Segmenter.from_file`.
        :raises SettingError: no such device.
        :raises InputError: images of several sizes, or too few; no images in the folder for
            calibration.
        """
        plain = Segmenter.from_file(path, **_REFERENCE, width=width)
        listener = _Listener(plain.network)
        listening = Segmenter(listener, plain.card, plain.placement, width=width)
        task = self._task(
            plain.network, listener, lambda frames: listening.scores(*frames), 1, equal_labels
        )
        ready, choice = self._accelerated(task)
        placement = _float32(task)
        segmenter = Segmenter(ready, plain.card, placement, width=width, refinement=refinement)
        return segmenter, choice

    def flow_estimator(
        self, path: Path, *, width: int = 0, refinement: str = 'none'
    ) -> tuple[FlowEstimator, Choice]:
        """
        Load a flow network; two images are needed, and it raises what `segmenter` does.

        :param width: as for `FlowEstimator`, `refinement` too.
        """
        plain = FlowEstimator.from_file(path, **_REFERENCE, width=width)
        listener = _Listener(plain.network)
        listening = FlowEstimator(listener, plain.card, plain.placement, width=width)
        task = self._task(
            plain.network, listener, lambda frames: listening.estimate(*frames), 2, close_flow
        )
        ready, choice = self._accelerated(task)
        placement = _float32(task)
        estimator = FlowEstimator(ready, plain.card, placement, width=width, refinement=refinement)
        return estimator, choice

    def _task(
        self,
        network: nn.Module,
        listener: '_Listener',
        give: Callable[[Sequence[Image]], object],
        frames: int,
        agreement: Agreement,
    ) -> Task:
        """Collect what a predictor gives its network for `frames` successive frames."""
        runs = [self.images[at : at + frames] for at in range(len(self.images) - frames + 1)]
        if not runs:
            raise InputError(f'{frames} images are needed to compare engines; there are none')
        kept = [list(run) for run in runs[:_CHECKED]]
        scaling: list[list[Image]] = []
        if self.settings.calibration_frames:
            found = self._calibration_runs(frames)
            # What scales int8 does not also judge it.
            kept += found[::_HELD_BACK][:_CHECKED]
            scaling = [run for at, run in enumerate(found) if at % _HELD_BACK]
        for run in kept:
            give(run)
        judged = len(listener.heard)
        for run in scaling:
            give(run)
        return Task(
            network,
            listener.heard[:judged],
            agreement,
            self.settings.engine_agreement,
            listener.heard[judged:],
            choose_placement(self.device).device,
            self.tell,
        )

    def _calibration_runs(self, frames: int) -> list[list[Image]]:
        """Return runs of successive images of the folder, evenly spaced, of the camera's size."""
        paths = pictures(Path(self.settings.calibration_frames).expanduser())
        height, width = self.images[0].shape[:2]
        count = min(self.settings.calibration_count, len(paths) - frames + 1)
        if count < 2:
            raise InputError(
                f'{self.settings.calibration_frames} holds {len(paths)} images; '
                f'{frames + 1} are needed for calibration'
            )
        starts = np.linspace(0, len(paths) - frames, count).astype(int)
        return [
            [_of_size(read_picture(path), height, width) for path in paths[at : at + frames]]
            for at in starts
        ]

    def _accelerated(self, task: Task) -> tuple[Accelerated, Choice]:
        settings = self.settings
        choice = choose_engine(
            settings.engine, task, settings.cache(), seconds=settings.engine_timing_s
        )
        return Accelerated(choice.engine, task, choose_placement(self.device)), choice


def _float32(task: Task) -> Placement:
    """Where a predictor prepares the input: an engine takes float32."""
    return Placement(task.device, torch.float32)


def _of_size(image: Image, height: int, width: int) -> Image:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
