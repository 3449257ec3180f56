"""Whatever a message holds, what is made of it is finite, or an error of this package."""

import json
import math

from builtin_interfaces.msg import Time
import cv2
from dense_perception.data.picture_files import MAX_PIXELS
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Camera
from dense_perception.geometry.ego_motion import rotation_from_rate
from dense_perception.labels import UNLABELLED
from dense_perception.ros.camera import continues, Previous
from dense_perception.ros.consumed import read_label_info
from dense_perception.ros.consuming import nanoseconds
from dense_perception.ros.messages import scale_camera_info, to_array
from dense_perception.ros.turn_rates import TurnRates
from dense_perception.settings import PerceptionSettings
from hypothesis import example, given, HealthCheck, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, CompressedImage, Imu, RegionOfInterest
from sensor_msgs.msg import Image as ImageMessage

pytestmark = pytest.mark.ros

checked = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ABSURD = st.sampled_from((0.0, -1.0, 1e163, 1e308, 5e-324, math.nan, math.inf, -math.inf))
NUMBERS = st.floats(-2000, 2000) | ABSURD | st.floats()
SIZES = st.integers(0, 64) | st.integers(0, 2**32 - 1)
STAMPS = st.builds(
    Time,
    sec=st.integers(-1, 3) | st.integers(-(2**31), 2**31 - 1),
    nanosec=st.integers(0, 10**9 - 1) | st.integers(0, 2**32 - 1),
)


def matrix(focal_x=50.0, centre_x=31.5, centre_y=23.5, focal_y=50.0):
    return [focal_x, 0.0, centre_x, 0.0, focal_y, centre_y, 0.0, 0.0, 1.0]


def projection(k, *, baseline=0.0):
    return [*k[:3], baseline, *k[3:6], 0.0, *k[6:], 0.0]


def numbers(count):
    return st.lists(NUMBERS, min_size=count, max_size=count)


# Half of them like those of a camera, or nothing would be reached beyond the first check.
LIKELY = st.builds(matrix, *[st.floats(1, 5000) | NUMBERS] * 4)
REGIONS = st.builds(RegionOfInterest, x_offset=SIZES, y_offset=SIZES, width=SIZES, height=SIZES)
CAMERAS = st.builds(
    CameraInfo,
    width=SIZES,
    height=SIZES,
    distortion_model=st.sampled_from(('', 'plumb_bob', 'rational_polynomial')) | st.text(),
    d=st.just([]) | st.lists(st.floats(-1, 1) | NUMBERS, min_size=5, max_size=5) | numbers(8),
    k=LIKELY | numbers(9),
    r=st.sampled_from((np.eye(3).ravel(), np.zeros(9))) | numbers(9),
    p=st.just([0.0] * 12) | LIKELY.map(projection) | numbers(12),
    binning_x=SIZES,
    binning_y=SIZES,
    roi=st.just(RegionOfInterest()) | REGIONS,
)


@checked
@given(CAMERAS, SIZES, SIZES)
@example(CameraInfo(width=1, height=1, k=matrix(1e308)), 9, 9)
@example(CameraInfo(width=1, height=1, k=matrix(), p=projection(matrix(), baseline=1e308)), 9, 9)
def test_a_scaled_camera_info_is_finite_or_refused(info, width, height):
    try:
        scaled = scale_camera_info(info, width, height)
    except InputError:
        return
    assert (scaled.width, scaled.height) == (width, height)
    for name in 'dkrp':
        assert np.isfinite(getattr(scaled, name)).all(), name


@checked
@given(CAMERAS)
@example(CameraInfo(width=4, height=4, k=matrix(1e-320)))
@example(CameraInfo(width=4, height=4, k=matrix(centre_x=1e308)))
@example(CameraInfo(width=4, height=4, k=matrix(), p=projection(matrix(1e-320))))
def test_a_camera_looks_in_finite_directions_or_is_refused(info):
    # A camera takes no memory for its pixels until it is asked for them.
    try:
        camera = Camera.from_info(info)
    except InputError:
        return
    corners = np.array(((0, 0), (info.width, 0), (0, info.height), (info.width, info.height)))
    for seen_by in (camera.rectified(), *([] if camera.distorted else [camera])):
        directions = seen_by.normalised(corners)
        assert np.isfinite(directions).all()
        rays = np.column_stack((directions, np.ones(4)))
        np.testing.assert_allclose(seen_by.pixels(rays), corners, rtol=1e-6, atol=1e-3)


def encoded(suffix):
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


PICTURES = [encoded(suffix) for suffix in ('.jpg', '.png', '.webp')]
STARTS = [picture[:count] for picture in PICTURES for count in (2, 12, 30, len(picture) - 1)]
PACKETS = st.binary(max_size=60) | st.tuples(
    st.sampled_from(STARTS + PICTURES), st.binary(max_size=60)
).map(b''.join)


@checked
@given(STAMPS, st.text(), PACKETS)
@example(Time(), 'jpeg', PICTURES[0])
@example(Time(sec=-1), 'png', PICTURES[1])
def test_a_compressed_image_becomes_a_picture_within_the_bound_or_is_refused(stamp, name, data):
    message = CompressedImage(format=name)
    message.header.stamp = stamp
    message.data.frombytes(data)
    try:
        image = to_array(message)
    except InputError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS


def turning(stamp, x, y, z, covariance=0.0):
    message = Imu()
    message.header.stamp = stamp
    rate = message.angular_velocity
    rate.x, rate.y, rate.z = x, y, z
    message.angular_velocity_covariance[0] = covariance
    return message


TURNS = st.builds(turning, STAMPS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from((0.0, -1.0)))


@checked
@given(st.lists(TURNS, max_size=6), STAMPS, st.integers(0, 10**8) | st.integers(-(2**63), 2**63))
@example([turning(Time(), 0.0, 0.0, 1e308), turning(Time(nanosec=1), 0.0, 0.0, 1e308)], Time(), 9)
@example([turning(Time(), 1e163, 0.0, 0.0)], Time(), 10**7)
@example([turning(Time(), 0.1, 0.2, 0.3)], Time(), 10**7)
def test_the_turn_that_an_imu_measured_is_finite_or_there_is_none(messages, start, span_ns):
    rates = TurnRates()
    for message in messages:
        try:
            rates.add(message)
        except InputError:
            continue
    start_ns = nanoseconds(start)
    mean = rates.mean(start_ns, start_ns + span_ns)
    if mean is None:
        return
    assert np.isfinite(mean).all()
    turned = rotation_from_rate(mean, span_ns / 1e9, np.eye(3))
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-6)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(('id', 'name', 'color', 'classes')), inner, max_size=3)
    ),
    max_leaves=6,
)
COLOURS = st.lists(st.integers(0, 255) | st.integers() | st.floats(), min_size=3, max_size=3)
CLASSES = st.fixed_dictionaries(
    {'id': st.integers(0, 2), 'name': st.text() | VALUES, 'color': COLOURS | VALUES}
)
TEXTS = st.fixed_dictionaries({'name': VALUES, 'classes': st.lists(CLASSES, max_size=3) | VALUES})


def one_class(color):
    return f'{{"name": "one", "classes": [{{"id": 0, "name": "road", "color": {color}}}]}}'


@checked
@given(st.text() | VALUES.map(json.dumps) | TEXTS.map(json.dumps))
@example(one_class('[1, 2, 3]'))
@example(one_class('[1, 2, 256]'))
@example(one_class('[-1, 2, 3]'))
@example(one_class('[1e999, 2, 3]'))
@example(one_class('[NaN, 2, 3]'))
def test_label_info_is_a_label_set_that_can_be_drawn_or_is_refused(text):
    try:
        label_set = read_label_info(text)
    except InputError:
        return
    assert 0 < len(label_set) <= UNLABELLED
    assert all(label_set.index(name) < len(label_set) for name in label_set.names)
    assert label_set.palette().shape == (256, 3)


def grey(stamp):
    message = ImageMessage(width=1, height=1, step=1, encoding='mono8', data=b'\0')
    message.header.stamp = stamp
    return message


@checked
@given(STAMPS, STAMPS)
@example(Time(), Time(nanosec=1))
@example(Time(sec=2**31 - 1, nanosec=2**32 - 1), Time())
def test_flow_goes_from_an_image_to_a_later_one_within_the_gap_alone(first, second):
    try:
        frames = [Previous(to_array(grey(stamp)), stamp) for stamp in (first, second)]
    except InputError:
        assert min(first.sec, second.sec) < 0
        return
    assert [frame.time_ns for frame in frames] == [nanoseconds(first), nanoseconds(second)]
    options = PerceptionSettings()
    gap_s = (nanoseconds(second) - nanoseconds(first)) / 1e9
    assert continues(*frames, options) == (0 < gap_s <= options.max_flow_gap_s)
