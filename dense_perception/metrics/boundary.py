"""
How well the outlines of labels lie; Csurka et al. (2013), sections 3.2 and 3.3.

A pixel is on the boundary of its class if one of its four neighbours has another class. Pixels
whose truth is not known are neither boundary nor neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
import math
from typing import Any

from dense_perception.arrays import Labels, Mask
from dense_perception.errors import InputError
from dense_perception.metrics.segmentation import (
    check_labels,
    known_mean,
    ratio,
    stored,
    stored_counts,
)
import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class BoundaryMatches:
    """
    F-measure of class boundaries, over every image added; parts of a set add up (`+`).

    A boundary pixel is matched if the other image has a boundary pixel of the same class within
    the tolerance. Csurka et al. take 0.75 % of the image diagonal for it, and average over images;
    here pixels are counted over the whole set.
    """

    classes: int
    tolerance_px: float
    counts: NDArray[np.int64] = field(init=False)  # (4, classes), in the order of the properties

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance_px <= 1000:
            raise InputError(f'tolerance is {self.tolerance_px} px; it must lie in 0 to 1000')
        self.counts = np.zeros((4, self.classes), np.int64)

    def add(self, prediction: Labels, truth: Labels) -> None:
        """
        Count the boundary pixels of one image.

        :param prediction: (H, W) uint8 class indices.
        :param truth: the same; values of no class are not known.
        :raises InputError: the two differ in shape, or are not uint8.
        """
        check_labels(prediction=prediction, truth=truth)
        known = truth < self.classes
        predicted = _BoundaryPixels.of(prediction, known & (prediction < self.classes), known)
        true = _BoundaryPixels.of(truth, known, known)
        for row, (pixels, others) in enumerate(((predicted, true), (true, predicted))):
            matched = pixels.classes[pixels.near(others, self.tolerance_px)]
            self.counts[2 * row] += np.bincount(matched, minlength=self.classes)
            self.counts[2 * row + 1] += np.bincount(pixels.classes, minlength=self.classes)

    def __add__(self, other: 'BoundaryMatches') -> 'BoundaryMatches':
        if (self.classes, self.tolerance_px) != (other.classes, other.tolerance_px):
            raise InputError(
                f'boundaries of {self.classes} classes within {self.tolerance_px} px and of '
                f'{other.classes} within {other.tolerance_px} px do not add'
            )
        total = BoundaryMatches(self.classes, self.tolerance_px)
        total.counts = self.counts + other.counts
        return total

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of each class's predicted boundary that is matched; nan where there is none."""
        return ratio(self.counts[0], self.counts[1])

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of each class's true boundary that is matched; nan where there is none."""
        return ratio(self.counts[2], self.counts[3])

    @property
    def f_measure(self) -> NDArray[np.float64]:
        """Harmonic mean of both per class; nan for a class without any boundary, true or not."""
        precision, recall = np.nan_to_num(self.precision), np.nan_to_num(self.recall)
        total = precision + recall
        score = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
        return np.where(self.counts[[1, 3]].any(0), score, np.nan)

    @property
    def mean_f_measure(self) -> float:
        """Mean over the classes that have a boundary; nan where none has."""
        return known_mean(self.f_measure)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain numbers."""
        return {
            'classes': self.classes,
            'tolerance_px': float(self.tolerance_px),
            'counts': self.counts.tolist(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> 'BoundaryMatches':
        """
        Return the counts that `to_json` gave.

        :raises InputError: a key is missing or the counts have another form.
        """
        matches = cls(stored(content, 'classes', int), stored(content, 'tolerance_px', float))
        matches.counts = stored_counts(content, 'counts', matches.counts.shape)
        return matches


def boundary_band(truth: Labels, classes: int, width_px: float) -> Mask:
    """
    Return the trimap of a label image: the pixels near a boundary, by which outlines are judged.

    A confusion matrix counts the band alone where the truth outside it is set to 255.

    :param truth: (H, W) uint8 class indices; values of no class are not in the band.
    :param classes: how many classes there are.
    :param width_px: largest distance from a boundary pixel.
    :returns: (H, W) bool.
    """
    known = truth < classes
    boundary = _boundary(truth, known, known)
    band = np.zeros_like(known)
    rows, columns = band.shape
    reach = math.floor(width_px)
    # Boundary pixels to the left, (H, 2 * reach + W + 1), so that a difference counts a stretch.
    before = np.zeros((rows, columns + 2 * reach + 1), np.int32)
    np.cumsum(boundary, axis=1, out=before[:, reach + 1 : reach + 1 + columns])
    before[:, reach + 1 + columns :] = before[:, reach + columns, None]
    rows_away = min(reach, rows - 1)
    for down in range(-rows_away, rows_away + 1):
        side = _half_width(width_px, down)
        left, right = reach - side, reach + side + 1
        near = before[:, right : right + columns] > before[:, left : left + columns]
        band[max(0, down) : rows + min(0, down)] |= near[max(0, -down) : rows + min(0, -down)]
    return band & known


@dataclass(frozen=True)
class _BoundaryPixels:
    """The boundary pixels of every class of an image, sorted by class, row and column."""

    classes: NDArray[np.intp]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    shape: tuple[int, int]

    @classmethod
    def of(cls, labels: Labels, inside: Mask, known: Mask) -> '_BoundaryPixels':
        height, width = labels.shape
        rows, columns = np.nonzero(_boundary(labels, inside, known))
        classes = labels[rows, columns].astype(np.intp)
        order = np.argsort(classes, kind='stable')
        return cls(classes[order], rows[order], columns[order], (height, width))

    def near(self, others: '_BoundaryPixels', distance_px: float) -> Mask:
        """Return which of the pixels have one of the same class in `others` within a distance."""
        reach = math.floor(distance_px)
        # One number per class, row and column, in ascending order. The margin keeps what is
        # searched beyond an edge from meeting the next row or class.
        width, height = self.shape[1] + 2 * reach, self.shape[0] + 2 * reach

        def keys(pixels: '_BoundaryPixels') -> NDArray[np.intp]:
            place = pixels.classes * height + pixels.rows + reach
            return place * width + pixels.columns + reach

        searched = keys(others)
        near = np.zeros(self.classes.shape, bool)
        left = np.arange(near.size if searched.size else 0)  # pixels not yet matched
        centers = keys(self)
        for down in sorted(range(-reach, reach + 1), key=abs):  # most are matched close by
            side = _half_width(distance_px, down)
            start = centers[left] + down * width - side
            place = np.searchsorted(searched, start)
            found = searched[np.minimum(place, searched.size - 1)]
            matched = (found >= start) & (found <= start + 2 * side)
            near[left[matched]] = True
            left = left[~matched]
        return near


def _half_width(distance_px: float, down: int) -> int:
    """Columns to each side within a distance, so many rows away."""
    return math.floor(math.sqrt(distance_px**2 - down**2))


def _boundary(labels: Labels, inside: Mask, known: Mask) -> Mask:
    """Return the pixels inside that differ from a known neighbour above, below, left or right."""
    boundary = np.zeros_like(inside)
    for axis in (0, 1):
        first, second = (
            tuple(part if axis == number else slice(None) for number in (0, 1))
            for part in (slice(None, -1), slice(1, None))
        )
        differ = (labels[first] != labels[second]) & known[first] & known[second]
        boundary[first] |= differ
        boundary[second] |= differ
    return boundary & inside
