"""One training loop for every network: resumable, with averaged weights and a log."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import copy
import csv
from dataclasses import dataclass
import math
from pathlib import Path
from pickle import UnpicklingError
import time
from typing import Any

from dense_perception.errors import DensePerceptionError, WeightsError
from dense_perception.settings import setting, Settings
import numpy as np
import torch
from torch import nn, Tensor
from tqdm import tqdm

LAST = 'last.pt'  # name of the checkpoint in the run's folder
# What torch raises for a checkpoint that is damaged or of another network.
_DAMAGE = (OSError, RuntimeError, LookupError, EOFError, ValueError, TypeError, UnpicklingError)


class TrainingError(DensePerceptionError):
    """Training cannot go on; the last checkpoint is kept."""


@dataclass(frozen=True)
class LoopSettings(Settings):
    """How long, how fast and how precisely a network is trained."""

    steps: int = setting(10000, 'optimiser steps', low=1, high=10_000_000)
    batch: int = setting(8, 'samples a step', low=1, high=4096)
    learning_rate: float = setting(1e-3, 'highest learning rate', low=0.0, high=10.0)
    warmup_steps: int = setting(200, 'steps of linear rise', low=0, high=1_000_000)
    weight_decay: float = setting(1e-2, 'decoupled weight decay', low=0.0, high=1.0)
    clip: float = setting(1.0, 'largest norm of the gradient', low=0.0, high=1e6)
    average: float = setting(0.999, 'decay of the averaged weights', low=0.0, high=0.999999)
    seed: int = setting(0, 'seed of every random choice', low=0, high=2**31 - 1)
    precision: str = setting('bfloat16', 'autocast type', choices=('float32', 'bfloat16'))
    device: str = setting('cpu', 'where to train, as torch names it')
    checkpoint_every: int = setting(500, 'steps between checkpoints', low=1, high=10_000_000)
    evaluate_every: int = setting(2000, 'steps between evaluations', low=1, high=10_000_000)


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Return the rate of a step: linear rise, then half a cosine down to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - settings.warmup_steps)
    progress = (step - settings.warmup_steps) / span
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Task:
    """What is trained: samples, loss, and how well the result does."""

    batch: Callable[[np.random.Generator, int], Any]  # random source, size -> batch of tensors
    loss: Callable[[nn.Module, Any], Tensor]
    evaluate: Callable[[nn.Module], dict[str, float]]


class TrainingLoop:
    """
    Train a network step by step.

    Batch n comes from a generator seeded with (seed, n), and so do the network's own random
    choices, so a run that was stopped and resumed ends with the numbers of an unbroken one.
    """

    def __init__(self, network: nn.Module, task: Task, settings: LoopSettings, folder: Path):
        self.settings, self.task, self.folder = settings, task, folder
        self.device = torch.device(settings.device)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        decayed = [value for value in network.parameters() if value.ndim > 1]
        plain = [value for value in network.parameters() if value.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {'params': decayed},
            {'params': plain, 'weight_decay': 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> bool:
        """
        Go on from the folder's last checkpoint, if it has one.

        :raises WeightsError: the checkpoint is damaged or of another network.
        """
        path = self.folder / LAST
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state['network'])
            self.averaged.load_state_dict(state['averaged'])
            self.optimizer.load_state_dict(state['optimizer'])
            self.step = state['step']
        except _DAMAGE as error:
            raise WeightsError(f'{path}: cannot be resumed from: {error}') from error
        return True

    def save(self) -> None:
        """Write the checkpoint from which `resume` goes on."""
        partial = self.folder / f'{LAST}.partial'
        state = {
            'network': self.network.state_dict(),
            'averaged': self.averaged.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'step': self.step,
        }
        torch.save(state, partial)
        partial.replace(self.folder / LAST)

    def run(self, stop_at: int | None = None) -> None:
        """
        Train to the last step, or to `stop_at`, from where the loop stands.

        :raises TrainingError: loss or gradient is not a number; the last checkpoint is kept.
        """
        end = min(self.settings.steps, stop_at or self.settings.steps)
        bar = tqdm(total=self.settings.steps, initial=self.step, unit='step', mininterval=30)
        recent, started = math.nan, time.monotonic()
        with bar:
            for batch in self._batches(end):
                loss = self._advance(batch)
                recent = loss if math.isnan(recent) else 0.98 * recent + 0.02 * loss
                bar.update()
                bar.set_postfix(loss=f'{recent:.4f}', refresh=False)
                if self.step % self.settings.checkpoint_every == 0 or self.step == end:
                    self.save()
                if self.step % self.settings.evaluate_every == 0 or self.step == end:
                    scores = self.task.evaluate(self.averaged.eval())
                    elapsed = round(time.monotonic() - started)
                    self._log({'step': self.step, 'loss': recent, 'seconds': elapsed, **scores})
                    bar.write(f'step {self.step}: loss {recent:.4f}, {scores}')

    def _advance(self, batch: Any) -> float:
        """Take one optimiser step and return its loss."""
        settings = self.settings
        torch.manual_seed(settings.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group['lr'] = learning_rate_at(self.step, settings)
        self.network.train()
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=settings.precision == 'bfloat16'
        ):
            loss = self.task.loss(self.network, batch)
        value = loss.item()
        self._check_finite('loss', value)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        length = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self._check_finite('gradient', length.item())
        self.optimizer.step()
        self.step += 1
        self._average()
        return value

    def _check_finite(self, what: str, value: float) -> None:
        # Nothing is saved here: the pass that failed has already touched the running averages
        # of batch normalisation.
        if not math.isfinite(value):
            raise TrainingError(
                f'the {what} of step {self.step} is {value}; the last checkpoint is '
                f'{self.folder / LAST}. Resume with a lower learning_rate or precision float32'
            )

    @torch.no_grad()
    def _average(self) -> None:
        # A short run would otherwise still average over its random start.
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        state = self.network.state_dict()
        for name, value in self.averaged.state_dict().items():
            if value.is_floating_point():
                value.lerp_(state[name], 1 - decay)
            else:
                value.copy_(state[name])

    def _batches(self, end: int) -> Iterator[Any]:
        """Make batches a few steps ahead in other threads, in order."""

        def make(step: int) -> Any:
            random = np.random.default_rng((self.settings.seed, step))
            return self.task.batch(random, self.settings.batch)

        ahead = 4
        with ThreadPoolExecutor(2) as pool:
            waiting: list[Future[Any]] = []
            for step in range(self.step, end):
                while len(waiting) < ahead and step + len(waiting) < end:
                    waiting.append(pool.submit(make, step + len(waiting)))
                yield waiting.pop(0).result()

    def _log(self, row: dict[str, float]) -> None:
        path = self.folder / 'log.csv'
        new = not path.exists()
        with path.open('a', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
