"""Losses of segmentation and flow."""

from collections.abc import Sequence

from dense_perception.labels import UNLABELLED
import torch
from torch import Tensor
import torch.nn.functional as F

# Weight of each level's mean error, levels 6 (coarse) to 2. The paper's weights are for errors
# summed over pixels; these, halving from fine to coarse, are for means.
LEVEL_WEIGHTS = (0.02, 0.04, 0.08, 0.16, 0.32)


def merge_classes(scores: Tensor, table: Tensor, classes: int) -> Tensor:
    """
    Return log-probabilities of a coarse label set from scores of a fine one.

    A coarse class is as probable as all the fine ones that count as it together, so images with
    coarse labels teach a network of fine classes without being told which of them it is.

    :param scores: (N, C, H, W) before softmax.
    :param table: (C,) the coarse class of each fine one.
    :param classes: how many coarse classes there are.
    :returns: (N, classes, H, W).
    """
    logs = F.log_softmax(scores, 1)
    merged = [torch.logsumexp(logs[:, table == index], 1) for index in range(classes)]
    return torch.stack(merged, 1)


def segmentation_loss(logs: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """
    Mean weighted negative log-probability of the true class over the labelled pixels.

    Zero where no pixel is labelled, as a crop beside a small object may be.

    :param logs: (N, C, H, W) log-probabilities.
    :param labels: (N, H, W) int64; 255 is ignored.
    :param weights: (C,) weight per class.
    """
    if not (labels != UNLABELLED).any():
        return logs.sum() * 0
    return F.nll_loss(logs, labels, weights, ignore_index=UNLABELLED)


def flow_loss(flows: Sequence[Tensor], truth: Tensor, valid: Tensor) -> Tensor:
    """
    Weighted mean end-point error over levels 6 to 2; Dosovitskiy et al. (2015), section 5.1.

    :param flows: predictions at levels 6, 5, 4, 3, 2, each (N, 2, h, w).
    :param truth: (N, 2, H, W) in the predictions' unit.
    :param valid: (N, 1, H, W) bool; unknown pixels neither count nor blur into their neighbours.
    """
    share = valid.float()
    known = truth * share
    loss = truth.new_zeros(())
    for weight, flow in zip(LEVEL_WEIGHTS, flows, strict=True):
        size = (flow.shape[2], flow.shape[3])
        part = F.adaptive_avg_pool2d(share, size)  # (N, 1, h, w) share of known pixels
        target = F.adaptive_avg_pool2d(known, size) / part.clamp_min(1e-6)
        error = (flow.float() - target).square().sum(1, keepdim=True).add(1e-8).sqrt()
        loss = loss + weight * (error * part).sum() / part.sum().clamp_min(1)
    return loss
