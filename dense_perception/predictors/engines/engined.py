"""A network that runs in an engine once there is one for the size of its inputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
import copy
from dataclasses import dataclass, field
from functools import partial
import logging
from threading import Thread

from dense_perception.arrays import Image
from dense_perception.errors import DensePerceptionError, InputError
from dense_perception.predictors.device import Placement
from dense_perception.predictors.engines.calibration import calibration_runs, check_calibration
from dense_perception.predictors.engines.choice import Choice, choose_engine, first_line
from dense_perception.predictors.engines.engine import Agreement, Inputs, Task
from dense_perception.predictors.engines.first_runs import first_runs
from dense_perception.predictors.engines.in_torch import TorchEngine
from dense_perception.predictors.engines.settings import EngineSettings, TORCH
import torch
from torch import nn, Tensor

LOG = logging.getLogger(__name__)
Sizes = tuple[tuple[int, ...], ...]  # of each input, (3, H, W)

_CHECKED = 4  # calls whose inputs engines are compared on
_MOST_SIZES = 4  # for which engines are kept; each has a copy of the weights
_IDLE = 100  # calls without a size after which another takes its place; fewer would build for ever


@dataclass(frozen=True)
class Use:
    """What a predictor does with its network."""

    frames: int  # images that it takes at a time
    inputs: Callable[..., Inputs]  # takes these, gives what the network takes
    agreement: Agreement


@dataclass
class _Ready:
    """What there is for one size of inputs."""

    samples: list[Inputs] = field(default_factory=list)
    choice: Choice | None = None
    builder: Thread | None = None
    given_up: bool = False
    note: str = ''  # what became of its engine so far
    used: int = 0  # number of the call that brought this size last


class Engined(nn.Module):
    """
    Run a network in torch at once, and in an engine as soon as one is built.

    An engine takes inputs of one size, so each size gets its own, a few sizes at a time: one that
    has not come for long gives way to a new one. An engine is judged on the first calls' inputs
    and built in a thread of its own on a CPU; on a CUDA device within the call that brings the
    last of them, as recording a graph suffers nothing beside it. Where an engine cannot be had,
    or fails while it runs, torch takes its place for as long as its size is known, and `note` and
    `tell` say why. Several images at a time go through the engine one by one.
    """

    def __init__(
        self,
        network: nn.Module,
        placement: Placement,
        settings: EngineSettings,
        use: Use,
        tell: Callable[[str], None] = LOG.info,
    ) -> None:
        """
        Take a network, of which copies run.

        :param network: its `margin` and `stride`, where it has them, become this one's.
        :param placement: where it runs, and in which precision as long as it runs in torch.
        :param settings: which engine; calibration images are read when one is built.
        :param tell: receives progress, from any thread: building may take minutes.
        :raises InputError: the folder for calibration is missing or holds too few images.
        """
        super().__init__()
        check_calibration(settings, use.frames)
        for name in ('margin', 'stride'):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        original = copy.deepcopy(network).eval().requires_grad_(False).float().cpu()
        # Kept out of the module's reach, as placing it would convert them.
        self._networks = original, TorchEngine(original, placement)
        self._settings, self._use, self._tell = settings, use, tell
        self._ready: dict[Sizes, _Ready] = {}
        self._calls = 0
        self._newest = _Ready(note='no images yet')
        self._left_out = _Ready(given_up=True)  # stands for every size that there is no room for
        self.waiting = False  # whether who called waits for an engine that is being built
        self.running = str(placement)  # what ran the newest inputs: an engine's name, or torch's

    @property
    def note(self) -> str:
        """Why that ran them, and how far an engine agrees with torch."""
        return self._newest.note

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the network would for float32 inputs, (N, C, rows, columns) float32."""
        sizes = tuple(tuple(value.shape[1:]) for value in inputs)
        ready = self._newest = self._of(sizes)
        if ready.choice:
            name = ready.choice.name
            try:
                output = _one_by_one(ready.choice.engine, inputs)
            # Each library has exceptions of its own; memory may be short, a device lost.
            except Exception as error:  # noqa: BLE001
                reason = f'{name} failed: {first_line(error)}'
            else:
                self.running = name
                return output
            self._give_up(ready, reason)
        elif not ready.given_up and not ready.builder:
            self._collect(sizes, ready, inputs)
        self.running = f'torch, {self._networks[1].placement}'
        return self._networks[1](*inputs)

    def prepare(self, samples: Sequence[Inputs]) -> None:
        """
        Build an engine now, whatever was built or given up before.

        :param samples: inputs of one size, (1, 3, H, W) float32 each, to judge it by.
        """
        sizes = tuple(tuple(value.shape[1:]) for value in samples[0])
        ready = _Ready([_kept(sample) for sample in samples[:_CHECKED]], used=self._calls)
        self._ready[sizes] = self._newest = ready
        self._build_at_once(sizes, ready)

    def wait(self) -> None:
        """Wait until no engine is being built."""
        for ready in list(self._ready.values()):
            if ready.builder:
                ready.builder.join()

    def _of(self, sizes: Sizes) -> _Ready:
        """Return what there is for the size of a call."""
        self._calls += 1
        if sizes not in self._ready and not self._has_room():
            note = f'torch for {_text(sizes)}: {_MOST_SIZES} other sizes that come have engines'
            self._say(self._left_out, note)
            return self._left_out
        if sizes not in self._ready:
            self._ready[sizes] = _Ready()
            note = f'torch for {_text(sizes)} until an engine is built for that size'
            self._say(self._ready[sizes], note)
        ready = self._ready[sizes]
        ready.used = self._calls
        return ready

    def _has_room(self) -> bool:
        """Whether a size may be added; the one that was used least recently may give way."""
        if len(self._ready) < _MOST_SIZES:
            return True
        sizes, oldest = min(self._ready.items(), key=lambda item: item[1].used)
        building = oldest.builder is not None and oldest.builder.is_alive()
        if building or self._calls - oldest.used <= _IDLE:
            return False
        del self._ready[sizes]
        return True

    def _collect(self, sizes: Sizes, ready: _Ready, inputs: Inputs) -> None:
        """Keep what is given; once that is enough, build."""
        sample = tuple(value[:1] for value in inputs)
        if all(_empty(value) for value in sample):
            return  # a blank image, as networks are warmed up with, judges nothing
        ready.samples.append(_kept(sample))
        if len(ready.samples) < _CHECKED:
            return
        if self._networks[1].placement.device.type == 'cuda':
            self._build_at_once(sizes, ready)
            return
        # A daemon: whoever ends the program does not wait for minutes.
        ready.builder = Thread(target=self._build, args=(sizes, ready), daemon=True)
        ready.builder.start()

    def _build_at_once(self, sizes: Sizes, ready: _Ready) -> None:
        self.waiting = True
        try:
            self._build(sizes, ready)
        finally:
            self.waiting = False

    def _build(self, sizes: Sizes, ready: _Ready) -> None:
        """Choose an engine for a size; whatever goes wrong leaves torch."""
        settings = self._settings
        try:
            choice = choose_engine(
                settings.engine,
                self._task(sizes, ready),
                settings.cache(),
                seconds=settings.engine_timing_s,
            )
        except DensePerceptionError as error:
            reason = str(error)
        # Files, memory, a device: none of them may cost more than the engine.
        except Exception as error:  # noqa: BLE001
            reason = f'no engine: {first_line(error)}'
        else:
            ready.samples.clear()
            ready.choice = choice
            self._say(ready, f'{choice.name} for {_text(sizes)}, {choice}')
            return
        self._give_up(ready, reason)

    def _task(self, sizes: Sizes, ready: _Ready) -> Task:
        margin = int(getattr(self, 'margin', 0))
        rows, columns = (side - 2 * margin for side in sizes[0][1:])
        scaling, judging = (
            [_kept(self._use.inputs(*run)) for run in runs]
            for runs in calibration_runs(self._settings, (rows, columns), self._use.frames)
        )
        original, in_torch = self._networks
        return Task(
            original,
            [*ready.samples, *judging[:_CHECKED]],  # what scales int8 does not also judge it
            self._use.agreement,
            self._settings.engine_agreement,
            scaling,
            in_torch.placement.device,
            partial(self._say, ready),
        )

    def _give_up(self, ready: _Ready, reason: str) -> None:
        """Leave a size to torch; not while an error is handled, which would hold the engine."""
        ready.choice, ready.given_up = None, True
        ready.samples.clear()
        if self._networks[1].placement.device.type == 'cuda':
            torch.cuda.empty_cache()  # the engine's memory is of use to torch
        self._say(ready, f'{reason}; torch takes its place')

    def _say(self, ready: _Ready, note: str) -> None:
        if note != ready.note:
            ready.note = note
            self._tell(note)


def _one_by_one(engine: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    """Run an engine, which takes one image at a time, on several."""
    if len(inputs[0]) == 1:
        return engine(*inputs)
    singles = (tuple(value[at : at + 1] for value in inputs) for at in range(len(inputs[0])))
    return torch.cat([engine(*one) for one in singles])


def _kept(inputs: Inputs) -> Inputs:
    return tuple(value.detach().float().cpu().clone() for value in inputs)


def _empty(value: Tensor) -> bool:
    """Whether an image has one colour."""
    return bool((value == value[:, :, :1, :1]).all())


def _text(sizes: Sizes) -> str:
    return f'inputs of {sizes[0][2]} x {sizes[0][1]}'


class EngineUser(ABC):
    """What predictors share whose network may run in an engine."""

    network: nn.Module
    placement: Placement

    @abstractmethod
    def inputs(self, *images: Image) -> Inputs:
        """Return what the network takes for images of one size."""

    def _use_network(
        self,
        network: nn.Module,
        placement: Placement,
        engine: EngineSettings | str,
        use: Use,
        tell: Callable[[str], None],
    ) -> None:
        """Place a network in torch, or in an engine where that is asked for."""
        settings = EngineSettings(engine=engine) if isinstance(engine, str) else engine
        self.placement, self._engine, self._frames = placement, settings, use.frames
        if settings.engine == TORCH:
            self.network = placement.place(network)
        else:
            self.network = Engined(network, placement, settings, use, tell)

    @property
    def input_dtype(self) -> torch.dtype:
        """Number type of what the network takes; engines choose their own precision."""
        return torch.float32 if isinstance(self.network, Engined) else self.placement.dtype

    @property
    def running(self) -> str:
        """What ran the network on the newest image: the name of an engine, or torch."""
        return self.network.running if isinstance(self.network, Engined) else TORCH

    @property
    def engine_note(self) -> str:
        """
        Why that ran it; empty where no engine was asked for.

        Of an engine how far it agrees with torch; while one is made for the newest image, how far
        that is.
        """
        return self.network.note if isinstance(self.network, Engined) else ''

    @property
    def waits_for_engine(self) -> bool:
        """Whether who called waits until an engine is built."""
        return isinstance(self.network, Engined) and self.network.waiting

    def prepare(self, images: Sequence[Image]) -> None:
        """
        Build the engine now, rather than beside the first frames.

        :param images: successive ones of the camera, of one size; the engine is judged on them.
        :raises InputError: there are fewer than the predictor takes at a time.
        """
        if not isinstance(self.network, Engined):
            return
        count = len(images) - self._frames + 1
        if count < 1:
            raise InputError(
                f'{self._frames} images are needed to prepare an engine; {len(images)} are given'
            )
        runs = [images[at : at + self._frames] for at in range(count)]
        self.network.prepare([self.inputs(*run) for run in runs[:_CHECKED]])

    def prepare_for(self, size: tuple[int, int]) -> None:
        """
        Build the engine, if one is asked for, before there is an image.

        It is judged on those frames for calibration that do not scale int8; where there are none,
        on a rendered drive.

        :param size: columns and rows of the images to come.
        :raises InputError: a frame for calibration cannot be read.
        """
        if not isinstance(self.network, Engined):
            return
        runs = first_runs(self._engine, size[::-1], self._frames, _CHECKED)
        self.network.prepare([self.inputs(*run) for run in runs])
