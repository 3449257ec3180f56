"""A node whose engine, memory or camera is not what it was."""

import sys

from dense_perception.predictors.device import Placement
from dense_perception.predictors.engines.choice import ENGINES
from dense_perception.predictors.engines.engine import Maker
from dense_perception.predictors.engines.in_torch import TorchEngine
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.latency import PATIENCE
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.messages import image_to_array, message_to_flow, message_to_labels
from dense_perception.weights.published import find_weights
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch

pytestmark = pytest.mark.ros

WANTED = (
    'openvino-float32'  # a name that the parameter takes; tests put engines of their own there
)
PLAIN = {'device': 'cpu', 'precision': 'float32'}
SHORT = 'OutOfMemoryError: CUDA out of memory'


class Stream:
    """A node with a camera and a listener to one of its outputs."""

    def __init__(self, running, output='labels'):
        self.running = running
        self.heard = running.listen(output)
        self.camera = running.camera()

    def send(self, message):
        """Publish an image and wait until it has been served, or counted as bad."""
        statistics = self.running.statistics()
        before = statistics.processed + statistics.bad
        self.camera.publish(message)
        self.running.spin(lambda: statistics.processed + statistics.bad > before)

    def answer(self, message):
        """Send an image and return what comes of it."""
        self.send(message)
        self.running.spin(lambda: bool(self.heard) and self.heard[-1].header == message.header)
        return self.heard[-1]

    def lost(self, message):
        """Send an image that is to count as bad."""
        bad = self.running.statistics().bad
        self.send(message)
        assert self.running.statistics().bad == bad + 1


def assert_labels(answer, message, width=64):
    """Labels are those of the library at a width of its input."""
    segmenter = Segmenter.from_file(find_weights('drive'), **PLAIN, width=width)
    expected = segmenter.segment(image_to_array(message)).labels
    np.testing.assert_array_equal(message_to_labels(answer), expected)


def assert_flow(answer, *messages, weights='flow', width=64):
    """Flow is that of the library at a width of its input."""
    estimator = FlowEstimator.from_file(find_weights(weights), **PLAIN, width=width)
    expected = estimator.estimate(*map(image_to_array, messages))
    np.testing.assert_array_equal(message_to_flow(answer), expected)


# Engines that cannot be had.


def write_weights(task, folder):
    save_file(task.network.state_dict(), folder / 'weights.safetensors')


def read_weights(task, folder):
    task.network.load_state_dict(load_file(folder / 'weights.safetensors'))
    return TorchEngine(task.network, Placement(torch.device('cpu'), torch.float32))


def fail(task, folder):
    (folder / 'half').touch()
    raise ZeroDivisionError('no such layer')


def build(stream, frame):
    """Send images until an engine was built or given up; return what is told of it."""
    for number in range(4):
        stream.answer(frame(number))
    stream.running.node._pipeline.segmenter.network.wait()
    stream.answer(frame(4))
    return stream.running.next_diagnostics()[1]


def test_an_engine_that_is_not_installed_is_told_with_what_to_install(bench, frame, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)  # as where it is not installed
    stream = Stream(bench(engine=WANTED, engine_cache='', flow_weights=''))
    values = build(stream, frame)
    assert (
        'openvino-float32 needs openvino: pip install openvino; torch takes its place'
        in (values['segmentation engine note'])
    )
    assert values['bad images'] == '0'
    assert_labels(stream.answer(frame(5)), frame(5))


def test_an_engine_that_cannot_be_built_is_told_and_leaves_nothing(
    bench, frame, monkeypatch, tmp_path, capfd
):
    monkeypatch.setitem(ENGINES, WANTED, Maker('any', read_weights, fail))
    stream = Stream(bench(engine=WANTED, engine_cache=str(tmp_path / 'c'), flow_weights=''))
    values = build(stream, frame)
    note = f'{WANTED} cannot be built: ZeroDivisionError: no such layer; torch takes its place'
    assert values['segmentation engine note'] == note
    assert note in capfd.readouterr().err
    assert values['bad images'] == '0'
    assert list((tmp_path / 'c').iterdir()) == []
    assert_labels(stream.answer(frame(5)), frame(5))


@pytest.mark.parametrize('damage', ['cut short', 'of other weights', 'folder', 'nested'])
def test_an_engine_whose_file_in_the_cache_is_damaged_is_built_anew(
    bench, frame, monkeypatch, tmp_path, capfd, damage
):
    monkeypatch.setitem(ENGINES, WANTED, Maker('any', read_weights, write_weights))
    running = bench(engine=WANTED, engine_cache=str(tmp_path), flow_weights='')
    build(Stream(running), frame)
    assert running.change('deactivate', 'cleanup')
    (file,) = tmp_path.glob('*/weights.safetensors')
    if damage == 'cut short':
        file.write_bytes(file.read_bytes()[:-1000])
    elif damage == 'of other weights':
        save_file({'weight': torch.zeros(3)}, file)
    elif damage == 'folder':
        file.unlink()
        file.mkdir()
    else:
        (file.parent / 'record.json').write_text('[' * 10**6, encoding='utf-8')
    capfd.readouterr()
    assert running.change('configure', 'activate')
    stream = Stream(running)
    assert build(stream, frame)['segmentation engine'] == WANTED
    assert f'{WANTED}: built in' in capfd.readouterr().err
    assert_labels(stream.answer(frame(5)), frame(5))


# A camera that changes its size.


def test_each_size_is_labelled_at_once_while_an_engine_runs(bench, frame):
    running = bench(engine='torch-float32', engine_cache='', flow_weights='', segmentation_width=0)
    stream = Stream(running)
    build(stream, frame)
    for number, size in enumerate([(48, 64), (72, 96), (40, 33), (48, 64)], 10):
        message = frame(number, size=size)
        assert_labels(stream.answer(message), message, width=0)
    _, values = running.diagnostics(lambda _, values: values['images processed'] == '9')
    assert values['bad images'] == '0'
    assert values['segmentation engine'] == 'torch-float32'  # of the size that is back


@pytest.mark.parametrize('width', [0, 64])
def test_flow_of_another_size_begins_anew_where_features_are_kept(bench, frame, width):
    running = bench(flow_weights='flow_corr', segmentation_weights='', flow_width=width)
    stream = Stream(running, 'flow')
    sizes = [(48, 64), (48, 64), (70, 130), (70, 130), (48, 64), (48, 64)]
    messages = [frame(number, size=size) for number, size in enumerate(sizes)]
    for first, second in zip(messages[::2], messages[1::2], strict=True):
        stream.send(first)
        assert_flow(stream.answer(second), first, second, weights='flow_corr', width=width)
    assert len(stream.heard) == 3
    assert running.statistics().bad == 0


# Memory that gets short.


class Memory:
    """Room for inputs of so many columns: a hook that raises what torch does on a CUDA device."""

    def __init__(self, network, columns):
        self.columns = columns
        network.register_forward_pre_hook(self._check)

    def _check(self, network, inputs):
        if inputs[0].shape[3] > self.columns:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')


@pytest.fixture
def short(bench):
    """A labelling stream, and the memory of its node, which is enough."""
    running = bench(flow_weights='')
    return Stream(running), Memory(running.node._pipeline.segmenter.network, 64)


def test_where_memory_gets_short_an_image_is_lost_and_the_next_are_made_smaller_which_is_told(
    short, frame, capfd
):
    stream, memory = short
    assert_labels(stream.answer(frame(0)), frame(0))
    memory.columns = 48
    stream.lost(frame(1))
    for number in (2, 3):
        assert_labels(stream.answer(frame(number)), frame(number), width=48)
    status, values = stream.running.diagnostics(
        lambda status, values: status.message.startswith('images are made smaller: 75%')
    )
    assert status.level == status.WARN
    assert SHORT in status.message
    assert values['labelling width'] == '48'
    assert values['latency limit'].startswith('75% of the width, every frame labelled: memory')
    assert SHORT in values['latency limit']
    assert values['bad images'] == '1'
    assert SHORT in values['last error']
    log = capfd.readouterr().err
    assert f'image not used: {SHORT}' in log
    assert 'labels and flow: 75% of the width' in log


def test_memory_of_the_computer_that_gets_short_makes_images_smaller_too(bench, frame):
    running = bench(flow_weights='')
    stream = Stream(running)

    def allocate(network, inputs):
        torch.empty(2**40 * (inputs[0].shape[3] > 48))  # 4 TiB

    running.node._pipeline.segmenter.network.register_forward_pre_hook(allocate)
    stream.lost(frame(0))
    assert_labels(stream.answer(frame(1)), frame(1), width=48)


def test_memory_that_is_short_of_the_smallest_input_costs_images_until_it_is_back(
    short, frame, capfd
):
    stream, memory = short
    memory.columns = 0
    for number in range(5):
        stream.lost(frame(number))
    status, values = stream.running.diagnostics(lambda _, values: values['bad images'] == '5')
    assert status.level == status.ERROR
    assert status.message.startswith('no results: 50% of the width, every frame labelled: the sma')
    assert values['latency limit'].startswith('50% of the width, every frame labelled: the small')
    assert 'the smallest there is, but memory is short' in capfd.readouterr().err
    memory.columns = 64
    assert_labels(stream.answer(frame(5)), frame(5), width=32)
    status, _ = stream.running.diagnostics(lambda _, values: values['images processed'] == '1')
    assert status.level == status.WARN


@pytest.mark.parametrize('weights', ['segmentation_weights', 'flow_weights'])
def test_what_runs_at_the_width_of_the_camera_is_made_smaller_too(bench, frame, weights):
    running = bench(**{weights: ''}, segmentation_width=0, flow_width=0)
    first, second, third = (frame(number, size=(96, 128)) for number in range(3))
    (predictor,) = running.node._pipeline.predictors().values()
    memory = Memory(predictor.network, 0)
    if weights == 'flow_weights':
        stream = Stream(running)
        stream.lost(first)
        memory.columns = 128
        assert_labels(stream.answer(second), second, width=96)
    else:
        stream = Stream(running, 'flow')
        stream.send(first)
        stream.lost(second)
        memory.columns = 128
        assert_flow(stream.answer(third), second, third, width=96)


def test_the_full_width_comes_back_after_a_while_with_memory(short, frame, capfd):
    stream, memory = short
    memory.columns = 48
    stream.lost(frame(0))
    memory.columns = 64
    for number in range(1, PATIENCE + 1):
        stream.answer(frame(number))
    assert_labels(stream.answer(frame(100)), frame(100), width=64)
    assert 'labels: 100% of the width' in capfd.readouterr().err


def test_memory_that_is_short_of_flow_makes_its_images_smaller(bench, frame):
    running = bench(segmentation_weights='', flow_width=256)
    stream = Stream(running, 'flow')
    memory = Memory(running.node._pipeline.flow_estimator.network, 192)
    messages = [frame(number) for number in range(3)]
    stream.send(messages[0])
    stream.lost(messages[1])
    assert_flow(stream.answer(messages[2]), *messages[1:], width=192)
    memory.columns = 128
    more = [frame(number) for number in range(3, 5)]
    stream.lost(more[0])
    assert_flow(stream.answer(more[1]), *more, width=128)


def test_features_of_the_size_before_are_not_used_where_memory_is_short_of_flow(bench, frame):
    running = bench(segmentation_weights='', flow_weights='flow_corr', flow_width=256)
    stream = Stream(running, 'flow')
    stream.send(frame(0))
    stream.answer(frame(1))
    network = running.node._pipeline.flow_estimator.network
    Memory(network.conv_redir, 24)  # behind features of both images, at an eighth of the width
    stream.lost(frame(2))
    answer = stream.answer(frame(3))
    assert_flow(answer, frame(2), frame(3), weights='flow_corr', width=192)


def test_an_engine_that_runs_out_of_memory_costs_no_image(bench, frame, monkeypatch):
    engines = []

    def load(task, folder):
        engines.append(TorchEngine(task.network, Placement(torch.device('cpu'), torch.float32)))
        return engines[0]

    monkeypatch.setitem(ENGINES, WANTED, Maker('any', load))
    running = bench(engine=WANTED, engine_cache='', flow_weights='')
    stream = Stream(running)
    assert build(stream, frame)['segmentation engine'] == WANTED
    Memory(engines[0].network, 0)
    assert_labels(stream.answer(frame(5)), frame(5))
    _, values = running.diagnostics(
        lambda _, values: 'failed' in values['segmentation engine note']
    )
    assert values['segmentation engine note'] == (
        f'{WANTED} failed: {SHORT}. Tried to allocate 2.00 GiB; torch takes its place'
    )
    assert (values['bad images'], values['labelling width']) == ('0', '64')
