import cv2
from dense_perception.data.flow_files import read_flo, read_kitti_flow, write_flo, write_kitti_flow
from dense_perception.errors import InputError
import numpy as np
import pytest


@pytest.fixture
def flow():
    return np.random.default_rng(0).normal(0, 100, (5, 7, 2)).astype(np.float32)


def flo_bytes(width, height, values, tag=b'PIEH'):
    """Lay out a file byte by byte, as its published description says."""
    header = (
        tag + width.to_bytes(4, 'little', signed=True) + height.to_bytes(4, 'little', signed=True)
    )
    return header + np.array(values, '<f4').tobytes()


def test_flo_file_comes_back_bit_by_bit(tmp_path, flow):
    write_flo(tmp_path / 'a.flo', flow)
    read, known = read_flo(tmp_path / 'a.flo')
    assert read.dtype == np.float32
    assert read.tobytes() == flow.tobytes()
    assert known.all()


def test_flo_file_holds_tag_width_height_and_interleaved_flow(tmp_path):
    flow = np.array([[[1, 2], [3, 4], [5, 6]]], np.float32)
    write_flo(tmp_path / 'a.flo', flow)
    assert (tmp_path / 'a.flo').read_bytes() == flo_bytes(3, 1, [1, 2, 3, 4, 5, 6])


def test_flow_of_another_memory_layout_is_written_alike(tmp_path, flow):
    write_flo(tmp_path / 'a.flo', flow[:, ::-1])
    read, _ = read_flo(tmp_path / 'a.flo')
    np.testing.assert_array_equal(read, flow[:, ::-1])


def test_what_is_read_may_be_written_to(tmp_path, flow):
    write_flo(tmp_path / 'a.flo', flow)
    read, known = read_flo(tmp_path / 'a.flo')
    read[0, 0], known[0, 0] = 0, False


@pytest.mark.parametrize('marker', [1e10, -1e10, 1.6666667e9, float('inf'), float('nan')])
def test_component_above_1e9_marks_an_unknown_pixel_of_a_flo_file(tmp_path, marker):
    (tmp_path / 'a.flo').write_bytes(flo_bytes(2, 1, [1, marker, 3, 4]))
    flow, known = read_flo(tmp_path / 'a.flo')
    assert known.tolist() == [[False, True]]
    assert flow.tolist() == [[[0, 0], [3, 4]]]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'must start with 202021.25'),
        (b'PIEH', 'must start with 202021.25'),
        (flo_bytes(1, 1, [0, 0], tag=b'HEIP'), 'must start with 202021.25'),
        (flo_bytes(2, 2, [0] * 7), '40 bytes; 2 x 2 pixels need 44'),
        (flo_bytes(2, 2, [0] * 9), '48 bytes; 2 x 2 pixels need 44'),
        (flo_bytes(0, 5, []), 'header says 0 x 5'),
        (flo_bytes(-3, 5, []), 'header says -3 x 5'),
        (flo_bytes(2**31 - 1, 2**31 - 1, []), 'header says 2147483647 x 2147483647'),
        (flo_bytes(30000, 30000, []), 'need 7200000012'),
    ],
)
def test_damaged_flo_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / 'bad.flo'
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_flo(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('read', [read_flo, read_kitti_flow])
def test_missing_file_is_refused_by_name(tmp_path, read):
    with pytest.raises(InputError, match='nothing.here: cannot be read: No such file'):
        read(tmp_path / 'nothing.here')


def test_kitti_file_comes_back_to_a_64th_of_a_pixel(tmp_path, flow):
    write_kitti_flow(tmp_path / 'a.png', flow, np.ones((5, 7), bool))
    read, known = read_kitti_flow(tmp_path / 'a.png')
    np.testing.assert_allclose(read, flow, rtol=0, atol=0.5 / 64)
    assert known.all()


def test_kitti_file_holds_u_in_red_v_in_green_and_known_in_blue(tmp_path):
    flow = np.array([[[1, -2], [0.5, 0.25]]], np.float32)
    write_kitti_flow(tmp_path / 'a.png', flow, np.array([[True, False]]))
    blue_green_red = cv2.imread(str(tmp_path / 'a.png'), cv2.IMREAD_UNCHANGED)
    assert blue_green_red.dtype == np.uint16
    assert blue_green_red[0, 0].tolist() == [1, 32768 - 128, 32768 + 64]
    assert blue_green_red[0, 1, 0] == 0


def test_unknown_pixels_of_a_kitti_file_are_zero(tmp_path, flow):
    known = np.random.default_rng(1).random((5, 7)) < 0.5
    write_kitti_flow(tmp_path / 'a.png', flow, known)
    read, read_known = read_kitti_flow(tmp_path / 'a.png')
    np.testing.assert_array_equal(read_known, known)
    assert (read[~known] == 0).all()


@pytest.mark.parametrize('value', [512.0, -512.5, 1e6])
def test_flow_too_long_for_the_kitti_format_is_refused(tmp_path, value):
    flow = np.full((1, 2, 2), value, np.float32)
    with pytest.raises(InputError, match='512 pixels or more'):
        write_kitti_flow(tmp_path / 'a.png', flow, np.ones((1, 2), bool))
    assert not (tmp_path / 'a.png').exists()


@pytest.mark.parametrize('value', [511.995, float('nan')])
def test_known_flow_that_would_wrap_around_is_refused(tmp_path, value):
    flow = np.full((1, 1, 2), value, np.float32)
    with pytest.raises(InputError):
        write_kitti_flow(tmp_path / 'a.png', flow, np.ones((1, 1), bool))


def test_length_of_unknown_flow_does_not_matter_to_the_kitti_format(tmp_path):
    flow = np.array([[[1e9, np.nan], [1, 2]]], np.float32)
    write_kitti_flow(tmp_path / 'a.png', flow, np.array([[False, True]]))
    read, known = read_kitti_flow(tmp_path / 'a.png')
    assert read.tolist() == [[[0, 0], [1, 2]]]
    assert known.tolist() == [[False, True]]


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4, 4), np.uint16),
    ],
)
def test_png_of_another_kind_is_no_kitti_flow(tmp_path, image):
    path = tmp_path / 'a.png'
    assert cv2.imwrite(str(path), image)
    with pytest.raises(InputError, match='a.png: no KITTI flow'):
        read_kitti_flow(path)


@pytest.mark.parametrize('keep', [0, 7, 30, 60])
def test_truncated_kitti_file_is_refused_by_name(tmp_path, flow, keep):
    path = tmp_path / 'a.png'
    write_kitti_flow(path, flow, np.ones((5, 7), bool))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match='a.png: no KITTI flow'):
        read_kitti_flow(path)


def test_folder_that_is_not_there_is_named_when_writing(tmp_path):
    with pytest.raises(InputError, match='cannot be written'):
        write_kitti_flow(
            tmp_path / 'none' / 'a.png', np.zeros((1, 1, 2), np.float32), np.ones((1, 1), bool)
        )
