from pathlib import Path

import cv2
from dense_perception.data.flow import flow_pairs
from dense_perception.data.flow_files import write_flo, write_kitti_flow
from dense_perception.errors import InputError
import numpy as np
import pytest

SHARED = Path(__file__).parents[2].parent / 'shared' / 'data' / 'flow'
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the data beside the checkout')

# Mean length of the flow in pixels, and its largest; README.md of the data, which leaves the
# occluded pixels of Sintel out.
MEAN_AND_LARGEST = {
    'middlebury/RubberWhale': (1.3, 4.6),
    'middlebury/Hydrangea': (3.7, 11.1),
    'middlebury/Urban2': (8.4, 22.2),
    'sintel/alley_1': (2.9, 10.5),
    'sintel/cave_2': (15.2, 42.7),
    'flyingchairs/flownet2_0000000': (6.1, 78),
    'flyingchairs/flownet2_0000003': (6.0, 39),
    'flyingchairs/flownet2_0000004': (25.6, 60),
    'flyingchairs/flownet2_0000007': (9.3, 52),
    'kitti2012/000045_10': (10.7, 51.9),
    'kitti2015/000000_10': (51.0, 190),
}


def write_images(*paths):
    for number, path in enumerate(paths, 1):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((4, 6, 3), number, np.uint8))


@pytest.fixture(scope='module')
def pairs():
    return {pair.name: pair for pair in flow_pairs(SHARED)}


@needs_data
def test_every_pair_of_the_data_is_found(pairs):
    assert set(pairs) == set(MEAN_AND_LARGEST)


@needs_data
@pytest.mark.parametrize('name', MEAN_AND_LARGEST)
def test_known_flow_of_a_pair_is_as_long_as_its_description_says(pairs, name):
    pair = pairs[name]
    length = np.linalg.norm(pair.flow[pair.valid], axis=-1)
    mean, largest = MEAN_AND_LARGEST[name]
    assert length.mean() == pytest.approx(mean, abs=0.1)
    assert length.max() == pytest.approx(largest, rel=0.1)


@needs_data
@pytest.mark.parametrize('name', MEAN_AND_LARGEST)
def test_second_image_read_along_the_flow_is_the_first(pairs, name):
    pair = pairs[name]
    rows, columns = pair.valid.shape
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    u, v = x + pair.flow[..., 0], y + pair.flow[..., 1]
    seen = pair.valid & (u >= 0) & (v >= 0) & (u <= columns - 1) & (v <= rows - 1)
    warped = cv2.remap(pair.second, u, v, cv2.INTER_LINEAR)

    def difference(image):
        return np.abs(image[seen].astype(int) - pair.first[seen]).mean()

    assert difference(warped) < 0.6 * difference(pair.second)


def test_flying_chairs_pair_is_read_by_its_names(tmp_path):
    folder = tmp_path / 'flyingchairs'
    write_images(folder / '00001_img1.png', folder / '00001_img2.png')
    write_flo(folder / '00001_flow.flo', np.ones((4, 6, 2), np.float32))
    (pair,) = flow_pairs(tmp_path)
    assert pair.name == 'flyingchairs/00001'
    assert (pair.first == 1).all()
    assert (pair.second == 2).all()
    assert (pair.flow == 1).all()


def test_kitti_pair_is_read_by_its_names(tmp_path):
    folder = tmp_path / 'kitti2015'
    write_images(folder / '000003_10.png', folder / '000003_11.png')
    known = np.arange(24).reshape(4, 6) % 2 == 0
    write_kitti_flow(folder / '000003_10_flow.png', np.full((4, 6, 2), -3, np.float32), known)
    (pair,) = flow_pairs(tmp_path)
    assert (pair.first == 1).all()
    assert (pair.second == 2).all()
    np.testing.assert_array_equal(pair.valid, known)
    assert (pair.flow[known] == -3).all()


def test_invalid_pixels_of_sintel_are_unknown(tmp_path):
    scene = tmp_path / 'sintel' / 'alley'
    write_images(scene / 'final' / 'frame_0009.png', scene / 'final' / 'frame_0010.png')
    for folder in ('flow', 'invalid'):
        (scene / folder).mkdir()
    write_flo(scene / 'flow' / 'frame_0009.flo', np.zeros((4, 6, 2), np.float32))
    invalid = np.zeros((4, 6), np.uint8)
    invalid[1, 2] = 255
    assert cv2.imwrite(str(scene / 'invalid' / 'frame_0009.png'), invalid)
    (pair,) = flow_pairs(tmp_path)
    np.testing.assert_array_equal(pair.valid, invalid == 0)


def test_pair_whose_second_image_is_missing_is_named(tmp_path):
    write_images(tmp_path / 'middlebury' / 'Army' / 'frame10.png')
    write_flo(tmp_path / 'middlebury' / 'Army' / 'flow10.flo', np.zeros((4, 6, 2), np.float32))
    with pytest.raises(InputError, match='frame11.png: cannot be read'):
        flow_pairs(tmp_path)


def test_folder_without_pairs_is_named(tmp_path):
    with pytest.raises(InputError, match=f'{tmp_path}: no image pairs'):
        flow_pairs(tmp_path)


def test_flow_of_another_size_than_its_images_is_refused(tmp_path):
    folder = tmp_path / 'flyingchairs'
    write_images(folder / '00001_img1.png', folder / '00001_img2.png')
    write_flo(folder / '00001_flow.flo', np.ones((4, 7, 2), np.float32))
    with pytest.raises(
        InputError, match=r'00001_img1.png is .4, 6., .*00001_flow.flo is .4, 7.; must match'
    ):
        flow_pairs(tmp_path)
