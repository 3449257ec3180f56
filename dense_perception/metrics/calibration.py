"""How far a confidence can be believed; Guo et al. (2017), section 2."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import math
from typing import Any

from dense_perception.arrays import Confidence, Labels
from dense_perception.errors import InputError
from dense_perception.metrics.segmentation import check_labels, stored, stored_counts
import numpy as np
from numpy.typing import NDArray

_LEVELS = 256  # values of a confidence
BINS = 15  # Guo et al. (2017), section 5


@dataclass(frozen=True)
class ReliabilityBin:
    """The pixels whose confidence lies above `low` and not above `high`; 0 is in the first bin."""

    low: float
    high: float
    pixels: int
    confidence: float  # mean; nan without pixels
    accuracy: float  # share of right labels; nan without pixels


@dataclass(eq=False)
class Calibration:
    """Confidence against accuracy over every image added; parts of a set add up (`+`)."""

    classes: int
    pixels: NDArray[np.int64] = field(init=False)  # (256,): pixels of each confidence
    right: NDArray[np.int64] = field(init=False)  # (256,): those whose label is right

    def __post_init__(self) -> None:
        self.pixels = np.zeros(_LEVELS, np.int64)
        self.right = np.zeros(_LEVELS, np.int64)

    def add(self, prediction: Labels, confidence: Confidence, truth: Labels) -> None:
        """
        Count the pixels of one image.

        :param prediction: (H, W) uint8 class indices.
        :param confidence: (H, W) uint8; probability of the predicted class, 255 is certain.
        :param truth: (H, W) uint8 class indices; pixels of no class do not count.
        :raises InputError: the three differ in shape, or are not uint8.
        """
        check_labels(prediction=prediction, confidence=confidence, truth=truth)
        known = truth < self.classes
        self.pixels += np.bincount(confidence[known], minlength=_LEVELS)
        self.right += np.bincount(confidence[known & (prediction == truth)], minlength=_LEVELS)

    def __add__(self, other: 'Calibration') -> 'Calibration':
        if self.classes != other.classes:
            raise InputError(f'calibrations of {self.classes} and {other.classes} classes differ')
        total = Calibration(self.classes)
        total.pixels, total.right = self.pixels + other.pixels, self.right + other.right
        return total

    def bins(self, count: int = BINS) -> list[ReliabilityBin]:
        """
        Return the bins of a reliability diagram, all of one width, from low to high.

        :raises InputError: there would be no bin.
        """
        if count < 1:
            raise InputError(f'{count} bins; at least 1 is needed')
        levels = np.arange(_LEVELS)
        # The first bin whose upper end is not below the confidence, in integers.
        place = np.maximum(-(-levels * count // (_LEVELS - 1)) - 1, 0)
        pixels, right, total = (
            np.bincount(place, values, minlength=count)
            for values in (self.pixels, self.right, self.pixels * levels)
        )
        return [
            ReliabilityBin(
                number / count,
                (number + 1) / count,
                int(pixels[number]),
                float(total[number] / pixels[number] / (_LEVELS - 1))
                if pixels[number]
                else math.nan,
                float(right[number] / pixels[number]) if pixels[number] else math.nan,
            )
            for number in range(count)
        ]

    def expected_error(self, bins: int = BINS) -> float:
        """Return the expected calibration error: mean gap to the accuracy; nan without pixels."""
        filled = [entry for entry in self.bins(bins) if entry.pixels]
        gaps = [abs(entry.accuracy - entry.confidence) * entry.pixels for entry in filled]
        total = int(self.pixels.sum())
        return math.fsum(gaps) / total if total else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain numbers."""
        return {
            'classes': self.classes,
            'pixels': self.pixels.tolist(),
            'right': self.right.tolist(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> 'Calibration':
        """
        Return the counts that `to_json` gave.

        :raises InputError: a key is missing or the counts have another form.
        """
        calibration = cls(stored(content, 'classes', int))
        calibration.pixels = stored_counts(content, 'pixels', (_LEVELS,))
        calibration.right = stored_counts(content, 'right', (_LEVELS,))
        return calibration
