from dataclasses import replace

import cv2
from dense_perception.data.flow import flying_chairs
from dense_perception.data.flow_files import write_flo
from dense_perception.data.segmentation import camvid
from dense_perception.errors import InputError, SettingError
from dense_perception.evaluation.examples import (
    labelled_reader,
    pairs_reader,
    Results,
    StreamExamples,
)
from dense_perception.evaluation.offline import evaluate_labelled, evaluate_pairs, load_predictors
from dense_perception.evaluation.report_pictures import flow_pictures, label_pictures
from dense_perception.evaluation.report_records import SourceRecord
from dense_perception.evaluation.scoring import Result, Sample, Scorer, TrueFlow
from dense_perception.labels import CAMVID, CITYSCAPES, conversion
from dense_perception.settings import PerceptionSettings
import numpy as np
import pytest

SMALL = PerceptionSettings(device='cpu', precision='float32', segmentation_width=64, flow_width=64)
SIZE = (48, 64)


@pytest.fixture(scope='module')
def predictors():
    return load_predictors(SMALL)


def picture(number, size=SIZE):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def same(first, second):
    assert [title for title, _ in first] == [title for title, _ in second]
    for (title, one), (_, other) in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other, title)


def test_an_image_of_a_data_set_is_shown_with_the_labels_that_were_scored(tmp_path, predictors):
    for name in ('val', 'valannot'):
        (tmp_path / name).mkdir()
    truth = np.full(SIZE, 3, np.uint8)
    cv2.imwrite(str(tmp_path / 'val' / 'a.png'), picture(0)[..., ::-1])
    cv2.imwrite(str(tmp_path / 'valannot' / 'a.png'), truth)
    folder = camvid(tmp_path, 'val')
    (frame,) = evaluate_labelled(folder, 'camvid', predictors).frames
    found = predictors.segmenter.segment(picture(0)).labels
    labels = conversion(CITYSCAPES, CAMVID)[found]
    shown = labelled_reader(folder, predictors).labels(frame)
    same(shown, label_pictures(picture(0), truth, labels, CAMVID))


def test_a_pair_of_a_data_set_is_shown_with_the_flow_that_was_scored(tmp_path, predictors):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'FlyingChairs_train_val.txt').write_text('2\n')
    for index in (1, 2):
        path = tmp_path / 'data' / f'00001_img{index}.ppm'
        cv2.imwrite(str(path), picture(index)[..., ::-1])
    truth = np.ones((*SIZE, 2), np.float32)
    write_flo(tmp_path / 'data' / '00001_flow.flo', truth)
    folder = flying_chairs(tmp_path, 'val')
    (frame,) = evaluate_pairs(folder, 'chairs', predictors).frames
    flow = predictors.flow_estimator.estimate(picture(1), picture(2))
    shown = pairs_reader(folder, predictors).flow(frame)
    same(shown, flow_pictures(picture(1), truth, np.ones(SIZE, bool), flow))


def test_a_task_without_weights_has_no_pictures(tmp_path, predictors):
    with pytest.raises(SettingError, match='segmentation_weights are empty'):
        labelled_reader([], replace(predictors, segmenter=None))
    with pytest.raises(SettingError, match='flow_weights are empty'):
        pairs_reader([], replace(predictors, flow_estimator=None))


STILL = np.zeros((*SIZE, 2), np.float32)
RESULTS = Results(lambda sample: labels_of(sample), lambda previous, sample: STILL + 1)


def labels_of(sample):
    """Return labels of which so many columns are right as the name says."""
    labels = np.zeros(SIZE, np.uint8)
    labels[:, : int(sample.name)] = 1
    return labels


def samples(numbers):
    for number in numbers:
        truth = TrueFlow(STILL + number, np.ones(SIZE, bool))
        yield Sample(f'{number}', picture(number), number, np.ones(SIZE, np.uint8), flow=truth)


def evaluated(numbers):
    scorer = Scorer(SourceRecord('drive', 'bag'), CAMVID, CAMVID)
    for sample in samples(numbers):
        previous = f'{int(sample.name) - 1}'
        scorer.add(sample, Result(labels_of(sample), None, STILL + 1, previous))
    return scorer.report()


def test_a_stream_is_read_again_for_the_frames_that_are_shown_and_no_further():
    report = evaluated(range(1, 10))
    report = replace(report, frames=report.frames[:3])  # best 3, median 2, worst 1
    examples = StreamExamples(report)
    assert examples.sources == ['drive']
    stream = samples(range(1, 10))
    examples.gather('drive', stream, RESULTS)
    assert next(stream).name == '5'  # 4 was read for the flow from 3
    reader = examples.reader()
    first, _, third = report.frames
    truth = np.ones(SIZE, np.uint8)
    labels = labels_of(Sample('3', picture(3)))
    same(reader.labels(third), label_pictures(picture(3), truth, labels, CAMVID))
    valid = np.ones(SIZE, bool)
    same(reader.flow(first), flow_pictures(picture(1), STILL + 2, valid, STILL + 1))


def test_pictures_of_a_stream_are_kept_no_wider_than_the_page_shows_them():
    image = picture(0, (60, 1920))
    truth = np.zeros(image.shape[:2], np.uint8)
    sample = Sample('0', image, 1, truth)
    scorer = Scorer(SourceRecord('drive', 'bag'), CAMVID, CAMVID)
    scorer.add(sample, Result(truth))
    examples = StreamExamples(scorer.report())
    examples.gather('drive', [sample], Results(lambda _: truth, RESULTS.flow))
    shown = examples.reader().labels(scorer.report().frames[0])
    assert {kept.shape for _, kept in shown} == {(15, 480, 3)}


def test_a_frame_that_is_no_longer_in_its_stream_is_told():
    report = evaluated([1])
    examples = StreamExamples(report)
    examples.gather('drive', [], RESULTS)
    with pytest.raises(InputError, match='drive: 1 is no longer there'):
        examples.reader().labels(report.frames[0])


def test_a_stream_that_cannot_be_read_again_is_told_for_each_of_its_frames():
    report = evaluated([1])
    examples = StreamExamples(report)
    examples.fail('drive', InputError('drive: gone'))
    with pytest.raises(InputError, match='drive: gone'):
        examples.reader().labels(report.frames[0])
