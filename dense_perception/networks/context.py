"""Multi-scale context aggregation: dilated convolutions over class scores."""

from dense_perception.networks.frontend import FrontEnd, STRIDE
from dense_perception.networks.layers import rectified
import torch
from torch import nn, Tensor

# Dilation of each 3x3 layer. Yu and Koltun (2016): table 1, and the appendix for the road scenes.
DILATIONS = {
    7: (1, 1, 2, 4, 8, 1),  # KITTI
    8: (1, 1, 2, 4, 8, 16, 1),  # Pascal VOC, CamVid
    10: (1, 1, 2, 4, 8, 16, 32, 64, 1),  # Cityscapes
}
# Channels of each 3x3 layer of the Large module in multiples of the classes; table 1.
LARGE_MULTIPLES = (2, 2, 4, 8, 16, 32, 32)


class ContextModule(nn.Module):
    """
    Spread context over class scores without losing resolution.

    Yu and Koltun (2016), section 3. Takes and gives (N, C, H, W) scores. Starts as the identity
    on scores that are not negative (section 3, equations 4 and 5).
    """

    def __init__(
        self,
        classes: int,
        *,
        layers: int = 8,
        large: bool = False,
        pad_once: bool = False,
        noise: float = 0.01,
    ) -> None:
        """
        Build the module.

        :param classes: channels of the scores.
        :param layers: 7, 8 or 10, the final 1x1 layer counted.
        :param large: the wider module of table 1; it has 8 layers.
        :param pad_once: pad the scores once, before the first layer, as the Pascal VOC release
            does; otherwise each layer pads by its dilation. They differ near the border.
        :param noise: standard deviation of the weights beside the identity.
        """
        super().__init__()
        dilations = DILATIONS[layers]
        if large and layers != 8:
            raise ValueError(f'the large module has 8 layers, not {layers}')
        multiples = LARGE_MULTIPLES if large else (1,) * len(dilations)
        widths = [classes, *(classes * multiple for multiple in multiples)]
        self.margin = sum(dilations) if pad_once else 0
        self.layers = nn.ModuleList(
            nn.Conv2d(
                widths[index],
                widths[index + 1],
                3,
                dilation=dilation,
                padding=_padding(index, dilation, self.margin),
            )
            for index, dilation in enumerate(dilations)
        )
        self.final = nn.Conv2d(widths[-1], classes, 1)
        for layer in (*self.layers, self.final):
            initialise_as_identity(layer, classes, noise)

    def forward(self, scores: Tensor) -> Tensor:
        """Return refined class scores, (N, C, H, W) like the input."""
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            scores = rectified(layer, scores)
        return self.final(scores)


def _padding(index: int, dilation: int, margin: int) -> int:
    if margin:
        return margin if index == 0 else 0
    return dilation


def initialise_as_identity(layer: nn.Module, classes: int, noise: float = 0.01) -> None:
    """
    Fill a context layer so that the module as a whole passes scores through.

    Yu and Koltun (2016), equation 5; equation 4 is the case of equal widths.

    :param layer: a convolution whose channels are multiples of `classes`.
    :param noise: standard deviation of the weights beside the identity.
    """
    assert isinstance(layer, nn.Conv2d)
    outputs, inputs = layer.out_channels, layer.in_channels
    center = layer.kernel_size[0] // 2
    nn.init.normal_(layer.weight, std=noise)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    class_of_input = torch.arange(inputs) * classes // inputs
    class_of_output = torch.arange(outputs) * classes // outputs
    same = class_of_output[:, None] == class_of_input[None]  # (outputs, inputs)
    with torch.no_grad():
        layer.weight[:, :, center, center][same] = classes / outputs


class FrontEndContext(nn.Module):
    """
    Front end followed by a context module.

    Yu and Koltun (2016). No ReLU stands between the two. Input and output as `FrontEnd`.
    """

    stride = STRIDE  # image pixels per score

    def __init__(
        self,
        classes: int,
        *,
        width: str = 'full',
        layers: int = 8,
        large: bool = False,
        pad_once: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.front_end = FrontEnd(classes, width)
        self.context = ContextModule(classes, layers=layers, large=large, pad_once=pad_once)

    @property
    def margin(self) -> int:
        """Reflected pixels that the image needs on every side."""
        return self.front_end.margin

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, before softmax."""
        return self.context(self.front_end(image))
