from dataclasses import asdict
import hashlib
from pathlib import Path

from dense_perception.data.flow import flow_pairs
from dense_perception.data.segmentation import camvid
from dense_perception.data.sources import RenderedImages, RenderedPairs
from dense_perception.errors import WeightsError
from dense_perception.evaluation.flow import evaluate_flow
from dense_perception.evaluation.segmentation import evaluate_segmentation
from dense_perception.labels import CAMVID, CITYSCAPES, conversion
from dense_perception.networks import FLOW_NETWORKS
from dense_perception.predictors.engines.settings import EngineSettings
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.training.flow import chairs_style, FlowRecipe
from dense_perception.training.segmentation import SegmentationRecipe, VALIDATION_SEED
from dense_perception.weights.checkpoint import load_weights
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
    with pytest.raises(WeightsError, match='no shipped weights; those are drive, flow, flow_corr'):
        find_weights('drvie')


def round_to_half(network):
    """
    Have numbers between layers rounded to float16, and sums made in float32.

    That is what a GPU's matrix units do; a CPU takes minutes for an image in true float16.
    """
    network.half().float()
    for module in network.modules():
        if not any(module.children()):
            module.register_forward_hook(lambda _module, _inputs, value: value.half().float())


def camvid_iou(name, precision='float32', engine='torch'):
    """Return the mean IoU over the 11 classes of CamVid val, all 101 frames."""
    path = find_weights(name)
    half = precision == 'float16'
    segmenter = Segmenter.from_file(
        path, device='cpu', precision='float32' if half else precision, engine=engine
    )
    if half:
        round_to_half(segmenter.network)
    if engine != 'torch':
        segmenter.prepare([item.image for item in camvid(SHARED / 'camvid', 'val')][:1])
    table = conversion(CITYSCAPES, CAMVID)
    samples = camvid(SHARED / 'camvid', 'val')
    pairs = ((table[segmenter.segment(item.image).labels], item.labels) for item in samples)
    report = evaluate_segmentation(pairs, CAMVID)
    assert report.images == 101
    return report.mean_iou


def camvid_iou_bfloat16(name):
    """Return the same where all is computed in bfloat16."""
    return camvid_iou(name, 'bfloat16')


def camvid_iou_float16(name):
    """Return the same where numbers are rounded to float16."""
    return camvid_iou(name, 'float16')


def int8_engine():
    """Return OpenVINO in 8 bits, scaled by images of CamVid train."""
    pytest.importorskip('nncf')
    return EngineSettings(
        engine='openvino-int8',
        engine_agreement=0.0,
        engine_cache='',
        calibration_frames=str(SHARED / 'camvid' / 'train'),
    )


def camvid_iou_int8(name):
    """Return the same in OpenVINO's 8 bits."""
    return camvid_iou(name, engine=int8_engine())


def rendered_iou(name):
    """Return the mean IoU over the 19 classes of rendered drives that nothing trained on."""
    segmenter = Segmenter.from_file(find_weights(name), device='cpu', precision='float32')
    samples = RenderedImages(VALIDATION_SEED, 40, frames=3, spacing=80)
    pairs = ((segmenter.segment(item.image).labels, item.labels) for item in samples)
    return evaluate_segmentation(pairs, CITYSCAPES).mean_iou


def flow_error(name, pairs, precision='float32'):
    """Return the mean over pairs of their end-point error in pixels."""
    half = precision == 'float16'
    estimator = FlowEstimator.from_file(
        find_weights(name), device='cpu', precision='float32' if half else precision
    )
    if half:
        round_to_half(estimator.network)
    reports = [
        evaluate_flow([(estimator.estimate(pair.first, pair.second), pair.flow, pair.valid)])
        for pair in pairs
    ]
    return sum(report.end_point_error_px for report in reports) / len(reports)


def true_flow_error(name):
    """Return the error on the pairs of four public sets."""
    return flow_error(name, flow_pairs(SHARED / 'flow'))


def true_flow_error_bfloat16(name):
    """Return the same in bfloat16."""
    return flow_error(name, flow_pairs(SHARED / 'flow'), 'bfloat16')


def true_flow_error_float16(name):
    """Return the same where numbers are rounded to float16."""
    return flow_error(name, flow_pairs(SHARED / 'flow'), 'float16')


def chairs_error(name):
    """Return the error on chairs-style pairs of backgrounds that nothing trained on."""
    pictures = [sample.image for sample in camvid(SHARED / 'camvid', 'train')]
    return flow_error(name, chairs_style(FlowRecipe(), pictures).held_out)


def rendered_flow_error(name):
    """Return the error on rendered drives that nothing trained on."""
    return flow_error(name, RenderedPairs(VALIDATION_SEED, 10, pairs=3))


SCORES = {
    'camvid val mean IoU': camvid_iou,
    'camvid val mean IoU in bfloat16': camvid_iou_bfloat16,
    'camvid val mean IoU in float16': camvid_iou_float16,
    'camvid val mean IoU in OpenVINO int8': camvid_iou_int8,
    'rendered drives mean IoU': rendered_iou,
    'true flow pairs end-point error px': true_flow_error,
    'true flow pairs end-point error px in bfloat16': true_flow_error_bfloat16,
    'true flow pairs end-point error px in float16': true_flow_error_float16,
    'chairs-style pairs end-point error px': chairs_error,
    'rendered drives end-point error px': rendered_flow_error,
}
MOST_LOST = 0.003  # of a mean IoU, by computing with fewer bits
QUICK = {('drive', 'camvid val mean IoU'), ('flow', 'true flow pairs end-point error px')}


@needs_data
@pytest.mark.parametrize(
    ('name', 'score'),
    [
        pytest.param(name, score, marks=() if (name, score) in QUICK else pytest.mark.slow)
        for name, record in PUBLISHED.items()
        for score in record.scores
    ],
)
def test_shipped_weights_score_what_their_record_says(name, score):
    recorded = PUBLISHED[name].scores[score]
    # As far apart as 8 bits may cost, so that a record cannot hide more.
    allowed = MOST_LOST if score.startswith('camvid') else 0.01 * recorded
    assert SCORES[score](name) == pytest.approx(recorded, abs=allowed)


@pytest.mark.parametrize('precision', ['bfloat16', 'float16', 'OpenVINO int8'])
def test_fewer_bits_cost_the_labels_at_most_a_third_of_a_point(precision):
    scores = PUBLISHED['drive'].scores
    lost = scores['camvid val mean IoU'] - scores[f'camvid val mean IoU in {precision}']
    assert lost <= MOST_LOST


@pytest.mark.parametrize('name', PUBLISHED)
def test_record_names_the_recipe_that_the_weights_were_trained_by(name):
    _, card = load_weights(find_weights(name))
    path = Path(__file__).parents[2] / 'config' / PUBLISHED[name].recipe
    kind = FlowRecipe if card.network in FLOW_NETWORKS else SegmentationRecipe
    recipe = asdict(kind.from_yaml(path))
    trained = card.notes['recipe']
    machine = {'device', 'memory_mb'}
    assert {key: recipe[key] for key in trained if key not in machine} == {
        key: value for key, value in trained.items() if key not in machine
    }


@pytest.mark.parametrize('name', PUBLISHED)
def test_record_names_the_curve_of_the_training(name):
    path = Path(__file__).parents[2] / PUBLISHED[name].curve
    steps = [int(line.split(',')[0]) for line in path.read_text().splitlines()[1:]]
    assert steps == sorted(steps)
    assert steps
