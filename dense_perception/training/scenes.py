"""What recipes have in common that train on scenes: samples, a seeded start and a weights file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.tensors import preprocess
from dense_perception.settings import setting
from dense_perception.training.loop import generators, Task
from dense_perception.training.samples import Samples
from dense_perception.training.saving import save_trained
from dense_perception.training.schedule import LoopSettings
from dense_perception.weights.checkpoint import Card
import numpy as np
import torch
from torch import nn, Tensor

VALIDATION_SEED = 900_000  # first seed of the rendered drives that nothing trains on

Recipe = TypeVar('Recipe', bound='SceneSettings')
Sample = TypeVar('Sample')


@dataclass(frozen=True)
class SceneSettings(LoopSettings):
    """How a network is trained on samples that are changed at random."""

    blur: float = setting(0.0, 'share of the samples that are blurred a little', low=0.0, high=1.0)


class Scenes(ABC, Generic[Recipe]):
    """Draw samples for a network, and write the weights that come of them."""

    best: str  # the score by which the best weights are kept
    lowest_is_best = False

    def __init__(self, recipe: Recipe, card: Card) -> None:
        """
        Choose where the network scores.

        :param card: of the network to train.
        :raises SettingError: no such device, or one that has not the precision.
        """
        self.recipe, self.card = recipe, card
        self.placement = choose_placement(recipe.device, recipe.precision)

    def samples(self, data: Sequence[Sample], memory_share: float) -> Samples[Sample]:
        """Draw from data, of which a share of the recipe's memory is kept decoded."""
        return Samples(
            data,
            largest_unreadable_share=self.recipe.largest_unreadable_share,
            memory_mb=memory_share * self.recipe.memory_mb,
        )

    def task(self) -> Task:
        """Return what the training loop needs."""
        return Task(
            self.batch,
            self.loss,
            self.evaluate,
            normalizer=self.normalizer,
            best=self.best,
            lowest_is_best=self.lowest_is_best,
            save=self.save,
            unreadable=self.unreadable,
        )

    @abstractmethod
    def batch(
        self, random: np.random.Generator, size: int, places: Sequence[int] | None = None
    ) -> Any:
        """
        Draw and augment the samples of one step.

        :param size: of the whole batch.
        :param places: those that are wanted; None for all.
        """

    @abstractmethod
    def normalizer(self, part: Any) -> Tensor:
        """Return what the loss of a batch divides by, of a part of it."""

    @abstractmethod
    def loss(self, network: nn.Module, part: Any, total: Tensor) -> Tensor:
        """
        Return what a part of a batch adds to its loss.

        :param total: `normalizer` of the batch.
        """

    @abstractmethod
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the scores of a network on what nothing trains on."""

    @abstractmethod
    def unreadable(self) -> int:
        """Return how many samples could not be read so far."""

    def save(self, path: Path, network: nn.Module, scores: Mapping[str, float]) -> None:
        """Write a weights file; its card holds the recipe and the scores."""
        save_trained(path, network, self.card, self.recipe, scores)

    def fresh_network(self) -> nn.Module:
        """Return the network with random weights, which the recipe's seed decides."""
        torch.manual_seed(self.recipe.seed)
        return self.card.build()

    def values(self, network: nn.Module, images: Tensor) -> Tensor:
        """
        Return images as the network takes them, where it is.

        :param images: (N, 3, H, W) uint8, RGB.
        """
        device = next(network.parameters()).device
        values = preprocess(images.to(device), self.card.preprocessing)
        return values.contiguous(memory_format=torch.channels_last)


def draw(
    random: np.random.Generator,
    size: int,
    places: Sequence[int] | None,
    sample: Callable[[np.random.Generator, int], Sample],
) -> list[Sample]:
    """
    Draw the samples of a batch that are wanted, the same ones whoever else draws the others.

    :param size: of the whole batch.
    :param places: of those that are wanted, in the batch; None for all.
    :param sample: draws the one at a place.
    """
    sources = generators(random, size)
    return [sample(sources[place], place) for place in (range(size) if places is None else places)]


cv2.setNumThreads(1)  # samples are made in threads of our own
