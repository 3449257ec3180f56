"""Whether labels stay with what moves; Liu et al. (2020), section 3.1."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dense_perception.arrays import Flow, Labels, Mask
from dense_perception.errors import InputError
from dense_perception.labels import UNLABELLED
from dense_perception.metrics.segmentation import check_labels, ConfusionMatrix
import numpy as np


@dataclass(eq=False)
class TemporalConsistency:
    """
    Labels of one frame against those of the next along the flow, over every pair added.

    No truth of the labels is needed. Parts of a set add up (`+`).
    """

    classes: int
    matrix: ConfusionMatrix = field(init=False)  # rows: previous frame; columns: next frame

    def __post_init__(self) -> None:
        self.matrix = ConfusionMatrix(self.classes)

    def add(self, previous: Labels, following: Labels, flow: Flow, valid: Mask) -> None:
        """
        Count the pixels of one pair of frames.

        :param previous: (H, W) uint8 class indices of the first frame.
        :param following: the same, of the second.
        :param flow: (H, W, 2) float32; pixels from the first frame to the second.
        :param valid: (H, W) bool; where the flow is known and what moves stays visible. Pixels
            that leave the image, and those that have no label in one frame, do not count.
        :raises InputError: sizes differ, or the labels are not uint8.
        """
        check_labels(previous=previous, following=following)
        if flow.shape != (*previous.shape, 2) or valid.shape != previous.shape:
            raise InputError(
                f'labels are {previous.shape}, flow {flow.shape}, valid {valid.shape}; '
                'sizes must match'
            )
        rows, columns = np.nonzero(valid & np.isfinite(flow).all(-1))
        place = np.rint(flow[rows, columns] + np.stack([columns, rows], 1))  # (pixels, 2) x, y
        height, width = previous.shape
        inside = ((place >= 0) & (place < (width, height))).all(1)
        x, y = place[inside].astype(np.intp).T
        before, after = previous[rows[inside], columns[inside]], following[y, x]
        self.matrix.add(after, np.where(after < self.classes, before, UNLABELLED).astype(np.uint8))

    def __add__(self, other: 'TemporalConsistency') -> 'TemporalConsistency':
        total = TemporalConsistency(self.classes)
        total.matrix = self.matrix + other.matrix
        return total

    @property
    def share(self) -> float:
        """Share of pixels that keep their label; nan without pixels."""
        return self.matrix.pixel_accuracy

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the two frames' labels, over the classes that occur; nan without any."""
        return self.matrix.mean_iou

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain numbers."""
        return self.matrix.to_json()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> 'TemporalConsistency':
        """
        Return the counts that `to_json` gave.

        :raises InputError: a key is missing or the counts have another form.
        """
        matrix = ConfusionMatrix.from_json(content)
        consistency = cls(matrix.classes)
        consistency.matrix = matrix
        return consistency
