from dataclasses import dataclass
from itertools import pairwise

from dense_perception.errors import SettingError
from dense_perception.predictors.latency import (
    Deadline,
    FEWEST,
    LADDER,
    MOST_PATIENCE,
    PATIENCE,
    Rung,
    rung_times,
    WINDOW,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

SOME = settings(max_examples=30, deadline=None)
FEW = settings(max_examples=8, deadline=None)  # of thousands of frames
LIMIT_S = 0.1
WARM_S = 0.02  # in which the network labels a frame of full width where nothing else runs
NOISE = 0.05


@dataclass(frozen=True)
class Machine:
    """What frames cost; not in proportion to their pixels, and flow as much on every rung."""

    three_quarters: float  # share of the time of the full width
    half: float
    carrying: float  # flow and carrying labels along it, as a share of that too
    rest_s: float  # what a frame waits, and flow that is wanted besides

    def share(self, rung, frame):
        """Return a frame's time until its labels, as a share of that at the full width."""
        if frame % rung.keyframe_interval:
            return self.carrying
        return {1.0: 1.0, 0.75: self.three_quarters, 0.5: self.half}[rung.scale]

    def oldest_s(self, rung, load_s):
        """Return the age of the oldest frames on a rung."""
        shares = [self.share(rung, frame) for frame in range(6)]
        return self.rest_s + load_s * max(shares) * (1 + NOISE)

    def deadline(self):
        """Return a limit that has measured this machine while nothing else ran on it."""
        shares = {1.0: 1.0, 0.75: self.three_quarters, 0.5: self.half}
        times = {scale: WARM_S * share for scale, share in shares.items()}
        return Deadline(LIMIT_S, measured_s=rung_times(LADDER, times, WARM_S * self.carrying))


MACHINES = st.builds(
    Machine,
    st.floats(0.5, 0.95),
    st.floats(0.1, 0.45),
    st.floats(0.05, 1.5),
    st.floats(0, 0.04),
)
TYPICAL = Machine(0.7, 0.4, 0.3, 0.0)
# More than a frame of the cheapest rung may take, and so little that the best one holds.
LOADS = st.floats(0.005, 2.0)


def run(deadline, machine, load_s, frames, *, seed=0, noise=NOISE):
    """Feed frames of a machine on which one of full width takes a load; return the rungs."""
    random = np.random.default_rng(seed)
    rungs = []
    for frame in range(frames):
        share = machine.share(deadline.rung, frame)
        deadline.measure(machine.rest_s, load_s * share * (1 + noise * random.random()))
        rungs.append(deadline.rung)
    return rungs


def changes(rungs):
    return [at for at, (one, other) in enumerate(pairwise(rungs)) if one != other]


@SOME
@given(machine=MACHINES, load_s=LOADS, seed=st.integers(0, 1000))
def test_it_settles_on_the_best_rung_that_holds_the_limit(machine, load_s, seed):
    holding = [rung for rung in LADDER if machine.oldest_s(rung, load_s) <= LIMIT_S]
    deadline = machine.deadline()
    settled = run(deadline, machine, load_s, 400, seed=seed)[200:]
    if holding:
        assert LADDER.index(deadline.rung) <= LADDER.index(holding[0])
        # A better rung may be tried now and then; it must be rare.
        assert np.mean([machine.oldest_s(rung, load_s) <= LIMIT_S for rung in settled]) >= 0.85


@SOME
@given(machine=MACHINES, load_s=st.floats(2.0, 5.0), seed=st.integers(0, 1000))
def test_where_no_rung_holds_the_limit_the_cheapest_is_taken(machine, load_s, seed):
    deadline = machine.deadline()
    run(deadline, machine, load_s, 2 * WINDOW, seed=seed)
    oldest = [machine.oldest_s(rung, load_s) for rung in LADDER]
    assert machine.oldest_s(deadline.rung, load_s) == min(oldest)
    assert not deadline.holds


@FEW
@given(machine=MACHINES, heavy_s=st.floats(0.15, 2.0), seed=st.integers(0, 1000))
def test_it_recovers_the_best_settings_when_the_load_falls(machine, heavy_s, seed):
    deadline = machine.deadline()
    run(deadline, machine, heavy_s, 300, seed=seed)
    assert deadline.rung != LADDER[0]
    run(deadline, machine, 0.03, 3000, seed=seed)
    assert deadline.rung == LADDER[0]


@SOME
@given(
    machine=MACHINES,
    loads=st.lists(st.tuples(LOADS, st.integers(1, 200)), min_size=1, max_size=12),
    noise=st.floats(0, 3),
    seed=st.integers(0, 1000),
)
def test_settings_never_swing_from_frame_to_frame(machine, loads, noise, seed):
    deadline = machine.deadline()
    rungs = [deadline.rung]
    for load_s, frames in loads:
        rungs += run(deadline, machine, load_s, frames, seed=seed, noise=noise)
    at = changes(rungs)
    assert all(later - earlier >= FEWEST for earlier, later in pairwise(at))
    better = [one for one in at if LADDER.index(rungs[one + 1]) < LADDER.index(rungs[one])]
    assert all(later - earlier >= PATIENCE for earlier, later in pairwise(better))


@FEW
@given(machine=MACHINES, load_s=st.floats(0.101, 1.0), seed=st.integers(0, 1000))
def test_tries_that_fail_become_rare(machine, load_s, seed):
    deadline = machine.deadline()
    run(deadline, machine, load_s, 4 * MOST_PATIENCE, seed=seed)
    rungs = run(deadline, machine, load_s, MOST_PATIENCE, seed=seed + 1)
    assert len(changes(rungs)) <= 32


def test_late_results_bring_cheaper_settings_at_once():
    deadline = TYPICAL.deadline()
    run(deadline, TYPICAL, 0.05, WINDOW)
    assert deadline.rung == LADDER[0]
    rungs = run(deadline, TYPICAL, 0.15, 3)
    assert changes([LADDER[0], *rungs]) == [1]  # with the second frame that is late


def test_so_much_too_late_goes_down_more_than_one_rung():
    deadline = TYPICAL.deadline()
    run(deadline, TYPICAL, 0.2, FEWEST, noise=0)
    assert deadline.rung == Rung(0.5, 1)


def test_keyframes_hold_no_limit_as_they_are_as_old_as_if_all_frames_were_labelled():
    deadline = TYPICAL.deadline()
    run(deadline, TYPICAL, 0.12, FEWEST, noise=0)
    assert deadline.rung == Rung(0.75, 1)  # and not the full width of every second frame


def test_where_no_rung_holds_the_limit_fewer_frames_are_labelled_so_that_most_are_younger():
    deadline = TYPICAL.deadline()
    run(deadline, TYPICAL, 5.0, 3 * WINDOW)
    assert deadline.rung == Rung(0.5, 3)


def test_flow_that_takes_longer_than_labels_is_not_taken_instead_of_them():
    machine = Machine(0.7, 0.4, 0.5, 0.0)
    deadline = machine.deadline()
    run(deadline, machine, 5.0, 3 * WINDOW)
    assert deadline.rung == Rung(0.5, 1)


def test_what_no_rung_changes_is_not_expected_to_change():
    deadline = TYPICAL.deadline()
    for _ in range(FEWEST):
        deadline.measure(0.08, 0.04)
    assert deadline.rung == Rung(0.5, 1)  # of 120 ms, that makes 96; three quarters make 108
    for _ in range(PATIENCE):
        deadline.measure(0.05, 0.01)
    assert deadline.rung == Rung(0.75, 1)  # of 60 ms, that makes 68


def test_all_frames_are_labelled_again_once_that_is_expected_to_hold_the_limit():
    deadline = TYPICAL.deadline()
    run(deadline, TYPICAL, 5.0, WINDOW)
    assert deadline.rung == Rung(0.5, 3)
    for _ in range(PATIENCE):
        deadline.measure(0.0, 0.09)  # more than a rung may that takes longer
    assert deadline.rung == Rung(0.5, 1)


def test_a_larger_input_is_not_taken_for_late_results_where_memory_is_short():
    machine = Machine(0.7, 0.75, 0.3, 0.0)  # half takes longer than three quarters
    deadline = machine.deadline()
    for _ in range(2):
        deadline.make_room('memory')
    run(deadline, machine, 5.0, 2 * WINDOW)
    assert deadline.rung.scale == 0.5


def test_a_rung_that_costs_no_less_than_a_better_one_is_passed_over_on_the_way_up():
    slow_to_shrink = rung_times(LADDER, {1.0: 0.02, 0.75: 0.021, 0.5: 0.01}, 0.001)
    deadline = Deadline(LIMIT_S, measured_s=slow_to_shrink)
    for _ in range(FEWEST):
        deadline.measure(0.0, 0.15)
    assert deadline.rung == Rung(0.5, 1)
    for _ in range(PATIENCE):
        deadline.measure(0.0, 0.01)
    assert deadline.rung == Rung(1.0, 1)


def test_a_rung_takes_what_its_slowest_frames_take():
    ladder = (Rung(1.0, 1), Rung(1.0, 2), Rung(0.5, 1), Rung(0.5, 3))
    assert rung_times(ladder, {1.0: 0.4, 0.5: 0.2}, 0.3) == [0.4, 0.4, 0.2, 0.3]


def test_one_frame_that_is_held_up_changes_nothing():
    deadline = TYPICAL.deadline()
    for at in range(3 * WINDOW):
        deadline.measure(0.01, 5.0 if at % WINDOW == 5 else 0.02)
        assert deadline.rung == LADDER[0]


def test_waiting_counts_as_labelling_does():
    deadline = TYPICAL.deadline()
    for _ in range(FEWEST):
        deadline.measure(0.09, 0.02)
    assert deadline.rung != LADDER[0]


def test_what_was_measured_before_says_where_to_start():
    measured = [0.4, 0.4, 0.2, 0.2, 0.09, 0.09, 0.09]
    assert Deadline(1.0, measured_s=measured).rung == Rung(1.0, 1)
    assert Deadline(LIMIT_S, measured_s=measured).rung == Rung(0.5, 1)
    assert Deadline(0.01, measured_s=measured).rung == Rung(0.5, 3)


def test_without_anything_measured_it_starts_with_the_best_and_goes_by_the_pixels():
    deadline = Deadline(LIMIT_S)
    assert deadline.rung == LADDER[0]
    assert deadline.reason == (
        '100% of the width, every frame labelled: nothing has been measured yet'
    )
    for _ in range(FEWEST):
        deadline.measure(0.0, 0.17)
    assert deadline.rung == Rung(0.75, 1)  # expected to take 96 ms


def test_it_says_in_words_what_it_chose_and_why():
    deadline = TYPICAL.deadline()
    assert deadline.reason == (
        '100% of the width, every frame labelled: labels took 20 ms with it in warming up'
    )
    run(deadline, TYPICAL, 0.14, FEWEST, noise=0)
    assert deadline.reason == (
        '75% of the width, every frame labelled: results were up to 140 ms old, more than 100 ms'
    )
    run(deadline, TYPICAL, 0.01, PATIENCE, noise=0)
    assert deadline.reason == (
        '100% of the width, every frame labelled: results were at most 7 ms old, which '
        'leaves room below 100 ms'
    )


def test_a_limit_that_nothing_holds_is_said():
    deadline = TYPICAL.deadline()
    run(deadline, TYPICAL, 5.0, 3 * WINDOW)
    assert not deadline.holds
    assert deadline.reason.startswith(
        '50% of the width, every third frame labelled: the cheapest there is, though'
    )


def test_a_ladder_of_ones_own_is_climbed():
    ladder = (Rung(1.0, 1), Rung(0.1, 1))
    deadline = Deadline(LIMIT_S, ladder, measured_s=[0.02, 0.01])
    for _ in range(FEWEST):
        deadline.measure(0.0, 0.15)
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
