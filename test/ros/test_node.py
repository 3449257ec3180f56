import gc
import json
from threading import Event, Thread
import time

import cv2
from dense_perception.data.pictures import write_legend
from dense_perception.labels import CITYSCAPES
from dense_perception.networks.context import FrontEndContext
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.messages import image_to_array, message_to_flow, message_to_labels
from dense_perception.weights.published import find_weights
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import numpy as np
import pytest
from rclpy.qos import ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, TimeReference
from std_msgs.msg import String

pytestmark = pytest.mark.ros

OUTPUTS = {
    'labels': 'mono8',
    'confidence': 'mono8',
    'labels_color': 'rgb8',
    'flow': '32FC2',
    'flow_color': 'rgb8',
}


def stamps_ns(heard):
    return [message.header.stamp.sec * 10**9 + message.header.stamp.nanosec for message in heard]


# What comes out.


def test_every_output_has_the_encoding_size_and_header_that_are_promised(bench, frame):
    running = bench()
    heard = {name: running.listen(name) for name in OUTPUTS}
    camera = running.camera()
    camera.publish(frame(0, size=(50, 70)))
    running.spin(lambda: bool(heard['labels']))
    second = frame(1, size=(50, 70))
    camera.publish(second)
    running.spin(
        lambda: all(stamps_ns(messages)[-1:] == stamps_ns([second]) for messages in heard.values())
    )
    for name, encoding in OUTPUTS.items():
        message = heard[name][-1]
        assert message.encoding == encoding
        assert (message.height, message.width) == (50, 70)
        assert message.header == second.header
        assert len(message.data) == message.step * message.height


def test_labels_are_those_of_the_library(bench, frame):
    running = bench()
    labels, confidence = running.listen('labels'), running.listen('confidence')
    message = frame()
    running.camera().publish(message)
    running.spin(lambda: labels and confidence)
    segmenter = Segmenter.from_file(
        find_weights('drive'), device='cpu', precision='float32', width=64
    )
    expected = segmenter.segment(image_to_array(message), confidence=True)
    np.testing.assert_array_equal(message_to_labels(labels[0]), expected.labels)
    np.testing.assert_array_equal(message_to_labels(confidence[0]), expected.confidence)
    assert set(np.unique(expected.labels)) <= {*range(len(segmenter.label_set)), 255}


def test_flow_is_that_of_the_library_from_the_previous_frame_to_this_one(bench, frame):
    running = bench()
    flow = running.listen('flow')
    reference = running.listen('flow_reference', TimeReference)
    camera = running.camera()
    first, second = frame(0), frame(1)
    send_both(running, camera, first, second)
    running.spin(lambda: flow and reference)
    estimator = FlowEstimator.from_file(
        find_weights('flow'), device='cpu', precision='float32', width=64
    )
    expected = estimator.estimate(image_to_array(first), image_to_array(second))
    np.testing.assert_array_equal(message_to_flow(flow[0]), expected)
    assert reference[0].header == second.header
    assert reference[0].time_ref == first.header.stamp


def test_the_overlay_mixes_label_colours_into_the_image(bench, frame):
    running = bench(overlay_opacity=1.0)
    color, labels = running.listen('labels_color'), running.listen('labels')
    running.camera().publish(frame())
    running.spin(lambda: color and labels)
    painted = CITYSCAPES.palette()[message_to_labels(labels[0])]
    np.testing.assert_array_equal(image_to_array(color[0]), painted)


def overlay_and_labels(running, message):
    """Return `~/labels_color` of an image as an array, and its labels in their colours."""
    color, labels = running.listen('labels_color'), running.listen('labels')
    running.camera().publish(message)
    running.spin(lambda: color and labels)
    return image_to_array(color[0]), CITYSCAPES.palette()[message_to_labels(labels[0])]


def test_stamp_age_and_classes_stand_over_the_top_of_an_overlay_that_has_room(bench, frame):
    running = bench(overlay_opacity=1.0)
    now_ns = running.node.get_clock().now().nanoseconds
    overlay, painted = overlay_and_labels(running, frame(size=(120, 160), stamp_ns=now_ns))
    assert (overlay[:30] != painted[:30]).any()
    np.testing.assert_array_equal(overlay[30:], painted[30:])


def test_an_overlay_without_a_legend_has_the_labels_alone(bench, frame):
    running = bench(overlay_opacity=1.0, overlay_legend=False)
    overlay, painted = overlay_and_labels(running, frame(size=(120, 160)))
    np.testing.assert_array_equal(overlay, painted)


def test_the_overlay_tells_stamp_and_age_of_the_image_when_it_goes_out(bench, frame):
    running = bench(overlay_opacity=1.0)
    color, labels = running.listen('labels_color'), running.listen('labels')
    camera = running.camera()
    message = frame(size=(120, 160), stamp_ns=running.node.get_clock().now().nanoseconds)
    camera.publish(message)
    running.spin(lambda: color and labels)
    longest = running.node.get_clock().now() - Time.from_msg(message.header.stamp)
    found, classes = image_to_array(color[0]), message_to_labels(labels[0])

    def tells(age_ms):
        picture = CITYSCAPES.palette()[classes]
        stamp = f'{message.header.stamp.sec}.{message.header.stamp.nanosec // 10**6:03d}'
        write_legend(picture, classes, CITYSCAPES, (stamp, f'age {age_ms} ms'))
        return bool((picture == found).all())

    assert any(tells(age_ms) for age_ms in range(longest.nanoseconds // 10**6 + 2))


def test_class_names_and_colours_wait_for_late_subscribers(bench):
    running = bench()
    heard = running.listen('label_info', String, latched=True)
    running.spin(lambda: bool(heard))
    info = json.loads(heard[0].data)
    assert [entry['name'] for entry in info['classes']] == list(CITYSCAPES.names)
    assert [tuple(entry['color']) for entry in info['classes']] == [
        entry.color for entry in CITYSCAPES.classes
    ]
    assert info['ignored'] == 255


def test_class_names_come_as_vision_msgs_too_where_they_are_installed(bench):
    vision_msgs = pytest.importorskip('vision_msgs.msg')
    running = bench()
    heard = running.listen('label_info/vision', vision_msgs.LabelInfo, latched=True)
    running.spin(lambda: bool(heard))
    assert [entry.class_name for entry in heard[0].class_map] == list(CITYSCAPES.names)


def test_camera_info_is_scaled_to_the_outputs_and_has_their_header(bench, frame):
    running = bench()
    heard = running.listen('camera_info', CameraInfo)
    image, info = running.camera(), running.camera(CameraInfo, '/camera_info')
    # Of twice the width and height of the image, as a binned camera's may be.
    source = CameraInfo(width=128, height=96, k=[100.0, 0, 63.5, 0, 100, 47.5, 0, 0, 1])
    source.p = [100.0, 0, 63.5, 0, 0, 100, 47.5, 0, 0, 0, 1, 0]
    message = frame()

    def arrived():
        info.publish(source)
        image.publish(message)
        return heard

    running.spin(arrived)
    assert (heard[0].width, heard[0].height) == (64, 48)
    assert heard[0].header == message.header
    np.testing.assert_allclose(heard[0].k, [50, 0, 31.5, 0, 50, 23.5, 0, 0, 1])


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_compressed_images_are_read_where_that_transport_is_chosen(bench, frame, suffix):
    running = bench(image_transport='compressed')
    labels = running.listen('labels')
    raw = frame()
    _, data = cv2.imencode(suffix, image_to_array(raw)[:, :, ::-1])
    message = CompressedImage(header=raw.header, format=suffix[1:], data=data.tobytes())
    running.camera(CompressedImage, '/image/compressed').publish(message)
    running.spin(lambda: bool(labels))
    assert (labels[0].height, labels[0].width, labels[0].header) == (48, 64, raw.header)


def test_with_flow_switched_off_there_are_labels_and_no_flow_topic(bench, frame):
    running = bench(flow_weights='')
    labels = running.listen('labels')
    running.camera().publish(frame())
    running.spin(lambda: bool(labels))
    assert running.node.count_publishers('/dense_perception/flow') == 0


def test_with_labels_switched_off_there_is_flow_and_no_label_topic(bench, frame):
    running = bench(segmentation_weights='')
    flow = running.listen('flow')
    send_both(running, running.camera(), frame(0), frame(1))
    running.spin(lambda: bool(flow))
    assert running.node.count_publishers('/dense_perception/labels') == 0
    assert running.node.count_publishers('/dense_perception/label_info') == 0


# What it costs.


def send_both(running, camera, *messages):
    """Publish frames one after the other, each when the one before has been taken."""
    for message in messages:
        processed = running.statistics().processed
        camera.publish(message)
        running.spin(lambda: running.statistics().processed > processed)  # noqa: B023


def test_without_subscribers_no_network_runs(bench, frame):
    running = bench()
    camera = running.camera()
    for number in range(3):
        camera.publish(frame(number))
    _, values = running.diagnostics(lambda _, values: int(values['images received']) >= 1)
    assert values['images processed'] == '0'
    assert (values['segmentation runs'], values['flow runs']) == ('0', '0')


@pytest.mark.parametrize(
    ('output', 'running_network', 'idle'),
    [('labels', 'segmentation', 'flow'), ('flow_color', 'flow', 'segmentation')],
)
def test_a_network_none_of_whose_outputs_is_wanted_does_not_run(
    bench, frame, output, running_network, idle
):
    running = bench()
    running.listen(output)
    send_both(running, running.camera(), *(frame(number) for number in range(3)))
    _, values = running.diagnostics(lambda _, values: values['images processed'] == '3')
    assert int(values[f'{running_network} runs']) >= 2
    assert values[f'{idle} runs'] == '0'


def test_camera_info_alone_runs_no_network(bench, frame):
    running = bench()
    running.listen('camera_info', CameraInfo)
    send_both(running, running.camera(), frame())
    _, values = running.diagnostics(lambda _, values: values['images processed'] == '1')
    assert (values['segmentation runs'], values['flow runs']) == ('0', '0')


# Newest frame wins.


def test_of_a_burst_only_the_newest_frame_is_labelled_and_the_others_are_counted(bench, frame):
    running = bench(segmentation_width=1024)
    labels = running.listen('labels')
    camera = running.camera()
    messages = [frame(number) for number in range(10)]
    for count, message in enumerate(messages, 1):
        camera.publish(message)
        running.spin(lambda: running.statistics().received == count)  # noqa: B023
    running.spin(lambda: stamps_ns(labels)[-1:] == stamps_ns(messages[-1:]))
    assert stamps_ns(labels) == sorted(stamps_ns(labels))
    assert len(labels) < 5
    _, values = running.diagnostics(
        lambda _, values: values['images processed'] == str(len(labels))
    )
    assert int(values['images dropped']) == 10 - len(labels)


def test_with_a_camera_three_times_as_fast_as_the_node_images_stay_young(bench, frame):
    running = bench(segmentation_width=640)
    arrivals = []
    labels = running.listen('labels')
    camera = running.camera()
    send_both(running, camera, *(frame(number) for number in range(3)))
    _, values = running.next_diagnostics()
    period_s = float(values['segmentation time p50 (ms)']) / 1000 / 3
    message = frame()
    end = Event()

    def film():
        due = time.monotonic()
        while not end.is_set():
            message.header.stamp = running.peer.get_clock().now().to_msg()
            camera.publish(message)
            due += period_s
            end.wait(max(0, due - time.monotonic()))

    labels.clear()
    filming = Thread(target=film)
    filming.start()
    try:
        while len(arrivals) < 30:
            known = len(labels)
            running.spin(lambda: len(labels) > known)  # noqa: B023
            arrivals += [time.time_ns()] * (len(labels) - known)
    finally:
        end.set()
        filming.join()
    stamps = np.array(stamps_ns(labels[:30]))
    ages_s = (np.array(arrivals[:30]) - stamps)[5:] * 1e-9
    # The node is never idle here, so that from one result to the next is one inference. An image
    # waits for the one before it at most, and is older than that by a period at most.
    two_inferences_s = (np.array(arrivals[5:30]) - np.array(arrivals[3:28])) * 1e-9
    assert (np.diff(stamps) > 0).all()
    assert np.median(ages_s - two_inferences_s) < period_s
    _, values = running.next_diagnostics()
    assert int(values['images dropped']) > 15
    assert float(values['age p99 (ms)']) > 0


# Where flow begins anew.


@pytest.mark.parametrize(
    ('second', 'third'),
    [
        pytest.param({'stamp_ns': 10**12 - 1}, {'stamp_ns': 10**12}, id='clock jumps back'),
        pytest.param({'size': (50, 64)}, {'size': (50, 64)}, id='other size'),
        pytest.param(
            {'stamp_ns': 10**12 + 600_000_000}, {'stamp_ns': 10**12 + 700_000_000}, id='long gap'
        ),
        pytest.param({'stamp_ns': 10**12}, {'stamp_ns': 10**12 + 1000}, id='same stamp'),
    ],
)
def test_flow_begins_anew_where_two_frames_do_not_belong_together(bench, frame, second, third):
    running = bench(max_flow_gap_s=0.5)
    flow, labels = running.listen('flow'), running.listen('labels')
    messages = [frame(0), frame(1, **second), frame(2, **third)]
    send_both(running, running.camera(), *messages)
    running.spin(lambda: len(labels) == 3 and flow)
    assert stamps_ns(flow) == stamps_ns(messages[2:])
    _, values = running.diagnostics(lambda _, values: values['images processed'] == '3')
    assert values['flow restarts'] == '2'


# Bad frames.


def spoiled(frame, **changes):
    message = frame(5)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ('changes', 'error'),
    [
        ({'encoding': 'rgb565'}, "image encoding is 'rgb565'"),
        ({'data': b'abc'}, 'has 3 bytes of data'),
        ({'width': 0, 'height': 0, 'step': 0, 'data': b''}, 'is 0 x 0'),
        ({'step': 10}, 'has step 10'),
        ({'width': 2**31, 'height': 2**31}, 'pixels are taken'),
    ],
)
def test_a_bad_image_is_told_and_costs_only_itself(bench, frame, changes, error):
    running = bench()
    labels = running.listen('labels')
    camera = running.camera()
    camera.publish(spoiled(frame, **changes))
    status, values = running.diagnostics(lambda _, values: values['bad images'] == '1')
    assert error in values['last error']
    assert status.level == status.WARN
    assert error in status.message
    camera.publish(frame(6))
    running.spin(lambda: bool(labels))
    assert stamps_ns(labels) == stamps_ns([frame(6)])


@pytest.mark.parametrize('data', [b'', b'garbage', b'\xff\xd8\xff\xe0 cut short'])
def test_a_bad_compressed_image_is_told_and_costs_only_itself(bench, frame, data):
    running = bench(image_transport='compressed')
    labels = running.listen('labels')
    camera = running.camera(CompressedImage, '/image/compressed')
    camera.publish(CompressedImage(format='jpeg', data=data))
    _, values = running.diagnostics(lambda _, values: values['bad images'] == '1')
    assert 'compressed image' in values['last error']
    _, good = cv2.imencode('.jpg', np.zeros((48, 64, 3), np.uint8))
    camera.publish(CompressedImage(format='jpeg', data=good.tobytes()))
    running.spin(lambda: bool(labels))


def test_an_image_that_needs_more_memory_than_there_is_costs_only_itself(bench, frame):
    running = bench(segmentation_width=1024, flow_weights='')
    labels = running.listen('labels')
    camera = running.camera()
    # Enlarged to 1024 columns, it takes 100 terabytes.
    thin = Image(height=2**23, width=1, step=1, encoding='mono8', data=bytes(2**23))
    camera.publish(thin)
    _, values = running.diagnostics(lambda _, values: values['bad images'] == '1')
    assert values['last error'].startswith('RuntimeError: ')
    camera.publish(frame())
    running.spin(lambda: bool(labels))


def test_the_size_may_change_in_mid_stream(bench, frame):
    running = bench()
    labels = running.listen('labels')
    sizes = [(48, 64), (96, 128), (31, 33), (48, 64)]
    camera = running.camera()
    send_both(running, camera, *(frame(number, size=size) for number, size in enumerate(sizes)))
    running.spin(lambda: len(labels) == len(sizes))
    assert [(message.height, message.width) for message in labels] == sizes


def test_an_unusable_camera_info_is_told_and_labels_go_on(bench, frame):
    running = bench()
    running.listen('camera_info', CameraInfo)
    labels = running.listen('labels')
    info, image = running.camera(CameraInfo, '/camera_info'), running.camera()

    def told():
        info.publish(CameraInfo(width=64, height=48))
        image.publish(frame())
        return 'calibrated' in running.statistics().summarise().last_error

    running.spin(told)
    running.spin(lambda: bool(labels))


# Lifecycle.


def test_an_inactive_node_publishes_nothing_and_an_active_one_does_again(bench, frame):
    running = bench()
    labels = running.listen('labels')
    send_both(running, running.camera(), frame(0))
    running.spin(lambda: len(labels) == 1)
    assert running.change('deactivate')
    assert running.state() == 'inactive'
    running.peer.create_publisher(Image, '/image', 1).publish(frame(1))
    running.spin_for(0.3)
    assert len(labels) == 1
    assert running.change('activate')
    send_both(running, running.camera(), frame(2))
    running.spin(lambda: len(labels) == 2)
    assert stamps_ns(labels) == stamps_ns([frame(0), frame(2)])


def test_flow_does_not_reach_back_before_a_pause(bench, frame):
    running = bench()
    flow, labels = running.listen('flow'), running.listen('labels')
    send_both(running, running.camera(), frame(0))
    assert running.change('deactivate', 'activate')
    send_both(running, running.camera(), frame(1))
    running.spin(lambda: len(labels) == 2)
    assert flow == []


def test_the_node_can_be_cleaned_up_and_configured_again(bench, frame):
    running = bench()
    for number in range(2):
        labels = running.listen('labels')
        send_both(running, running.camera(), frame(number))
        running.spin(lambda: bool(labels))  # noqa: B023
        assert running.change('deactivate', 'cleanup')
        assert running.state() == 'unconfigured'
        running.spin(lambda: not running.node.count_publishers('/dense_perception/labels'))
        assert running.change('configure', 'activate')
    assert running.state() == 'active'


def test_a_node_that_is_cleaned_up_lets_go_of_its_networks(bench, frame):
    def networks():
        return {id(thing) for thing in gc.get_objects() if type(thing) is FrontEndContext}

    gc.collect()
    others = networks()  # of tests before
    running = bench()
    labels = running.listen('labels')
    send_both(running, running.camera(), frame(0))
    running.spin(lambda: bool(labels))
    own = networks() - others
    assert own
    assert running.change('deactivate', 'cleanup')
    assert not own & networks()


def test_a_node_that_is_configured_anew_keeps_no_trace_of_what_it_listened_to(bench):
    running = bench()
    group = running.node.default_callback_group  # which forgets nothing
    traces = len(group.entities)
    assert running.change('deactivate', 'cleanup', 'configure', 'activate')
    assert len(group.entities) == traces


def test_a_transition_that_does_not_exist_from_here_is_refused(bench):
    running = bench('unconfigured')
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_ACTIVATE))
    assert not running.call(ChangeState, 'change_state', request).success
    assert running.state() == 'unconfigured'


def test_a_shut_down_node_says_so_and_stays(bench):
    running = bench()
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_ACTIVE_SHUTDOWN))
    assert running.call(ChangeState, 'change_state', request).success
    assert running.state() == 'finalized'


@pytest.mark.parametrize(
    ('weights', 'error'), [('absent.safetensors', 'no such file'), ('damaged', 'damaged')]
)
def test_unusable_weights_leave_the_node_unconfigured_until_they_are_set_right(
    bench, frame, tmp_path, weights, error
):
    path = tmp_path / weights
    if weights == 'damaged':
        path.write_bytes(find_weights('drive').read_bytes()[:100_000])
    running = bench('unconfigured', segmentation_weights=str(path))
    assert not running.change('configure')
    assert running.state() == 'unconfigured'
    status, values = running.next_diagnostics()
    assert status.level == status.ERROR
    assert status.message.startswith('cannot be configured: ')
    assert str(path) in status.message
    assert error in status.message
    assert running.set(segmentation_weights='drive').successful
    assert running.change('configure', 'activate')
    labels = running.listen('labels')
    send_both(running, running.camera(), frame())
    running.spin(lambda: bool(labels))
    status, _ = running.next_diagnostics()
    assert status.level == status.OK


def test_weights_of_the_wrong_kind_are_refused(bench):
    running = bench('unconfigured', flow_weights='drive')
    assert not running.change('configure')
    status, _ = running.next_diagnostics()
    assert 'is no flow network' in status.message


def test_a_node_with_both_networks_switched_off_is_refused(bench):
    running = bench('unconfigured', flow_weights='', segmentation_weights='')
    assert not running.change('configure')
    status, _ = running.next_diagnostics()
    assert 'both empty' in status.message


def test_a_wrong_qos_override_is_told_and_leaves_the_node_inactive(bench):
    running = bench('inactive', **{'qos_overrides./image.subscription.reliability': 'perhaps'})
    assert not running.change('activate')
    assert running.state() == 'inactive'
    status, _ = running.next_diagnostics()
    assert 'perhaps' in status.message


def test_an_override_of_the_quality_of_one_topic_leaves_the_others(bench):
    name = 'qos_overrides./dense_perception/labels.publisher.reliability'
    running = bench('inactive', **{name: 'best_effort'})
    quality = {
        output.topic_name.rpartition('/')[2]: output.qos_profile.reliability
        for output in running.node.publishers
    }
    assert quality['labels'] == ReliabilityPolicy.BEST_EFFORT
    assert quality['flow'] == quality['confidence'] == ReliabilityPolicy.RELIABLE


def test_results_are_offered_to_subscribers_of_the_default_quality(bench):
    running = bench('inactive')
    for output in running.node.publishers:
        if output.topic_name.startswith('/dense_perception/'):
            assert output.qos_profile.reliability == ReliabilityPolicy.RELIABLE
