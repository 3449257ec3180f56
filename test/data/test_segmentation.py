import csv
from pathlib import Path

import cv2
from dense_perception.data.frames import read_picture
from dense_perception.data.segmentation import (
    camvid,
    labelled_folder,
    LabelledFolder,
    read_labels,
    split_sequence,
    without_neighbours,
)
from dense_perception.errors import InputError
from dense_perception.labels import CAMVID, CITYSCAPES
import numpy as np
import pytest

CAMVID_FOLDER = Path(__file__).parents[2].parent / 'shared' / 'data' / 'camvid'
needs_data = pytest.mark.skipif(
    not CAMVID_FOLDER.is_dir(), reason='needs the data beside the checkout'
)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def folder_of(*names):
    """Return a folder by its file names alone; they need not exist to be compared."""
    return LabelledFolder(
        tuple((Path(f'{name}.png'), Path(f'{name}.png')) for name in names), CAMVID
    )


def kept(training, validation):
    return [image.stem for image, _ in without_neighbours(training, validation).pairs]


def test_images_are_read_as_rgb(tmp_path):
    write(tmp_path / 'a.png', np.full((2, 3, 3), (10, 20, 30), np.uint8))  # BGR
    image = read_picture(tmp_path / 'a.png')
    assert image.shape == (2, 3, 3)
    assert (image == (30, 20, 10)).all()


def test_values_that_are_no_class_of_the_set_become_255(tmp_path):
    write(tmp_path / 'a.png', np.array([[0, 10, 11, 18, 19, 254, 255]], np.uint8))
    path = tmp_path / 'a.png'
    assert read_labels(path, CAMVID).tolist() == [[0, 10, 255, 255, 255, 255, 255]]
    assert read_labels(path, CITYSCAPES).tolist() == [[0, 10, 11, 18, 255, 255, 255]]


@pytest.mark.parametrize('array', [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint16)])
def test_label_image_of_another_kind_is_refused_by_name(tmp_path, array):
    write(tmp_path / 'a.png', array)
    with pytest.raises(InputError, match='a.png: .* one 8-bit channel'):
        read_labels(tmp_path / 'a.png', CAMVID)


def test_file_that_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'no image')
    with pytest.raises(InputError, match='a.png: 8 bytes that cannot be decoded'):
        read_picture(tmp_path / 'a.png')
    with pytest.raises(InputError, match='b.png: cannot be read'):
        read_labels(tmp_path / 'b.png', CAMVID)


def test_folder_pairs_images_with_labels_of_the_same_name_in_order(tmp_path):
    for value, name in enumerate(('b', 'a')):
        write(tmp_path / 'train' / f'{name}.jpg', np.full((4, 6, 3), 100, np.uint8))
        write(tmp_path / 'trainannot' / f'{name}.png', np.full((4, 6), value, np.uint8))
    (tmp_path / 'train' / 'notes.txt').write_text('no image')
    samples = list(camvid(tmp_path, 'train'))
    assert [(sample.name, int(sample.labels[0, 0])) for sample in samples] == [('a', 1), ('b', 0)]


def test_image_without_labels_is_named(tmp_path):
    for name in ('a', 'b', 'c'):
        write(tmp_path / 'images' / f'{name}.png', np.zeros((4, 6, 3), np.uint8))
    write(tmp_path / 'labels' / 'a.png', np.zeros((4, 6), np.uint8))
    with pytest.raises(InputError, match='2 label images are missing, the first is .*b.png'):
        labelled_folder(tmp_path / 'images', tmp_path / 'labels', CAMVID)


def test_folder_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(InputError, match='none: no such folder'):
        labelled_folder(tmp_path / 'none', tmp_path, CAMVID)
    with pytest.raises(InputError, match='no picture in it'):
        labelled_folder(tmp_path, tmp_path, CAMVID)


def test_labels_of_another_size_than_their_image_are_named(tmp_path):
    write(tmp_path / 'train' / 'a.png', np.zeros((4, 6, 3), np.uint8))
    write(tmp_path / 'trainannot' / 'a.png', np.zeros((4, 5), np.uint8))
    with pytest.raises(InputError, match=r'a.png is \(4, 5\), its image is \(4, 6\)'):
        camvid(tmp_path, 'train')[0]


def test_training_frames_closer_than_150_frames_to_a_validation_frame_are_left_out():
    training = folder_of('A_000350', 'A_000351', 'A_000500', 'A_000649', 'A_000650')
    assert kept(training, folder_of('A_000500')) == ['A_000350', 'A_000650']


def test_training_frames_of_another_sequence_stay():
    training = folder_of('B_000500', 'A_000500')
    assert kept(training, folder_of('A_000510')) == ['B_000500']


def test_letters_before_a_frame_number_do_not_count():
    assert kept(folder_of('Seq05VD_f00300'), folder_of('Seq05VD_f00330')) == []


def test_name_without_a_frame_number_is_refused():
    with pytest.raises(InputError, match='must end in a frame number'):
        without_neighbours(folder_of('A_000500'), folder_of('A_first'))


@needs_data
@pytest.mark.parametrize(('split', 'count'), [('train', 367), ('val', 101)])
def test_camvid_has_its_published_number_of_images(split, count):
    assert len(camvid(CAMVID_FOLDER, split)) == count


@needs_data
def test_camvid_image_has_labels_below_11_and_255_for_void():
    sample = camvid(CAMVID_FOLDER, 'val')[0]
    assert sample.image.shape == (360, 480, 3)
    assert sample.labels.shape == (360, 480)
    stored = cv2.imread(
        str(CAMVID_FOLDER / 'valannot' / f'{sample.name}.png'), cv2.IMREAD_GRAYSCALE
    )
    assert set(np.unique(stored)) <= set(range(12))
    np.testing.assert_array_equal(sample.labels == 255, stored == 11)
    np.testing.assert_array_equal(sample.labels[stored < 11], stored[stored < 11])


@needs_data
def test_camvid_training_frames_near_validation_frames_are_left_out():
    def frames(split):
        with (CAMVID_FOLDER / f'{split}.csv').open(newline='') as file:
            return [
                (row['name'], row['sequence'], int(row['frame_number']))
                for row in csv.DictReader(file)
            ]

    seen = frames('val')
    expected = [
        name
        for name, sequence, frame in frames('train')
        if min((abs(frame - other) for _, of, other in seen if of == sequence), default=150) >= 150
    ]
    assert 0 < len(expected) < 367
    assert kept(camvid(CAMVID_FOLDER, 'train'), camvid(CAMVID_FOLDER, 'val')) == sorted(expected)


def test_sequence_is_split_from_the_others():
    others, own = split_sequence(folder_of('A_000030', 'B_000030', 'A_000060'), 'A')

    assert [image.stem for image, _ in own.pairs] == ['A_000030', 'A_000060']
    assert [image.stem for image, _ in others.pairs] == ['B_000030']


def test_unknown_sequence_is_refused_with_those_that_there_are():
    with pytest.raises(InputError, match='sequence C; there are A, B'):
        split_sequence(folder_of('A_000030', 'B_000030'), 'C')
