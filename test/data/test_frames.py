import cv2
from dense_perception.data.frames import frames, pictures, read_label_picture, read_picture
from dense_perception.errors import InputError
import numpy as np
import pytest

RED = np.full((16, 24, 3), [250, 0, 0], np.uint8)


def write(path, image):
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def write_video(path, count, rate=10.0):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), rate, (32, 24))
    assert video.isOpened()
    for number in range(count):
        video.write(np.full((24, 32, 3), 20 * number, np.uint8))
    video.release()


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.jpeg', '.webp', '.ppm', '.PNG'])
def test_pictures_are_read_as_rgb(tmp_path, suffix):
    write(tmp_path / f'a{suffix}', RED)
    (frame,) = frames(tmp_path)
    np.testing.assert_allclose(frame.image.astype(int), RED, atol=6)


def test_pictures_come_by_name(tmp_path):
    for name in ('b', 'c', 'a'):
        write(tmp_path / f'{name}.png', RED)
    assert [frame.name for frame in frames(tmp_path)] == ['a', 'b', 'c']


def test_stamps_follow_the_rate_without_drift(tmp_path):
    for number in range(31):
        write(tmp_path / f'{number:03d}.ppm', RED[:2, :2])
    stamps = [frame.stamp_ns for frame in frames(tmp_path, rate=30)]
    assert stamps[:3] == [0, 33_333_333, 66_666_667]
    assert stamps[30] == 10**9


def test_pictures_of_a_folder_may_differ_in_size(tmp_path):
    write(tmp_path / 'a.png', RED)
    write(tmp_path / 'b.png', RED[:8])
    assert [frame.image.shape for frame in frames(tmp_path)] == [(16, 24, 3), (8, 24, 3)]


def test_other_files_of_a_folder_are_passed_over(tmp_path):
    write(tmp_path / 'a.png', RED)
    (tmp_path / 'notes.txt').write_text('x')
    (tmp_path / 'sub.png').mkdir()
    assert [path.name for path in pictures(tmp_path)] == ['a.png']


def test_grey_pictures_become_rgb(tmp_path):
    write(tmp_path / 'a.png', RED[..., 0])
    assert (read_picture(tmp_path / 'a.png') == 250).all()


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(InputError, match=f'{tmp_path}: no picture in it; looked for .png'):
        list(frames(tmp_path))


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(InputError, match='nowhere: no such folder or video'):
        list(frames(tmp_path / 'nowhere'))


@pytest.mark.parametrize('content', [b'', b'not a picture'])
def test_a_picture_that_cannot_be_decoded_is_named(tmp_path, content):
    (tmp_path / 'bad.png').write_bytes(content)
    with pytest.raises(InputError, match=f'bad.png: {len(content)} bytes'):
        list(frames(tmp_path))


@pytest.mark.parametrize('rate', [0.0, -1.0, float('nan'), float('inf')])
def test_a_rate_that_is_none_is_refused(tmp_path, rate):
    with pytest.raises(InputError, match='rate is'):
        list(frames(tmp_path, rate=rate))


def test_labels_keep_their_values(tmp_path):
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    write(tmp_path / 'a.png', labels)
    np.testing.assert_array_equal(read_label_picture(tmp_path / 'a.png'), labels)


def test_a_colour_picture_is_no_label_picture(tmp_path):
    write(tmp_path / 'a.png', RED)
    with pytest.raises(InputError, match='a.png: 3 channels of uint8'):
        read_label_picture(tmp_path / 'a.png')


def test_a_16_bit_picture_is_no_label_picture(tmp_path):
    write(tmp_path / 'a.png', np.zeros((4, 4), np.uint16))
    with pytest.raises(InputError, match='1 channels of uint16'):
        read_label_picture(tmp_path / 'a.png')


def test_a_video_is_read_at_its_own_rate(tmp_path):
    write_video(tmp_path / 'a.avi', 5)
    read = list(frames(tmp_path / 'a.avi'))
    assert [frame.stamp_ns for frame in read] == [0, 10**8, 2 * 10**8, 3 * 10**8, 4 * 10**8]
    assert [round(float(frame.image.mean()) / 20) for frame in read] == [0, 1, 2, 3, 4]
    assert read[3].name == '000003'


def test_a_video_is_read_at_the_rate_that_is_asked_for(tmp_path):
    write_video(tmp_path / 'a.avi', 3)
    assert [frame.stamp_ns for frame in frames(tmp_path / 'a.avi', rate=4)][2] == 500_000_000


def test_a_file_that_is_no_video_is_named(tmp_path):
    (tmp_path / 'a.mp4').write_bytes(b'no video')
    with pytest.raises(InputError, match='a.mp4: no frame of it'):
        list(frames(tmp_path / 'a.mp4'))


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'text')
    with pytest.raises(InputError, match='a.txt: neither a folder nor a video'):
        list(frames(tmp_path / 'a.txt'))
