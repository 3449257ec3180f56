"""Confusion matrix and what follows from it; Long et al. (2015), section 5."""

from dataclasses import dataclass, field
import math

from dense_perception.arrays import Labels
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray


@dataclass
class ConfusionMatrix:
    """
    Pixel counts of every pair of true and predicted class, over every image added.

    Pixels whose truth is not a class (255, for example) do not count. A prediction that is not a
    class counts as wrong, in an extra last column.
    """

    classes: int
    counts: NDArray[np.int64] = field(init=False)  # (classes, classes + 1): truth, prediction

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.classes, self.classes + 1), np.int64)

    def add(self, prediction: Labels, truth: Labels) -> None:
        """
        Count the pixels of one image.

        :param prediction: (H, W) uint8 class indices.
        :param truth: the same; values of no class are ignored.
        :raises InputError: the two differ in shape.
        """
        if prediction.shape != truth.shape:
            raise InputError(
                f'prediction is {prediction.shape}, truth is {truth.shape}; sizes must match'
            )
        columns = self.classes + 1
        known = truth < self.classes
        column = np.minimum(prediction[known], self.classes)
        pairs = truth[known].astype(np.int64) * columns + column
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(-1, columns)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class; nan for a class neither true nor predicted."""
        right = self.counts[:, :-1].diagonal()
        union = self.counts.sum(1) + self.counts[:, :-1].sum(0) - right
        return np.divide(right, union, out=np.full(self.classes, np.nan), where=union > 0)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur; nan where none does."""
        iou = self.iou
        return float(np.nanmean(iou)) if not np.isnan(iou).all() else math.nan

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels with the right class; nan without pixels."""
        total = int(self.counts.sum())
        return int(self.counts[:, :-1].trace()) / total if total else math.nan
