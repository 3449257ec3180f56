import json
import math
from pathlib import Path
import sys

from builtin_interfaces.msg import Time
import cv2
from dense_perception.errors import InputError
from dense_perception.labels import CAMVID, CITYSCAPES
from dense_perception.ros import messages
from dense_perception.ros.messages import (
    color_message,
    compressed_to_array,
    flow_message,
    image_to_array,
    label_info_json,
    label_info_message,
    labels_message,
    message_to_flow,
    message_to_labels,
    scale_camera_info,
)
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, CompressedImage, RegionOfInterest
from sensor_msgs.msg import Image as ImageMessage
from std_msgs.msg import Header

pytestmark = pytest.mark.ros

HEADER = Header(stamp=Time(sec=12, nanosec=345), frame_id='camera')


def picture(height=6, width=8, channels=3, dtype=np.uint8):
    limit = np.iinfo(dtype).max + 1
    return np.random.default_rng(1).integers(0, limit, (height, width, channels)).astype(dtype)


def image_message(pixels, encoding, *, padding=0, bigendian=False):
    """A message with rows `padding` bytes longer than the pixels, filled with a marker value."""
    pixels = np.ascontiguousarray(pixels)
    if bigendian:
        pixels = pixels.byteswap()
    rows = pixels.reshape(pixels.shape[0], -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    message = ImageMessage(header=HEADER, encoding=encoding, is_bigendian=bigendian)
    message.height, message.width = pixels.shape[:2]
    message.step = rows.shape[1]
    message.data.frombytes(rows.tobytes())
    return message


def compressed_message(suffix, image, *options):
    data = cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image, options)[1]
    message = CompressedImage(header=HEADER, format=f'bgr8; {suffix[1:]} compressed bgr8')
    message.data.frombytes(data.tobytes())
    return message


def camera(**changes):
    info = CameraInfo(header=HEADER, width=640, height=480, distortion_model='plumb_bob')
    info.d = [0.1, -0.2, 0.001, 0.002, 0.0]
    info.k = [500.0, 0.0, 319.5, 0.0, 510.0, 239.5, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [500.0, 0.0, 319.5, -60.0, 0.0, 510.0, 239.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def test_rgb8_is_a_read_only_view_of_the_message():
    message = image_message(picture(), 'rgb8')
    image = image_to_array(message)
    message.data[0] ^= 0xFF
    assert image[0, 0, 0] == message.data[0]
    assert not image.flags.writeable


@pytest.mark.parametrize(
    ('encoding', 'order'),
    [
        ('rgb8', [0, 1, 2]),
        ('bgr8', [2, 1, 0]),
        ('rgba8', [0, 1, 2, 3]),
        ('bgra8', [2, 1, 0, 3]),
        ('8UC3', [2, 1, 0]),
        ('8UC4', [2, 1, 0, 3]),
    ],
)
@pytest.mark.parametrize('padding', [0, 1, 12])
def test_eight_bit_colours_come_out_as_rgb(encoding, order, padding):
    pixels = picture(channels=len(order))
    image = image_to_array(image_message(pixels[..., order], encoding, padding=padding))
    np.testing.assert_array_equal(image, pixels[..., :3])
    assert image.flags.c_contiguous


@pytest.mark.parametrize('encoding', ['mono8', '8UC1'])
@pytest.mark.parametrize('padding', [0, 3])
def test_grey_becomes_three_equal_channels(encoding, padding):
    pixels = picture(channels=1)
    image = image_to_array(image_message(pixels, encoding, padding=padding))
    np.testing.assert_array_equal(image, np.repeat(pixels, 3, axis=2))


@pytest.mark.parametrize('bigendian', [False, True])
@pytest.mark.parametrize('padding', [0, 3, 4])
@pytest.mark.parametrize(
    ('encoding', 'order'),
    [
        ('mono16', [0]),
        ('16UC1', [0]),
        ('rgb16', [0, 1, 2]),
        ('bgr16', [2, 1, 0]),
        ('rgba16', [0, 1, 2, 3]),
        ('bgra16', [2, 1, 0, 3]),
        ('16UC3', [2, 1, 0]),
        ('16UC4', [2, 1, 0, 3]),
    ],
)
def test_sixteen_bits_keep_their_upper_eight(encoding, order, padding, bigendian):
    pixels = picture(channels=len(order), dtype=np.uint16)
    message = image_message(pixels[..., order], encoding, padding=padding, bigendian=bigendian)
    wanted = (pixels >> 8).astype(np.uint8)[..., :3]
    np.testing.assert_array_equal(
        image_to_array(message), np.broadcast_to(wanted, (*wanted.shape[:2], 3))
    )


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize(
    ('pattern', 'sites'),
    [
        ('rggb', [[0, 1], [1, 2]]),
        ('bggr', [[2, 1], [1, 0]]),
        ('gbrg', [[1, 2], [0, 1]]),
        ('grbg', [[1, 0], [2, 1]]),
    ],
)
def test_bayer_patterns_give_back_a_uniform_colour(pattern, sites, depth):
    colour = np.array([200, 120, 40], np.uint16)
    mosaic = np.tile(colour[np.array(sites)], (4, 5))
    mosaic = mosaic.astype(np.uint8) if depth == 8 else mosaic << 8
    image = image_to_array(image_message(mosaic, f'bayer_{pattern}{depth}', padding=6))
    np.testing.assert_array_equal(image, np.broadcast_to(colour, (8, 10, 3)))


# ITU-R BT.601, video range: black is 16 and white 235, chroma 128 is no colour.
RED_YCBCR = (81, 90, 240)


@pytest.mark.parametrize(
    ('encoding', 'order'),
    [('yuv422', 'UYVY'), ('uyvy', 'UYVY'), ('yuv422_yuy2', 'YUYV'), ('yuyv', 'YUYV')],
)
def test_packed_yuv_red_is_red(encoding, order):
    value = dict(zip('YUV', RED_YCBCR, strict=True))
    pair = np.array([value[letter] for letter in order], np.uint8).reshape(1, 2, 2)
    image = image_to_array(image_message(np.tile(pair, (4, 3, 1)), encoding, padding=5))
    np.testing.assert_allclose(image, np.broadcast_to([255, 0, 0], (4, 6, 3)), atol=2)


@pytest.mark.parametrize(('encoding', 'order'), [('nv12', [1, 2]), ('nv21', [2, 1])])
def test_semi_planar_yuv_red_is_red(encoding, order):
    luma = np.full((4, 6), RED_YCBCR[0], np.uint8)
    chroma = np.tile(np.array(RED_YCBCR, np.uint8)[order], (2, 3))
    message = image_message(np.vstack([luma, chroma]), encoding, padding=2)
    message.height = 4
    image = image_to_array(message)
    np.testing.assert_allclose(image, np.broadcast_to([255, 0, 0], (4, 6, 3)), atol=2)


# rosbags-image gives untyped images no colours and misshapes nv12 and nv21.
@pytest.mark.parametrize(
    'encoding',
    [name for name in messages.ENCODINGS if 'UC' not in name and not name.startswith('nv')],
)
def test_unpadded_images_equal_those_of_rosbags_image(encoding):
    peer = pytest.importorskip('rosbags.image')
    description = messages.ENCODINGS[encoding]
    dtype = np.uint8 if description.depth == 1 else np.uint16
    message = image_message(picture(channels=description.channels, dtype=dtype), encoding)
    grey = description.conversion == cv2.COLOR_GRAY2RGB
    theirs = peer.image_to_cvimage(_as_numpy(message), 'mono8' if grey else 'rgb8')
    if grey:
        theirs = np.repeat(theirs[..., None], 3, axis=2)
    # 16 bits are rescaled by 255 / 65535 there; interpolated before or after being cut to 8 bits.
    tolerance = 0 if description.depth == 1 else 1
    np.testing.assert_allclose(
        image_to_array(message).astype(int), theirs.astype(int), atol=tolerance
    )


def _as_numpy(message):
    """The same message with data as rosbags deserialises it."""

    class Message:
        height, width, step = message.height, message.width, message.step
        encoding, is_bigendian = message.encoding, message.is_bigendian
        data = np.frombuffer(message.data, np.uint8)

    return Message


@pytest.mark.parametrize(
    'encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'bayer_rggb8', 'bayer_grbg8', 'yuv422']
)
def test_unpadded_images_equal_those_of_cv_bridge(encoding):
    bridge = pytest.importorskip('cv_bridge', reason='cv_bridge comes with ROS 2 from apt')
    message = image_message(picture(channels=messages.ENCODINGS[encoding].channels), encoding)
    theirs = bridge.CvBridge().imgmsg_to_cv2(message, 'rgb8')
    np.testing.assert_array_equal(image_to_array(message), theirs)


def test_an_unknown_encoding_is_named_with_those_that_are_known():
    with pytest.raises(InputError, match="'32FC1'.*rgb8"):
        image_to_array(image_message(picture(), '32FC1'))


@pytest.mark.parametrize(('width', 'height'), [(0, 6), (8, 0)])
def test_an_empty_image_is_refused(width, height):
    message = image_message(picture(), 'rgb8')
    message.width, message.height = width, height
    with pytest.raises(InputError, match=f'{width} x {height}'):
        image_to_array(message)


def test_a_step_shorter_than_a_row_is_refused_with_the_right_one():
    message = image_message(picture(), 'rgb8')
    message.step = 23
    with pytest.raises(InputError, match='step 23; it must be 24'):
        image_to_array(message)


def test_data_one_byte_short_is_refused_with_the_right_length():
    message = image_message(picture(), 'bgr8')
    message.data.pop()
    with pytest.raises(InputError, match='143 bytes of data; it must have 144'):
        image_to_array(message)


def test_data_beyond_the_last_row_is_ignored():
    pixels = picture()
    message = image_message(pixels, 'rgb8')
    message.data.frombytes(b'more')
    np.testing.assert_array_equal(image_to_array(message), pixels)


def test_an_absurd_size_is_refused_before_memory_is_asked_for():
    message = image_message(picture(), 'mono8')
    message.width = message.height = message.step = 2**32 - 1
    with pytest.raises(InputError, match='at most 67108864 pixels'):
        image_to_array(message)


@pytest.mark.parametrize('encoding', ['yuv422', 'yuyv', 'nv12'])
def test_an_odd_width_of_paired_colours_is_refused(encoding):
    with pytest.raises(InputError, match='7 x 6.*even'):
        image_to_array(image_message(picture(width=7), encoding))


def test_any_sizes_give_an_image_or_an_input_error():
    hypothesis = pytest.importorskip('hypothesis')
    sizes = hypothesis.strategies.integers(0, 12) | hypothesis.strategies.integers(0, 2**32 - 1)

    @hypothesis.settings(max_examples=300, deadline=None)
    @hypothesis.given(
        sizes,
        sizes,
        sizes,
        hypothesis.strategies.sampled_from(sorted(messages.ENCODINGS)),
        hypothesis.strategies.booleans(),
        hypothesis.strategies.binary(max_size=500),
    )
    def check(width, height, step, encoding, bigendian, data):
        message = ImageMessage(width=width, height=height, step=step, encoding=encoding)
        message.is_bigendian = bigendian
        message.data.frombytes(data)
        try:
            image = image_to_array(message)
        except InputError:
            return
        assert image.shape == (height, width, 3)

    check()


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
def test_compressed_images_come_out_as_rgb(suffix):
    image = np.zeros((16, 24, 3), np.uint8)
    image[..., 0] = 250
    decoded = compressed_to_array(compressed_message(suffix, image))
    np.testing.assert_allclose(decoded.astype(int), image, atol=3)


def test_a_compressed_grey_image_becomes_rgb():
    grey = picture(channels=1)[..., 0]
    decoded = compressed_to_array(compressed_message('.png', grey))
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))


def test_a_progressive_jpeg_is_decoded():
    image = np.full((16, 24, 3), 99, np.uint8)
    message = compressed_message('.jpg', image, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    np.testing.assert_allclose(compressed_to_array(message).astype(int), image, atol=2)


@pytest.mark.parametrize('suffix', ['.png', '.jpg'])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.99])
def test_a_compressed_image_cut_short_is_refused(suffix, share):
    message = compressed_message(suffix, picture(64, 64))
    message.data = message.data[: int(len(message.data) * share)]
    with pytest.raises(InputError, match='compressed image'):
        compressed_to_array(message)


def test_a_damaged_png_is_refused():
    message = compressed_message('.png', picture(64, 64))
    for place in range(60, 400):
        message.data[place] ^= 0xFF
    with pytest.raises(InputError, match='damaged'):
        compressed_to_array(message)


@pytest.mark.parametrize('data', [b'', b'\xff\xd8', b'\x89PNG\r\n\x1a\n', b'RIFF1234WEBP', b'x'])
def test_data_that_is_no_picture_is_refused(data):
    message = CompressedImage(format='jpeg')
    message.data.frombytes(data)
    with pytest.raises(InputError, match="'jpeg'"):
        compressed_to_array(message)


@pytest.mark.parametrize(('suffix', 'place'), [('.png', 16), ('.jpg', None)])
def test_a_compressed_image_of_absurd_size_is_refused_before_decoding(suffix, place):
    message = compressed_message(suffix, picture(16, 16))
    if place is None:  # height and width stand five bytes behind the start of frame
        place = bytes(message.data).index(b'\xff\xc0') + 5
        message.data[place : place + 4] = type(message.data)('B', b'\xff\xff\xff\xff')
    else:
        message.data[place : place + 8] = type(message.data)('B', b'\0\1\0\0\0\1\0\0')
    with pytest.raises(InputError, match=r'6553[56] x 6553[56]; at most'):
        compressed_to_array(message)


# A marker without a length, and a comment in which a length read there finds a frame of 8 x 8.
FRAME = b'\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00'
MISLEADING = b'\xff\xd0\x00\x06\xff\xfe\x00\x0f' + FRAME


@pytest.mark.parametrize('inserted', [MISLEADING, FRAME, b'\xff\xd9', bytes(2)])
def test_a_compressed_image_whose_size_can_be_read_in_two_ways_is_refused(inserted):
    message = compressed_message('.jpg', picture(480, 640))
    assert compressed_to_array(message).shape == (480, 640, 3)
    message.data[2:2] = type(message.data)('B', inserted)
    with pytest.raises(InputError, match=r"'bgr8; jpg .*JPEG picture of \d+ bytes is cut short"):
        compressed_to_array(message)


def test_labels_go_to_a_message_and_back():
    labels = picture(channels=1)[..., 0]
    message = labels_message(labels, HEADER)
    assert (message.encoding, message.width, message.height, message.step) == ('mono8', 8, 6, 8)
    np.testing.assert_array_equal(message_to_labels(message), labels)


def test_padded_labels_are_read():
    labels = picture(channels=1)
    message = image_message(labels, 'mono8', padding=3)
    np.testing.assert_array_equal(message_to_labels(message), labels[..., 0])


def test_colours_go_to_a_message_and_back():
    image = picture()
    message = color_message(image, HEADER)
    assert (message.encoding, message.width, message.height, message.step) == ('rgb8', 8, 6, 24)
    np.testing.assert_array_equal(image_to_array(message), image)


def test_flow_goes_to_a_message_and_back():
    flow = np.random.default_rng(1).normal(size=(6, 8, 2)).astype(np.float32)
    message = flow_message(flow, HEADER)
    assert (message.encoding, message.width, message.height, message.step) == ('32FC2', 8, 6, 64)
    assert message.is_bigendian == (sys.byteorder == 'big')
    np.testing.assert_array_equal(message_to_flow(message), flow)


@pytest.mark.parametrize('padding', [0, 3])
def test_flow_of_the_other_byte_order_is_read(padding):
    flow = np.random.default_rng(1).normal(size=(6, 8, 2)).astype(np.float32)
    message = image_message(flow, '32FC2', padding=padding, bigendian=True)
    back = message_to_flow(message)
    np.testing.assert_array_equal(back, flow)
    assert back.dtype.isnative


def test_strided_arrays_are_written_by_rows():
    image = picture(12, 16)[::2, ::2]
    np.testing.assert_array_equal(image_to_array(color_message(image, HEADER)), image)


def test_outputs_carry_the_header_over():
    message = labels_message(np.zeros((2, 2), np.uint8), HEADER)
    assert message.header == HEADER


@pytest.mark.parametrize('encoding', ['rgb8', '32FC2'])
def test_labels_of_another_encoding_are_refused(encoding):
    with pytest.raises(InputError, match=f"'{encoding}'; it must be mono8"):
        message_to_labels(image_message(picture(), encoding))


def test_flow_of_another_encoding_is_refused():
    with pytest.raises(InputError, match="'mono8'; it must be 32FC2"):
        message_to_flow(image_message(picture(), 'mono8'))


@pytest.mark.parametrize(
    ('make', 'pixels'),
    [
        (labels_message, np.zeros((4, 4), np.int64)),
        (labels_message, np.zeros((4, 4, 3), np.uint8)),
        (color_message, np.zeros((4, 4), np.uint8)),
        (flow_message, np.zeros((4, 4, 2), np.float64)),
        (flow_message, np.zeros((0, 4, 2), np.float32)),
    ],
)
def test_arrays_of_another_form_make_no_message(make, pixels):
    with pytest.raises(InputError, match='message from'):
        make(pixels, HEADER)


def test_camera_info_of_half_size_projects_points_to_half_the_place():
    info, half = camera(), scale_camera_info(camera(), 320, 240)
    point = np.array([0.3, -0.2, 2.0, 1.0])
    full_x, full_y, depth = np.reshape(info.p, (3, 4)) @ point
    half_x, half_y, _ = np.reshape(half.p, (3, 4)) @ point
    # The corner of the image is at -0.5; distances from it halve.
    assert (half_x / depth + 0.5) == pytest.approx((full_x / depth + 0.5) / 2)
    assert (half_y / depth + 0.5) == pytest.approx((full_y / depth + 0.5) / 2)
    assert half.k.tolist() == [250.0, 0.0, 159.5, 0.0, 255.0, 119.5, 0.0, 0.0, 1.0]
    assert (half.width, half.height, half.header) == (320, 240, HEADER)


def test_camera_info_keeps_distortion_and_baseline():
    info, half = camera(), scale_camera_info(camera(), 320, 240)
    assert (half.d, half.distortion_model) == (info.d, 'plumb_bob')
    assert half.p[3] / half.p[0] == pytest.approx(info.p[3] / info.p[0])


def test_camera_info_at_its_own_size_stays_as_it_is():
    assert scale_camera_info(camera(), 640, 480) == camera()


def test_camera_info_folds_region_and_binning_in():
    roi = RegionOfInterest(x_offset=100, y_offset=50, width=400, height=200, do_rectify=True)
    info = scale_camera_info(camera(roi=roi, binning_x=2, binning_y=2), 200, 100)
    assert info.k[0] == 250.0
    assert info.k[2] == (319.5 + 0.5 - 100) / 2 - 0.5
    assert info.k[5] == (239.5 + 0.5 - 50) / 2 - 0.5
    assert (info.roi, info.binning_x) == (RegionOfInterest(do_rectify=True), 0)


def test_camera_info_keeps_a_projection_of_zeros():
    assert not scale_camera_info(camera(p=[0.0] * 12), 320, 240).p.any()


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'width': 0}, '0 x 480'),
        ({'k': [math.nan] * 9}, 'k is .*finite'),
        ({'d': [math.inf]}, 'd is .*finite'),
        ({'p': [math.nan] * 12}, 'p is .*finite'),
        ({'k': [0.0] * 9}, 'calibrated'),
    ],
)
def test_camera_info_that_describes_no_camera_is_refused(changes, match):
    with pytest.raises(InputError, match=match):
        scale_camera_info(camera(**changes), 320, 240)


def test_camera_info_for_an_empty_image_is_refused():
    with pytest.raises(InputError, match='0 x 240'):
        scale_camera_info(camera(), 0, 240)


def test_label_info_json_names_every_class_with_its_colour():
    content = json.loads(label_info_json(CITYSCAPES))
    assert (content['schema'], content['name'], content['ignored']) == (1, 'cityscapes', 255)
    assert content['classes'][13] == {'id': 13, 'name': 'car', 'color': [0, 0, 142]}


def test_label_info_message_names_every_class_where_vision_msgs_exists():
    pytest.importorskip('vision_msgs', reason='vision_msgs comes with ROS 2 from apt')
    message = label_info_message(CAMVID, HEADER)
    assert [entry.class_name for entry in message.class_map] == list(CAMVID.names)


def test_messages_need_no_rclpy():
    assert 'rclpy' not in Path(messages.__file__).read_text(encoding='utf-8')
