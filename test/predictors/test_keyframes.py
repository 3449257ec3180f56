from dense_perception.errors import InputError, SettingError
from dense_perception.labels import UNLABELLED
from dense_perception.predictors.keyframes import carry_labels, Keyframes
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest


def some_labels(height=9, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 19, (height, width), dtype=np.uint8)


def flow_of(u, v, height=9, width=12):
    return np.full((height, width, 2), (u, v), np.float32)


@settings(max_examples=60, deadline=None)
@given(
    u=st.integers(-15, 15),
    v=st.integers(-15, 15),
    part=st.tuples(*2 * [st.floats(-0.49, 0.49)]),
)
def test_labels_move_by_the_nearest_whole_number_of_pixels(u, v, part):
    labels = some_labels()
    carried = carry_labels(labels, flow_of(u + part[0], v + part[1]))
    for y in range(9):
        for x in range(12):
            inside = 0 <= y - v < 9 and 0 <= x - u < 12
            assert carried[y, x] == (labels[y - v, x - u] if inside else UNLABELLED)


def test_each_pixel_follows_the_flow_at_its_place():
    labels = some_labels()
    flow = flow_of(0, 0)
    flow[:, 6:, 0] = 2
    carried = carry_labels(labels, flow)
    np.testing.assert_array_equal(carried[:, :6], labels[:, :6])
    np.testing.assert_array_equal(carried[:, 6:], labels[:, 4:-2])


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_a_flow_that_is_no_place_leaves_no_label(value):
    flow = flow_of(0, 0)
    flow[2, 3, 0] = flow[4, 5, 1] = value
    carried = carry_labels(some_labels(), flow)
    assert carried[2, 3] == carried[4, 5] == UNLABELLED
    assert (carried != UNLABELLED).sum() == carried.size - 2


def test_labels_that_are_carried_stay_as_they_are():
    labels = some_labels()
    carry_labels(labels, flow_of(1, 1))
    np.testing.assert_array_equal(labels, some_labels())


def test_labels_and_flow_of_two_sizes_are_refused():
    with pytest.raises(InputError, match=r'labels are \(9, 12\), flow is \(9, 11, 2\)'):
        carry_labels(some_labels(), flow_of(0, 0, width=11))


@pytest.mark.parametrize('interval', [1, 2, 5])
def test_every_kth_frame_is_labelled_by_the_network(interval):
    keyframes = Keyframes(interval)
    due = []
    for _ in range(11):
        due.append(keyframes.due((9, 12, 3)))
        if due[-1]:
            keyframes.set(some_labels())
        else:
            keyframes.carry(flow_of(0, 0))
    assert due == [at % interval == 0 for at in range(11)]


def test_labels_are_carried_from_frame_to_frame():
    keyframes = Keyframes(3)
    keyframes.set(some_labels())
    keyframes.carry(flow_of(1, 0))
    carried = keyframes.carry(flow_of(2, 1))
    np.testing.assert_array_equal(carried[1:, 3:], some_labels()[:-1, :-3])
    assert (carried[0] == UNLABELLED).all()
    assert (carried[:, :3] == UNLABELLED).all()
    assert keyframes.age == 2


def test_a_frame_of_another_size_or_after_a_reset_is_a_keyframe():
    keyframes = Keyframes(100)
    keyframes.set(some_labels())
    assert not keyframes.due((9, 12, 3))
    assert keyframes.due((9, 13, 3))
    keyframes.reset()
    assert keyframes.due((9, 12, 3))
    with pytest.raises(InputError, match='no frame has been labelled yet'):
        keyframes.carry(flow_of(0, 0))


def test_the_interval_may_change_while_frames_come():
    keyframes = Keyframes(1)
    keyframes.set(some_labels())
    assert keyframes.due((9, 12, 3))
    keyframes.interval = 2
    assert not keyframes.due((9, 12, 3))
    with pytest.raises(SettingError, match='keyframe interval is 0'):
        keyframes.interval = 0
