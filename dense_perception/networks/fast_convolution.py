"""
A wide dilated convolution with 121 products where there were 196.

Outputs come in pairs that share products, as in a fast FIR filter of two parallel outputs (Mou and
Duhamel, 1991; Winograd's F(2, 2) applied to whole filters), in both directions. With the even taps
e, the odd taps o, and the input's even and odd values x and y, where x' is x one place on, three
filters of half the length give both outputs of a pair:

    even output = e * (x - y) + (e + o) * y
    odd output = (e + o) * y - o * (y - x')

A dilated convolution is such a filter on every d-th row and column.
"""

from typing import TypeAlias, TypeGuard

from dense_perception.networks.layers import infers_on_cpu, is_plain
import torch
from torch import nn, Tensor
import torch.nn.functional as F

Three: TypeAlias = tuple[Tensor, Tensor, Tensor]

_LEAST_TAPS = 5  # a side; 3 taps become 5 products of 6
_LEAST_CHANNELS = 512  # in and out, below which adding takes what multiplying saves
_MOST_FILLED = 1.3  # of the wanted outputs that are computed to make pairs


class FastConvolution(nn.Conv2d):
    """
    A convolution that adds more and multiplies less where torch infers on a CPU.

    Takes and gives what the layer does that it is made of. In bfloat16 it is twice as far from
    float32, within 1e-2 of the result's norm, as sums of taps are rounded as well. Its filters
    take two and a half times the memory of the layer's, beside these.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        """
        Share a layer's weight and bias.

        :param layer: one that `is_plain`, with an odd number of taps a side; on its device and in
            its number type, for good.
        """
        assert not isinstance(layer.padding, str)
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            (layer.kernel_size[0], layer.kernel_size[1]),
            padding=(layer.padding[0], layer.padding[1]),
            dilation=(layer.dilation[0], layer.dilation[1]),
            device='meta',
        )
        self.weight, self.bias = layer.weight, layer.bias
        weight = layer.weight.detach().float()
        for row, filters in enumerate(_halves_of_taps(weight, 2)):
            for column, part in enumerate(_halves_of_taps(filters, 3)):
                part = part.to(layer.weight.dtype, memory_format=torch.channels_last)
                self.register_buffer(f'filter{row}{column}', part, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Return (N, filters, rows, columns), channels last in memory."""
        padding, steps = self.padding, [2 * step for step in self.dilation]
        assert not isinstance(padding, str)
        size = [
            values.shape[2 + axis] + 2 * padding[axis] - self.dilation[axis] * (taps - 1)
            for axis, taps in enumerate(self.kernel_size)
        ]
        filled = [-(-side // step) * step for side, step in zip(size, steps, strict=True)]
        if (
            not infers_on_cpu(values)
            or min(size) < 1
            or filled[0] * filled[1] > _MOST_FILLED * size[0] * size[1]
        ):
            return super().forward(values)
        edges = [
            (before, before + more - wanted)
            for before, more, wanted in zip(padding, filled, size, strict=True)
        ]
        result = self._in_pairs(F.pad(values, (*edges[1], *edges[0])).permute(0, 2, 3, 1))
        return result[:, : size[0], : size[1]].permute(0, 3, 1, 2)

    def _in_pairs(self, values: Tensor) -> Tensor:
        """Convolve (N, rows, columns, C) whose outputs are whole pairs; N, ... last as well."""
        down, across = self.dilation
        products = [
            [
                self._product(part, row, column)
                for column, part in enumerate(_differences(rows, 2, across))
            ]
            for row, rows in enumerate(_differences(values, 1, down))
        ]
        batch, high, wide, filters = products[0][0].shape
        result = values.new_empty(batch, high // down, 2, down, wide // across, 2, across, filters)
        pairs = [_pair(*parts) for parts in zip(*products, strict=True)]
        for odd_row, columns in enumerate(zip(*pairs, strict=True)):
            for odd_column, part in enumerate(_pair(*columns)):
                place = result[:, :, odd_row, :, :, odd_column]
                place.copy_(part.reshape(place.shape))
        return result.view(batch, 2 * high, 2 * wide, filters)

    def _product(self, values: Tensor, row: int, column: int) -> Tensor:
        """Return what one of the nine filters makes of (N, rows, columns, C)."""
        bias = self.bias if row == column == 1 else None  # the one that is in all outputs
        filters = self.get_buffer(f'filter{row}{column}')
        images = values.contiguous().permute(0, 3, 1, 2)
        return F.conv2d(images, filters, bias, dilation=self.dilation).permute(0, 2, 3, 1)


def _halves_of_taps(weight: Tensor, axis: int) -> Three:
    """Return the even taps, these plus the odd ones, and the odd ones."""
    taps = weight.unbind(axis)
    even, odd = torch.stack(taps[::2], axis), torch.stack(taps[1::2], axis)
    last = torch.zeros_like(taps[0]).unsqueeze(axis)
    return even, even + torch.cat([odd, last], axis), odd


def _differences(values: Tensor, axis: int, step: int) -> Three:
    """Return what the three filters take: x - y, y, and y - x'."""
    pairs = values.shape[axis] // (2 * step)
    shape = (*values.shape[:axis], pairs, 2, step, *values.shape[axis + 1 :])
    even, odd = values.reshape(shape).unbind(axis + 1)
    following, before = even.narrow(axis, 1, pairs - 1), odd.narrow(axis, 0, pairs - 1)
    parts = (even - odd, odd, before - following)
    first, both, last = (part.flatten(axis, axis + 1) for part in parts)
    return first, both, last


def _pair(first: Tensor, both: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the even and the odd outputs."""
    return first + both, both - last


def can_be_fast(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a `FastConvolution` can take a layer's place and is worth its memory."""
    return (
        type(layer) is nn.Conv2d
        and is_plain(layer)
        # Undilated ones of that size see a few places only.
        and min(layer.dilation) > 1
        and all(taps % 2 == 1 and taps >= _LEAST_TAPS for taps in layer.kernel_size)
        and min(layer.in_channels, layer.out_channels) >= _LEAST_CHANNELS
    )


def make_fast(network: nn.Module) -> None:
    """Put a `FastConvolution` in the place of each layer of a network for which it is worth it."""
    for name, layer in list(network.named_modules()):
        if name and can_be_fast(layer):
            network.set_submodule(name, FastConvolution(layer))
