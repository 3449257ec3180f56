from dataclasses import replace
import json
from pathlib import Path
import shutil
import struct

import cv2
from dense_perception.data.drives import DriveFrame
from dense_perception.data.flow_files import write_flo
from dense_perception.errors import InputError
from dense_perception.evaluation.report_json import report_text
from dense_perception.ros.bag_evaluation import BagEvaluation
from dense_perception.ros.bags import Bag, deserialize, write_drive
from dense_perception.ros.labelled_bag import BagChoice
from dense_perception.ros.messages import flow_message, labels_message, message_to_labels
from dense_perception.settings import PerceptionSettings
import numpy as np
import pytest
from rclpy.serialization import serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg, get_typestore, Stores
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

pytestmark = pytest.mark.ros

BAGS = Path(__file__).parents[2].parent / 'shared' / 'data' / 'bags'
needs_bags = pytest.mark.skipif(not BAGS.is_dir(), reason=f'{BAGS} is not there')

SIZE = (48, 64)
EVALUATION = BagEvaluation(
    PerceptionSettings(device='cpu', precision='float32', segmentation_width=64, flow_width=64)
)
LABELS_ALONE = replace(EVALUATION, settings=replace(EVALUATION.settings, flow_weights=''))


def image(number, size=SIZE):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def truth(number, size=SIZE):
    return np.random.default_rng(number).integers(0, 19, size, np.uint8)


def drive(count, size=SIZE, labels=True):
    for number in range(count):
        stamp_ns = 10**9 + number * 10**8
        yield DriveFrame(stamp_ns, image(number, size), truth(number, size) if labels else None)


def header(number):
    made = Header(frame_id=f'frame_{number}')
    made.stamp.sec, made.stamp.nanosec = divmod(10**9 + number * 10**8, 10**9)
    return made


def write(path, messages, storage=StoragePlugin.MCAP, compression=()):
    """Write messages as a bag: topic, number of the frame, message, type unless it is Image."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg('uint8 x\n', 'lost_msgs/msg/Thing'))
    writer = Writer(path, version=8, storage_plugin=storage)
    if compression:
        writer.set_compression(*compression)
    with writer:
        connections = {}
        for topic, number, message, *kind in messages:
            if topic not in connections:
                name = kind[0] if kind else f'sensor_msgs/msg/{type(message).__name__}'
                connections[topic] = writer.add_connection(topic, name, typestore=store)
            data = message if isinstance(message, bytes) else serialize_message(message)
            writer.write(connections[topic], 10**9 + number * 10**8, data)


def compressed(number):
    content = cv2.imencode('.png', image(number)[:, :, ::-1])[1].tobytes()
    return CompressedImage(header=header(number), format='png', data=content)


def without_run(report):
    return [line for line in report_text(report).split('\n') if '"run"' not in line]


def test_a_bag_evaluated_twice_gives_the_same_bytes(tmp_path):
    write_drive(tmp_path / 'bag', drive(3))
    first, second = (EVALUATION(str(tmp_path / 'bag')) for _ in range(2))
    assert without_run(first) == without_run(second)
    assert json.loads(report_text(first))['figures']['mean_iou'] > 0
    assert len(first.frames) == 3
    assert first.problems == ()
    assert first.sources[0].topics == ('/camera/image_raw',)
    assert first.temporal.matrix.counts.sum() > 0


@pytest.mark.parametrize(
    ('storage', 'compression'),
    [
        (StoragePlugin.SQLITE3, ()),
        (
            StoragePlugin.SQLITE3,
            (CompressionMode.MESSAGE, CompressionFormat.ZSTD),
        ),
        (
            StoragePlugin.MCAP,
            (CompressionMode.STORAGE, CompressionFormat.ZSTD),
        ),
    ],
)
def test_every_storage_and_transport_gives_the_figures_of_the_plain_bag(
    tmp_path, storage, compression
):
    write_drive(tmp_path / 'plain', drive(2))
    messages = [
        entry
        for number in range(2)
        for entry in (
            ('/camera/image_raw/compressed', number, compressed(number)),
            ('/camera/labels_truth', number, labels_message(truth(number), header(number))),
        )
    ]
    write(tmp_path / 'other', messages, storage, compression)
    plain, other = (LABELS_ALONE(str(tmp_path / name)) for name in ('plain', 'other'))
    assert other.figures()['mean_iou'] == plain.figures()['mean_iou']
    assert other.segmentation.confusion.counts.sum() == 2 * SIZE[0] * SIZE[1]


def test_truth_beside_the_bag_is_found_by_stamp_and_by_name(tmp_path):
    write_drive(tmp_path / 'drive', drive(3, labels=False), frame_id='front_7')
    beside = tmp_path / 'drive_truth'
    for kind in ('labels', 'flow'):
        (beside / kind).mkdir(parents=True)
    cv2.imwrite(str(beside / 'labels' / f'{10**9}.png'), truth(0))
    write_flo(beside / 'flow' / f'{10**9 + 10**8}.flo', np.zeros((*SIZE, 2), np.float32))
    report = EVALUATION(str(tmp_path / 'drive'))
    assert [frame.labels is not None for frame in report.frames] == [True, False, False]
    assert [frame.flow is not None for frame in report.frames] == [True, False, False]
    cv2.imwrite(str(beside / 'labels' / 'front_7.png'), truth(5))
    report = EVALUATION(str(tmp_path / 'drive'))
    assert [frame.labels is not None for frame in report.frames] == [True, True, True]


def test_truth_in_a_cityscapes_tree_is_found_by_the_stamps_beside_it(tmp_path):
    write_drive(tmp_path / 'drive', drive(2, labels=False))
    labels = tmp_path / 'tree' / 'gtFine' / 'val' / 'ulm'
    stamps = tmp_path / 'tree' / 'timestamp_sequence' / 'val' / 'ulm'
    labels.mkdir(parents=True)
    stamps.mkdir(parents=True)
    road = np.full(SIZE, 7, np.uint8)
    road[:8, :8] = 26  # cars
    objects = np.zeros(SIZE, np.uint16)
    objects[:8, :8] = 26000
    for number, stamp_ns in enumerate((10**9, 10**9 + 10**8)):
        name = f'ulm_000000_{number:06}'
        cv2.imwrite(str(labels / f'{name}_gtFine_labelIds.png'), road)
        cv2.imwrite(str(labels / f'{name}_gtFine_instanceIds.png'), objects)
        (stamps / f'{name}_timestamp.txt').write_text(str(stamp_ns))
    choice = BagChoice(truth=tmp_path / 'tree')
    report = replace(LABELS_ALONE, choice=choice)(str(tmp_path / 'drive'))
    assert report.segmentation.confusion.counts[0].sum() == 2 * (SIZE[0] * SIZE[1] - 64)
    assert sum(tally.instances for tally in report.segmentation.instances.tallies.values()) == 2


def test_true_flow_on_a_topic_is_that_from_the_image_before(tmp_path):
    still = np.zeros((*SIZE, 2), np.float32)
    still[:4] = np.nan  # not known
    messages = []
    for number in range(3):
        messages.append(('/camera/image', number, compressed(number)))
        if number:
            messages.append(('/camera/flow_truth', number, flow_message(still, header(number))))
    write(tmp_path / 'bag', messages)
    report = EVALUATION(str(tmp_path / 'bag'))
    assert [frame.flow is not None for frame in report.frames] == [True, True, False]
    assert report.flow['all'].count == 2 * (SIZE[0] - 4) * SIZE[1]


def test_flow_across_an_image_that_cannot_be_read_is_not_compared(tmp_path):
    still = np.zeros((*SIZE, 2), np.float32)
    messages = []
    for number in range(4):
        picture = compressed(number)
        if number == 1:
            picture.data = b'no picture at all'
        messages.append(('/camera/image', number, picture))
        messages.append(('/camera/flow_truth', number, flow_message(still, header(number))))
    write(tmp_path / 'bag', messages)
    report = EVALUATION(str(tmp_path / 'bag'))
    assert len(report.frames) == 3
    assert [frame.flow is not None for frame in report.frames] == [False, True, False]
    (problem,) = report.problems
    assert problem.topic == '/camera/image'
    assert 'image 2 not used' in problem.message


def cut(path, share):
    (file,) = path.glob('*.mcap')
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    return file


def test_a_bag_cut_in_mid_chunk_is_evaluated_up_to_there(tmp_path):
    # Chunks are a megabyte: each image of this size is about a third of one.
    write_drive(tmp_path / 'bag', drive(12, size=(300, 400)))
    file = cut(tmp_path / 'bag', 0.7)
    report = LABELS_ALONE(str(tmp_path / 'bag'))
    assert 2 <= len(report.frames) < 12
    (problem,) = report.problems
    assert (problem.source, problem.topic) == (str(tmp_path / 'bag'), '/camera/image_raw')
    assert f'{file}: cut short' in problem.message


def test_a_cut_sqlite3_bag_is_evaluated_up_to_the_cut(tmp_path):
    messages = [
        entry
        for number in range(8)
        for entry in (
            ('/camera/image', number, compressed(number)),
            ('/camera/labels_truth', number, labels_message(truth(number), header(number))),
        )
    ]
    write(tmp_path / 'bag', messages, StoragePlugin.SQLITE3)
    (file,) = (tmp_path / 'bag').glob('*.db3')
    whole = LABELS_ALONE(str(tmp_path / 'bag'))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    report = LABELS_ALONE(str(tmp_path / 'bag'))
    kept = len(report.frames)
    assert 2 <= kept < 8
    # The truth of the last image may lie behind the cut.
    assert [frame.labels for frame in report.frames[:-1]] == [
        frame.labels for frame in whole.frames[: kept - 1]
    ]
    (problem,) = report.problems
    assert (problem.source, problem.topic) == (str(tmp_path / 'bag'), '/camera/image')
    assert f'{file}: cut short; the' in problem.message


def test_an_mcap_without_an_index_is_evaluated_whole(tmp_path):
    write_drive(tmp_path / 'bag', drive(2))
    (file,) = (tmp_path / 'bag').glob('*.mcap')
    content = file.read_bytes()
    summary = struct.unpack_from('<Q', content, len(content) - 28)[0]
    end = b'\x02' + struct.pack('<Q', 20) + bytes(20) + content[-8:]
    file.write_bytes(content[:summary] + end)
    assert len(LABELS_ALONE(str(tmp_path / 'bag')).frames) == 2
    file.write_bytes(content[:summary])  # as a recorder leaves it that was killed
    report = LABELS_ALONE(str(file))
    assert len(report.frames) == 2
    assert 'cut short' in report.problems[0].message


def test_a_topic_whose_type_is_missing_is_told_and_the_rest_evaluated(tmp_path):
    messages = [
        ('/camera/image', 0, compressed(0)),
        ('/lost', 0, b'\0\1\0\0\0', 'lost_msgs/msg/Thing'),
        ('/camera/labels_truth', 0, labels_message(truth(0), header(0))),
    ]
    write(tmp_path / 'bag', messages, StoragePlugin.SQLITE3)
    report = LABELS_ALONE(str(tmp_path / 'bag'))
    assert report.frames[0].labels is not None
    (problem,) = report.problems
    assert (problem.source, problem.topic) == (str(tmp_path / 'bag'), '/lost')
    assert 'lost_msgs/msg/Thing is not installed' in problem.message


def test_truth_that_does_not_fit_is_told_and_the_rest_evaluated(tmp_path):
    unknown = truth(2)
    unknown[0, 0] = 77
    labels = [truth(0), truth(1)[:-8], unknown]
    messages = [
        entry
        for number in range(3)
        for entry in (
            ('/camera/image', number, compressed(number)),
            ('/camera/labels_truth', number, labels_message(labels[number], header(number))),
        )
    ]
    write(tmp_path / 'bag', messages)
    report = LABELS_ALONE(str(tmp_path / 'bag'))
    assert [frame.labels is not None for frame in report.frames] == [True, False, False]
    assert {problem.topic for problem in report.problems} == {'/camera/labels_truth'}
    texts = ' '.join(problem.message for problem in report.problems)
    assert '(40, 64), their image is (48, 64)' in texts
    assert 'ids 77 are unknown; known are 0 to 18 of cityscapes, and 255' in texts


def test_truth_whose_images_never_come_is_told_and_not_kept(tmp_path):
    messages = [('/camera/image', 0, compressed(0))]
    for number in range(50):  # of later stamps than any image
        messages.append(
            ('/camera/labels_truth', number, labels_message(truth(0), header(number + 10)))
        )
    write(tmp_path / 'bag', messages)
    (problem,) = LABELS_ALONE(str(tmp_path / 'bag')).problems
    assert problem.topic == '/camera/labels_truth'
    assert 'no image of that stamp came in time (20 times)' in problem.message


def test_a_bag_without_images_is_refused_with_its_topics(tmp_path):
    write(tmp_path / 'bag', [('/lost', 0, b'\0\1\0\0\0', 'lost_msgs/msg/Thing')])
    with pytest.raises(InputError, match='bag: no image topic; its topics are /lost'):
        LABELS_ALONE(str(tmp_path / 'bag'))


def test_a_missing_topic_of_truth_is_told_with_those_there(tmp_path):
    write_drive(tmp_path / 'bag', drive(1))
    evaluation = replace(LABELS_ALONE, choice=BagChoice(labels_topic='/truth'))
    (problem,) = evaluation(str(tmp_path / 'bag')).problems
    assert problem.topic == '/truth'
    assert '/camera/labels_truth' in problem.message


def test_a_copy_has_the_messages_of_the_bag_and_the_results(tmp_path):
    write_drive(tmp_path / 'bag', drive(3), frame_id='frame_0')
    evaluation = replace(EVALUATION, record=tmp_path / 'copies')
    report = evaluation(str(tmp_path / 'bag'))
    with Bag(tmp_path / 'bag') as bag:
        sent = sorted(bag.messages())
    (made,) = (tmp_path / 'copies').iterdir()
    assert made.name.startswith('bag-')
    with Bag(made) as copy:
        assert {name: topic.count for name, topic in copy.topics.items()} == {
            '/camera/image_raw': 3,
            '/camera/labels_truth': 3,
            '/dense_perception/confidence': 3,
            '/dense_perception/flow': 2,
            '/dense_perception/labels': 3,
        }
        assert sorted(copy.messages(['/camera/image_raw', '/camera/labels_truth'])) == sent
        (_, stamp_ns, data), *_ = copy.messages(['/dense_perception/labels'])
        message = deserialize(data, 'sensor_msgs/msg/Image')
        labels = message_to_labels(message)
    assert message.header == header(0)
    segmenter = evaluation.predictors().segmenter
    np.testing.assert_array_equal(labels, segmenter.segment(image(0)).labels)
    assert stamp_ns == 10**9
    # A copy can be evaluated in its turn; results in it are no camera.
    assert without_run(EVALUATION(str(made)))[2] == without_run(report)[2]
    with pytest.raises(InputError, match='exists already'):
        evaluation(str(tmp_path / 'bag'))


def test_bags_of_one_name_in_two_folders_have_a_copy_each(tmp_path):
    record = tmp_path / 'copies'
    for number, folder in enumerate(('north', 'south')):
        write_drive(tmp_path / folder / 'bag', [*drive(2)][number:])
        replace(LABELS_ALONE, record=record)(str(tmp_path / folder / 'bag'))
    counts = []
    for copy in record.iterdir():
        with Bag(copy) as bag:
            counts.append(bag.topics['/dense_perception/labels'].count)
    assert sorted(counts) == [1, 2]


def test_a_copy_opens_in_the_reader_of_rosbags_with_the_results_beside_the_images(tmp_path):
    write_drive(tmp_path / 'bag', drive(2))
    evaluation = replace(EVALUATION, record=tmp_path / 'copies')
    evaluation(str(tmp_path / 'bag'))
    topics = {'/camera/image_raw', '/camera/labels_truth'}
    results = {f'/dense_perception/{kind}' for kind in ('labels', 'confidence', 'flow')}
    labels = {}
    with AnyReader([*(tmp_path / 'copies').iterdir()]) as reader:
        assert set(reader.topics) == topics | results
        for connection, stamp_ns, data in reader.messages():
            if connection.topic == '/dense_perception/labels':
                message = reader.deserialize(data, connection.msgtype)
                assert message.encoding == 'mono8'
                labels[stamp_ns] = message.data.reshape(message.height, message.width)
    assert [*labels] == [10**9, 10**9 + 10**8]
    found = evaluation.predictors().segmenter.segment(image(1)).labels
    np.testing.assert_array_equal(labels[10**9 + 10**8], found)


def test_a_copy_opens_in_the_reader_of_mcap_with_the_results_beside_the_images(tmp_path):
    mcap = pytest.importorskip('mcap.reader')
    write_drive(tmp_path / 'bag', drive(2))
    replace(EVALUATION, record=tmp_path / 'copies')(str(tmp_path / 'bag'))
    (file,) = (tmp_path / 'copies').glob('*/*.mcap')
    counts = {}
    with file.open('rb') as opened:
        for schema, channel, _ in mcap.make_reader(opened).iter_messages():
            assert schema.name == 'sensor_msgs/msg/Image'
            counts[channel.topic] = counts.get(channel.topic, 0) + 1
    assert counts == {
        '/camera/image_raw': 2,
        '/camera/labels_truth': 2,
        '/dense_perception/labels': 2,
        '/dense_perception/confidence': 2,
        '/dense_perception/flow': 1,
    }


@needs_bags
def test_a_copy_leaves_no_topic_of_a_foreign_bag_out(tmp_path):
    source = BAGS / 'camera_sqlite3_crystal' / 'sample.db3'
    report = replace(LABELS_ALONE, record=tmp_path)(str(source))
    assert len(report.frames) == 1
    (made,) = tmp_path.iterdir()
    with Bag(source) as bag, Bag(made) as copy:
        assert set(bag.topics) < set(copy.topics)


@needs_bags
@pytest.mark.parametrize(
    'name', ['rosbag2_sqlite3/talker', 'rosbag2_mcap/wbag', 'rosbag2_mcap/cdr_test']
)
def test_recordings_of_others_without_a_camera_are_refused_with_their_topics(name):
    with pytest.raises(InputError, match=f'{name}: no image topic; its topics are /?[a-zA-Z]+'):
        LABELS_ALONE(str(BAGS / name))


@needs_bags
@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('rosbag2_sqlite3/wrong_rmw_test', 'wrong_format'),
        ('foxglove_json_mcap/custom-camera-model.mcap', 'Profile is not ros2'),
    ],
)
def test_what_is_no_ros_recording_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        LABELS_ALONE(str(BAGS / name))


def test_a_bag_at_a_url_gives_the_figures_of_the_bag_here(tmp_path):
    write_drive(tmp_path / 'bag', drive(1))
    here = LABELS_ALONE(str(tmp_path / 'bag'))
    there = LABELS_ALONE(f'file://{tmp_path}/bag')
    assert there.figures()['mean_iou'] == here.figures()['mean_iou']
    assert there.sources[0].name == f'file://{tmp_path}/bag'
    shutil.rmtree(tmp_path / 'bag')
    with pytest.raises(InputError, match='cannot be fetched|no such bag'):
        LABELS_ALONE(f'file://{tmp_path}/bag')
