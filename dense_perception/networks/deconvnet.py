"""DeconvNet: VGG-16 and its mirror image, which unpools where VGG-16 has pooled."""

from typing import NamedTuple

from dense_perception.errors import InputError
from dense_perception.networks.vgg16 import SHAPES, STAGES
import torch
from torch import nn, Tensor
import torch.nn.functional as F

# Transposed convolutions after each unpooling, in the order in which they run.
MIRRORED_STAGES = tuple(
    tuple(name.replace('conv', 'deconv') for name in names) for names in reversed(STAGES)
)

# Rows and columns of an image, at least: poolings that round up leave the 7 that fc6 needs.
SMALLEST = 6 * 2 ** len(STAGES) + 1


class Switches(NamedTuple):
    """Where the maxima of a pooling were."""

    places: Tensor  # (N, C, rows, columns) index into the H x W values that were pooled
    size: torch.Size  # H and W


class DeconvNet(nn.Module):
    """
    Encode to one vector, then decode by unpooling and transposed convolution.

    Noh et al. (2015), section 3; layer names of the released model. Takes (N, 3, H, W) with H and
    W at least 193, where the paper has 224, and gives (N, classes, H, W) scores. Every layer but
    the last is normalised over the batch, so training on 224 x 224 needs two images at least.
    """

    stride = 1  # image pixels per score

    def __init__(self, classes: int, width: str = 'full') -> None:
        super().__init__()
        shape = SHAPES[width]
        self.classes = classes
        channels = 3
        for names, out in zip(STAGES, shape.widths, strict=True):
            for name in names:
                self._add(name, nn.Conv2d(channels, out, 3, padding=1))
                channels = out
        self._add('fc6', nn.Conv2d(channels, shape.fc_width, 7))
        self._add('fc7', nn.Conv2d(shape.fc_width, shape.fc_width, 1))
        self._add('fc6-deconv', nn.ConvTranspose2d(shape.fc_width, channels, 7))
        narrower = (*reversed(shape.widths[:-1]), shape.widths[0])  # channels of the next stage
        for names, last in zip(MIRRORED_STAGES, narrower, strict=True):
            for name in names:
                out = last if name == names[-1] else channels
                self._add(name, nn.ConvTranspose2d(channels, out, 3, padding=1))
                channels = out
        self.add_module('seg-score-voc', nn.Conv2d(channels, classes, 1))
        self._initialise()

    def forward(self, image: Tensor) -> Tensor:
        """
        Return class scores, before softmax, one for each pixel.

        :raises InputError: the image has fewer than SMALLEST rows or columns.
        """
        height, width = image.shape[2:]
        if min(height, width) < SMALLEST:
            raise InputError(
                f'an image of {height} x {width} pixels is too small for DeconvNet; at least '
                f'{SMALLEST} rows and columns are needed, 224 in the paper'
            )
        values = image
        stack: list[Switches] = []
        for names in STAGES:
            for name in names:
                values = self._normalised(name, values)
            values, switches = pool(values)
            stack.append(switches)
        for name in ('fc6', 'fc7', 'fc6-deconv'):
            values = self._normalised(name, values)
        for names in MIRRORED_STAGES:
            values = unpool(values, stack.pop())
            for name in names:
                values = self._normalised(name, values)
        return self.get_submodule('seg-score-voc')(values)

    def _add(self, name: str, layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
        self.add_module(name, layer)
        self.add_module(_norm_name(name), nn.BatchNorm2d(layer.out_channels))

    def _normalised(self, name: str, values: Tensor) -> Tensor:
        convolved = self.get_submodule(name)(values)
        return torch.relu(self.get_submodule(_norm_name(name))(convolved))

    def _initialise(self) -> None:
        """Start all layers as the released recipe starts those that VGG-16 does not have."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.constant_(layer.bias, 0.001)


def pool(values: Tensor) -> tuple[Tensor, Switches]:
    """Return the maxima of 2 x 2 windows, and where they were; an odd last row counts alone."""
    maxima, places = F.max_pool2d(values, 2, ceil_mode=True, return_indices=True)
    return maxima, Switches(places, values.shape[2:])


def unpool(values: Tensor, switches: Switches) -> Tensor:
    """
    Put values where the maxima of a pooling were, zeros elsewhere; section 3.2.1.

    :param values: (N, C, rows, columns), as that pooling gave.
    :returns: (N, C, H, W), as that pooling took.
    """
    return F.max_unpool2d(values, switches.places, [2, 2], output_size=list(switches.size))


def _norm_name(layer: str) -> str:
    """Name of the normalisation of a layer: bn1_1, bnfc6, debn1_1, and so on."""
    if layer == 'fc6-deconv':
        return 'fc6-deconv-bn'
    return f'bn{layer}' if layer.startswith('fc') else layer.replace('conv', 'bn')
