"""
From scores of a fraction of the image's size straight to the label of each pixel.

Labels and confidence are those of the scores interpolated to the image's size, but that volume
(C, H, W) is never made. `reference` states the definition in torch; the others are equal to it but
where two classes, or two steps of confidence, differ by less than float32's rounding.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
import logging
from types import ModuleType
from typing import NamedTuple

import cv2
from dense_perception.arrays import Confidence, Labels
from dense_perception.errors import InputError
from dense_perception.networks.layers import zoom
from dense_perception.predictors.tensors import fetch
import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor
import torch.nn.functional as F

_LOG = logging.getLogger(__name__)
_MOST_CLASSES = 255  # a label is one byte, and 255 says that there is none
_KERNELS = {'cpu': 'labelling_cpu', 'cuda': 'labelling_cuda'}  # they need numba and Triton


@dataclass(frozen=True)
class Enlargement:
    """How scores become pixels: interpolated to a size, then cut at the right and bottom."""

    rows: int  # after interpolation
    columns: int
    height: int  # of the image; at most `rows`
    width: int
    upsampling: str = 'half_pixel'  # or zoom; see `weights.checkpoint.Card`
    stride: int = 8  # pixels of the network's input per score

    def __post_init__(self) -> None:
        if not (0 < self.height <= self.rows and 0 < self.width <= self.columns):
            raise InputError(
                f'an image of {self.height} x {self.width} pixels cannot be cut from scores '
                f'enlarged to {self.rows} x {self.columns}'
            )


class Axis(NamedTuple):
    """Where the pixels of one axis lie between scores."""

    lower: NDArray[np.int32]  # (pixels,) score before the pixel; it never falls
    weight: NDArray[np.float32]  # (pixels,) share of the score after it, 0 to 1

    def starts(self, scores: int) -> NDArray[np.int32]:
        """Return the first pixel after each score, and the number of pixels; (scores + 1,)."""
        return np.searchsorted(self.lower, np.arange(scores + 1)).astype(np.int32)


def axes(scores: Tensor, enlargement: Enlargement) -> tuple[Axis, Axis] | None:
    """
    Return the places of the rows and columns of pixels; None where they are not bilinear.

    :param scores: (1, C, rows, columns).
    """
    rows, columns = scores.shape[2:]
    if enlargement.upsampling == 'half_pixel':
        return (
            _half_pixel(rows, enlargement.rows, enlargement.height),
            _half_pixel(columns, enlargement.columns, enlargement.width),
        )
    stride = enlargement.stride
    if (enlargement.rows, enlargement.columns) != (rows * stride, columns * stride):
        return None  # zoomed, then interpolated once more
    return _zoom(enlargement.height, stride), _zoom(enlargement.width, stride)


def _half_pixel(scores: int, enlarged: int, pixels: int) -> Axis:
    # In float32, as torch has it: other rounding would move pixels by a ten thousandth.
    scale = np.float32(scores) / np.float32(enlarged)
    places = scale * (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    places = places.clip(0, scores - 1)
    lower = places.astype(np.int32)
    return Axis(lower, places - lower.astype(np.float32))


def _zoom(pixels: int, stride: int) -> Axis:
    places = np.arange(pixels, dtype=np.int32)
    return Axis(places // stride, ((places % stride) / stride).astype(np.float32))


def label_pixels(
    scores: Tensor, enlargement: Enlargement, *, confidence: bool = False
) -> tuple[Labels, Confidence | None]:
    """
    Label every pixel, in the fastest way that there is here.

    A CUDA device uses Triton, a CPU numba; where it is not installed, OpenCV; and where that lacks
    the interpolation, torch.

    :param scores: (1, C, rows, columns) float32, before softmax.
    :param confidence: whether to give the probability of each label too.
    :returns: (height, width) uint8 each; confidence is 255 times the softmax of the best class.
    :raises InputError: not one image's scores, no class or over 255, or no finite numbers.
    """
    if scores.ndim != 4 or scores.shape[0] != 1 or not 1 <= scores.shape[1] <= _MOST_CLASSES:
        raise InputError(
            f'scores are {tuple(scores.shape)}; (1, 1 to {_MOST_CLASSES} classes, rows, columns) '
            'are needed'
        )
    if not scores.sum(dtype=torch.float32).isfinite():
        raise InputError('scores hold infinity or no number; try another precision')
    places = axes(scores, enlargement)
    kernel = _kernel(scores.device.type) if places else None
    if places and kernel:
        # Probabilities need no softmax after the interpolation.
        zoomed = enlargement.upsampling == 'zoom'
        values = (scores.softmax(1) if zoomed else scores).float()[0]
        result: tuple[Labels, Confidence | None] = kernel.label(
            values, *places, not zoomed, confidence
        )
        return result
    if scores.device.type == 'cpu' and enlargement.upsampling == 'half_pixel':
        return with_opencv(scores, enlargement, confidence=confidence)
    return reference(scores, enlargement, confidence=confidence)


def prepare(device: torch.device) -> None:
    """Compile what `label_pixels` needs on a device, seconds that the first frame would wait."""
    scores = torch.randn(1, 2, 3, 3, device=device)
    label_pixels(scores, Enlargement(24, 24, 24, 24), confidence=True)


@cache
def _kernel(device: str) -> ModuleType | None:
    """Return the compiled kernel for a kind of device, if what compiles it is installed."""
    if device not in _KERNELS:
        return None
    try:
        return import_module(f'dense_perception.predictors.{_KERNELS[device]}')
    # numba raises RuntimeError where it finds no folder to write to.
    except (ImportError, RuntimeError) as error:
        _LOG.info('labels are made without a compiled kernel: %s', error)
        return None


def enlarge(scores: Tensor, enlargement: Enlargement) -> Tensor:
    """
    Return scores of every pixel of the image, (1, C, height, width).

    :param scores: (1, C, rows, columns) float32, before softmax.
    """
    if enlargement.upsampling == 'zoom':
        # The logarithm makes them scores again: softmax gives back the probabilities.
        scores = zoom(scores.softmax(1), enlargement.stride).clamp_min(1e-12).log()
    enlarged = F.interpolate(
        scores.contiguous(memory_format=torch.channels_last),
        (enlargement.rows, enlargement.columns),
        mode='bilinear',
        align_corners=False,
    )
    return enlarged[:, :, : enlargement.height, : enlargement.width]


def reference(
    scores: Tensor, enlargement: Enlargement, *, confidence: bool = False
) -> tuple[Labels, Confidence | None]:
    """Label every pixel by interpolating all scores: the definition, for any device."""
    return label_scores(enlarge(scores, enlargement), confidence=confidence)


def label_scores(scores: Tensor, *, confidence: bool = False) -> tuple[Labels, Confidence | None]:
    """
    Label every pixel by scores of its own.

    :param scores: (1, C, H, W) float32, before softmax.
    :returns: as `label_pixels`.
    """
    best, labels = scores.max(1)
    certain = None
    if confidence:
        share = (best - torch.logsumexp(scores, 1)).exp()[0]  # softmax of the best class
        certain = fetch((share * 255).round().to(torch.uint8))
    return fetch(labels[0].to(torch.uint8)), certain


def with_opencv(
    scores: Tensor, enlargement: Enlargement, *, confidence: bool = False
) -> tuple[Labels, Confidence | None]:
    """Label every pixel by enlarging one class after the other; half-pixel convention alone."""
    maps = scores[0].float().contiguous().numpy()
    height, width = enlargement.height, enlargement.width
    size = (enlargement.columns, enlargement.rows)
    best = cv2.resize(maps[0], size)[:height, :width].copy()
    labels = np.zeros((height, width), np.uint8)
    for index in range(1, len(maps)):
        values = cv2.resize(maps[index], size)[:height, :width]
        labels[values > best] = index
        np.maximum(best, values, out=best)
    if not confidence:
        return labels, None
    total = np.zeros_like(best)
    for values in maps:
        total += cv2.exp(cv2.resize(values, size)[:height, :width] - best)
    return labels, np.rint(255 / total).astype(np.uint8)
