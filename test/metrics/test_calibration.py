import json
import math

from dense_perception.errors import InputError
from dense_perception.metrics.calibration import Calibration
import numpy as np
import pytest


def row(*values):
    return np.array([values], np.uint8)


def example(seed, shape=(20, 30)):
    """Return prediction, confidence and truth of 3 classes; some truth is unknown."""
    random = np.random.default_rng(seed)
    prediction = random.integers(0, 3, shape, dtype=np.uint8)
    confidence = random.integers(0, 256, shape, dtype=np.uint8)
    right = random.random(shape) * 255 < confidence
    truth = np.where(right, prediction, (prediction + 1) % 3).astype(np.uint8)
    truth[random.random(shape) < 0.1] = 255
    return prediction, confidence, truth


def calibration_of(*images, classes=3):
    calibration = Calibration(classes)
    calibration.add(*images)
    return calibration


def plain_error(prediction, confidence, truth, bins):
    """Compute the error as Guo et al. (2017), equation 3, write it: a loop over (low, high]."""
    known = truth != 255
    share, right = confidence[known] / 255, (prediction == truth)[known]
    error = 0.0
    for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        inside = (share > low) & (share <= high) | ((low == 0) & (share == 0))
        if inside.any():
            error += abs(right[inside].mean() - share[inside].mean()) * inside.mean()
    return error


@pytest.mark.parametrize('bins', [1, 10, 15, 51, 255])
def test_error_is_that_of_the_published_formula(bins):
    images = example(0)
    error = calibration_of(*images).expected_error(bins)
    assert error == pytest.approx(plain_error(*images, bins), rel=1e-12)


def test_certain_and_right_has_no_error():
    assert calibration_of(row(0, 1), row(255, 255), row(0, 1)).expected_error() == 0


def test_certain_and_wrong_has_an_error_of_1():
    assert calibration_of(row(0, 1), row(255, 255), row(1, 0)).expected_error() == 1


def test_bins_hold_the_worked_example():
    low, high = calibration_of(row(0, 0, 0, 0), row(51, 102, 204, 255), row(1, 0, 0, 0)).bins(2)
    assert (low.low, low.high, low.pixels, low.accuracy) == (0, 0.5, 2, 0.5)
    assert low.confidence == pytest.approx(0.3)
    assert (high.low, high.high, high.pixels, high.accuracy) == (0.5, 1, 2, 1)
    assert high.confidence == pytest.approx(0.9)


def test_unknown_truth_does_not_count():
    calibration = calibration_of(row(0, 0, 0), row(255, 255, 255), row(0, 3, 255))
    assert calibration.pixels.sum() == 1
    assert calibration.expected_error() == 0


def test_nothing_is_known_before_the_first_labelled_pixel():
    calibration = Calibration(3)
    assert math.isnan(calibration.expected_error())
    assert all(math.isnan(entry.accuracy) for entry in calibration.bins())


def test_parts_add_up_to_the_very_error_of_the_whole():
    parts = [example(seed) for seed in range(3)]
    a, b, c = (calibration_of(*part) for part in parts)
    whole = calibration_of(*(np.concatenate(images) for images in zip(*parts, strict=True)))
    for total in ((a + b) + c, a + (b + c), c + b + a):
        np.testing.assert_array_equal(total.right, whole.right)
        assert total.expected_error() == whole.expected_error()


def test_calibration_comes_back_from_json():
    calibration = calibration_of(*example(1))
    back = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert back.expected_error() == calibration.expected_error()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match='confidence is float32; labels must be uint8'):
        calibration_of(row(0), row(0).astype(np.float32), row(0))
    with pytest.raises(InputError, match='sizes must match'):
        calibration_of(row(0), row(0, 0), row(0))
    with pytest.raises(InputError, match='0 bins; at least 1'):
        Calibration(3).bins(0)
    with pytest.raises(InputError, match='of 2 and 3 classes differ'):
        Calibration(2) + Calibration(3)
    with pytest.raises(InputError, match=r'pixels must be counts of shape \(256,\)'):
        Calibration.from_json({'classes': 1, 'pixels': [1], 'right': [1]})
