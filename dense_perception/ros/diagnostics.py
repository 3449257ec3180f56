"""What a stream did lately, for `/diagnostics`."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
import math
from threading import Lock
import time

from dense_perception.errors import DensePerceptionError
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
import numpy as np

_AGES = 300  # newest ages that the percentiles are taken from


@dataclass
class StreamStatistics:
    """Counts of one camera stream; every method may be called from any thread."""

    received: int = 0
    processed: int = 0
    dropped: int = 0
    bad: int = 0
    last_error: str = ''
    _lock: Lock = field(default_factory=Lock)
    _ages_s: deque[float] = field(default_factory=lambda: deque(maxlen=_AGES))
    _flow_restarts: int = 0
    _runs: dict[str, int] = field(default_factory=dict)  # of each network
    _run_times_s: dict[str, deque[float]] = field(default_factory=dict)
    _last_received: float = field(default_factory=time.monotonic)
    _window: tuple[float, int, int, int] = field(
        default_factory=lambda: (time.monotonic(), 0, 0, 0)
    )

    def count_received(self) -> None:
        """Count an image that arrived."""
        with self._lock:
            self.received += 1
            self._last_received = time.monotonic()

    def count_processed(self, age_s: float) -> None:
        """Count an image whose results went out, and how old it was then."""
        with self._lock:
            self.processed += 1
            self._ages_s.append(age_s)

    def count_dropped(self) -> None:
        """Count an image that a newer one replaced, or that came too late."""
        with self._lock:
            self.dropped += 1

    def count_bad(self, error: str) -> None:
        """Count an image that could not be used, and why."""
        with self._lock:
            self.bad += 1
            self.last_error = error

    def count_run(self, network: str, time_s: float) -> None:
        """Count a run of a network on an image, alone or with others, and how long it took."""
        with self._lock:
            self._runs[network] = self._runs.get(network, 0) + 1
            self._run_times_s.setdefault(network, deque(maxlen=_AGES)).append(time_s)

    def count_flow_restart(self) -> None:
        """Count an image that flow began at anew, without the one before it."""
        with self._lock:
            self._flow_restarts += 1

    def note_error(self, error: str) -> None:
        """Keep an error that cost no image."""
        with self._lock:
            self.last_error = error

    def restart_clock(self) -> None:
        """Begin to wait for images anew, after a time of not listening."""
        with self._lock:
            self._last_received = time.monotonic()

    @property
    def silence_s(self) -> float:
        """Seconds since an image arrived, or since the stream was made."""
        with self._lock:
            return time.monotonic() - self._last_received

    def summarise(self) -> 'StreamSummary':
        """Return rates since the last call, and everything counted so far."""
        with self._lock:
            now = time.monotonic()
            then, received, processed, bad = self._window
            self._window = (now, self.received, self.processed, self.bad)
            span = max(now - then, 1e-3)
            return StreamSummary(
                input_rate_hz=(self.received - received) / span,
                output_rate_hz=(self.processed - processed) / span,
                new_bad=self.bad - bad,
                received=self.received,
                processed=self.processed,
                dropped=self.dropped,
                bad=self.bad,
                ages_ms=_percentiles_ms(self._ages_s, (50, 95, 99)),
                runs=dict(self._runs),
                run_times_ms={
                    name: _percentiles_ms(times, (50,))[0]
                    for name, times in self._run_times_s.items()
                },
                flow_restarts=self._flow_restarts,
                last_error=self.last_error,
            )


@dataclass(frozen=True)
class StreamSummary:
    """What `StreamStatistics` counted, at one moment."""

    input_rate_hz: float
    output_rate_hz: float
    new_bad: int  # since the last summary
    received: int
    processed: int
    dropped: int
    bad: int
    ages_ms: tuple[float, ...]  # now minus stamp when results went out: p50, p95, p99
    runs: dict[str, int]  # of each network
    run_times_ms: dict[str, float]  # median of each network
    flow_restarts: int
    last_error: str

    def values(self) -> list[KeyValue]:
        """Return names and values as a diagnostic status holds them."""
        p50, p95, p99 = self.ages_ms
        rows = {
            'input rate (Hz)': f'{self.input_rate_hz:.2f}',
            'output rate (Hz)': f'{self.output_rate_hz:.2f}',
            'age p50 (ms)': f'{p50:.1f}',
            'age p95 (ms)': f'{p95:.1f}',
            'age p99 (ms)': f'{p99:.1f}',
            'images received': str(self.received),
            'images processed': str(self.processed),
            'images dropped': str(self.dropped),
            'bad images': str(self.bad),
            'flow restarts': str(self.flow_restarts),
            'last error': self.last_error,
        }
        for network in ('segmentation', 'flow', 'proposal'):
            rows[f'{network} runs'] = str(self.runs.get(network, 0))
            rows[f'{network} time p50 (ms)'] = f'{self.run_times_ms.get(network, math.nan):.1f}'
        return [KeyValue(key=key, value=value) for key, value in rows.items()]


def _percentiles_ms(times_s: Iterable[float], ranks: tuple[int, ...]) -> tuple[float, ...]:
    """Return percentiles in milliseconds; nan of nothing."""
    times_ms = [time_s * 1000 for time_s in times_s] or [math.nan]
    return tuple(float(value) for value in np.percentile(times_ms, ranks))


def status(level: bytes, name: str, message: str, values: list[KeyValue]) -> DiagnosticStatus:
    """Return a diagnostic status."""
    return DiagnosticStatus(
        level=level, name=name, message=message, hardware_id='dense_perception', values=values
    )


def explain(error: BaseException) -> str:
    """Say what went wrong; the type of an error that is not ours says more than its text."""
    ours = isinstance(error, DensePerceptionError)
    return str(error) if ours else f'{type(error).__name__}: {error}'
