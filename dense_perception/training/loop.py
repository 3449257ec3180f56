"""One training loop for every network: resumable, with averaged weights and a log."""

from collections.abc import Callable, Mapping, Sequence
import copy
from dataclasses import dataclass
import math
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from dense_perception.errors import DensePerceptionError, SettingError, WeightsError
from dense_perception.predictors.device import choose_placement
from dense_perception.training.loader import Loader
from dense_perception.training.processes import ALONE, Processes
from dense_perception.training.progress import Progress
from dense_perception.training.schedule import (
    learning_rate_at,
    LoopSettings,
    make_optimizer,
    set_learning_rate,
)
import numpy as np
import torch
from torch import nn, Tensor

LAST = 'last.pt'  # name of the checkpoint in the run's folder
BEST = 'best.safetensors'  # name of the best weights there
# What torch raises for a checkpoint that is damaged or of another network.
_DAMAGE = (OSError, RuntimeError, LookupError, EOFError, ValueError, TypeError, UnpicklingError)
# What the messages of a RuntimeError hold where memory was lacking.
_NO_MEMORY = ('DefaultCPUAllocator', 'out of memory', 'ALLOC_FAILED')
_AUTOCAST = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


class TrainingError(DensePerceptionError):
    """Training cannot go on; the last checkpoint is kept."""


@dataclass(frozen=True)
class Task:
    """
    What is trained: samples, loss, and how well the result does.

    A batch may be made and computed in parts, one after the other or by several processes. Then
    `batch` is called with the places of the part's samples within the batch, and returns the same
    samples at those places whatever the parts are; `generators` helps.
    """

    # (random source, size) or (random source, size, places) -> tensors
    batch: Callable[..., Any]
    # (network, part) -> mean over the part's samples. Where there is a `normalizer`, (network,
    # part, normalizer of the whole batch) -> what the part adds to the loss of the whole.
    loss: Callable[..., Tensor]
    evaluate: Callable[[nn.Module], dict[str, float]]
    # part -> vector of what the loss divides by, such as labelled pixels; the loop adds it up
    normalizer: Callable[[Any], Tensor] | None = None
    best: str = ''  # the score by which the best weights are kept
    lowest_is_best: bool = False
    # (path, averaged network, scores): write weights that a predictor loads
    save: Callable[[Path, nn.Module, Mapping[str, float]], None] | None = None
    unreadable: Callable[[], int] = lambda: 0  # samples that could not be read so far


def generators(random: np.random.Generator, size: int) -> list[np.random.Generator]:
    """Return a random source for each sample of a batch, whoever draws it."""
    return random.spawn(size)


class TrainingLoop:
    """
    Train a network step by step.

    Batch n comes from a generator seeded with (seed, n), and the network's own random choices in
    part k of it from (seed, n, k), so a run that was stopped and resumed ends with the numbers of
    an unbroken one, and parts computed by several processes give those of parts computed in turn.

    Batch normalisation alone depends on how a batch is divided: each part is normalised by its own
    mean and variance, and the running averages of several processes are averaged.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        settings: LoopSettings,
        folder: Path,
        processes: Processes = ALONE,
    ) -> None:
        """
        Prepare the first step.

        :param network: is trained in place; parameters that want no gradient stay as they are.
        :param folder: of checkpoints, log and curves.
        :param processes: those that train together.
        :raises SettingError: no such device, fewer samples than parts, or nothing to train.
        """
        self.settings, self.task, self.folder = settings, task, folder
        self.processes = processes
        self._parts = processes.count * settings.accumulate
        if settings.batch < self._parts:
            raise SettingError(
                f'batch is {settings.batch}; {processes.count} processes that accumulate '
                f'{settings.accumulate} parts each need at least {self._parts}'
            )
        self.device = processes.place(choose_placement(settings.device, 'float32').device)
        # Crops have one size: cuDNN may look for the fastest kernels once.
        torch.backends.cudnn.benchmark = self.device.type == 'cuda'
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        processes.take_first(self.network)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = make_optimizer(self.network, settings)
        self._trained = [value for value in network.parameters() if value.requires_grad]
        self._scaler = torch.amp.GradScaler(
            self.device.type, enabled=settings.precision == 'float16'
        )
        self.step = 0
        self._loss = math.nan  # running mean
        self._seconds = 0.0  # of earlier runs
        self._best = math.nan  # score of the best weights
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> bool:
        """
        Go on from the folder's last checkpoint, if it has one.

        :raises WeightsError: the checkpoint is damaged or of another network.
        """
        path = self.folder / LAST
        exists = self.processes.of_first(path.exists())
        if not exists:
            return False
        groups = [
            {name: value for name, value in group.items() if name != 'params'}
            for group in self.optimizer.param_groups
        ]
        try:
            state: Any = None
            if self.processes.first:
                state = torch.load(path, map_location='cpu', weights_only=True)
            state = self.processes.of_first(state)
            self.network.load_state_dict(state['network'])
            self.averaged.load_state_dict(state['averaged'])
            self.optimizer.load_state_dict(state['optimizer'])
            self._scaler.load_state_dict(state.get('scaler', {}) or self._scaler.state_dict())
            self.step = state['step']
            self._loss = float(state.get('loss', math.nan))
            self._seconds = float(state.get('seconds', 0.0))
            self._best = float(state.get('best', math.nan))
        except _DAMAGE as error:
            raise WeightsError(f'{path}: cannot be resumed from: {error}') from error
        for group, ours in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(ours)  # the settings may have changed since
        return True

    def save(self) -> None:
        """
        Write the checkpoint from which `resume` goes on.

        :raises TrainingError: it cannot be written; the one before is kept.
        """
        if not self.processes.first:
            return
        path = self.folder / LAST
        partial = self.folder / f'{LAST}.partial'
        state = {
            'network': self.network.state_dict(),
            'averaged': self.averaged.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': self._scaler.state_dict(),
            'step': self.step,
            'loss': self._loss,
            'seconds': self._seconds,
            'best': self._best,
        }
        try:
            torch.save(state, partial)
            partial.replace(path)
        except (OSError, RuntimeError) as error:
            raise TrainingError(f'{path}: cannot be written: {error}') from error

    def run(self, stop_at: int | None = None) -> None:
        """
        Train to the last step, or to `stop_at`, from where the loop stands.

        :raises TrainingError: loss or gradient is not a number, or memory is lacking; the last
            checkpoint is kept.
        """
        settings = self.settings
        end = min(settings.steps, stop_at or settings.steps)
        loader = Loader(self._make_parts, settings.loaders)
        place = (self.folder, self.step, settings.steps) if self.processes.first else None
        with Progress(place, self._seconds, loader) as progress:
            for parts in loader.batches(self.step, end):
                measured = self._advance(parts)
                progress.stepped(self.step, self._loss)
                if self.step % settings.log_every == 0:
                    progress.curve(self.step, measured)
                evaluated = self.step % settings.evaluate_every == 0 or self.step == end
                if evaluated and self.processes.first:
                    values = {
                        'loss': self._loss,
                        'learning_rate': measured['learning_rate'],
                        'unreadable': self.task.unreadable(),
                        **progress.speed(self.step),
                    }
                    scores = self.task.evaluate(self.averaged.eval())
                    self._keep_best(scores)
                    progress.scored(self.step, values, scores)
                if self.step % settings.checkpoint_every == 0 or self.step == end:
                    self._seconds = progress.seconds
                    self.save()

    def _make_parts(self, step: int) -> list[Any]:
        """Make those parts of a step's batch that this process computes."""
        size = self.settings.batch

        def random() -> np.random.Generator:
            return np.random.default_rng((self.settings.seed, step))

        if self._parts == 1:
            return [self.task.batch(random(), size)]
        return [
            self.task.batch(random(), size, range(part, size, self._parts))
            for part in self._own_parts()
        ]

    def _own_parts(self) -> range:
        first = self.processes.rank * self.settings.accumulate
        return range(first, first + self.settings.accumulate)

    def _advance(self, parts: Sequence[Any]) -> dict[str, float]:
        """Take one optimiser step; return its loss, norm of the gradient and learning rate."""
        rate = learning_rate_at(self.step, self.settings)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        _train(self.network)
        buffers = [value.clone() for value in self.network.buffers()]
        value, failure = math.nan, None
        try:
            value = self._differentiate(parts)
        except (RuntimeError, MemoryError) as error:
            if not _lacks_memory(error):
                raise
            failure = error
        value, failed = self.processes.total(
            torch.tensor([0.0 if failure else value, float(failure is not None)]).double()
        ).tolist()
        if failed:
            self._stop_for_memory(buffers, failure)
        self._check_finite('loss', value)
        self.processes.add_gradients(self._trained)
        self.processes.average_buffers(self.network)
        length = self._update()
        self.step += 1
        self._average()
        self._loss = value if math.isnan(self._loss) else 0.98 * self._loss + 0.02 * value
        return {'loss': value, 'gradient': length, 'learning_rate': rate}

    def _differentiate(self, parts: Sequence[Any]) -> float:
        """Add up the gradients of this process's parts; return their share of the loss."""
        settings, task = self.settings, self.task
        total = None
        if task.normalizer is not None:
            counts = torch.stack([task.normalizer(part) for part in parts]).sum(0)
            total = self.processes.total(counts)
        value = 0.0
        for place, part in zip(self._own_parts(), parts, strict=True):
            torch.manual_seed(_seed(settings.seed, self.step, place))
            with torch.autocast(
                self.device.type,
                _AUTOCAST.get(settings.precision),
                enabled=settings.precision != 'float32',
            ):
                if total is not None:
                    loss = task.loss(self.network, part, total)
                else:
                    size = len(range(place, settings.batch, self._parts))
                    loss = task.loss(self.network, part) * (size / settings.batch)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            value += loss.item()  # waits for the device; after all is queued
        return value

    def _update(self) -> float:
        """Let the optimiser take its step; return the norm of the gradient."""
        self._scaler.unscale_(self.optimizer)
        clip = self.settings.clip or math.inf
        length = nn.utils.clip_grad_norm_(self._trained, clip).item()
        if self._scaler.is_enabled():
            # Too large a scale overflows; the scaler then leaves the step out and lowers it.
            if self._scaler.get_scale() < 1:
                self._check_finite('gradient', math.nan)
        else:
            self._check_finite('gradient', length)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return length

    def _check_finite(self, what: str, value: float) -> None:
        # Nothing is saved here: a run that resumed just before would meet the same numbers.
        if not math.isfinite(value):
            raise TrainingError(
                f'the {what} of step {self.step} is {value}; the last checkpoint is '
                f'{self.folder / LAST}. Resume with a lower learning_rate or precision float32'
            )

    def _stop_for_memory(self, buffers: Sequence[Tensor], failure: Exception | None) -> None:
        """Save the state before the step that failed, and raise."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for value, before in zip(self.network.buffers(), buffers, strict=True):
                value.copy_(before)
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()
        self.save()
        reason = 'in another process' if failure is None else str(failure).partition('\n')[0]
        raise TrainingError(
            f'memory of {self.device} did not suffice for step {self.step}: {reason}. Its state '
            f'is saved in {self.folder / LAST}; go on from it with accumulate above '
            f'{self.settings.accumulate}, a smaller crop or batch, or precision bfloat16'
        ) from failure

    @torch.no_grad()
    def _average(self) -> None:
        # A short run would otherwise still average over its random start.
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        state = self.network.state_dict()
        averaged, new = [], []
        for name, value in self.averaged.state_dict().items():
            if value.is_floating_point():
                averaged.append(value)
                new.append(state[name])
            else:
                value.copy_(state[name])
        torch._foreach_lerp_(averaged, new, 1 - decay)  # one call: a GPU is kept busy

    def _keep_best(self, scores: Mapping[str, float]) -> None:
        """Save the averaged weights where they score better than any before."""
        task = self.task
        if not task.best or task.save is None:
            return
        score = scores.get(task.best, math.nan)
        better = score < self._best if task.lowest_is_best else score > self._best
        if better or (math.isnan(self._best) and not math.isnan(score)):
            self._best = score
            task.save(self.folder / BEST, self.averaged, scores)


def _train(network: nn.Module) -> None:
    """Set the network to train, but keep what is frozen as it is when it infers."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(value.requires_grad for value in parameters):
            module.eval()


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)
