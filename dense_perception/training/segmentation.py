"""Recipe of the segmentation weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from dense_perception.data.augment import augment_labelled, Crop
from dense_perception.data.segmentation import LabelledFolder, LabelledImage
from dense_perception.data.sources import Cached, RenderedImages
from dense_perception.labels import CAMVID, CITYSCAPES, conversion
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.networks.context import FrontEndContext
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.settings import setting
from dense_perception.training.loop import LoopSettings, Task
from dense_perception.training.losses import merge_classes, segmentation_loss
from dense_perception.weights.checkpoint import Card, Preprocessing
from dense_perception.weights.narrow_vgg import read_narrow_vgg
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

VALIDATION_SEED = 900_000  # first seed of the rendered drives that nothing trains on


@dataclass(frozen=True)
class SegmentationRecipe(LoopSettings):
    """How the front end and its context module are trained."""

    width: str = setting('compact', 'shape of the front end', choices=('compact', 'full'))
    layers: int = setting(10, 'layers of the context module: 7, 8 or 10', low=7, high=10)
    crop_height: int = setting(288, 'pixels', low=64, high=4096)
    crop_width: int = setting(384, 'pixels', low=64, high=4096)
    smallest_scale: float = setting(0.5, 'least enlargement', low=0.1, high=1.0)
    largest_scale: float = setting(2.0, 'greatest enlargement', low=1.0, high=4.0)
    rendered: int = setting(2, 'samples of a batch that are rendered', low=0, high=4096)
    drives: int = setting(100, 'rendered drives', low=1, high=1000)
    rarity: float = setting(0.4, 'power of inverse frequency in class weights', low=0.0, high=1.0)
    front_end_share: float = setting(0.4, "weight of the front end's own loss", low=0.0, high=1.0)


@dataclass(frozen=True)
class _Batch:
    images: Tensor  # (N, 3, H, W) uint8, real ones first
    coarse: Tensor  # (real ones, H, W) int64, CamVid classes
    fine: Tensor  # (rendered ones, H, W) int64, Cityscapes classes


class RoadScenes:
    """
    Train 19 classes on real scenes with 11 labels and rendered ones with all 19.

    A real scene's label says that one of several classes is right: car, for example, that it is
    car, truck, bus or train. Rendered scenes tell those apart.
    """

    def __init__(
        self, recipe: SegmentationRecipe, real: LabelledFolder, validation: LabelledFolder
    ) -> None:
        self.recipe = recipe
        self.real = Cached(real)
        self.validation = Cached(validation)
        self.rendered = Cached(RenderedImages(0, recipe.drives))
        self.held_out = Cached(RenderedImages(VALIDATION_SEED, 10, frames=4))
        self.table = torch.from_numpy(conversion(CITYSCAPES, CAMVID)[: len(CITYSCAPES)].copy())
        self.coarse_weights = class_weights(self.real, len(CAMVID), recipe.rarity)
        some = self.rendered[:: max(1, len(self.rendered) // 100)]
        self.fine_weights = class_weights(some, len(CITYSCAPES), recipe.rarity)
        self.card = Card(
            network='front_end_context',
            arguments={
                'classes': len(CITYSCAPES),
                'width': recipe.width,
                'layers': recipe.layers,
            },
            preprocessing=Preprocessing(),
            label_set=CITYSCAPES.name,
        )

    def task(self) -> Task:
        """Return what the training loop needs."""
        return Task(self.batch, self.loss, self.evaluate)

    def batch(self, random: np.random.Generator, size: int) -> _Batch:
        """Draw and augment the samples of one step."""
        recipe = self.recipe
        crop = Crop(
            recipe.crop_height, recipe.crop_width, recipe.smallest_scale, recipe.largest_scale
        )
        sources = [self.real] * (size - recipe.rendered) + [self.rendered] * recipe.rendered
        samples = [
            augment_labelled(random, source[int(random.integers(len(source)))], crop)
            for source in sources
        ]
        labels = torch.from_numpy(np.stack([sample.labels for sample in samples])).long()
        images = images_to_tensor([sample.image for sample in samples])
        real = size - recipe.rendered
        return _Batch(images, labels[:real], labels[real:])

    def loss(self, network: nn.Module, batch: _Batch) -> Tensor:
        """Return the loss of one batch: of the whole, and a share of the front end's own."""
        assert isinstance(network, FrontEndContext)
        device = next(network.parameters()).device
        images = preprocess(batch.images.to(device), self.card.preprocessing)
        front_end = network.front_end(images.contiguous(memory_format=torch.channels_last))
        # On a CPU, PyTorch 2.14's bfloat16 gradient of a dilated convolution of 19 channels gives
        # nan or crashes; the context module is small enough to be trained in float32.
        with torch.autocast(device.type, enabled=False):
            whole = network.context(front_end.float())
        share = self.recipe.front_end_share
        return self._loss(whole, batch) + share * self._loss(front_end, batch)

    def _loss(self, scores: Tensor, batch: _Batch) -> Tensor:
        # Every second pixel carries the loss, at an offset that differs from step to step.
        row, column = torch.randint(2, (2,)).tolist()
        scores = F.interpolate(
            scores.float().contiguous(memory_format=torch.channels_last),
            scale_factor=4.0,
            mode='bilinear',
            align_corners=False,
        )
        count = len(batch.coarse)
        real, rendered = scores[:count], scores[count:]
        total = scores.new_zeros(())
        for part, labels, weights, table in (
            (real, batch.coarse, self.coarse_weights, self.table),
            (rendered, batch.fine, self.fine_weights, None),
        ):
            if not len(part):
                continue
            logs = (
                F.log_softmax(part, 1)
                if table is None
                else merge_classes(part, table.to(part.device), len(weights))
            )
            target = labels[:, row::2, column::2].to(part.device)
            weight = weights.to(part.device)
            total = total + segmentation_loss(logs, target, weight) * len(part) / len(scores)
        return total

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Score on the validation scenes (11 classes) and on rendered drives (19)."""
        placement = choose_placement(self.recipe.device, self.recipe.precision)
        # The copy is placed: placing converts, and training goes on with float32.
        copy = self.card.build()
        copy.load_state_dict(network.state_dict())
        segmenter = Segmenter(copy, self.card, placement)
        real, rendered = ConfusionMatrix(len(CAMVID)), ConfusionMatrix(len(CITYSCAPES))
        table = conversion(CITYSCAPES, CAMVID)
        for sample in self.validation:
            real.add(table[segmenter.segment(sample.image).labels], sample.labels)
        for sample in self.held_out:
            rendered.add(segmenter.segment(sample.image).labels, sample.labels)
        return {
            'camvid_val_mean_iou': round(real.mean_iou, 4),
            'rendered_mean_iou': round(rendered.mean_iou, 4),
        }


def class_weights(samples: Sequence[LabelledImage], classes: int, rarity: float) -> Tensor:
    """
    Weight classes by a power of their inverse frequency, so that the mean over pixels is 1.

    :param rarity: 0 weighs all alike, 1 gives every class the same say in total.
    """
    counts = np.zeros(256, np.int64)
    for sample in samples:
        counts += np.bincount(sample.labels.reshape(-1), minlength=256)
    share = np.maximum(counts[:classes], 1) / max(1, counts[:classes].sum())
    weights = np.clip(share, 1e-4, None) ** -rarity
    return torch.from_numpy(weights / (weights * share).sum()).float()


def start(card: Card, initial: Path | None) -> nn.Module:
    """
    Build the network, its front end filled from a narrow VGG where one is given.

    :raises WeightsError: the file cannot be used.
    """
    network = card.build()
    if initial is not None:
        assert isinstance(network, FrontEndContext)
        tensors = read_narrow_vgg(initial, card.preprocessing)
        missing = network.front_end.load_state_dict(tensors, strict=False)
        assert not missing.unexpected_keys
    return network


cv2.setNumThreads(1)  # samples are made in threads of our own
