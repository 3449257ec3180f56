"""Random changes applied to images and their truth together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
import math

import cv2
from dense_perception.arrays import Image
from dense_perception.data.flow import FlowPair
from dense_perception.data.segmentation import LabelledImage
from dense_perception.labels import UNLABELLED
import numpy as np
from numpy.typing import NDArray

# Standard deviations in pixels: from where a pixel begins to spill into its neighbours (4 % into
# each) to where a line of one pixel keeps a quarter of its contrast, and labels can still be told.
BLURS = (0.4, 1.5)


@dataclass(frozen=True)
class Crop:
    """Size of a training sample in pixels, and the range of random enlargement before it."""

    height: int
    width: int
    smallest_scale: float = 1.0
    largest_scale: float = 1.0


def augment_labelled(
    random: np.random.Generator, sample: LabelledImage, crop: Crop, *, blur: float = 0.0
) -> LabelledImage:
    """
    Resize, mirror and cut an image with its labels, and change its colours.

    Pixels beyond the image are mid grey and unlabelled.

    :param blur: share of the samples that are blurred, 0 to 1.
    """
    scale = float(np.exp(random.uniform(np.log(crop.smallest_scale), np.log(crop.largest_scale))))
    image, labels = sample.image, sample.labels
    shift = np.array([crop.width, crop.height]) - scale * np.array(labels.shape[::-1])
    # Where the crop is smaller than the image any cut will do; where larger, any place.
    place = random.uniform(np.minimum(shift, 0), np.maximum(shift, 0))
    matrix = np.array([[scale, 0, place[0]], [0, scale, place[1]]])
    if random.random() < 0.5:
        matrix[0] = -matrix[0]
        matrix[0, 2] += crop.width - 1
    size = (crop.width, crop.height)
    reading = cv2.INTER_LINEAR if scale > 0.75 else cv2.INTER_AREA
    if reading == cv2.INTER_AREA:  # warpAffine does not average; shrink first so nothing aliases
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        image_matrix = matrix.copy()
        image_matrix[:, :2] /= scale
    else:
        small, image_matrix = image, matrix
    cut = cv2.warpAffine(small, image_matrix, size, borderValue=(110, 110, 110))
    cut_labels = cv2.warpAffine(
        labels, matrix, size, flags=cv2.INTER_NEAREST, borderValue=UNLABELLED
    )
    (image,) = change_colors(random, blur_some(random, [np.asarray(cut, np.uint8)], blur))
    return LabelledImage(sample.name, image, np.asarray(cut_labels, np.uint8))


def augment_pair(
    random: np.random.Generator, pair: FlowPair, crop: Crop, *, blur: float = 0.0
) -> FlowPair:
    """
    Enlarge, cut and mirror an image pair with its flow, and change the colours of both.

    :param blur: share of the pairs that are blurred, 0 to 1.
    """
    low, high = crop.smallest_scale, crop.largest_scale
    scale = float(np.exp(random.uniform(np.log(low), np.log(high))))
    rows, columns = int(crop.height / scale), int(crop.width / scale)
    rows, columns = min(rows, pair.flow.shape[0]), min(columns, pair.flow.shape[1])
    top = random.integers(pair.flow.shape[0] - rows + 1)
    left = random.integers(pair.flow.shape[1] - columns + 1)
    part = np.s_[top : top + rows, left : left + columns]
    size = (crop.width, crop.height)
    first, second = (
        np.asarray(cv2.resize(image[part], size), np.uint8) for image in (pair.first, pair.second)
    )
    known = pair.valid[part].astype(np.float32)
    flow = cv2.resize(pair.flow[part] * known[:, :, None], size)
    valid = np.asarray(cv2.resize(known, size)) > 0.999  # interpolated from known flow alone
    mirror = np.s_[:, ::-1] if random.random() < 0.5 else np.s_[:, :]
    turn = np.s_[::-1] if random.random() < 0.5 else np.s_[:]
    stretch = np.array([crop.width / columns, crop.height / rows], np.float32)
    stretch *= np.array([-1 if mirror[1].step else 1, -1 if turn.step else 1], np.float32)
    first, second = (np.ascontiguousarray(image[mirror][turn]) for image in (first, second))
    first, second = change_colors(random, blur_some(random, [first, second], blur))
    return replace(
        pair,
        first=first,
        second=second,
        flow=np.asarray(flow[mirror][turn] * stretch, np.float32),
        valid=np.ascontiguousarray(valid[mirror][turn]),
    )


def blur_some(
    random: np.random.Generator, images: Sequence[Image], share: float
) -> Sequence[Image]:
    """
    Blur images alike, as a lens out of focus does, in a share of the calls.

    A random source is split off for it, so that every other choice stays what it is without blur.

    :param share: 0 to 1.
    """
    if not share:
        return images
    (own,) = random.spawn(1)
    if own.random() >= share:
        return images
    sigma = own.uniform(*BLURS)
    return [np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8) for image in images]


def change_colors(random: np.random.Generator, images: Sequence[Image]) -> list[Image]:
    """
    Change brightness, contrast, colour and gamma alike in all images, add noise to each.

    The ranges are those of Dosovitskiy et al. (2015), section 4.3, made a little milder.
    """
    contrast, gamma = np.exp(random.normal(0, 0.2)), np.exp(random.normal(0, 0.2))
    gains = np.exp(random.normal(0, 0.08, 3))
    brightness = random.normal(0, 0.08)
    steps = np.linspace(0, 1, 256)[:, None] ** gamma  # (256, 1)
    curve = ((steps - 0.5) * contrast + 0.5 + brightness) * gains
    table = np.clip(curve * 255, 0, 255).astype(np.uint8)[None]  # (1, 256, 3)
    sigma = float(abs(random.normal(0, 0.02)) * 255)
    changed = []
    for image in images:
        result = cv2.LUT(np.ascontiguousarray(image), table)
        if sigma > 1:
            result = cv2.add(result, _noise(random, result.shape, sigma), dtype=cv2.CV_8U)
        changed.append(np.asarray(result, np.uint8))
    return changed


def _noise(random: np.random.Generator, shape: Sequence[int], sigma: float) -> NDArray[np.int16]:
    """Cut noise from a long roll of it, ten times faster than to draw every number anew."""
    size = math.prod(shape)
    roll = _noise_roll()
    start = int(random.integers(max(1, len(roll) - size + 1)))
    cut = roll[start : start + size] if size <= len(roll) else np.resize(roll, size)
    return np.rint(cut * np.float32(sigma)).astype(np.int16).reshape(shape)


@lru_cache
def _noise_roll() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(2**22, np.float32)
