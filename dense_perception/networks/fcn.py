"""Fully convolutional networks: FCN-32s, FCN-16s and FCN-8s."""

from dataclasses import dataclass
from typing import ClassVar

from dense_perception.networks.layers import bilinear_kernel, crop_to
from dense_perception.networks.vgg16 import Vgg16Trunk
import torch
from torch import nn, Tensor

# Zeros around the image, so that even one pixel gives a score; released models.
PADDING = 100


@dataclass(frozen=True)
class Fusion:
    """How coarse scores meet those of an earlier pooling."""

    enlarge: str  # layer that doubles the coarse scores
    pool: str  # pooling whose scores are added
    offset: int  # where those begin to lie over the coarse ones
    scale: float  # of the pooling, where all strides are trained at once


@dataclass(frozen=True)
class Enlargement:
    """How the last scores come to the image's size."""

    name: str
    factor: int
    offset: int  # where the image begins within the enlarged scores


_POOL4 = Fusion('upscore2', 'pool4', offset=5, scale=0.01)
_POOL3 = Fusion('upscore_pool4', 'pool3', offset=9, scale=0.0001)


class FCN(Vgg16Trunk):
    """
    What the three networks share: VGG-16, scored at one or more strides.

    Long et al. (2015), sections 3 and 4; paddings and crops of the released models. Takes
    (N, 3, H, W) of any size and gives (N, classes, H, W) scores. All score layers start at zero.
    """

    fusions: ClassVar[tuple[Fusion, ...]]
    last: ClassVar[Enlargement]

    stride = 1  # image pixels per score

    def __init__(
        self,
        classes: int,
        width: str = 'full',
        *,
        at_once: bool = False,
        learn_upsampling: bool = False,
    ) -> None:
        """
        Build the network.

        :param classes: channels of the scores.
        :param width: a name in `vgg16.SHAPES`.
        :param at_once: scale the poolings down before they are scored, as the models do that are
            trained in one stage.
        :param learn_upsampling: learn the doubling layers, as the paper does; the released models
            leave them bilinear. The last enlargement is bilinear in both.
        """
        super().__init__(width, first_padding=PADDING)
        self.classes = classes
        self.at_once = at_once
        self.score_fr = _score(self.fc7.out_channels, classes)
        for fusion in self.fusions:
            channels = self._channels(fusion.pool)
            self.add_module(f'score_{fusion.pool}', _score(channels, classes))
            self.add_module(fusion.enlarge, _upsampling(classes, 2, learn_upsampling))
        self.add_module(self.last.name, _upsampling(classes, self.last.factor, learn=False))

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, before softmax, one for each pixel."""
        maps = self.activations(image, ['fc7', *(fusion.pool for fusion in self.fusions)])
        scores = self.score_fr(maps['fc7'])  # one for 32 x 32 pixels
        for fusion in self.fusions:
            scores = self.get_submodule(fusion.enlarge)(scores)
            features = maps[fusion.pool] * fusion.scale if self.at_once else maps[fusion.pool]
            finer = self.get_submodule(f'score_{fusion.pool}')(features)
            scores = scores + _crop(finer, scores, fusion.offset)
        return _crop(self.get_submodule(self.last.name)(scores), image, self.last.offset)

    def _channels(self, pool: str) -> int:
        layer = self.get_submodule(f'conv{pool[-1]}_1')
        assert isinstance(layer, nn.Conv2d)
        return layer.out_channels


class FCN32s(FCN):
    """Scores at stride 32 only; Long et al. (2015), section 4.1."""

    fusions = ()
    last = Enlargement('upscore', 32, offset=19)


class FCN16s(FCN):
    """Scores at strides 32 and 16; Long et al. (2015), section 4.2, figure 3."""

    fusions = (_POOL4,)
    last = Enlargement('upscore16', 16, offset=27)


class FCN8s(FCN):
    """Scores at strides 32, 16 and 8; Long et al. (2015), section 4.2, figure 3."""

    fusions = (_POOL4, _POOL3)
    last = Enlargement('upscore8', 8, offset=31)


def _score(channels: int, classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, classes, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _upsampling(classes: int, factor: int, learn: bool) -> nn.ConvTranspose2d:
    """Make the layer of the released models: classes may mix, but start out apart."""
    layer = nn.ConvTranspose2d(classes, classes, 2 * factor, factor, bias=False)
    alone = torch.arange(classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[alone, alone] = bilinear_kernel(factor)
    layer.weight.requires_grad_(learn)
    return layer


def _crop(values: Tensor, reference: Tensor, offset: int) -> Tensor:
    return crop_to(values[:, :, offset:, offset:], reference)
