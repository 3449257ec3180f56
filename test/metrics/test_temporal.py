import json
import math

from dense_perception.data.road_world import RoadWorld
from dense_perception.errors import InputError
from dense_perception.labels import CITYSCAPES
from dense_perception.metrics.temporal import TemporalConsistency
import numpy as np
import pytest


def row(*values):
    return np.array([values], np.uint8)


def right(columns, count):
    """Return a flow to the right, known everywhere."""
    flow = np.zeros((1, count, 2), np.float32)
    flow[..., 0] = columns
    return flow, np.ones((1, count), bool)


def consistency_of(*arguments, classes=4):
    consistency = TemporalConsistency(classes)
    consistency.add(*arguments)
    return consistency


def test_labels_that_move_with_the_flow_are_consistent():
    consistency = consistency_of(row(0, 1, 2, 3), row(3, 0, 1, 2), *right(1, 4))
    assert consistency.share == 1
    assert consistency.mean_iou == 1
    assert consistency.matrix.counts.sum() == 3  # the last pixel leaves the image


def test_share_is_that_of_the_worked_example():
    consistency = consistency_of(row(0, 1, 2, 3), row(3, 0, 1, 1), *right(1, 4))
    assert consistency.share == pytest.approx(2 / 3)
    assert consistency.mean_iou == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_flow_between_pixels_takes_the_nearest():
    assert consistency_of(row(0, 1, 2, 3), row(0, 0, 1, 2), *right(0.6, 4)).share == 1
    assert consistency_of(row(0, 1, 2, 3), row(0, 1, 2, 3), *right(0.4, 4)).share == 1


def test_rows_follow_the_second_component():
    previous = np.arange(6, dtype=np.uint8).reshape(3, 2) % 4
    flow = np.zeros((3, 2, 2), np.float32)
    flow[..., 1] = -1
    following = np.roll(previous, -1, axis=0)
    assert consistency_of(previous, following, flow, np.ones((3, 2), bool)).share == 1


def test_hidden_pixels_and_those_without_label_do_not_count():
    flow, valid = right(0, 5)
    valid[0, 0] = False
    flow[0, 1] = np.nan
    consistency = consistency_of(row(0, 0, 255, 1, 1), row(1, 1, 1, 255, 1), flow, valid)
    assert consistency.matrix.counts.sum() == 1
    assert consistency.share == 1


def test_nothing_is_known_without_pixels():
    assert math.isnan(TemporalConsistency(4).share)


def test_true_labels_of_a_drive_are_consistent_along_its_true_flow():
    world = RoadWorld(3)
    first, second = world.frame(40).labels, world.frame(41).labels
    moving = consistency_of(first, second, *world.flow(40, 41), classes=len(CITYSCAPES))
    resting = consistency_of(
        first,
        second,
        np.zeros((*first.shape, 2), np.float32),
        np.ones(first.shape, bool),
        classes=len(CITYSCAPES),
    )
    assert moving.share > 0.97
    assert moving.share > resting.share + 0.02


def test_parts_add_up_and_come_back_from_json():
    random = np.random.default_rng(0)
    pairs = [
        (*random.integers(0, 4, (2, 8, 9), dtype=np.uint8), random.normal(0, 2, (8, 9, 2)))
        for _ in range(3)
    ]
    valid = np.ones((8, 9), bool)
    a, b, c = (consistency_of(*pair, valid) for pair in pairs)
    whole = TemporalConsistency(4)
    for pair in pairs:
        whole.add(*pair, valid)
    for total in ((a + b) + c, a + (b + c), c + b + a):
        back = TemporalConsistency.from_json(json.loads(json.dumps(total.to_json())))
        np.testing.assert_array_equal(back.matrix.counts, whole.matrix.counts)


def test_sizes_that_differ_are_refused():
    with pytest.raises(InputError, match='sizes must match'):
        consistency_of(row(0, 1), row(0, 1), *right(1, 3))
    with pytest.raises(InputError, match='sizes must match'):
        consistency_of(row(0, 1), row(0), *right(1, 2))
