"""Features of the newest images, which the next pair of images begins with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from dense_perception.arrays import Image
import numpy as np
from torch import Tensor

Features: TypeAlias = tuple[Tensor, Tensor]  # of FlowNetCorr at levels 2 and 3

_MOST_IMAGES = 4  # as many as there are cameras, most often
_MOST_BYTES = 1 << 27  # of features; those of the newest image are always kept


@dataclass(frozen=True)
class _Entry:
    image: Image  # a copy: a driver may write the next frame to the same place
    features: Features

    @property
    def size(self) -> int:
        """Bytes of the features."""
        return sum(value.numel() * value.element_size() for value in self.features)


class KeptFeatures:
    """
    Remembers what a network made of the newest images.

    An image is known by its pixels, so results never depend on what is kept. Not for several
    threads.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []  # the newest last
        self.hits = 0

    def of(self, image: Image, make: Callable[[Image], Features]) -> Features:
        """
        Return an image's features.

        :param image: (H, W, 3) uint8 RGB.
        :param make: called where they are not kept.
        """
        for entry in reversed(self._entries):
            if np.array_equal(entry.image, image):
                self.hits += 1
                return entry.features
        self._entries.append(_Entry(image.copy(), make(image)))
        while len(self._entries) > _MOST_IMAGES or (
            len(self._entries) > 1 and sum(entry.size for entry in self._entries) > _MOST_BYTES
        ):
            del self._entries[0]
        return self._entries[-1].features
