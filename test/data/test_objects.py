from dense_perception.data.objects import (
    Box,
    boxes,
    CANONICAL,
    connected_objects,
    cut_image,
    cut_mask,
    GREY,
    ObjectImages,
    Window,
    window_around,
    window_beside,
)
from dense_perception.data.segmentation import LabelledImage
from dense_perception.errors import InputError
from dense_perception.labels import CAMVID
import numpy as np
import pytest

CAR, PEDESTRIAN, ROAD = CAMVID.index('car'), CAMVID.index('pedestrian'), CAMVID.index('road')


def street():
    labels = np.full((60, 100), ROAD, np.uint8)
    labels[10:30, 10:40] = CAR
    labels[35:55, 60:90] = CAR
    labels[10:30, 40:50] = PEDESTRIAN  # touches the first car
    labels[2:4, 2:4] = CAR
    return labels


def test_connected_parts_of_each_class_are_objects():
    objects = connected_objects(street(), [CAR, PEDESTRIAN])
    assert sorted(np.unique(objects)) == [0, 1, 2, 3, 4]
    assert (objects[street() == ROAD] == 0).all()
    parts = [objects[20, 20], objects[45, 75], objects[20, 45], objects[3, 3]]
    assert len(set(parts)) == 4


def test_objects_too_small_to_learn_from_are_left_out():
    objects = connected_objects(street(), [CAR, PEDESTRIAN])
    found = {box.number: box for box in boxes(objects)}
    assert len(found) == 3
    assert objects[3, 3] not in found
    box = found[objects[20, 20]]
    assert (box.column, box.row, box.longer) == (25.0, 20.0, 30.0)


def test_object_images_are_those_of_the_labelled_ones():
    labelled = [LabelledImage('a', np.zeros((60, 100, 3), np.uint8), street())]
    images = ObjectImages(labelled, CAMVID, ['car'])
    assert len(images) == 1
    assert [len(boxes(sample.objects)) for sample in images] == [2]
    with pytest.raises(InputError, match="no class 'tram'"):
        ObjectImages(labelled, CAMVID, ['tram'])


def test_window_around_an_object_shows_it_in_the_middle_at_the_canonical_size():
    box = Box(1, 200.0, 100.0, 46.0)
    random = np.random.default_rng(0)
    windows = [window_around(random, box, 192) for _ in range(300)]
    lengths = np.array([46.0 * 192 / window.side for window in windows])
    assert lengths.min() >= CANONICAL * 2**-0.25
    assert lengths.max() <= CANONICAL * 2**0.25
    assert np.ptp(lengths) > 20
    shifts = np.array([(window.column - 200) * 192 / window.side for window in windows])
    assert 14 < np.abs(shifts).max() <= 16


def test_window_beside_objects_is_off_by_32_pixels_or_an_octave():
    present = [Box(1, 50.0, 40.0, 60.0), Box(2, 150.0, 60.0, 25.0)]
    random = np.random.default_rng(0)
    for _ in range(200):
        window = window_beside(random, present, (100, 200), 192)
        scale = window.side / 192
        for box in present:
            distance = np.hypot(window.column - box.column, window.row - box.row) / scale
            octaves = abs(np.log2(box.longer / scale / CANONICAL))
            assert distance >= 32 or octaves >= 1


def test_no_window_is_given_where_objects_are_everywhere():
    everywhere = [
        Box(1, column, row, CANONICAL * 2.0**octave)
        for column in range(0, 9, 2)
        for row in range(0, 9, 2)
        for octave in range(-4, 5)
    ]
    assert window_beside(np.random.default_rng(0), everywhere, (8, 8), 192) is None


@pytest.mark.parametrize('side', [40, 10, 97])
def test_window_is_cut_and_resized_and_grey_beyond_the_image(side):
    image = np.zeros((30, 50, 3), np.uint8)
    image[..., 1] = 200
    cut = cut_image(image, Window(50.0, 15.0, 40.0), side)
    assert cut.shape == (side, side, 3)
    middle = side // 2
    np.testing.assert_array_equal(cut[middle, side // 4], (0, 200, 0))
    np.testing.assert_array_equal(cut[middle, -1], (GREY, GREY, GREY))
    np.testing.assert_array_equal(cut[0, 0], (GREY, GREY, GREY))


def test_window_far_beyond_the_image_is_grey():
    cut = cut_image(np.zeros((10, 10, 3), np.uint8), Window(-100.0, 500.0, 20.0), 16)
    assert (cut == GREY).all()


def test_mask_of_a_window_lies_where_the_image_has_it():
    mask = np.zeros((100, 100), bool)
    mask[40:60, 40:60] = True
    cut = cut_mask(mask, Window(50.0, 50.0, 40.0), 80)
    assert cut.dtype == bool
    expected = np.zeros((80, 80), bool)
    expected[20:60, 20:60] = True
    assert (cut == expected).mean() > 0.99
