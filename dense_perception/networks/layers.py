"""Layers that several networks share."""

from functools import cache
import math
from typing import TypeGuard

import torch
from torch import nn, Tensor
import torch.nn.functional as F


def bilinear_kernel(factor: int) -> Tensor:
    """
    Kernel of a transposed convolution that enlarges by bilinear interpolation.

    Caffe's BilinearFiller, as in Long et al. (2015), section 3.3.

    :param factor: enlargement, at least 1.
    :returns: (K, K) float32 with K = 2 factor - factor mod 2.
    """
    size = 2 * factor - factor % 2
    half = math.ceil(size / 2)
    center = (2 * half - 1 - half % 2) / (2 * half)
    line = 1 - (torch.arange(size) / half - center).abs()
    return torch.outer(line, line)


class BilinearUpsampling(nn.ConvTranspose2d):
    """
    Enlarge each channel by a whole factor, as a transposed convolution.

    Starts bilinear and without bias; one kernel per channel. Output is `factor` times the input.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size=2 * factor - factor % 2,
            stride=factor,
            padding=math.ceil((factor - 1) / 2),
            groups=channels,
            bias=False,
        )
        with torch.no_grad():
            self.weight.copy_(bilinear_kernel(factor).expand_as(self.weight))


def rectified(layer: nn.Conv2d, values: Tensor, slope: float = 0.0) -> Tensor:
    """
    Return what a (leaky) ReLU makes of a convolution.

    Where torch infers on a CPU, oneDNN does both in one pass: a ReLU of its own takes as long as a
    good part of a narrow convolution.

    :param values: (N, C, H, W).
    :param slope: of the ReLU below zero.
    """
    if (
        type(layer) is nn.Conv2d
        and not (layer._forward_hooks or layer._forward_pre_hooks)  # they see what it gives
        and infers_on_cpu(values)
        and layer.padding_mode == 'zeros'
        and not isinstance(layer.padding, str)
        and values.numel() > 0
        and _fuses(values.dtype)
    ):
        return _in_one_pass(layer, values, slope)
    convolved = layer(values)
    return F.leaky_relu(convolved, slope, inplace=True) if slope else torch.relu(convolved)


def _in_one_pass(layer: nn.Conv2d, values: Tensor, slope: float) -> Tensor:
    attribute, scalars = ('leaky_relu', [slope]) if slope else ('relu', [])
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        values,
        layer.weight,
        layer.bias,
        layer.padding,
        layer.stride,
        layer.dilation,
        layer.groups,
        attribute,
        scalars,
        '',
    )
    return result


def is_plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution at stride 1, zero-padded, not grouped, with bias."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.stride == (1, 1)
        and layer.groups == 1
        and layer.bias is not None
        and layer.padding_mode == 'zeros'
        and not isinstance(layer.padding, str)
    )


def infers_on_cpu(values: Tensor) -> bool:
    """Whether values are computed as they are, on a CPU, for nobody's gradient and no export."""
    return (
        type(values) is Tensor
        and values.device.type == 'cpu'
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled('cpu')
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.compiler.is_compiling()
    )


@cache
def _fuses(dtype: torch.dtype) -> bool:
    """Whether torch was built with oneDNN, and that rectifies here in a number type."""
    # Without random numbers, which whoever gave a seed would miss.
    layer = nn.utils.skip_init(nn.Conv2d, 1, 1, 1, bias=False, dtype=dtype)  # type: ignore[no-untyped-call]
    layer.weight.fill_(1)
    try:
        return bool(_in_one_pass(layer, layer.weight.new_full((1, 1, 1, 1), -1), 0.0) == 0)
    except (AttributeError, RuntimeError):  # no such operator, or not for that type
        return False


def max_pool(values: Tensor) -> Tensor:
    """
    Return the largest of each 2 x 2 values, (N, C, ceil(H / 2), ceil(W / 2)).

    Where torch infers on a CPU, pairs of rows and of columns are compared; its own pooling also
    notes the places of the largest, and is slower.
    """
    if infers_on_cpu(values) and not any(side % 2 for side in values.shape[2:]):
        higher = torch.maximum(values[:, :, ::2], values[:, :, 1::2])
        return torch.maximum(higher[..., ::2], higher[..., 1::2])
    return F.max_pool2d(values, 2, ceil_mode=True)


def zoom(values: Tensor, factor: int) -> Tensor:
    """
    Enlarge as the released code of Yu and Koltun (2016) does where it says `zoom`.

    Row h of the result reads the input at h / factor, without the half-pixel shift of other
    interpolation; beyond the last row the input goes on as it ends.

    :param values: (N, C, H, W).
    :returns: (N, C, H * factor, W * factor).
    """
    rows, columns = (size * factor for size in values.shape[2:])
    padded = F.pad(values, (0, 1, 0, 1), mode='replicate')
    larger = F.interpolate(padded, (rows + 1, columns + 1), mode='bilinear', align_corners=True)
    return larger[:, :, :rows, :columns]


def crop_to(values: Tensor, reference: Tensor) -> Tensor:
    """Cut (N, C, H, W) at the right and bottom to the rows and columns of `reference`."""
    return values[:, :, : reference.shape[2], : reference.shape[3]]


def correlation(first: Tensor, second: Tensor, reach: int = 20, step: int = 2) -> Tensor:
    """
    Compare every position of one feature map with its surroundings in another.

    Dosovitskiy et al. (2015), section 3, with kernel size 1 and the mean over channels, as in the
    released code. For each vertical shift one batched matrix product compares whole rows; the
    wanted horizontal shifts are a band of its diagonals, so no shifted copy is ever made.

    :param first: (N, C, H, W) features of the first image.
    :param second: the same shape; zero outside.
    :param reach: largest shift in positions, in both directions.
    :param step: distance between the shifts that are compared.
    :returns: (N, D * D, H, W) with D = 2 * (reach // step) + 1; horizontal shift runs fastest.
    """
    batch, channels, rows, columns = first.shape
    steps = reach // step
    side = 2 * steps + 1
    width = columns + 2 * steps * step
    margin = steps * step
    rows_first = first.permute(0, 2, 3, 1) / channels  # (N, H, W, C)
    padded = F.pad(second, (margin, margin, margin, margin))
    rows_second = padded.permute(0, 2, 1, 3)  # (N, H + 2 margin, C, W + 2 margin)
    bands = []
    for shift in range(0, side * step, step):
        products = rows_first @ rows_second[:, shift : shift + rows]  # (N, H, W, W + 2 margin)
        bands.append(
            products.contiguous()
            .as_strided(
                (batch, side, rows, columns),
                (rows * columns * width, step, columns * width, width + 1),
            )
            .clone()  # else the whole products would be kept until all are joined
        )
    return torch.cat(bands, 1)
