"""How long a call takes, and how often a second it can be made."""

from collections.abc import Callable
from dataclasses import dataclass
import time

import numpy as np
import torch


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


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
