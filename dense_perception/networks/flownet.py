"""
FlowNetSimple and FlowNetCorr: optical flow from two images in one pass.

Dosovitskiy et al. (2015), sections 3 and 3.1; layer table of the released Caffe models.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from dense_perception.networks.layers import correlation, crop_to, rectified
import torch
from torch import nn, Tensor
import torch.nn.functional as F

FLOW_SCALE = 20.0  # pixels per unit of the networks' output; released training code
STRIDE = 64  # images must be multiples of this for every level to fit
LEVELS = (6, 5, 4, 3, 2)  # coarse to fine; level l has 1 / 2^l of the image's size
DISPLACEMENTS = 441  # 21 x 21 shifts of the correlation layer
_SLOPE = 0.1  # of the leaky ReLU in the released models; the paper says ReLU


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, batch_norm: bool
) -> nn.Sequential:
    padding = (kernel - 1) // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not batch_norm)
    norm = (nn.BatchNorm2d(outputs),) if batch_norm else ()
    return _Rectified(layer, *norm, nn.LeakyReLU(_SLOPE, inplace=True))


class _Rectified(nn.Sequential):
    """A convolution and its leaky ReLU, perhaps with batch norm between them."""

    def forward(self, values: Tensor) -> Tensor:
        """Return features, in one pass where torch can."""
        layer = self[0]
        if len(self) == 2 and isinstance(layer, nn.Conv2d):
            return rectified(layer, values, _SLOPE)
        normalised: Tensor = super().forward(values)  # type: ignore[no-untyped-call]
        return normalised


class Refinement(nn.Module):
    """
    Turn coarse features into flow at a quarter of the image's size.

    Section 3, figure 3. At each level the features, the enlarged coarser features and the
    enlarged coarser flow are joined, and a flow is predicted from them.
    """

    def __init__(
        self, skips: Sequence[int], top: int, widths: Sequence[int], *, biases: bool = False
    ) -> None:
        """
        Build the decoder.

        :param skips: channels of the encoder's features at levels 5, 4, 3, 2.
        :param top: channels of its features at level 6.
        :param widths: channels of the enlarged features at levels 5, 4, 3, 2.
        :param biases: give every layer a bias, as the released Caffe models do.
        """
        super().__init__()
        channels = top
        for level, skip, width in zip(LEVELS[1:], skips, widths, strict=True):
            self.add_module(f'predict_flow{level + 1}', _predict_flow(channels, biases))
            self.add_module(
                f'upsampled_flow{level + 1}_to_{level}',
                nn.ConvTranspose2d(2, 2, 4, 2, 1, bias=biases),
            )
            self.add_module(
                f'deconv{level}',
                nn.Sequential(
                    nn.ConvTranspose2d(channels, width, 4, 2, 1, bias=biases),
                    nn.LeakyReLU(_SLOPE, inplace=True),
                ),
            )
            channels = skip + width + 2
        self.predict_flow2 = _predict_flow(channels, biases)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """
        Predict flow at every level.

        :param features: encoder features at levels 6, 5, 4, 3, 2.
        :returns: flow / 20 at levels 6, 5, 4, 3, 2, each (N, 2, H / 2^level, W / 2^level).
        """
        values = features[0]
        flows = []
        for level, skip in zip(LEVELS[1:], features[1:], strict=True):
            flow = self.get_submodule(f'predict_flow{level + 1}')(values)
            flows.append(flow)
            larger_flow = self.get_submodule(f'upsampled_flow{level + 1}_to_{level}')(flow)
            larger = self.get_submodule(f'deconv{level}')(values)
            values = torch.cat([skip, crop_to(larger, skip), crop_to(larger_flow, skip)], 1)
        return [*flows, self.predict_flow2(values)]


def _predict_flow(channels: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, 2, 3, 1, 1, bias=bias)


class FlowNet(nn.Module, ABC):
    """
    What FlowNetSimple and FlowNetCorr share: the deep half of the encoder and the decoder.

    Takes two images of the same size, (N, 3, H, W) each, H and W multiples of 64. Gives flow / 20
    at a quarter of the size, (N, 2, H / 4, W / 4), x then y.
    """

    def __init__(self, width: float, batch_norm: bool, biases: bool, level3: int) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        c256, c512, c1024 = (round(width * channels) for channels in (256, 512, 1024))
        self.conv3_1 = _convolution(level3, c256, 3, 1, batch_norm)
        self.conv4 = _convolution(c256, c512, 3, 2, batch_norm)
        self.conv4_1 = _convolution(c512, c512, 3, 1, batch_norm)
        self.conv5 = _convolution(c512, c512, 3, 2, batch_norm)
        self.conv5_1 = _convolution(c512, c512, 3, 1, batch_norm)
        self.conv6 = _convolution(c512, c1024, 3, 2, batch_norm)
        self.conv6_1 = _convolution(c1024, c1024, 3, 1, batch_norm)
        skips = (c512, c512, c256, round(width * 128))
        widths = [round(width * channels) for channels in (512, 256, 128, 64)]
        self.refinement = Refinement(skips, c1024, widths, biases=biases)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return flow / 20 at a quarter of the images' size."""
        return self.levels(first, second)[-1]

    def levels(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return flow / 20 at levels 6, 5, 4, 3, 2, to train on all of them."""
        return self.decode(*self.encode(first, second))

    def decode(self, level2: Tensor, level3: Tensor) -> list[Tensor]:
        """Return what `levels` does, from what `encode` gives."""
        level3 = self.conv3_1(level3)
        level4 = self.conv4_1(self.conv4(level3))
        level5 = self.conv5_1(self.conv5(level4))
        level6 = self.conv6_1(self.conv6(level5))
        return self.refinement([level6, level5, level4, level3, level2])

    @abstractmethod
    def encode(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder sees at level 2 and what conv3_1 takes at level 3."""

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, a=_SLOPE)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class FlowNetSimple(FlowNet):
    """Both images are stacked and convolved together; section 3, figure 2 above."""

    def __init__(
        self, *, width: float = 1.0, batch_norm: bool = False, biases: bool = False
    ) -> None:
        """
        Build the network.

        :param width: share of the published channels.
        :param batch_norm: normalise after every convolution of the encoder.
        :param biases: give the decoder's layers biases, as the released Caffe models do.
        """
        c64, c128, c256 = (round(width * channels) for channels in (64, 128, 256))
        super().__init__(width, batch_norm, biases, level3=c256)
        self.conv1 = _convolution(6, c64, 7, 2, batch_norm)
        self.conv2 = _convolution(c64, c128, 5, 2, batch_norm)
        self.conv3 = _convolution(c128, c256, 5, 2, batch_norm)
        self._initialise()

    def encode(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features at levels 2 and 3 of the stacked images."""
        level2 = self.conv2(self.conv1(torch.cat([first, second], 1)))
        return level2, self.conv3(level2)


class FlowNetCorr(FlowNet):
    """Each image is convolved alone, then the two are correlated; section 3, figure 2 below."""

    def __init__(
        self, *, width: float = 1.0, batch_norm: bool = False, biases: bool = False
    ) -> None:
        """
        Build the network.

        :param width: share of the published channels; the 441 displacements stay.
        :param batch_norm: normalise after every convolution of the encoder.
        :param biases: give the decoder's layers biases, as the released Caffe models do.
        """
        c32, c64, c128, c256 = (round(width * channels) for channels in (32, 64, 128, 256))
        super().__init__(width, batch_norm, biases, level3=c32 + DISPLACEMENTS)
        self.conv1 = _convolution(3, c64, 7, 2, batch_norm)
        self.conv2 = _convolution(c64, c128, 5, 2, batch_norm)
        self.conv3 = _convolution(c128, c256, 5, 2, batch_norm)
        self.conv_redir = _convolution(c256, c32, 1, 1, batch_norm)
        self._initialise()

    def encode(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first image's features at level 2, and the joined ones at level 3."""
        level2, level3 = self.image_features(first)
        _, other = self.image_features(second)
        return level2, self.compare(level3, other)

    def image_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return one image's features at levels 2 and 3; neighbouring pairs share them."""
        level2 = self.conv2(self.conv1(image))
        return level2, self.conv3(level2)

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the first image's reduced features joined with the correlation of both."""
        matches = F.leaky_relu(correlation(first, second), _SLOPE)
        return torch.cat([self.conv_redir(first), matches], 1)
