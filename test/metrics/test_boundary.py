import json
import math

import cv2
from dense_perception.errors import InputError
from dense_perception.metrics.boundary import boundary_band, BoundaryMatches
import numpy as np
import pytest
from scipy import ndimage

CROSS = ndimage.generate_binary_structure(2, 1)


def labels(seed, classes=4, shape=(40, 56), unknown=0.0):
    """Return label images of a few smooth regions."""
    random = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(random.normal(size=shape), None, 4) for _ in range(classes)]
    image = np.argmax(fields, axis=0).astype(np.uint8)
    image[cv2.GaussianBlur(random.random(shape), None, 2) < unknown] = 255
    return image


def matches_of(prediction, truth, tolerance, classes=4):
    matches = BoundaryMatches(classes, tolerance)
    matches.add(prediction, truth)
    return matches


def outline(image, label, known):
    """Boundary of one class by morphology: what of it touches a known pixel of another."""
    inside = (image == label) & known
    others = (image != label) & known
    return inside & ndimage.binary_dilation(others, CROSS)


def distance_to(mask):
    return ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)


@pytest.mark.parametrize('tolerance', [0, 1, 1.5, 3, 7.2, 100])
@pytest.mark.parametrize('unknown', [0.0, 0.45])
def test_counts_are_those_of_distance_transforms(tolerance, unknown):
    truth, prediction = labels(1, unknown=unknown), labels(2)
    # Half of the image agrees, so that many boundaries are matched at any tolerance.
    prediction[:, :28] = np.where(truth[:, :28] == 255, 0, truth[:, :28])
    known = truth != 255
    expected = np.zeros((4, 4), int)
    for label in range(4):
        predicted, true = outline(prediction, label, known), outline(truth, label, known)
        expected[:, label] = [
            (predicted & (distance_to(true) <= tolerance)).sum(),
            predicted.sum(),
            (true & (distance_to(predicted) <= tolerance)).sum(),
            true.sum(),
        ]
    assert (expected > 0).all()
    counts = matches_of(prediction, truth, tolerance).counts
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize('width', [0, 1, 2.5, 6, 100])
@pytest.mark.parametrize('unknown', [0.0, 0.45])
def test_band_is_that_of_a_distance_transform(width, unknown):
    truth = labels(3, unknown=unknown)
    known = truth != 255
    boundary = np.any([outline(truth, label, known) for label in range(4)], axis=0)
    expected = (distance_to(boundary) <= width) & known
    np.testing.assert_array_equal(boundary_band(truth, 4, width), expected)


def test_band_of_an_image_without_boundary_is_empty():
    assert not boundary_band(np.zeros((5, 7), np.uint8), 3, 2).any()


def test_truth_itself_has_an_f_measure_of_1():
    truth = labels(4)
    matches = matches_of(truth, truth, 0)
    assert (matches.f_measure == 1).all()
    assert matches.mean_f_measure == 1


def test_shifted_edge_is_matched_from_its_shift_on():
    truth = np.zeros((8, 20), np.uint8)
    truth[:, 10:] = 1
    prediction = np.roll(truth, 3, axis=1)
    prediction[:, :3] = 0
    assert matches_of(prediction, truth, 2.9).f_measure[:2].tolist() == [0, 0]
    assert matches_of(prediction, truth, 3).f_measure[:2].tolist() == [1, 1]


def test_f_measure_is_the_harmonic_mean_of_the_worked_example():
    truth = np.zeros((3, 12), np.uint8)
    truth[:, 4:] = 1  # one edge of 3 pixels for each class
    prediction = truth.copy()
    prediction[:, 8:] = 0  # class 1 has a second edge, and so has class 0
    matches = matches_of(prediction, truth, 0)
    assert matches.precision[:2].tolist() == [0.5, 0.5]
    assert matches.recall[:2].tolist() == [1, 1]
    np.testing.assert_allclose(matches.f_measure, [2 / 3, 2 / 3, np.nan, np.nan])
    assert matches.mean_f_measure == pytest.approx(2 / 3)


def test_class_that_is_missed_scores_0_and_one_that_is_nowhere_nan():
    truth = np.zeros((4, 8), np.uint8)
    truth[:, 4:] = 1
    matches = matches_of(np.zeros_like(truth), truth, 1)
    assert matches.f_measure[:2].tolist() == [0, 0]
    assert np.isnan(matches.f_measure[2:]).all()


def test_edge_of_the_unknown_is_no_boundary():
    truth = np.zeros((4, 8), np.uint8)
    truth[:, 4:] = 255
    assert math.isnan(matches_of(np.ones_like(truth), truth, 1).mean_f_measure)


def test_parts_add_up_and_come_back_from_json():
    pairs = [(labels(seed), labels(seed + 10)) for seed in range(3)]
    a, b, c = (matches_of(*pair, 1.5) for pair in pairs)
    whole = BoundaryMatches(4, 1.5)
    for pair in pairs:
        whole.add(*pair)
    for total in ((a + b) + c, a + (b + c), c + b + a):
        back = BoundaryMatches.from_json(json.loads(json.dumps(total.to_json())))
        np.testing.assert_array_equal(back.counts, whole.counts)
        assert back.tolerance_px == 1.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match='tolerance is -1 px'):
        BoundaryMatches(4, -1)
    with pytest.raises(InputError, match='of 4 classes within 1 px and of 4 within 2 px'):
        BoundaryMatches(4, 1) + BoundaryMatches(4, 2)
    with pytest.raises(InputError, match='sizes must match'):
        matches_of(labels(0), labels(0)[:-1], 1)
    with pytest.raises(InputError, match=r'counts must be counts of shape \(4, 2\)'):
        BoundaryMatches.from_json({'classes': 2, 'tolerance_px': 1.0, 'counts': []})
