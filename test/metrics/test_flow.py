import math
from pathlib import Path

from dense_perception.data.flow_files import read_kitti_flow
from dense_perception.errors import InputError
from dense_perception.metrics.flow import EndPointError
import numpy as np
import pytest

SHARED = Path(__file__).parents[2].parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the data beside the checkout')


def test_error_is_the_mean_length_of_the_difference():
    flow = np.array([[[3, 4], [1, 1], [0, 0]]], np.float32)
    truth = np.array([[[0, 0], [1, 1], [0, 2]]], np.float32)
    error = EndPointError()
    error.add(flow, truth, np.ones((1, 3), bool))
    assert error.mean == pytest.approx((5 + 0 + 2) / 3)


def test_unknown_pixels_do_not_count_whatever_they_hold():
    flow = np.array([[[3, 4], [np.nan, np.inf]]], np.float32)
    error = EndPointError()
    error.add(flow, np.zeros_like(flow), np.array([[True, False]]))
    assert error.mean == 5
    assert error.count == 1


def test_pixels_are_averaged_over_the_set_and_not_per_pair():
    error = EndPointError()
    error.add(
        np.ones((1, 1, 2), np.float32), np.zeros((1, 1, 2), np.float32), np.ones((1, 1), bool)
    )
    zero = np.zeros((1, 9, 2), np.float32)
    error.add(zero, zero, np.ones((1, 9), bool))
    assert error.mean == pytest.approx(math.sqrt(2) / 10)


def test_mean_is_nan_before_the_first_known_pixel():
    error = EndPointError()
    assert math.isnan(error.mean)
    zero = np.zeros((2, 2, 2), np.float32)
    error.add(zero, zero, np.zeros((2, 2), bool))
    assert math.isnan(error.mean)


def test_many_small_errors_add_up_without_loss():
    error = EndPointError()
    flow = np.full((1000, 1000, 2), (0.1, 0), np.float32)
    for _ in range(3):
        error.add(flow, np.zeros_like(flow), np.ones((1000, 1000), bool))
    assert error.mean == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(
    ('flow', 'valid'), [((2, 3, 2), (2, 2)), ((2, 2, 2), (2, 3)), ((3, 2, 2), (3, 2))]
)
def test_sizes_that_differ_are_refused(flow, valid):
    with pytest.raises(InputError, match='sizes must match'):
        EndPointError().add(
            np.zeros(flow, np.float32), np.zeros((2, 2, 2), np.float32), np.ones(valid, bool)
        )


@needs_data
def test_published_lucas_kanade_estimate_has_its_published_error():
    folder = SHARED / 'flow' / 'kitti2012'
    truth, valid = read_kitti_flow(folder / '000045_10_flow_noc.png')
    estimate, _ = read_kitti_flow(folder / '000045_10_flow_LKestimate.png')
    error = EndPointError()
    error.add(estimate, truth, valid)
    assert error.count == 104330
    assert error.mean == pytest.approx(10.627, abs=5e-4)
