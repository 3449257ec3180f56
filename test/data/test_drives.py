import itertools

import cv2
from dense_perception.data.drives import folder_drive, rendered_drive
from dense_perception.data.road_world import RoadWorld
from dense_perception.errors import InputError
import numpy as np
import pytest


def test_rendered_drive_has_labels_with_every_frame():
    drive = rendered_drive(5, 2)
    frames = list(drive.frames())
    assert len(frames) == 2
    assert (frames[1].labels == RoadWorld(5).frame(1).labels).all()
    assert frames[1].stamp_ns - frames[0].stamp_ns == 100_000_000


def test_rendered_drive_knows_the_flow_between_any_two_stamps():
    drive = rendered_drive(5, 3)
    first, _, third = (frame.stamp_ns for frame in drive.frames())
    flow, valid = drive.flow(first, third)
    true_flow, true_valid = RoadWorld(5).flow(0, 2)
    np.testing.assert_array_equal(flow, true_flow)
    np.testing.assert_array_equal(valid, true_valid)


def test_folder_takes_its_labels_from_the_annot_folder_beside_it(tmp_path):
    for name in ('val', 'valannot'):
        (tmp_path / name).mkdir()
    for index in (0, 1):
        cv2.imwrite(str(tmp_path / 'val' / f'{index}.png'), np.zeros((4, 6, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'valannot' / '0.png'), np.full((4, 6), 11, np.uint8))
    frames = list(itertools.islice(folder_drive(tmp_path / 'val').frames(), 2))
    assert (frames[0].labels == 255).all()  # CamVid's void
    assert frames[1].labels is None


def test_absent_folder_is_told_by_name(tmp_path):
    with pytest.raises(InputError, match='nowhere'):
        folder_drive(tmp_path / 'nowhere')
