from dataclasses import replace
from pathlib import Path

from dense_perception.data.drives import DriveFrame
from dense_perception.errors import InputError
from dense_perception.evaluation.report_json import read_report
from dense_perception.ros.bag_evaluation import BagEvaluation
from dense_perception.ros.bags import Bag, write_drive
from dense_perception.ros.replay import replay_bag
from dense_perception.ros.running import RunError
from dense_perception.settings import PerceptionSettings
import numpy as np
import pytest

pytestmark = pytest.mark.ros

SIZE = (48, 64)
LAUNCH = Path(__file__).parents[2] / 'launch' / 'evaluate.launch.py'
EVALUATION = BagEvaluation(
    PerceptionSettings(device='cpu', precision='float32', segmentation_width=64, flow_width=64)
)


def drive(count, first_ns=10**9, period_ns=10**8):
    for number in range(count):
        generator = np.random.default_rng(number)
        image = generator.integers(0, 256, (*SIZE, 3), np.uint8)
        labels = generator.integers(0, 19, SIZE, np.uint8)
        yield DriveFrame(first_ns + number * period_ns, image, labels)


@pytest.mark.slow
def test_a_slow_replay_gives_the_figures_of_every_image(ros_environment, tmp_path):
    write_drive(tmp_path / 'bag', drive(4), camera_matrix=np.eye(3))
    offline = EVALUATION(str(tmp_path / 'bag'))
    evaluation = replace(EVALUATION, record=tmp_path / 'copies')
    replayed = replay_bag(tmp_path / 'bag', evaluation, tmp_path / 'out', rate=0.05)
    report = replayed.report
    robot = report.robot
    assert (robot.frames_in, robot.frames_out) == (4, 4)
    assert (robot.frames_dropped, robot.frames_bad) == (0, 0)
    for name, value in offline.figures().items():
        if not name.startswith('latency'):
            assert report.figures()[name] == pytest.approx(value, abs=1e-6), name
    assert report.models == offline.models
    ages_ms = [delivery.age_ms for delivery in robot.deliveries]
    # Two seconds between images of a recording with a tenth: each came before the next image, so
    # that the truth on delivery is that of the image.
    assert min(ages_ms) > 0
    assert max(ages_ms) < 100
    assert report.figures()['delivered_mean_iou'] == pytest.approx(offline.figures()['mean_iou'])
    pictures = replayed.reader.labels(report.frames[0])
    assert [title for title, _ in pictures][0] == 'image'
    (made,) = (tmp_path / 'copies').iterdir()
    with Bag(made) as copy:
        assert copy.topics['/dense_perception/labels'].count == 4
        assert copy.topics['/dense_perception/flow'].count == 3
        assert copy.topics['/camera/camera_info'].count == 4


@pytest.mark.slow
def test_images_that_come_too_fast_are_counted_as_dropped(ros_environment, tmp_path):
    write_drive(tmp_path / 'bag', drive(200, period_ns=2_000_000))
    report = replay_bag(tmp_path / 'bag', EVALUATION, tmp_path / 'out').report
    robot = report.robot
    assert robot.frames_in == 200
    assert 0 < robot.frames_out < 200
    assert robot.frames_dropped == 200 - robot.frames_out
    assert report.figures()['age_p50'] > 0
    # Labels are of random pictures: late ones have the truth of another.
    assert robot.delivered.counts.sum() == robot.frames_out * SIZE[0] * SIZE[1]


@pytest.mark.slow
def test_the_launch_file_leaves_a_report(ros_environment, launched, tmp_path):
    write_drive(tmp_path / 'bag', drive(3))
    launch = launched(
        LAUNCH,
        f'bag:={tmp_path / "bag"}',
        f'out:={tmp_path / "out"}',
        'device:=cpu',
        'rate:=0.1',
        'options:=--precision float32 --width 64 --flow-width 64',
    )
    launch.wait_for('process has finished cleanly', timeout_s=120)
    report = read_report(tmp_path / 'out' / 'report.json')
    assert report.robot.frames_out == 3
    assert (tmp_path / 'out' / 'report.html').is_file()


def test_without_the_ros2_command_it_is_asked_for(ros_environment, tmp_path, monkeypatch):
    write_drive(tmp_path / 'bag', drive(1))
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(RunError, match='ros2 command is not on the PATH'):
        replay_bag(tmp_path / 'bag', EVALUATION, tmp_path / 'out')


def test_images_without_stamps_are_refused_before_anything_starts(tmp_path):
    write_drive(tmp_path / 'bag', drive(2, first_ns=0, period_ns=0))
    with pytest.raises(InputError, match='/camera/image_raw have no stamps'):
        replay_bag(tmp_path / 'bag', EVALUATION, tmp_path / 'out')


def test_a_missing_bag_is_named(tmp_path):
    with pytest.raises(InputError, match='missing: no such bag'):
        replay_bag(tmp_path / 'missing', EVALUATION, tmp_path / 'out')
