import io
import struct
import zlib

import cv2
from dense_perception.data.flow_files import read_kitti_flow, write_kitti_flow
from dense_perception.data.picture_files import (
    check_decoded,
    check_size,
    PictureHeader,
    read_header,
    read_pixels,
)
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
from hypothesis import given, settings
from hypothesis import strategies as st
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


def pillow(**options) -> bytes:
    """A JPEG as Pillow writes it, which a camera's resembles more than OpenCV's."""
    image = pytest.importorskip('PIL.Image')
    exif = image.Exif()
    exif[0x0112] = 6  # turned by a quarter, which is not heeded
    exif[0x010E] = 'a thumbnail begins like this: \xff\xd8\xff\xc0'
    file = io.BytesIO()
    pixels = IMAGE[:, :, 0] if options.pop('grey', False) else IMAGE
    image.fromarray(pixels).save(file, 'JPEG', exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'grey': True},
        {'progressive': True, 'quality': 95},
        {'subsampling': '4:2:0', 'optimize': True},
        {'subsampling': '4:4:4', 'icc_profile': b'\xff\xd9\xff\xc0' * 40000},
        {'comment': b'front \xff\xda camera', 'restart_marker_blocks': 1},
        {'restart_marker_rows': 1, 'progressive': True, 'dpi': (72, 72)},
    ],
    ids=str,
)
def test_jpegs_of_other_writers_are_read(options):
    data = pillow(**options)
    assert read_header(data) == PictureHeader('JPEG', 47, 33)
    assert decode_picture(data).shape == IMAGE.shape


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack('>BBH', 0xFF, marker, 2 + len(body)) + body


def frame_header(width: int, height: int) -> bytes:
    """The start of frame of a grey JPEG."""
    return segment(0xC0, struct.pack('>BHHB', 8, height, width, 1) + bytes((1, 0x11, 0)))


def test_bytes_that_fill_up_before_a_marker_and_after_the_end_are_passed_over():
    data = encoded('.jpg')
    frame = data.index(b'\xff\xc0')
    data = data[:2] + b'\xff' * 3 + data[2:frame] + b'\xff' + data[frame:] + bytes(9)
    assert read_header(data) == PictureHeader('JPEG', 47, 33)
    assert decode_picture(data).shape == IMAGE.shape


# What stands between the start of a JPEG and its segments, for a reader of the header to stumble
# over: each was, or would be, read as another size than libjpeg takes, or is no JPEG.
LENGTHLESS = [*range(0xD0, 0xDA), 0x00, 0x01]
HIDDEN = segment(0xFE, frame_header(8, 8))  # a comment, to libjpeg
STUMBLING = {
    # Its "length" leads into the comment.
    **{f'marker {marker:02X}': bytes((0xFF, marker, 0, 6)) + HIDDEN for marker in LENGTHLESS},
    **{f'bare marker {marker:02X}': bytes((0xFF, marker)) for marker in LENGTHLESS},
    'reserved marker': b'\xff\x02\x00\x06' + HIDDEN,
    'stray bytes': bytes(3),
    'stray bytes like a frame': frame_header(8, 8)[1:],
    'length 0': b'\xff\xfe\x00\x00' + frame_header(8, 8),
    'length 1': b'\xff\xe1\x00\x01' + frame_header(8, 8),
    'length beyond the end': b'\xff\xe1\xff\xff',
    'frame of another size': frame_header(8, 8),
    'frame of the same size': frame_header(47, 33),
    'scan before the frame': segment(0xDA, bytes((1, 1, 0, 0, 63, 0))),
}


@pytest.mark.parametrize('name', STUMBLING)
def test_a_jpeg_whose_header_can_be_read_in_two_ways_is_refused(name, tmp_path):
    good = encoded('.jpg')
    data = good[:2] + STUMBLING[name] + good[2:]
    with pytest.raises(InputError, match='JPEG picture of .* is cut short or damaged'):
        decode_picture(data, max_pixels=1000)
    path = tmp_path / 'stumbling.jpg'
    path.write_bytes(data)
    with pytest.raises(InputError, match=r'stumbling.jpg: .* cannot be decoded'):
        read_pixels(path, cv2.IMREAD_COLOR)


def test_a_jpeg_that_tells_its_height_after_the_scan_is_refused():
    good = encoded('.jpg')
    height = good.index(b'\xff\xc0') + 5
    with pytest.raises(InputError, match='JPEG picture of 47 x 0; both sizes'):
        decode_picture(good[:height] + bytes(2) + good[height + 2 :])


def test_a_jpeg_of_very_many_scans_is_refused_before_any_of_them_is_decoded():
    good = encoded('.jpg', cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    again = segment(0xDA, bytes((1, 1, 0, 1, 63, 0x10)))  # ten bytes, once over the picture
    assert decode_picture(good[:-2] + again * 20 + good[-2:]).shape == IMAGE.shape
    with pytest.raises(InputError, match=r'JPEG .* has \d{4} scans; at most 64 are taken'):
        decode_picture(good[:-2] + again * 1000 + good[-2:])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ('added', 'message'),
    [
        (chunk(b'acTL', b''), 'is animated'),
        (chunk(b'fcTL', bytes(2)), 'is animated'),
        (chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**6))) * 17, 'has more than 16 compr'),
    ],
    ids=['animation', 'frame of an animation', 'texts'],
)
def test_png_chunks_that_cost_more_than_the_picture_are_refused(added, message):
    good = encoded('.png')
    with pytest.raises(InputError, match=f'PNG picture of 47 x 33 in .* {message}'):
        decode_picture(good[:33] + added + good[33:])


def test_texts_and_a_profile_in_a_png_are_passed_over():
    added = chunk(b'tEXt', b'a\0b') * 40 + chunk(b'iTXt', b'a\0\0\0\0\0b') * 3
    good = encoded('.png')
    assert np.array_equal(decode_picture(good[:33] + added + good[33:]), IMAGE)


def test_a_png_that_does_not_begin_with_its_header_is_refused():
    good = encoded('.png')
    with pytest.raises(InputError, match='PNG picture of .* damaged'):
        decode_picture(good[:8] + chunk(b'tEXt', b'a\0bcd' + bytes(9)) + good[8:])


def test_pixels_of_another_size_than_the_header_claims_are_refused():
    header = PictureHeader('JPEG', 47, 33)
    check_decoded(header, IMAGE)
    with pytest.raises(InputError, match='JPEG picture of 47 x 33 .* decoded as 33 x 47'):
        check_decoded(header, IMAGE.transpose(1, 0, 2))


# Pieces of which a header is made up, for edits that mean something to a reader of it.
PIECES = {
    '.jpg': [HIDDEN, frame_header(8, 8), frame_header(300, 200), b'\xff', b'\xff\xd8\xff']
    + [bytes((0xFF, marker, 0, length)) for marker in LENGTHLESS for length in (2, 6)]
    + [bytes((0xFF, marker, 0, 2)) for marker in (0xC4, 0xDA, 0xDB, 0xE1, 0xFE)],
    '.png': [chunk(kind, bytes(13)) for kind in (b'IHDR', b'tEXt', b'acTL', b'IDAT', b'IEND')]
    + [struct.pack('>II', 300, 200), b'IHDR', b'\0\0\0\x0d'],
    '.webp': [b'VP8X\x0a\0\0\0' + bytes(10), b'VP8 ', b'VP8L', b'ANIM', b'\x10', bytes(4)],
}
TAKEN = 47 * 33 // 2  # pixels; fewer than the pictures have


@pytest.mark.parametrize('suffix', FORMS)
def test_whatever_the_header_is_made_to_say_the_bound_holds(suffix):
    good = encoded(suffix)
    length = good.index(b'\xff\xda') if suffix == '.jpg' else 60
    piece = st.sampled_from(PIECES[suffix]) | st.binary(min_size=1, max_size=4)
    places = st.just(2) | st.integers(0, length)
    edits = st.tuples(places, st.booleans(), st.lists(piece, min_size=1, max_size=3).map(b''.join))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(edits, min_size=1, max_size=3))
    def check(edits):
        data = good
        for place, insert, new in edits:
            data = data[:place] + new + data[place if insert else place + len(new) :]
        try:
            header = read_header(data)
            check_size(header, data, TAKEN)
        except InputError:
            with pytest.raises(InputError):
                decode_picture(data, max_pixels=TAKEN)
            return
        # What the header was read to claim is what the decoder takes memory for.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is None or pixels.shape == (header.height, header.width, 3)
        assert header.height * header.width <= TAKEN

    check()


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
