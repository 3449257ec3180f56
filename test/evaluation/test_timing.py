import time

from dense_perception.evaluation.timing import time_calls, Timing
import pytest


def test_time_of_a_call_is_measured():
    timing = time_calls(lambda: time.sleep(0.01), seconds=0.2)
    assert timing.calls >= 10
    assert 10 <= timing.p50_ms < 40
    assert timing.p50_ms <= timing.p99_ms


def test_calls_to_warm_up_are_not_timed():
    calls = []

    def slow_at_first():
        calls.append(None)
        time.sleep(0.05 if len(calls) <= 2 else 0)

    timing = time_calls(slow_at_first, seconds=0.0, warm_up=2)
    assert timing.calls == 10
    assert len(calls) == 12
    assert timing.p50_ms < 25


def test_rate_is_that_of_the_median_time():
    assert Timing(p50_ms=20.0, p99_ms=90.0, calls=10).rate_hz == pytest.approx(50)
