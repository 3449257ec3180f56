"""From an image to its labels."""

from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Confidence, Image, Labels
from dense_perception.errors import SettingError, WeightsError
from dense_perception.networks.frontend import STRIDE
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.labelling import (
    enlarge,
    Enlargement,
    label_pixels,
    label_scores,
)
from dense_perception.predictors.refinement import choose_refinement
from dense_perception.predictors.tensors import check_image, images_to_tensor, preprocess, resize
from dense_perception.predictors.tiling import Tiled
from dense_perception.weights.checkpoint import Card, load_weights
import numpy as np
import torch
from torch import nn, Tensor


@dataclass(frozen=True)
class Segmentation:
    """Labels of one image, on its own grid."""

    labels: Labels
    confidence: Confidence | None  # None where it was not asked for


class Segmenter:
    """
    Segmentation network with its device, precision and preprocessing.

    One score stands for `stride` x `stride` pixels; labels are the best of the scores interpolated
    to the image's size, in the convention that the weights' card names, and refined there.
    """

    def __init__(
        self,
        network: nn.Module,
        card: Card,
        placement: Placement,
        *,
        width: int = 0,
        refinement: str = 'none',
    ) -> None:
        """
        Take a network into use.

        :param network: takes (N, 3, H, W), gives scores for 8 x 8 pixels, or as its `stride` says.
        :param card: its preprocessing and label set.
        :param placement: where it runs.
        :param width: image columns at the network's input; 0 for the image's own.
        :param refinement: none, dense_crf or crf_rnn; what refines the scores of all pixels.
        :raises SettingError: there is no such refinement, or the network has it already.
        """
        if card.network == refinement:
            raise SettingError(f'{card.network} ends with that stage itself; set refinement: none')
        self.card, self.placement, self.width = card, placement, width
        self.label_set = card.labels()
        self.refine = choose_refinement(refinement, len(self.label_set), placement.device)
        if card.tile is not None:
            network = Tiled(network, card.tile, enlarge=card.upsampling == 'half_pixel')
        self.network = placement.place(network)
        self.margin = int(getattr(network, 'margin', 0))  # reflected pixels that it needs
        self.stride = int(getattr(network, 'stride', STRIDE))

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        device: str = 'auto',
        precision: str = 'auto',
        width: int = 0,
        refinement: str = 'none',
    ) -> 'Segmenter':
        """
        Load a weights file.

        :raises WeightsError: the file is damaged, or holds no segmentation network.
        :raises SettingError: device, precision or refinement is not to be had.
        """
        network, card = load_weights(path)
        if not card.label_set:
            raise WeightsError(f'{path}: {card.network} is no segmentation network')
        placement = choose_placement(device, precision)
        return cls(network, card, placement, width=width, refinement=refinement)

    @torch.inference_mode()
    def segment(self, image: Image, *, confidence: bool = False) -> Segmentation:
        """
        Label every pixel of an image.

        :param image: (H, W, 3) uint8 RGB.
        :param confidence: whether to give the probability of each label too.
        :raises InputError: the image has another form.
        """
        check_image(image)
        scores = self.scores(image)
        place = self._enlargement(scores, image)
        if self.refine is None:
            return Segmentation(*label_pixels(scores, place, confidence=confidence))
        colors = images_to_tensor([image]).to(scores.device)
        refined = self.refine(enlarge(scores, place), colors)
        return Segmentation(*label_scores(refined, confidence=confidence))

    @torch.inference_mode()
    def scores(self, image: Image) -> Tensor:
        """Return class scores, (1, C, rows, columns) float32."""
        height, width = image.shape[:2]
        if self.width and self.width != width:
            height, width = max(1, round(height * self.width / width)), self.width
        values = images_to_tensor([image]).to(self.placement.device)
        values = preprocess(resize(values, height, width), self.card.preprocessing)
        values = values.to(self.placement.dtype)
        if self.margin:
            values = _reflect(values, self.margin)
        scores: Tensor = self.network(values.contiguous(memory_format=torch.channels_last))
        return scores.float()

    def _enlargement(self, scores: Tensor, image: Image) -> Enlargement:
        """Return how the scores of an image become its pixels."""
        height, width = image.shape[:2]
        input_width = self.width or width
        input_height = max(1, round(height * input_width / width))
        rows, columns = scores.shape[2] * self.stride, scores.shape[3] * self.stride
        return Enlargement(
            round(rows * height / input_height),
            round(columns * width / input_width),
            height,
            width,
            self.card.upsampling,
            self.stride,
        )


def _reflect(values: Tensor, margin: int) -> Tensor:
    """Reflect an image outwards; back and forth where it is smaller than the margin."""
    for axis in (2, 3):
        places = np.pad(np.arange(values.shape[axis]), margin, mode='reflect')
        values = values.index_select(axis, torch.from_numpy(places).to(values.device))
    return values
