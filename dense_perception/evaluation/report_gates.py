"""Limits that a report must keep, for a build that shall fail where it does not."""

from collections.abc import Iterable
from dataclasses import dataclass
import math

from dense_perception.errors import SettingError
from dense_perception.evaluation.report import FIGURES, Report

FAILED_STATUS = 3  # exit status of a command whose gate failed; 1 is an error, 2 a wrong option


@dataclass(frozen=True)
class Gate:
    """A limit of one figure."""

    name: str  # in FIGURES
    limit: float  # in the figure's unit; a share from 0 to 1
    lowest: bool  # fail below the limit, or else above

    @classmethod
    def parse(cls, text: str, *, lowest: bool) -> 'Gate':
        """
        Read a gate such as `mean_iou=0.60`.

        :param lowest: whether the figure must not be below the limit, or must not be above.
        :raises SettingError: it has another form, the figure is not known, or the limit is none.
        """
        name, equals, number = (part.strip() for part in text.partition('='))
        if not equals:
            raise SettingError(f'gate {text!r} must be a figure and a limit, like mean_iou=0.60')
        if name not in FIGURES:
            raise SettingError(f'gate on {name!r}; figures are {", ".join(FIGURES)}')
        try:
            limit = float(number)
        except ValueError as error:
            raise SettingError(f'gate {text!r}: {number!r} is no number') from error
        if not math.isfinite(limit):
            raise SettingError(f'gate {text!r}: the limit must be finite')
        if FIGURES[name].unit == '%' and not 0 <= limit <= 1:
            raise SettingError(f'gate {text!r}: {name} is a share; its limit must be 0 to 1')
        return cls(name, limit, lowest)

    def check(self, report: Report) -> 'GateResult':
        """Compare a report with the limit; a figure that it does not have fails."""
        value = report.figures().get(self.name, math.nan)
        passed = value >= self.limit if self.lowest else value <= self.limit
        return GateResult(self, value, passed)


@dataclass(frozen=True)
class GateResult:
    """Whether a report keeps a limit."""

    gate: Gate
    value: float  # nan where the report does not have the figure
    passed: bool

    def __str__(self) -> str:
        gate, figure = self.gate, FIGURES[self.gate.name]
        if math.isnan(self.value):
            return f'{gate.name} was not measured; its limit is {figure.text(gate.limit)}'
        side = 'below' if self.value < gate.limit else 'above'
        place = 'at' if self.value == gate.limit else side
        return f'{gate.name} is {figure.text(self.value)}, {place} {figure.text(gate.limit)}'


def check_gates(report: Report, gates: Iterable[Gate]) -> list[GateResult]:
    """Compare a report with every limit; the command ends with FAILED_STATUS if one fails."""
    return [gate.check(report) for gate in gates]
