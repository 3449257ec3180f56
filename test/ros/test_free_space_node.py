"""The free space node: real messages in, grid and scan out."""

from importlib.util import find_spec
import math
from pathlib import Path
import runpy
import time

from builtin_interfaces.msg import Time as TimeMessage
from dense_perception.errors import InputError, SettingError
from dense_perception.geometry.camera import Camera, mounted
from dense_perception.labels import CITYSCAPES
from dense_perception.ros.consumed import KnownCamera, read_label_info, Recent, Together
from dense_perception.ros.free_space_node import FreeSpaceNode
from dense_perception.ros.messages import label_info_json, labels_message
from diagnostic_msgs.msg import DiagnosticStatus
from nav_msgs.msg import OccupancyGrid
import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.qos import (
    DurabilityPolicy,
    qos_profile_sensor_data,
    QoSProfile,
    ReliabilityPolicy,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, LaserScan
from std_msgs.msg import String

pytestmark = pytest.mark.ros

bench_parts = runpy.run_path(str(Path(__file__).with_name('consumer_bench.py')))
header, camera_info, label_info = (
    bench_parts[name] for name in ('header', 'camera_info', 'label_info')
)
LATCHED, K = bench_parts['LATCHED'], bench_parts['K']
ROAD, CAR, SKY = (CITYSCAPES.index(name) for name in ('road', 'car', 'sky'))
CAMERA = Camera(320, 240, K)
MOUNTED = {'mounting': 'parameters', 'camera_height': 1.4, 'camera_pitch': 0.1}
POSE = mounted((0, 0, 1.4), pitch=0.1)


def street(pose, wall, camera=CAMERA):
    """Draw an endless road, and an endless wall across it, by following each pixel's ray."""
    rays = np.concatenate((camera.rays, np.ones((camera.height, camera.width, 1))), axis=-1)
    rays = rays @ pose[:3, :3].T
    with np.errstate(divide='ignore', invalid='ignore'):
        to_ground = np.where(rays[..., 2] < 0, -pose[2, 3] / rays[..., 2], np.inf)
        to_wall = (wall - pose[0, 3]) / rays[..., 0]
        to_wall = np.where(to_wall > 0, to_wall, np.inf)
        hit = (to_wall < to_ground) & (pose[2, 3] + to_wall * rays[..., 2] < 9)
    return np.where(hit, CAR, np.where(np.isfinite(to_ground), ROAD, SKY)).astype(np.uint8)


@pytest.fixture
def bench(ros_environment):
    """Return a function that starts the node, with the camera and the classes told to it."""
    benches = []

    def start(*, camera=CAMERA, told=True, **parameters):
        running = bench_parts['ConsumerBench'](FreeSpaceNode, **{**MOUNTED, **parameters})
        benches.append(running)
        if told:
            if not parameters.get('label_names'):
                running.send('/label_info', label_info(CITYSCAPES), LATCHED)
                running.spin(lambda: running.node._label_set)
            running.tell_camera(camera_info(camera))
        return running

    yield start
    for running in benches:
        running.close()


def angles(scan):
    return scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))


# What comes out.


@pytest.mark.parametrize('wall', [5.0, 12.0, 20.0])
def test_free_distance_to_a_wall_is_right_within_5_percent(bench, wall):
    running = bench()
    scans = running.listen('free_distance', LaserScan)
    running.send('/labels', labels_message(street(POSE, wall), header()))
    running.spin(lambda: scans)
    ranges = np.array(scans[0].ranges)
    # At the sides, the nearest ground is seen at bearings at which the wall is not.
    met = np.isfinite(ranges)
    assert met[20:-20].all()
    np.testing.assert_allclose(ranges[met], wall / np.cos(angles(scans[0])[met]), rtol=0.05)
    np.testing.assert_array_equal(scans[0].intensities, met)


def test_both_outputs_lie_in_base_footprint_and_have_the_stamp_of_the_labels(bench):
    running = bench()
    scans, grids = (
        running.listen('free_distance', LaserScan),
        running.listen('free_space', OccupancyGrid),
    )
    sent = header()
    running.send('/labels', labels_message(street(POSE, 8.0), sent))
    running.spin(lambda: scans and grids)
    for message in (scans[0], grids[0]):
        assert message.header.stamp == sent.stamp
        assert message.header.frame_id == 'base_footprint'


def test_the_grid_is_free_up_to_the_wall_occupied_at_it_and_unknown_behind(bench):
    running = bench(resolution_m=0.2, width=60, height=40, origin_x_m=1.0, origin_y_m=-4.0)
    grids = running.listen('free_space', OccupancyGrid)
    running.send('/labels', labels_message(street(POSE, 8.0), header()))
    running.spin(lambda: grids)
    info = grids[0].info
    assert (info.width, info.height) == (60, 40)
    assert info.resolution == pytest.approx(0.2)
    assert (info.origin.position.x, info.origin.position.y) == (1.0, -4.0)
    assert info.origin.orientation.w == 1.0
    cells = np.array(grids[0].data).reshape(40, 60)  # over y and x
    ahead = cells[19:21]  # a narrow strip straight ahead
    x = 1.0 + 0.2 * (np.arange(60) + 0.5)
    assert (ahead[:, (x > 4.5) & (x < 7.5)] == 0).all()
    assert (ahead[:, x > 8.5] == -1).all()
    assert (ahead[:, np.abs(x - 8) < 0.31] == 100).any(axis=1).all()


def test_a_free_road_is_inf_and_labels_that_end_it_without_a_thing_are_a_range(bench):
    running = bench(range_m=10.0)
    scans = running.listen('free_distance', LaserScan)
    labels = street(POSE, math.inf)
    labels[:190, 160:] = 255  # unlabelled to the right, from some metres on
    running.send('/labels', labels_message(labels, header()))
    running.spin(lambda: scans)
    ranges, at = np.array(scans[0].ranges), angles(scans[0])
    assert scans[0].range_max == pytest.approx(10)
    assert np.isposinf(ranges[(at > 0.02) & (at < 0.45)]).all()  # to the left
    right = ranges[(at < -0.02) & (at > -0.45)]
    assert ((right > 3) & (right < 7)).all()
    assert set(scans[0].intensities) == {0.0}


def test_a_thing_at_the_lower_edge_of_the_image_is_minus_inf(bench):
    running = bench()
    scans = running.listen('free_distance', LaserScan)
    labels = street(POSE, math.inf)
    labels[:, 200:] = CAR
    labels[:, :100] = 255
    running.send('/labels', labels_message(labels, header()))
    running.spin(lambda: scans)
    ranges, at = np.array(scans[0].ranges), angles(scans[0])
    assert np.isneginf(ranges[at < -0.15]).all()  # blocked on the right
    assert np.isnan(ranges[at > 0.22]).all()  # not known on the left
    assert (ranges[np.abs(at) < 0.1] > 20).all()


@pytest.mark.parametrize('yaw', [0.5, math.pi], ids=['to the left', 'back'])
def test_a_camera_that_looks_elsewhere_scans_there(bench, yaw):
    running = bench(camera_yaw=yaw, camera_x=-0.5, range_m=20.0)
    scans = running.listen('free_distance', LaserScan)
    pose = mounted((-0.5, 0, 1.4), pitch=0.1, yaw=yaw)
    wall = -9.0 if yaw > 2 else 9.0
    running.send('/labels', labels_message(street(pose, wall), header()))
    running.spin(lambda: scans)
    ranges, at = np.array(scans[0].ranges), angles(scans[0])
    assert at.mean() == pytest.approx(yaw, abs=0.1)
    met = np.isfinite(ranges)
    assert met.mean() > 0.8
    np.testing.assert_allclose(ranges[met] * np.cos(at[met]), wall, rtol=0.05)


def test_a_distorted_camera_sees_the_same_wall(bench):
    bent = Camera(320, 240, K, np.array((-0.25, 0.06, 0, 0, 0)))
    running = bench(camera=bent)
    scans = running.listen('free_distance', LaserScan)
    running.send('/labels', labels_message(street(POSE, 10.0, bent), header()))
    running.spin(lambda: scans)
    ranges, at = np.array(scans[0].ranges), angles(scans[0])
    middle = np.abs(at) < 0.4
    np.testing.assert_allclose(ranges[middle] * np.cos(at[middle]), 10.0, rtol=0.05)


def test_labels_of_rectified_images_are_not_bent_again(bench):
    raw_matrix = np.array(((270.0, 0, 150.0), (0, 270.0, 125.0), (0, 0, 1)))
    projection = np.column_stack((K, np.zeros(3)))  # the street is drawn for K
    bent = np.array((-0.25, 0.06, 0, 0, 0))
    raw = Camera(320, 240, raw_matrix, bent, projection=projection)
    running = bench(camera=raw, rectified=True)
    scans = running.listen('free_distance', LaserScan)
    running.send('/labels', labels_message(street(POSE, 10.0), header()))
    running.spin(lambda: scans)
    ranges, at = np.array(scans[0].ranges), angles(scans[0])
    met = np.isfinite(ranges)
    np.testing.assert_allclose(ranges[met] * np.cos(at[met]), 10.0, rtol=0.05)


# Inputs.


def test_classes_may_be_named_by_a_parameter_instead_of_label_info(bench):
    running = bench(label_names='grass, hedge', drivable='grass')
    scans = running.listen('free_distance', LaserScan)
    running.send(
        '/labels',
        labels_message(np.where(street(POSE, 8.0) == ROAD, 0, 1).astype(np.uint8), header()),
    )
    running.spin(lambda: scans)
    assert np.array(scans[0].ranges)[160] == pytest.approx(8.0, rel=0.05)
    assert 'label_info' not in running.node.inputs


def test_unsure_labels_are_not_free_where_confidence_is_asked_for(bench):
    running = bench(least_confidence=100)
    scans = running.listen('free_distance', LaserScan)
    head = header()
    confidence = np.full((240, 320), 200, np.uint8)
    confidence[:190] = 90
    running.send('/confidence', labels_message(confidence, head))  # in either order
    running.send('/labels', labels_message(street(POSE, 20.0), head))
    running.spin(lambda: scans)
    assert 3 < np.array(scans[0].ranges)[160] < 7
    assert set(scans[0].intensities) == {0.0}


def test_what_the_image_waits_for_is_told(bench):
    running = bench(told=False, silence_warning_s=3600.0)
    scans = running.listen('free_distance', LaserScan)
    labels = street(POSE, 8.0)

    def told(text):
        running.send('/labels', labels_message(labels, header()))
        return running.diagnostics(lambda status, values: text in status.message)

    told('waiting for label_info (/label_info)')
    running.send('/label_info', label_info(CITYSCAPES), LATCHED)
    running.spin(lambda: running.node._label_set)
    told('waiting for camera_info (/camera_info)')
    running.send('/camera_info', camera_info(CAMERA))
    running.spin(lambda: running.node._camera_info)
    status, _ = told('running')
    assert status.level == DiagnosticStatus.OK
    assert scans


def test_an_input_that_nobody_publishes_is_told(bench):
    running = bench(told=False, silence_warning_s=0.1)
    status, _ = running.diagnostics(lambda status, values: 'nobody publishes' in status.message)
    assert status.message == 'nobody publishes /labels'
    running.send('/labels', labels_message(street(POSE, 8.0), header()))
    running.diagnostics(lambda status, values: '1 publisher(s) of /labels' in status.message)


def test_a_publisher_of_another_quality_is_told_with_what_to_set(bench):
    running = bench(silence_warning_s=0.1)
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    running.peer.create_publisher(
        type(labels_message(np.zeros((1, 1), np.uint8), header())), '/labels', best_effort
    )
    running.diagnostics(
        lambda status, values: 'qos_overrides./labels.subscription.reliability' in status.message
    )


def test_a_bad_camera_info_is_told_and_the_next_good_one_serves(bench):
    running = bench()
    grids = running.listen('free_space', OccupancyGrid)
    scans = running.listen('free_distance', LaserScan)
    labels = street(POSE, 8.0)
    for change, text in (
        ({'k': [math.nan] * 9}, 'all must be finite'),
        ({'k': [0.0] * 9}, 'is the camera calibrated?'),
        ({'width': 2**31, 'height': 2**31}, 'sizes must match'),
        ({'distortion_model': 'fisheye'}, "distortion model is 'fisheye'"),
        ({'d': [0.1] * 7}, '7 coefficients'),
    ):
        info = camera_info(CAMERA)
        for name, value in change.items():
            setattr(info, name, value)
        running.tell_camera(info)
        running.send('/labels', labels_message(labels, header()))
        running.bad(text)
    assert not scans
    assert not grids
    running.tell_camera(camera_info(CAMERA))
    running.send('/labels', labels_message(labels, header()))
    running.spin(lambda: scans and grids)


def test_a_bad_image_is_told_on_diagnostics(bench):
    running = bench()
    running.listen('free_distance', LaserScan)
    running.send('/labels', labels_message(street(POSE, 8.0)[:100], header()))
    status, values = running.diagnostics(lambda status, values: values['bad images'] == '1')
    assert status.name == '/free_space: images'
    assert status.level == DiagnosticStatus.WARN
    assert status.message.startswith('1 bad image(s): labels is (320, 100)')
    assert values['images received'] == '1'
    assert values['label set'] == 'cityscapes'


def test_bad_labels_are_told_and_the_next_good_ones_serve(bench):
    running = bench()
    scans = running.listen('free_distance', LaserScan)
    good = street(POSE, 8.0)
    short, colour = (labels_message(good, header()) for _ in range(2))
    short.data = short.data[:100]
    colour.encoding = 'rgb8'
    other = labels_message(good[:100], header())
    for message, text in (
        (other, 'labels is (320, 100)'),
        (short, '100 bytes'),
        (colour, "label encoding is 'rgb8'"),
    ):
        running.send('/labels', message)
        running.bad(text)
    assert not scans
    running.send('/labels', labels_message(good, header()))
    running.spin(lambda: scans)
    assert running.node.statistics.bad == 3


def test_bad_label_info_is_told_and_the_one_before_counts_on(bench):
    running = bench()
    scans = running.listen('free_distance', LaserScan)
    running.send('/label_info', String(data='{"classes": 3}'))
    running.diagnostics(lambda status, values: 'label_info is' in values['last error'])
    running.send('/labels', labels_message(street(POSE, 8.0), header()))
    running.spin(lambda: scans)


@pytest.mark.parametrize('ahead', [False, True])
def test_an_image_far_from_now_is_told_and_not_used(bench, ahead):
    running = bench(max_age_s=1.0)
    scans = running.listen('free_distance', LaserScan)
    labels = street(POSE, 8.0)
    stamp_ns = time.time_ns() + (60 if ahead else -60) * 10**9
    running.send('/labels', labels_message(labels, header(stamp_ns)))
    running.bad('s ahead of the clock' if ahead else 's old')
    assert not scans
    assert running.set(max_age_s=0.0)[0].successful
    running.send('/labels', labels_message(labels, header(stamp_ns)))
    running.spin(lambda: scans)


def test_under_simulated_time_the_age_is_that_of_the_clock(bench):
    running = bench(use_sim_time=True)
    scans = running.listen('free_distance', LaserScan)
    labels = street(POSE, 8.0)
    running.send('/labels', labels_message(labels, header(50 * 10**9)))
    running.bad('50.0 s ahead of the clock')  # nobody publishes /clock
    clock = Clock(clock=TimeMessage(sec=50, nanosec=200_000_000))
    running.send('/clock', clock)
    running.spin(lambda: running.node.get_clock().now().nanoseconds > 0)
    running.send('/labels', labels_message(labels, header(50 * 10**9)))
    running.spin(lambda: scans)
    assert scans[0].header.stamp.sec == 50


# Parameters and quality of service.


def test_a_class_that_does_not_exist_is_told_and_another_one_set_while_it_runs(bench):
    running = bench(drivable='lava')
    scans = running.listen('free_distance', LaserScan)
    labels = labels_message(street(POSE, 8.0), header())
    running.send('/labels', labels)
    running.bad("no class 'lava'")
    assert running.set(drivable='road')[0].successful
    running.send('/labels', labels_message(street(POSE, 8.0), header()))
    running.spin(lambda: scans)


def test_values_out_of_range_and_what_is_read_at_the_start_are_refused_with_a_reason(bench):
    running = bench()
    for change, reason in (
        ({'range_m': -1.0}, ''),
        ({'width': 10_000}, 'range'),
        ({'mounting': 'tf'}, 'mounting is read when the node starts'),
        ({'label_names': 'a'}, 'label_names is read when the node starts'),
        ({'least_confidence': 9}, 'least_confidence decides when the node starts'),
    ):
        (result,) = running.set(**change)
        if reason == 'range':
            assert result.successful  # 10000 x 200 is 2 million cells
            (result,) = running.set(height=10_000)
            reason = 'at most 4000000 cells'
        assert not result.successful
        assert reason in result.reason


def test_without_a_height_of_the_camera_that_is_told(bench):
    running = bench(camera_height=0.0)
    running.listen('free_distance', LaserScan)
    running.send('/labels', labels_message(street(POSE, 8.0), header()))
    running.bad('camera_height is 0')


def test_the_file_of_parameters_holds_every_one_with_its_default(ros_environment):
    bench_parts['check_parameter_file'](FreeSpaceNode, 'free_space.yaml')


def test_subscribers_with_the_quality_of_nav2_are_served_however_late(bench):
    running = bench()
    # nav2_costmap_2d's static layer, and its obstacle layer.
    of_a_map = QoSProfile(
        depth=10,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )
    first = running.listen('free_space', OccupancyGrid, of_a_map)
    scans = running.listen('free_distance', LaserScan, qos_profile_sensor_data)
    running.send('/labels', labels_message(street(POSE, 8.0), header()))
    running.spin(lambda: first and scans)
    late: list = []
    running.peer.create_subscription(
        OccupancyGrid, '/free_space/free_space', late.append, of_a_map
    )
    running.spin(lambda: late)
    assert late[0] == first[0]


def test_qos_of_inputs_and_outputs_is_overridable(bench):
    running = bench(
        **{
            'qos_overrides./labels.subscription.reliability': 'best_effort',
            'qos_overrides./free_space/free_distance.publisher.reliability': 'best_effort',
        }
    )
    (labels,) = running.peer.get_subscriptions_info_by_topic('/labels')
    assert labels.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    (distance,) = running.peer.get_publishers_info_by_topic('/free_space/free_distance')
    assert distance.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_while_nobody_listens_nothing_is_computed(bench):
    running = bench(drivable='lava')  # would be told if it were looked at
    running.send('/labels', labels_message(street(POSE, 8.0), header()))
    running.spin(lambda: running.node.statistics.received)
    _, values = running.diagnostics(lambda status, values: values['images received'] == '1')
    assert values['wanted'] == 'nothing'
    assert values['bad images'] == '0'


def test_the_documents_have_the_topics_of_the_node_with_their_types(bench):
    bench_parts['check_documents'](bench(least_confidence=1), 5)


# tf2, where it is installed.


@pytest.mark.skipif(find_spec('tf2_ros') is not None, reason='tf2_ros is installed')
def test_without_tf2_the_node_says_what_to_do(ros_environment):
    context = Context()
    rclpy.init(context=context)
    with pytest.raises(SettingError, match='install it, or set mounting to parameters'):
        FreeSpaceNode(context=context)
    context.try_shutdown()


def test_the_place_of_the_camera_comes_from_tf2(bench):
    tf2_ros = pytest.importorskip('tf2_ros')
    from geometry_msgs.msg import TransformStamped

    running = bench(mounting='tf', camera_height=0.0)
    scans = running.listen('free_distance', LaserScan)
    running.send('/labels', labels_message(street(POSE, 8.0), header()))
    running.bad('no transform from front_optical to base_footprint')
    transform = TransformStamped(header=header(frame_id='base_footprint'))
    transform.child_frame_id = 'front_optical'
    transform.transform.translation.z = 1.4
    turn = transform.transform.rotation
    # A body that nods down by 0.1, and optical axes on it.
    turn.x, turn.y, turn.z, turn.w = product(
        (0, math.sin(0.05), 0, math.cos(0.05)), (-0.5, 0.5, -0.5, 0.5)
    )
    broadcaster = tf2_ros.StaticTransformBroadcaster(running.peer)
    broadcaster.sendTransform(transform)

    def arrived():
        running.send('/labels', labels_message(street(POSE, 8.0), header()))
        return scans

    running.spin(arrived)
    assert np.array(scans[0].ranges)[160] == pytest.approx(8.0, rel=0.05)


def product(one, two):
    """Multiply two quaternions, x y z w."""
    x, y, z, w = one
    a, b, c, d = two
    return (
        w * a + x * d + y * c - z * b,
        w * b - x * c + y * d + z * a,
        w * c + x * b - y * a + z * d,
        w * d - x * a - y * b - z * c,
    )


# Parts.


def test_messages_of_an_image_come_together_in_any_order_and_after_a_jump_back():
    together = Together(('labels', 'confidence'))
    image = {name: labels_message(np.zeros((1, 1), np.uint8), header(5)) for name in 'lc'}
    assert together.add('confidence', image['c']) is None
    assert together.add('labels', image['l']) == (image['l'], image['c'])
    for second in range(100, 120):  # of which one part never comes
        late = labels_message(np.zeros((1, 1), np.uint8), header(second * 10**9))
        assert together.add('labels', late) is None
    assert together.incomplete == 16  # all but those still waited for
    assert together.add('labels', image['l']) is None  # a bag begins again
    assert together.add('confidence', image['c']) == (image['l'], image['c'])


def test_the_last_few_messages_are_found_by_stamp():
    recent = Recent()
    messages = [labels_message(np.zeros((1, 1), np.uint8), header(n)) for n in range(6)]
    for message in messages:
        recent.add(message)
    assert recent.find(messages[5].header.stamp) is messages[5]
    assert recent.find(messages[2].header.stamp) is messages[2]
    assert recent.find(messages[1].header.stamp) is None


def test_a_camera_is_built_anew_only_where_its_numbers_change():
    known = KnownCamera()
    first = known.of(camera_info(CAMERA))
    assert known.of(camera_info(CAMERA)) is first
    other = camera_info(CAMERA)
    other.k[0] += 1
    assert known.of(other).matrix[0, 0] == 301
    with pytest.raises(InputError, match='0 x 240'):
        known.of(CameraInfo(width=0, height=240))


def test_label_info_is_read_as_it_is_written():
    read = read_label_info(label_info_json(CITYSCAPES))
    assert read.name == 'cityscapes'
    assert read.names == CITYSCAPES.names
    assert [entry.color for entry in read.classes] == [e.color for e in CITYSCAPES.classes]


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{"name": "a", "classes": []}',
        '{"name": "a", "classes": [{"id": 1, "name": "b", "color": [0, 0, 0]}]}',
        '{"name": "a", "classes": [{"id": 0, "name": "b", "color": [0, 0]}]}',
        '{"name": "a", "classes": [{"id": 0}]}',
        '[' * 100_000,
    ],
)
def test_other_label_info_is_refused(text):
    with pytest.raises(InputError, match='label_info'):
        read_label_info(text)


# The process.


@pytest.mark.parametrize('number', bench_parts['SIGNALS'], ids=lambda number: number.name)
def test_a_signal_ends_the_process_in_good_order(ros_environment, number):
    bench_parts['check_good_end']('free_space_node', ros_environment, number)
