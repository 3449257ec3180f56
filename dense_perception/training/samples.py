"""Drawing training samples from data some of which may be damaged."""

from collections.abc import Iterator, Sequence
import logging
import threading
from typing import Generic, TypeVar

from dense_perception.errors import InputError
import numpy as np

Sample = TypeVar('Sample')

_LOG = logging.getLogger(__name__)


class Samples(Generic[Sample]):
    """
    Training samples, of which those that cannot be read are told, counted and passed over.

    Read samples are kept in memory up to a limit.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        largest_unreadable_share: float = 0.05,
        memory_mb: float = 4000,
    ) -> None:
        """
        Take the samples.

        :param samples: raises InputError where one cannot be read.
        :param largest_unreadable_share: more than that of them ends with an error.
        :param memory_mb: how much of the samples is kept in memory.
        """
        self._samples = samples
        self._most = largest_unreadable_share * len(samples)
        self._free = memory_mb * 1e6  # bytes
        self._kept: dict[int, Sample] = {}
        self._problems: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def unreadable(self) -> int:
        """How many samples were found that cannot be read."""
        return len(self._problems)

    def draw(self, random: np.random.Generator) -> Sample:
        """
        Return a random sample; another one where that cannot be read.

        :raises InputError: too many cannot be read.
        """
        while True:
            sample = self._read(int(random.integers(len(self))))
            if sample is not None:
                return sample

    def readable(self, step: int = 1) -> Iterator[Sample]:
        """
        Return every sample, or every `step`-th, that can be read.

        :raises InputError: too many cannot be read.
        """
        for index in range(0, len(self), step):
            sample = self._read(index)
            if sample is not None:
                yield sample

    def _read(self, index: int) -> Sample | None:
        if index in self._kept:
            return self._kept[index]
        if index in self._problems:
            return None
        try:
            sample = self._samples[index]
        except InputError as error:
            self._tell(index, error)
            return None
        size = sum(value.nbytes for value in vars(sample).values() if hasattr(value, 'nbytes'))
        with self._lock:
            if size <= self._free and index not in self._kept:
                self._free -= size
                self._kept[index] = sample
        return sample

    def _tell(self, index: int, error: InputError) -> None:
        with self._lock:
            if index not in self._problems:
                _LOG.warning('passed over: %s', error)
            self._problems[index] = str(error)
            if len(self._problems) > self._most:
                raise InputError(
                    f'{len(self._problems)} of {len(self)} samples cannot be read, more than '
                    f'{self._most:g}: {"; ".join(self._problems.values())}'
                ) from error
