import cv2
from dense_perception.cli.evaluate import main
from dense_perception.data.drives import DriveFrame
from dense_perception.evaluation.report_gates import FAILED_STATUS
from dense_perception.evaluation.report_json import read_report
import numpy as np
import pytest

SMALL = ('--device', 'cpu', '--precision', 'float32', '--width', '64')
LABELS_ALONE = (*SMALL, '--flow-weights', '')


def image(number):
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.fixture
def pictures(tmp_path):
    """Return a folder of two images, and one of their labels."""
    for name in ('val', 'valannot'):
        (tmp_path / name).mkdir()
    for number in range(2):
        cv2.imwrite(str(tmp_path / 'val' / f'{number}.png'), image(number))
        labels = np.full((48, 64), number, np.uint8)
        cv2.imwrite(str(tmp_path / 'valannot' / f'{number}.png'), labels)
    return tmp_path


def write_bag(path, count=2):
    bags = pytest.importorskip('dense_perception.ros.bags')
    labels = np.zeros((48, 64), np.uint8)
    frames = [DriveFrame((n + 1) * 10**8, image(n), labels) for n in range(count)]
    bags.write_drive(path, frames)


def shown(folder):
    return (folder / 'report.html').read_text().count('<figure><img src="data:image/jpeg')


def test_folders_are_scored_in_the_classes_of_camvid(pictures, capsys):
    folders = ('--images', f'{pictures}/val', '--labels', f'{pictures}/valannot')
    assert main(['segmentation', *folders, *SMALL, '--out', f'{pictures}/out']) == 0
    printed = capsys.readouterr().out
    assert 'pavement' in printed
    assert 'mean IoU' in printed
    assert '2 images, cpu float32' in printed
    assert len(read_report(pictures / 'out' / 'report.json').frames) == 2
    assert shown(pictures / 'out') == 2 * 4  # best and worst


def test_a_data_set_leaves_a_report_with_the_score_of_its_folders(pictures, capsys):
    out = ('--out', f'{pictures}/out')
    data = ('--data', 'camvid', '--root', str(pictures), '--split', 'val')
    assert main(['offline', *data, *LABELS_ALONE, *out]) == 0
    report = read_report(pictures / 'out' / 'report.json')
    folders = ('--images', f'{pictures}/val', '--labels', f'{pictures}/valannot')
    capsys.readouterr()
    main(['segmentation', *folders, *SMALL])
    assert f'{report.figures()["mean_iou"]:.4f}' in capsys.readouterr().out
    assert shown(pictures / 'out') == 2 * 4
    assert report.run.command.startswith('evaluate offline --data camvid')


@pytest.mark.parametrize(
    ('gate', 'status'),
    [
        (('--fail-below', 'pixel_accuracy=0'), 0),
        (('--fail-below', 'pixel_accuracy=1'), FAILED_STATUS),
        (('--fail-above', 'pixel_accuracy=1'), 0),
    ],
)
def test_a_gate_decides_the_exit_status(pictures, gate, status):
    data = ('--data', 'camvid', '--root', str(pictures), '--split', 'val')
    out = ('--out', f'{pictures}/out')
    assert main(['offline', *data, *LABELS_ALONE, *out, *gate]) == status


def test_the_data_set_needs_its_folder(capsys):
    assert main(['offline', '--data', 'camvid']) == 1
    assert '--data needs --root' in capsys.readouterr().err


@pytest.mark.ros
def test_bags_below_a_folder_are_evaluated_and_the_broken_one_is_told(tmp_path, capsys):
    for name in ('a', 'b'):
        write_bag(tmp_path / 'bags' / name)
    (tmp_path / 'bags' / 'broken.mcap').write_bytes(b'no bag at all')
    command = ['--bags', f'{tmp_path}/bags', *LABELS_ALONE, '--out', f'{tmp_path}/out']
    assert main(command) == 0
    report = read_report(tmp_path / 'out' / 'report.json')
    assert [source.frames for source in report.sources] == [2, 2]
    assert shown(tmp_path / 'out') == 3 * 4  # best, median and worst, from both bags
    assert 'broken.mcap: not a readable ROS 2 bag' in capsys.readouterr().err
    assert main([*command, '--baseline', f'{tmp_path}/out/report.json']) == 0
    printed = capsys.readouterr().out
    assert printed.count('taken over') == 2
    assert 'baseline' in printed


@pytest.mark.ros
def test_a_command_that_evaluates_nothing_fails(tmp_path, capsys):
    (tmp_path / 'broken.mcap').write_bytes(b'no bag at all')
    bag = ('--bag', f'{tmp_path}/broken.mcap')
    assert main([*bag, *LABELS_ALONE, '--out', f'{tmp_path}/out']) == 1
    assert 'no frame was evaluated' in capsys.readouterr().err
