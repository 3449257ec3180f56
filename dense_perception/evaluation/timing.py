"""How long a call takes, and how often a second it can be made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import time

from dense_perception.predictors.engines.choice import time_in_turns
import numpy as np
import torch

LEAST_CALLS = 20  # of fewer, the p99 is but the largest
LEAST_S, MOST_S = 5.0, 75.0  # of turns whose time nobody gives


@dataclass(frozen=True)
class Timing:
    """Times of many calls, in milliseconds."""

    p50_ms: float
    p99_ms: float
    calls: int

    @property
    def rate_hz(self) -> float:
        """Calls a second, one after the other."""
        return 1000 / self.p50_ms


def time_calls(call: Callable[[], object], *, seconds: float = 3.0, warm_up: int = 3) -> Timing:
    """
    Call again and again and take the time of each, the device synchronised.

    :param call: what is timed.
    :param seconds: how long to go on; ten calls at least.
    :param warm_up: calls before, which are not timed.
    """
    for _ in range(warm_up):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        _synchronise()
        start = time.perf_counter()
        call()
        _synchronise()
        times.append((time.perf_counter() - start) * 1000)
    p50, p99 = np.percentile(times, (50, 99))
    return Timing(float(p50), float(p99), len(times))


def time_enough_turns(
    calls: Mapping[str, Callable[[int], object]], device: torch.device, *, seconds: float | None
) -> dict[str, list[float]]:
    """
    Return the seconds of each call, in turns as `time_in_turns` makes them.

    :param seconds: how long to go on; None: until each was made `LEAST_CALLS` times, at least
        `LEAST_S` and at most about `MOST_S`.
    """
    if seconds is not None:
        return time_in_turns(calls, device, seconds=seconds)
    start = time.perf_counter()
    times = time_in_turns(calls, device, seconds=LEAST_S)
    while (done := min(map(len, times.values()))) < LEAST_CALLS:
        spent_s = time.perf_counter() - start
        if spent_s >= MOST_S:
            break
        missing_s = spent_s / done * (LEAST_CALLS - done)
        more = time_in_turns(calls, device, seconds=min(missing_s, MOST_S - spent_s))
        times = {name: values + more[name] for name, values in times.items()}
    return times


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
