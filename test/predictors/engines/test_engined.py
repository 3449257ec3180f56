import json
import sys
import threading

import cv2
from dense_perception.data.road_world import RoadWorld
from dense_perception.errors import InputError, SettingError
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.engines.cache import Cache
from dense_perception.predictors.engines.choice import ENGINES
from dense_perception.predictors.engines.engine import equal_labels, Maker
from dense_perception.predictors.engines.engined import Engined, Use
from dense_perception.predictors.engines.in_torch import TorchEngine
from dense_perception.predictors.engines.settings import EngineSettings
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.published import find_weights
import numpy as np
import pytest
import torch
from torch import nn

PLAIN = {'device': 'cpu', 'precision': 'float32'}
WANTED = 'openvino-float32'  # a name that settings take; tests put engines of their own there
FLOAT32 = Placement(torch.device('cpu'), torch.float32)


class Scores(nn.Module):
    """Four class scores of each pixel, from its colour."""

    margin, stride = 2, 1

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, image):
        return self.layer(image)


class Counted(TorchEngine):
    """An engine that says how often it ran, and fails when it is told to."""

    def __init__(self, task):
        super().__init__(task.network, FLOAT32)
        self.batches, self.error = [], None

    def __call__(self, *inputs):
        if self.error:
            raise self.error
        self.batches.append(len(inputs[0]))
        return super().__call__(*inputs)


@pytest.fixture
def made(monkeypatch):
    """Return the engines that were made, all of a kind that is made at once."""
    engines = []

    def load(task, folder):
        engines.append(Counted(task))
        return engines[-1]

    monkeypatch.setitem(ENGINES, WANTED, Maker('any', load))
    return engines


def engined(engine=WANTED, **settings):
    """Return a network in an engine, and the list that receives what it tells."""
    told = []
    use = Use(1, lambda image: (torch.from_numpy(image).permute(2, 0, 1)[None].float(),),
              equal_labels)  # fmt: skip
    options = {'engine': engine, 'engine_cache': '', 'engine_timing_s': 0.05} | settings
    return Engined(Scores(), FLOAT32, EngineSettings(**options), use, told.append), told


def values(seed=0, count=1, size=(10, 12)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def show(network, count=4, **size):
    for seed in range(count):
        network(values(seed, **size))
    network.wait()


def assert_runs_in_torch(network, **size):
    torch.testing.assert_close(network(values(9, **size)), Scores()(values(9, **size)))
    assert network.running == 'torch, cpu float32'


@pytest.mark.usefixtures('made')
def test_torch_runs_until_the_engine_is_built():
    network, told = engined()
    for seed in range(4):
        torch.testing.assert_close(network(values(seed)), Scores()(values(seed)))
        assert network.running == 'torch, cpu float32'
    network.wait()
    torch.testing.assert_close(network(values(5)), Scores()(values(5)))
    assert network.running == WANTED
    assert network.note == told[-1] == f'{WANTED} for inputs of 12 x 10, 100.00% as torch float32'
    assert told[0] == 'torch for inputs of 12 x 10 until an engine is built for that size'


def test_frames_are_served_while_an_engine_is_built(monkeypatch):
    go_on, begun = threading.Event(), threading.Event()

    def load(task, folder):
        begun.set()
        assert go_on.wait(30)
        return Counted(task)

    monkeypatch.setitem(ENGINES, WANTED, Maker('any', load))
    network, _ = engined()
    for seed in range(4):
        network(values(seed))
    assert begun.wait(30)
    assert_runs_in_torch(network)
    go_on.set()
    network.wait()
    network(values())
    assert network.running == WANTED


def test_another_size_runs_in_torch_at_once_and_gets_an_engine_of_its_own(made):
    network, told = engined()
    show(network)
    assert_runs_in_torch(network, size=(14, 8))
    assert told[-1] == 'torch for inputs of 8 x 14 until an engine is built for that size'
    show(network, size=(14, 8))
    for size, engine in zip([(14, 8), (10, 12)], reversed(made), strict=True):
        before = len(engine.batches)
        network(values(size=size))
        assert (network.running, len(engine.batches)) == (WANTED, before + 1)


def test_no_more_engines_are_built_than_memory_is_meant_for(made):
    network, told = engined()
    for rows in range(6, 12):
        show(network, size=(rows, 8))
    assert len(made) == 4
    assert_runs_in_torch(network, size=(11, 8))
    assert told[-1] == 'torch for inputs of 8 x 11: 4 other sizes that come have engines'


def test_a_size_that_has_not_come_for_long_gives_way_to_another(made):
    network, _ = engined()
    for rows in range(6, 10):
        show(network, size=(rows, 8))
    for seed in range(100):
        network(values(seed, size=(9, 8)))
    show(network, size=(10, 8))
    assert len(made) == 5
    for size, running in [((10, 8), WANTED), ((9, 8), WANTED), ((6, 8), 'torch, cpu float32')]:
        network(values(size=size))
        assert network.running == running


def test_sizes_that_come_in_turn_keep_their_engines(made):
    network, _ = engined()
    for seed in range(110):
        for rows in range(6, 11):
            network(values(seed, size=(rows, 8)))
        network.wait()
    assert len(made) == 4
    network(values(size=(6, 8)))
    assert network.running == WANTED


@pytest.mark.usefixtures('made')
def test_the_note_is_of_the_size_that_came_last():
    network, _ = engined()
    show(network)
    assert_runs_in_torch(network, size=(14, 8))
    assert network.note == 'torch for inputs of 8 x 14 until an engine is built for that size'
    network(values())
    assert network.note == f'{WANTED} for inputs of 12 x 10, 100.00% as torch float32'


def test_who_prepares_an_engine_waits_for_it_and_is_told_how_far_it_is(monkeypatch):
    network, _ = engined()
    seen = []

    def load(task, folder):
        seen.append((network.waiting, network.note))
        return Counted(task)

    monkeypatch.setitem(ENGINES, WANTED, Maker('any', load, preparing='compiling'))
    network.prepare([(values(),)])
    told = f'{WANTED}: compiling for ((1, 3, 10, 12),), which may take minutes'
    assert seen == [(True, told)]
    assert not network.waiting


def test_who_is_served_in_torch_while_an_engine_is_built_does_not_wait(monkeypatch):
    network, _ = engined()
    seen = []

    def load(task, folder):
        seen.append(network.waiting)
        return Counted(task)

    monkeypatch.setitem(ENGINES, WANTED, Maker('any', load))
    show(network)
    assert seen == [False]


def test_several_images_go_through_the_engine_one_by_one(made):
    network, _ = engined()
    show(network)
    made[0].batches.clear()
    torch.testing.assert_close(network(values(count=3)), Scores()(values(count=3)))
    assert (network.running, made[0].batches) == (WANTED, [1, 1, 1])


@pytest.mark.parametrize(
    'error',
    [RuntimeError('lost the device\nand so on'), MemoryError('out of memory')],
    ids=['device', 'memory'],
)
def test_an_engine_that_fails_gives_way_to_torch_for_good(made, error):
    network, told = engined()
    show(network)
    made[0].error = error
    assert_runs_in_torch(network)
    text = f'{type(error).__name__}: {str(error).splitlines()[0]}'
    assert network.note == told[-1] == f'{WANTED} failed: {text}; torch takes its place'
    show(network, 6)
    assert len(made) == 1
    assert_runs_in_torch(network)


@pytest.mark.parametrize(
    ('maker', 'reason'),
    [
        (Maker('any', lambda *_: Counted, packages=('no_such',)), 'needs no_such: pip install'),
        (Maker('cuda', lambda *_: Counted), 'runs on a cuda device, not on cpu'),
        (Maker('any', lambda *_: Counted, calibrated=True), 'folder of frames for calibration'),
        (Maker('any', lambda *_: None, lambda *_: 1 / 0), 'cannot be built: ZeroDivisionError'),
        (Maker('any', lambda *_: 1 / 0), 'does not run: ZeroDivisionError'),
        (Maker('any', lambda task, _: lambda *x: -task.network(*x)), 'fewer than 97.00%'),
    ],
    ids=['package', 'device', 'calibration', 'build', 'load', 'disagrees'],
)
def test_torch_takes_the_place_of_an_engine_that_cannot_be_had(monkeypatch, maker, reason):
    monkeypatch.setitem(ENGINES, WANTED, maker)
    network, told = engined()
    show(network)
    assert_runs_in_torch(network)
    assert reason in network.note
    assert network.note == told[-1]
    assert network.note.endswith('torch takes its place')


def test_a_full_disk_costs_only_the_engine(monkeypatch, made):
    def full(*_, **__):
        raise OSError('no space left on device')

    monkeypatch.setattr(Cache, 'find', full)
    network, _ = engined('auto', engine_cache='somewhere')
    network.prepare([(values(),)])
    assert_runs_in_torch(network)
    assert network.note == 'no engine: OSError: no space left on device; torch takes its place'


def test_auto_passes_over_what_is_not_installed_without_a_word(monkeypatch):
    for package in ('openvino', 'onnxruntime'):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    for name in [name for name in ENGINES if name.startswith('compiled')]:
        monkeypatch.delitem(ENGINES, name)  # that one takes a minute
    network, told = engined('auto')
    network.prepare([(values(),)])
    network(values())
    assert network.running in ('torch-float32', 'torch-bfloat16')
    assert not [line for line in told if 'openvino' in line or 'onnx' in line]


def test_blank_images_judge_no_engine(made):
    network, _ = engined()
    for _ in range(6):
        network(torch.zeros(1, 3, 10, 12))
    network.wait()
    assert made == []
    show(network)
    assert len(made) == 1


def test_an_engine_that_was_given_up_can_be_prepared_again(made):
    network, _ = engined()
    show(network)
    made[0].error = RuntimeError('lost')
    assert_runs_in_torch(network)
    network.prepare([(values(),)])
    network(values())
    assert network.running == WANTED


@pytest.mark.usefixtures('made')
def test_the_network_that_is_given_stays_as_it_is():
    original = Scores()
    use = Use(1, lambda *_: (), equal_labels)
    network = Engined(
        original, choose_placement('cpu', 'bfloat16'), EngineSettings(engine=WANTED), use
    )
    network(values())
    assert original.layer.weight.dtype == torch.float32
    assert original.layer.weight.requires_grad
    assert (network.margin, network.stride) == (2, 1)


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


@pytest.fixture(scope='module')
def plain():
    return Segmenter.from_file(find_weights('drive'), **PLAIN)


def assert_same_labels(ours, theirs):
    assert (ours.labels == theirs.labels).mean() > 0.999
    assert np.abs(ours.confidence.astype(int) - theirs.confidence).max() <= 1


@pytest.mark.parametrize(
    'engine',
    ['openvino-float32', pytest.param('onnxruntime-float32', marks=pytest.mark.slow)],
)
def test_shipped_weights_give_the_labels_of_torch_in_an_engine(images, plain, engine):
    for package in ENGINES[engine].packages:
        pytest.importorskip(package)
    settings = EngineSettings(engine=engine, engine_cache='')
    segmenter = Segmenter.from_file(find_weights('drive'), **PLAIN, engine=settings)
    segmenter.prepare(images[:2])
    expected = [plain.segment(image, confidence=True) for image in images[3:5]]
    for alone, other in zip(images[3:5], expected, strict=True):
        assert_same_labels(segmenter.segment(alone, confidence=True), other)
    assert segmenter.running == engine
    together = segmenter.segment_all(images[3:5], confidence=True)
    for ours, theirs in zip(together, expected, strict=True):
        assert_same_labels(ours, theirs)


def test_shipped_flow_weights_give_the_flow_of_torch_in_an_engine(images):
    pytest.importorskip('openvino')
    settings = EngineSettings(engine='openvino-float32', engine_cache='')
    estimator = FlowEstimator.from_file(find_weights('flow'), **PLAIN, engine=settings)
    estimator.prepare(images[:3])
    plain = FlowEstimator.from_file(find_weights('flow'), **PLAIN)
    np.testing.assert_allclose(
        estimator.estimate(*images[2:4]), plain.estimate(*images[2:4]), atol=1e-3
    )
    assert (estimator.running, plain.running) == ('openvino-float32', 'torch')


@pytest.mark.parametrize('name', ['flow', 'flow_corr'])
def test_an_engine_that_forgoes_features_that_torch_would_keep_is_told(name):
    told = []
    settings = EngineSettings(engine='torch-float32', engine_cache='')
    FlowEstimator.from_file(find_weights(name), **PLAIN, engine=settings, tell=told.append)
    assert told == (
        ['an engine sees both images of each pair; engine: torch looks at each image once']
        if name == 'flow_corr'
        else []
    )


@pytest.mark.slow
@pytest.mark.parametrize('width', [0, 96])
def test_auto_labels_as_torch_does_whatever_it_takes(images, plain, folder, tmp_path, width):
    settings = EngineSettings(
        engine='auto',
        engine_cache=str(tmp_path / 'cache'),
        engine_timing_s=0.1,
        calibration_frames=str(folder),
        calibration_count=6,
    )
    told = []
    segmenter = Segmenter.from_file(
        find_weights('drive'), **PLAIN, width=width, engine=settings, tell=told.append
    )
    segmenter.prepare(images[:4])
    labels = segmenter.segment(images[5]).labels
    expected = Segmenter.from_file(find_weights('drive'), **PLAIN, width=width)
    assert (labels == expected.segment(images[5]).labels).mean() > 0.95
    assert segmenter.running in ENGINES
    assert any(line.startswith(f'{segmenter.running} is the fastest of') for line in told)


@pytest.mark.slow
def test_int8_of_the_shipped_weights_is_scaled_by_a_folder_of_frames(images, folder, plain):
    pytest.importorskip('nncf')
    settings = EngineSettings(
        engine='openvino-int8',
        engine_cache='',
        calibration_frames=str(folder),
        calibration_count=6,
        engine_agreement=0.9,
    )
    segmenter = Segmenter.from_file(find_weights('drive'), **PLAIN, engine=settings)
    segmenter.prepare(images[:2])
    labels = segmenter.segment(images[5]).labels
    assert segmenter.running == 'openvino-int8'
    assert (labels == plain.segment(images[5]).labels).mean() > 0.9


@pytest.fixture
def tasks(monkeypatch):
    """Return what a calibrated engine is asked for."""
    asked = []

    def load(task, folder):
        asked.append(task)
        return Counted(task)

    monkeypatch.setitem(ENGINES, WANTED, Maker('any', load, calibrated=True))
    return asked


def test_calibration_frames_take_the_size_of_the_images(made, tasks, folder, images):
    settings = EngineSettings(engine=WANTED, engine_cache='', calibration_frames=str(folder))
    segmenter = Segmenter.from_file(find_weights('drive'), **PLAIN, width=96, engine=settings)
    segmenter.prepare(images[:1])
    assert [tuple(inputs[0].shape) for inputs in tasks[0].calibration] == [(1, 3, 77, 96)] * 5
    assert len(tasks[0].inputs) == 2  # the camera's image and one that is held back


@pytest.mark.parametrize('pictures', [None, 0, 1])
def test_calibration_needs_frames(images, tmp_path, pictures):
    if pictures is not None:
        (tmp_path / 'frames').mkdir()
    if pictures:
        cv2.imwrite(str(tmp_path / 'frames' / '0.png'), images[0])
    settings = EngineSettings(engine='auto', calibration_frames=str(tmp_path / 'frames'))
    with pytest.raises(InputError, match='frames'):
        Segmenter.from_file(find_weights('drive'), **PLAIN, engine=settings)


@pytest.mark.usefixtures('made')
def test_labels_of_the_first_image_come_from_an_engine_that_was_prepared_for_its_size(images):
    settings = EngineSettings(engine=WANTED, engine_cache='')
    segmenter = Segmenter.from_file(find_weights('drive'), **PLAIN, engine=settings)
    segmenter.prepare_for((160, 128))
    segmenter.segment(images[0])
    assert segmenter.running == WANTED


@pytest.mark.usefixtures('made')
def test_flow_of_the_first_images_comes_from_an_engine_that_was_prepared_for_their_size(images):
    settings = EngineSettings(engine=WANTED, engine_cache='')
    estimator = FlowEstimator.from_file(find_weights('flow'), **PLAIN, engine=settings)
    estimator.prepare_for((160, 128))
    estimator.estimate(*images[:2])
    assert estimator.running == WANTED


@pytest.mark.parametrize('predictor', [Segmenter, FlowEstimator])
def test_an_engine_is_prepared_with_frames_that_do_not_scale_it(
    made, tasks, folder, images, predictor
):
    settings = EngineSettings(engine=WANTED, engine_cache='', calibration_frames=str(folder))
    name = 'drive' if predictor is Segmenter else 'flow'
    ours = predictor.from_file(find_weights(name), **PLAIN, engine=settings)
    ours.prepare_for((160, 128))
    shown = images[:1] if predictor is Segmenter else images[:2]
    for given, expected in zip(tasks[0].inputs[0], ours.inputs(*shown), strict=True):
        torch.testing.assert_close(given, expected)
    scaling = [inputs[0] for inputs in tasks[0].calibration]
    assert not any(torch.equal(tasks[0].inputs[0][0], one) for one in scaling)


def test_an_engine_for_flow_needs_two_images_to_prepare_it(images):
    estimator = FlowEstimator.from_file(find_weights('flow'), **PLAIN, engine='torch-float32')
    with pytest.raises(InputError, match='2 images are needed'):
        estimator.prepare(images[:1])


@pytest.mark.parametrize('predictor', [Segmenter, FlowEstimator])
def test_an_unknown_engine_is_no_setting(predictor):
    name = 'drive' if predictor is Segmenter else 'flow'
    with pytest.raises(SettingError, match='engine is'):
        predictor.from_file(find_weights(name), **PLAIN, engine='fast')


def test_a_damaged_choice_in_the_cache_is_measured_anew(made, monkeypatch, tmp_path):
    for name in [name for name in ENGINES if name not in ('torch-float32', WANTED)]:
        monkeypatch.delitem(ENGINES, name)
    for damage in (False, True):
        network, told = engined('auto', engine_cache=str(tmp_path))
        network.prepare([(values(),)])
        assert any('is the fastest' in line for line in told)
        if not damage:
            (choice,) = tmp_path.glob('auto-*/choice.json')
            choice.write_text(json.dumps({'engine': 'torch-float32'}), encoding='utf-8')
