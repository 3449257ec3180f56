"""The rows of `node.py`, and the images that they are made of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
import math
import time

import numpy as np
import psutil  # type: ignore[import-untyped]  # has no stubs

OUTPUTS = ('labels', 'flow')
LOOK_S = 0.1  # between looks at the memory


@dataclass
class Shot:
    """An image that was published, and when what came of it arrived."""

    camera: str
    stamp_ns: int
    publish_ms: float = math.nan  # what its publisher took
    arrivals_ns: dict[str, int] = field(default_factory=dict)  # by the name of the output

    def has(self, *outputs: str) -> bool:
        """Whether these outputs have arrived."""
        return self.arrivals_ns.keys() >= set(outputs)

    def age_ms(self, *outputs: str) -> float:
        """Return how old the image was when the last of these outputs arrived."""
        return (max(self.arrivals_ns[name] for name in outputs) - self.stamp_ns) / 1e6


class Meter:
    """Memory and processor time of a process, from now on."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._next_look = process, 0.0
        self.began, self._cpu_s = time.monotonic(), _cpu_s(process)
        self.own_mib = self.rss_mib = 0.0  # the most that was seen
        self.cpu_percent = math.nan  # until the end; 100 is a whole core

    def look(self) -> None:
        """Take a sample of the memory, unless one has just been taken."""
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + LOOK_S
        memory = self._process.memory_info()
        self.rss_mib = max(self.rss_mib, memory.rss / 2**20)
        self.own_mib = max(self.own_mib, (memory.rss - memory.shared) / 2**20)

    def stop(self) -> None:
        """Compute the share of the processor time."""
        spent_s = _cpu_s(self._process) - self._cpu_s
        self.cpu_percent = 100 * spent_s / max(time.monotonic() - self.began, 1e-3)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass
class Take:
    """The images of one row, and what the node's process took for them."""

    shots: list[Shot]
    meter: Meter

    def of(self, camera: str) -> 'Take':
        """Return the part of one camera; the process is that of all."""
        return Take([shot for shot in self.shots if shot.camera == camera], self.meter)

    @property
    def complete(self) -> list[Shot]:
        """Images of which labels and flow have arrived."""
        return [shot for shot in self.shots if shot.has(*OUTPUTS)]

    @property
    def rate_hz(self) -> float:
        """At which images were published."""
        return _rate_hz([shot.stamp_ns for shot in self.shots])

    @property
    def fps(self) -> float:
        """At which images with labels and flow arrived."""
        return _rate_hz([max(shot.arrivals_ns.values()) for shot in self.complete])

    def percentile(self, rank: float, *outputs: str) -> float:
        """Return a percentile of the ages on arrival, ms; nan of nothing."""
        ages = [shot.age_ms(*outputs) for shot in self.complete]
        return float(np.percentile(ages, rank)) if ages else math.nan


def _rate_hz(times_ns: Sequence[int]) -> float:
    span_s = (max(times_ns) - min(times_ns)) / 1e9 if times_ns else 0.0
    return (len(times_ns) - 1) / span_s if span_s else math.nan


@dataclass
class Row:
    """One line of the table; nan is left empty."""

    what: str
    image: str
    labels_see: str
    flow_sees: str
    camera_hz: float = math.nan  # of each camera, as it was
    sent: int = 0
    received: int = 0  # with labels and flow
    fps: float = math.nan
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    labels_p50_ms: float = math.nan
    labels_p99_ms: float = math.nan
    limit_p50_ms: float = math.nan
    limit_p99_ms: float = math.nan
    over_bare_ms: float = math.nan
    over_bare_percent: float = math.nan
    in_node_ms: float = math.nan
    publish_ms: float = math.nan
    cpu_percent: float = math.nan
    own_mib: float = math.nan
    rss_mib: float = math.nan

    def cells(self) -> list[str]:
        """Return the values as text."""
        return [
            ('' if math.isnan(value) else f'{value:.1f}')
            if isinstance(value, float)
            else f'{value}'
            for value in asdict(self).values()
        ]


COLUMNS = [entry.name.replace('_', ' ') for entry in fields(Row)]


def line(cells: Sequence[str]) -> str:
    """Return a line of the table for people; a column is as wide as its name."""
    widths = (24, 9, *(max(9, len(name)) for name in COLUMNS[2:]))
    return ' '.join(f'{cell:<{width}}' for cell, width in zip(cells, widths, strict=True))
