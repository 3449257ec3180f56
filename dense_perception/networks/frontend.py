"""Dilated VGG-16 front end: class scores at an eighth of the image's size."""

from dataclasses import dataclass
import math

from dense_perception.networks.layers import max_pool, rectified
from torch import nn, Tensor

STRIDE = 8  # image pixels per score, after three poolings


@dataclass(frozen=True)
class FrontEndShape:
    """What differs between the published front end and its compact version."""

    widths: tuple[int, int, int, int, int]  # channels of conv1 ... conv5
    depths: tuple[int, int, int, int, int]  # convolutions of each stage
    fc_width: int  # channels of fc6 and fc7
    fc_kernel: int
    fc_dilation: int
    dropout: float  # after fc6 and fc7
    padded: bool  # zero-padded layers; otherwise the image is reflect-padded by `margin`


SHAPES = {
    # Yu and Koltun (2016), section 4: no layer pads, pool4 and pool5 became dilation 2 and 4.
    'full': FrontEndShape(
        (64, 128, 256, 512, 512), (2, 2, 3, 3, 3), 4096, 7, 4, 0.5, padded=False
    ),
    # A quarter of the channels, with VGG-19's depth in conv3 and conv4 so that published narrow
    # weights fit; fc6 reaches as far (25 scores) with a ninth of the taps.
    'compact': FrontEndShape(
        (16, 32, 64, 128, 128), (2, 2, 4, 4, 3), 256, 3, 12, 0.1, padded=True
    ),
}


class FrontEnd(nn.Module):
    """
    VGG-16 whose last two poolings are replaced by dilation.

    Yu and Koltun (2016), section 4. Takes (N, 3, H, W); in the full shape the image must carry
    `margin` reflected pixels on every side. Gives (N, classes, ceil(h / 8), ceil(w / 8)) scores
    for the h x w pixels inside the margin.
    """

    stride = STRIDE  # image pixels per score

    def __init__(self, classes: int, width: str = 'full') -> None:
        super().__init__()
        shape = SHAPES[width]
        self.classes = classes
        self.padded = shape.padded
        self.stages: list[list[str]] = []
        channels = 3
        for stage, (out, depth) in enumerate(zip(shape.widths, shape.depths, strict=True), 1):
            dilation = 2 if stage == 5 else 1
            names = [f'conv{stage}_{layer}' for layer in range(1, depth + 1)]
            for name in names:
                self.add_module(name, self._convolution(channels, out, 3, dilation))
                channels = out
            self.stages.append(names)
        self.fc6 = self._convolution(channels, shape.fc_width, shape.fc_kernel, shape.fc_dilation)
        self.fc7 = nn.Conv2d(shape.fc_width, shape.fc_width, 1)
        self.final = nn.Conv2d(shape.fc_width, classes, 1)
        self.dropout = nn.Dropout(shape.dropout)
        self._initialise()

    @property
    def margin(self) -> int:
        """Reflected pixels that the image needs on every side."""
        return 0 if self.padded else (receptive_field(self) - STRIDE) // 2

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, before softmax."""
        return self.final(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        """Return what `final` classifies, (N, fc7 channels, rows, columns)."""
        values = image
        for stage, names in enumerate(self.stages, 1):
            for name in names:
                values = rectified(getattr(self, name), values)
            if stage <= 3:
                values = max_pool(values)
        values = self.dropout(rectified(self.fc6, values))
        return self.dropout(rectified(self.fc7, values))

    def _convolution(self, channels: int, out: int, kernel: int, dilation: int) -> nn.Conv2d:
        padding = dilation * (kernel // 2) if self.padded else 0
        return nn.Conv2d(channels, out, kernel, padding=padding, dilation=dilation)

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.final.weight, std=0.001)


def receptive_field(network: FrontEnd) -> int:
    """Image pixels per side that one score of the network sees."""
    field, stride = 1, 1
    for stage, names in enumerate(network.stages, 1):
        for name in names:
            field += stride * _reach(network.get_submodule(name))
        if stage <= 3:
            field, stride = field + stride, stride * 2
    return field + stride * _reach(network.fc6)


def _reach(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Conv2d)
    return (layer.kernel_size[0] - 1) * layer.dilation[0]


def score_size(pixels: int) -> int:
    """Rows (columns) of scores for an image of that many rows (columns)."""
    return math.ceil(pixels / STRIDE)
