"""Picture files, read with a look at the header before any memory is taken."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 1 << 26  # 8192 x 8192; a picture that claims more is refused before it is decoded

PNG_START = b'\x89PNG\r\n\x1a\n'
_MOST_PER_BYTE = 1032 * 8  # pixels of one bit that deflate, PNG's method, can hold in a byte


@dataclass(frozen=True)
class PictureHeader:
    """What the header of a picture claims."""

    form: str  # 'JPEG', 'PNG' or 'WebP'
    width: int
    height: int


def read_header(data: bytes) -> PictureHeader:
    """
    Read form and size of a picture without decoding it.

    :raises InputError: not JPEG, PNG or WebP, or cut short.
    """
    if data.startswith(PNG_START):
        form, size, end = 'PNG', _png_size(data), data.rfind(b'IEND')
    elif data.startswith(b'\xff\xd8'):
        form, size, end = 'JPEG', _jpeg_size(data), data.rfind(b'\xff\xd9')
    elif data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        claimed = 8 + int.from_bytes(data[4:8], 'little')
        form, size, end = 'WebP', _webp_size(data), len(data) if len(data) >= claimed else 0
    else:
        raise InputError(f'picture of {len(data)} bytes is neither JPEG nor PNG nor WebP')
    # A thumbnail has an end of its own, before the size.
    if size is None or end < size.offset:
        raise InputError(f'{form} picture of {len(data)} bytes is cut short or damaged')
    return PictureHeader(form, size.width, size.height)


def check_size(header: PictureHeader, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """
    Refuse a picture whose header claims no pixels, or more than are taken or its bytes can hold.

    :raises InputError: it does.
    """
    size = f'{header.form} picture of {header.width} x {header.height}'
    pixels = header.width * header.height
    if pixels == 0:
        raise InputError(f'{size}; both sizes must be over 0')
    if pixels > max_pixels:
        raise InputError(f'{size}; at most {max_pixels} pixels are taken')
    if header.form == 'PNG' and not _chunks_fit(data):
        raise InputError(f'{size} in {len(data)} bytes is cut short or damaged')
    if header.form == 'PNG' and pixels > len(data) * _MOST_PER_BYTE:
        raise InputError(f'{size} in {len(data)} bytes is damaged; they cannot hold as much')


def read_pixels(path: Path, flags: int) -> NDArray[Any]:
    """
    Read a picture file with OpenCV, on the grid of the file.

    :param flags: of `cv2.imdecode`.
    :returns: as OpenCV gives it, colours in the order blue, green, red.
    :raises InputError: it is missing, too large, or cannot be decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from error
    picture = decode_pixels(path, data, flags)
    if picture is None:
        raise InputError(f'{path}: {len(data)} bytes that cannot be decoded as a picture')
    return picture


def decode_pixels(path: Path, data: bytes, flags: int) -> NDArray[Any] | None:
    """
    Decode the content of a picture file; None where OpenCV cannot.

    :param path: where it is from, for the message.
    :raises InputError: it claims too large a size.
    """
    # OpenCV asserts that there is something to decode.
    if not data or not _may_be_decoded(path, data):
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None


def _chunks_fit(data: bytes) -> bool:
    """Return whether a PNG's chunks lie within it; OpenCV takes the memory that they claim."""
    place = len(PNG_START)
    while place + 8 <= len(data):
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], 'big')  # length, kind, check sum
        if kind == b'IEND':
            return place <= len(data)
    return False


def _may_be_decoded(path: Path, data: bytes) -> bool:
    try:
        header = read_header(data)
    except InputError:
        # Another form is the decoder's business; of a PNG it takes the memory that chunks claim.
        return not data.startswith(PNG_START)
    try:
        check_size(header, data)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    return True


@dataclass(frozen=True)
class _Size:
    width: int
    height: int
    offset: int  # bytes, where the file gives it


def _png_size(data: bytes) -> _Size | None:
    if len(data) < 24:
        return None
    return _Size(int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big'), 16)


def _jpeg_size(data: bytes) -> _Size | None:
    """Walk the segments up to the start of frame, ITU-T T.81 section B.2.2."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[place + 5 : place + 7], 'big')
            return _Size(int.from_bytes(data[place + 7 : place + 9], 'big'), height, place)
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], 'big')
    return None


def _webp_size(data: bytes) -> _Size | None:
    """Read the first chunk, RFC 9649 sections 2.5 to 2.7."""

    def little(place: int, count: int) -> int:
        return int.from_bytes(data[place : place + count], 'little')

    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b'VP8X':
        return _Size(1 + little(24, 3), 1 + little(27, 3), 24)
    if kind == b'VP8L':
        bits = little(21, 4)
        return _Size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), 21)
    if kind == b'VP8 ':
        return _Size(little(26, 2) & 0x3FFF, little(28, 2) & 0x3FFF, 26)
    return None
