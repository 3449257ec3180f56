import csv
import os
from pathlib import Path
import subprocess
import sys

import cv2
from dense_perception.cli.train import main
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.labels import CITYSCAPES
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import load_weights
from dense_perception.weights.published import find_weights
import numpy as np
import pytest
import torch

# Classes of a user's own. Some have namesakes in the shipped weights, one does not.
MAPPING = """
label_set: lane_robot
classes:
  road: '#804080'
  sky: '#4682b4'
  growth: 0, 200, 0
labels:
  1: road
  2: sky
  3: growth
  0: ignore
"""
ROAD, SKY, GROWTH = 0, 1, 2
SIZE = RoadWorldSettings(height=120, width=160)
SMALL = (
    *('--device', 'cpu', '--precision', 'float32', '--crop-height', '64', '--crop-width', '96'),
    *('--batch', '4', '--warmup-steps', '0', '--average', '0.5', '--log-every', '1'),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder of 20 labelled images, one of them damaged, and a mapping file."""
    root = tmp_path_factory.mktemp('own')
    names = {'road': 1, 'sky': 2, 'vegetation': 3, 'terrain': 3}
    table = np.zeros(256, np.uint8)
    for name, value in names.items():
        table[CITYSCAPES.index(name)] = value
    for kind in ('images', 'labels'):
        (root / kind).mkdir()
    for index in range(20):
        frame = RoadWorld(40 + index // 5, SIZE).frame(40 * (index % 5))
        name = f'{index:02}.png'
        assert cv2.imwrite(str(root / 'images' / name), frame.image[:, :, ::-1])
        assert cv2.imwrite(str(root / 'labels' / name), table[frame.labels])
    damaged = root / 'images' / '07.png'
    damaged.write_bytes(damaged.read_bytes()[:40])
    (root / 'mapping.yaml').write_text(MAPPING)
    return root


def arguments(folder, out, *more):
    mapping = str(folder / 'mapping.yaml')
    return [
        *('segmentation', '--data', str(folder), '--mapping', mapping, '--out', str(out)),
        *('--largest-unreadable-share', '0.1', *SMALL, *more),
    ]


def test_shipped_weights_are_fine_tuned_on_20_images_of_ones_own_classes(
    folder, tmp_path, capsys, caplog
):
    out = tmp_path / 'run'
    more = ('--initial', 'drive', '--steps', '24', '--evaluate-every', '8')
    assert main(arguments(folder, out, *more)) == 0
    printed = capsys.readouterr().out
    assert '16 images to train on, 4 to score on' in printed
    assert 'drive; not from there: front_end.final.weight' in printed
    assert 'passed over' in caplog.text
    assert '07.png' in caplog.text
    segmenter = Segmenter.from_file(out / 'weights.safetensors', device='cpu', precision='float32')
    assert segmenter.label_set.names == ('road', 'sky', 'growth')
    assert segmenter.label_set.classes[GROWTH].color == (0, 200, 0)
    matrix = ConfusionMatrix(3)
    for name in ('00', '05', '10', '15'):  # the held-out ones
        image = cv2.imread(str(folder / 'images' / f'{name}.png'))[:, :, ::-1]
        truth = cv2.imread(str(folder / 'labels' / f'{name}.png'), cv2.IMREAD_UNCHANGED)
        matrix.add(segmenter.segment(np.ascontiguousarray(image)).labels, truth - 1)
    assert matrix.iou[ROAD] > 0.5  # chance has a fifth
    assert matrix.iou[SKY] > 0.5
    _, card = load_weights(out / 'best.safetensors')
    assert card.notes['recipe']['steps'] == 24
    with (out / 'log.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['step'] for row in rows] == ['8', '16', '24']
    assert card.notes['scores']['mean_iou'] == max(float(row['mean_iou']) for row in rows) > 0
    assert rows[-1]['unreadable'] == '1'
    assert 0 <= float(rows[-1]['data_wait']) <= 1


def test_stages_follow_one_another(folder, tmp_path, capsys):
    few = ('--steps', '1', '--width', 'compact')
    assert main(arguments(folder, tmp_path / 'front', *few, '--stage', 'front_end')) == 0
    front = tmp_path / 'front' / 'weights.safetensors'
    more = ('--stage', 'context', '--layers', '7', '--initial', str(front))
    assert main(arguments(folder, tmp_path / 'context', *few, *more)) == 0
    context = tmp_path / 'context' / 'weights.safetensors'
    assert main(arguments(folder, tmp_path / 'joint', *few, '--initial', str(context))) == 0
    (one, _), (two, _), (three, card) = (
        load_weights(tmp_path / name / 'weights.safetensors')
        for name in ('front', 'context', 'joint')
    )
    assert card.arguments == {'classes': 3, 'width': 'compact', 'layers': 7, 'large': False}
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.front_end.state_dict()[name])
    assert not torch.equal(two.front_end.fc7.weight, three.front_end.fc7.weight)
    assert 'not from there: nothing' in capsys.readouterr().out


def test_run_that_is_given_again_goes_on(folder, tmp_path, capsys):
    assert main(arguments(folder, tmp_path, '--steps', '1')) == 0
    assert main(arguments(folder, tmp_path, '--steps', '2')) == 0
    assert 'resuming at step 1' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (('--initial', 'nowhere'), 'nowhere: no such file, and no shipped weights'),
        (('--batch', '0'), 'command line: batch is 0; it must lie in 1 to 4096'),
        (('--stage', 'context'), 'stage is context; it needs the weights of a front end'),
        (('--dataset', 'camvid'), '--mapping is for --dataset folder, not camvid'),
        (('--drives', '3'), 'command line: unknown drives'),
        (('--initial', 'flow'), 'flow: flownet_simple is no segmentation network'),
        (('--device', 'cuda:77'), "device is 'cuda:77', which cannot be used here"),
    ],
)
def test_wrong_choice_is_refused_in_one_line(folder, tmp_path, capsys, more, message):
    assert main(arguments(folder, tmp_path, *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith('train: ')
    assert message in error
    assert error.count('\n') == 1


def test_too_many_damaged_images_are_refused(folder, tmp_path, capsys):
    more = ('--largest-unreadable-share', '0.01')
    assert main(arguments(folder, tmp_path, *more)) == 1
    assert '07.png' in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(folder, tmp_path):
    more = ('--initial', 'drive', '--steps', '2', '--optimizer', 'sgd', '--learning-rate', '0.01')
    command = (sys.executable, '-m', 'torch.distributed.run', '--standalone')
    subprocess.run(
        [
            *(*command, '--nproc-per-node', '2', '-m', 'dense_perception.cli.train'),
            *arguments(folder, tmp_path / 'two', *more),
        ],
        check=True,
        timeout=300,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(Path.cwd()), *sys.path])},
    )
    assert main(arguments(folder, tmp_path / 'one', *more, '--accumulate', '2')) == 0
    one, two = (
        torch.load(tmp_path / name / 'last.pt', weights_only=True) for name in ('one', 'two')
    )
    start, _ = load_weights(find_weights('drive'))
    name = 'front_end.conv5_3.weight'
    moved = (one['network'][name] - start.state_dict()[name]).abs().max()
    assert moved > 0
    for name, value in one['network'].items():
        torch.testing.assert_close(two['network'][name], value, rtol=1e-4, atol=1e-6)
