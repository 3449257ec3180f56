"""Frames that scale int8, from folders, videos and bags."""

import cv2
from dense_perception.data.drives import DriveFrame
from dense_perception.errors import InputError
from dense_perception.predictors.engines import calibration
from dense_perception.predictors.engines.calibration import (
    calibration_runs,
    calibration_state,
    check_calibration,
)
from dense_perception.predictors.engines.settings import EngineSettings
import numpy as np
import pytest

SIZE = (24, 32)
ROS = pytest.mark.ros


def image(number, seed=0):
    return np.random.default_rng((seed, number)).integers(0, 256, (*SIZE, 3), np.uint8)


def settings(path, count=4):
    return EngineSettings(calibration_frames=str(path), calibration_count=count)


def assert_runs(runs, numbers, seed=0):
    expected = [[image(number, seed) for number in run] for run in numbers]
    np.testing.assert_array_equal(np.array(runs), np.array(expected))


@pytest.fixture
def write_bag(tmp_path):
    """Return a function that writes ten images as a bag; bags can then be read."""
    bags = pytest.importorskip('dense_perception.ros.bags')
    from dense_perception.ros.calibration_bags import read_calibration_bags

    def write(name='bag', seed=0):
        labels = np.zeros(SIZE, np.uint8)  # images too, on a topic that is no camera's
        frames = [DriveFrame((n + 1) * 10**8, image(n, seed), labels) for n in range(10)]
        bags.write_drive(tmp_path / name, frames)
        return tmp_path / name

    read_calibration_bags()
    return write


@ROS
@pytest.mark.parametrize('single', [False, True])
def test_a_bag_gives_evenly_spaced_frames_of_its_camera(write_bag, single):
    path = write_bag()
    if single:
        (path,) = path.glob('*.mcap')
    check_calibration(settings(path), 1)
    scaling, judging = calibration_runs(settings(path), SIZE, 1)
    assert_runs(judging, [[0]])
    assert_runs(scaling, [[3], [6], [9]])


@ROS
def test_pairs_of_a_bag_follow_each_other(write_bag):
    scaling, judging = calibration_runs(settings(write_bag(), count=3), SIZE, 2)
    assert_runs(judging, [[0, 1]])
    assert_runs(scaling, [[4, 5], [8, 9]])


@ROS
def test_another_bag_in_the_place_of_one_gives_its_own_frames(write_bag, tmp_path):
    path = write_bag()
    before = calibration_state(settings(path))
    path.rename(tmp_path / 'moved')
    write_bag(seed=1)
    assert_runs(calibration_runs(settings(path), SIZE, 1)[0], [[3], [6], [9]], seed=1)
    assert calibration_state(settings(path)) != before


def write_messages(path, topic, messages):
    """Write messages of one type at 0, 1, 2, ... ns."""
    from dense_perception.ros.bags import BAG_VERSION, typestore
    from rclpy.serialization import serialize_message
    from rosbags.rosbag2 import StoragePlugin, Writer

    package, name = type(messages[0]).__module__.split('.')[0], type(messages[0]).__name__
    with Writer(path, version=BAG_VERSION, storage_plugin=StoragePlugin.SQLITE3) as writer:
        to = writer.add_connection(topic, f'{package}/msg/{name}', typestore=typestore())
        for stamp_ns, message in enumerate(messages):
            writer.write(to, stamp_ns, serialize_message(message))


@ROS
@pytest.mark.usefixtures('write_bag')
def test_a_bag_without_images_is_refused_with_what_it_has(tmp_path):
    from std_msgs.msg import String

    path = tmp_path / 'no images'
    write_messages(path, '/speed', [String(data='fast')])
    with pytest.raises(InputError, match=r'no images: no image topic; its topics are /speed'):
        check_calibration(settings(path), 1)


@ROS
def test_a_bag_of_too_few_images_is_refused(write_bag):
    with pytest.raises(InputError, match=r'bag holds 10 images; 11 are needed'):
        check_calibration(settings(write_bag()), 10)


@ROS
@pytest.mark.parametrize('damage', ['cut', 'no bag', 'missing'])
def test_a_bag_that_cannot_be_read_is_named(write_bag, damage):
    (file,) = write_bag().glob('*.mcap')
    if damage == 'cut':
        file.write_bytes(file.read_bytes()[:-300])
    elif damage == 'no bag':
        file.write_bytes(b'no bag at all')
    else:
        file.unlink()
    with pytest.raises(InputError, match=r'bag_?0?\.mcap: (not a readable ROS 2|no such) bag'):
        check_calibration(settings(file), 1)


@ROS
@pytest.mark.usefixtures('write_bag')
def test_only_the_images_that_are_taken_need_to_be_whole(tmp_path):
    from dense_perception.ros.messages import color_message
    from std_msgs.msg import Header

    messages = [color_message(image(number), Header()) for number in range(10)]
    messages[3].encoding = 'unknown'
    write_messages(tmp_path / 'bag', '/eye', messages)
    scaling, judging = calibration_runs(settings(tmp_path / 'bag', count=2), SIZE, 1)
    assert_runs([*judging, *scaling], [[0], [9]])
    message = "bag: image at 3 ns on /eye: image encoding is 'unknown'"
    with pytest.raises(InputError, match=message):
        calibration_runs(settings(tmp_path / 'bag', count=4), SIZE, 1)


def test_a_bag_is_refused_where_nothing_reads_bags(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, '_bag_openers', [])
    with pytest.raises(InputError, match=r'drive\.mcap: a bag, which is read by ROS 2: call'):
        check_calibration(settings(tmp_path / 'drive.mcap'), 1)


def test_a_video_gives_evenly_spaced_frames(tmp_path):
    path = tmp_path / 'drive.avi'
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10.0, SIZE[::-1])
    for number in range(10):
        video.write(np.full((*SIZE, 3), 20 * number, np.uint8))
    video.release()
    scaling, judging = calibration_runs(settings(path), SIZE, 1)
    assert [round(run[0].mean() / 20) for run in (*judging, *scaling)] == [0, 3, 6, 9]


def test_a_file_that_is_no_video_is_named(tmp_path):
    for name in ('notes.txt', 'drive.mp4'):
        (tmp_path / name).write_text('no video')
        with pytest.raises(InputError, match=name):
            check_calibration(settings(tmp_path / name), 1)


def test_a_source_that_ends_before_its_time_gives_what_it_has(tmp_path, monkeypatch):
    class Short:
        """Ten images by its header, and fewer behind it."""

        def __init__(self, images):
            self.images = images

        def __len__(self):
            return 10

        def read(self, wanted):
            return (image(number) for number in wanted if number < self.images)

    monkeypatch.setattr(calibration, '_bag_openers', [lambda path: Short(7)])
    scaling, judging = calibration_runs(settings(tmp_path / 'a.mcap'), SIZE, 1)
    assert_runs([*judging, *scaling], [[0], [3], [6]])
    monkeypatch.setattr(calibration, '_bag_openers', [lambda path: Short(3)])
    with pytest.raises(InputError, match=r'a\.mcap ends after 1 of 4 images'):
        calibration_runs(settings(tmp_path / 'a.mcap'), SIZE, 1)


def test_another_picture_in_a_folder_changes_what_describes_it(tmp_path):
    assert calibration_state(EngineSettings()) == ''
    cv2.imwrite(str(tmp_path / '0.png'), image(0))
    before = calibration_state(settings(tmp_path))
    assert calibration_state(settings(tmp_path)) == before
    cv2.imwrite(str(tmp_path / '1.png'), image(1))
    assert calibration_state(settings(tmp_path)) != before
