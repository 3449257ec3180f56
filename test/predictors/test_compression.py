import struct
import zlib

import cv2
from dense_perception.data.flow_files import read_kitti_flow, write_kitti_flow
from dense_perception.data.picture_files import PictureHeader, read_header, read_pixels
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.errors import InputError
from dense_perception.predictors.compression import (
    decode_flow,
    decode_labels,
    decode_picture,
    encode_flow,
    encode_labels,
    scaled_flow,
)
import numpy as np
import pytest

SMALL = RoadWorldSettings(height=96, width=128)
IMAGE = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
FORMS = {'.jpg': 'JPEG', '.png': 'PNG', '.webp': 'WebP'}


def encoded(suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, IMAGE[:, :, ::-1], options)[1].tobytes()


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes of data do not have."""
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)),
        (b'IDAT', zlib.compress(bytes(100))),
        (b'IEND', b''),
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
        for name, body in chunks
    )


def test_labels_of_a_drive_come_back_exactly_and_take_far_less_room():
    labels = RoadWorld(2, SMALL).frame(0).labels
    data = encode_labels(labels)
    assert np.array_equal(decode_labels(data), labels)
    assert len(data) < 0.2 * labels.size


def test_every_label_value_comes_back():
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decode_labels(encode_labels(labels)), labels)
    flipped = labels[::-1, ::2]  # not contiguous
    assert np.array_equal(decode_labels(encode_labels(flipped)), flipped)


def test_flow_of_a_drive_comes_back_to_half_a_step():
    flow, known = RoadWorld(2, SMALL).flow(3, 4)
    decoded, decoded_known = decode_flow(encode_flow(flow, known))
    assert np.array_equal(decoded_known, known)
    assert np.abs(decoded - flow)[known].max() <= 0.5 / 64
    assert not decoded[~known].any()


def test_flow_bytes_are_a_kitti_file_both_ways(tmp_path):
    flow, known = RoadWorld(2, SMALL).flow(3, 4)
    (tmp_path / 'ours.png').write_bytes(encode_flow(flow, known))
    write_kitti_flow(tmp_path / 'theirs.png', flow, known)
    for one, two in zip(
        read_kitti_flow(tmp_path / 'ours.png'),
        decode_flow((tmp_path / 'theirs.png').read_bytes()),
        strict=True,
    ):
        assert np.array_equal(one, two)


def test_flow_that_is_not_finite_or_does_not_fit_becomes_unknown():
    flow = np.array([[[1, -2], [np.nan, 0], [600, 0], [0, np.inf], [511.5, -512]]], np.float32)
    decoded, known = decode_flow(encode_flow(flow))
    assert known.tolist() == [[True, False, False, False, True]]
    assert np.array_equal(decoded[known], flow[known])
    with pytest.raises(InputError, match='512 pixels or more does not fit'):
        encode_flow(flow, np.ones((1, 5), bool))


def test_a_shrunk_flow_counts_in_its_own_pixels():
    flow = np.zeros((60, 80, 2), np.float32)
    flow[:, 40:] = (8, -4)
    small = scaled_flow(flow, 0.25)
    assert small.shape == (15, 20, 2)
    assert small.dtype == np.float32
    assert np.array_equal(small[:, 10:], np.full((15, 10, 2), (2, -1), np.float32))
    assert not small[:, :10].any()
    assert np.array_equal(scaled_flow(flow, 1.0), flow)
    for scale in (0, -1, 1.5, np.nan):
        with pytest.raises(InputError, match='scale of flow'):
            scaled_flow(flow, scale)


@pytest.mark.parametrize(
    ('suffix', 'options'),
    [
        ('.jpg', ()),
        ('.jpg', (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        ('.jpg', (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)),
        ('.png', ()),
        ('.webp', (cv2.IMWRITE_WEBP_QUALITY, 80)),
        ('.webp', (cv2.IMWRITE_WEBP_QUALITY, 101)),  # without loss
    ],
)
def test_form_and_size_stand_in_the_header(suffix, options):
    data = encoded(suffix, *options)
    assert read_header(data) == PictureHeader(FORMS[suffix], 47, 33)
    picture = decode_picture(data)
    assert picture.shape == IMAGE.shape
    if suffix == '.png' or 101 in options:
        assert np.array_equal(picture, IMAGE)


def test_the_header_of_an_extended_webp_is_read():
    # RFC 9649, figure 7: flags, reserved, canvas width and height minus one.
    canvas = b'VP8X' + struct.pack('<I', 10) + bytes(4)
    canvas += (5000 - 1).to_bytes(3, 'little') + (70000 - 1).to_bytes(3, 'little')
    data = b'RIFF' + struct.pack('<I', 4 + len(canvas)) + b'WEBP' + canvas
    assert read_header(data) == PictureHeader('WebP', 5000, 70000)


@pytest.mark.parametrize('size', [(60000, 60000), (1, 2**31 - 1), (2**32 - 1, 2**32 - 1)])
def test_a_size_that_is_too_large_is_refused_before_decoding(size, monkeypatch):
    def decoded(*_):
        raise AssertionError('decoded all the same')

    monkeypatch.setattr(cv2, 'imdecode', decoded)
    for decode in (decode_picture, decode_labels, decode_flow):
        with pytest.raises(InputError, match=f'PNG picture of {size[0]} x {size[1]}; at most'):
            decode(png(*size))


def test_the_bound_can_be_set():
    data = encoded('.jpg')
    assert decode_picture(data, max_pixels=33 * 47).shape == IMAGE.shape
    with pytest.raises(InputError, match='JPEG picture of 47 x 33; at most 1550 pixels'):
        decode_picture(data, max_pixels=33 * 47 - 1)


@pytest.mark.parametrize('suffix', FORMS)
def test_what_was_cut_short_anywhere_is_refused(suffix):
    data = encoded(suffix)
    for length in range(0, len(data) - 4, 7):
        with pytest.raises(InputError):
            decode_picture(data[:length])


def test_a_thumbnail_does_not_stand_for_the_end_of_a_picture_that_was_cut_short():
    data = encoded('.jpg')
    thumbnail = b'\xff\xe1' + struct.pack('>H', 4) + b'\xff\xd9'  # an application segment
    with pytest.raises(InputError, match='cut short'):
        decode_picture(data[:2] + thumbnail + data[2:-200])
    assert decode_picture(data[:2] + thumbnail + data[2:]).shape == IMAGE.shape


def test_bytes_of_random_damage_give_a_picture_or_an_input_error():
    rng = np.random.default_rng(5)
    for suffix in FORMS:
        good = np.frombuffer(encoded(suffix), np.uint8)
        for _ in range(40):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 8)] = rng.integers(0, 256, 8)
            try:
                picture = decode_picture(bad.tobytes())
            except InputError:
                continue
            assert picture.dtype == np.uint8
            assert picture.ndim == 3


def test_other_content_is_refused_by_what_it_is():
    grey = encode_labels(np.zeros((4, 4), np.uint8))
    flow = encode_flow(np.zeros((4, 4, 2), np.float32))
    with pytest.raises(InputError, match='three (16-bit )?channels'):
        decode_flow(grey)
    with pytest.raises(InputError, match='labels are one channel of 8 bits'):
        decode_labels(flow)
    for decode in (decode_labels, decode_flow):
        with pytest.raises(InputError, match='are no PNG'):
            decode(encoded('.jpg'))
    with pytest.raises(InputError, match='0 x 10; both sizes must be over 0'):
        decode_picture(png(0, 10))
    with pytest.raises(InputError, match='neither JPEG nor PNG nor WebP'):
        decode_picture(b'GIF89a')
    for labels in (np.zeros((0, 4), np.uint8), np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4))):
        with pytest.raises(InputError, match='must be \\(H, W\\) uint8'):
            encode_labels(labels)
    with pytest.raises(InputError, match='must be \\(H, W, 2\\)'):
        encode_flow(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(InputError, match='known pixels are'):
        encode_flow(np.zeros((4, 4, 2), np.float32), np.ones((4, 5), bool))


def test_file_that_claims_more_than_its_bytes_can_hold_is_refused_by_name(tmp_path):
    path = tmp_path / 'small.png'
    path.write_bytes(png(8000, 8000))

    with pytest.raises(InputError, match=r'small.png: PNG picture of 8000 x 8000 .* cannot hold'):
        read_pixels(path, cv2.IMREAD_UNCHANGED)


def test_chunk_that_claims_more_than_the_file_holds_is_refused_before_it_is_read(tmp_path):
    content = bytearray(encoded('.png'))
    content[33:37] = (2**31 - 1).to_bytes(4, 'big')  # length of what follows the header
    path = tmp_path / 'chunk.png'
    path.write_bytes(content)

    with pytest.raises(InputError, match='chunk.png: PNG picture of 47 x 33 .* damaged'):
        read_pixels(path, cv2.IMREAD_UNCHANGED)
