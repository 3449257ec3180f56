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
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.tensors import flow_to_tensor, images_to_tensor, preprocess
from dense_perception.settings import setting
from dense_perception.training.loop import LoopSettings, Task
from dense_perception.training.losses import flow_loss
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


@dataclass(frozen=True)
class _Batch:
    first: Tensor  # (N, 3, H, W) uint8
    second: Tensor
    flow: Tensor  # (N, 2, H, W) float32, pixels
    valid: Tensor  # (N, 1, H, W) bool


class MovingScenes:
    """Train flow on chairs-style pairs and rendered drives."""

    def __init__(self, recipe: FlowRecipe, pictures: Sequence[Image]) -> None:
        """
        Lay out the data.

        :param pictures: photographs for the chairs-style pairs; every tenth is held out.
        """
        self.recipe = recipe
        shape = ChairsShape(320, 384, fewest=8, most=16)
        training = [picture for index, picture in enumerate(pictures) if index % 10]
        self.chairs = Cached(ChairsPairs(0, recipe.chairs, training, shape))
        self.held_out_chairs = Cached(ChairsPairs(VALIDATION_SEED, 50, pictures[::10], shape))
        self.drives = Cached(RenderedPairs(0, recipe.drives))
        self.held_out_drives = Cached(RenderedPairs(VALIDATION_SEED, 10, pairs=3))
        self.card = Card(recipe.network, {'width': recipe.width}, PREPROCESSING)

    def task(self) -> Task:
        """Return what the training loop needs."""
        return Task(self.batch, self.loss, self.evaluate)

    def batch(self, random: np.random.Generator, size: int) -> _Batch:
        """Draw and augment the pairs of one step."""
        recipe = self.recipe
        crop = Crop(recipe.crop_height, recipe.crop_width, 1.0, recipe.largest_scale)
        sources = [self.chairs] * (size - recipe.rendered) + [self.drives] * recipe.rendered
        pairs = [
            augment_pair(random, source[int(random.integers(len(source)))], crop)
            for source in sources
        ]
        return _Batch(
            images_to_tensor([pair.first for pair in pairs]),
            images_to_tensor([pair.second for pair in pairs]),
            torch.stack([flow_to_tensor(pair.flow) for pair in pairs]),
            torch.stack([torch.from_numpy(pair.valid)[None] for pair in pairs]),
        )

    def loss(self, network: nn.Module, batch: _Batch) -> Tensor:
        """Return the multi-scale end-point error of one batch."""
        assert isinstance(network, FlowNet)
        device = next(network.parameters()).device
        images = torch.cat([batch.first, batch.second]).to(device)
        values = preprocess(images, PREPROCESSING).contiguous(memory_format=torch.channels_last)
        flows = network.levels(*values.chunk(2))
        return flow_loss(flows, batch.flow.to(device) / FLOW_SCALE, batch.valid.to(device))

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the end-point errors on pairs that nothing trains on."""
        placement = choose_placement(self.recipe.device, self.recipe.precision)
        copy = self.card.build()
        copy.load_state_dict(network.state_dict())
        estimator = FlowEstimator(copy, self.card, placement)
        return {
            'chairs_epe_px': round(mean_error(estimator, self.held_out_chairs), 4),
            'drives_epe_px': round(mean_error(estimator, self.held_out_drives), 4),
        }


def mean_error(estimator: FlowEstimator, pairs: Sequence[FlowPair]) -> float:
    """Return the mean end-point error over every known pixel of the pairs."""
    error = EndPointError()
    for pair in pairs:
        error.add(estimator.estimate(pair.first, pair.second), pair.flow, pair.valid)
    return error.mean
