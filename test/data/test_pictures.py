import cv2
from dense_perception.data.pictures import (
    color_flow,
    color_labels,
    legend,
    overlay_labels,
    panel,
    save_picture,
    Video,
)
from dense_perception.errors import InputError
from dense_perception.labels import CITYSCAPES
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
