"""Train a small network, alone or under `torchrun`; the tests of the loop start this file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
import sys
import time

from dense_perception.training.loop import generators, Task, TrainingError, TrainingLoop
from dense_perception.training.processes import joined, Processes
from dense_perception.training.schedule import LoopSettings
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

SETTINGS = LoopSettings(
    steps=6,
    batch=5,
    optimizer='sgd',
    learning_rate=0.1,
    warmup_steps=2,
    average=0.9,
    precision='float32',
    device='cpu',
    checkpoint_every=3,
    evaluate_every=3,
)
UNLABELLED = 255


def network(dropout: float = 0.0) -> nn.Module:
    """Return a classifier of pixels."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, 3, 1))
    return nn.Sequential(*layers)


def batch(
    random: np.random.Generator, size: int, places: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return images and labels; the later in the batch, the fewer pixels are labelled."""
    sources = generators(random, size)
    images, labels = [], []
    for place in range(size) if places is None else places:
        image = sources[place].random((1, 6, 6))
        label = (image[0] * 3).astype(np.int64)
        label[sources[place].random((6, 6)) < place / size] = UNLABELLED
        images.append(torch.from_numpy(image).float())
        labels.append(torch.from_numpy(label))
    return torch.stack(images), torch.stack(labels)


def mean_loss(model: nn.Module, part: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean over the samples of their squared scores."""
    return model(part[0]).square().mean() + model(part[0]).mean()


def counted_loss(model: nn.Module, part: tuple[Tensor, Tensor], total: Tensor) -> Tensor:
    """Return what a part adds to the mean over the labelled pixels of the batch."""
    images, labels = part
    sums = F.cross_entropy(model(images), labels, ignore_index=UNLABELLED, reduction='sum')
    return sums / total[0]


def labelled(part: tuple[Tensor, Tensor]) -> Tensor:
    """Return the number of labelled pixels."""
    return (part[1] != UNLABELLED).sum().reshape(1).double()


COUNTED = Task(batch, counted_loss, lambda model: {'score': 1.0}, labelled)
MEAN = replace(COUNTED, loss=mean_loss, normalizer=None)


def train(
    folder: Path,
    task: Task,
    settings: LoopSettings = SETTINGS,
    processes: Processes | None = None,
    *,
    dropout: float = 0.0,
    stop_at: int | None = None,
) -> TrainingLoop:
    """Train, or go on."""
    loop = TrainingLoop(network(dropout), task, settings, folder, processes or Processes())
    loop.resume()
    loop.run(stop_at)
    return loop


def train_together(folder: Path) -> None:
    """Do what the test of two processes compares with one."""
    with joined() as processes:

        def evaluate(model: nn.Module) -> dict[str, float]:
            with (folder / 'evaluations.txt').open('a') as file:
                file.write(f'{processes.rank}\n')
            return {'score': 1.0}

        task = replace(COUNTED, evaluate=evaluate)
        train(folder / 'counted', task, processes=processes, stop_at=4)  # between checkpoints
        train(folder / 'counted', task, processes=processes)
        train(folder / 'mean', MEAN, processes=processes)
        parts = replace(SETTINGS, accumulate=2)
        train(folder / 'dropout', COUNTED, parts, processes, dropout=0.5)

        def greedy(model: nn.Module, part: tuple[Tensor, Tensor], total: Tensor) -> Tensor:
            if processes.rank == 1 and greedy_loop.step == 4:
                torch.empty(2**60, dtype=torch.uint8)
            return counted_loss(model, part, total)

        greedy_loop = TrainingLoop(
            network(), replace(COUNTED, loss=greedy), SETTINGS, folder / 'greedy', processes
        )
        try:
            greedy_loop.run()
        except TrainingError as error:
            (folder / f'error_{processes.rank}.txt').write_text(str(error))


def train_slowly(folder: Path) -> None:
    """Take enough time for every step to be killed in between."""

    def slow(model: nn.Module, part: tuple[Tensor, Tensor], total: Tensor) -> Tensor:
        time.sleep(0.1)
        return counted_loss(model, part, total)

    train(folder, replace(COUNTED, loss=slow), replace(SETTINGS, checkpoint_every=2), dropout=0.5)


if __name__ == '__main__':
    torch.set_num_threads(1)
    {'together': train_together, 'slowly': train_slowly}[sys.argv[1]](Path(sys.argv[2]))
