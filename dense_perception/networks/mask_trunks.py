"""Trunks of DeepMask and SharpMask: ResNet-50 up to conv4, and VGG-A up to conv5."""

from collections.abc import Mapping

from dense_perception.errors import WeightsError
from dense_perception.networks.layers import rectified
import torch
from torch import nn, Tensor
import torch.nn.functional as F

BATCH_NORM_EPSILON = 1e-5  # of torchvision's networks
# Bottlenecks and channels of conv2, conv3 and conv4; He et al. (2016), table 1, 50 layers.
RESNET50_STAGES = ((3, 256), (4, 512), (6, 1024))
# Channels of the convolutions before each pooling; Simonyan and Zisserman (2015), table 1, A.
VGG_A_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def symmetric_pad(values: Tensor, margin: int) -> Tensor:
    """
    Mirror a map at its borders, the outermost row and column included.

    What the released code of DeepMask does where others add zeros.

    :param values: (N, C, H, W), H and W at least `margin`.
    """
    if margin == 1:
        return F.pad(values, (1, 1, 1, 1), mode='replicate')
    for axis in (2, 3):
        size = values.shape[axis]
        first = values.narrow(axis, 0, margin).flip(axis)
        last = values.narrow(axis, size - margin, margin).flip(axis)
        values = torch.cat([first, values, last], axis)
    return values


class SymmetricConv2d(nn.Conv2d):
    """A convolution with an odd kernel that mirrors its input at the border."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = True
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return (N, outputs, ceil(H / stride), ceil(W / stride))."""
        return super().forward(symmetric_pad(input, self.kernel_size[0] // 2))


class FixedAffine(nn.Module):
    """Batch normalisation whose statistics have been folded into scale and shift."""

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, values: Tensor) -> Tensor:
        """Scale and shift each channel."""
        return values * self.weight[:, None, None] + self.bias[:, None, None]


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions; He et al. (2016), figure 5."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = FixedAffine(inner)
        self.conv2 = SymmetricConv2d(inner, inner, 3, stride, bias=False)
        self.bn2 = FixedAffine(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        # Without statistics to normalise by, sums of random blocks grow; these begin as identity.
        self.bn3 = FixedAffine(outputs, scale=0.0)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), FixedAffine(outputs)
            )

    def forward(self, values: Tensor) -> Tensor:
        """Return (N, outputs, ceil(H / stride), ceil(W / stride))."""
        inner = torch.relu(self.bn1(self.conv1(values)))
        inner = torch.relu(self.bn2(self.conv2(inner)))
        return torch.relu(self.bn3(self.conv3(inner)) + self.downsample(values))


class ResNet50Trunk(nn.Module):
    """ResNet-50 without conv5; layer names of torchvision."""

    def __init__(self, share: float = 1.0) -> None:
        """
        Build the layers.

        :param share: of the published channels.
        """
        super().__init__()
        channels = round(64 * share)
        self.channels = (channels, *(round(out * share) for _, out in RESNET50_STAGES))
        self.conv1 = SymmetricConv2d(3, channels, 7, 2, bias=False)
        self.bn1 = FixedAffine(channels)
        for stage, (blocks, _) in enumerate(RESNET50_STAGES, 1):
            layers = []
            out = self.channels[stage]
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 1 else 1
                layers.append(Bottleneck(channels, out, stride))
                channels = out
            self.add_module(f'layer{stage}', nn.Sequential(*layers))
        initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the last maps at strides 2, 4, 8 and 16."""
        values = torch.relu(self.bn1(self.conv1(image)))
        maps = [values]
        values = F.max_pool2d(values, 3, 2, 1)
        for stage in range(1, len(RESNET50_STAGES) + 1):
            values = self.get_submodule(f'layer{stage}')(values)
            maps.append(values)
        return maps


class VggATrunk(nn.Module):
    """VGG-A without its last pooling; layers are named as those of VGG-16."""

    def __init__(self, share: float = 1.0) -> None:
        """
        Build the layers.

        :param share: of the published channels.
        """
        super().__init__()
        channels = 3
        self.stages: list[list[str]] = []
        for stage, widths in enumerate(VGG_A_STAGES, 1):
            self.stages.append([])
            for layer, width in enumerate(widths, 1):
                name, out = f'conv{stage}_{layer}', round(width * share)
                self.add_module(name, SymmetricConv2d(channels, out, 3))
                self.stages[-1].append(name)
                channels = out
        self.channels = tuple(round(widths[-1] * share) for widths in VGG_A_STAGES[1:])
        initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the last maps at strides 2, 4, 8 and 16."""
        values, maps = image, []
        for stage, names in enumerate(self.stages):
            if stage:
                values = F.max_pool2d(values, 2)
            for name in names:
                values = rectified(getattr(self, name), values)
            maps.append(values)
        return maps[1:]


TRUNKS: dict[str, type[ResNet50Trunk] | type[VggATrunk]] = {
    'resnet50': ResNet50Trunk,  # Pinheiro et al. (2016), section 5.1, and the released code
    'vgg_a': VggATrunk,  # Pinheiro et al. (2015), section 3.1
}


def convert_resnet50(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Fold the statistics of a ResNet-50's batch normalisations, and leave out what the trunk lacks.

    :param tensors: state dict of torchvision's resnet50.
    :returns: state dict of `ResNet50Trunk` at full width.
    :raises WeightsError: tensors are missing; every one is told.
    """
    with torch.device('meta'):
        expected = ResNet50Trunk().state_dict()
    norms = {name.rpartition('.')[0]: value for name, value in expected.items() if value.ndim == 1}
    needed = [name for name, value in expected.items() if value.ndim > 1]
    needed += [
        f'{norm}.{part}'
        for norm in norms
        for part in ('weight', 'bias', 'running_mean', 'running_var')
    ]
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise WeightsError(f'this is no resnet50 of torchvision; missing {", ".join(missing)}')
    converted = {name: tensors[name] for name in needed if tensors[name].ndim > 1}
    for norm in norms:
        deviation = (tensors[f'{norm}.running_var'] + BATCH_NORM_EPSILON).sqrt()
        scale = tensors[f'{norm}.weight'] / deviation
        converted[f'{norm}.weight'] = scale
        converted[f'{norm}.bias'] = (
            tensors[f'{norm}.bias'] - tensors[f'{norm}.running_mean'] * scale
        )
    return converted


def initialise(network: nn.Module) -> None:
    """Fill all layers so that ReLUs between them keep the variance; He et al. (2015)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
