import time

from dense_perception.evaluation import timing
from dense_perception.evaluation.timing import time_calls, time_enough_turns, Timing
import pytest
import torch

CPU = torch.device('cpu')


def test_time_of_a_call_is_measured():
    found = time_calls(lambda: time.sleep(0.01), seconds=0.2)
    assert found.calls >= 10
    assert 10 <= found.p50_ms < 40
    assert found.p50_ms <= found.p99_ms


def test_calls_to_warm_up_are_not_timed():
    calls = []

    def slow_at_first():
        calls.append(None)
        time.sleep(0.05 if len(calls) <= 2 else 0)

    found = time_calls(slow_at_first, seconds=0.0, warm_up=2)
    assert found.calls == 10
    assert len(calls) == 12
    assert found.p50_ms < 25


def test_rate_is_that_of_the_median_time():
    assert Timing(p50_ms=20.0, p99_ms=90.0, calls=10).rate_hz == pytest.approx(50)


def test_turns_go_on_until_every_call_was_made_often_enough(monkeypatch):
    monkeypatch.setattr(timing, 'LEAST_S', 0.0)
    calls = {'long': lambda _: time.sleep(0.02), 'short': lambda _: None}
    times = time_enough_turns(calls, CPU, seconds=None)
    assert len(times['long']) == len(times['short']) >= timing.LEAST_CALLS
    assert min(times['long']) >= 0.02


def test_turns_end_where_they_would_take_too_long(monkeypatch):
    monkeypatch.setattr(timing, 'LEAST_S', 0.0)
    monkeypatch.setattr(timing, 'MOST_S', 0.1)
    times = time_enough_turns({'long': lambda _: time.sleep(0.05)}, CPU, seconds=None)
    assert 3 <= len(times['long']) < timing.LEAST_CALLS


def test_turns_take_the_time_that_is_given():
    times = time_enough_turns({'long': lambda _: time.sleep(0.02)}, CPU, seconds=0.01)
    assert len(times['long']) == 3
