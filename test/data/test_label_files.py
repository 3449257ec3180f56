import cv2
from dense_perception.data.label_files import (
    cityscapes_instances,
    kitti_instances,
    LabelCoding,
    read_mapping,
)
from dense_perception.errors import InputError
from dense_perception.labels import CITYSCAPES
import numpy as np
import pytest


def write(path, array):
    assert cv2.imwrite(str(path), array)
    return path


@pytest.mark.parametrize('depth', [np.uint8, np.uint16])
def test_values_of_8_and_16_bits_become_classes(tmp_path, depth):
    path = write(tmp_path / 'a.png', np.array([[7, 26, 0]], depth))
    labels = LabelCoding.of_values({7: 0, 26: 13, 0: 255}).read(path)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 13, 255]]


def test_values_above_255_are_told_apart(tmp_path):
    path = write(tmp_path / 'a.png', np.array([[300, 44]], np.uint16))
    assert LabelCoding.of_values({300: 1, 44: 2}).read(path).tolist() == [[1, 2]]


def test_unknown_ids_are_named_with_their_file(tmp_path):
    path = write(tmp_path / 'a.png', np.array([[7, 77, 40, 77]], np.uint8))
    with pytest.raises(
        InputError, match=r'a.png: label ids 40, 77 are unknown \(3 pixels\); known are 7, 8'
    ):
        LabelCoding.of_values({7: 0, 8: 1}).read(path)


def test_of_many_unknown_ids_the_first_are_named(tmp_path):
    path = write(tmp_path / 'a.png', np.arange(100, 130, dtype=np.uint8)[None])
    with pytest.raises(InputError, match='108, 109 and 20 more are unknown'):
        LabelCoding.of_values({7: 0}).read(path)


@pytest.mark.parametrize('alpha', [[], [255]])
def test_colours_become_classes(tmp_path, alpha):
    path = write(  # OpenCV's order is blue, green, red
        tmp_path / 'a.png', np.array([[[3, 2, 1, *alpha], [9, 8, 7, *alpha]]], np.uint8)
    )
    assert LabelCoding.of_rgb({(1, 2, 3): 4, (7, 8, 9): 255}).read(path).tolist() == [[4, 255]]


def test_unknown_colour_is_named_with_its_file(tmp_path):
    path = write(tmp_path / 'a.png', np.full((2, 2, 3), (0, 0, 255), np.uint8))
    with pytest.raises(InputError, match='a.png: label colours #ff0000 are unknown'):
        LabelCoding.of_rgb({(0, 0, 0): 0}).read(path)


def test_picture_of_another_kind_is_refused(tmp_path):
    color = write(tmp_path / 'color.png', np.zeros((2, 2, 3), np.uint8))
    grey = write(tmp_path / 'grey.png', np.zeros((2, 2), np.uint8))
    (tmp_path / 'text.png').write_text('no picture')
    with pytest.raises(InputError, match=r'color.png: 3 channels .* one 8- or 16-bit channel'):
        LabelCoding.of_values({0: 0}).read(color)
    with pytest.raises(InputError, match=r'grey.png: 1 channels of uint8; .* of colour'):
        LabelCoding.of_rgb({(0, 0, 0): 0}).read(grey)
    with pytest.raises(InputError, match='text.png: 10 bytes that cannot be decoded'):
        LabelCoding.of_values({0: 0}).read(tmp_path / 'text.png')
    with pytest.raises(InputError, match='none.png: cannot be read'):
        LabelCoding.of_values({0: 0}).read(tmp_path / 'none.png')


def test_mapping_file_gives_classes_to_values(tmp_path):
    (tmp_path / 'labels.yaml').write_text(
        'label_set: cityscapes\nlabels:\n  1: road\n  300: traffic light\n  0: ignore\n'
    )
    coding, label_set = read_mapping(tmp_path / 'labels.yaml')
    assert label_set is CITYSCAPES
    path = write(tmp_path / 'a.png', np.array([[0, 1, 300]], np.uint16))
    assert coding.read(path).tolist() == [[255, 0, 6]]


def test_mapping_file_gives_classes_to_colours(tmp_path):
    (tmp_path / 'labels.yaml').write_text(
        'label_set: camvid\n'
        "labels:\n  '#804080': road\n  128, 128, 128: sky\n  64 0 128: car\n  0, 0, 0: ignore\n"
    )
    coding, _ = read_mapping(tmp_path / 'labels.yaml')
    rgb = np.array([[[128, 64, 128], [128, 128, 128], [64, 0, 128], [0, 0, 0]]], np.uint8)
    path = write(tmp_path / 'a.png', rgb[..., ::-1])
    assert coding.read(path).tolist() == [[3, 0, 8, 255]]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('label_set: [', 'no YAML'),
        ('- road', 'exactly the keys label_set and labels'),
        ('label_set: camvid', 'exactly the keys label_set and labels'),
        ('label_set: kitti\nlabels: {0: road}', "label_set is 'kitti'; known are cityscapes"),
        ('label_set: [a]\nlabels: {0: road}', 'label_set is'),
        ('label_set: camvid\nlabels: {}', 'labels must map a raw value or a colour'),
        ('label_set: camvid\nlabels: {0: horse}', "camvid has no class 'horse'; it has sky"),
        ('label_set: camvid\nlabels: {0: road, "#000000": sky}', 'both values and colours'),
        ('label_set: camvid\nlabels: {70000: road}', 'raw value 70000 does not fit 16 bits'),
        ('label_set: camvid\nlabels: {-1: road}', 'raw value -1 does not fit 16 bits'),
        ('label_set: camvid\nlabels: {red: road}', "'red' is neither a raw value nor a colour"),
        ('label_set: camvid\nlabels: {300 0 0: road}', 'is neither a raw value nor a colour'),
        ('label_set: camvid\nlabels: {true: road}', 'is neither a raw value nor a colour'),
    ],
)
def test_wrong_mapping_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / 'labels.yaml'
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_mapping(path)
    assert str(path) in str(caught.value)


def test_cityscapes_objects_are_numbered_within_their_class(tmp_path):
    # A person in a group, the first and third person, a caravan, the road.
    path = write(tmp_path / 'a.png', np.array([[24, 24000, 24002, 29001, 7]], np.uint16))
    assert cityscapes_instances(path).tolist() == [[-1, 11000, 11002, -1, -1]]


def test_kitti_objects_are_numbered_within_their_class(tmp_path):
    # Cars without and with a number, an object of a class that is not evaluated, unlabelled.
    path = write(
        tmp_path / 'a.png', np.array([[26 * 256, 26 * 256 + 2, 29 * 256 + 1, 0]], np.uint16)
    )
    assert kitti_instances(path).tolist() == [[-1, 13002, -1, -1]]
