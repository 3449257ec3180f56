import math

from dense_perception.errors import InputError
from dense_perception.evaluation.segmentation import evaluate_segmentation
from dense_perception.labels import CAMVID
import numpy as np
import pytest


def labels(*values):
    return np.array([values], np.uint8)


def test_report_names_the_classes_that_occur_and_averages_over_them():
    pairs = [(labels(0, 1, 1), labels(0, 0, 1)), (labels(1, 0, 2), labels(1, 2, 255))]
    report = evaluate_segmentation(pairs, CAMVID)
    assert report.images == 2
    assert list(report.iou) == list(CAMVID.names)
    assert report.iou['sky'] == pytest.approx(1 / 3)
    assert report.iou['building'] == pytest.approx(2 / 3)
    assert report.iou['pole'] == 0
    assert math.isnan(report.iou['road'])
    assert report.mean_iou == pytest.approx(1 / 3)
    assert report.pixel_accuracy == pytest.approx(3 / 5)


def test_pairs_are_taken_one_at_a_time():
    alive = 0

    def pairs():
        nonlocal alive
        for _ in range(3):
            alive += 1
            yield labels(0), labels(0)

    assert evaluate_segmentation(pairs(), CAMVID).images == alive == 3


def test_report_on_nothing_has_no_numbers():
    report = evaluate_segmentation([], CAMVID)
    assert report.images == 0
    assert math.isnan(report.mean_iou)
    assert math.isnan(report.pixel_accuracy)
    assert all(math.isnan(value) for value in report.iou.values())


def test_estimate_of_another_size_is_refused():
    with pytest.raises(InputError, match='sizes must match'):
        evaluate_segmentation([(labels(0), labels(0, 1))], CAMVID)
