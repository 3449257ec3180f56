"""CRF-RNN: mean-field inference as a layer that is trained with its network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dense_perception.graphical.dense_crf import BilateralKernel, NormalizedKernel, SpatialKernel
from dense_perception.networks.layers import crop_to
from dense_perception.settings import setting, Settings
import torch
from torch import nn, Tensor
import torch.nn.functional as F

COLOR_SCALE = 57.375  # grey levels per unit of a network's input, as `Preprocessing` has it


@dataclass(frozen=True)
class CrfRnnSettings(Settings):
    """Fixed part of the layer; defaults as in the released code of Zheng et al. (2015)."""

    spatial_deviation: float = setting(3.0, 'pixels; theta gamma', low=0.01)
    bilateral_deviation: float = setting(160.0, 'pixels; theta alpha', low=0.01)
    color_deviation: float = setting(3.0, 'in 0 to 255; theta beta', low=0.01)
    iterations: int = setting(10, 'mean-field updates when evaluating', low=0)
    training_iterations: int = setting(5, 'mean-field updates when training', low=0)


class CrfRnn(nn.Module):
    """
    Mean-field inference of a dense field whose weights are learned.

    Zheng et al. (2015), section 4. Each kernel has a (C, C) matrix of weights; a third one holds
    the compatibility of labels. Kernels are divided by their sums after filtering.

    The sign is that of the Caffe release: scores minus compatibility times message, with -1 on
    the diagonal at the start. PyTorch ports add instead; see `from_added_compatibility`.
    """

    def __init__(self, classes: int, settings: CrfRnnSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or CrfRnnSettings()
        self.spatial_ker_weights = nn.Parameter(3 * torch.eye(classes))
        self.bilateral_ker_weights = nn.Parameter(5 * torch.eye(classes))
        self.compatibility_matrix = nn.Parameter(-torch.eye(classes))

    def forward(self, scores: Tensor, image: Tensor) -> Tensor:
        """
        Return refined scores, before softmax; computed in float32 at least.

        :param scores: (N, C, H, W), before softmax.
        :param image: (N, 3, H, W), colours of 0 to 255, with or without a mean subtracted.
        :returns: (N, C, H, W).
        :raises ValueError: scores and image differ in rows or columns.
        """
        if scores.shape[2:] != image.shape[2:]:
            raise ValueError(
                f'scores are {tuple(scores.shape)}, image is {tuple(image.shape)}; '
                'rows and columns must be equal'
            )
        return torch.stack([self._refine(*pair) for pair in zip(scores, image, strict=True)])

    def _refine(self, unary_scores: Tensor, image: Tensor) -> Tensor:
        # The sums over all pixels need more digits than the half precisions have.
        unary_scores = unary_scores.to(torch.promote_types(unary_scores.dtype, torch.float32))
        spatial, bilateral = self._kernels(unary_scores, image.to(unary_scores))
        spatial_weights, bilateral_weights, compatibility = (
            matrix.to(unary_scores)
            for matrix in (
                self.spatial_ker_weights,
                self.bilateral_ker_weights,
                self.compatibility_matrix,
            )
        )
        settings, scores = self.settings, unary_scores
        for _ in range(settings.training_iterations if self.training else settings.iterations):
            marginals = scores.softmax(0)
            message = torch.tensordot(spatial_weights, spatial.filter(marginals), 1)
            message = message + torch.tensordot(bilateral_weights, bilateral.filter(marginals), 1)
            scores = unary_scores - torch.tensordot(compatibility, message, 1)
        return scores

    @torch.no_grad()
    def _kernels(self, scores: Tensor, image: Tensor) -> tuple[NormalizedKernel, NormalizedKernel]:
        size = (image.shape[1], image.shape[2])
        settings = self.settings
        spatial = SpatialKernel(size, settings.spatial_deviation, scores)
        bilateral = BilateralKernel(image, settings.bilateral_deviation, settings.color_deviation)
        return (
            NormalizedKernel(spatial, scores, 'after'),
            NormalizedKernel(bilateral, scores, 'after'),
        )


class WithCrfRnn(nn.Module):
    """
    Any segmentation network, followed by a CRF-RNN layer.

    Zheng et al. (2015), section 5, where the network is FCN-8s. Scores of a network that gives
    one for several pixels are interpolated to the pixels first.
    """

    stride = 1  # image pixels per score

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        *,
        color_scale: float = 1.0,
        settings: CrfRnnSettings | None = None,
    ) -> None:
        """
        Append the layer.

        :param network: takes (N, 3, H, W), gives scores (N, classes, rows, columns) for
            `stride` x `stride` pixels each; where it has a `margin`, of the pixels inside that.
        :param color_scale: what colours of 0 to 255 were divided by to make the network's input.
        """
        super().__init__()
        self.classes, self.color_scale = classes, color_scale
        self.network = network
        self.crfrnn = CrfRnn(classes, settings)

    @property
    def margin(self) -> int:
        """Reflected pixels that the image needs on every side."""
        return int(getattr(self.network, 'margin', 0))

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, before softmax, one for each pixel inside the margin."""
        rows, columns = (size - 2 * self.margin for size in image.shape[2:])
        inside = image.narrow(2, self.margin, rows).narrow(3, self.margin, columns)
        scores = self.network(image)
        if scores.shape[2:] != inside.shape[2:]:
            stride = float(self.network.stride)  # type: ignore[arg-type]  # image pixels per score
            scores = crop_to(F.interpolate(scores, scale_factor=stride, mode='bilinear'), inside)
        return self.crfrnn(scores, inside * self.color_scale)


def with_crf_rnn(
    network: Callable[..., nn.Module],
    classes: int,
    *,
    color_scale: float = COLOR_SCALE,
    settings: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> WithCrfRnn:
    """
    Build a network with a CRF-RNN layer from plain values, as a weights file's card holds them.

    :param network: takes `classes` and `arguments`.
    :param settings: fields of `CrfRnnSettings` that differ from its defaults.
    :raises SettingError: a field has an unknown name or a wrong value.
    """
    return WithCrfRnn(
        network(classes=classes, **arguments),
        classes,
        color_scale=color_scale,
        settings=CrfRnnSettings.from_mapping(settings or {}, 'settings of the CRF-RNN'),
    )


def from_added_compatibility(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Return a state whose compatibility is subtracted, from one whose compatibility is added.

    :param state: of a PyTorch port; every entry named `compatibility_matrix` is negated.
    """
    return {
        name: -value if name.rpartition('.')[2] == 'compatibility_matrix' else value
        for name, value in state.items()
    }
