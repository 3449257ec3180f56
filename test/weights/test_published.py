import hashlib
from pathlib import Path

from dense_perception.data.flow import flow_pairs
from dense_perception.data.segmentation import camvid
from dense_perception.errors import WeightsError
from dense_perception.evaluation.flow import evaluate_flow
from dense_perception.evaluation.segmentation import evaluate_segmentation
from dense_perception.labels import CAMVID, CITYSCAPES, conversion
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.published import find_weights, FOLDER, PUBLISHED
import pytest

SHARED = Path(__file__).parents[2].parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the data beside the checkout')


@pytest.mark.parametrize('name', PUBLISHED)
def test_shipped_file_is_the_one_that_its_record_describes(name):
    content = (FOLDER / PUBLISHED[name].file).read_bytes()
    assert hashlib.sha256(content).hexdigest() == PUBLISHED[name].sha256


def test_every_shipped_file_has_a_record():
    files = {path.name for path in FOLDER.glob('*.safetensors')}
    assert files == {record.file for record in PUBLISHED.values()}


@pytest.mark.parametrize('name', PUBLISHED)
def test_shipped_file_is_under_ten_megabytes(name):
    assert (FOLDER / PUBLISHED[name].file).stat().st_size < 10_000_000


def test_a_name_that_is_neither_shipped_nor_a_file_is_refused_with_the_known_names():
    with pytest.raises(WeightsError, match='no shipped weights; those are drive, flow'):
        find_weights('drvie')


@needs_data
def test_drive_weights_score_on_real_scenes_what_their_record_says():
    segmenter = Segmenter.from_file(find_weights('drive'), device='cpu', precision='float32')
    table = conversion(CITYSCAPES, CAMVID)
    samples = camvid(SHARED / 'camvid', 'val')
    pairs = ((table[segmenter.segment(item.image).labels], item.labels) for item in samples)
    report = evaluate_segmentation(pairs, CAMVID)
    assert report.images == 101
    recorded = PUBLISHED['drive'].scores['camvid val mean IoU']
    assert report.mean_iou == pytest.approx(recorded, abs=0.002)
    assert report.mean_iou >= 0.40


@needs_data
def test_flow_weights_score_on_true_flow_what_their_record_says():
    estimator = FlowEstimator.from_file(find_weights('flow'), device='cpu', precision='float32')
    pairs = flow_pairs(SHARED / 'flow')
    reports = [
        evaluate_flow([(estimator.estimate(pair.first, pair.second), pair.flow, pair.valid)])
        for pair in pairs
    ]
    error = sum(report.end_point_error_px for report in reports) / len(reports)
    nothing = sum(report.zero_flow_error_px for report in reports) / len(reports)
    recorded = PUBLISHED['flow'].scores['true flow pairs, mean end-point error px']
    assert error == pytest.approx(recorded, rel=0.01)
    assert error < nothing * 2 / 3
