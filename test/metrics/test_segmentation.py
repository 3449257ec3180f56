import json
import math

from dense_perception.errors import InputError
from dense_perception.metrics.segmentation import ConfusionMatrix
from hypothesis import given, strategies
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


def test_labels_that_are_not_uint8_are_refused():
    with pytest.raises(InputError, match='truth is int64; labels must be uint8'):
        matrix_of(labels(0), labels(0).astype(np.int64))


@pytest.mark.parametrize('classes', [0, 256])
def test_number_of_classes_that_uint8_does_not_hold_is_refused(classes):
    with pytest.raises(InputError, match=f'{classes} classes; a label set has 1 to 255'):
        ConfusionMatrix(classes)


def random_pair(seed, run):
    """Return two label images of all 256 values, in rows of equal values of a given length."""
    random = np.random.default_rng(seed)
    shape = (2, 16, -(-50 // run))
    values = np.where(random.random(shape) < 0.5, random.integers(0, 4, shape), 0)
    values = np.where(random.random(shape) < 0.1, random.integers(0, 256, shape), values)
    return values.astype(np.uint8).repeat(run, axis=2)[:, :, :50]


@pytest.mark.parametrize('run', [1, 3, 12, 50])  # counted pixel by pixel, or run by run
def test_counts_are_those_of_a_loop_over_pixels(run):
    prediction, truth = random_pair(run, run)
    expected = np.zeros((3, 4), int)
    for predicted, true in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if true < 3:
            expected[true, min(predicted, 3)] += 1
    np.testing.assert_array_equal(matrix_of(prediction, truth).counts, expected)


@pytest.mark.parametrize('run', [1, 12])
def test_image_that_is_a_view_counts_as_its_copy_does(run):
    prediction, truth = random_pair(run, run)
    view = matrix_of(prediction[::2, ::-1], truth[::2, ::-1])
    np.testing.assert_array_equal(
        view.counts, matrix_of(prediction[::2, ::-1].copy(), truth[::2, ::-1].copy()).counts
    )


def test_image_without_pixels_counts_nothing():
    assert matrix_of(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)).counts.sum() == 0


@given(strategies.lists(strategies.integers(0, 2**32), min_size=3, max_size=3))
def test_matrices_of_parts_add_up_in_any_grouping(seeds):
    pairs = [random_pair(seed, 3) for seed in seeds]
    a, b, c = (matrix_of(*pair) for pair in pairs)
    whole = ConfusionMatrix(3)
    for pair in pairs:
        whole.add(*pair)
    for total in ((a + b) + c, a + (b + c), c + a + b):
        np.testing.assert_array_equal(total.counts, whole.counts)


def test_adding_leaves_the_parts_as_they_are():
    first, second = matrix_of(labels(0), labels(0)), matrix_of(labels(1), labels(0))
    (first + second).add(labels(2), labels(2))
    assert first.counts.sum() == second.counts.sum() == 1


def test_matrices_of_different_classes_do_not_add():
    with pytest.raises(InputError, match='of 2 and 3 classes do not add'):
        ConfusionMatrix(2) + ConfusionMatrix(3)


def test_matrix_comes_back_from_json():
    matrix = matrix_of(*random_pair(5, 3))
    stored = json.loads(json.dumps(matrix.to_json()))
    np.testing.assert_array_equal(ConfusionMatrix.from_json(stored).counts, matrix.counts)


@pytest.mark.parametrize(
    ('stored', 'message'),
    [
        ({}, 'classes is missing'),
        ({'classes': 1}, 'counts is missing; it has classes'),
        ({'classes': '1', 'counts': [[0, 0]]}, "classes is '1'; it must be int"),
        ({'classes': 1, 'counts': [[0]]}, r'counts must be counts of shape \(1, 2\)'),
        ({'classes': 2, 'counts': [[0, 0, 0], [0]]}, r'must be counts of shape \(2, 3\)'),
        ({'classes': 1, 'counts': [[0, -1]]}, 'must be counts'),
        ({'classes': 1, 'counts': [[0, 0.5]]}, 'must be counts'),
    ],
)
def test_what_is_no_stored_matrix_is_refused(stored, message):
    with pytest.raises(InputError, match=message):
        ConfusionMatrix.from_json(stored)


# Truth and prediction of 10 pixels: 6 of class 0 (1 wrong), 3 of class 1 (1 wrong), 1 of class 2
# (taken for class 1).
WORKED = labels(0, 0, 0, 0, 0, 1, 1, 1, 0, 1), labels(0, 0, 0, 0, 0, 0, 1, 1, 1, 2)


def test_class_and_mean_accuracy_are_those_of_the_worked_example():
    matrix = matrix_of(*WORKED)
    np.testing.assert_allclose(matrix.class_accuracy, [5 / 6, 2 / 3, 0])
    assert matrix.mean_accuracy == pytest.approx(0.5)


def test_frequency_weighted_iou_is_that_of_the_worked_example():
    matrix = matrix_of(*WORKED)
    np.testing.assert_allclose(matrix.iou, [5 / 7, 2 / 5, 0])
    assert matrix.frequency_weighted_iou == pytest.approx(0.6 * 5 / 7 + 0.3 * 2 / 5)


def test_accuracies_are_nan_without_labelled_pixels():
    matrix = matrix_of(labels(0), labels(255))
    assert math.isnan(matrix.mean_accuracy)
    assert math.isnan(matrix.frequency_weighted_iou)


def test_class_taken_for_another_of_its_group_is_right():
    matrix = matrix_of(*WORKED).grouped([(0,), (1, 2)])
    assert matrix.counts.tolist() == [[5, 1, 0], [1, 3, 0]]


def test_truth_outside_every_group_does_not_count_and_prediction_outside_is_wrong():
    matrix = matrix_of(labels(1, 0, 255, 1), labels(0, 1, 0, 0)).grouped([(0,)])
    assert matrix.counts.tolist() == [[0, 3]]


@pytest.mark.parametrize('groups', [[(0, 1), (1,)], [(3,)], [(0, 0)], [(-1,)]])
def test_wrong_groups_are_refused(groups):
    with pytest.raises(InputError, match='indices below 3, each at most once'):
        matrix_of(*WORKED).grouped(groups)
