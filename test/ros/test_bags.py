from pathlib import Path
import shutil
from types import SimpleNamespace

from dense_perception.data.drives import DriveFrame
from dense_perception.errors import InputError
from dense_perception.ros.bags import Bag, deserialize, message_class, write_drive
from dense_perception.ros.messages import (
    compressed_to_array,
    image_to_array,
    message_to_labels,
)
import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.ros

BAGS = Path(__file__).parents[2].parent / 'shared' / 'data' / 'bags'
MATRIX = np.array([[100.0, 0.0, 15.5], [0.0, 110.0, 11.5], [0.0, 0.0, 1.0]])

needs_bags = pytest.mark.skipif(not BAGS.is_dir(), reason=f'{BAGS} is not there')


def drive(count=3, size=(24, 32), start_ns=10**9, labels=True):
    generator = np.random.default_rng(1)
    return [
        DriveFrame(
            start_ns + number * 100_000_000,
            generator.integers(0, 256, (*size, 3), np.uint8),
            generator.integers(0, 19, size, np.uint8) if labels else None,
        )
        for number in range(count)
    ]


def read(path, *topics):
    """Topic, stamp and message of everything in a bag."""
    with Bag(path) as bag:
        return [
            (topic, stamp_ns, deserialize(data, bag.topics[topic].type_name))
            for topic, stamp_ns, data in bag.messages(topics)
        ]


def test_images_come_back_as_they_were_written(tmp_path):
    frames = drive()
    write_drive(tmp_path / 'bag', frames)
    images = [image_to_array(entry[2]) for entry in read(tmp_path / 'bag', '/camera/image_raw')]
    np.testing.assert_array_equal(images, [frame.image for frame in frames])


def test_truth_comes_back_as_it_was_written(tmp_path):
    frames = drive()
    write_drive(tmp_path / 'bag', frames)
    labels = [
        message_to_labels(entry[2]) for entry in read(tmp_path / 'bag', '/camera/labels_truth')
    ]
    np.testing.assert_array_equal(labels, [frame.labels for frame in frames])


def test_recording_time_and_header_are_the_stamp_of_the_frame(tmp_path):
    write_drive(tmp_path / 'bag', drive(2, start_ns=5_000_000_007), frame_id='front')
    for _, stamp_ns, message in read(tmp_path / 'bag', '/camera/image_raw'):
        stamp = message.header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == stamp_ns
        assert message.header.frame_id == 'front'
    assert stamp_ns == 5_100_000_007


def test_camera_info_describes_the_matrix_and_each_size(tmp_path):
    frames = [*drive(1), *drive(1, size=(12, 16), start_ns=2 * 10**9)]
    write_drive(tmp_path / 'bag', frames, camera_matrix=MATRIX)
    first, second = (entry[2] for entry in read(tmp_path / 'bag', '/camera/camera_info'))
    np.testing.assert_array_equal(np.reshape(first.k, (3, 3)), MATRIX)
    assert (first.width, first.height, second.width, second.height) == (32, 24, 16, 12)


def test_without_matrix_and_truth_only_images_are_written(tmp_path):
    write_drive(tmp_path / 'bag', drive(labels=False))
    with Bag(tmp_path / 'bag') as bag:
        assert list(bag.topics) == ['/camera/image_raw']


def test_topics_stand_in_the_namespace_of_the_image_topic(tmp_path):
    write_drive(tmp_path / 'bag', drive(), image_topic='/a/b/image', camera_matrix=MATRIX)
    with Bag(tmp_path / 'bag') as bag:
        assert list(bag.topics) == ['/a/b/camera_info', '/a/b/image', '/a/b/labels_truth']


def test_a_bag_tells_its_topics_counts_and_times(tmp_path):
    assert write_drive(tmp_path / 'bag', drive(4), camera_matrix=MATRIX) == 4
    with Bag(tmp_path / 'bag') as bag:
        topic = bag.topics['/camera/image_raw']
        assert (topic.type_name, topic.count, topic.latched) == ('sensor_msgs/msg/Image', 4, False)
        assert bag.image_topics() == ['/camera/image_raw', '/camera/labels_truth']
        assert (bag.start_ns, bag.duration_ns) == (10**9, 300_000_000)


def test_metadata_is_of_a_version_that_every_supported_distribution_reads(tmp_path):
    write_drive(tmp_path / 'bag', drive(4))
    metadata = yaml.safe_load((tmp_path / 'bag' / 'metadata.yaml').read_text())
    information = metadata['rosbag2_bagfile_information']
    assert (information['version'], information['storage_identifier']) == (8, 'mcap')
    assert information['message_count'] == 8
    for entry in information['topics_with_message_count']:
        # A string up to version 8; Humble cannot read the list of version 9.
        assert isinstance(entry['topic_metadata']['offered_qos_profiles'], str)


def test_an_existing_folder_is_not_written_to(tmp_path):
    (tmp_path / 'bag').mkdir()
    (tmp_path / 'bag' / 'mine').write_text('mine')
    with pytest.raises(InputError, match='exists already'):
        write_drive(tmp_path / 'bag', drive())
    assert (tmp_path / 'bag' / 'mine').read_text() == 'mine'


def test_no_frames_make_no_bag(tmp_path):
    with pytest.raises(InputError, match='no frame'):
        write_drive(tmp_path / 'bag', [])
    assert not (tmp_path / 'bag').exists()


def test_a_failure_in_mid_drive_leaves_no_broken_bag(tmp_path):
    def frames():
        yield from drive(2)
        raise InputError('camera fell off')

    with pytest.raises(InputError, match='fell off'):
        write_drive(tmp_path / 'bag', frames())
    assert not (tmp_path / 'bag').exists()


def test_truth_of_another_size_is_refused(tmp_path):
    frame = DriveFrame(0, np.zeros((4, 6, 3), np.uint8), np.zeros((4, 5), np.uint8))
    with pytest.raises(InputError, match=r'\(4, 5\).*\(4, 6\)'):
        write_drive(tmp_path / 'bag', [frame])


@pytest.mark.parametrize('topic', ['image', '', '/a b', '/a//b', '/1'])
def test_a_topic_that_is_no_full_name_is_refused(tmp_path, topic):
    with pytest.raises(InputError, match=f"'{topic}'; it must be like /camera/image"):
        write_drive(tmp_path / 'bag', drive(), image_topic=topic)


def test_an_unknown_topic_is_named_with_those_of_the_bag(tmp_path):
    write_drive(tmp_path / 'bag', drive(labels=False))
    with (
        Bag(tmp_path / 'bag') as bag,
        pytest.raises(InputError, match='no topic /x; it has /camera/image_raw'),
    ):
        list(bag.messages(['/x']))


@pytest.mark.parametrize('name', ['missing', 'missing.mcap', 'missing.db3'])
def test_a_missing_bag_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f'{name}: no such bag'), Bag(tmp_path / name):
        pass


def test_a_folder_without_metadata_is_named(tmp_path):
    with pytest.raises(InputError, match='no metadata.yaml'), Bag(tmp_path):
        pass


@pytest.mark.parametrize('name', ['x.mcap', 'x.db3', 'x.txt'])
@pytest.mark.parametrize('content', [b'', b'not a bag at all, only text that goes on and on'])
def test_a_file_that_is_no_bag_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with (
        pytest.raises(InputError, match=f'{name}: not a readable ROS 2 bag'),
        Bag(tmp_path / name),
    ):
        pass


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.999])
def test_a_bag_cut_short_is_named(tmp_path, share):
    write_drive(tmp_path / 'bag', drive())
    file = next((tmp_path / 'bag').glob('*.mcap'))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match='bag: not a readable ROS 2 bag'):
        read(tmp_path / 'bag')


@needs_bags
def test_damaged_data_is_named(tmp_path):
    content = bytearray((BAGS / 'rosbag2_mcap' / 'talker' / 'talker.mcap').read_bytes())
    content[3000] ^= 0xFF  # inside the only chunk
    (tmp_path / 'bad.mcap').write_bytes(content)
    with pytest.raises(InputError, match='bad.mcap: not a readable ROS 2 bag'):
        read(tmp_path / 'bad.mcap', '/topic')


def test_metadata_that_is_no_metadata_is_named(tmp_path):
    write_drive(tmp_path / 'bag', drive())
    (tmp_path / 'bag' / 'metadata.yaml').write_text('- nothing\n')
    with (
        pytest.raises(InputError, match='bag: not a readable ROS 2 bag'),
        Bag(tmp_path / 'bag'),
    ):
        pass


@pytest.mark.parametrize('name', ['no_such_msgs/msg/Thing', 'sensor_msgs/msg/Nothing'])
def test_a_message_type_that_is_not_installed_is_named(name):
    with pytest.raises(InputError, match=f'{name} is not installed'):
        message_class(name)


@pytest.mark.parametrize('name', ['os', '', '../x/msg/Y', 'a.b/msg/C'])
def test_a_name_that_is_no_message_type_is_refused(name):
    with pytest.raises(InputError, match='must be package/msg/Name'):
        message_class(name)


def test_bytes_that_are_no_message_are_refused():
    with pytest.raises(InputError, match='3 bytes that are no std_msgs/msg/Header'):
        deserialize(b'\0\1\0', 'std_msgs/msg/Header')


@needs_bags
@pytest.mark.parametrize(
    ('name', 'count'),
    [
        ('camera_sqlite3_crystal/sample.db3', 5),
        ('rosbag2_sqlite3/talker', 20),
        ('rosbag2_sqlite3/talker/talker.db3', 20),
        ('rosbag2_sqlite3/wbag', 6074),
        ('rosbag2_sqlite3/cdr_test', 7),
        ('rosbag2_mcap/talker', 20),
        ('rosbag2_mcap/talker/talker.mcap', 20),
        ('rosbag2_mcap/wbag', 6074),
        ('rosbag2_mcap/cdr_test', 7),
    ],
)
def test_recordings_of_others_yield_every_message(name, count):
    with Bag(BAGS / name) as bag:
        assert sum(1 for _ in bag.messages()) == count
        assert sum(topic.count for topic in bag.topics.values()) == count


@needs_bags
def test_a_split_recording_is_read_in_the_order_of_time():
    with Bag(BAGS / 'rosbag2_mcap' / 'wbag') as bag:
        stamps = [message.stamp_ns for message in bag.messages()]
    assert stamps == sorted(stamps)


@needs_bags
def test_the_talker_says_what_it_said():
    messages = read(BAGS / 'rosbag2_mcap' / 'talker', '/topic')
    assert [entry[2].data for entry in messages[:2]] == ['Hello, world! 0', 'Hello, world! 1']


@needs_bags
def test_type_names_of_the_first_recordings_are_completed():
    with Bag(BAGS / 'camera_sqlite3_crystal' / 'sample.db3') as bag:
        assert bag.image_topics() == ['/image', '/image/compressed']


@needs_bags
@pytest.mark.parametrize(
    ('topic', 'convert'), [('/image', image_to_array), ('/image/compressed', compressed_to_array)]
)
def test_images_of_a_real_camera_equal_those_of_rosbags_image(topic, convert):
    peer = pytest.importorskip('rosbags.image')
    ((_, _, message),) = read(BAGS / 'camera_sqlite3_crystal' / 'sample.db3', topic)
    theirs = peer.message_to_cvimage(_as_numpy(message), 'rgb8')
    assert theirs.shape == (480, 640, 3)
    np.testing.assert_array_equal(convert(message), theirs)


def _as_numpy(message):
    """The same message with data as rosbags deserialises it."""
    fields = {name: getattr(message, name) for name in message.get_fields_and_field_types()}
    return SimpleNamespace(**fields | {'data': np.frombuffer(message.data, np.uint8)})


@needs_bags
@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
def test_another_serialization_format_is_refused_with_its_topic(storage):
    path = BAGS / f'rosbag2_{storage}' / 'wrong_rmw_test'
    with (
        pytest.raises(InputError, match="wrong_rmw_test: /.*_topic .*'wrong_format'"),
        Bag(path),
    ):
        pass


@needs_bags
def test_a_single_file_of_another_serialization_format_is_refused_with_its_topic(tmp_path):
    file = tmp_path / 'single.mcap'
    shutil.copy(BAGS / 'rosbag2_mcap' / 'wrong_rmw_test' / 'wrong_rmw_test_0.mcap', file)
    with pytest.raises(InputError, match="single.mcap: /.*_topic .*'wrong_format'"):
        read(file)


@needs_bags
def test_an_mcap_that_is_no_ros_recording_is_refused():
    path = BAGS / 'foxglove_json_mcap' / 'custom-camera-model.mcap'
    with pytest.raises(InputError, match='custom-camera-model.mcap: .*not ros2'), Bag(path):
        pass
