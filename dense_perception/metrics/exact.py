"""Sums of floats that do not depend on the order in which they are added."""

from dataclasses import dataclass
from fractions import Fraction
import math

from dense_perception.errors import InputError


@dataclass(frozen=True)
class ExactSum:
    """A sum without rounding, so that parts of a set add up to the very sum of the whole."""

    value: Fraction | None = Fraction(0)  # None once something that is no finite number was added

    def plus(self, number: float) -> 'ExactSum':
        """Return the sum with one more number in it."""
        return self + ExactSum(Fraction(number) if math.isfinite(number) else None)

    def __add__(self, other: 'ExactSum') -> 'ExactSum':
        if self.value is None or other.value is None:
            return ExactSum(None)
        return ExactSum(self.value + other.value)

    def mean(self, count: int) -> float:
        """Return the sum over a count; nan where there is nothing to divide by."""
        return math.nan if self.value is None or not count else float(self.value / count)

    def to_json(self) -> str:
        """Return the sum as a ratio of integers, or `nan`."""
        return 'nan' if self.value is None else str(self.value)

    @classmethod
    def from_json(cls, text: str) -> 'ExactSum':
        """
        Return the sum that `to_json` gave.

        :raises InputError: it is no ratio of integers.
        """
        try:
            return cls(None if text == 'nan' else Fraction(text))
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f'{text!r} is no sum; it must be a ratio like 7/2, or nan') from error
