"""Endless and cached sequences of training samples."""

from collections.abc import Sequence
from typing import overload, TypeVar

from dense_perception.arrays import Image
from dense_perception.data.flow import FlowPair
from dense_perception.data.flying_chairs import chairs_pair, ChairsShape
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.data.segmentation import LabelledImage
import numpy as np

Sample = TypeVar('Sample')


def _check(index: int, samples: Sequence[object]) -> None:
    if not 0 <= index < len(samples):  # how iteration learns that it is over
        raise IndexError(f'sample {index} of {len(samples)}')


class Cached(Sequence[Sample]):
    """A sequence whose samples are made once and then kept in memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        _check(index, self)
        if index not in self._kept:
            self._kept[index] = self._samples[index]
        return self._kept[index]


class RenderedImages(Sequence[LabelledImage]):
    """Labelled frames of rendered drives, each drive with a seed of its own."""

    def __init__(self, first_seed: int, drives: int, frames: int = 12, spacing: int = 25) -> None:
        """
        Describe the drives.

        :param first_seed: seed of the first drive; the others follow.
        :param drives: how many drives.
        :param frames: frames of each.
        :param spacing: rendered frames between two of them.
        """
        self._first_seed, self._drives = first_seed, drives
        self._frames, self._spacing = frames, spacing

    def __len__(self) -> int:
        return self._drives * self._frames

    def __getitem__(self, index: int) -> LabelledImage:  # type: ignore[override]
        _check(index, self)
        drive, frame = divmod(index, self._frames)
        rendered = RoadWorld(self._first_seed + drive).frame(frame * self._spacing)
        name = f'drive{self._first_seed + drive}/{frame * self._spacing}'
        return LabelledImage(name, rendered.image, rendered.labels)


class RenderedPairs(Sequence[FlowPair]):
    """Frame pairs of rendered drives, one to three frames apart."""

    def __init__(self, first_seed: int, drives: int, pairs: int = 8, spacing: int = 31) -> None:
        self._first_seed, self._drives = first_seed, drives
        self._pairs, self._spacing = pairs, spacing

    def __len__(self) -> int:
        return self._drives * self._pairs

    def __getitem__(self, index: int) -> FlowPair:  # type: ignore[override]
        _check(index, self)
        drive, place = divmod(index, self._pairs)
        world = RoadWorld(self._first_seed + drive, RoadWorldSettings())
        first = place * self._spacing
        second = first + 1 + place % 3
        # A point that ends behind the camera has no flow; such points are never visible later.
        flow, visible = world.flow(first, second)
        name = f'drive{self._first_seed + drive}/{first}-{second}'
        return FlowPair(name, world.frame(first).image, world.frame(second).image, flow, visible)


class ChairsPairs(Sequence[FlowPair]):
    """Pairs in the manner of Flying Chairs, each from a seed of its own."""

    def __init__(
        self, seed: int, count: int, pictures: Sequence[Image], shape: ChairsShape
    ) -> None:
        self._seed, self._count, self._pictures, self._shape = seed, count, pictures, shape

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> FlowPair:  # type: ignore[override]
        _check(index, self)
        pair = chairs_pair(np.random.default_rng((self._seed, index)), self._pictures, self._shape)
        # As in the published set, flow is known where the point is hidden later, too.
        return FlowPair(
            f'chairs{self._seed}/{index}',
            pair.first,
            pair.second,
            pair.flow,
            np.ones(pair.flow.shape[:2], bool),
        )
