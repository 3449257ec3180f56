"""Recipe of the flow weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Image
from dense_perception.data.augment import augment_pair, Crop
from dense_perception.data.flow import FlowPair
from dense_perception.data.flying_chairs import ChairsShape
from dense_perception.data.sources import Cached, ChairsPairs, RenderedPairs
from dense_perception.metrics.flow import EndPointError
from dense_perception.networks.flownet import FLOW_SCALE, FlowNet
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.tensors import flow_to_tensor, images_to_tensor, preprocess
from dense_perception.settings import setting
from dense_perception.training.batch_norm import folded, normalize_convolutions
from dense_perception.training.loop import generators, Task
from dense_perception.training.losses import flow_loss, known_flow
from dense_perception.training.samples import Samples
from dense_perception.training.saving import save_trained
from dense_perception.training.schedule import LoopSettings
from dense_perception.training.segmentation import VALIDATION_SEED
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import torch
from torch import nn, Tensor

# FlowNetPytorch's mean of RGB / 255, in grey levels.
PREPROCESSING = Preprocessing('rgb', (0.45 * 255, 0.432 * 255, 0.411 * 255), 255.0)


@dataclass(frozen=True)
class FlowRecipe(LoopSettings):
    """How a FlowNet is trained."""

    network: str = setting(
        'flownet_simple', 'which FlowNet', choices=('flownet_simple', 'flownet_corr')
    )
    width: float = setting(0.25, 'share of the published channels', low=0.05, high=1.0)
    crop_height: int = setting(256, 'pixels, a multiple of 64', low=64, high=4096)
    crop_width: int = setting(320, 'pixels, a multiple of 64', low=64, high=4096)
    largest_scale: float = setting(1.5, 'greatest enlargement', low=1.0, high=4.0)
    chairs: int = setting(3000, 'different chairs-style pairs', low=1, high=1_000_000)
    drives: int = setting(80, 'rendered drives, eight pairs each', low=1, high=1000)
    rendered: int = setting(2, 'samples of a batch that are rendered', low=0, high=4096)
    error: str = setting(
        'mean',
        "over a level's pixels: mean, or the sum that the released training code takes",
        choices=('mean', 'sum'),
    )


@dataclass(frozen=True)
class _Batch:
    first: Tensor  # (N, 3, H, W) uint8
    second: Tensor
    flow: Tensor  # (N, 2, H, W) float32, pixels
    valid: Tensor  # (N, 1, H, W) bool


@dataclass(frozen=True)
class Pairs:
    """Image pairs to train on, and others to score on."""

    name: str  # of the score
    training: Sequence[FlowPair]
    held_out: Sequence[FlowPair]


def chairs_style(recipe: FlowRecipe, pictures: Sequence[Image]) -> Pairs:
    """
    Return pairs in the manner of Flying Chairs, cut from photographs.

    :param pictures: every tenth is only scored on.
    """
    shape = ChairsShape(320, 384, fewest=8, most=16)
    training = [picture for index, picture in enumerate(pictures) if index % 10]
    return Pairs(
        'chairs',
        ChairsPairs(0, recipe.chairs, training, shape),
        ChairsPairs(VALIDATION_SEED, 50, pictures[::10], shape),
    )


class MovingScenes:
    """Train flow on image pairs and rendered drives."""

    def __init__(self, recipe: FlowRecipe, pairs: Pairs) -> None:
        """
        Lay out the data.

        :raises SettingError: no such device, or one that has not the precision.
        """
        self.recipe = recipe
        self.placement = choose_placement(recipe.device, recipe.precision)
        self.name = pairs.name
        self.pairs, self.drives = (
            Samples(
                samples,
                largest_unreadable_share=recipe.largest_unreadable_share,
                memory_mb=recipe.memory_mb / 2,
            )
            for samples in (pairs.training, RenderedPairs(0, recipe.drives))
        )
        self.held_out = {pairs.name: Cached(pairs.held_out)}
        if recipe.rendered:
            self.held_out['drives'] = Cached(RenderedPairs(VALIDATION_SEED, 10, pairs=3))
        self.card = Card(recipe.network, {'width': recipe.width}, PREPROCESSING)

    def start(self) -> nn.Module:
        """Return the network to train, with fresh weights."""
        torch.manual_seed(self.recipe.seed)
        network = self.card.build()
        if self.recipe.batch_norm:
            normalize_convolutions(network)
        return network

    def task(self) -> Task:
        """Return what the training loop needs."""
        return Task(
            self.batch,
            self.loss,
            self.evaluate,
            normalizer=lambda part: known_flow(part.valid),
            best=f'{self.name}_epe_px',
            lowest_is_best=True,
            save=self.save,
            unreadable=lambda: self.pairs.unreadable,
        )

    def batch(
        self, random: np.random.Generator, size: int, places: Sequence[int] | None = None
    ) -> _Batch:
        """
        Draw and augment the pairs of one step.

        :param size: of the whole batch; its last ones are rendered.
        :param places: those that are wanted; None for all.
        """
        sources = generators(random, size)
        pairs = [
            self._pair(sources[place], rendered=place >= size - self.recipe.rendered)
            for place in (range(size) if places is None else places)
        ]
        return _Batch(
            images_to_tensor([pair.first for pair in pairs]),
            images_to_tensor([pair.second for pair in pairs]),
            torch.stack([flow_to_tensor(pair.flow) for pair in pairs]),
            torch.stack([torch.from_numpy(pair.valid)[None] for pair in pairs]),
        )

    def _pair(self, random: np.random.Generator, *, rendered: bool) -> FlowPair:
        recipe = self.recipe
        crop = Crop(recipe.crop_height, recipe.crop_width, 1.0, recipe.largest_scale)
        pair = (self.drives if rendered else self.pairs).draw(random)
        return augment_pair(random, pair, crop)

    def loss(self, network: nn.Module, part: _Batch, known: Tensor) -> Tensor:
        """
        Return what a part of a batch adds to its multi-scale end-point error.

        :param known: `known_flow` of the batch.
        """
        assert isinstance(network, FlowNet)
        device = next(network.parameters()).device
        images = torch.cat([part.first, part.second]).to(device)
        values = preprocess(images, PREPROCESSING).contiguous(memory_format=torch.channels_last)
        flows = network.levels(*values.chunk(2))
        truth, valid = part.flow.to(device) / FLOW_SCALE, part.valid.to(device)
        return flow_loss(flows, truth, valid, known, summed=self.recipe.error == 'sum')

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the end-point errors on pairs that nothing trains on."""
        copy = folded(network, self.card)
        estimator = FlowEstimator(copy, self.card, self.placement)
        return {
            f'{name}_epe_px': round(mean_error(estimator, pairs), 4)
            for name, pairs in self.held_out.items()
        }

    def save(self, path: Path, network: nn.Module, scores: Mapping[str, float]) -> None:
        """Write a weights file; its card holds the recipe and the scores."""
        save_trained(path, network, self.card, self.recipe, scores)


def mean_error(estimator: FlowEstimator, pairs: Sequence[FlowPair]) -> float:
    """Return the mean end-point error over every known pixel of the pairs."""
    error = EndPointError()
    for pair in pairs:
        error.add(estimator.estimate(pair.first, pair.second), pair.flow, pair.valid)
    return error.mean
