from itertools import pairwise

from dense_perception.errors import SettingError
from dense_perception.predictors.latency import (
    Deadline,
    FEWEST,
    LADDER,
    MOST_PATIENCE,
    PATIENCE,
    Rung,
    WINDOW,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

SOME = settings(max_examples=30, deadline=None)
FEW = settings(max_examples=8, deadline=None)  # of thousands of frames
LIMIT_S = 0.1
# More than a frame of the cheapest rung may take, and so little that the best one holds.
LOADS = st.floats(0.005, 2.0)


def run(deadline, load_s, frames, *, seed=0, noise=0.05):
    """Feed frames whose age is that of the best rung times the rung's cost; return the rungs."""
    random = np.random.default_rng(seed)
    rungs = []
    for _ in range(frames):
        age = load_s * deadline.rung.cost * (1 + noise * random.random())
        deadline.measure(0.3 * age, 0.7 * age)
        rungs.append(deadline.rung)
    return rungs


def changes(rungs):
    return [at for at, (one, other) in enumerate(pairwise(rungs)) if one != other]


def best_rung(load_s):
    """Return the best rung that holds the limit for sure, or the cheapest."""
    return next((r for r in LADDER if load_s * r.cost * 1.05 <= LIMIT_S), LADDER[-1])


@SOME
@given(load_s=LOADS, seed=st.integers(0, 1000))
def test_it_settles_on_a_rung_that_holds_the_limit(load_s, seed):
    deadline = Deadline(LIMIT_S)
    settled = run(deadline, load_s, 400, seed=seed)[200:]
    # A better rung may be tried now and then; it must be rare.
    share = np.mean([load_s * rung.cost <= LIMIT_S for rung in settled])
    assert share >= 0.85 or deadline.rung == LADDER[-1]
    assert LADDER.index(deadline.rung) <= LADDER.index(best_rung(load_s))


@FEW
@given(heavy_s=st.floats(0.15, 2.0), seed=st.integers(0, 1000))
def test_it_recovers_the_best_settings_when_the_load_falls(heavy_s, seed):
    deadline = Deadline(LIMIT_S)
    run(deadline, heavy_s, 300, seed=seed)
    assert deadline.rung != LADDER[0]
    run(deadline, 0.02, 3000, seed=seed)
    assert deadline.rung == LADDER[0]


@SOME
@given(
    loads=st.lists(st.tuples(LOADS, st.integers(1, 200)), min_size=1, max_size=12),
    noise=st.floats(0, 3),
    seed=st.integers(0, 1000),
)
def test_settings_never_swing_from_frame_to_frame(loads, noise, seed):
    deadline = Deadline(LIMIT_S)
    rungs = [deadline.rung]
    for load_s, frames in loads:
        rungs += run(deadline, load_s, frames, seed=seed, noise=noise)
    at = changes(rungs)
    assert all(later - earlier >= FEWEST for earlier, later in pairwise(at))
    better = [one for one in at if LADDER.index(rungs[one + 1]) < LADDER.index(rungs[one])]
    assert all(later - earlier >= PATIENCE for earlier, later in pairwise(better))


@FEW
@given(load_s=st.floats(0.101, 1.0), seed=st.integers(0, 1000))
def test_tries_that_fail_become_rare(load_s, seed):
    deadline = Deadline(LIMIT_S)
    run(deadline, load_s, 4 * MOST_PATIENCE, seed=seed)
    assert len(changes(run(deadline, load_s, MOST_PATIENCE, seed=seed + 1))) <= 32


def test_late_results_bring_cheaper_settings_at_once():
    deadline = Deadline(LIMIT_S)
    run(deadline, 0.05, WINDOW)
    assert deadline.rung == LADDER[0]
    rungs = run(deadline, 0.15, 3)
    assert changes([LADDER[0], *rungs]) == [1]  # with the second frame that is late


def test_so_much_too_late_goes_down_more_than_one_rung():
    deadline = Deadline(LIMIT_S)
    run(deadline, 0.3, FEWEST, noise=0)
    assert deadline.rung == Rung(0.5, 1)


def test_one_frame_that_is_held_up_changes_nothing():
    deadline = Deadline(LIMIT_S)
    for at in range(3 * WINDOW):
        deadline.measure(0.01, 5.0 if at % WINDOW == 5 else 0.02)
        assert deadline.rung == LADDER[0]


def test_waiting_counts_as_inference_does():
    deadline = Deadline(LIMIT_S)
    for _ in range(FEWEST):
        deadline.measure(0.09, 0.02)
    assert deadline.rung != LADDER[0]


def test_what_was_measured_before_says_where_to_start_and_what_a_rung_brings():
    measured = [0.4, 0.3, 0.2, 0.15, 0.09, 0.08, 0.07]
    deadline = Deadline(LIMIT_S, measured_s=measured)
    assert deadline.rung == LADDER[4]
    assert Deadline(1.0, measured_s=measured).rung == LADDER[0]
    assert Deadline(0.01, measured_s=measured).rung == LADDER[-1]


def test_it_says_in_words_what_it_chose_and_why():
    deadline = Deadline(LIMIT_S)
    assert deadline.reason == (
        '100% of the width, every frame labelled: nothing has been measured yet'
    )
    run(deadline, 0.15, FEWEST, noise=0)
    assert deadline.reason == (
        '75% of the width, every frame labelled: results were up to 150 ms old, more than 100 ms'
    )
    run(deadline, 0.01, PATIENCE, noise=0)
    assert deadline.reason == (
        '100% of the width, every second frame labelled: results were at most 6 ms old, which '
        'leaves room below 100 ms'
    )


def test_a_limit_that_nothing_holds_is_said():
    deadline = Deadline(LIMIT_S)
    run(deadline, 5.0, 3 * WINDOW)
    assert deadline.rung == LADDER[-1]
    assert not deadline.holds
    assert deadline.reason.startswith(
        '50% of the width, every third frame labelled: the cheapest there is, though'
    )


def test_a_ladder_of_ones_own_is_climbed():
    ladder = (Rung(1.0, 1), Rung(0.1, 1))
    deadline = Deadline(LIMIT_S, ladder)
    run(deadline, 0.2, FEWEST)
    assert deadline.rung == ladder[1]


@pytest.mark.parametrize('limit', [0, -1, float('nan'), float('inf')])
def test_a_limit_must_be_above_nothing(limit):
    with pytest.raises(SettingError, match='must be above 0'):
        Deadline(limit)


@pytest.mark.parametrize('times', [(-0.1, 0.1), (0.1, -0.1), (float('nan'), 0.1)])
def test_times_must_be_ones_that_passed(times):
    with pytest.raises(SettingError, match='must be 0 or more'):
        Deadline(LIMIT_S).measure(*times)


def test_a_ladder_and_its_times_must_fit():
    with pytest.raises(SettingError, match='no rung'):
        Deadline(LIMIT_S, ())
    with pytest.raises(SettingError, match='it must be 7 times above 0'):
        Deadline(LIMIT_S, measured_s=[0.1])
