"""From an image to its labels."""

from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Confidence, Image, Labels
from dense_perception.errors import InputError, WeightsError
from dense_perception.networks.frontend import STRIDE
from dense_perception.networks.layers import zoom
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.tensors import images_to_tensor, preprocess, resize
from dense_perception.weights.checkpoint import Card, load_weights
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F


@dataclass(frozen=True)
class Segmentation:
    """Labels of one image, on its own grid."""

    labels: Labels
    confidence: Confidence | None  # None where it was not asked for


class Segmenter:
    """
    Segmentation network with its device, precision and preprocessing.

    One score stands for `stride` x `stride` pixels; labels are the best of the scores interpolated
    to the image's size, in the convention that the weights' card names.
    """

    def __init__(
        self, network: nn.Module, card: Card, placement: Placement, *, width: int = 0
    ) -> None:
        """
        Take a network into use.

        :param network: takes (N, 3, H, W), gives scores for 8 x 8 pixels, or as its `stride` says.
        :param card: its preprocessing and label set.
        :param placement: where it runs.
        :param width: image columns at the network's input; 0 for the image's own.
        """
        self.card, self.placement, self.width = card, placement, width
        self.label_set = card.labels()
        self.network = placement.place(network)
        self.margin = int(getattr(network, 'margin', 0))  # reflected pixels that it needs
        self.stride = int(getattr(network, 'stride', STRIDE))

    @classmethod
    def from_file(
        cls, path: Path, *, device: str = 'auto', precision: str = 'auto', width: int = 0
    ) -> 'Segmenter':
        """
        Load a weights file.

        :raises WeightsError: the file is damaged, or holds no segmentation network.
        :raises SettingError: device or precision is not to be had.
        """
        network, card = load_weights(path)
        if not card.label_set:
            raise WeightsError(f'{path}: {card.network} is no segmentation network')
        return cls(network, card, choose_placement(device, precision), width=width)

    @torch.inference_mode()
    def segment(self, image: Image, *, confidence: bool = False) -> Segmentation:
        """
        Label every pixel of an image.

        :param image: (H, W, 3) uint8 RGB.
        :param confidence: whether to give the probability of each label too.
        :raises InputError: the image has another form.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(f'image is {image.shape} {image.dtype}; (H, W, 3) uint8 is needed')
        height, width = image.shape[:2]
        scores = self._enlarge(self.scores(image), height, width)
        best, labels = scores.max(1)
        certain = None
        if confidence:
            share = (best - torch.logsumexp(scores, 1)).exp()[0]  # softmax of the best class
            certain = (share * 255).round().to(torch.uint8).cpu().numpy()
        return Segmentation(labels[0].to(torch.uint8).cpu().numpy(), certain)

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

    def _enlarge(self, scores: Tensor, height: int, width: int) -> Tensor:
        """Interpolate scores to the image's pixels, without the part beyond its border."""
        input_width = self.width or width
        input_height = max(1, round(height * input_width / width))
        rows, columns = scores.shape[2] * self.stride, scores.shape[3] * self.stride
        if self.card.upsampling == 'zoom':
            # The logarithm makes them scores again: softmax gives back the probabilities.
            scores = zoom(scores.softmax(1), self.stride).clamp_min(1e-12).log()
        enlarged = F.interpolate(
            scores.contiguous(memory_format=torch.channels_last),
            (round(rows * height / input_height), round(columns * width / input_width)),
            mode='bilinear',
            align_corners=False,
        )
        return enlarged[:, :, :height, :width]


def _reflect(values: Tensor, margin: int) -> Tensor:
    """Reflect an image outwards; back and forth where it is smaller than the margin."""
    for axis in (2, 3):
        places = np.pad(np.arange(values.shape[axis]), margin, mode='reflect')
        values = values.index_select(axis, torch.from_numpy(places).to(values.device))
    return values
