"""Features of the newest images, which the next pair of images begins with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from dense_perception.arrays import Image
import numpy as np
from torch import Tensor

# Of FlowNetCorr at levels 2 and 3; of other networks, their input.
Features: TypeAlias = tuple[Tensor, ...]

_SAMPLED = 61  # every how many rows are compared before all are
_MOST_IMAGES = 4  # as many as there are cameras, most often
_MOST_BYTES = 1 << 27  # of features; those of the newest image are always kept


@dataclass(frozen=True)
class _Entry:
    image: Image  # a copy: a driver may write the next frame to the same place
    features: Features

    def is_of(self, image: Image) -> bool:
        """Whether these are the features of an image."""
        parts = (slice(None, None, _SAMPLED), slice(None))  # a few rows tell most images apart
        return all(np.array_equal(self.image[part], image[part]) for part in parts)

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
            if entry.is_of(image):
                self.hits += 1
                return entry.features
        self._entries.append(_Entry(image.copy(), make(image)))
        while len(self._entries) > _MOST_IMAGES or (
            len(self._entries) > 1 and sum(entry.size for entry in self._entries) > _MOST_BYTES
        ):
            del self._entries[0]
        return self._entries[-1].features
