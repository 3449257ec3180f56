"""Layers that several networks share."""

import math

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
