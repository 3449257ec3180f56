"""CRF-RNN: mean-field inference as a layer that is trained with its network."""

from collections.abc import Mapping
from dataclasses import dataclass

from dense_perception.graphical.dense_crf import BilateralKernel, NormalizedKernel, SpatialKernel
from dense_perception.settings import setting, Settings
import torch
from torch import nn, Tensor


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
        Return refined scores, before softmax.

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
        spatial, bilateral = self._kernels(unary_scores, image)
        settings, scores = self.settings, unary_scores
        for _ in range(settings.training_iterations if self.training else settings.iterations):
            marginals = scores.softmax(0)
            message = torch.tensordot(self.spatial_ker_weights, spatial.filter(marginals), 1)
            message = message + torch.tensordot(
                self.bilateral_ker_weights, bilateral.filter(marginals), 1
            )
            scores = unary_scores - torch.tensordot(self.compatibility_matrix, message, 1)
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
    Any network that scores every pixel, followed by a CRF-RNN layer.

    Zheng et al. (2015), section 5, where the network is FCN-8s.
    """

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

        :param network: takes (N, 3, H, W), gives scores (N, classes, H, W).
        :param color_scale: what colours of 0 to 255 were divided by to make the network's input.
        """
        super().__init__()
        self.classes, self.color_scale = classes, color_scale
        self.network = network
        self.crfrnn = CrfRnn(classes, settings)

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores, before softmax, (N, C, H, W)."""
        return self.crfrnn(self.network(image), image * self.color_scale)


def from_added_compatibility(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Return a state whose compatibility is subtracted, from one whose compatibility is added.

    :param state: of a PyTorch port; every entry named `compatibility_matrix` is negated.
    """
    return {
        name: -value if name.rpartition('.')[2] == 'compatibility_matrix' else value
        for name, value in state.items()
    }
