"""The Cityscapes benchmark, figure by figure as cityscapesscripts computes it."""

import copy
import json
import math

from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as published
from cityscapesscripts.helpers.labels import category2labels, labels
import cv2
from dense_perception.data.datasets import find_labelled
from dense_perception.errors import InputError
from dense_perception.labels import (
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_IDS,
    CITYSCAPES_INSTANCE_AREA,
)
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix
import numpy as np
import pytest

TRAIN_IDS = np.array([CITYSCAPES_IDS[number] for number in range(34)], np.uint8)
# Class indices as labelIds again; 255, no class, as unlabeled.
LABEL_IDS = np.zeros(256, np.uint8)
LABEL_IDS[: len(CITYSCAPES)] = [n for n, index in CITYSCAPES_IDS.items() if index != 255]
WITH_OBJECTS = [label.id for label in labels if label.hasInstances]


def scene(random):
    """Return prediction (class indices), labelIds and instanceIds of one 64 x 96 image."""
    blocks = random.integers(0, 34, (8, 12), dtype=np.uint8)
    numbers = random.integers(0, 3, (8, 12))
    for _ in range(8):  # larger areas of one value, too
        row, column = random.integers(0, 6, 2)
        blocks[row : row + 3, column : column + 3] = random.integers(0, 34)
        numbers[row : row + 3, column : column + 3] = random.integers(0, 3)
    truth, number = blocks.repeat(8, 0).repeat(8, 1), numbers.repeat(8, 0).repeat(8, 1)
    # Every third object is in a group, which is not told apart.
    single = np.isin(truth, WITH_OBJECTS) & (number > 0)
    instances = np.where(single, truth.astype(int) * 1000 + number, truth).astype(np.uint16)
    wrong = random.random(truth.shape) < 0.3
    prediction = np.where(wrong, random.integers(0, 24, truth.shape), TRAIN_IDS[truth])
    prediction[prediction >= len(CITYSCAPES)] = 255
    return prediction.astype(np.uint8), truth, instances


@pytest.fixture
def tree(tmp_path):
    """Write five images as Cityscapes lays them out; return the root and the predictions."""
    random = np.random.default_rng(7)
    predictions = {}
    for number in range(5):
        name = f'ulm_{number:06d}_000019'
        prediction, truth, instances = scene(random)
        files = {
            f'leftImg8bit/val/ulm/{name}_leftImg8bit.png': np.zeros((64, 96, 3), np.uint8),
            f'gtFine/val/ulm/{name}_gtFine_labelIds.png': truth,
            f'gtFine/val/ulm/{name}_gtFine_instanceIds.png': instances,
            f'results/{name}.png': LABEL_IDS[prediction],
        }
        for path, picture in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(tmp_path / path), picture)
        predictions[name] = prediction
    return tmp_path, predictions


def ours(root, predictions, **options):
    """Return the confusion matrix and the instances of the tree."""
    matrix = ConfusionMatrix(len(CITYSCAPES))
    counts = InstanceCounts(CITYSCAPES, CITYSCAPES_INSTANCE_AREA)
    samples = find_labelled('cityscapes', root, 'val')
    for number, (sample, prediction) in enumerate(zip(samples, predictions, strict=True)):
        matrix.add(prediction, sample.labels)
        counts.add(prediction, samples.instances(number))
    return matrix, counts


def theirs(root, monkeypatch):
    """Return what cityscapesscripts finds in the tree; it prints what it finds, too."""
    # NumPy 2.4 has dropped this old name, by which the evaluation calls isin.
    monkeypatch.setattr(np, 'in1d', np.isin, raising=False)
    options = copy.copy(published.args)
    options.JSONOutput, options.colorized, options.bold, options.nocol = False, False, '', ''
    truth = sorted(map(str, (root / 'gtFine' / 'val').glob('*/*_labelIds.png')))
    results = sorted(map(str, (root / 'results').glob('*.png')))
    return published.evaluateImgLists(results, truth, options)


def categories(matrix):
    grouped = matrix.grouped(list(CITYSCAPES.categories.values()))
    return grouped, dict(zip(CITYSCAPES.categories, grouped.iou.tolist(), strict=True))


def mean(values):
    return sum(values) / len(values)


def test_every_figure_that_cityscapesscripts_prints_is_found_to_the_last_digit(
    tree, monkeypatch, capsys
):
    root, predictions = tree
    theirs(root, monkeypatch)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    matrix, counts = ours(root, predictions.values())
    weighted, category_weighted = counts.iou(matrix), counts.category_iou(matrix)
    grouped, category_iou = categories(matrix)

    def line(name, iou, weighted_iou):
        return f'{name:<14}: {iou:>5.3f}    {weighted_iou:>5.3f}'

    expected = [
        line(name, iou, weighted.get(name, math.nan))
        for name, iou in zip(CITYSCAPES.names, matrix.iou, strict=True)
    ]
    expected.append(f'Score Average : {matrix.mean_iou:5.3f}    {mean(weighted.values()):5.3f}')
    for name, iou in category_iou.items():
        expected.append(line(name, iou, category_weighted.get(name, math.nan)))
    weighted_mean = mean(category_weighted.values())
    expected.append(f'Score Average : {grouped.mean_iou:5.3f}    {weighted_mean:5.3f}')
    start = next(i for i, text in enumerate(printed) if text.startswith('classes '))
    found = [text for text in printed[start:] if ':' in text]
    assert found == expected
    assert len(found) == 19 + 1 + 7 + 1


def test_figures_of_cityscapesscripts_are_found_beyond_what_it_prints(tree, monkeypatch):
    root, predictions = tree
    result = theirs(root, monkeypatch)
    matrix, counts = ours(root, predictions.values())
    grouped, category_iou = categories(matrix)
    for name, iou in zip(CITYSCAPES.names, matrix.iou, strict=True):
        assert iou == result['classScores'][name]
    for name, iou in category_iou.items():
        assert iou == result['categoryScores'][name]
    approximate = {'rel': 1e-14}
    for name, iou in counts.iou(matrix).items():
        assert iou == pytest.approx(result['classInstScores'][name], **approximate)
    for name, iou in counts.category_iou(matrix).items():
        assert iou == pytest.approx(result['categoryInstScores'][name], **approximate)
    assert matrix.mean_iou == pytest.approx(result['averageScoreClasses'], **approximate)
    assert grouped.mean_iou == pytest.approx(result['averageScoreCategories'], **approximate)


def test_label_table_is_that_of_cityscapesscripts():
    evaluated = [label for label in labels if label.id >= 0]
    assert [label.trainId for label in evaluated] == list(CITYSCAPES_IDS.values())
    for label in evaluated:
        if not label.ignoreInEval:
            assert label.name in [
                CITYSCAPES.names[i] for i in CITYSCAPES.categories[label.category]
            ]
            assert CITYSCAPES.classes[label.trainId].color == label.color
            assert (label.name in CITYSCAPES_INSTANCE_AREA) == label.hasInstances
    assert list(CITYSCAPES.categories) == [name for name in category2labels if name != 'void']
    for name, area in CITYSCAPES_INSTANCE_AREA.items():
        assert area == published.args.avgClassSize[name]


def test_small_object_weighs_as_much_as_a_large_one():
    # Two cars, of 1 and of 9 pixels; the small one is missed.
    instances = np.array([[13001] + [13002] * 9], np.int32)
    prediction = np.array([[0] + [13] * 9], np.uint8)
    counts = InstanceCounts(CITYSCAPES, {'car': 5.0})
    counts.add(prediction, instances)
    matrix = ConfusionMatrix(len(CITYSCAPES))
    matrix.add(prediction, np.full((1, 10), 13, np.uint8))
    assert matrix.iou[13] == pytest.approx(0.9)
    assert counts.iou(matrix) == {'car': pytest.approx(0.5)}


def test_class_without_objects_is_nan():
    counts = InstanceCounts(CITYSCAPES, CITYSCAPES_INSTANCE_AREA)
    counts.add(np.zeros((2, 2), np.uint8), np.full((2, 2), -1, np.int32))
    assert all(math.isnan(iou) for iou in counts.iou(ConfusionMatrix(19)).values())


def test_parts_add_up_to_the_very_figures_of_the_whole(tree):
    root, predictions = tree
    matrix, whole = ours(root, predictions.values())
    samples = find_labelled('cityscapes', root, 'val')
    parts = []
    for number, prediction in enumerate(predictions.values()):
        part = InstanceCounts(CITYSCAPES, CITYSCAPES_INSTANCE_AREA)
        part.add(prediction, samples.instances(number))
        parts.append(part)
    forward = parts[0] + (parts[1] + parts[2]) + (parts[3] + parts[4])
    backward = ((parts[4] + parts[3]) + parts[2]) + (parts[1] + parts[0])
    for total in (forward, backward):
        assert total == whole
        assert total.iou(matrix) == whole.iou(matrix)
        assert total.category_iou(matrix) == whole.category_iou(matrix)


def test_counts_come_back_from_json(tree):
    root, predictions = tree
    _, counts = ours(root, predictions.values())
    stored = json.loads(json.dumps(counts.to_json()))
    assert InstanceCounts.from_json(stored, CITYSCAPES, CITYSCAPES_INSTANCE_AREA) == counts


@pytest.mark.parametrize(
    ('stored', 'message'),
    [
        ({'tallies': []}, 'label_set is missing'),
        ({'label_set': 'camvid', 'tallies': []}, 'is of camvid, not cityscapes'),
        ({'label_set': 'cityscapes', 'tallies': [[1, 2, 3]]}, 'must be five integers'),
        ({'label_set': 'cityscapes', 'tallies': [1]}, 'must be five integers'),
        ({'label_set': 'cityscapes', 'tallies': [[1, 2, 3, 4, 0.5]]}, 'must be five integers'),
    ],
)
def test_what_is_no_stored_count_is_refused(stored, message):
    with pytest.raises(InputError, match=message):
        InstanceCounts.from_json(stored, CITYSCAPES, CITYSCAPES_INSTANCE_AREA)


def test_counts_of_different_sets_do_not_add():
    with pytest.raises(InputError, match='do not add'):
        InstanceCounts(CITYSCAPES, {'car': 1.0}) + InstanceCounts(CAMVID, {'car': 1.0})


def test_sizes_that_differ_are_refused():
    with pytest.raises(InputError, match='sizes must match'):
        InstanceCounts(CITYSCAPES, {}).add(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.int32))
