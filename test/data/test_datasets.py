from pathlib import Path
import shutil

import cv2
from dense_perception.data.datasets import find_flow, find_labelled
from dense_perception.data.flow import flow_pairs
from dense_perception.data.flow_files import write_flo, write_kitti_flow
from dense_perception.errors import InputError
from dense_perception.labels import CAMVID, CITYSCAPES
import numpy as np
import pytest

SHARED = Path(__file__).parents[2].parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the data beside the checkout')
PICTURE = np.full((4, 6, 3), 100, np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def copy(source, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)


def cityscapes_tree(root, kind, *frames, depth=np.uint8, value=26):
    """Write images and labels as Cityscapes lays them out; the labels are of one value."""
    for frame in frames:
        city = frame.partition('_')[0]
        write(root / 'leftImg8bit' / 'val' / city / f'{frame}_leftImg8bit.png', PICTURE)
        write(
            root / 'gtFine' / 'val' / city / f'{frame}_gtFine_{kind}.png',
            np.full((4, 6), value, depth),
        )


def kitti_flow_tree(root, images, *frames):
    """Write pairs as KITTI lays them out: known in the left half, visible in the first column."""
    for frame in frames:
        for number in (10, 11):
            write(root / 'training' / images / f'{frame}_{number}.png', PICTURE)
        for kind, columns in (('flow_occ', 3), ('flow_noc', 1)):
            known = np.zeros((4, 6), bool)
            known[:, :columns] = True
            path = root / 'training' / kind / f'{frame}_10.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            write_kitti_flow(path, np.full((4, 6, 2), 2.5, np.float32), known)


@pytest.mark.parametrize('depth', [np.uint8, np.uint16])
@pytest.mark.parametrize(('kind', 'car'), [('labelIds', 26), ('labelTrainIds', 13)])
def test_cityscapes_is_read_over_its_cities_in_order(tmp_path, kind, car, depth):
    frames = ('ulm_000001_000019', 'bonn_000000_000019', 'bonn_000003_000019')
    cityscapes_tree(tmp_path, kind, *frames, depth=depth, value=car)
    samples = find_labelled('cityscapes', tmp_path, 'val')
    assert samples.label_set is CITYSCAPES
    assert [sample.name for sample in samples] == [f'{f}_leftImg8bit' for f in sorted(frames)]
    assert (samples[0].image == 100).all()
    assert (samples[0].labels == 13).all()


def test_cityscapes_label_ids_that_are_not_evaluated_are_unlabelled(tmp_path):
    cityscapes_tree(tmp_path, 'labelIds', 'ulm_0_0')
    path = tmp_path / 'gtFine' / 'val' / 'ulm' / 'ulm_0_0_gtFine_labelIds.png'
    values = np.resize(np.arange(34, dtype=np.uint8), (4, 6))
    values[3] = [28, 29, 30, 31, 32, 33]
    write(path, values)
    labels = find_labelled('cityscapes', tmp_path, 'val')[0].labels
    # trainId of every labelId; cityscapesscripts, helpers/labels.py
    assert labels[0].tolist() == [255, 255, 255, 255, 255, 255]
    assert labels[1].tolist() == [255, 0, 1, 255, 255, 2]
    assert labels[2].tolist() == [3, 4, 255, 255, 255, 5]
    assert labels[3].tolist() == [15, 255, 255, 16, 17, 18]


def test_cityscapes_objects_lie_beside_the_labels(tmp_path):
    cityscapes_tree(tmp_path, 'labelIds', 'ulm_0_0')
    write(
        tmp_path / 'gtFine' / 'val' / 'ulm' / 'ulm_0_0_gtFine_instanceIds.png',
        np.full((4, 6), 26003, np.uint16),
    )
    assert (find_labelled('cityscapes', tmp_path, 'val').instances(0) == 13003).all()


def test_cityscapes_unknown_ids_are_named_with_their_file(tmp_path):
    cityscapes_tree(tmp_path, 'labelIds', 'ulm_0_0', value=34)
    with pytest.raises(InputError, match='ulm_0_0_gtFine_labelIds.png: label ids 34 are unknown'):
        find_labelled('cityscapes', tmp_path, 'val')[0]


def test_cityscapes_image_without_labels_is_named_with_the_layout(tmp_path):
    cityscapes_tree(tmp_path, 'labelIds', 'ulm_0_0', 'ulm_1_0')
    missing = tmp_path / 'gtFine' / 'val' / 'ulm' / 'ulm_1_0_gtFine_labelIds.png'
    missing.unlink()
    with pytest.raises(InputError, match='ulm_1_0_gtFine_labelIds.png: no such file') as caught:
        find_labelled('cityscapes', tmp_path, 'val')
    assert 'gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png' in str(caught.value)


def test_sizes_of_image_and_labels_are_compared(tmp_path):
    cityscapes_tree(tmp_path, 'labelIds', 'ulm_0_0')
    write(tmp_path / 'leftImg8bit/val/ulm/ulm_0_0_leftImg8bit.png', PICTURE[:3])
    with pytest.raises(InputError, match=r'labelIds.png is \(4, 6\), its image is \(3, 6\)'):
        find_labelled('cityscapes', tmp_path, 'val')[0]


def test_kitti_semantics_has_the_ids_of_cityscapes(tmp_path):
    write(tmp_path / 'training' / 'image_2' / '000000_10.png', PICTURE)
    write(tmp_path / 'training' / 'semantic' / '000000_10.png', np.full((4, 6), 7, np.uint8))
    write(tmp_path / 'training' / 'instance' / '000000_10.png', np.full((4, 6), 6657, np.uint16))
    samples = find_labelled('kitti_semantics', tmp_path, 'training')
    assert samples.label_set is CITYSCAPES
    assert (samples[0].labels == 0).all()
    assert (samples.instances(0) == 13001).all()


def test_folder_with_a_mapping_is_read_by_it(tmp_path):
    (tmp_path / 'labels.yaml').write_text('label_set: camvid\nlabels: {5: road, 6: ignore}\n')
    write(tmp_path / 'images' / 'day' / 'a.jpg', PICTURE)
    write(tmp_path / 'labels' / 'day' / 'a.png', np.resize(np.array([5, 6], np.uint8), (4, 6)))
    samples = find_labelled('folder', tmp_path, 'day')
    assert samples.label_set is CAMVID
    assert samples[0].labels[0].tolist() == [3, 255, 3, 255, 3, 255]
    with pytest.raises(InputError, match='no objects are told apart'):
        samples.instances(0)


def test_folder_without_its_mapping_is_refused(tmp_path):
    with pytest.raises(InputError, match='labels.yaml: cannot be read.*images/SPLIT/NAME.png'):
        find_labelled('folder', tmp_path, 'day')


@needs_data
@pytest.mark.parametrize(('split', 'count'), [('train', 367), ('val', 101)])
def test_camvid_is_found_by_name(split, count):
    samples = find_labelled('camvid', SHARED / 'camvid', split)
    assert len(samples) == count
    assert set(np.unique(samples[0].labels)) <= {*range(11), 255}


def test_camvid_ids_above_the_void_are_unknown(tmp_path):
    write(tmp_path / 'val' / 'a.png', PICTURE)
    write(tmp_path / 'valannot' / 'a.png', np.full((4, 6), 12, np.uint8))
    with pytest.raises(InputError, match='a.png: label ids 12 are unknown'):
        find_labelled('camvid', tmp_path, 'val')[0]


def test_flying_chairs_are_split_by_their_list(tmp_path):
    for number in range(1, 6):
        for image in (1, 2):
            write(tmp_path / 'data' / f'{number:05d}_img{image}.ppm', PICTURE)
        write_flo(tmp_path / 'data' / f'{number:05d}_flow.flo', np.ones((4, 6, 2), np.float32))
    (tmp_path / 'FlyingChairs_train_val.txt').write_text('1\n1\n2\n1\n2\n')
    names = {
        split: [pair.name for pair in find_flow('flying_chairs', tmp_path, split)]
        for split in ('train', 'val')
    }
    assert names == {
        'train': [f'flyingchairs/{number:05d}' for number in (1, 2, 4)],
        'val': [f'flyingchairs/{number:05d}' for number in (3, 5)],
    }


@pytest.mark.parametrize('entries', ['1\n', '1\n2\n1\n', '1\n3\n', '1\nx\n'])
def test_list_of_other_chairs_is_refused(tmp_path, entries):
    for number in (1, 2):
        for image in (1, 2):
            write(tmp_path / 'data' / f'{number:05d}_img{image}.ppm', PICTURE)
        write_flo(tmp_path / 'data' / f'{number:05d}_flow.flo', np.ones((4, 6, 2), np.float32))
    (tmp_path / 'FlyingChairs_train_val.txt').write_text(entries)
    with pytest.raises(InputError, match=r'train_val.txt: \d entries for 2 pairs'):
        find_flow('flying_chairs', tmp_path, 'train')


@needs_data
def test_real_chairs_are_the_same_in_their_published_layout(tmp_path):
    stem = 'flownet2_0000003'
    source = SHARED / 'flow' / 'flyingchairs'
    for image in (1, 2):
        picture = cv2.imread(str(source / f'{stem}_img{image}.png'))
        write(tmp_path / 'data' / f'{stem}_img{image}.ppm', picture)
    copy(source / f'{stem}_flow.flo', tmp_path / 'data' / f'{stem}_flow.flo')
    (tmp_path / 'FlyingChairs_train_val.txt').write_text('2\n')
    (pair,) = find_flow('flying_chairs', tmp_path, 'val')
    expected = {entry.name: entry for entry in flow_pairs(SHARED / 'flow')}[pair.name]
    np.testing.assert_array_equal(pair.first, expected.first)
    np.testing.assert_array_equal(pair.second, expected.second)
    np.testing.assert_array_equal(pair.flow, expected.flow)


@needs_data
def test_real_sintel_is_read_in_its_published_layout(tmp_path):
    for scene in ('alley_1', 'cave_2'):
        for kind in ('final', 'flow', 'occlusions', 'invalid'):
            for path in (SHARED / 'flow' / 'sintel' / scene / kind).iterdir():
                copy(path, tmp_path / 'training' / kind / scene / path.name)
    pairs = find_flow('sintel', tmp_path, 'final')
    assert [pair.name for pair in pairs] == [
        'sintel/final/alley_1/frame_0002',
        'sintel/final/cave_2/frame_0002',
    ]
    for pair, scene in zip(pairs, ('alley_1', 'cave_2'), strict=True):
        folder = SHARED / 'flow' / 'sintel' / scene
        hidden = cv2.imread(str(folder / 'occlusions' / 'frame_0002.png'), cv2.IMREAD_GRAYSCALE)
        invalid = cv2.imread(str(folder / 'invalid' / 'frame_0002.png'), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(pair.occluded, hidden == 255)
        np.testing.assert_array_equal(pair.valid, invalid == 0)
        assert 0 < pair.occluded.mean() < 0.5
    with pytest.raises(InputError, match=r'4 files are missing, the first is .*frame_0002.png'):
        find_flow('sintel', tmp_path, 'clean')


@pytest.mark.parametrize(
    ('name', 'images'),
    [('kitti_2012', 'colored_0'), ('kitti_2012', 'image_0'), ('kitti_2015', 'image_2')],
)
def test_kitti_flow_that_is_known_but_not_visible_is_occluded(tmp_path, name, images):
    kitti_flow_tree(tmp_path, images, '000007', '000003')
    pairs = find_flow(name, tmp_path, 'training')
    assert [pair.name for pair in pairs] == ['000003_10', '000007_10']
    pair = pairs[0]
    assert pair.valid[0].tolist() == [True, True, True, False, False, False]
    assert (pair.occluded & pair.valid)[0].tolist() == [False, True, True, False, False, False]
    assert (pair.flow[pair.valid] == 2.5).all()


@needs_data
def test_real_kitti_pair_is_read_in_its_published_layout(tmp_path):
    source = SHARED / 'flow' / 'kitti2012'
    for number in (10, 11):
        copy(source / f'000045_{number}.png', tmp_path / f'training/colored_0/000045_{number}.png')
    for kind in ('flow_occ', 'flow_noc'):  # only the flow of visible pixels is at hand
        copy(source / '000045_10_flow_noc.png', tmp_path / f'training/{kind}/000045_10.png')
    (pair,) = find_flow('kitti_2012', tmp_path, 'training')
    assert pair.valid.sum() == 104330  # README.md of the data
    assert not (pair.occluded & pair.valid).any()


@needs_data
def test_real_middlebury_is_read_in_its_published_layout(tmp_path):
    for scene in ('RubberWhale', 'Urban2'):
        source = SHARED / 'flow' / 'middlebury' / scene
        for name in ('frame10.png', 'frame11.png'):
            copy(source / name, tmp_path / 'other-data' / scene / name)
        copy(source / 'flow10.flo', tmp_path / 'other-gt-flow' / scene / 'flow10.flo')
    pairs = find_flow('middlebury', tmp_path, 'other')
    assert [pair.name for pair in pairs] == ['middlebury/RubberWhale', 'middlebury/Urban2']
    assert pairs[0].valid.mean() == pytest.approx(1 - 0.016, abs=5e-4)  # README.md of the data
    assert pairs[0].occluded is None


def test_flow_file_that_is_missing_is_named_with_the_layout(tmp_path):
    kitti_flow_tree(tmp_path, 'image_2', '000000', '000001')
    (tmp_path / 'training' / 'image_2' / '000001_11.png').unlink()
    with pytest.raises(
        InputError, match=r'1 files are missing, .*image_2/000001_11.png'
    ) as caught:
        find_flow('kitti_2015', tmp_path, 'training')
    assert 'training/flow_occ/000000_10.png' in str(caught.value)


def test_mask_of_another_size_than_the_flow_is_named(tmp_path):
    kitti_flow_tree(tmp_path, 'image_2', '000000')
    path = tmp_path / 'training' / 'flow_noc' / '000000_10.png'
    write_kitti_flow(path, np.zeros((4, 5, 2), np.float32), np.ones((4, 5), bool))
    with pytest.raises(InputError, match=r'flow_noc/000000_10.png is \(4, 5\), .* is \(4, 6\)'):
        find_flow('kitti_2015', tmp_path, 'training')[0]


@pytest.mark.parametrize(
    ('find', 'name', 'split', 'first_missing'),
    [
        (find_labelled, 'cityscapes', 'val', 'leftImg8bit/val: no such folder'),
        (find_labelled, 'camvid', 'test', 'test: no such folder'),
        (find_labelled, 'kitti_semantics', 'training', 'training/image_2: no such folder'),
        (find_flow, 'flying_chairs', 'val', 'data: no such folder'),
        (find_flow, 'sintel', 'clean', 'training/flow: no such folder'),
        (find_flow, 'kitti_2012', 'training', 'training/flow_occ: no such folder'),
        (find_flow, 'kitti_2015', 'training', 'training/flow_occ: no such folder'),
        (find_flow, 'middlebury', 'other', 'other-gt-flow: no such folder'),
    ],
)
def test_what_is_missing_is_named_with_the_layout(tmp_path, find, name, split, first_missing):
    with pytest.raises(InputError, match=f'{first_missing}; {name} holds '):
        find(name, tmp_path, split)
    with pytest.raises(InputError, match=f'none: no such folder; {name} holds '):
        find(name, tmp_path / 'none', split)


def test_unknown_name_or_split_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        InputError, match="no data set 'sintel' here; known are cityscapes, camvid"
    ):
        find_labelled('sintel', tmp_path, 'val')
    with pytest.raises(InputError, match="no data set 'chairs' here; known are flying_chairs"):
        find_flow('chairs', tmp_path, 'val')
    with pytest.raises(InputError, match="cityscapes has no split 'test'; it has train, val"):
        find_labelled('cityscapes', tmp_path, 'test')
