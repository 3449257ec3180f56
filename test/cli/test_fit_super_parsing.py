import cv2
from dense_perception.cli.evaluate import main as evaluate
from dense_perception.cli.fit_super_parsing import main
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.labels import CITYSCAPES
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.tensors import images_to_tensor, preprocess, resize
from dense_perception.weights.checkpoint import load_weights
import numpy as np
import pytest
import torch

WORLD = RoadWorld(0, RoadWorldSettings(height=60, width=80))
MAPPING = 'label_set: cityscapes\nlabels:\n  255: ignore\n' + ''.join(
    f'  {index}: {name}\n' for index, name in enumerate(CITYSCAPES.names)
)
SMALL = ('--columns', '0', '--smallest', '20', '--added', '0.001')


def write_frames(images, labels, numbers, name='{:03}.png', table=None):
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for number in numbers:
        frame = WORLD.frame(40 * number)
        truth = frame.labels if table is None else table[frame.labels].astype(np.uint8)
        assert cv2.imwrite(str(images / name.format(number)), frame.image[:, :, ::-1])
        assert cv2.imwrite(str(labels / name.format(number)), truth)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder of labelled images: six to learn, two to score on."""
    root = tmp_path_factory.mktemp('own')
    write_frames(root / 'images' / 'train', root / 'labels' / 'train', range(6))
    write_frames(root / 'images' / 'val', root / 'labels' / 'val', (6, 7))
    (root / 'labels.yaml').write_text(MAPPING)
    return root


@pytest.fixture(scope='module')
def fitted(folder):
    out = folder / 'fitted.safetensors'
    assert main(['--data', str(folder), '--out', str(out), *SMALL]) == 0
    return out


def test_file_holds_the_images_to_train_on_and_labels_as_any_other(folder, fitted):
    network, card = load_weights(fitted)
    assert card.network == 'super_parsing'
    assert card.notes == {'data': 'folder', 'images': 6, 'columns': 0}
    assert network.scene_of.unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert (network.settings.smallest, network.settings.added) == (20, 0.001)
    segmenter = Segmenter.from_file(fitted, device='cpu')
    assert segmenter.label_set.names == CITYSCAPES.names
    frame = WORLD.frame(120)
    labels = segmenter.segment(frame.image).labels
    known = frame.labels != 255
    assert (labels == frame.labels)[known].mean() > 0.8  # it knows this one by heart


def test_evaluation_scores_it(folder, fitted, capsys):
    arguments = ['segmentation', '--weights', str(fitted), '--label-set', 'cityscapes']
    for kind in ('images', 'labels'):
        arguments += [f'--{kind}', str(folder / kind / 'val')]
    assert evaluate(arguments) == 0
    lines = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:-1])
    assert float(lines['road']) > 0.4
    assert float(lines['pixel accuracy']) > 0.4


def colors(image):
    """Return the colour histogram that the last 24 numbers of a scene's descriptor are."""
    bins = [np.bincount(image[..., channel].ravel() // 32, minlength=8) for channel in range(3)]
    return torch.from_numpy(np.concatenate(bins) / image[..., 0].size).half()


def test_some_images_are_kept_evenly_spaced_and_what_was_written_is_told(folder, tmp_path, capsys):
    out = tmp_path / 'few.safetensors'
    assert main(['--data', str(folder), '--out', str(out), '--images', '3', *SMALL]) == 0
    network, _ = load_weights(out)
    size = out.stat().st_size / 1e6
    assert capsys.readouterr().out == (
        f'{out}: 3 images, {len(network.truth)} superpixels of 19 classes, {size:.1f} MB\n'
    )
    kept = [colors(WORLD.frame(40 * number).image) for number in (0, 2, 5)]
    assert torch.equal(network.scenes[:, -24:], torch.stack(kept))


def test_the_same_command_writes_the_same_file(folder, fitted, tmp_path):
    out = tmp_path / 'again.safetensors'
    assert main(['--data', str(folder), '--out', str(out), *SMALL]) == 0
    assert out.read_bytes() == fitted.read_bytes()


def test_images_are_resized_as_the_segmenter_resizes_them(folder, tmp_path):
    out = tmp_path / 'narrow.safetensors'
    arguments = ['--data', str(folder), '--out', str(out), *SMALL, '--columns', '40']
    assert main([*arguments, '--images', '1']) == 0
    network, card = load_weights(out)
    assert card.notes['columns'] == 40
    image = images_to_tensor([WORLD.frame(0).image])
    (seen,) = network.colors.restore(preprocess(resize(image, 30, 40), card.preprocessing))
    assert torch.equal(network.scenes[0, -24:], colors(seen))


def test_camvid_frames_near_to_validation_frames_are_left_out(tmp_path):
    for split, numbers in (('train', (1, 2, 400)), ('val', (100,))):
        truth = tmp_path / f'{split}annot'
        write_frames(tmp_path / split, truth, numbers, 'A_{:05}.png', np.arange(256) % 11)
    out = tmp_path / 'a.safetensors'
    arguments = ['--dataset', 'camvid', '--data', str(tmp_path), '--out', str(out), *SMALL]
    assert main(arguments) == 0
    network, card = load_weights(out)
    assert torch.equal(network.scenes[:, -24:], colors(WORLD.frame(16000).image)[None])
    assert card.label_set == 'camvid'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--images', '-1'], 'images is -1; it must not be negative'),
        (['--columns', '-1'], 'columns is -1; it must not be negative'),
        (['--added', '0'], 'added is 0.0; it must lie in'),
        (['--dataset', 'camvid'], 'camvid holds SPLIT/NAME.png'),
        (['--dataset', 'camvid', '--mapping', 'a.yaml'], '--mapping is for --dataset folder'),
        (['--mapping', 'a.yaml'], 'a.yaml'),
    ],
)
def test_what_cannot_be_fitted_is_an_error_in_one_line(folder, tmp_path, capsys, options, message):
    out = tmp_path / 'a.safetensors'
    assert main(['--data', str(folder), '--out', str(out), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith('fit_super_parsing: ')
    assert message in error
    assert error.count('\n') == 1
    assert not out.exists()
