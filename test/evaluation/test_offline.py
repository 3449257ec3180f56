from dataclasses import replace

import cv2
from dense_perception.data.datasets import find_labelled
from dense_perception.data.flow import flying_chairs
from dense_perception.data.flow_files import write_flo
from dense_perception.errors import InputError, SettingError
from dense_perception.evaluation.offline import (
    evaluate_labelled,
    evaluate_pairs,
    evaluate_stream,
    known_label_set,
    load_predictors,
)
from dense_perception.evaluation.report import merge
from dense_perception.evaluation.report_json import report_text
from dense_perception.evaluation.report_records import SourceRecord
from dense_perception.evaluation.scoring import Problems, Result, Sample, Scorer, TrueFlow
from dense_perception.labels import CAMVID, CITYSCAPES, LabelClass, LabelSet
from dense_perception.settings import PerceptionSettings
from dense_perception.weights.checkpoint import Card, own_label_set, Preprocessing, save_weights
import numpy as np
import pytest

SMALL = PerceptionSettings(device='cpu', precision='float32', segmentation_width=64, flow_width=64)
SOURCE = SourceRecord('drive', 'bag')
FIELD = LabelSet('field', (LabelClass('crop', (0, 255, 0)), LabelClass('weed', (255, 0, 0))))


@pytest.fixture(scope='module')
def predictors():
    return load_predictors(SMALL)


def picture(number, size=(48, 64)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def sample(number, **known):
    """An image of one row and four columns, a tenth of a second after the one before."""
    return Sample(str(number), picture(number, (1, 4)), 10**9 + number * 10**8, **known)


def row(*values):
    return np.array([values], np.uint8)


def flow_of(x):
    return np.dstack([np.full((1, 4), x, np.float32), np.zeros((1, 4), np.float32)])


def test_counts_are_those_of_all_images_and_each_frame_has_its_own():
    scorer = Scorer(SOURCE, CAMVID, CAMVID)
    scorer.add(sample(0, labels=row(0, 0, 1, 255)), Result(row(0, 1, 1, 1), row(9, 9, 9, 9)))
    scorer.add(sample(1, labels=row(3, 3, 3, 3)), Result(row(3, 3, 3, 3), row(255, 255, 255, 0)))
    report = scorer.report()
    first, second = report.frames
    # Frame 0: class 0 has 1 of 2, class 1 has 1 of 2; the pixel without label does not count.
    assert first.labels.mean_iou == 0.5
    assert second.labels.mean_iou == 1.0
    assert report.figures()['mean_iou'] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert report.segmentation.calibration.pixels.sum() == 7
    assert report.sources == (SourceRecord('drive', 'bag', frames=2),)


def test_predictions_are_counted_in_the_classes_of_the_truth():
    scorer = Scorer(SOURCE, CITYSCAPES, CAMVID)
    car, truck = CITYSCAPES.index('car'), CITYSCAPES.index('truck')
    truth = np.full((1, 4), CAMVID.index('car'), np.uint8)
    scorer.add(sample(0, labels=truth), Result(row(car, truck, truck, car)))
    assert scorer.report().figures()['mean_iou'] == 1.0


def test_flow_is_an_error_of_the_pair_and_stands_with_its_first_image():
    truth = TrueFlow(flow_of(1), np.array([[True, True, True, False]]))
    scorer = Scorer(SOURCE, None, None)
    scorer.add(sample(0), Result())
    scorer.add(sample(1, flow=truth), Result(flow=flow_of(3), previous='0'))
    report = scorer.report()
    assert report.figures()['epe'] == 2.0
    assert report.frames[0].flow.count == 3
    assert report.frames[1].flow is None


def test_flow_from_another_image_than_the_one_before_is_not_compared():
    truth = TrueFlow(flow_of(1), np.ones((1, 4), bool))
    scorer = Scorer(SOURCE, None, None)
    scorer.add(sample(0), Result())
    scorer.add(sample(1), None)
    scorer.add(sample(2, flow=truth), Result(flow=flow_of(3), previous='0'))
    assert scorer.report().flow is None


@pytest.mark.parametrize(
    ('truth', 'share'),
    [
        # Labels move one pixel to the right, as the true flow says; three pixels stay inside.
        (TrueFlow(flow_of(1), np.ones((1, 4), bool)), 1.0),
        (None, 0.5),  # the estimated flow says that nothing moves
    ],
)
def test_labels_are_followed_along_the_true_flow_where_it_is_known(truth, share):
    scorer = Scorer(SOURCE, CAMVID, CAMVID)
    scorer.add(sample(0), Result(row(1, 1, 2, 2)))
    scorer.add(sample(1, flow=truth), Result(row(2, 1, 1, 2), flow=flow_of(0), previous='0'))
    assert scorer.report().figures()['temporal_consistency'] == share


def test_a_problem_met_again_is_told_once_with_its_count():
    problems = Problems()
    for number in range(3):
        problems.add('bag', '/truth', 'size', f'label image {number} is too small')
    (problem,) = problems.found()
    assert problem.message == 'label image 0 is too small (3 times)'


def test_parts_of_a_stream_merge_to_the_whole(predictors):
    def part(name, numbers):
        samples = [
            Sample(f'{n}', picture(n), n * 10**8 + 1, np.full((48, 64), n, np.uint8))
            for n in numbers
        ]
        scorer = Scorer(SourceRecord(name, 'bag'), CITYSCAPES, CITYSCAPES)
        return evaluate_stream(samples, predictors, scorer)

    parts = [part('a', range(2)), part('b', range(5, 8))]
    assert merge(parts).figures()['mean_iou'] == merge(parts[::-1]).figures()['mean_iou']
    assert len(merge(parts).frames) == 5
    assert [frame.labels is not None for frame in merge(parts).frames] == [True] * 5


def test_flow_begins_anew_after_a_gap(predictors):
    stamps = [10**9, 10**9 + 10**8, 10**9 + 10**8 + 6 * 10**8]  # the last after 0.6 s
    samples = [Sample(str(stamp), picture(1), stamp) for stamp in stamps]
    results = []
    scorer = Scorer(SOURCE, CITYSCAPES, CITYSCAPES)
    evaluate_stream(samples, predictors, scorer, lambda _, result: results.append(result))
    assert [result.flow is not None for result in results] == [False, True, False]


def write_data_set(folder, values, mapping='label_set: cityscapes\nlabels: {7: road, 8: sky}\n'):
    for kind in ('images', 'labels'):
        (folder / kind / 'val').mkdir(parents=True)
    (folder / 'labels.yaml').write_text(mapping)
    for number, value in enumerate(values):
        cv2.imwrite(str(folder / 'images' / 'val' / f'{number}.png'), picture(number))
        truth = np.full((48, 64), value, np.uint8)
        cv2.imwrite(str(folder / 'labels' / 'val' / f'{number}.png'), truth)


def test_a_picture_with_unknown_ids_is_told_and_the_rest_evaluated(tmp_path, predictors):
    write_data_set(tmp_path, [7, 99, 8])
    folder = find_labelled('folder', tmp_path, 'val')
    report = evaluate_labelled(folder, 'mine', predictors)
    assert [frame.name for frame in report.frames] == ['val/0', 'val/2']
    (problem,) = report.problems
    assert '1.png: label ids 99 are unknown' in problem.message
    assert [model.name for model in report.models] == ['drive']


def test_a_data_set_evaluated_twice_gives_the_same_bytes(tmp_path, predictors):
    write_data_set(tmp_path, [7, 8])
    folder = find_labelled('folder', tmp_path, 'val')
    texts = [report_text(evaluate_labelled(folder, 'mine', predictors)) for _ in range(2)]
    first, second = ([line for line in text.split('\n') if '"run"' not in line] for text in texts)
    assert first == second
    assert len(first) > 10


def test_weights_of_a_label_set_of_ones_own_are_compared_in_it(tmp_path):
    card = Card(
        'front_end',
        {'classes': 2, 'width': 'compact'},
        Preprocessing(),
        **own_label_set(FIELD),
    )
    save_weights(tmp_path / 'field.safetensors', card.build(), card)
    mapping = (
        'label_set: field\nlabels: {0: crop, 1: weed}\n'
        "classes: {crop: '#00ff00', weed: '#ff0000'}\n"
    )
    write_data_set(tmp_path / 'set', [0, 1], mapping)
    own = load_predictors(
        replace(SMALL, segmentation_weights=str(tmp_path / 'field.safetensors'), flow_weights='')
    )
    folder = find_labelled('folder', tmp_path / 'set', 'val')
    report = evaluate_labelled(folder, 'set', own)
    assert report.label_set.names == ('crop', 'weed')
    assert report.segmentation.confusion.counts.sum() == 2 * 48 * 64
    assert known_label_set('', own.segmenter.label_set).name == 'field'


def test_pairs_of_which_one_is_damaged_are_evaluated_without_it(tmp_path, predictors):
    data = tmp_path / 'data'
    data.mkdir()
    for number in (1, 2):
        for which in (1, 2):
            cv2.imwrite(str(data / f'{number:05}_img{which}.ppm'), picture(number))
        write_flo(data / f'{number:05}_flow.flo', np.zeros((48, 64, 2), np.float32))
    (data / '00002_flow.flo').write_bytes(b'PIEH')
    (tmp_path / 'FlyingChairs_train_val.txt').write_text('2\n2\n')
    report = evaluate_pairs(flying_chairs(tmp_path, 'val'), 'chairs', predictors)
    assert len(report.frames) == 1
    assert report.flow['all'].count == 48 * 64
    assert '00002_flow.flo' in report.problems[0].message


def test_data_without_weights_for_it_is_refused(tmp_path, predictors):
    write_data_set(tmp_path, [7])
    without = replace(predictors, segmenter=None)
    with pytest.raises(SettingError, match='segmentation_weights are empty'):
        evaluate_labelled(find_labelled('folder', tmp_path, 'val'), 'mine', without)


def test_an_unknown_label_set_is_named_with_those_known():
    with pytest.raises(InputError, match="'town'; known are camvid, cityscapes, field"):
        known_label_set('town', FIELD)
