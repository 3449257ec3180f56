"""
Batch normalisation while a plain network is trained, folded into its convolutions afterwards.

The published front end has none, and deep narrow networks train slowly without it. The finished
network is the plain one again: same layers, same names, same cost.
"""

from collections.abc import Mapping, Sequence
import math
import re

from dense_perception.weights.checkpoint import Card
import torch
from torch import nn, Tensor

# VGG-16's layers, and those of FlowNet's encoder.
_HIDDEN = re.compile(r'(^|\.)(conv\d_\d|fc6|fc7|conv\w+\.0)$')
_SMALLEST = 1e-3  # a channel that hardly changes is not blown up


class NormalizedConvolution(nn.Conv2d):
    """A convolution whose output is normalised; Ioffe and Szegedy (2015), section 3.2."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]
            stride=plain.stride,  # type: ignore[arg-type]
            padding=plain.padding,  # type: ignore[arg-type]
            dilation=plain.dilation,  # type: ignore[arg-type]
            groups=plain.groups,
            bias=plain.bias is not None,
        )
        self.load_state_dict(plain.state_dict(), strict=False)
        self.norm = nn.BatchNorm2d(plain.out_channels)

    def forward(self, values: Tensor) -> Tensor:
        """Return the normalised convolution, (N, C, H, W)."""
        return self.norm(super().forward(values))


def normalize_convolutions(network: nn.Module) -> list[str]:
    """
    Put batch normalisation behind the hidden convolutions of a network, in place.

    Those are the ones that ReLU follows, by their published names. A network that has batch
    normalisation of its own stays as it is.

    :returns: names of the convolutions, in the order of the network.
    """
    if any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
        return []
    names = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and _HIDDEN.search(name)
    ]
    for name in names:
        parent, _, own = name.rpartition('.')
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        setattr(network.get_submodule(parent), own, NormalizedConvolution(layer))
    return names


@torch.no_grad()
def keep_function(network: nn.Module, names: Sequence[str], images: Tensor) -> None:
    """
    Set the normalisation of a chain of trained layers so that what they compute is kept.

    Each channel is scaled to a deviation of 1 and the next layer takes that back, which ReLU
    and pooling between them allow; filters get the length that fresh ones have. Otherwise the
    first steps of training would wreck what the layers know.

    :param network: has been through `normalize_convolutions`.
    :param names: trained layers, first to last; each feeds the next.
    :param images: (N, 3, H, W) preprocessed images to measure channels on.
    """
    network.eval()
    scale: Tensor | None = None
    for name in names:
        layer = network.get_submodule(name)
        assert isinstance(layer, NormalizedConvolution)
        if scale is not None:
            layer.weight.mul_(scale[:, None, None])
        mean, deviation = _output_statistics(network, layer, images)
        length = layer.weight.flatten(1).norm(dim=1).clamp_min(1e-8) / math.sqrt(2)
        layer.weight.div_(length[:, None, None, None])
        assert layer.bias is not None
        layer.bias.div_(length)
        layer.norm.weight.fill_(1)
        layer.norm.bias.copy_(mean / deviation)
        assert layer.norm.running_mean is not None
        assert layer.norm.running_var is not None
        layer.norm.running_mean.copy_(mean / length)
        layer.norm.running_var.copy_((deviation / length).square())
        scale = deviation
    network.train()


def _output_statistics(
    network: nn.Module, layer: NormalizedConvolution, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel before it is normalised."""
    seen: list[tuple[Tensor, Tensor]] = []

    def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((inputs[0].mean((0, 2, 3)), inputs[0].std((0, 2, 3))))

    hook = layer.norm.register_forward_pre_hook(measure)
    network(images)
    hook.remove()
    mean, deviation = seen[0]
    return mean, deviation.clamp_min(_SMALLEST)


def fold(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Return the state of the plain network that computes the same in evaluation.

    :param state: of a network with `NormalizedConvolution`; others pass unchanged.
    """
    folded = {name: value for name, value in state.items() if '.norm.' not in name}
    for name in [name for name in state if name.endswith('.norm.running_var')]:
        layer = name.removesuffix('.norm.running_var')
        gain = state[f'{layer}.norm.weight'] / (state[name] + nn.BatchNorm2d(1).eps).sqrt()
        offset = state[f'{layer}.bias'] - state[f'{layer}.norm.running_mean']
        folded[f'{layer}.weight'] = state[f'{layer}.weight'] * gain[:, None, None, None]
        folded[f'{layer}.bias'] = offset * gain + state[f'{layer}.norm.bias']
    return folded


def folded(network: nn.Module, card: Card) -> nn.Module:
    """
    Return a copy of a network, as its card describes it, without the added normalisation.

    :param network: of the card, perhaps been through `normalize_convolutions`.
    """
    plain = card.build()
    plain.load_state_dict(fold(network.state_dict()))
    return plain
