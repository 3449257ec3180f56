"""How long, how fast and how precisely a network is trained."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Any

from dense_perception.errors import SettingError
from dense_perception.settings import setting, Settings
import torch
from torch import nn

MOST = 10_000_000  # steps


@dataclass(frozen=True)
class LoopSettings(Settings):
    """How long, how fast and how precisely a network is trained."""

    steps: int = setting(10000, 'optimiser steps', low=1, high=MOST)
    batch: int = setting(8, 'samples a step, over all parts and processes', low=1, high=4096)
    accumulate: int = setting(
        1, 'parts of a batch that a process computes one after the other', low=1, high=4096
    )
    optimizer: str = setting(
        'adamw',
        'adamw decouples weight decay from the gradient; adam and sgd add it, as Caffe does',
        choices=('adamw', 'adam', 'sgd'),
    )
    momentum: float = setting(
        0.9, 'decay of the mean gradient; the first beta of Adam', low=0.0, high=0.9999
    )
    learning_rate: float = setting(1e-3, 'highest learning rate', low=0.0, high=10.0)
    bias_rate: float = setting(
        1.0, 'learning rate of biases and norms, in multiples of the others', low=0.0, high=100.0
    )
    schedule: str = setting(
        'cosine',
        'how the rate falls: half a cosine to zero, in stairs, as (1 - step / steps) ^ power, '
        'or not at all',
        choices=('cosine', 'step', 'poly', 'constant'),
    )
    decay_first: int = setting(0, 'step: first step of the first stair', low=0, high=MOST)
    decay_every: int = setting(MOST, 'step: steps from stair to stair', low=1, high=MOST)
    decay_factor: float = setting(0.5, 'step: rate of a stair over the one before', low=0, high=1)
    power: float = setting(0.9, 'poly: exponent', low=0.0, high=10.0)
    warmup_steps: int = setting(200, 'steps of linear rise', low=0, high=1_000_000)
    weight_decay: float = setting(1e-2, 'of weights, not of biases or norms', low=0.0, high=1.0)
    clip: float = setting(1.0, 'largest norm of the gradient; 0: any', low=0.0, high=1e6)
    average: float = setting(0.999, 'decay of the averaged weights', low=0.0, high=0.999999)
    batch_norm: bool = setting(
        False, 'normalise convolutions while training; folded into them in the weights file'
    )
    seed: int = setting(0, 'seed of every random choice', low=0, high=2**31 - 1)
    precision: str = setting(
        'bfloat16',
        'autocast type; float16 scales the loss and is for CUDA',
        choices=('float32', 'bfloat16', 'float16'),
    )
    device: str = setting('auto', 'auto, cpu, cuda or cuda:N; auto takes a CUDA device if any')
    checkpoint_every: int = setting(500, 'steps between checkpoints', low=1, high=MOST)
    evaluate_every: int = setting(2000, 'steps between evaluations', low=1, high=MOST)
    log_every: int = setting(50, 'steps between points of the curves', low=1, high=MOST)
    loaders: int = setting(2, 'threads that read and augment samples', low=1, high=256)
    largest_unreadable_share: float = setting(
        0.05, 'training stops if more of the samples cannot be read', low=0.0, high=1.0
    )
    memory_mb: int = setting(
        4000, 'megabytes of decoded samples that are kept, by each process', low=0, high=10_000_000
    )


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Return the rate of a step: linear rise, then as the schedule says."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    return settings.learning_rate * _SCHEDULES[settings.schedule](step, settings)


def _cosine(step: int, settings: LoopSettings) -> float:
    span = max(1, settings.steps - settings.warmup_steps)
    return (1 + math.cos(math.pi * (step - settings.warmup_steps) / span)) / 2


def _stairs(step: int, settings: LoopSettings) -> float:
    if step < settings.decay_first:
        return 1.0
    stairs = 1 + (step - settings.decay_first) // settings.decay_every
    return settings.decay_factor**stairs


def _poly(step: int, settings: LoopSettings) -> float:
    return (1 - step / settings.steps) ** settings.power


def _constant(step: int, settings: LoopSettings) -> float:
    return 1.0


_SCHEDULES: dict[str, Callable[[int, LoopSettings], float]] = {
    'cosine': _cosine,
    'step': _stairs,
    'poly': _poly,
    'constant': _constant,
}


def make_optimizer(network: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """
    Make the optimiser of every parameter that is to be trained.

    :raises SettingError: all of the network is frozen.
    """
    trained = [value for value in network.parameters() if value.requires_grad]
    if not trained:
        raise SettingError(f'no parameter of {type(network).__name__} is to be trained')
    groups: list[dict[str, Any]] = [
        {'params': [value for value in trained if value.ndim > 1], 'share': 1.0},
        {
            'params': [value for value in trained if value.ndim <= 1],
            'share': settings.bias_rate,
            'weight_decay': 0.0,
        },
    ]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == 'sgd':
        return torch.optim.SGD(groups, rate, settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.optimizer == 'adamw' else torch.optim.Adam
    return kind(groups, rate, (settings.momentum, 0.999), weight_decay=decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of weights, and that of biases and norms accordingly."""
    for group in optimizer.param_groups:
        group['lr'] = rate * group['share']
