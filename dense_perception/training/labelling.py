"""What recipes of segmentation have in common."""

from collections.abc import Iterable
from dataclasses import dataclass

from dense_perception.data.segmentation import LabelledImage
from dense_perception.networks.context import FrontEndContext
from dense_perception.settings import setting
from dense_perception.training.scenes import SceneSettings
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F


@dataclass(frozen=True)
class LabellingSettings(SceneSettings):
    """How a segmentation network is trained."""

    width: str = setting('compact', 'channels of VGG-16', choices=('compact', 'full'))
    smallest_scale: float = setting(0.5, 'least enlargement', low=0.1, high=1.0)
    largest_scale: float = setting(2.0, 'greatest enlargement', low=1.0, high=4.0)
    rarity: float = setting(0.4, 'power of inverse frequency in class weights', low=0.0, high=1.0)
    front_end_share: float = setting(0.4, "weight of the front end's own loss", low=0.0, high=1.0)
    overlap: float = setting(
        0.0,
        'weight of the loss of intersection over union, of each part of a batch',
        low=0,
        high=10,
    )


def class_weights(samples: Iterable[LabelledImage], classes: int, rarity: float) -> Tensor:
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


def context_scores(network: FrontEndContext, values: Tensor) -> tuple[Tensor, Tensor]:
    """
    Return the scores of the whole network, and those of its front end alone.

    :param values: (N, 3, H, W) float, preprocessed.
    """
    front_end = network.front_end(values)
    # On a CPU, PyTorch 2.14's bfloat16 gradient of a dilated convolution of 19 channels gives
    # nan or crashes; the context module is small enough to be trained in float32.
    with torch.autocast(values.device.type, enabled=False):
        return network.context(front_end.float()), front_end


def enlarged(scores: Tensor, factor: int) -> Tensor:
    """
    Return scores in float32, enlarged bilinearly.

    :param scores: (N, C, H, W).
    """
    scores = scores.float()
    if factor == 1:
        return scores
    return F.interpolate(
        scores.contiguous(memory_format=torch.channels_last),
        scale_factor=float(factor),
        mode='bilinear',
        align_corners=False,
    )
