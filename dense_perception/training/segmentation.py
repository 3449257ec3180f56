"""Recipe of the segmentation weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from dense_perception.data.augment import augment_labelled, Crop
from dense_perception.data.segmentation import LabelledFolder, LabelledImage
from dense_perception.data.sources import Cached, RenderedImages
from dense_perception.labels import CAMVID, CITYSCAPES, conversion, UNLABELLED
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.frontend import STRIDE
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.settings import setting
from dense_perception.training.batch_norm import (
    folded,
    keep_function,
    normalize_convolutions,
)
from dense_perception.training.initial import fill_from, Initial
from dense_perception.training.labelling import (
    class_weights,
    context_scores,
    enlarged,
    LabellingSettings,
)
from dense_perception.training.losses import merge_classes, overlap_loss, segmentation_costs
from dense_perception.training.scenes import draw, Scenes, VALIDATION_SEED
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F


@dataclass(frozen=True)
class SegmentationRecipe(LabellingSettings):
    """How the front end and its context module are trained."""

    layers: int = setting(10, 'layers of the context module: 7, 8 or 10', low=7, high=10)
    crop_height: int = setting(288, 'pixels', low=64, high=4096)
    crop_width: int = setting(384, 'pixels', low=64, high=4096)
    rendered: int = setting(2, 'samples of a batch that are rendered', low=0, high=4096)
    drives: int = setting(100, 'rendered drives', low=1, high=1000)


@dataclass(frozen=True)
class _Batch:
    images: Tensor  # (N, 3, H, W) uint8, real ones first
    coarse: Tensor  # (real ones, H, W) int64, CamVid classes
    fine: Tensor  # (rendered ones, H, W) int64, Cityscapes classes
    offset: tuple[int, int]  # row and column of the first pixel, of every second, that counts


class RoadScenes(Scenes[SegmentationRecipe]):
    """
    Train 19 classes on real scenes with 11 labels and rendered ones with all 19.

    A real scene's label says that one of several classes is right: car, for example, that it is
    car, truck, bus or train. Rendered scenes tell those apart.
    """

    best = 'real_mean_iou'

    def __init__(
        self, recipe: SegmentationRecipe, real: LabelledFolder, validation: LabelledFolder
    ) -> None:
        card = Card(
            network='front_end_context',
            arguments={
                'classes': len(CITYSCAPES),
                'width': recipe.width,
                'layers': recipe.layers,
            },
            preprocessing=Preprocessing(),
            label_set=CITYSCAPES.name,
        )
        super().__init__(recipe, card)
        self.real = self.samples(real, 0.5)
        self.validation = Cached(validation)
        self.rendered = self.samples(RenderedImages(0, recipe.drives), 0.5)
        # Enough drives that each of the 19 classes is seen: some have no train, for example.
        self.held_out = Cached(RenderedImages(VALIDATION_SEED, 40, frames=3, spacing=80))
        self.table = torch.from_numpy(conversion(CITYSCAPES, CAMVID)[: len(CITYSCAPES)].copy())
        self.coarse_weights = class_weights(self.real.readable(), len(CAMVID), recipe.rarity)
        some = self.rendered.readable(max(1, len(self.rendered) // 100))
        self.fine_weights = class_weights(some, len(CITYSCAPES), recipe.rarity)

    def start(self, initial: Initial | None = None) -> nn.Module:
        """
        Return the network to train.

        :param initial: weights to start from: a narrow VGG, or a network to go on with.
        :raises WeightsError: they do not fit.
        """
        network = self.fresh_network()
        assert isinstance(network, FrontEndContext)
        fresh = list(network.state_dict())
        if initial is not None:
            fresh = fill_from(network, initial, CITYSCAPES)
        if self.recipe.batch_norm:
            names = normalize_convolutions(network)
            known = [
                name.removeprefix('front_end.') for name in names if f'{name}.weight' not in fresh
            ]
            some = self.batch(np.random.default_rng(self.recipe.seed), 16).images
            keep_function(network.front_end, known, preprocess(some, self.card.preprocessing))
        return network

    def unreadable(self) -> int:
        """Return how many real images could not be read so far; rendered ones always can."""
        return self.real.unreadable

    def batch(
        self, random: np.random.Generator, size: int, places: Sequence[int] | None = None
    ) -> _Batch:
        """
        Draw and augment the samples of one step.

        :param size: of the whole batch; its last ones are rendered.
        :param places: those that are wanted; None for all.
        """
        real = size - self.recipe.rendered
        offset = (int(random.integers(2)), int(random.integers(2)))
        wanted = sorted(range(size) if places is None else places)
        samples = draw(
            random, size, wanted, lambda source, place: self._sample(source, place >= real)
        )
        labels = torch.from_numpy(np.stack([sample.labels for sample in samples])).long()
        images = images_to_tensor([sample.image for sample in samples])
        count = sum(place < real for place in wanted)
        return _Batch(images, labels[:count], labels[count:], offset)

    def _sample(self, random: np.random.Generator, rendered: bool) -> LabelledImage:
        recipe = self.recipe
        crop = Crop(
            recipe.crop_height, recipe.crop_width, recipe.smallest_scale, recipe.largest_scale
        )
        sample = (self.rendered if rendered else self.real).draw(random)
        return augment_labelled(random, sample, crop, blur=recipe.blur)

    def normalizer(self, part: _Batch) -> Tensor:
        """Return weight of the labelled pixels and number, of real samples and rendered ones."""
        return torch.tensor(
            [
                number
                for labels, weights in (
                    (part.coarse, self.coarse_weights),
                    (part.fine, self.fine_weights),
                )
                for number in (_weight(_every_second(labels, part), weights), len(labels))
            ],
            dtype=torch.float64,
        )

    def loss(self, network: nn.Module, part: _Batch, total: Tensor | None = None) -> Tensor:
        """
        Return the loss of a batch, or what a part adds to it.

        It is that of the whole network, and a share of the front end's own.

        :param total: `normalizer` of the batch; None where the part is all of it.
        """
        assert isinstance(network, FrontEndContext)
        whole, front_end = context_scores(network, self.values(network, part.images))
        total = self.normalizer(part) if total is None else total
        share = self.recipe.front_end_share
        return self._loss(whole, part, total) + share * self._loss(front_end, part, total)

    def _loss(self, scores: Tensor, part: _Batch, total: Tensor) -> Tensor:
        # Every second pixel carries the loss, at an offset that differs from step to step.
        scores = enlarged(scores, STRIDE // 2)
        count = len(part.coarse)
        coarse_weight, coarse_samples, fine_weight, fine_samples = total.tolist()
        samples = coarse_samples + fine_samples
        loss = scores.new_zeros(())
        if count:
            logs = merge_classes(scores[:count], self.table, len(CAMVID))
            labels = _every_second(part.coarse, part)
            costs = segmentation_costs(logs, labels, self.coarse_weights)
            loss = loss + costs / max(coarse_weight, 1e-9) * coarse_samples / samples
            loss = loss + self._overlap(logs, labels) / samples
        if len(part.fine):
            logs = F.log_softmax(scores[count:], 1)
            labels = _every_second(part.fine, part)
            costs = segmentation_costs(logs, labels, self.fine_weights)
            loss = loss + costs / max(fine_weight, 1e-9) * fine_samples / samples
            loss = loss + self._overlap(logs, labels) / samples
        return loss

    def _overlap(self, logs: Tensor, labels: Tensor) -> Tensor | float:
        if not self.recipe.overlap:
            return 0.0
        return self.recipe.overlap * overlap_loss(logs, labels) * len(labels)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Score on the validation scenes (11 classes) and on rendered drives (19)."""
        # The copy is placed: placing converts, and training goes on with float32.
        copy = folded(network, self.card)
        segmenter = Segmenter(copy, self.card, self.placement)
        real, rendered = ConfusionMatrix(len(CAMVID)), ConfusionMatrix(len(CITYSCAPES))
        table = conversion(CITYSCAPES, CAMVID)
        for sample in self.validation:
            real.add(table[segmenter.segment(sample.image).labels], sample.labels)
        for sample in self.held_out:
            rendered.add(segmenter.segment(sample.image).labels, sample.labels)
        return {
            'real_mean_iou': round(real.mean_iou, 4),
            'rendered_mean_iou': round(rendered.mean_iou, 4),
        }


def _every_second(labels: Tensor, part: _Batch) -> Tensor:
    row, column = part.offset
    return labels[:, row::2, column::2]


def _weight(labels: Tensor, weights: Tensor) -> float:
    """Sum the class weights of the labelled pixels."""
    return float(weights[labels[labels != UNLABELLED]].sum(dtype=torch.float64))
