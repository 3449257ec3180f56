import cv2
from dense_perception.data.road_world import RoadWorld
from dense_perception.errors import InputError, SettingError
from dense_perception.predictors.engines.accelerate import Accelerator, EngineSettings
from dense_perception.predictors.engines.choice import ENGINES
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.published import find_weights
import numpy as np
import pytest

PLAIN = {'device': 'cpu', 'precision': 'float32'}


@pytest.fixture(scope='module')
def images():
    """Return six successive frames of a rendered drive, small ones."""
    world = RoadWorld(3)
    return [cv2.resize(world.frame(40 + at).image, (160, 128)) for at in range(6)]


@pytest.fixture
def folder(images, tmp_path):
    path = tmp_path / 'frames'
    path.mkdir()
    for at, image in enumerate(images):
        larger = cv2.resize(image, (320, 256)) if at == 2 else image
        cv2.imwrite(str(path / f'{at}.png'), larger[:, :, ::-1])
    return path


def accelerator(images, engine, tmp_path, **settings):
    told = []
    options = {'engine': engine, 'engine_cache': str(tmp_path / 'cache')} | settings
    return Accelerator(EngineSettings(**options), images[:2], 'cpu', told.append), told


@pytest.fixture(scope='module')
def segmenter(images, tmp_path_factory):
    pytest.importorskip('openvino')
    maker, _ = accelerator(images, 'openvino-float32', tmp_path_factory.mktemp('engines'))
    segmenter, choice = maker.segmenter(find_weights('drive'))
    assert choice.name == 'openvino-float32'
    return segmenter


@pytest.fixture(scope='module')
def plain():
    return Segmenter.from_file(find_weights('drive'), **PLAIN)


def assert_same_labels(ours, theirs):
    assert (ours.labels == theirs.labels).mean() > 0.999
    assert np.abs(ours.confidence.astype(int) - theirs.confidence).max() <= 1


def test_shipped_weights_give_the_labels_of_torch_in_openvino(images, segmenter, plain):
    results = [one.segment(images[3], confidence=True) for one in (segmenter, plain)]
    assert_same_labels(*results)


@pytest.mark.slow
def test_shipped_weights_give_the_labels_of_torch_in_onnx_runtime(images, plain, tmp_path):
    for package in ENGINES['onnxruntime-float32'].packages:
        pytest.importorskip(package)
    maker, _ = accelerator(images, 'onnxruntime-float32', tmp_path)
    segmenter, choice = maker.segmenter(find_weights('drive'))
    assert choice.name == 'onnxruntime-float32'
    assert_same_labels(*(one.segment(images[3], confidence=True) for one in (segmenter, plain)))


def test_an_image_of_another_size_runs_in_torch(images, segmenter, plain):
    other = images[0][:80, :120]
    assert (segmenter.segment(other).labels == plain.segment(other).labels).mean() > 0.98


def test_shipped_flow_weights_give_the_flow_of_torch_in_an_engine(images, tmp_path):
    pytest.importorskip('openvino')
    maker, _ = accelerator(images, 'openvino-float32', tmp_path)
    estimator, choice = maker.flow_estimator(find_weights('flow'))
    assert choice.name == 'openvino-float32'
    plain = FlowEstimator.from_file(find_weights('flow'), **PLAIN)
    np.testing.assert_allclose(
        estimator.estimate(*images[2:4]), plain.estimate(*images[2:4]), atol=1e-3
    )


@pytest.mark.slow
def test_int8_of_the_shipped_weights_is_scaled_by_a_folder_of_frames(
    images, folder, plain, tmp_path
):
    pytest.importorskip('nncf')
    maker, told = accelerator(
        images,
        'openvino-int8',
        tmp_path,
        calibration_frames=str(folder),
        calibration_count=6,
        engine_agreement=0.9,
    )
    segmenter, choice = maker.segmenter(find_weights('drive'))
    assert (choice.name, segmenter.segment(images[5]).labels.shape) == (
        'openvino-int8',
        (128, 160),
    )
    labels = segmenter.segment(images[5]).labels
    assert (labels == plain.segment(images[5]).labels).mean() > 0.9


def test_calibration_needs_frames(images, tmp_path):
    (tmp_path / 'empty').mkdir()
    settings = {'calibration_frames': str(tmp_path / 'empty')}
    maker, _ = accelerator(images, 'torch-float32', tmp_path, **settings)
    with pytest.raises(InputError):
        maker.segmenter(find_weights('drive'))


def test_flow_needs_two_images(images, tmp_path):
    maker = Accelerator(EngineSettings(engine='torch-float32'), images[:1], 'cpu')
    with pytest.raises(InputError, match='2 images are needed'):
        maker.flow_estimator(find_weights('flow'))


def test_an_unknown_engine_is_no_setting():
    with pytest.raises(SettingError, match='engine is'):
        EngineSettings(engine='fast')
