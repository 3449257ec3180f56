"""The motion node: real messages in; times to contact, motion and what moves out."""

from functools import cache
import math
from pathlib import Path
import runpy
import signal
import time

import cv2
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Camera, mounted, OPTICAL_IN_BODY, pixel_grid
from dense_perception.labels import CITYSCAPES
from dense_perception.predictors.compression import scaled_flow
from dense_perception.ros.coarse import CoarseGrid
from dense_perception.ros.messages import flow_message, labels_message, message_to_labels
from dense_perception.ros.motion_node import MotionNode
from dense_perception.ros.mounting import pose_matrix
from dense_perception.ros.turn_rates import TurnRates
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Transform, TwistStamped
import numpy as np
import pytest
from rclpy.qos import qos_profile_sensor_data, ReliabilityPolicy
from sensor_msgs.msg import Image, Imu, TimeReference
from std_msgs.msg import Float32MultiArray

pytestmark = pytest.mark.ros

bench_parts = runpy.run_path(str(Path(__file__).with_name('consumer_bench.py')))
header, camera_info, label_info = (
    bench_parts[name] for name in ('header', 'camera_info', 'label_info')
)
LATCHED = bench_parts['LATCHED']
CAR, ROAD, SKY = (CITYSCAPES.index(name) for name in ('car', 'road', 'sky'))
K = np.array(((200.0, 0, 79.5), (0, 200.0, 59.5), (0, 0, 1)))
CAMERA = Camera(160, 120, K)
SECONDS = 0.1
IMU_RATE_HZ = 200


@pytest.fixture
def bench(ros_environment):
    """Return a function that starts the node with the camera told to it."""
    benches = []

    def start(*, camera=CAMERA, **parameters):
        defaults = {'mounting': 'parameters', 'use_labels': False, 'stride': 2}
        running = bench_parts['ConsumerBench'](MotionNode, **{**defaults, **parameters})
        benches.append(running)
        running.tell_camera(camera_info(camera))
        if running.node._with_labels:
            running.send('/label_info', label_info(CITYSCAPES), LATCHED)
            running.spin(lambda: running.node._label_set)
        return running

    yield start
    for running in benches:
        running.close()


def imu(stamp_ns, rate, covariance=0.0):
    message = Imu(header=header(stamp_ns, 'imu'))
    velocity = message.angular_velocity
    velocity.x, velocity.y, velocity.z = map(float, rate)
    message.angular_velocity_covariance[0] = covariance
    return message


def send_imu(running, end_ns, rate, seconds=SECONDS):
    """Publish the measurements of an even turn, from before an image pair until after it."""
    before = running.node.inputs['imu'].heard
    period_ns = 10**9 // IMU_RATE_HZ
    count = 0
    for at in range(
        end_ns - round(seconds * 1e9) - 2 * period_ns, end_ns + 3 * period_ns, period_ns
    ):
        running.send('/imu', imu(at, rate), qos_profile_sensor_data)
        count += 1
    running.spin(lambda: running.node.inputs['imu'].heard >= before + count)


def send_flow(running, flow, end_ns, seconds=SECONDS, labels=None):
    """Publish flow with the stamp of the image before, and that one's labels."""
    start = header(end_ns - round(seconds * 1e9))
    if labels is not None:
        before = running.node.inputs['labels'].heard
        running.send('/labels', labels_message(labels, start))
        running.spin(lambda: running.node.inputs['labels'].heard > before)
    reference = TimeReference(header=header(end_ns), time_ref=start.stamp)
    running.send('/flow_reference', reference)
    running.send('/flow', flow_message(np.asarray(flow, np.float32), header(end_ns)))


def array(message):
    return np.array(message.data).reshape([side.size for side in message.layout.dim])


@cache
def drive_pair(seed, step=2):
    """Return two frames of a rendered drive with their truth."""
    parts = runpy.run_path(str(Path(__file__).parents[1] / 'geometry' / 'conftest.py'))
    return parts['drive_pair'](seed, step=step)


@cache
def wall(depth):
    """A textured wall that faces the camera from some metres, as it sees it."""
    rng = np.random.default_rng(1)
    texture = np.zeros((480, 640))
    for size in (8, 20, 50, 120):
        texture += cv2.resize(rng.standard_normal((size * 3 // 4, size)), (640, 480)) / 2
    texture = np.clip(128 + 50 * texture, 0, 255).astype(np.uint8)
    scale = 200 / (60 * depth)  # 60 texture pixels a metre
    warp = np.array(((scale, 0, 79.5 - 319.5 * scale), (0, scale, 59.5 - 239.5 * scale)))
    return cv2.warpAffine(texture, warp, (160, 120), flags=cv2.INTER_AREA)


def approach(depth=3.0, step=0.15):
    """Flow that DIS finds between two rendered images of a wall, and the true time to contact."""
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = estimator.calc(wall(depth), wall(depth - step), None)
    return flow, (depth - step) / step * SECONDS


def world_flow(camera, points, *, path=(0, 0, 0), rotation=None):
    """Flow of points, (H, W, 3) metres in the camera's axes, where the camera moves."""
    turned = (points - np.asarray(path)) @ (np.eye(3) if rotation is None else rotation).T
    return camera.pixels(turned) - pixel_grid(camera.height, camera.width)


def plane(camera, depth=5.0):
    return np.concatenate((camera.rays, np.ones((camera.height, camera.width, 1))), -1) * depth


# What comes out.


def test_flow_of_sectors_is_that_of_the_path_alone_within_a_fifth_of_a_pixel(bench):
    truth, seconds = drive_pair(1), 0.2
    camera = truth.camera
    rate = np.array((0.4, -0.5, 0.6))  # rad/s, optical, beside the path of the drive
    rotation = cv2.Rodrigues(-seconds * rate)[0]
    static = np.where(truth.static[..., None], truth.points, np.nan)
    flow = world_flow(camera, static, path=truth.path, rotation=rotation)
    expected = np.where(np.isfinite(flow), world_flow(camera, static, path=truth.path), np.nan)
    running = bench(camera=camera, stride=1)
    heard = running.listen('sector_flow', Float32MultiArray)
    end_ns = time.time_ns()
    send_imu(running, end_ns, OPTICAL_IN_BODY @ rate, seconds)
    send_flow(running, flow, end_ns, seconds)
    running.spin(lambda: heard)
    found = array(heard[0]) * seconds * np.diag(camera.matrix)[:2]  # pixels
    compared = 0
    for row, column in np.ndindex(3, 5):
        part = np.s_[row * 60 : row * 60 + 60, column * 48 : column * 48 + 48]
        if np.isfinite(found[row, column]).all():
            right = np.nanmean(expected[part], axis=(0, 1))
            assert np.abs(found[row, column] - right).max() < 0.2
            assert np.abs(np.nanmean(flow[part], axis=(0, 1)) - right).max() > 5  # was taken out
            compared += 1
    assert compared > 10


@pytest.mark.parametrize(('depth', 'step'), [(4.0, 0.1), (3.0, 0.15), (2.0, 0.2)])
def test_time_to_contact_of_a_rendered_approach_is_right_within_10_percent(bench, depth, step):
    running = bench()
    times = running.listen('time_to_contact', Float32MultiArray)
    divergence = running.listen('divergence', Float32MultiArray)
    flow, expected = approach(depth, step)
    end_ns = time.time_ns()
    send_imu(running, end_ns, (0, 0, 0))
    send_flow(running, flow, end_ns)
    running.spin(lambda: times and divergence)
    assert [(side.label, side.size, side.stride) for side in times[0].layout.dim] == [
        ('rows', 3, 15),
        ('columns', 5, 5),
    ]
    np.testing.assert_allclose(array(times[0]), expected, rtol=0.1)
    # Where the flow is not spoilt by the image's edge.
    np.testing.assert_allclose(2 / array(divergence[0])[1, 1:4], expected, rtol=0.1)


def test_one_small_image_has_all_of_the_sectors_and_a_header(bench):
    running = bench(rows=2, columns=4)
    heard = {
        name: running.listen(name, Float32MultiArray)
        for name in ('sector_flow', 'divergence', 'time_to_contact')
    }
    sectors = running.listen('sectors', Image)
    end_ns = time.time_ns()
    send_flow(running, approach()[0], end_ns)
    running.spin(lambda: sectors and all(heard.values()))
    assert sectors[0].header == header(end_ns)
    assert (sectors[0].encoding, sectors[0].step) == ('32FC4', 64)
    values = np.frombuffer(sectors[0].data, np.float32).reshape(2, 4, 4)
    np.testing.assert_array_equal(values[..., :2], array(heard['sector_flow'][0]))
    np.testing.assert_array_equal(values[..., 2], array(heard['divergence'][0]))
    np.testing.assert_array_equal(values[..., 3], array(heard['time_to_contact'][0]))


def test_the_motion_has_its_direction_and_turn_in_optical_axes(bench):
    running = bench()
    heard = running.listen('motion', TwistStamped)
    rate = np.array((0.1, -0.3, 0.2))  # rad/s, optical
    rotation = cv2.Rodrigues(-rate * SECONDS)[0]
    path = np.array((0.1, 0.05, 0.3))
    # Two walls, so that path and turn can be told from one another.
    points = plane(CAMERA)
    points[:, 80:] *= 2
    flow = world_flow(CAMERA, points, path=path, rotation=rotation)
    end_ns = time.time_ns()
    send_imu(running, end_ns, OPTICAL_IN_BODY @ rate)
    send_flow(running, flow, end_ns)
    running.spin(lambda: heard)
    twist = heard[0].twist
    assert heard[0].header == header(end_ns)
    linear, angular = (
        np.array((part.x, part.y, part.z)) for part in (twist.linear, twist.angular)
    )
    np.testing.assert_allclose(linear, path / np.linalg.norm(path), atol=0.01)
    np.testing.assert_allclose(angular, rate, atol=1e-6)


def test_a_camera_that_nods_down_on_its_robot_is_told_by_parameters(bench):
    running = bench(camera_pitch=0.4, camera_yaw=-0.2)
    heard = running.listen('motion', TwistStamped)
    to_body = mounted((0, 0, 0), pitch=0.4, yaw=-0.2)[:3, :3]
    rate = np.array((0.1, -0.3, 0.2))
    end_ns = time.time_ns()
    send_imu(running, end_ns, to_body @ rate)
    send_flow(running, approach()[0], end_ns)
    running.spin(lambda: heard)
    angular = heard[0].twist.angular
    np.testing.assert_allclose((angular.x, angular.y, angular.z), rate, atol=1e-6)


def test_without_an_imu_turns_come_from_the_flow_and_that_is_told(bench):
    running = bench()
    heard = running.listen('motion', TwistStamped)
    rate = np.array((0.05, -0.3, 0.1))
    points = plane(CAMERA)
    points *= np.random.default_rng(1).uniform(1, 3, (120, 160, 1))
    rotation = cv2.Rodrigues(-rate * SECONDS)[0]
    flow = world_flow(CAMERA, points, path=(0.02, 0, 0.4), rotation=rotation)
    send_flow(running, flow, time.time_ns())
    running.spin(lambda: heard)
    angular = heard[0].twist.angular
    np.testing.assert_allclose((angular.x, angular.y, angular.z), rate, atol=0.02)
    status, values = running.diagnostics(lambda status, values: '/imu is silent' in status.message)
    assert status.level == DiagnosticStatus.WARN
    assert (values['turn from imu'], values['turn from flow']) == ('0', '1')


def road_with_car(camera, speed):
    """
    Draw a road 1.5 m below the camera with a car on it, and flow while the camera drives on.

    :param speed: metres a frame, of the car, in optical axes.
    """
    x, y = np.moveaxis(camera.rays, -1, 0)
    depth = np.where(y > 0, 1.5 / np.maximum(y, 1e-9), 1e6)
    labels = np.where(y > 0, ROAD, SKY).astype(np.uint8)
    car = (np.abs(x * 10 + 2.0) < 1) & (y * 10 < 1.5) & (y > 0)
    depth[car], labels[car] = 10, CAR
    points = np.concatenate((camera.rays * depth[..., None], depth[..., None]), axis=-1)
    points[car] += speed
    flow = camera.pixels(points - (0, 0, 0.8)) - pixel_grid(camera.height, camera.width)
    return flow, labels, car


BENT = Camera(160, 120, K, np.array((-0.2, 0.05, 0, 0, 0)))


@pytest.mark.parametrize('camera', [CAMERA, BENT], ids=['pinhole', 'distorted'])
def test_what_moves_is_masked_on_the_grid_of_its_labels(bench, camera):
    running = bench(camera=camera, use_labels=True)
    masks = running.listen('moving', Image)
    end_ns = time.time_ns()
    for speed, share in (((0, 0, 0), 0.0), ((0.3, 0, 0), 1.0)):
        flow, labels, car = road_with_car(camera, speed)
        masks.clear()
        end_ns += 10**8
        send_flow(running, flow, end_ns, labels=labels)
        running.spin(lambda: masks)
        assert masks[0].header == header(end_ns - 10**8)  # that of the labels
        mask = message_to_labels(masks[0])
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask[car] > 0).mean() == pytest.approx(share, abs=0.1)
        assert not mask[~car].any()


# Flow that is smaller than the image, as `flow_output_scale` makes it.


def heard_of_flow(running, flow):
    """Publish flow and an IMU that stands still; return what becomes of it."""
    sectors = running.listen('sectors', Image)
    motions = running.listen('motion', TwistStamped)
    end_ns = time.time_ns()
    send_imu(running, end_ns, (0, 0, 0))
    send_flow(running, flow, end_ns)
    running.spin(lambda: sectors and motions)
    values = np.frombuffer(sectors[0].data, np.float32)
    values = values.reshape(sectors[0].height, sectors[0].width, 4)
    linear = motions[0].twist.linear
    return values, np.array((linear.x, linear.y, linear.z))


@pytest.mark.parametrize('scale', [0.5, 0.25])
@pytest.mark.parametrize('camera', [CAMERA, BENT], ids=['pinhole', 'distorted'])
def test_smaller_flow_gives_the_same_sectors_and_motion_within_a_hundredth(bench, camera, scale):
    running = bench(camera=camera, stride=4)
    # A wall that is not faced, so that sectors differ.
    points = plane(camera)
    points /= 1 - 0.4 * camera.rays[..., :1] + 0.3 * camera.rays[..., 1:]
    flow = world_flow(camera, points, path=(0.1, -0.05, 0.5)).astype(np.float32)
    sectors, motion = heard_of_flow(running, flow)
    small, motion_of_small = heard_of_flow(running, scaled_flow(flow, scale))
    assert np.isfinite(sectors).all()
    assert np.ptp(sectors[..., 3]) > 0.2  # seconds
    for part in (np.s_[..., :2], np.s_[..., 2], np.s_[..., 3]):
        tolerance = 0.01 * np.abs(sectors[part]).max()
        np.testing.assert_allclose(small[part], sectors[part], rtol=0, atol=tolerance)
    np.testing.assert_allclose(motion_of_small, motion, atol=0.01)


@pytest.mark.parametrize('camera', [CAMERA, BENT], ids=['pinhole', 'distorted'])
def test_what_moves_in_smaller_flow_is_masked_on_the_grid_of_the_labels(bench, camera):
    running = bench(camera=camera, use_labels=True)
    masks = running.listen('moving', Image)
    flow, labels, car = road_with_car(camera, (0.3, 0, 0))
    send_flow(running, scaled_flow(flow.astype(np.float32), 0.5), time.time_ns(), labels=labels)
    running.spin(lambda: masks)
    mask = message_to_labels(masks[0]) > 0
    assert mask.shape == labels.shape
    assert mask[car].mean() == pytest.approx(1, abs=0.1)
    assert not mask[~car].any()


@pytest.mark.parametrize('size', [(80, 50), (60, 60), (320, 240), (4, 3)])
def test_flow_that_is_not_the_image_at_one_scale_is_refused(size):
    with pytest.raises(InputError, match='or flow be smaller by a scale of 0.05 or more'):
        CoarseGrid(CAMERA, 4, size)


@pytest.mark.parametrize('scale', [0.05, 0.1, 0.33, 0.5, 0.77, 0.999])
@pytest.mark.parametrize('size', [(161, 119), (480, 360), (37, 23)])
def test_every_scale_that_the_perception_node_makes_is_taken(size, scale):
    camera = Camera(*size, K)
    small = scaled_flow(np.zeros((camera.height, camera.width, 2), np.float32), scale)
    grid = CoarseGrid(camera, 4, small.shape[1::-1])
    assert grid.flow(small).shape == (grid.straight.height, grid.straight.width, 2)
    assert grid.pixels >= 3


def test_without_use_labels_nobody_needs_to_label(bench):
    running = bench(use_labels=False)
    assert not running.peer.get_subscriptions_info_by_topic('/labels')
    assert 'moving' not in running.node.outputs


def test_labels_that_do_not_fit_cost_only_themselves_and_are_told(bench):
    running = bench(use_labels=True)
    times = running.listen('time_to_contact', Float32MultiArray)
    masks = running.listen('moving', Image)
    flow, labels, _ = road_with_car(CAMERA, (0.3, 0, 0))
    send_flow(running, flow, time.time_ns(), labels=labels[:50])
    running.spin(lambda: times)
    running.diagnostics(lambda status, values: 'labels not used: ' in status.message)
    assert running.set(movable='tank')[0].successful
    times.clear()
    send_flow(running, flow, time.time_ns(), labels=labels)
    running.spin(lambda: times)
    running.diagnostics(lambda status, values: "no class 'tank'" in status.message)
    assert not masks
    assert running.set(movable='car')[0].successful
    send_flow(running, flow, time.time_ns(), labels=labels)
    running.spin(lambda: masks)


# Bad input.


def test_bad_flow_is_told_and_the_next_good_one_serves(bench):
    running = bench()
    times = running.listen('time_to_contact', Float32MultiArray)
    flow, _ = approach()
    now = time.time_ns()
    unknown, astray = np.full_like(flow, np.nan), np.full_like(flow, 3e38)
    send_flow(running, flow[:100], now)
    running.bad('flow is (160, 100)')
    send_flow(running, unknown, now + 1)
    running.bad('0 pixels to find the motion')
    send_flow(running, astray, now + 2)
    running.spin(lambda: running.node.statistics.bad + running.node.statistics.processed == 3)
    send_flow(running, flow, now + 3, seconds=-0.1)
    running.bad('it must be before')
    times.clear()
    send_flow(running, flow, now + 4)
    running.spin(lambda: times)


def test_a_bad_camera_info_is_told_and_the_next_good_one_serves(bench):
    running = bench()
    times = running.listen('time_to_contact', Float32MultiArray)
    flow, _ = approach()
    for change, text in (
        ({'k': [math.nan] * 9}, 'all must be finite'),
        ({'width': 2**31, 'height': 2**31}, 'sizes must match'),
    ):
        info = camera_info(CAMERA)
        for name, value in change.items():
            setattr(info, name, value)
        running.tell_camera(info)
        send_flow(running, flow, time.time_ns())
        running.bad(text)
    assert not times
    running.tell_camera(camera_info(CAMERA))
    send_flow(running, flow, time.time_ns())
    running.spin(lambda: times)


def test_an_imu_that_measures_no_turn_is_told_and_turns_come_from_the_flow(bench):
    running = bench()
    times = running.listen('time_to_contact', Float32MultiArray)
    end_ns = time.time_ns()
    send_imu(running, end_ns, (math.nan, 0, 0))
    send_flow(running, approach()[0], end_ns)
    running.spin(lambda: times)
    status, values = running.diagnostics(
        lambda status, values: 'imu has angular' in status.message
    )
    assert 'it must be finite rad/s' in status.message
    assert values['turn from flow'] == '1'


def test_an_old_image_is_refused(bench):
    running = bench()
    times = running.listen('time_to_contact', Float32MultiArray)
    send_flow(running, approach()[0], time.time_ns() - 10**10)
    running.bad('s old')
    assert not times


def test_what_is_read_at_the_start_is_refused_while_it_runs(bench):
    running = bench()
    for change in ({'use_labels': True}, {'mounting': 'tf'}):
        (result,) = running.set(**change)
        assert not result.successful
        assert 'read when the node starts' in result.reason
    assert running.set(stride=3, rows=4)[0].successful
    times = running.listen('time_to_contact', Float32MultiArray)
    send_flow(running, approach()[0], time.time_ns())
    running.spin(lambda: times)
    assert array(times[0]).shape == (4, 5)


def test_the_imu_is_listened_to_as_sensors_publish_and_deep_enough(bench):
    running = bench()
    (found,) = running.peer.get_subscriptions_info_by_topic('/imu')
    assert found.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_the_file_of_parameters_holds_every_one_with_its_default(ros_environment):
    bench_parts['check_parameter_file'](MotionNode, 'motion.yaml')


def test_the_documents_have_the_topics_of_the_node_with_their_types(bench):
    bench_parts['check_documents'](bench(use_labels=True), 11)


# Parts.


def test_the_mean_of_an_imu_is_that_of_the_time_between_the_images_alone():
    rates = TurnRates()
    for at_ms in range(0, 201, 10):  # a turn that grows by 1 rad/s each second, and a jerk before
        rates.add(imu(at_ms * 10**6, (at_ms / 1000, 5 if at_ms < 50 else 1, 0)))
    found = rates.mean(63 * 10**6, 157 * 10**6)
    np.testing.assert_allclose(found, (0.110, 1, 0), atol=1e-9)


def test_an_imu_that_was_silent_between_the_images_tells_nothing():
    rates = TurnRates()
    assert rates.mean(0, 10**8) is None
    for at_ms in (0, 10, 20, 500, 510):
        rates.add(imu(at_ms * 10**6, (0, 0, 1)))
    assert rates.mean(0, 20 * 10**6) is not None
    assert rates.mean(10 * 10**6, 505 * 10**6) is None  # a hole
    assert rates.mean(505 * 10**6, 605 * 10**6) is None  # nothing of the second image
    assert rates.mean(520 * 10**6, 510 * 10**6) is None


def test_an_imu_may_begin_again_and_its_memory_is_bounded():
    rates = TurnRates()
    day_ns = 86_400 * 10**9 * 20_000
    for at_ms in range(0, 10_000, 5):
        rates.add(imu(day_ns + at_ms * 10**6, (0, 0, 1)))
    assert len(rates._samples) == 401  # two seconds
    rates.add(imu(day_ns + 9_990 * 10**6, (0, 0, 9)))  # late; left out
    assert rates.mean(day_ns + 9_900 * 10**6, day_ns + 9_990 * 10**6)[2] == pytest.approx(1)
    for at_ms in range(0, 100, 5):  # a bag begins again
        rates.add(imu(at_ms * 10**6, (0, 0, 2)))
    assert rates.mean(0, 90 * 10**6)[2] == pytest.approx(2)


@pytest.mark.parametrize('message', [imu(0, (0, math.inf, 0)), imu(0, (0, 0, 0), -1.0)])
def test_what_is_no_measurement_is_refused(message):
    with pytest.raises(InputError, match='imu has angular velocity'):
        TurnRates().add(message)


@pytest.mark.parametrize('stride', [1, 2, 3, 5])
def test_coarse_flow_is_that_of_a_camera_with_fewer_pixels(stride):
    camera = Camera(161, 119, K)
    grid = CoarseGrid(camera, stride)
    points = plane(camera)
    flow = world_flow(camera, points, path=(0.1, 0, 0.4)).astype(np.float32)
    coarse = grid.straight
    expected = world_flow(coarse, plane(coarse), path=(0.1, 0, 0.4))
    np.testing.assert_allclose(grid.flow(flow), expected, atol=1e-4)


@pytest.mark.parametrize('stride', [1, 4, 8])
def test_smaller_flow_is_thinned_out_less_and_lies_where_the_camera_of_its_grid_sees(stride):
    camera = Camera(160, 120, K)
    grid = CoarseGrid(camera, stride, (80, 60))
    assert grid.pixels == max(stride, 2)
    flow = world_flow(camera, plane(camera), path=(0.1, 0, 0.4)).astype(np.float32)
    expected = world_flow(grid.straight, plane(grid.straight), path=(0.1, 0, 0.4))
    np.testing.assert_allclose(grid.flow(scaled_flow(flow, 0.5)), expected, atol=1e-4)
    places = np.tile(np.arange(160, dtype=np.uint8), (120, 1))
    seen = grid.straight.rays[..., 0] * K[0, 0] + K[0, 2]  # columns of the camera
    np.testing.assert_allclose(grid.labels(places), seen, atol=0.5)


def test_a_mask_comes_back_to_every_pixel_through_distortion():
    camera = Camera(160, 120, K, np.array((-0.2, 0.05, 0, 0, 0)))
    grid = CoarseGrid(camera, 4)
    labels = np.zeros((120, 160), np.uint8)
    labels[30:90, 20:70] = 1
    back = grid.fine(grid.labels(labels) == 1)
    assert (back != (labels == 1)).mean() < 0.02  # the edge alone
    with pytest.raises(InputError, match='sizes must match'):
        grid.labels(labels[1:])


def test_a_transform_is_a_pose():
    transform = Transform()
    transform.translation.x, transform.translation.z = 1.0, 2.0
    turn = transform.rotation
    turn.x, turn.y, turn.z, turn.w = -0.5, 0.5, -0.5, 0.5  # optical axes on a body
    np.testing.assert_allclose(pose_matrix(transform), mounted((1, 0, 2)), atol=1e-12)


@pytest.mark.parametrize('value', [0.0, math.nan, 2.0])
def test_a_transform_that_is_no_rotation_is_refused(value):
    transform = Transform()
    transform.rotation.w = value
    with pytest.raises(InputError, match='unit quaternion'):
        pose_matrix(transform)


# The process.


def test_sigterm_ends_the_process_in_good_order(ros_environment):
    bench_parts['check_good_end']('motion_node', ros_environment, signal.SIGTERM)
