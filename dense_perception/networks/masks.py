"""
DeepMask and SharpMask: the mask of the object in the middle of a window, and whether one is there.

Pinheiro et al. (2015, 2016); layers of the released code. Both slide over an image: a window of
160 x 160 pixels at every 16th pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dense_perception.networks.mask_trunks import initialise, SymmetricConv2d, TRUNKS
import torch
from torch import nn, Tensor
import torch.nn.functional as F

STRIDE = 16  # pixels between two windows
WINDOW = 160  # pixels per side that one mask covers
MARGIN = 16  # pixels around the window that the trunk sees when it is given a patch
PATCH = WINDOW + 2 * MARGIN  # pixels per side of a training patch
MASK_SIDE = 56  # of DeepMask's masks; SharpMask's have the window's own resolution
_CELLS = WINDOW // STRIDE  # rows and columns of trunk features in a window


@dataclass(frozen=True)
class MaskShape:
    """How wide the layers are."""

    share: float  # of the trunk's published channels
    reduced: int  # channels of the features that a window is described from
    description: int  # numbers that describe a window
    score: int  # hidden units of the score
    refinement: int  # channels at SharpMask's coarsest step, halved at each finer one
    skip: tuple[int, int, int, int]  # first channels of the horizontal steps, coarse to fine


SHAPES = {
    'full': MaskShape(1.0, 128, 512, 1024, 32, (64, 64, 64, 32)),
    # The refinement keeps its channels, of which the last two already are few.
    'compact': MaskShape(0.25, 32, 128, 256, 32, (32, 32, 32, 16)),
}


class Masks(NamedTuple):
    """What one window, or each of several, shows."""

    masks: Tensor  # (N, side, side) before the sigmoid; the object in the middle is positive
    scores: Tensor  # (N,) before the sigmoid; positive: a whole object stands in the middle


class Windows(NamedTuple):
    """What a network knows of all windows of an image."""

    descriptions: Tensor  # (1, D, rows, columns)
    scores: Tensor  # (rows, columns) before the sigmoid
    skips: list[Tensor]  # finer features, coarse to fine; none where they are not used


class DeepMask(nn.Module):
    """
    Describe each window by a vector, and read a coarse mask and a score from it.

    Pinheiro et al. (2015), section 3, with the heads of Pinheiro et al. (2016), section 4.1. Takes
    patches (N, 3, 192, 192); gives masks of 56 x 56 for the 160 x 160 pixels in the middle.
    """

    def __init__(self, width: str = 'full', *, trunk: str = 'resnet50') -> None:
        """
        Build the network.

        :param width: a name in SHAPES.
        :param trunk: a name in TRUNKS.
        """
        super().__init__()
        self.shape = shape = SHAPES[width]
        self.trunk = TRUNKS[trunk](shape.share)
        self.reduce = nn.Conv2d(self.trunk.channels[-1], shape.reduced, 1)
        # The released linear layers are convolutions here, so that they slide over an image.
        self.describe = nn.Conv2d(shape.reduced, shape.description, _CELLS)
        self.mask = nn.Conv2d(shape.description, MASK_SIDE**2, 1)
        self.score = nn.Sequential(
            nn.Dropout(0.5),
            nn.Conv2d(shape.description, shape.score, 1),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(shape.score, 1, 1),
        )

    def forward(self, patches: Tensor) -> Masks:
        """Return mask and score of each patch."""
        maps = [_inner(values, patches) for values in self.trunk(patches)]
        descriptions = self._descriptions(maps)  # (N, D, 1, 1)
        return Masks(
            self.masks(descriptions.flatten(1), self._skips(maps)),
            self.score(descriptions).flatten(),
        )

    def slide(self, image: Tensor) -> Windows:
        """
        Describe all windows of an image.

        Window (r, c) begins at pixel (16 r, 16 c).

        :param image: (1, 3, H, W), H and W multiples of 16, at least 160.
        """
        maps = self.trunk(image)
        descriptions = self._descriptions(maps)
        return Windows(descriptions, self.score(descriptions)[0, 0], self._skips(maps))

    def window_masks(self, windows: Windows, places: Tensor) -> Tensor:
        """
        Return the masks of some windows.

        :param windows: what `slide` gave.
        :param places: (K, 2) int64, row and column of each window.
        :returns: (K, side, side), before the sigmoid.
        """
        descriptions = windows.descriptions[0, :, places[:, 0], places[:, 1]].T
        skips = []
        for step, values in enumerate(windows.skips):
            begin, side = places * 2**step, _CELLS * 2**step
            cut = [values[0, :, r : r + side, c : c + side] for r, c in begin.tolist()]
            skips.append(torch.stack(cut))
        return self.masks(descriptions, skips)

    def masks(self, descriptions: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """
        Return the masks of windows.

        :param descriptions: (K, D).
        :param skips: not used; a subclass refines with them.
        :returns: (K, side, side), before the sigmoid.
        """
        return self.mask(descriptions[:, :, None, None]).reshape(-1, MASK_SIDE, MASK_SIDE)

    def _descriptions(self, maps: Sequence[Tensor]) -> Tensor:
        return self.describe(torch.relu(self.reduce(maps[-1])))

    def _skips(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return []


class SharpMask(DeepMask):
    """
    Refine a coarse mask step by step with finer features of the trunk.

    Pinheiro et al. (2016), section 3. The masks are 160 x 160. DeepMask's own mask layer stays,
    as in the release, so that the weights of a trained DeepMask fit.
    """

    def __init__(self, width: str = 'full', *, trunk: str = 'resnet50') -> None:
        super().__init__(width, trunk=trunk)
        shape = self.shape
        widths = [shape.refinement // 2**step for step in range(5)]
        self.start = nn.Linear(shape.description, widths[0] * _CELLS**2)
        self.horizontal = nn.ModuleList(
            _convolutions(channels, first, wide, narrow)
            for channels, first, wide, narrow in zip(
                reversed(self.trunk.channels), shape.skip, widths[:-1], widths[1:], strict=True
            )
        )
        self.vertical = nn.ModuleList(
            _convolutions(wide, wide, narrow)
            for wide, narrow in zip(widths[:-1], widths[1:], strict=True)
        )
        self.final = SymmetricConv2d(widths[-1], 1, 3)
        for module in (self.horizontal, self.vertical):
            initialise(module)  # weights of PyTorch's default would fade out over the four steps
        # Masks that begin far from 0 push all of the last two channels below it, for good.
        nn.init.normal_(self.start.weight, std=0.01)
        nn.init.normal_(self.final.weight, std=0.01)
        # Most pixels are background. While the mask learns that, channels that raise it sink below
        # 0 for good; those that lower it rise, so half of them do.
        with torch.no_grad():
            self.final.weight.abs_()[:, ::2].neg_()

    def refinement(self) -> list[nn.Module]:
        """Return the layers that DeepMask does not have; they are trained after it."""
        return [self.start, self.horizontal, self.vertical, self.final]

    def masks(self, descriptions: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """
        Return the masks of windows.

        :param descriptions: (K, D).
        :param skips: (K, C, side, side) at sides 10, 20, 40 and 80.
        :returns: (K, 160, 160), before the sigmoid.
        """
        values = self.start(descriptions).reshape(len(descriptions), -1, _CELLS, _CELLS)
        for vertical, skip in zip(self.vertical, skips, strict=True):
            values = F.interpolate(torch.relu(vertical(values) + skip), scale_factor=2.0)
        return self.final(values)[:, 0]

    def _skips(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [
            horizontal(values)
            for horizontal, values in zip(self.horizontal, reversed(maps), strict=True)
        ]


def _convolutions(*channels: int) -> nn.Sequential:
    """Chain 3x3 convolutions with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(channels[:-1], channels[1:], strict=True):
        layers += [SymmetricConv2d(inputs, outputs, 3), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _inner(values: Tensor, patches: Tensor) -> Tensor:
    """Cut from a map what belongs to the window in the middle of each patch."""
    margin = MARGIN * values.shape[2] // patches.shape[2]
    return values[:, :, margin:-margin, margin:-margin]
