"""Training of DeepMask and SharpMask on images with objects told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dense_perception.data.objects import (
    Box,
    boxes,
    cut_image,
    cut_mask,
    ObjectImage,
    ObjectImages,
    Window,
    window_around,
    window_beside,
)
from dense_perception.data.segmentation import LabelledFolder
from dense_perception.data.sources import RenderedImages
from dense_perception.errors import InputError, SettingError, WeightsError
from dense_perception.labels import CITYSCAPES
from dense_perception.networks.masks import Masks, PATCH, SharpMask, WINDOW
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.settings import setting
from dense_perception.training.loop import generators, Task
from dense_perception.training.saving import save_trained
from dense_perception.training.schedule import LoopSettings
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

# The released code multiplies the mask's gradient by the 32 samples of its batch.
MASK_WEIGHT = 32.0
MASK_SIDES = {'deep_mask': 112, 'sharp_mask': 160}  # pixels that a mask is compared in
THRESHOLD = 0.2  # probability from which a pixel belongs to a mask; released code


@dataclass(frozen=True)
class MasksRecipe(LoopSettings):
    """How a mask network is trained."""

    network: str = setting('deep_mask', 'which network', choices=('deep_mask', 'sharp_mask'))
    width: str = setting('compact', 'width of its layers', choices=('compact', 'full'))
    trunk: str = setting('resnet50', 'what sees the image', choices=('resnet50', 'vgg_a'))
    drives: int = setting(10, 'rendered drives, twelve images each', low=0, high=1000)


# Classes of which each connected part counts as an object.
OBJECT_CLASSES = {
    'camvid': ('car', 'pedestrian', 'bicyclist'),
    'cityscapes': (
        'person',
        'rider',
        'car',
        'truck',
        'bus',
        'train',
        'motorcycle',
        'bicycle',
    ),
}


def street_objects(labelled: LabelledFolder, drives: int = 0) -> Sequence[ObjectImage]:
    """
    Return the objects of labelled streets, and of rendered ones after them.

    :param labelled: with a label set in OBJECT_CLASSES.
    :param drives: rendered drives.
    """
    label_set = labelled.label_set
    real = ObjectImages(labelled, label_set, OBJECT_CLASSES[label_set.name])
    rendered = ObjectImages(RenderedImages(0, drives), CITYSCAPES, OBJECT_CLASSES[CITYSCAPES.name])
    return [*real, *rendered]


@dataclass(frozen=True)
class MaskBatch:
    """Patches, each with a mask to learn or with whether an object stands in its middle."""

    patches: Tensor  # (N, 3, 192, 192) uint8
    masks: Tensor  # (N, side, side) bool, of the 160 pixels in the middle
    of_mask: Tensor  # (N,) bool; False: it teaches the score
    present: Tensor  # (N,) bool; whether a whole object of the right size is in the middle


class ObjectWindows:
    """Train the masks and scores of windows; Pinheiro et al. (2015), sections 3.2 and 3.3."""

    def __init__(
        self,
        recipe: MasksRecipe,
        images: Sequence[ObjectImage],
        held_out: Sequence[ObjectImage],
    ) -> None:
        """
        Find the objects.

        :param images: those to learn from.
        :param held_out: those to evaluate on.
        :raises InputError: none of the images has an object large enough.
        """
        self.recipe = recipe
        self.side = MASK_SIDES[recipe.network]
        self._images = _with_boxes(images)
        self._held_out = _with_boxes(held_out)
        self.card = Card(
            recipe.network, {'width': recipe.width, 'trunk': recipe.trunk}, Preprocessing()
        )

    def start(self, initial: Path | None) -> nn.Module:
        """
        Build the network; SharpMask is refined upon a DeepMask, which stays as it is.

        :param initial: weights of the DeepMask that SharpMask begins with.
        :raises SettingError: SharpMask is given none.
        :raises WeightsError: they are not of a DeepMask of the recipe's width and trunk.
        """
        torch.manual_seed(self.recipe.seed)
        network = self.card.build()
        if not isinstance(network, SharpMask):
            return network
        if initial is None:
            raise SettingError(
                'sharp_mask refines a trained deep_mask; initial must name its file'
            )
        source, card = load_weights(initial)
        if card.network != 'deep_mask' or dict(card.arguments) != dict(self.card.arguments):
            raise WeightsError(
                f'{initial} holds {card.network} {dict(card.arguments)}; deep_mask '
                f'{dict(self.card.arguments)} is needed'
            )
        network.load_state_dict(source.state_dict(), strict=False)
        network.requires_grad_(False)
        for module in network.refinement():
            module.requires_grad_(True)
        return network

    def task(self) -> Task:
        """Return what the training loop needs."""
        return Task(self.batch, self.loss, self.evaluate, best='mask_iou', save=self.save)

    def save(self, path: Path, network: nn.Module, scores: Mapping[str, float]) -> None:
        """Write weights that a proposer loads."""
        save_trained(path, network, self.card, self.recipe, scores)

    def batch(
        self, random: np.random.Generator, size: int, places: Sequence[int] | None = None
    ) -> MaskBatch:
        """Draw the windows of one step: half teach the mask, half the score."""
        sources = generators(random, size)
        return _collated([self._draw(sources[place]) for place in places or range(size)])

    def loss(self, network: nn.Module, batch: MaskBatch) -> Tensor:
        """Return the mean loss of the batch's samples."""
        device = next(network.parameters()).device
        values = preprocess(batch.patches.to(device), self.card.preprocessing)
        found = network(values.contiguous(memory_format=torch.channels_last))
        return mask_loss(found, batch)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the mean IoU of held-out masks, and the share of scores on the right side."""
        device = next(network.parameters()).device
        network.eval()
        ious, right = [], []
        for index in range(len(self._held_out)):
            random = np.random.default_rng((1, index))
            for of_mask in (True, False):
                batch = _collated([self._sample(random, *self._held_out[index], of_mask)])
                with torch.inference_mode():
                    values = preprocess(batch.patches.to(device), self.card.preprocessing)
                    masks, scores = network(values)
                if of_mask:
                    ious.append(mask_iou(masks, batch.masks.to(device)))
                else:
                    right.append(float((scores > 0).cpu() == batch.present))
        return {
            'mask_iou': round(float(np.mean(ious)), 4),
            'score_accuracy': round(float(np.mean(right)), 4),
        }

    def _draw(self, random: np.random.Generator) -> MaskBatch:
        image, present = self._images[int(random.integers(len(self._images)))]
        of_mask = self.recipe.network == 'sharp_mask' or random.random() < 0.5
        return self._sample(random, image, present, of_mask)

    def _sample(
        self,
        random: np.random.Generator,
        image: ObjectImage,
        present: Sequence[Box],
        of_mask: bool,
    ) -> MaskBatch:
        box = present[int(random.integers(len(present)))]
        window = window_around(random, box, PATCH)
        beside = None
        if not of_mask and random.random() < 0.5:
            size = (image.objects.shape[0], image.objects.shape[1])
            beside = window_beside(random, present, size, PATCH)
        window = beside or window
        inner = Window(window.column, window.row, window.side * WINDOW / PATCH)
        patch = cut_image(image.image, window, PATCH)
        mask = cut_mask(image.objects == box.number, inner, self.side)
        if random.random() < 0.5:
            patch, mask = patch[:, ::-1], mask[:, ::-1]
        return MaskBatch(
            images_to_tensor([patch]),
            torch.from_numpy(mask.copy())[None],
            torch.tensor([of_mask]),
            torch.tensor([beside is None]),
        )


def mask_loss(found: Masks, batch: MaskBatch) -> Tensor:
    """
    Soft margin loss of masks and scores, log(1 + exp(-y f)), the mean over samples.

    Pinheiro et al. (2015), section 3.2: each sample teaches the mask or the score.
    """
    of_mask, present = batch.of_mask.to(found.scores.device), batch.present.to(found.scores.device)
    side = batch.masks.shape[-1]
    logits = F.interpolate(
        found.masks[of_mask][:, None].float(), (side, side), mode='bilinear', align_corners=False
    )[:, 0]
    truth = batch.masks.to(logits.device)[of_mask].float() * 2 - 1
    masks = F.softplus(-truth * logits).mean((1, 2)).sum()
    signs = present[~of_mask].float() * 2 - 1
    scores = F.softplus(-signs * found.scores[~of_mask].float()).sum()
    return (MASK_WEIGHT * masks + scores) / len(of_mask)


def mask_iou(masks: Tensor, truth: Tensor) -> float:
    """
    Return the mean intersection over union of masks.

    :param masks: (N, h, w) before the sigmoid, enlarged to the size of the truth.
    :param truth: (N, H, W) bool.
    """
    size = (truth.shape[1], truth.shape[2])
    larger = F.interpolate(masks[:, None].float(), size, mode='bilinear', align_corners=False)
    chosen = larger[:, 0].sigmoid() > THRESHOLD
    common = (chosen & truth).sum((1, 2))
    return float((common / (chosen | truth).sum((1, 2)).clamp_min(1)).mean())


def _with_boxes(images: Sequence[ObjectImage]) -> list[tuple[ObjectImage, list[Box]]]:
    found = [(image, boxes(image.objects)) for image in images]
    kept = [(image, present) for image, present in found if present]
    if not kept:
        raise InputError(f'none of {len(images)} images has an object of 100 pixels or more')
    return kept


def _collated(samples: Sequence[MaskBatch]) -> MaskBatch:
    return MaskBatch(
        torch.cat([sample.patches for sample in samples]),
        torch.cat([sample.masks for sample in samples]),
        torch.cat([sample.of_mask for sample in samples]),
        torch.cat([sample.present for sample in samples]),
    )
