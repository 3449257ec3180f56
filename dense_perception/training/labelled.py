"""Recipe for any segmentation network on images that carry one label set."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import cv2
from dense_perception.arrays import Labels
from dense_perception.data.augment import augment_labelled, Crop
from dense_perception.data.label_files import read_mapping
from dense_perception.data.segmentation import (
    labelled_folder,
    LabelledFolder,
    LabelledImage,
    MAPPING_FILE,
)
from dense_perception.errors import SettingError
from dense_perception.labels import UNLABELLED
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.networks import SEGMENTATION_NETWORKS
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
from dense_perception.training.losses import overlap_loss, segmentation_costs
from dense_perception.training.scenes import draw, Scenes
from dense_perception.weights.checkpoint import (
    Card,
    own_label_set,
    Preprocessing,
)
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

STAGES = ('joint', 'front_end', 'context')
_DECONVNET = 200  # least crop that fc6 fits, a multiple of 8
_MOST_WEIGHED = 200  # samples whose classes are counted


@dataclass(frozen=True)
class LabelledRecipe(LabellingSettings):
    """How a segmentation network is trained on images with labels."""

    network: str = setting(
        '',
        'a segmentation network; empty: that of the initial weights, else front_end_context',
        choices=('', *SEGMENTATION_NETWORKS),
    )
    stage: str = setting(
        'joint',
        'of front_end_context: the front end alone, the context module behind a front end that '
        'stays as it is, or both',
        choices=STAGES,
    )
    layers: int = setting(8, 'layers of the context module: 7, 8 or 10', low=7, high=10)
    large: bool = setting(False, 'the larger context module')
    at_once: bool = setting(
        False, 'fcn16s, fcn8s: scale the poolings to train all strides at once'
    )
    crop_height: int = setting(288, 'pixels with labels, a multiple of 8', low=8, high=4096)
    crop_width: int = setting(384, 'pixels with labels, a multiple of 8', low=8, high=4096)
    label_stride: int = setting(
        2, 'pixels from one label that counts to the next: 1, 2, 4 or 8', low=1, high=8
    )
    loss: str = setting(
        'mean',
        'over the labelled pixels of a batch, or their sum by sample',
        choices=('mean', 'sum'),
    )
    held_out: int = setting(
        5, 'where there is no split to score on: every which image is held out', low=2, high=1000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ('crop_height', 'crop_width'):
            if getattr(self, name) % STRIDE:
                raise SettingError(f'{name} is {getattr(self, name)}; it must be a multiple of 8')
        if self.label_stride not in (1, 2, 4, 8):
            raise SettingError(f'label_stride is {self.label_stride}; it must be 1, 2, 4 or 8')
        if self.network == 'deconvnet' and min(self.crop_height, self.crop_width) < _DECONVNET:
            raise SettingError(f'deconvnet needs crops of {_DECONVNET} pixels; 224 in the paper')
        if self.stage != 'joint' and self.network not in ('', 'front_end_context'):
            raise SettingError(f'stage is {self.stage}; {self.network} has the stage joint alone')


@dataclass(frozen=True)
class _Part:
    """Some of the samples of a batch."""

    images: Tensor  # (N, 3, H + 2 margin, W + 2 margin) uint8
    labels: Tensor  # (N, H / stride, W / stride) int64


class LabelledScenes(Scenes[LabelledRecipe]):
    """Train a segmentation network on labelled images."""

    best = 'mean_iou'

    def __init__(
        self,
        recipe: LabelledRecipe,
        training: LabelledFolder,
        validation: LabelledFolder,
        initial: Initial | None = None,
    ) -> None:
        """
        Lay out data and network.

        :param validation: is scored on, with the training's label set.
        :param initial: weights to start from.
        :raises SettingError: no such device, or the stage context without weights.
        :raises WeightsError: the initial weights do not fit.
        :raises InputError: too many samples cannot be read.
        """
        if recipe.stage == 'context' and initial is None:
            raise SettingError(
                'stage is context; it needs the weights of a front end to start from'
            )
        super().__init__(recipe, _card(recipe, initial, training))
        self.initial, self.label_set = initial, training.label_set
        self.training = self.samples(training, 0.75)
        self.validation = self.samples(validation, 0.25)
        network = self.card.build()
        self.margin = int(getattr(network, 'margin', 0))
        self.stride = int(getattr(network, 'stride', STRIDE))
        self.label_stride = min(recipe.label_stride, self.stride)
        self.weights = torch.ones(len(self.label_set))
        if recipe.rarity:
            some = self.training.readable(max(1, len(training) // _MOST_WEIGHED))
            self.weights = class_weights(some, len(self.label_set), recipe.rarity)

    def start(self) -> tuple[nn.Module, list[str]]:
        """
        Return the network to train, and the names of tensors that start from random numbers.

        :raises WeightsError: the initial weights do not fit.
        """
        network = self.fresh_network()
        fresh = list(network.state_dict())
        if self.initial is not None:
            context = self.recipe.stage == 'context'
            fresh = fill_from(network, self.initial, self.label_set, fresh_context=context)
        if self.recipe.stage == 'context':
            assert isinstance(network, FrontEndContext)
            network.front_end.requires_grad_(False)
        if self.recipe.batch_norm:
            self._normalize(network, fresh)
        return network, fresh

    def _normalize(self, network: nn.Module, fresh: Sequence[str]) -> None:
        names = normalize_convolutions(network)
        known = list(takewhile(lambda name: f'{name}.weight' not in fresh, names))
        some = self.batch(np.random.default_rng(self.recipe.seed), 8).images
        keep_function(network, known, preprocess(some, self.card.preprocessing))

    def unreadable(self) -> int:
        """Return how many of the images to train on could not be read so far."""
        return self.training.unreadable

    def batch(
        self, random: np.random.Generator, size: int, places: Sequence[int] | None = None
    ) -> _Part:
        """
        Draw and augment the samples of one step.

        :param size: of the whole batch.
        :param places: those that are wanted; None for all.
        """
        samples = draw(random, size, places, lambda source, _: self._sample(source))
        return _Part(
            images_to_tensor([sample.image for sample in samples]),
            torch.from_numpy(np.stack([sample.labels for sample in samples])).long(),
        )

    def _sample(self, random: np.random.Generator) -> LabelledImage:
        recipe, margin = self.recipe, self.margin
        crop = Crop(
            recipe.crop_height + 2 * margin,
            recipe.crop_width + 2 * margin,
            recipe.smallest_scale,
            recipe.largest_scale,
        )
        sample = self.training.draw(random)
        if margin:
            sample = _reflected(sample, round(margin / recipe.smallest_scale))
        sample = augment_labelled(random, sample, crop, blur=recipe.blur)
        inner = sample.labels[margin:, margin:][: recipe.crop_height, : recipe.crop_width]
        # Where every score has a label of its own, that is of its first pixel, as in the paper.
        step = self.label_stride
        row, column = random.integers(step, size=2) if step < self.stride else (0, 0)
        return replace(sample, labels=np.ascontiguousarray(inner[row::step, column::step]))

    def normalizer(self, part: _Part) -> Tensor:
        """Return what the loss divides by, labelled weight or samples; then the samples."""
        samples = torch.tensor(len(part.labels), dtype=torch.float64)
        if self.recipe.loss == 'sum':
            return torch.stack([samples, samples])
        known = part.labels[part.labels != UNLABELLED]
        return torch.stack([self.weights[known].sum(dtype=torch.float64), samples])

    def loss(self, network: nn.Module, part: _Part, total: Tensor) -> Tensor:
        """
        Return what a part of a batch adds to its loss.

        :param total: `normalizer` of the batch.
        """
        values = self.values(network, part.images)
        loss = torch.zeros((), device=values.device)
        divisor, samples = total.clamp_min(1e-9).tolist()
        for share, scores in self._scores(network, values):
            # Where labels count.
            logs = F.log_softmax(enlarged(scores, self.stride // self.label_stride), 1)
            costs = segmentation_costs(logs, part.labels, self.weights) / divisor
            if self.recipe.overlap:
                size = self.recipe.overlap * len(part.labels) / samples
                costs = costs + size * overlap_loss(logs, part.labels)
            loss = loss + share * costs
        return loss

    def _scores(self, network: nn.Module, values: Tensor) -> Iterable[tuple[float, Tensor]]:
        """Return scores and the weight of their loss."""
        if not isinstance(network, FrontEndContext):
            return [(1.0, network(values))]
        whole, front_end = context_scores(network, values)
        share = self.recipe.front_end_share if self.recipe.stage == 'joint' else 0.0
        return [(1.0, whole), (share, front_end)] if share else [(1.0, whole)]

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Score on the validation images."""
        # The copy is placed: placing converts, and training goes on with float32.
        copy = folded(network, self.card)
        segmenter = Segmenter(copy, self.card, self.placement)
        matrix = ConfusionMatrix(len(self.label_set))
        for sample in self.validation.readable():
            matrix.add(segmenter.segment(sample.image).labels, sample.labels)
        return {
            'mean_iou': round(matrix.mean_iou, 4),
            'pixel_accuracy': round(matrix.pixel_accuracy, 4),
        }


def own_folder(
    folder: Path, mapping: Path | None, held_out: int
) -> tuple[LabelledFolder, LabelledFolder]:
    """
    Open a folder of one's own: images to train on, and images to score on.

    It holds `images/` and `labels/` with pictures of the same names, or the folders `train/` and
    `val/` in each; without `val/`, every `held_out`-th image is scored on.

    :param mapping: says what the label pictures mean; None for `labels.yaml` in the folder.
    :raises InputError: a folder is missing or wrong, or an image has no labels.
    :raises SettingError: too few images.
    """
    coding, label_set = read_mapping(mapping or folder / MAPPING_FILE)

    def opened(split: str) -> LabelledFolder:
        images, labels = folder / 'images' / split, folder / 'labels' / split
        return replace(labelled_folder(images, labels, label_set), coding=coding)

    split = 'train' if (folder / 'images' / 'train').is_dir() else '.'
    if split == 'train' and (folder / 'images' / 'val').is_dir():
        return opened('train'), opened('val')
    return hold_out(opened(split), held_out)


def hold_out(samples: LabelledFolder, every: int) -> tuple[LabelledFolder, LabelledFolder]:
    """
    Return the images to train on, and every `every`-th to score on.

    :raises SettingError: none would be left.
    """
    held = samples.pairs[::every]
    if len(held) == len(samples):
        raise SettingError(f'{len(samples)} images are too few to hold one out')
    kept = tuple(pair for index, pair in enumerate(samples.pairs) if index % every)
    return replace(samples, pairs=kept), replace(samples, pairs=held)


def _card(recipe: LabelledRecipe, initial: Initial | None, training: LabelledFolder) -> Card:
    """Describe the network: as the recipe says, or as the initial weights do."""
    label_set, classes = training.label_set, len(training.label_set)
    preprocessing = Preprocessing() if initial is None else initial.preprocessing
    network, arguments = recipe.network, _arguments(recipe)
    if initial is not None and initial.card is not None and not network:
        network = initial.card.network
        if recipe.stage == 'joint' or network == 'front_end_context':
            arguments = {**initial.card.arguments, 'classes': classes}
    network = network or 'front_end_context'
    if recipe.stage != 'joint':
        if network not in ('front_end', 'front_end_context'):
            raise SettingError(f'stage is {recipe.stage}; {network} has the stage joint alone')
        if recipe.stage == 'front_end':
            network = 'front_end'
            arguments = {'classes': classes, 'width': arguments['width']}
        elif network == 'front_end':
            network, arguments = 'front_end_context', _arguments(recipe)
    if network == 'crf_rnn':
        arguments['color_scale'] = preprocessing.scale
    return Card(
        network, {'classes': classes, **arguments}, preprocessing, **own_label_set(label_set)
    )


def _arguments(recipe: LabelledRecipe) -> dict[str, Any]:
    """Return the settings that the recipe's network takes, as its card names them."""
    network = recipe.network or 'front_end_context'
    arguments: dict[str, Any] = {'width': recipe.width}
    if network == 'front_end_context':
        arguments |= {'layers': recipe.layers, 'large': recipe.large}
    elif network in ('fcn8s', 'fcn16s') or network == 'crf_rnn':
        arguments['at_once'] = recipe.at_once
    return arguments


def _reflected(sample: LabelledImage, margin: int) -> LabelledImage:
    """Return an image that goes on reflected, without labels there."""
    sides = (margin, margin, margin, margin)
    image = cv2.copyMakeBorder(sample.image, *sides, cv2.BORDER_REFLECT_101)
    labels: Labels = np.pad(sample.labels, margin, constant_values=UNLABELLED)
    return replace(sample, image=np.asarray(image, np.uint8), labels=labels)
