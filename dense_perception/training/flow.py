"""Recipe of the flow weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from dense_perception.arrays import Image
from dense_perception.data.augment import augment_pair, Crop
from dense_perception.data.flow import FlowPair
from dense_perception.data.flying_chairs import ChairsShape
from dense_perception.data.sources import Cached, ChairsPairs, RenderedPairs
from dense_perception.metrics.flow import EndPointError
from dense_perception.networks.flownet import FLOW_SCALE, FlowNet
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.tensors import flow_to_tensor, images_to_tensor
from dense_perception.settings import setting
from dense_perception.training.batch_norm import folded, normalize_convolutions
from dense_perception.training.losses import flow_loss, known_flow
from dense_perception.training.scenes import draw, Scenes, SceneSettings, VALIDATION_SEED
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import torch
from torch import nn, Tensor

# FlowNetPytorch's mean of RGB / 255, in grey levels.
PREPROCESSING = Preprocessing('rgb', (0.45 * 255, 0.432 * 255, 0.411 * 255), 255.0)


@dataclass(frozen=True)
class FlowRecipe(SceneSettings):
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


class MovingScenes(Scenes[FlowRecipe]):
    """Train flow on image pairs and rendered drives."""

    lowest_is_best = True

    def __init__(self, recipe: FlowRecipe, pairs: Pairs) -> None:
        """
        Lay out the data.

        :raises SettingError: no such device, or one that has not the precision.
        """
        super().__init__(recipe, Card(recipe.network, {'width': recipe.width}, PREPROCESSING))
        self.best = f'{pairs.name}_epe_px'
        self.pairs = self.samples(pairs.training, 0.5)
        self.drives = self.samples(RenderedPairs(0, recipe.drives), 0.5)
        self.held_out = {pairs.name: Cached(pairs.held_out)}
        if recipe.rendered:
            self.held_out['drives'] = Cached(RenderedPairs(VALIDATION_SEED, 10, pairs=3))

    def start(self) -> nn.Module:
        """Return the network to train, with fresh weights."""
        network = self.fresh_network()
        if self.recipe.batch_norm:
            normalize_convolutions(network)
        return network

    def unreadable(self) -> int:
        """Return how many pairs could not be read so far; rendered ones always can."""
        return self.pairs.unreadable

    def batch(
        self, random: np.random.Generator, size: int, places: Sequence[int] | None = None
    ) -> _Batch:
        """
        Draw and augment the pairs of one step.

        :param size: of the whole batch; its last ones are rendered.
        :param places: those that are wanted; None for all.
        """
        real = size - self.recipe.rendered
        pairs = draw(random, size, places, lambda source, place: self._pair(source, place >= real))
        return _Batch(
            images_to_tensor([pair.first for pair in pairs]),
            images_to_tensor([pair.second for pair in pairs]),
            torch.stack([flow_to_tensor(pair.flow) for pair in pairs]),
            torch.stack([torch.from_numpy(pair.valid)[None] for pair in pairs]),
        )

    def _pair(self, random: np.random.Generator, rendered: bool) -> FlowPair:
        recipe = self.recipe
        crop = Crop(recipe.crop_height, recipe.crop_width, 1.0, recipe.largest_scale)
        pair = (self.drives if rendered else self.pairs).draw(random)
        return augment_pair(random, pair, crop, blur=recipe.blur)

    def normalizer(self, part: _Batch) -> Tensor:
        """Return the number of pixels whose flow is known, and of samples."""
        return known_flow(part.valid)

    def loss(self, network: nn.Module, part: _Batch, total: Tensor) -> Tensor:
        """
        Return what a part of a batch adds to its multi-scale end-point error.

        :param total: `normalizer` of the batch.
        """
        assert isinstance(network, FlowNet)
        values = self.values(network, torch.cat([part.first, part.second]))
        flows = network.levels(*values.chunk(2))
        truth, valid = part.flow.to(values.device) / FLOW_SCALE, part.valid.to(values.device)
        return flow_loss(flows, truth, valid, total, summed=self.recipe.error == 'sum')

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the end-point errors on pairs that nothing trains on."""
        copy = folded(network, self.card)
        estimator = FlowEstimator(copy, self.card, self.placement)
        return {
            f'{name}_epe_px': round(mean_error(estimator, pairs), 4)
            for name, pairs in self.held_out.items()
        }


def mean_error(estimator: FlowEstimator, pairs: Sequence[FlowPair]) -> float:
    """Return the mean end-point error over every known pixel of the pairs."""
    error = EndPointError()
    for pair in pairs:
        error.add(estimator.estimate(pair.first, pair.second), pair.flow, pair.valid)
    return error.mean
