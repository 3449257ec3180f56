import math

from dense_perception.errors import InputError
from dense_perception.metrics.segmentation import ConfusionMatrix
import numpy as np
import pytest


def labels(*values):
    return np.array([values], np.uint8)


def matrix_of(prediction, truth, classes=3):
    matrix = ConfusionMatrix(classes)
    matrix.add(prediction, truth)
    return matrix


def test_iou_is_that_of_the_worked_example():
    matrix = matrix_of(labels(0, 1, 1, 1, 0, 2), labels(0, 0, 1, 1, 2, 255))
    np.testing.assert_allclose(matrix.iou, [1 / 3, 2 / 3, 0])
    assert matrix.mean_iou == pytest.approx(1 / 3)


def test_pixel_accuracy_counts_labelled_pixels():
    matrix = matrix_of(labels(0, 1, 1, 1, 0, 2), labels(0, 0, 1, 1, 2, 255))
    assert matrix.pixel_accuracy == pytest.approx(3 / 5)


def test_perfect_prediction_scores_1():
    truth = np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8)
    matrix = matrix_of(truth, truth)
    assert matrix.mean_iou == 1
    assert matrix.pixel_accuracy == 1


def test_pixels_are_counted_over_the_set_and_not_averaged_over_images():
    matrix = ConfusionMatrix(2)
    matrix.add(labels(0), labels(0))  # alone: IoU 1
    matrix.add(labels(0, 0, 0, 1), labels(1, 1, 1, 1))  # alone: IoU 0 and 1/4
    np.testing.assert_allclose(matrix.iou, [1 / 4, 1 / 4])


def test_images_added_one_by_one_score_as_one_large_image_does():
    random = np.random.default_rng(1)
    predictions, truths = random.integers(0, 5, (2, 4, 6, 8), dtype=np.uint8)
    matrix = ConfusionMatrix(4)
    for prediction, truth in zip(predictions, truths, strict=True):
        matrix.add(prediction, truth)
    whole = matrix_of(predictions.reshape(24, 8), truths.reshape(24, 8), classes=4)
    np.testing.assert_array_equal(matrix.counts, whole.counts)


def test_class_that_neither_is_nor_is_predicted_does_not_count_in_the_mean():
    matrix = matrix_of(labels(0, 0, 1), labels(0, 1, 1), classes=4)
    assert np.isnan(matrix.iou[2:]).all()
    assert matrix.mean_iou == pytest.approx(1 / 2)


def test_class_that_is_predicted_but_is_not_scores_0():
    matrix = matrix_of(labels(0, 2), labels(0, 0))
    assert matrix.iou[2] == 0
    assert matrix.mean_iou == pytest.approx(1 / 4)


@pytest.mark.parametrize('value', [3, 200, 255])
def test_prediction_that_is_no_class_is_wrong(value):
    matrix = matrix_of(labels(0, value), labels(0, 0))
    assert matrix.iou[0] == pytest.approx(1 / 2)
    assert matrix.pixel_accuracy == pytest.approx(1 / 2)


@pytest.mark.parametrize('value', [3, 200, 255])
def test_truth_that_is_no_class_does_not_count(value):
    matrix = matrix_of(labels(0, 1), labels(0, value))
    assert matrix.counts.sum() == 1


def test_counts_of_a_thousand_images_do_not_overflow():
    matrix = ConfusionMatrix(1)
    image = np.zeros((2048, 2048), np.uint8)
    for _ in range(3):
        matrix.add(image, image)
    matrix.counts *= 1000
    assert matrix.counts[0, 0] == 3 * 1000 * 2**22
    assert matrix.mean_iou == 1


def test_nothing_is_known_before_the_first_labelled_pixel():
    matrix = matrix_of(labels(0, 1), labels(255, 255))
    assert math.isnan(matrix.mean_iou)
    assert math.isnan(matrix.pixel_accuracy)
    assert np.isnan(matrix.iou).all()


def test_images_that_differ_in_size_are_refused():
    with pytest.raises(InputError, match=r'\(1, 2\), truth is \(1, 3\); sizes must match'):
        matrix_of(labels(0, 1), labels(0, 1, 1))
