"""Errors of optical flow."""

from dataclasses import dataclass
import math

from dense_perception.arrays import Flow, Mask
from dense_perception.errors import InputError
import numpy as np


@dataclass
class EndPointError:
    """Mean distance between estimated and true flow vectors, over every valid pixel added."""

    total: float = 0.0  # pixels
    count: int = 0

    def add(self, flow: Flow, truth: Flow, valid: Mask) -> None:
        """
        Count the pixels of one frame pair.

        :param flow: (H, W, 2) float32; x then y, pixels per frame at full resolution.
        :param truth: same shape and unit as `flow`.
        :param valid: (H, W) bool; pixels that are False do not count.
        :raises InputError: the shapes differ.
        """
        if flow.shape != truth.shape or valid.shape != truth.shape[:2]:
            raise InputError(
                f'flow is {flow.shape}, truth {truth.shape}, valid {valid.shape}; sizes must match'
            )
        distance = np.linalg.norm(flow[valid] - truth[valid], axis=-1)  # (valid pixels,), px
        self.total += float(distance.sum(dtype=np.float64))
        self.count += int(valid.sum())

    @property
    def mean(self) -> float:
        """Mean end-point error in pixels; nan before the first valid pixel."""
        return self.total / self.count if self.count else math.nan
