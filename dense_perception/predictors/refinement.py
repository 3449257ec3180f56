"""Refine class scores by the image they belong to: stages after any segmentation network."""

from collections.abc import Callable
from typing import TypeAlias

from dense_perception.errors import SettingError
from dense_perception.graphical.dense_crf import DenseCrf, unary_from_probabilities
from dense_perception.networks.crfrnn import CrfRnn
from dense_perception.settings import REFINEMENTS
import torch
from torch import Tensor

# Takes scores (1, C, H, W) and their image (1, 3, H, W) of 0 to 255, gives scores.
Refinement: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def refine_by_dense_crf(scores: Tensor, image: Tensor) -> Tensor:
    """
    Return the logarithms of a fully connected field's marginals, which are scores again.

    Krähenbühl and Koltun (2011), with the parameters of `DenseCrfSettings`.

    :param scores: (1, C, H, W) before softmax.
    :param image: (1, 3, H, W) of 0 to 255.
    """
    unary = unary_from_probabilities(scores[0].softmax(0))
    smallest = torch.finfo(scores.dtype).tiny
    return DenseCrf(image[0]).infer(unary).clamp_min(smallest).log()[None]


def choose_refinement(name: str, classes: int, device: torch.device) -> Refinement | None:
    """
    Return a stage by its name.

    :param name: none; dense_crf; or crf_rnn, the layer of Zheng et al. (2015) with the weights
        that its training starts from. Trained ones are part of a network, `crf_rnn`.
    :param classes: channels of the scores.
    :param device: where the scores will be.
    :returns: None for none.
    :raises SettingError: there is no such stage.
    """
    if name not in REFINEMENTS:
        raise SettingError(f'refinement is {name!r}; it must be one of {", ".join(REFINEMENTS)}')
    if name == 'none':
        return None
    if name == 'dense_crf':
        return refine_by_dense_crf
    return CrfRnn(classes).eval().requires_grad_(False).to(device)
