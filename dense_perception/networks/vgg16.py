"""VGG-16 in fully convolutional form, and its weights from torchvision."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dense_perception.errors import WeightsError
from dense_perception.networks.layers import max_pool, rectified
import torch
from torch import nn, Tensor

# The convolutions before each of the five poolings; Simonyan and Zisserman (2015), table 1, D.
STAGES: tuple[tuple[str, ...], ...] = (
    ('conv1_1', 'conv1_2'),
    ('conv2_1', 'conv2_2'),
    ('conv3_1', 'conv3_2', 'conv3_3'),
    ('conv4_1', 'conv4_2', 'conv4_3'),
    ('conv5_1', 'conv5_2', 'conv5_3'),
)


@dataclass(frozen=True)
class Vgg16Shape:
    """How wide the layers are."""

    widths: tuple[int, int, int, int, int]  # channels of conv1 ... conv5
    fc_width: int  # channels of fc6 and fc7
    dropout: float  # after fc6 and fc7


SHAPES = {
    'full': Vgg16Shape((64, 128, 256, 512, 512), 4096, 0.5),
    'compact': Vgg16Shape((16, 32, 64, 128, 128), 256, 0.1),  # a quarter, for CPUs
}


class Vgg16Trunk(nn.Module):
    """
    VGG-16 up to fc7, with fc6 as a 7x7 and fc7 as a 1x1 convolution.

    Simonyan and Zisserman (2015), section 2; as a convolution, Long et al. (2015), section 3.1.
    Poolings round up, as Caffe's do.
    """

    def __init__(self, width: str = 'full', *, first_padding: int = 1) -> None:
        """
        Build the layers.

        :param width: a name in SHAPES.
        :param first_padding: zeros that conv1_1 adds on every side; the other layers add one.
        """
        super().__init__()
        shape = SHAPES[width]
        channels = 3
        for names, out in zip(STAGES, shape.widths, strict=True):
            for name in names:
                padding = first_padding if name == 'conv1_1' else 1
                self.add_module(name, nn.Conv2d(channels, out, 3, padding=padding))
                channels = out
        self.fc6 = nn.Conv2d(channels, shape.fc_width, 7)
        self.fc7 = nn.Conv2d(shape.fc_width, shape.fc_width, 1)
        self.dropout = nn.Dropout(shape.dropout)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def activations(self, image: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """
        Return what some layers give, and compute no more than that needs.

        :param image: (N, 3, H, W).
        :param wanted: names among conv1_1 ... conv5_3 (after ReLU), pool1 ... pool5, and fc6 and
            fc7 (after ReLU and dropout).
        :returns: (N, C, rows, columns) for each name.
        """
        kept: dict[str, Tensor] = {}
        for name, values in self._layers(image):
            if name in wanted:
                kept[name] = values
                if len(kept) == len(wanted):
                    break
        return kept

    def _layers(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        values = image
        for stage, names in enumerate(STAGES, 1):
            for name in names:
                values = rectified(getattr(self, name), values)
                yield name, values
            values = max_pool(values)
            yield f'pool{stage}', values
        for name in ('fc6', 'fc7'):
            values = self.dropout(rectified(getattr(self, name), values))
            yield name, values


class Vgg16(Vgg16Trunk):
    """
    The classifier: (N, 3, H, W) to one row of scores for each 224 x 224 window, 32 pixels apart.

    Simonyan and Zisserman (2015). An image of 224 x 224 gives (N, classes, 1, 1).
    """

    def __init__(self, classes: int = 1000, width: str = 'full') -> None:
        super().__init__(width)
        self.classes = classes
        self.fc8 = nn.Conv2d(self.fc7.out_channels, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, before softmax."""
        return self.fc8(self.activations(image, ('fc7',))['fc7'])


class Vgg16Convolutions(Vgg16Trunk):
    """
    The convolutions alone, for weights without a classifier; gives what pool5 does.

    Simonyan and Zisserman (2015).
    """

    def __init__(self, width: str = 'full') -> None:
        super().__init__(width)
        del self.fc6, self.fc7

    def forward(self, image: Tensor) -> Tensor:
        """Return features of (N, 3, H, W) images at stride 32."""
        return self.activations(image, ('pool5',))['pool5']


@dataclass(frozen=True)
class TorchvisionWeights:
    """What one of torchvision's weight files for VGG-16 expects and holds."""

    mean: tuple[float, float, float]  # of RGB from 0 to 1, subtracted
    std: tuple[float, float, float]  # then divided by
    classifier: bool  # whether the fully connected layers are usable


TORCHVISION_WEIGHTS = {
    'IMAGENET1K_V1': TorchvisionWeights(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), classifier=True
    ),
    'IMAGENET1K_FEATURES': TorchvisionWeights(
        (0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255), classifier=False
    ),
}
# Index within torchvision's `features` of each convolution.
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# Index within torchvision's `classifier`, and the side of the kernel that the layer becomes.
_CLASSIFIER = {'fc6': (0, 7), 'fc7': (3, 1), 'fc8': (6, 1)}


def convert_torchvision(
    tensors: Mapping[str, Tensor], weights: str, mean: Sequence[float]
) -> dict[str, Tensor]:
    """
    Rename the tensors of torchvision's vgg16, for images that are BGR minus a mean.

    Colour order and scale go into conv1_1. Where that layer pads, the border differs, for a zero
    is another colour then; it is the same if `mean` is the mean that torchvision subtracts.

    :param tensors: state dict with `features.0.weight` and so on.
    :param weights: a name in TORCHVISION_WEIGHTS.
    :param mean: blue, green, red, 0 to 255, subtracted from the image.
    :returns: weight and bias per layer of `Vgg16`; of the convolutions only, where the file's
        fully connected layers are of no use.
    :raises WeightsError: tensors are missing; every one is told.
    """
    source = TORCHVISION_WEIGHTS[weights]
    layers = [name for names in STAGES for name in names]
    theirs = {ours: f'features.{index}' for ours, index in zip(layers, _FEATURES, strict=True)}
    if source.classifier:
        theirs |= {ours: f'classifier.{index}' for ours, (index, _) in _CLASSIFIER.items()}
    names = {
        f'{ours}.{part}': f'{their}.{part}'
        for ours, their in theirs.items()
        for part in ('weight', 'bias')
    }
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise WeightsError(f'this is no vgg16 of torchvision; missing {", ".join(missing)}')
    converted = {ours: tensors[their] for ours, their in names.items()}
    for name, (_, side) in _CLASSIFIER.items():
        if name in theirs:
            weight = converted[f'{name}.weight']
            converted[f'{name}.weight'] = weight.reshape(len(weight), -1, side, side)
    _fold_colors(converted, source, mean)
    return converted


def _fold_colors(
    tensors: dict[str, Tensor], source: TorchvisionWeights, mean: Sequence[float]
) -> None:
    """Change conv1_1 from standardised RGB to BGR minus `mean`."""
    weight, bias = tensors['conv1_1.weight'], tensors['conv1_1.bias']
    std = torch.tensor(source.std, dtype=torch.float64)
    red_green_blue = torch.tensor(list(reversed(mean)), dtype=torch.float64)
    offset = red_green_blue / 255 - torch.tensor(source.mean, dtype=torch.float64)
    scaled = weight.double() / std[:, None, None]  # takes RGB from 0 to 1
    constant = torch.einsum('ochw,c->o', scaled, offset)
    tensors['conv1_1.weight'] = (scaled / 255).flip(1).to(weight.dtype)
    tensors['conv1_1.bias'] = (bias.double() + constant).to(bias.dtype)
