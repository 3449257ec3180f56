"""VGG-16 as a source of features, and what those who classify them share."""

from collections.abc import Mapping
from typing import Any

from dense_perception.graphical.superpixels import Superpixels
from dense_perception.networks.input_colors import InputColors
from dense_perception.networks.vgg16 import Vgg16Trunk
import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor


class FeatureTrunk(Vgg16Trunk):
    """VGG-16 up to fc7 that may be left as it is while its features are classified."""

    def __init__(
        self, classes: int, width: str, *, freeze_trunk: bool, colors: Mapping[str, Any] | None
    ) -> None:
        """
        Build the layers.

        :param classes: that the features are for.
        :param width: a name in `vgg16.SHAPES`.
        :param freeze_trunk: whether the layers are left as they are.
        :param colors: order, mean and scale of the preprocessing; see `InputColors`.
        """
        super().__init__(width)
        self.classes = classes
        self.freeze_trunk = freeze_trunk
        self.colors = InputColors.of(colors)
        self.requires_grad_(not freeze_trunk)

    def train(self, mode: bool = True) -> 'FeatureTrunk':
        """Switch to training or inference; a frozen trunk drops nothing out in either."""
        super().train(mode)
        self.dropout.train(mode and not self.freeze_trunk)
        return self

    def trunk_gradients(self) -> torch.set_grad_enabled:
        """Return a context in which gradients are kept only if the trunk learns."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_trunk)


def paint(scores: Tensor, superpixels: Superpixels) -> Tensor:
    """Give every pixel the (S, C) scores of its superpixel, (C, H, W)."""
    return scores[torch.from_numpy(superpixels).to(scores.device)].permute(2, 0, 1)


def between(length: int, cells: int) -> tuple[tuple[NDArray[np.int64], NDArray[np.float64]], ...]:
    """Return the two cells between which each of `length` pixels lies, and the share of each."""
    place = np.clip((np.arange(length) + 0.5) * cells / length - 0.5, 0, cells - 1)
    low = place.astype(np.int64)
    high = np.minimum(low + 1, cells - 1)
    return (low, 1 - (place - low)), (high, place - low)
