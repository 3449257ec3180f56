import cv2
from dense_perception.data.pictures import (
    color_flow,
    color_labels,
    legend,
    overlay_labels,
    panel,
    save_picture,
    Video,
    write_legend,
)
from dense_perception.errors import InputError
from dense_perception.labels import CITYSCAPES, LabelClass, LabelSet
import numpy as np
import pytest
import torch
from torchvision.utils import flow_to_image


def test_flow_has_the_colours_of_torchvision():
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False, dtype=np.float32)
    radius = np.linspace(0, 1, 50, dtype=np.float32)[:, None]
    flow = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    theirs = flow_to_image(torch.from_numpy(flow).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    difference = np.abs(color_flow(flow, 1.0).astype(int) - theirs)
    # Theirs goes round in 54 steps of a table of 55, so hues differ by up to a step.
    assert difference.max() <= 45
    assert difference.mean() < 5


def test_no_flow_is_white():
    assert (color_flow(np.zeros((4, 5, 2), np.float32)) == 255).all()


def test_flow_to_the_right_is_red():
    flow = np.full((4, 5, 2), (3, 0), np.float32)
    assert (color_flow(flow, 3.0) == (255, 0, 0)).all()


def test_flow_beyond_the_range_is_darker():
    flow = np.full((4, 5, 2), (6, 0), np.float32)
    assert (color_flow(flow, 3.0) == (191, 0, 0)).all()


def test_labels_have_their_colours_and_unlabelled_pixels_are_black():
    labels = np.array([[0, 13, 255]], np.uint8)
    assert color_labels(labels, CITYSCAPES).tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]


def test_overlay_leaves_unlabelled_pixels_as_they_are():
    image = np.full((1, 2, 3), 100, np.uint8)
    labels = np.array([[13, 255]], np.uint8)
    overlay = overlay_labels(image, labels, CITYSCAPES, 0.5)
    assert overlay.tolist() == [[[50, 50, 121], [100, 100, 100]]]


def test_panel_puts_pictures_of_any_size_side_by_side():
    wide, high = np.zeros((10, 40, 3), np.uint8), np.zeros((40, 10, 3), np.uint8)
    assert panel([('a', wide), ('b', high)], height=20).shape == (44, 85, 3)


def test_legend_names_every_class_within_the_width():
    assert legend(CITYSCAPES, 480).shape == (104, 480, 3)


TIMES = ('1764163000.123', 'age 43 ms')
BACK = (101, 37, 200)  # colour of pictures that a legend is written into
ROAD, SKY, CAR = (CITYSCAPES.index(name) for name in ('road', 'sky', 'car'))


def with_legend(labels, label_set=CITYSCAPES, texts=TIMES):
    """Return a plain picture with a legend in it, and how many of its rows that has changed."""
    picture = np.full((*labels.shape, 3), BACK, np.uint8)
    write_legend(picture, labels, label_set, texts)
    changed = np.flatnonzero((picture != BACK).any((1, 2)))
    return picture, int(changed[-1]) + 1 if len(changed) else 0


def has(picture, index, label_set=CITYSCAPES):
    """Whether the field of a class is in the picture, at least three pixels of it in a row."""
    found = (picture == label_set.classes[index].color).all(-1)
    return bool((found[:, :-2] & found[:, 1:-1] & found[:, 2:]).any())


def test_a_legend_has_the_colours_of_the_classes_in_the_picture_and_of_no_other():
    labels = np.full((360, 480), ROAD, np.uint8)
    labels[:100], labels[0, 0], labels[1] = SKY, CAR, 255
    picture, _ = with_legend(labels)
    assert [index for index in range(19) if has(picture, index)] == [ROAD, SKY, CAR]


@pytest.mark.parametrize('size', [(360, 480), (720, 1280), (120, 160), (160, 640), (1000, 300)])
def test_a_legend_is_a_strip_that_leaves_the_picture_below_it_as_it_is(size):
    labels = np.arange(size[0] * size[1]).reshape(size).astype(np.uint8)
    picture, rows = with_legend(labels)
    assert 0 < rows <= size[0] // 4
    assert (picture[:rows] != BACK).any(-1).all()  # the strip is as wide as the picture
    assert (picture[rows:] == BACK).all()


@pytest.mark.parametrize('size', [(0, 0), (1, 1), (48, 64), (119, 640), (480, 159)])
def test_a_picture_that_is_too_small_to_read_a_legend_has_none(size):
    assert with_legend(np.zeros(size, np.uint8))[1] == 0


def test_a_legend_grows_with_the_picture():
    small = with_legend(np.zeros((360, 480), np.uint8))[1]
    assert with_legend(np.zeros((720, 960), np.uint8))[1] == pytest.approx(2 * small, abs=2)


def test_a_legend_of_a_picture_without_labels_has_the_texts_alone():
    picture, rows = with_legend(np.full((360, 480), 255, np.uint8))
    assert rows > 0
    assert not any(has(picture, index) for index in range(19))
    assert (picture[:rows] == 255).all(-1).any()


def test_a_legend_without_room_for_all_classes_leaves_the_smallest_out():
    many = LabelSet(
        'many', tuple(LabelClass(f'class number {i}', (i, 255 - i, 7)) for i in range(200))
    )
    labels = np.zeros((360, 480), np.uint8)
    labels[:2].ravel()[:200] = np.arange(200)  # one pixel of each
    labels[10:20] = 150
    picture, _ = with_legend(labels, many)
    shown = [index for index in range(200) if has(picture, index, many)]
    assert {0, 150} <= set(shown)
    assert 5 < len(shown) < 100


def test_the_times_of_a_legend_are_seen_in_it():
    labels = np.zeros((360, 480), np.uint8)
    at_once, later = with_legend(labels)[0], with_legend(labels, texts=(TIMES[0], 'age 99 ms'))[0]
    different = np.flatnonzero((at_once != later).any((0, 2)))
    assert 0 < different[0] <= different[-1] < 240  # two digits, left of the classes
    assert different[-1] - different[0] < 30


def test_picture_is_read_back_in_the_same_colours(tmp_path):
    picture = np.full((8, 9, 3), (10, 20, 30), np.uint8)
    save_picture(tmp_path / 'a.png', picture)
    assert (cv2.imread(str(tmp_path / 'a.png'))[:, :, ::-1] == picture).all()


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InputError, match='absent'):
        save_picture(tmp_path / 'absent' / 'a.png', np.zeros((8, 9, 3), np.uint8))


def test_video_holds_every_picture_that_was_added(tmp_path):
    with Video(tmp_path / 'a.mp4', 10.0) as video:
        for grey in (0, 100, 200):
            video.add(np.full((48, 64, 3), grey, np.uint8))
    reader = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    greys = [reader.read()[1].mean() for _ in range(3)]
    assert greys == pytest.approx([0, 100, 200], abs=4)
