"""Conditional random field in which every pixel is connected with every other."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import Protocol

from dense_perception.errors import InputError
from dense_perception.graphical.permutohedral import PermutohedralLattice
from dense_perception.settings import setting, Settings
import torch
from torch import Tensor
import torch.nn.functional as F

REACH = 6  # standard deviations; a Gaussian is below 2e-8 beyond
CLIP = 1e-5  # probability; pydensecrf's unary_from_softmax
# A pixel whose kernel sums to less hears nobody: rounding may have left that of its own term.
SMALLEST_SUM = 1e-3
NORMALIZATIONS = ('symmetric', 'after', 'before', 'none')


@dataclass(frozen=True)
class DenseCrfSettings(Settings):
    """Kernels of the field; defaults as in the example of pydensecrf's README."""

    spatial_weight: float = setting(3.0, 'of the smoothness kernel', low=0.0)
    spatial_deviation: float = setting(3.0, 'pixels; theta gamma', low=0.01)
    bilateral_weight: float = setting(10.0, 'of the appearance kernel', low=0.0)
    bilateral_deviation: float = setting(80.0, 'pixels; theta alpha', low=0.01)
    color_deviation: float = setting(13.0, 'in 0 to 255; theta beta', low=0.01)
    iterations: int = setting(5, 'mean-field updates', low=0)
    normalization: str = setting(
        'symmetric',
        'divide by the sum of the kernel: by its root on both sides, after or before filtering',
        choices=NORMALIZATIONS,
    )
    self_term: bool = setting(
        True, "a pixel hears its own label too, as in the authors' code but not in the paper"
    )


class Kernel(Protocol):
    """Weights between all pairs of pixels of one image."""

    def filter(self, values: Tensor) -> Tensor:
        """Return for each pixel the weighted sum over all, (C, H, W) like the input."""
        ...

    def diagonal(self) -> Tensor:
        """Return the weight of each pixel for itself, (H, W)."""
        ...


class SpatialKernel:
    """
    Gaussian of the distance in pixels.

    Exact up to float32: rows and columns are convolved one after the other.
    """

    def __init__(self, size: tuple[int, int], deviation: float, like: Tensor) -> None:
        """
        Tabulate the Gaussian.

        :param size: rows and columns of the image.
        :param deviation: in pixels.
        :param like: its device and number type are used.
        """
        reach = min(math.ceil(REACH * deviation), max(size) - 1)
        distance = torch.arange(-reach, reach + 1, dtype=torch.float64)
        self.line = (-(distance**2) / (2 * deviation**2)).exp().to(like)
        self.one = torch.ones(size).to(like)

    def filter(self, values: Tensor) -> Tensor:
        """Return for each pixel the weighted sum over all, (C, H, W) like the input."""
        channels, reach = len(values), len(self.line) // 2
        line = self.line.to(values.dtype).expand(channels, 1, 1, -1)
        values = F.conv2d(values[None], line, padding=(0, reach), groups=channels)
        column = line.transpose(2, 3)
        return F.conv2d(values, column, padding=(reach, 0), groups=channels)[0]

    def diagonal(self) -> Tensor:
        """Return the weight of each pixel for itself, (H, W): 1."""
        return self.one


class BilateralKernel:
    """Gaussian of the distance in pixels times one of the difference in colour; approximate."""

    def __init__(self, image: Tensor, deviation: float, color_deviation: float) -> None:
        """
        Build the lattice of an image.

        :param image: (3, H, W), colours or their difference from a mean.
        :param deviation: in pixels.
        :param color_deviation: in units of the image.
        """
        colors = image.to(torch.promote_types(image.dtype, torch.float32))
        self.size = image.shape[1:]
        rows, columns = (torch.arange(length).to(colors) for length in self.size)
        # Columns first: another order turns the lattice, and results differ a little.
        position = torch.stack(torch.meshgrid(columns, rows, indexing='xy'))  # (2, H, W)
        features = torch.cat([position / deviation, colors / color_deviation])
        self.lattice = PermutohedralLattice(features.flatten(1).T)

    def filter(self, values: Tensor) -> Tensor:
        """Return for each pixel the weighted sum over all, (C, H, W) like the input."""
        filtered = self.lattice.filter(values.flatten(1).T)  # (H W, C)
        return filtered.T.reshape(values.shape)

    def diagonal(self) -> Tensor:
        """Return the weight of each pixel for itself, (H, W)."""
        return self.lattice.diagonal().reshape(self.size)


class NormalizedKernel:
    """A kernel whose weights are divided by their sums."""

    def __init__(
        self, kernel: Kernel, like: Tensor, normalization: str, *, self_term: bool = True
    ) -> None:
        """
        Measure the sums of the kernel.

        :param kernel: of an image with the rows and columns of `like`.
        :param like: (C, H, W); its device and number type are used.
        :param normalization: one of `NORMALIZATIONS`; `none` leaves the kernel as it is.
        :param self_term: whether a pixel counts for itself.
        """
        self.kernel = kernel
        self.own = None if self_term else kernel.diagonal().to(like)
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        with torch.no_grad():
            sums = self._filter(torch.ones_like(like[:1]))
        factor = torch.where(sums > SMALLEST_SUM, 1 / sums.clamp_min(SMALLEST_SUM), 0)
        if normalization == 'symmetric':
            self.before = self.after = factor.sqrt()
        elif normalization == 'before':
            self.before = factor
        elif normalization == 'after':
            self.after = factor

    def filter(self, values: Tensor) -> Tensor:
        """Return for each pixel the normalised weighted sum, (C, H, W) like the input."""
        if self.before is not None:
            values = values * self.before
        values = self._filter(values)
        return values if self.after is None else values * self.after

    def _filter(self, values: Tensor) -> Tensor:
        filtered = self.kernel.filter(values)
        return filtered if self.own is None else filtered - self.own * values


class DenseCrf:
    """
    Fully connected field over the pixels of one image, with a Potts model.

    Krähenbühl and Koltun (2011). Labels of pixels that are close, or similar in colour, should
    agree. The filters are built once for the image and serve any number of inferences.
    """

    def __init__(self, image: Tensor, settings: DenseCrfSettings | None = None) -> None:
        """
        Build the kernels of an image.

        :param image: (3, H, W) of 0 to 255, uint8 or float; RGB or BGR.
        :param settings: weights and deviations.
        """
        self.settings = settings = settings or DenseCrfSettings()
        self.size = (image.shape[1], image.shape[2])
        like = image.to(torch.promote_types(image.dtype, torch.float32))
        kernels: list[tuple[float, Kernel]] = []
        if settings.spatial_weight:
            spatial = SpatialKernel(self.size, settings.spatial_deviation, like)
            kernels.append((settings.spatial_weight, spatial))
        if settings.bilateral_weight:
            deviations = settings.bilateral_deviation, settings.color_deviation
            kernels.append((settings.bilateral_weight, BilateralKernel(like, *deviations)))
        self.kernels = [
            (
                weight,
                NormalizedKernel(
                    kernel, like, settings.normalization, self_term=settings.self_term
                ),
            )
            for weight, kernel in kernels
        ]

    def infer(self, unary: Tensor) -> Tensor:
        """
        Return the approximate marginal probabilities of the labels.

        :param unary: (C, H, W), negative logarithms of probabilities up to a constant.
        :returns: (C, H, W), probabilities.
        :raises InputError: its rows and columns are not the image's.
        """
        if unary.shape[1:] != self.size:
            rows, columns = self.size
            raise InputError(f'unary is {tuple(unary.shape)}; (C, {rows}, {columns}) is needed')
        return mean_field(unary, self.kernels, self.settings.iterations)


def mean_field(
    unary: Tensor, kernels: Sequence[tuple[float, NormalizedKernel]], iterations: int
) -> Tensor:
    """
    Approximate the marginals of a field with Potts compatibility.

    Krähenbühl and Koltun (2011), algorithm 1. That other labels are punished and that the own
    one is rewarded differ by a constant, which softmax ignores.

    :param unary: (C, H, W).
    :param kernels: weight and kernel of each pairwise term.
    :returns: (C, H, W), probabilities.
    """
    marginals = (-unary).softmax(0)
    for _ in range(iterations):
        energy = unary
        for weight, kernel in kernels:
            energy = energy - weight * kernel.filter(marginals)
        marginals = (-energy).softmax(0)
    return marginals


def unary_from_probabilities(probabilities: Tensor, clip: float = CLIP) -> Tensor:
    """
    Return negative logarithms of probabilities, finite for those that are 0.

    :param probabilities: any shape, 0 to 1.
    :param clip: smaller probabilities count as this.
    """
    return -probabilities.clamp(clip, 1).log()
