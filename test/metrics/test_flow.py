import json
import math
from pathlib import Path

from dense_perception.data.flow import flow_pairs
from dense_perception.data.flow_files import read_kitti_flow
from dense_perception.errors import InputError
from dense_perception.metrics.flow import EndPointError, FlowErrors, REGIONS
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


def errors_of(flow, truth, valid=None, occluded=None):
    """Errors of vectors given as (pixels, 2)."""
    flow, truth = np.array([flow], np.float32), np.array([truth], np.float32)
    errors = FlowErrors()
    errors.add(flow, truth, np.ones(flow.shape[:2], bool) if valid is None else valid, occluded)
    return errors


def random_pair(seed, shape=(20, 30)):
    """Return an estimate, its truth, where that is known and what is hidden."""
    random = np.random.default_rng(seed)
    truth = random.normal(0, 25, (*shape, 2)).astype(np.float32)
    estimate = truth + random.normal(0, 3, (*shape, 2)).astype(np.float32)
    return estimate, truth, random.random(shape) < 0.8, random.random(shape) < 0.3


def plain_kitti(estimate, truth, valid):
    """Mean error and outliers pixel by pixel, as the development kit of KITTI describes them."""
    total, long, outliers, count = 0.0, 0, 0, 0
    for row, column in zip(*np.nonzero(valid), strict=True):
        u, v = (float(number) for number in estimate[row, column])
        true_u, true_v = (float(number) for number in truth[row, column])
        error = math.sqrt((u - true_u) ** 2 + (v - true_v) ** 2)
        length = math.sqrt(true_u**2 + true_v**2)
        total += error
        count += 1
        long += error > 3
        outliers += error > 3 and (length == 0 or error / length > 0.05)
    return total / count, long / count, outliers / count


def test_outlier_is_more_than_3_pixels_and_5_percent_off():
    truth = [(100, 0), (100, 0), (10, 0), (10, 0), (0, 0)]
    flow = [(104, 0), (106, 0), (13, 0), (14, 0), (0, 3.5)]
    errors = errors_of(flow, truth)['all']
    assert errors.long_share == pytest.approx(4 / 5)  # all but the third
    assert errors.outlier_share == pytest.approx(3 / 5)  # nor the first: 4 % of its length


@needs_data
def test_kitti_figures_of_a_published_estimate_are_those_of_a_loop_over_pixels():
    folder = SHARED / 'flow' / 'kitti2012'
    truth, valid = read_kitti_flow(folder / '000045_10_flow_noc.png')
    estimate, _ = read_kitti_flow(folder / '000045_10_flow_LKestimate.png')
    errors = FlowErrors()
    errors.add(estimate, truth, valid, np.zeros_like(valid))
    error, long, outliers = plain_kitti(estimate, truth, valid)
    for region in ('all', 'noc'):
        assert errors[region].end_point_error_px == pytest.approx(error, rel=1e-12)
        assert errors[region].long_share == long
        assert errors[region].outlier_share == outliers
    assert errors['all'].end_point_error_px == pytest.approx(10.627, abs=5e-4)  # README.md there
    assert errors['all'].long_share == pytest.approx(0.7856, abs=5e-5)


@needs_data
def test_figures_of_real_pairs_are_those_of_a_loop_over_pixels():
    pairs = {pair.name: pair for pair in flow_pairs(SHARED / 'flow')}
    random = np.random.default_rng(0)
    for name in ('kitti2015/000000_10', 'sintel/cave_2'):
        pair = pairs[name]
        chosen = pair.valid & (random.random(pair.valid.shape) < 0.1)  # a loop is slow
        estimate = (pair.flow * random.normal(1, 0.1, pair.flow.shape)).astype(np.float32)
        errors = FlowErrors()
        errors.add(estimate, pair.flow, chosen, pair.occluded)
        speed = np.linalg.norm(pair.flow.astype(float), axis=-1)
        regions = {
            'all': chosen,
            's0-10': chosen & (speed < 10),
            's10-40': chosen & (speed >= 10) & (speed <= 40),
            's40+': chosen & (speed > 40),
        }
        if pair.occluded is not None:
            regions |= {'noc': chosen & ~pair.occluded, 'occ': chosen & pair.occluded}
        for region, part in regions.items():
            found = errors[region]
            assert found.count == part.sum()
            if found.count:
                error, long, outliers = plain_kitti(estimate, pair.flow, part)
                assert found.end_point_error_px == pytest.approx(error, rel=1e-12)
                assert (found.long_share, found.outlier_share) == (long, outliers)


def test_angular_error_is_that_of_the_published_formula():
    estimate, truth, valid, _ = random_pair(3)
    errors = FlowErrors()
    errors.add(estimate, truth, valid)
    vectors = [
        np.concatenate([flow[valid].astype(float), np.ones((valid.sum(), 1))], axis=1)
        for flow in (estimate, truth)
    ]
    first, second = (vector / np.linalg.norm(vector, axis=1)[:, None] for vector in vectors)
    angle = np.degrees(np.arccos(np.clip((first * second).sum(1), -1, 1)))
    assert errors['all'].angular_error_deg == pytest.approx(angle.mean(), rel=1e-9)


@pytest.mark.parametrize(
    ('flow', 'truth', 'degrees'),
    [
        ((1, 0), (0, 0), 45),
        ((1, 1), (1, 1), 0),
        ((1e-7, 0), (0, 0), math.degrees(1e-7)),  # too small for an arc cosine
    ],
)
def test_angle_is_that_of_the_worked_example(flow, truth, degrees):
    error = errors_of([flow], [truth])['all'].angular_error_deg
    assert error == pytest.approx(degrees, rel=1e-6, abs=1e-12)


def test_speeds_of_10_and_40_pixels_are_in_the_middle_region():
    truth = [(9.9, 0), (10, 0), (0, 40), (0, 40.1)]
    errors = errors_of(truth, truth)
    assert [errors[name].count for name in ('s0-10', 's10-40', 's40+')] == [1, 2, 1]


def test_pair_without_occlusions_counts_in_neither_noc_nor_occ():
    errors = errors_of([(1, 0)], [(0, 0)])
    assert math.isnan(errors['noc'].end_point_error_px)
    assert math.isnan(errors['occ'].outlier_share)
    assert errors['all'].end_point_error_px == 1


def test_hidden_and_visible_pixels_are_judged_apart():
    errors = errors_of(
        [(1, 0), (0, 5), (9, 9)],
        [(0, 0), (0, 0), (0, 0)],
        valid=np.array([[True, True, False]]),
        occluded=np.array([[False, True, True]]),
    )
    assert errors['noc'].end_point_error_px == 1
    assert errors['occ'].end_point_error_px == 5
    assert errors['all'].end_point_error_px == 3


@pytest.mark.parametrize('number', [np.nan, np.inf])
def test_flow_that_is_not_finite_is_an_outlier_and_makes_the_means_nan(number):
    errors = errors_of([(number, 0), (0, 0)], [(0, 0), (0, 0)])['all']
    assert errors.outlier_share == 0.5
    assert math.isnan(errors.end_point_error_px)


def test_parts_add_up_to_the_very_figures_of_the_whole():
    pairs = [random_pair(seed) for seed in range(4)]
    parts = []
    whole = FlowErrors()
    for pair in pairs:
        part = FlowErrors()
        part.add(*pair)
        whole.add(*pair)
        parts.append(part)
    a, b, c, d = parts
    for total in (((a + b) + c) + d, (a + b) + (c + d), d + (c + (b + a))):
        assert total == whole
    assert FlowErrors.from_json(json.loads(json.dumps(whole.to_json()))) == whole


def test_end_point_errors_of_parts_add_up_to_the_very_error_of_the_whole():
    pairs = [random_pair(seed)[:3] for seed in range(3)]
    whole, parts = EndPointError(), [EndPointError() for _ in pairs]
    for part, pair in zip(parts, pairs, strict=True):
        part.add(*pair)
        whole.add(*pair)
    a, b, c = parts
    assert (a + b) + c == a + (b + c) == c + b + a == whole


def test_unknown_region_and_stored_errors_that_lack_one_are_refused():
    with pytest.raises(InputError, match="no region 'fast'; known are all, noc, occ"):
        FlowErrors()['fast']
    with pytest.raises(InputError, match='s40\\+ is missing'):
        FlowErrors.from_json({name: FlowErrors()[name].to_json() for name in REGIONS[:-1]})


@pytest.mark.parametrize(
    ('valid', 'occluded'), [((2, 3), None), ((2, 2), (2, 3)), ((2, 2), (3, 2))]
)
def test_masks_of_another_size_are_refused(valid, occluded):
    flow = np.zeros((2, 2, 2), np.float32)
    with pytest.raises(InputError, match='must match'):
        FlowErrors().add(
            flow,
            flow,
            np.ones(valid, bool),
            None if occluded is None else np.zeros(occluded, bool),
        )
