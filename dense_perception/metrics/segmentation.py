"""Confusion matrix and what follows from it; Long et al. (2015), section 5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import math
from typing import Any

from dense_perception.arrays import Labels
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray

_LARGEST_SET = 255  # classes; the value 255 means no class
_PIXELS_PER_RUN = 8  # where runs are shorter, counting pixel by pixel is faster


@dataclass(eq=False)
class ConfusionMatrix:
    """
    Pixel counts of every pair of true and predicted class, over every image added.

    Pixels whose truth is not a class (255, for example) do not count. A prediction that is not a
    class counts as wrong, in an extra last column. Matrices of parts of a set add up (`+`) to that
    of the whole.
    """

    classes: int
    counts: NDArray[np.int64] = field(init=False)  # (classes, classes + 1): truth, prediction

    def __post_init__(self) -> None:
        if not 0 < self.classes <= _LARGEST_SET:
            raise InputError(f'{self.classes} classes; a label set has 1 to {_LARGEST_SET}')
        self.counts = np.zeros((self.classes, self.classes + 1), np.int64)

    def add(self, prediction: Labels, truth: Labels) -> None:
        """
        Count the pixels of one image.

        :param prediction: (H, W) uint8 class indices.
        :param truth: the same; values of no class are ignored.
        :raises InputError: the two differ in shape, or are not uint8.
        """
        check_labels(prediction=prediction, truth=truth)
        table = _pair_counts(truth.ravel(), prediction.ravel())[: self.classes]
        self.counts[:, :-1] += table[:, : self.classes]
        self.counts[:, -1] += table[:, self.classes :].sum(1)

    def __add__(self, other: 'ConfusionMatrix') -> 'ConfusionMatrix':
        if self.classes != other.classes:
            raise InputError(f'matrices of {self.classes} and {other.classes} classes do not add')
        total = ConfusionMatrix(self.classes)
        total.counts = self.counts + other.counts
        return total

    def grouped(self, groups: Sequence[Sequence[int]]) -> 'ConfusionMatrix':
        """
        Return the matrix of groups of classes: a class taken for one of its group is right.

        :param groups: class indices of each group, such as `LabelSet.categories` has; truth of
            classes in no group does not count.
        :raises InputError: an index is no class, or is in two groups.
        """
        members = [index for group in groups for index in group]
        if len(set(members)) < len(members) or not set(members) <= set(range(self.classes)):
            raise InputError(
                f'groups {groups} must hold indices below {self.classes}, each at most once'
            )
        total = ConfusionMatrix(len(groups))
        for row, true in enumerate(groups):
            counts = self.counts[list(true)].sum(0)
            inside = [int(counts[list(predicted)].sum()) for predicted in groups]
            total.counts[row] = [*inside, int(counts.sum()) - sum(inside)]
        return total

    @property
    def right(self) -> NDArray[np.int64]:
        """Pixels per class whose prediction is right."""
        return self.counts[:, :-1].diagonal()

    @property
    def false_positives(self) -> NDArray[np.int64]:
        """Pixels per class that were taken for it and are of another."""
        predicted: NDArray[np.int64] = self.counts[:, :-1].sum(0)
        return predicted - self.right

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class; nan for a class neither true nor predicted."""
        return ratio(self.right, self.counts.sum(1) + self.false_positives)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur; nan where none does."""
        return known_mean(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels with the right class; nan without pixels."""
        total = int(self.counts.sum())
        return int(self.right.sum()) / total if total else math.nan

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """Share of each class's pixels that are right; nan for a class without pixels."""
        return ratio(self.right, self.counts.sum(1))

    @property
    def mean_accuracy(self) -> float:
        """Mean of `class_accuracy` over the classes that have pixels; nan where none has."""
        return known_mean(self.class_accuracy)

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean IoU, each class weighted by its share of the labelled pixels; nan without any."""
        pixels = self.counts.sum(1)
        total = int(pixels.sum())
        if not total:
            return math.nan
        return float((pixels * np.nan_to_num(self.iou)).sum() / total)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain numbers."""
        return {'classes': self.classes, 'counts': self.counts.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> 'ConfusionMatrix':
        """
        Return the matrix that `to_json` gave.

        :raises InputError: a key is missing or the counts have another form.
        """
        matrix = cls(stored(content, 'classes', int))
        matrix.counts = stored_counts(content, 'counts', matrix.counts.shape)
        return matrix


def check_labels(**images: Labels) -> None:
    """
    Check that label images are uint8 and of one shape.

    :param images: the images by the name that an error gives them.
    :raises InputError: they are not.
    """
    for name, image in images.items():
        if image.dtype != np.uint8:
            raise InputError(f'{name} is {image.dtype}; labels must be uint8')
    if len({image.shape for image in images.values()}) > 1:
        shapes = ', '.join(f'{name} is {image.shape}' for name, image in images.items())
        raise InputError(f'{shapes}; sizes must match')


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Divide element by element; nan where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def known_mean(values: NDArray[np.float64]) -> float:
    """Mean of what is not nan; nan where all is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def stored(content: Mapping[str, Any], key: str, kind: type) -> Any:
    """
    Return an entry of a stored metric.

    :raises InputError: it is missing or of another type than `kind`.
    """
    if key not in content:
        raise InputError(f'stored metric: {key} is missing; it has {", ".join(content) or "none"}')
    if not isinstance(content[key], kind):
        raise InputError(f'stored metric: {key} is {content[key]!r}; it must be {kind.__name__}')
    return content[key]


def stored_counts(
    content: Mapping[str, Any], key: str, shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """
    Return an array of counts of a stored metric.

    :raises InputError: it is missing, of another shape, or holds what is no count.
    """
    try:
        counts = np.array(stored(content, key, list))
    except ValueError as error:  # rows of different lengths
        raise InputError(f'stored metric: {key} must be counts of shape {shape}') from error
    if counts.shape != shape or counts.dtype.kind != 'i' or (counts < 0).any():
        raise InputError(f'stored metric: {key} must be counts of shape {shape}')
    return counts.astype(np.int64)


def _pair_counts(first: Labels, second: Labels) -> NDArray[np.int64]:
    """
    Count how often each pair of values occurs.

    :param first: (pixels,) uint8.
    :param second: the same.
    :returns: (256, 256); row `first`, column `second`.
    """
    changes = np.not_equal(first[1:], first[:-1])
    changes |= second[1:] != second[:-1]
    # Label images are runs of equal pixels; counting runs by their length is several times faster
    # than counting pixels, unless the runs are very short.
    if first.size and np.count_nonzero(changes) * _PIXELS_PER_RUN < first.size:
        starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
        lengths = np.diff(starts, append=first.size)
        pairs = first[starts].astype(np.intp) << 8 | second[starts]
        # Weights are summed as float64, which counts without loss up to 2**53 pixels.
        counts = np.bincount(pairs, lengths, minlength=65536).astype(np.int64)
    else:
        counts = np.bincount(first.astype(np.uint16) << 8 | second, minlength=65536)
    return counts.reshape(256, 256)
