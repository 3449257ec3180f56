"""Engines in the node; what they give is tested with the predictors."""

import re
from threading import Event, Thread

from dense_perception.predictors.device import Placement
from dense_perception.predictors.engines.choice import ENGINES
from dense_perception.predictors.engines.engine import Maker
from dense_perception.predictors.engines.in_torch import TorchEngine
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.messages import image_to_array, message_to_labels
from dense_perception.weights.published import find_weights
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.ros

OPENVINO = 'openvino-float32'


def labelled(running, frame, condition):
    """Send images until a condition holds of the diagnostics; return its values and the labels."""
    labels = running.listen('labels')
    camera = running.camera()
    numbers = iter(range(10**6))
    timer = running.peer.create_timer(0.05, lambda: camera.publish(frame(next(numbers))))
    _, values = running.diagnostics(lambda _, values: condition(values))
    running.peer.destroy_timer(timer)
    labels.clear()
    message = frame(7, stamp_ns=2 * 10**12)
    camera.publish(message)
    running.spin(lambda: any(heard.header == message.header for heard in labels))
    return values, message, labels[-1]


def test_labels_run_in_the_engine_that_is_asked_for_once_it_is_built(bench, frame, capfd):
    running = bench(engine='torch-float32', engine_cache='', flow_weights='')
    values, message, labels = labelled(
        running, frame, lambda values: values['segmentation engine'] == 'torch-float32'
    )
    assert re.fullmatch(
        r'torch-float32 for inputs of \d+ x \d+, 100\.00% as torch float32',
        values['segmentation engine note'],
    )
    assert 'segmentation: torch-float32 for inputs of' in capfd.readouterr().err
    segmenter = Segmenter.from_file(
        find_weights('drive'), device='cpu', precision='float32', width=64
    )
    expected = segmenter.segment(image_to_array(message)).labels
    np.testing.assert_array_equal(message_to_labels(labels), expected)


def test_an_engine_that_cannot_be_had_is_told_and_torch_takes_its_place(bench, frame):
    running = bench(engine='tensorrt-float16', engine_cache='', flow_weights='')
    values, _, _ = labelled(
        running, frame, lambda values: 'takes its place' in values['segmentation engine note']
    )
    assert 'tensorrt-float16 runs on a cuda device' in values['segmentation engine note']
    assert values['bad images'] == '0'
    _, values = running.diagnostics(lambda _, values: 'torch' in values['segmentation engine'])


def test_torch_is_told_where_no_engine_is_asked_for(bench):
    running = bench('inactive')
    _, values = running.next_diagnostics()
    assert values['segmentation engine'] == values['flow engine'] == 'torch'


def test_an_engine_is_built_while_configuring_for_images_whose_size_is_given(bench, capfd):
    pytest.importorskip('openvino')
    running = bench(
        'inactive', engine=OPENVINO, engine_cache='', engine_image_size=[64, 48], flow_weights=''
    )
    _, values = running.next_diagnostics()
    assert values['segmentation engine'] == OPENVINO
    assert re.fullmatch(
        rf'{OPENVINO} for inputs of \d+ x \d+, \d+\.\d\d% as torch float32',
        values['segmentation engine note'],
    )
    log = capfd.readouterr().err
    assert log.index(f'segmentation: {OPENVINO}: building for') < log.index('warm after')
    assert f'segmentation: {OPENVINO}: built in' in log


def test_an_engine_that_was_built_while_configuring_labels_the_first_image(
    bench, frame, monkeypatch
):
    runs = []

    def load(task, folder):
        engine = TorchEngine(task.network, Placement(torch.device('cpu'), torch.float32))

        def run(*inputs):
            runs.append(inputs)
            return engine(*inputs)

        return run

    monkeypatch.setitem(ENGINES, OPENVINO, Maker('any', load))
    running = bench(engine=OPENVINO, engine_cache='', engine_image_size=[64, 48], flow_weights='')
    labels = running.listen('labels')
    camera = running.camera()
    runs.clear()
    camera.publish(frame(0, size=(48, 64)))
    running.spin(lambda: bool(labels))
    assert len(runs) == 1


def test_flow_gets_its_engine_while_configuring_too(bench):
    running = bench(
        'inactive',
        engine='torch-float32',
        engine_cache='',
        engine_image_size=[64, 48],
        segmentation_weights='',
    )
    _, values = running.next_diagnostics()
    assert values['flow engine'] == 'torch-float32'
    assert '% as torch float32' in values['flow engine note']


def test_a_recording_scales_an_engine_while_configuring(bench, bag, monkeypatch):
    tasks = []

    def load(task, folder):
        tasks.append(task)
        return TorchEngine(task.network, Placement(torch.device('cpu'), torch.float32))

    monkeypatch.setitem(ENGINES, OPENVINO, Maker('any', load, calibrated=True))
    bench(
        'inactive',
        engine=OPENVINO,
        engine_cache='',
        engine_image_size=[64, 48],
        calibration_frames=str(bag),
        flow_weights='',
    )
    assert len(tasks[0].calibration) == 5  # of six; the other one judges


def test_images_that_wait_for_an_engine_are_told_with_how_far_it_is(bench, frame, monkeypatch):
    begun, go_on = Event(), Event()

    def load(task, folder):
        begun.set()
        assert go_on.wait(60)
        return TorchEngine(task.network, Placement(torch.device('cpu'), torch.float32))

    monkeypatch.setitem(ENGINES, OPENVINO, Maker('any', load, preparing='compiling'))
    running = bench(engine=OPENVINO, engine_cache='', flow_weights='')
    segmenter = running.node._pipeline.segmenter
    image = image_to_array(frame(0))
    # As the inference does on a CUDA device.
    building = Thread(target=lambda: segmenter.prepare([image]))
    building.start()
    assert begun.wait(60)
    status, _ = running.next_diagnostics()
    go_on.set()
    building.join()
    assert status.level == status.WARN
    assert status.message.startswith(
        f'images wait until an engine is built: segmentation: {OPENVINO}: compiling for'
    )


def test_what_is_told_of_an_engine_within_the_inference_counts_as_its_progress(bench, frame):
    running = bench(engine='torch-float32', engine_cache='', flow_weights='')
    labels, camera = running.listen('labels'), running.camera()
    network, worker = running.node._pipeline.segmenter.network, running.node._inference.worker
    newest = []

    def tell(*_):
        newest.append(worker._since_s)
        network._tell('half way')
        newest.append(worker._since_s)

    network.register_forward_pre_hook(tell)
    camera.publish(frame(0))
    running.spin(lambda: bool(labels))
    assert newest[0] < newest[1]


@pytest.mark.parametrize(
    ('parameters', 'complaint'),
    [
        (
            {'engine_image_size': [640]},
            'engine_image_size is [640] (list); it must be a list of 2',
        ),
        ({'engine': 'steam'}, "engine is 'steam'; it must be one of torch, auto,"),
        (
            {'engine': 'openvino-int8', 'calibration_frames': '/nowhere'},
            '/nowhere',
        ),
    ],
)
def test_an_engine_that_cannot_be_is_refused_with_the_reason(bench, parameters, complaint):
    running = bench('unconfigured', **parameters)
    assert not running.change('configure')
    status, _ = running.next_diagnostics()
    assert status.level == status.ERROR
    assert complaint in status.message
