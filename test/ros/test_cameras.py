"""Several cameras in one node."""

import json
from threading import Event

import cv2
from dense_perception.labels import CITYSCAPES
from dense_perception.networks import NETWORKS, SEGMENTATION_NETWORKS
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.ros.messages import image_to_array, message_to_flow, message_to_labels
from dense_perception.weights.checkpoint import Card, Preprocessing, save_weights
from dense_perception.weights.published import find_weights
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
import torch

pytestmark = pytest.mark.ros

FRONT_LEFT = {'cameras': ['front', 'left']}


def named(message, frame_id):
    message.header.frame_id = frame_id
    return message


def send(running, name, publisher, message):
    """Publish an image of a camera and wait until it has been served."""
    processed = running.statistics(name).processed
    publisher.publish(message)
    running.spin(lambda: running.statistics(name).processed > processed)


def cameras(running, *names):
    return [running.camera(topic=f'/{name}/image') for name in names]


def listeners(running, output, kind=Image, **options):
    return [running.listen(f'{name}/{output}', kind, **options) for name in ('front', 'left')]


# Each has its own topics.


def test_each_camera_is_labelled_with_its_own_header_and_size(bench, frame):
    running = bench(**FRONT_LEFT, flow_weights='')
    heard = listeners(running, 'labels')
    sent = [named(frame(1), 'bumper'), named(frame(2, size=(40, 80)), 'mirror')]
    for name, camera, message in zip(
        ('front', 'left'), cameras(running, 'front', 'left'), sent, strict=True
    ):
        send(running, name, camera, message)
    running.spin(lambda: all(heard))
    segmenter = Segmenter.from_file(
        find_weights('drive'), device='cpu', precision='float32', width=64
    )
    for (labels,), message in zip(heard, sent, strict=True):
        assert labels.header == message.header
        expected = segmenter.segment(image_to_array(message)).labels
        np.testing.assert_array_equal(message_to_labels(labels), expected)


def test_with_named_cameras_there_are_no_topics_without_a_name(bench):
    running = bench(**FRONT_LEFT)
    for output in ('labels', 'flow', 'label_info', 'camera_info'):
        assert running.node.count_publishers(f'/dense_perception/{output}') == 0
        assert running.node.count_publishers(f'/dense_perception/front/{output}') == 1
    assert running.node.count_subscribers('/image') == 0


def test_class_names_wait_for_late_subscribers_of_every_camera(bench):
    running = bench(**FRONT_LEFT, flow_weights='')
    heard = listeners(running, 'label_info', String, latched=True)
    running.spin(lambda: all(heard))
    for (message,) in heard:
        names = [entry['name'] for entry in json.loads(message.data)['classes']]
        assert names == list(CITYSCAPES.names)


def test_each_camera_has_its_own_calibration(bench, frame):
    running = bench(**FRONT_LEFT, flow_weights='')
    heard = listeners(running, 'camera_info', CameraInfo)
    images = cameras(running, 'front', 'left')
    for name, focal_length in (('front', 50.0), ('left', 80.0)):
        k = [focal_length, 0, 31.5, 0, focal_length, 23.5, 0, 0, 1]
        info = running.camera(CameraInfo, f'/{name}/camera_info')

        def known(name=name, info=info, k=k):
            info.publish(CameraInfo(width=64, height=48, k=k))
            (camera,) = [camera for camera in running.node.cameras if camera.name == name]
            return camera.info is not None

        running.spin(known)
    for name, image in zip(('front', 'left'), images, strict=True):
        send(running, name, image, frame())
    running.spin(lambda: all(heard))
    assert [messages[0].k[0] for messages in heard] == [50.0, 80.0]


def test_compressed_images_of_every_camera_are_read(bench, frame):
    running = bench(**FRONT_LEFT, flow_weights='', image_transport='compressed')
    (_, labels) = listeners(running, 'labels')
    raw = frame(3)
    _, data = cv2.imencode('.png', image_to_array(raw)[:, :, ::-1])
    message = CompressedImage(header=raw.header, format='png', data=data.tobytes())
    running.camera(CompressedImage, '/left/image/compressed').publish(message)
    running.spin(lambda: bool(labels))
    assert labels[0].header == raw.header


# Flow is each camera's own.


def test_flow_never_mixes_cameras(bench, frame):
    running = bench(**FRONT_LEFT, segmentation_weights='')
    heard = listeners(running, 'flow')
    publishers = cameras(running, 'front', 'left')
    sent = {name: [] for name in ('front', 'left')}
    for number in range(4):  # front, left, front, left; all of one size and in order of time
        name = ('front', 'left')[number % 2]
        sent[name].append(frame(number))
        send(running, name, publishers[number % 2], sent[name][-1])
    running.spin(lambda: all(heard))
    estimator = FlowEstimator.from_file(
        find_weights('flow'), device='cpu', precision='float32', width=64
    )
    for (flow,), pair in zip(heard, sent.values(), strict=True):
        expected = estimator.estimate(*map(image_to_array, pair))
        np.testing.assert_array_equal(message_to_flow(flow), expected)
        assert flow.header == pair[1].header


def test_another_size_of_one_camera_begins_the_flow_of_that_one_anew_alone(bench, frame):
    running = bench(**FRONT_LEFT, segmentation_weights='')
    front_flow, left_flow = listeners(running, 'flow')
    front, left = cameras(running, 'front', 'left')
    send(running, 'front', front, frame(0))
    send(running, 'left', left, frame(0))
    send(running, 'front', front, frame(1, size=(50, 64)))
    send(running, 'left', left, frame(1))
    running.spin(lambda: bool(left_flow))
    assert not front_flow
    _, values = running.diagnostics(lambda _, values: values['images processed'] == '2', 'front')
    assert values['flow restarts'] == '2'
    _, values = running.diagnostics(lambda _, values: values['images processed'] == '2', 'left')
    assert values['flow restarts'] == '1'


# What is wrong with one is told of that one.


def test_a_silent_camera_is_told_and_the_other_goes_on(bench, frame):
    running = bench(**FRONT_LEFT, flow_weights='', silence_warning_s=1.0)
    labels, _ = listeners(running, 'labels')
    (front,) = cameras(running, 'front')
    running.peer.create_timer(0.05, lambda: front.publish(frame(1)))
    status, _ = running.diagnostics(lambda status, _: status.level == status.WARN, 'left')
    assert status.message == 'nobody publishes /left/image'
    running.diagnostics(lambda status, _: status.level == status.OK, 'front')
    labels.clear()
    running.spin(lambda: bool(labels))


def test_a_bad_image_is_told_of_its_camera_alone(bench, frame):
    running = bench(**FRONT_LEFT, flow_weights='')
    labels, _ = listeners(running, 'labels')
    front, left = cameras(running, 'front', 'left')
    bad = frame(0)
    bad.encoding = 'rgb565'
    left.publish(bad)
    status, values = running.diagnostics(lambda _, values: values['bad images'] == '1', 'left')
    assert status.level == status.WARN
    assert "image encoding is 'rgb565'" in status.message
    send(running, 'front', front, frame(1))
    running.spin(lambda: bool(labels))
    status, values = running.diagnostics(
        lambda _, values: values['images processed'] == '1', 'front'
    )
    assert status.level == status.OK
    assert (values['bad images'], values['last error']) == ('0', '')


# One thread serves them all.


class Gate(torch.nn.Module):
    """A network that scores 19 classes by three numbers once a test lets it."""

    passes: list[int] = []  # images in each pass so far
    opened = Event()
    refused = 0  # a pass of more images than this raises; 0: none does

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.score = torch.nn.Conv2d(3, classes, 8, stride=8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Gate.passes.append(len(images))
        assert Gate.opened.wait(20)
        if 0 < Gate.refused < len(images):
            raise torch.OutOfMemoryError('CUDA out of memory')
        return self.score(images)


@pytest.fixture
def gated(bench, monkeypatch, tmp_path):
    """An active node of two cameras whose network waits for `Gate.opened`."""
    monkeypatch.setitem(NETWORKS, 'gate', Gate)
    monkeypatch.setitem(SEGMENTATION_NETWORKS, 'gate', Gate)
    path = tmp_path / 'gate.safetensors'
    card = Card('gate', {'classes': len(CITYSCAPES)}, Preprocessing(), CITYSCAPES.name)
    save_weights(path, card.build(), card)
    Gate.opened.set()
    running = bench(**FRONT_LEFT, flow_weights='', segmentation_weights=str(path))
    Gate.opened.clear()
    Gate.passes.clear()
    Gate.refused = 0
    yield running
    Gate.opened.set()


def wait_behind_the_gate(running, front, left, frame):
    """Let an image occupy the network while twenty of one camera and one of the other come."""
    front.publish(frame(0))
    running.spin(lambda: Gate.passes == [1])
    for number in range(1, 21):
        front.publish(frame(number))
        running.spin(lambda: running.statistics('front').received == 1 + number)  # noqa: B023
    left.publish(frame(0))
    running.spin(lambda: running.statistics('left').received == 1)


def test_images_that_wait_together_are_labelled_in_one_pass_and_none_waits_for_the_faster(
    gated, frame
):
    heard = listeners(gated, 'labels')
    front, left = cameras(gated, 'front', 'left')
    wait_behind_the_gate(gated, front, left, frame)
    Gate.opened.set()
    gated.spin(lambda: len(heard[0]) == 2 and len(heard[1]) == 1)
    assert Gate.passes == [1, 2]
    assert heard[0][1].header == frame(20).header
    assert heard[1][0].header == frame(0).header
    assert (gated.statistics('front').dropped, gated.statistics('left').dropped) == (19, 0)


def test_a_camera_at_100_hz_leaves_another_its_turn(bench, frame):
    running = bench(**FRONT_LEFT, flow_weights='')
    fast, slow = listeners(running, 'labels')
    front, left = cameras(running, 'front', 'left')
    running.peer.create_timer(0.01, lambda: front.publish(frame(0)))
    running.spin(lambda: bool(fast))
    for number in range(5):
        send(running, 'left', left, frame(number))
    running.spin(lambda: len(slow) == 5)
    fast.clear()
    running.spin(lambda: bool(fast))
    assert running.statistics('left').dropped == 0


def test_where_images_cannot_be_labelled_together_each_is_labelled_alone(gated, frame):
    heard = listeners(gated, 'labels')
    front, left = cameras(gated, 'front', 'left')
    wait_behind_the_gate(gated, front, left, frame)
    Gate.refused = 1
    Gate.opened.set()
    gated.spin(lambda: len(heard[0]) == 2 and len(heard[1]) == 1)
    assert Gate.passes == [1, 2, 1, 1]
    for name in ('front', 'left'):
        assert gated.statistics(name).bad == 0
        assert 'CUDA out of memory' in gated.statistics(name).last_error


def test_images_of_several_sizes_are_labelled_in_one_round(gated, frame):
    heard = listeners(gated, 'labels')
    front, left = cameras(gated, 'front', 'left')
    front.publish(frame(0))
    gated.spin(lambda: Gate.passes == [1])
    front.publish(frame(1))
    left.publish(frame(1, size=(30, 40)))
    gated.spin(
        lambda: gated.statistics('front').received == 2 and gated.statistics('left').received == 1
    )
    Gate.opened.set()
    gated.spin(lambda: len(heard[0]) == 2 and len(heard[1]) == 1)
    assert (heard[1][0].height, heard[1][0].width) == (30, 40)
    assert Gate.passes == [1, 1, 1]


def test_a_camera_that_nobody_wants_anything_of_is_not_labelled(gated, frame):
    labels = gated.listen('front/labels')
    Gate.opened.set()
    front, left = cameras(gated, 'front', 'left')
    left.publish(frame(0))
    gated.spin(lambda: gated.statistics('left').received == 1)
    front.publish(frame(0))
    gated.spin(lambda: bool(labels))
    assert Gate.passes == [1]
    assert gated.statistics('left').processed == 0


# Names.


@pytest.mark.parametrize(
    ('names', 'complaint'),
    [
        (['front', '2nd'], "cameras has '2nd'; a name must begin with a letter"),
        (['front', 'left/top'], "cameras has 'left/top'; a name must begin with a letter"),
        (['front', 'front'], "cameras has 'front' twice; names must differ"),
        ([f'c{number}' for number in range(17)], 'cameras has 17 names; it may have 16'),
    ],
)
def test_names_that_cannot_be_topics_leave_the_node_unconfigured_until_they_are_set_right(
    bench, names, complaint
):
    running = bench('unconfigured', cameras=names)
    assert not running.change('configure')
    status, _ = running.next_diagnostics()
    assert status.level == status.ERROR
    assert complaint in status.message
    result = running.set(cameras=names)
    assert not result.successful
    assert complaint in result.reason
    assert running.set(cameras=['front']).successful
    assert running.change('configure')
    assert running.node.count_publishers('/dense_perception/front/labels') == 1


def test_other_cameras_are_taken_after_a_clean_up(bench, frame):
    running = bench(**FRONT_LEFT, flow_weights='')
    assert not running.set(cameras=['left', 'rear']).successful
    assert running.change('deactivate', 'cleanup')
    assert running.set(cameras=['left', 'rear']).successful
    assert running.change('configure', 'activate')
    labels = running.listen('rear/labels')
    send(running, 'rear', *cameras(running, 'rear'), frame())
    running.spin(lambda: bool(labels))
    assert [camera.name for camera in running.node.cameras] == ['left', 'rear']


@pytest.mark.parametrize('none', [[''], None], ids=['an empty name', '[] of a file'])
def test_no_names_stand_for_one_camera_without_a_name(bench, none):
    running = bench('inactive', cameras=none)
    assert running.node.count_publishers('/dense_perception/labels') == 1
    assert running.node.get_parameter('cameras').value == ['']
