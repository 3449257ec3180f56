"""Labels that are carried along flow, and the limit of age that makes labelling cheaper."""

from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.keyframes import carry_labels
from dense_perception.predictors.latency import FEWEST, LADDER, PATIENCE, SMALLER
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.messages import image_to_array, message_to_flow, message_to_labels
from dense_perception.weights.published import find_weights
import numpy as np
import pytest

pytestmark = pytest.mark.ros

FULL = '100% of the width, every frame labelled'


def send(running, camera, *messages, name=''):
    """Publish images, each when the one before has been served."""
    for message in messages:
        processed = running.statistics(name).processed
        camera.publish(message)
        running.spin(lambda: running.statistics(name).processed > processed)  # noqa: B023


def runs(running, processed, name=''):
    """How often the networks ran for a number of images: segmentation, flow."""
    _, values = running.diagnostics(
        lambda _, values: values['images processed'] == str(processed), name
    )
    return int(values['segmentation runs']), int(values['flow runs'])


@pytest.fixture(scope='module')
def segment():
    segmenter = Segmenter.from_file(
        find_weights('drive'), device='cpu', precision='float32', width=64
    )
    return lambda message: segmenter.segment(image_to_array(message)).labels


@pytest.fixture(scope='module')
def estimate():
    estimator = FlowEstimator.from_file(
        find_weights('flow'), device='cpu', precision='float32', width=64
    )
    return lambda *messages: estimator.estimate(*map(image_to_array, messages))


def test_between_keyframes_labels_are_carried_along_flow(bench, frame, segment, estimate):
    running = bench(keyframe_interval=3)
    labels = running.listen('labels')
    messages = [frame(number) for number in range(4)]
    send(running, running.camera(), *messages)
    running.spin(lambda: len(labels) == 4)
    expected = [segment(messages[0])]
    for before, message in zip(messages, messages[1:3], strict=False):
        expected.append(carry_labels(expected[-1], estimate(before, message)))
    expected.append(segment(messages[3]))
    for heard, message, right in zip(labels, messages, expected, strict=True):
        assert heard.header == message.header
        np.testing.assert_array_equal(message_to_labels(heard), right)
    assert runs(running, 4) == (2, 2)


def test_flow_that_labels_are_carried_along_is_estimated_once(bench, frame, estimate):
    running = bench(keyframe_interval=3)
    running.listen('labels')
    flow = running.listen('flow')
    messages = [frame(0), frame(1), frame(2)]
    send(running, running.camera(), *messages)
    running.spin(lambda: len(flow) == 2)
    assert runs(running, 3) == (1, 2)
    np.testing.assert_array_equal(message_to_flow(flow[1]), estimate(*messages[1:]))


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param({'size': (50, 64)}, id='other size'),
        pytest.param({'stamp_ns': 10**12 + 10**10}, id='long gap'),
        pytest.param({'stamp_ns': 10**12 - 1}, id='clock jumps back'),
    ],
)
def test_labels_are_not_carried_where_flow_begins_anew(bench, frame, segment, changes):
    running = bench(keyframe_interval=10)
    labels = running.listen('labels')
    second = frame(1, **changes)
    send(running, running.camera(), frame(0), second)
    running.spin(lambda: len(labels) == 2)
    np.testing.assert_array_equal(message_to_labels(labels[1]), segment(second))
    assert runs(running, 2) == (2, 0)


def test_labels_that_nobody_wanted_for_a_while_are_not_carried(bench, frame, segment):
    running = bench(keyframe_interval=10)
    labels, flow = running.listen('labels'), running.listen('flow')
    camera = running.camera()
    send(running, camera, frame(0))
    running.spin(lambda: bool(labels))
    (listening,) = [s for s in running.peer.subscriptions if s.topic_name.endswith('/labels')]
    running.peer.destroy_subscription(listening)
    (output,) = [p for p in running.node.publishers if p.topic_name.endswith('/labels')]
    running.spin(lambda: output.get_subscription_count() == 0)
    send(running, camera, frame(1))
    running.spin(lambda: bool(flow))
    labels = running.listen('labels')
    send(running, camera, frame(2))
    running.spin(lambda: bool(labels))
    np.testing.assert_array_equal(message_to_labels(labels[0]), segment(frame(2)))


def test_labels_of_each_camera_are_carried_along_its_own_flow(bench, frame, segment, estimate):
    running = bench(cameras=['front', 'left'], keyframe_interval=2)
    heard = {name: running.listen(f'{name}/labels') for name in ('front', 'left')}
    cameras = {name: running.camera(topic=f'/{name}/image') for name in heard}
    sent = {name: [] for name in heard}
    for number in range(4):
        name = ('front', 'left')[number % 2]
        sent[name].append(frame(number))
        send(running, cameras[name], sent[name][-1], name=name)
    running.spin(lambda: all(len(labels) == 2 for labels in heard.values()))
    for name, (first, second) in sent.items():
        np.testing.assert_array_equal(message_to_labels(heard[name][0]), segment(first))
        expected = carry_labels(segment(first), estimate(first, second))
        np.testing.assert_array_equal(message_to_labels(heard[name][1]), expected)


def test_confidence_is_that_of_keyframes_alone(bench, frame):
    running = bench(keyframe_interval=2)
    labels, confidence = running.listen('labels'), running.listen('confidence')
    messages = [frame(number) for number in range(3)]
    send(running, running.camera(), *messages)
    running.spin(lambda: len(labels) == 3 and len(confidence) == 2)
    assert [heard.header for heard in confidence] == [messages[0].header, messages[2].header]


def test_the_interval_of_keyframes_changes_while_the_node_runs(bench, frame):
    running = bench(keyframe_interval=10)
    running.listen('labels')
    camera = running.camera()
    send(running, camera, frame(0), frame(1))
    assert running.set(keyframe_interval=1).successful
    send(running, camera, frame(2), frame(3))
    assert runs(running, 4) == (3, 1)


@pytest.mark.parametrize(
    ('parameters', 'complaint'),
    [
        ({'keyframe_interval': 2, 'flow_weights': ''}, 'keyframe_interval is 2, but there are no'),
        ({'max_latency_ms': 50.0, 'segmentation_weights': ''}, 'which needs labels'),
        ({'max_latency_ms': 50.0, 'segmentation_width': 0}, 'segmentation_width to reduce'),
    ],
)
def test_what_cheaper_labels_need_may_not_be_switched_off(bench, parameters, complaint):
    running = bench('unconfigured', **parameters)
    assert not running.change('configure')
    status, _ = running.next_diagnostics()
    assert status.level == status.ERROR
    assert complaint in status.message


def times(values):
    """Return what labels take on each rung by diagnostics: the words for it, milliseconds."""
    told = {key: value for key, value in values.items() if key.startswith('labels with ')}
    return {
        key.removeprefix('labels with ').removesuffix(' (ms)'): float(value)
        for key, value in told.items()
    }


def test_what_labels_take_with_cheaper_settings_is_measured_and_told(bench):
    running = bench('inactive', max_latency_ms=60000.0)
    _, values = running.diagnostics(lambda _, values: 'latency rung' in values)
    told = times(values)
    assert list(told) == [str(rung) for rung in LADDER]
    assert min(told.values()) > 0
    for every, second in ((LADDER[0], LADDER[1]), (LADDER[2], LADDER[3]), (LADDER[4], LADDER[5])):
        assert told[str(second)] >= told[str(every)]  # keyframes take as long as ever
    assert values['latency rung'] == FULL
    assert 'in warming up' in values['latency limit']


def test_without_flow_only_smaller_inputs_are_measured(bench):
    running = bench('inactive', max_latency_ms=60000.0, flow_weights='')
    _, values = running.diagnostics(lambda _, values: 'latency rung' in values)
    assert list(times(values)) == [str(rung) for rung in SMALLER]


def test_smaller_inputs_have_engines_too_where_the_size_of_images_is_known(bench):
    engine = 'torch-float32'
    running = bench(
        'inactive',
        max_latency_ms=60000.0,
        flow_weights='',
        engine=engine,
        engine_cache='',
        engine_image_size=[64, 48],
    )
    segmenter = running.node._pipeline.segmenter
    image = np.zeros((48, 64, 3), np.uint8)
    for width in (64, 48, 32):
        segmenter.width = width
        segmenter.segment(image)
        assert segmenter.running == engine


def test_a_limit_below_what_was_measured_begins_with_the_cheapest_settings(bench):
    running = bench('inactive', max_latency_ms=0.001)
    _, values = running.diagnostics(lambda _, values: 'latency rung' in values)
    told = times(values)
    assert told[values['latency rung']] == min(told.values())


def test_images_that_are_too_old_are_labelled_more_cheaply_which_is_told(bench, frame, capfd):
    running = bench(max_latency_ms=60000.0, segmentation_width=256)
    labels = running.listen('labels')
    camera = running.camera()
    for number in range(2 * FEWEST):  # stamps long ago, so that the limit cannot be held
        send(running, camera, frame(number))
    status, values = running.diagnostics(
        lambda status, _: 'the cheapest there is' in status.message
    )
    assert status.level == status.WARN
    assert status.message.startswith('results come too late: ')
    told = times(values)
    cheapest = values['latency rung']
    assert told[cheapest] == min(told.values())
    (rung,) = [rung for rung in LADDER if str(rung) == cheapest]
    assert rung.scale < 1
    assert values['labelling width'] == str(round(256 * rung.scale))
    assert values['keyframe interval'] == str(rung.keyframe_interval)
    assert f'labels: {cheapest}' in capfd.readouterr().err
    assert (labels[-1].height, labels[-1].width) == (48, 64)


def test_images_that_are_young_again_are_labelled_in_full_again_which_is_told(bench, frame):
    running = bench(max_latency_ms=60000.0, segmentation_width=256)
    running.listen('labels')
    camera = running.camera()
    for number in range(FEWEST):
        send(running, camera, frame(number))
    running.diagnostics(lambda _, values: values['latency rung'] != FULL)
    images = 0
    while running.node._pipeline.deadline.rung != LADDER[0]:
        assert images <= 3 * PATIENCE  # half the width of fewer images and of all, three quarters
        stamp_ns = running.peer.get_clock().now().nanoseconds
        send(running, camera, frame(images, stamp_ns=stamp_ns))
        images += 1
    status, values = running.diagnostics(lambda _, values: values['latency rung'] == FULL)
    assert status.level == status.OK
    assert values['labelling width'] == '256'
    assert values['keyframe interval'] == '1'


def test_images_that_are_young_enough_are_labelled_in_full(bench, frame):
    running = bench(max_latency_ms=60000.0)
    running.listen('labels')
    camera = running.camera()
    for number in range(15):
        stamp_ns = running.peer.get_clock().now().nanoseconds
        send(running, camera, frame(number, stamp_ns=stamp_ns))
    status, values = running.diagnostics(lambda _, values: values['images processed'] == '15')
    assert status.level == status.OK
    assert values['labelling width'] == '64'
    assert values['keyframe interval'] == '1'
