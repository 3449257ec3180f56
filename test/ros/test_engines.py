"""Engines in the node; what they give is tested with the predictors."""

from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.messages import image_to_array, message_to_labels
from dense_perception.weights.published import find_weights
import numpy as np
import pytest

pytestmark = pytest.mark.ros


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
    assert 'torch-float32 for inputs of' in values['segmentation engine note']
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


@pytest.mark.parametrize(
    ('parameters', 'complaint'),
    [
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
