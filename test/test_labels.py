import json
from pathlib import Path

from dense_perception.errors import InputError
from dense_perception.labels import CAMVID, CITYSCAPES, conversion, LABEL_SETS, UNLABELLED
import numpy as np
import pytest

CAMVID_FILE = Path(__file__).parents[1].parent / 'shared' / 'data' / 'camvid' / 'classes.json'

TRAIN_IDS = [  # cityscapesscripts, helpers/labels.py
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign',
    'vegetation', 'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train',
    'motorcycle', 'bicycle',
]  # fmt: skip
SEGNET = [  # SegNet tutorial, Scripts/test_segmentation_camvid.py
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian',
    'bicyclist',
]  # fmt: skip


def test_cityscapes_classes_are_in_train_id_order():
    assert list(CITYSCAPES.names) == TRAIN_IDS


def test_camvid_classes_are_in_the_order_of_segnet():
    assert list(CAMVID.names) == SEGNET


@pytest.mark.skipif(not CAMVID_FILE.is_file(), reason='needs the data beside the checkout')
def test_camvid_colours_are_those_of_the_data_set():
    text = json.dumps(json.loads(CAMVID_FILE.read_text()))
    for entry in CAMVID.classes:
        assert json.dumps(list(entry.color)) in text


@pytest.mark.parametrize(
    ('label_set', 'name', 'index', 'color'),
    [
        (CITYSCAPES, 'road', 0, (128, 64, 128)),
        (CITYSCAPES, 'car', 13, (0, 0, 142)),
        (CITYSCAPES, 'bicycle', 18, (119, 11, 32)),
        (CAMVID, 'sky', 0, (128, 128, 128)),
        (CAMVID, 'road', 3, (128, 64, 128)),
        (CAMVID, 'bicyclist', 10, (0, 128, 192)),
    ],
)
def test_class_has_its_index_and_colour(label_set, name, index, color):
    assert label_set.index(name) == index
    assert label_set.classes[index].color == color


@pytest.mark.parametrize('label_set', LABEL_SETS.values())
def test_no_two_classes_share_a_name_or_a_colour(label_set):
    assert len(set(label_set.names)) == len(label_set)
    assert len({entry.color for entry in label_set.classes}) == len(label_set)


def test_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="camvid has no class 'horse'; it has sky, building"):
        CAMVID.index('horse')


def test_palette_is_black_where_there_is_no_class():
    palette = CAMVID.palette()
    assert palette.shape == (256, 3)
    assert palette[3].tolist() == [128, 64, 128]
    assert (palette[11:] == 0).all()


@pytest.mark.parametrize(
    ('fine', 'coarse'),
    [
        ('road', 'road'),
        ('sidewalk', 'pavement'),
        ('building', 'building'),
        ('wall', 'building'),
        ('fence', 'fence'),
        ('pole', 'pole'),
        ('traffic light', 'sign'),
        ('traffic sign', 'sign'),
        ('vegetation', 'tree'),
        ('terrain', 'tree'),
        ('sky', 'sky'),
        ('person', 'pedestrian'),
        ('rider', 'bicyclist'),
        ('car', 'car'),
        ('truck', 'car'),
        ('bus', 'car'),
        ('train', 'car'),
        ('motorcycle', 'bicyclist'),
        ('bicycle', 'bicyclist'),
    ],
)
def test_cityscapes_class_counts_as_a_camvid_class(fine, coarse):
    table = conversion(CITYSCAPES, CAMVID)
    assert table[TRAIN_IDS.index(fine)] == SEGNET.index(coarse)


def test_values_that_are_no_class_stay_unlabelled():
    table = conversion(CITYSCAPES, CAMVID)
    assert table.dtype == np.uint8
    assert (table[19:] == UNLABELLED).all()


def test_every_camvid_class_has_a_cityscapes_class_that_counts_as_it():
    assert set(conversion(CITYSCAPES, CAMVID)[:19].tolist()) == set(range(11))


@pytest.mark.parametrize('label_set', LABEL_SETS.values())
def test_a_set_converts_to_itself_unchanged(label_set):
    table = conversion(label_set, label_set)
    assert table[: len(label_set)].tolist() == list(range(len(label_set)))
    assert (table[len(label_set) :] == UNLABELLED).all()


def test_conversion_to_a_finer_set_is_refused():
    with pytest.raises(InputError, match='labels of camvid cannot be converted to cityscapes'):
        conversion(CAMVID, CITYSCAPES)


def test_categories_hold_every_cityscapes_class_once():
    members = [index for group in CITYSCAPES.categories.values() for index in group]
    assert sorted(members) == list(range(19))
    assert CITYSCAPES.categories['human'] == (11, 12)


def test_set_without_categories_has_none():
    assert CAMVID.categories == {}
