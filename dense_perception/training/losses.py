"""Losses of segmentation and flow."""

from collections.abc import Sequence
from functools import lru_cache

from dense_perception.labels import UNLABELLED
import torch
from torch import Tensor
import torch.nn.functional as F

# Weight of each level's mean error, levels 6 (coarse) to 2. The paper's weights are for errors
# summed over pixels; these, halving from fine to coarse, are for means.
LEVEL_WEIGHTS = (0.02, 0.04, 0.08, 0.16, 0.32)
# Those of the released training code, for errors summed over the pixels of each sample.
SUMMED_LEVEL_WEIGHTS = (0.32, 0.08, 0.02, 0.01, 0.005)


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
    members = _members(tuple(table.tolist()), classes, scores.device)
    merged = [torch.logsumexp(logs.index_select(1, places), 1) for places in members]
    return torch.stack(merged, 1)


@lru_cache(maxsize=8)
def _members(table: tuple[int, ...], classes: int, device: torch.device) -> list[Tensor]:
    """Return the fine classes of each coarse one; kept, so that a GPU need not be waited for."""
    return [
        torch.tensor([fine for fine, coarse in enumerate(table) if coarse == index], device=device)
        for index in range(classes)
    ]


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


def overlap_loss(logs: Tensor, labels: Tensor) -> Tensor:
    """
    One minus the mean soft intersection over union of the classes present; what is measured.

    Rahman and Wang (2016), section 3, over a whole batch. Every class counts alike, however few
    its pixels are. Zero where no pixel is labelled.

    :param logs: (N, C, H, W) log-probabilities.
    :param labels: (N, H, W) int64; 255 is ignored.
    """
    labels = labels.to(logs.device)
    classes = torch.arange(logs.shape[1], device=logs.device)[:, None, None]
    true = labels[:, None] == classes  # (N, C, H, W); no pixel is picked out: a GPU never waits
    share = logs.exp() * (labels != UNLABELLED)[:, None]
    size = true.sum((0, 2, 3))
    both = (share * true).sum((0, 2, 3))
    present = size > 0
    union = share.sum((0, 2, 3)) + size - both
    count = present.sum()
    return count.clamp_max(1) - (both / union.clamp_min(1e-6) * present).sum() / count.clamp_min(1)


def segmentation_costs(logs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """
    Sum of the weighted negative log-probabilities of the true classes.

    :param logs: (N, C, H, W) log-probabilities.
    :param labels: (N, H, W) int64; 255 costs nothing.
    :param weights: (C,) weight per class.
    """
    return F.nll_loss(
        logs,
        labels.to(logs.device),
        weights.to(logs.device),
        ignore_index=UNLABELLED,
        reduction='sum',
    )


def known_flow(valid: Tensor) -> Tensor:
    """
    Return what the flow loss divides by: the number of known pixels, and that of samples.

    :param valid: (N, 1, H, W) bool.
    """
    return torch.tensor([float(valid.sum()), float(len(valid))], dtype=torch.float64)


def flow_loss(
    flows: Sequence[Tensor],
    truth: Tensor,
    valid: Tensor,
    known: Tensor | None = None,
    *,
    summed: bool = False,
) -> Tensor:
    """
    Weighted end-point error over levels 6 to 2; Dosovitskiy et al. (2015), section 5.1.

    :param flows: predictions at levels 6, 5, 4, 3, 2, each (N, 2, h, w).
    :param truth: (N, 2, H, W) in the predictions' unit.
    :param valid: (N, 1, H, W) bool; unknown pixels neither count nor blur into their neighbours.
    :param known: `known_flow` of the whole batch, where this is a part of it; parts add up.
    :param summed: sum each sample's errors over the pixels of a level, as the released training
        code does, rather than take their mean.
    """
    share = valid.float()
    blurred = truth * share
    pixels, samples = (known_flow(valid) if known is None else known).tolist()
    loss = truth.new_zeros(())
    weights = SUMMED_LEVEL_WEIGHTS if summed else LEVEL_WEIGHTS
    for weight, flow in zip(weights, flows, strict=True):
        size = (flow.shape[2], flow.shape[3])
        part = F.adaptive_avg_pool2d(share, size)  # (N, 1, h, w) share of known pixels
        target = F.adaptive_avg_pool2d(blurred, size) / part.clamp_min(1e-6)
        error = (flow.float() - target).square().sum(1, keepdim=True).add(1e-8).sqrt()
        count = pixels * size[0] * size[1] / (valid.shape[2] * valid.shape[3])
        loss = loss + weight * (error * part).sum() / (samples if summed else max(count, 1.0))
    return loss
