"""Labels and flow as PNG pictures on their topics."""

import cv2
from dense_perception.data.flow_files import read_kitti_flow
from dense_perception.errors import InputError
from dense_perception.predictors.compression import scaled_flow
from dense_perception.ros import compressed
from dense_perception.ros.compressed import (
    compressed_flow_message,
    compressed_labels_message,
    compressed_to_flow,
    compressed_to_labels,
)
from dense_perception.ros.messages import message_to_flow, message_to_labels
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

pytestmark = pytest.mark.ros

HEADER = Header(frame_id='front')


def send(running, camera, *messages):
    for message in messages:
        processed = running.statistics().processed
        camera.publish(message)
        running.spin(lambda: running.statistics().processed > processed)  # noqa: B023


# Messages.


@pytest.mark.parametrize('size', [(1, 1), (3, 7), (48, 64)])
def test_labels_come_back_exactly(size):
    labels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    message = compressed_labels_message(labels, HEADER)
    assert message.header == HEADER
    np.testing.assert_array_equal(compressed_to_labels(message), labels)


def test_the_format_of_labels_is_that_of_image_transport():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    message = compressed_labels_message(labels, HEADER)
    # compressed_image_transport takes the encoding before the semicolon and lets OpenCV decode.
    encoding, _, rest = message.format.partition(';')
    assert (encoding, rest.strip()) == ('mono8', 'png compressed')
    pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(pixels, labels)


def test_flow_in_steps_of_a_64th_comes_back_exactly():
    numbers = np.random.default_rng(0).integers(-32768, 32768, (5, 6, 2))
    flow = (numbers / 64).astype(np.float32)
    message = compressed_flow_message(flow, HEADER)
    assert message.header == HEADER
    returned, known = compressed_to_flow(message)
    assert known.all()
    np.testing.assert_array_equal(returned, flow)


def test_flow_that_is_not_finite_or_does_not_fit_comes_back_as_unknown():
    flow = np.array([[[1, 2], [np.nan, 0], [512, 0], [-513, 0]]], np.float32)
    returned, known = compressed_to_flow(compressed_flow_message(flow, HEADER))
    np.testing.assert_array_equal(known, [[True, False, False, False]])
    np.testing.assert_array_equal(returned[0, 0], [1, 2])


def test_the_picture_of_flow_is_a_kitti_file_and_its_format_says_so(tmp_path):
    flow = np.array([[[1.5, -2.0], [0.25, 511.0]]], np.float32)
    message = compressed_flow_message(flow, HEADER)
    path = tmp_path / 'flow.png'
    path.write_bytes(bytes(message.data))
    returned, _ = read_kitti_flow(path)
    np.testing.assert_array_equal(returned, flow)
    assert message.format == 'bgr16; png compressed bgr16; kitti flow'
    pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    # Blue, green, red: known, v * 64 + 2^15, u * 64 + 2^15.
    assert pixels[0, 0].tolist() == [1, 32768 - 128, 32768 + 96]


@pytest.mark.parametrize(
    ('read', 'error'),
    [(compressed_to_labels, "labels 'jpeg': 3 bytes"), (compressed_to_flow, "flow 'jpeg': 3 byt")],
)
def test_what_is_no_such_picture_is_refused_with_its_format(read, error):
    with pytest.raises(InputError, match=error):
        read(CompressedImage(format='jpeg', data=b'abc'))


# Topics.


def test_compressed_labels_are_those_of_the_plain_topic(bench, frame):
    running = bench(flow_weights='')
    plain = running.listen('labels')
    packed = running.listen('labels/compressed', CompressedImage)
    send(running, running.camera(), frame())
    running.spin(lambda: plain and packed)
    assert packed[0].header == plain[0].header
    np.testing.assert_array_equal(compressed_to_labels(packed[0]), message_to_labels(plain[0]))


def test_compressed_flow_is_that_of_the_plain_topic_to_a_128th_of_a_pixel(bench, frame):
    running = bench(segmentation_weights='')
    plain = running.listen('flow')
    packed = running.listen('flow/compressed', CompressedImage)
    send(running, running.camera(), frame(0), frame(1))
    running.spin(lambda: plain and packed)
    assert packed[0].header == plain[0].header
    expected = np.rint(message_to_flow(plain[0]) * 64) / 64
    np.testing.assert_array_equal(compressed_to_flow(packed[0])[0], expected)


def test_nothing_is_compressed_that_nobody_subscribes_to(bench, frame, monkeypatch):
    def never(*arguments):
        raise AssertionError('compressed')

    monkeypatch.setattr(compressed, 'encode_labels', never)
    monkeypatch.setattr(compressed, 'encode_flow', never)
    running = bench()
    labels, flow = running.listen('labels'), running.listen('flow')
    camera = running.camera()
    send(running, camera, frame(0), frame(1))
    running.spin(lambda: labels and flow)
    assert running.statistics().bad == 0
    packed = running.listen('labels/compressed', CompressedImage)
    camera.publish(frame(2))
    running.spin(lambda: running.statistics().bad == 1)
    assert not packed


# Flow at a reduced scale.


def test_flow_of_a_reduced_scale_is_in_pixels_of_its_own_size(bench, frame):
    running = bench(segmentation_weights='')
    heard = running.listen('flow')
    packed = running.listen('flow/compressed', CompressedImage)
    color = running.listen('flow_color')
    camera = running.camera()
    send(running, camera, frame(0), frame(1))
    running.spin(lambda: heard and packed and color)
    full = message_to_flow(heard[0])
    for messages in (heard, packed, color):
        messages.clear()
    assert running.set(flow_output_scale=0.25).successful
    again = [frame(0, stamp_ns=2 * 10**12), frame(1, stamp_ns=2 * 10**12 + 10**8)]
    send(running, camera, *again)
    running.spin(lambda: heard and packed and color)
    small = message_to_flow(heard[0])
    assert small.shape == (12, 16, 2)
    np.testing.assert_array_equal(small, scaled_flow(full, 0.25))
    np.testing.assert_array_equal(compressed_to_flow(packed[0])[0], np.rint(small * 64) / 64)
    assert (color[0].height, color[0].width) == (48, 64)
