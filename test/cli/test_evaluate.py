import shutil

import cv2
from dense_perception.cli.evaluate import main
from dense_perception.data.drives import DriveFrame, rendered_drive, SHOWN_SEED
from dense_perception.data.flow_files import write_flo
from dense_perception.evaluation.report_gates import FAILED_STATUS
from dense_perception.evaluation.report_json import read_report
import numpy as np
import pytest

SMALL = ('--device', 'cpu', '--precision', 'float32', '--width', '64')
LABELS_ALONE = (*SMALL, '--flow-weights', '')


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Keep built engines away from those of whoever runs the tests."""
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))


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


def test_an_engine_scores_as_torch_does_and_is_named(pictures, capsys):
    for package in ('onnxruntime', 'onnx', 'onnxscript'):
        pytest.importorskip(package)
    data = ('--data', 'camvid', '--root', str(pictures), '--split', 'val', *LABELS_ALONE)
    assert main(['offline', *data, '--out', f'{pictures}/torch']) == 0
    engine = ('--engine', 'onnxruntime-float32', '--baseline', f'{pictures}/torch/report.json')
    assert main(['offline', *data, *engine, '--out', f'{pictures}/engine']) == 0
    torch, engined = (read_report(pictures / name / 'report.json') for name in ('torch', 'engine'))
    for name in ('mean_iou', 'pixel_accuracy'):
        assert engined.figures()[name] == pytest.approx(torch.figures()[name], abs=1e-3)
    named = 'cpu float32; segmentation in onnxruntime-float32 for inputs of '
    assert engined.run.placement.startswith(named)
    assert '% as torch float32' in engined.run.placement
    assert torch.run.placement == 'cpu float32'
    assert f'2 frames, {named}' in capsys.readouterr().out


def test_folders_of_pictures_are_scored_in_an_engine(pictures, capsys):
    folders = ('--images', f'{pictures}/val', '--labels', f'{pictures}/valannot')
    assert main(['segmentation', *folders, *SMALL, '--engine', 'torch-float32']) == 0
    assert '2 images, cpu float32; segmentation in torch-float32 for' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('engine', 'complaint'),
    [
        ('steam', "engine is 'steam'; it must be one of torch, auto,"),
        ('tensorrt-float16', 'tensorrt-float16 is to be evaluated: tensorrt-float16 runs on a'),
        ('openvino-int8', 'openvino-int8 is to be evaluated: openvino-int8 needs'),
    ],
)
def test_an_engine_that_cannot_be_had_is_not_evaluated(pictures, capsys, engine, complaint):
    data = ('--data', 'camvid', '--root', str(pictures), '--split', 'val', *LABELS_ALONE)
    out = ('--out', f'{pictures}/out')
    assert main(['offline', *data, '--engine', engine, *out]) == 1
    assert complaint in capsys.readouterr().err
    assert not (pictures / 'out').exists()


def test_flow_is_compared_in_an_engine(tmp_path, capsys):
    pair = tmp_path / 'middlebury' / 'other'
    pair.mkdir(parents=True)
    for number in (10, 11):
        cv2.imwrite(str(pair / f'frame{number}.png'), image(number))
    write_flo(pair / 'flow10.flo', np.zeros((48, 64, 2), np.float32))
    command = ['flow', '--pairs', str(tmp_path), *SMALL]
    assert main([*command, '--engine', 'torch-float32']) == 0
    assert '1 pairs, cpu float32; flow in torch-float32 for' in capsys.readouterr().out


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
def test_bags_are_evaluated_in_an_engine_and_anew_for_other_frames(tmp_path, capsys):
    write_bag(tmp_path / 'bag')
    write_bag(tmp_path / 'calibration', 3)
    frames = ('--calibration-frames', f'{tmp_path}/calibration')
    engine = (*LABELS_ALONE, '--engine', 'torch-float32', *frames)
    command = ['--bag', f'{tmp_path}/bag', *engine, '--out', f'{tmp_path}/out']
    for taken_over in (0, 1):
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert printed.count('taken over') == taken_over
        assert '2 frames, cpu float32; segmentation in torch-float32 for' in printed
    shutil.rmtree(tmp_path / 'calibration')
    write_bag(tmp_path / 'calibration', 4)
    assert main(command) == 0
    assert 'taken over' not in capsys.readouterr().out


@pytest.mark.ros
def test_workers_do_not_choose_engines_of_their_own(tmp_path, capsys):
    assert main(['--bag', f'{tmp_path}/bag', *LABELS_ALONE, '--engine', 'auto', '--ray']) == 1
    assert 'name the engine' in capsys.readouterr().err


@pytest.mark.ros
@pytest.mark.slow
def test_int8_is_scaled_by_a_bag_and_compared_with_torch(tmp_path, capsys):
    pytest.importorskip('nncf')
    pytest.importorskip('openvino')
    bags = pytest.importorskip('dense_perception.ros.bags')
    bags.write_drive(tmp_path / 'bag', rendered_drive(SHOWN_SEED, 12).frames())
    size = ('--device', 'cpu', '--precision', 'float32', '--width', '240', '--flow-weights', '')
    command = ['--bag', f'{tmp_path}/bag', *size]
    assert main([*command, '--out', f'{tmp_path}/torch']) == 0
    engine = ('--engine', 'openvino-int8', '--calibration-frames', f'{tmp_path}/bag')
    baseline = ('--baseline', f'{tmp_path}/torch/report.json')
    assert main([*command, *engine, *baseline, '--out', f'{tmp_path}/int8']) == 0
    printed = capsys.readouterr().out
    assert 'segmentation in openvino-int8 for inputs of 240 x' in printed
    assert 'baseline' in printed
    torch, int8 = (read_report(tmp_path / name / 'report.json') for name in ('torch', 'int8'))
    assert int8.figures()['mean_iou'] == pytest.approx(torch.figures()['mean_iou'], abs=0.05)


@pytest.mark.ros
def test_a_command_that_evaluates_nothing_fails(tmp_path, capsys):
    (tmp_path / 'broken.mcap').write_bytes(b'no bag at all')
    bag = ('--bag', f'{tmp_path}/broken.mcap')
    assert main([*bag, *LABELS_ALONE, '--out', f'{tmp_path}/out']) == 1
    assert 'no frame was evaluated' in capsys.readouterr().err
