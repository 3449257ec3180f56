import math

from dense_perception.errors import SettingError
from dense_perception.evaluation.bootstrap import block_length, bootstrap
import numpy as np
import pytest


def mean_of(values):
    return lambda weights: weights @ values / weights.sum(1)


def half_width(values, block):
    interval = bootstrap(mean_of(values), len(values), block=block)
    return (interval.high - interval.low) / 2


def test_interval_of_independent_frames_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(5, 2, 400)
    interval = bootstrap(mean_of(values), 400, block=1)
    assert interval.value == pytest.approx(values.mean())
    assert half_width(values, 1) == pytest.approx(1.96 * values.std() / 20, rel=0.08)


def test_frames_that_repeat_their_neighbours_are_no_more_evidence():
    values = np.random.default_rng(2).normal(size=1000)
    repeated = np.repeat(values, 4)  # each scene seen four times
    alone = half_width(values, 1)
    assert half_width(repeated, 1) < 0.6 * alone
    assert half_width(repeated, 40) == pytest.approx(alone, rel=0.2)


def test_every_frame_is_drawn_equally_often_in_blocks_that_go_round():
    drawn = []

    def keep(weights):
        if len(weights) > 1:
            drawn.append(weights)
        return weights[:, 0].astype(float)

    bootstrap(keep, 10, block=4, draws=5000)
    weights = np.concatenate(drawn)
    assert (weights.sum(1) == 10).all()
    assert weights.mean(0) == pytest.approx(np.ones(10), abs=0.06)


def test_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.arange(50.0) ** 2
    first, again, other = (bootstrap(mean_of(values), 50, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.low != other.low


def test_one_block_of_frames_gives_no_interval():
    interval = bootstrap(mean_of(np.arange(3.0)), 3, block=2)
    assert interval.value == 1
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


@pytest.mark.parametrize(('frames', 'block'), [(1, 1), (8, 2), (9, 3), (27, 3), (1000, 10)])
def test_blocks_grow_with_the_cube_root_of_the_frames(frames, block):
    assert block_length(frames) == block


@pytest.mark.parametrize(
    ('frames', 'options', 'message'),
    [
        (0, {}, 'no frames'),
        (5, {'block': 6}, 'block of 6 frames; it must be 1 to 5'),
        (5, {'draws': 0}, '0 draws'),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused(frames, options, message):
    with pytest.raises(SettingError, match=message):
        bootstrap(mean_of(np.ones(frames)), frames, **options)
