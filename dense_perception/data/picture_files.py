"""Picture files, read with a look at the header before any memory is taken."""

from dataclasses import dataclass, replace
from pathlib import Path
import re
from typing import Any

import cv2
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 1 << 26  # 8192 x 8192; a picture that claims more is refused before it is decoded

PNG_START = b'\x89PNG\r\n\x1a\n'
_JPEG_START = b'\xff\xd8'
_MOST_PER_BYTE = 1032 * 8  # pixels of one bit that deflate, PNG's method, can hold in a byte

_ANIMATION = (b'acTL', b'fcTL', b'fdAT')  # chunks; OpenCV reads beyond short ones
# Chunks that hold a few bytes and unpack to megabytes, each of which the decoder unpacks.
_PACKED = (b'iCCP', b'iTXt', b'zTXt')
_MOST_PACKED = 16

# The marker of a JPEG segment, after any number of fill bytes, and its length.
_SEGMENT = re.compile(rb'\xff+([\xc0-\xcf\xda-\xfe])(..)', re.DOTALL)
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
# Every scan goes over the whole picture and may take ten bytes. A progressive file has about ten.
# Length and number of components agree, or libjpeg takes it for damage.
_SCAN = re.compile(rb'\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)')
_MOST_SCANS = 64


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
    elif data.startswith(_JPEG_START):
        form, size, end = 'JPEG', _jpeg_size(data), data.rfind(b'\xff\xd9')
    elif _is_webp(data):
        claimed = 8 + int.from_bytes(data[4:8], 'little')
        form, size, end = 'WebP', _webp_size(data), len(data) if len(data) >= claimed else 0
    else:
        raise InputError(f'picture of {len(data)} bytes is neither JPEG nor PNG nor WebP')
    # A thumbnail has an end of its own, before the pixels.
    if size is None or end < size.offset:
        raise InputError(f'{form} picture of {len(data)} bytes is cut short or damaged')
    return PictureHeader(form, size.width, size.height)


def check_size(header: PictureHeader, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    """
    Refuse a picture that would take much more memory or time than its bytes and pixels need.

    :raises InputError: its header claims no pixels, or more than are taken or its bytes can hold;
        a JPEG of very many scans; a PNG whose chunks are cut short, animate it, or unpack to much.
    """
    size = f'{header.form} picture of {header.width} x {header.height}'
    pixels = header.width * header.height
    if pixels == 0:
        raise InputError(f'{size}; both sizes must be over 0')
    if pixels > max_pixels:
        raise InputError(f'{size}; at most {max_pixels} pixels are taken')
    fault = ''
    if header.form == 'PNG':
        fault = _png_fault(data)
        if not fault and pixels > len(data) * _MOST_PER_BYTE:
            fault = 'is damaged; they cannot hold as much'
    elif header.form == 'JPEG':
        scans = len(_SCAN.findall(data))
        if scans > _MOST_SCANS:
            fault = f'has {scans} scans; at most {_MOST_SCANS} are taken'
    if fault:
        raise InputError(f'{size} in {len(data)} bytes {fault}')


def check_decoded(header: PictureHeader, pixels: NDArray[Any]) -> None:
    """
    Refuse pixels of another size than the header was read to claim.

    :param pixels: (H, W) or (H, W, channels), as decoded.
    :raises InputError: they are.
    """
    height, width = pixels.shape[:2]
    if (width, height) != (header.width, header.height):
        raise InputError(
            f'{header.form} picture of {header.width} x {header.height} is damaged; '
            f'it was decoded as {width} x {height}'
        )


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
    :raises InputError: a JPEG, PNG or WebP that `check_size` or `check_decoded` refuses.
    """
    if not data:  # OpenCV asserts that there is something to decode
        return None
    try:
        # Another form is the decoder's business.
        header = read_header(data) if _has_header(data) else None
    except InputError:
        return None
    try:
        if header is not None:
            check_size(header, data)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
        if header is not None and pixels is not None:
            check_decoded(header, pixels)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    except cv2.error:
        return None
    return pixels


def _is_webp(data: bytes) -> bool:
    return data[:4] == b'RIFF' and data[8:12] == b'WEBP'


def _has_header(data: bytes) -> bool:
    """Return whether a picture is of a form that `read_header` reads."""
    return data.startswith((PNG_START, _JPEG_START)) or _is_webp(data)


def _png_fault(data: bytes) -> str:
    """
    Return what is wrong with a PNG's chunks, nothing if they are well.

    OpenCV takes the memory that chunks claim, whether they lie within the file or not.
    """
    place, packed = len(PNG_START), 0
    while place + 8 <= len(data):
        kind = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], 'big')  # length, kind, check sum
        if kind == b'IEND' and place <= len(data):
            return ''
        if kind in _ANIMATION:
            return 'is animated; a single picture is taken'
        packed += kind in _PACKED
        if packed > _MOST_PACKED:
            return f'has more than {_MOST_PACKED} compressed texts or profiles'
    return 'is cut short or damaged'


@dataclass(frozen=True)
class _Size:
    width: int
    height: int
    offset: int  # bytes, where pixels follow at the earliest


def _png_size(data: bytes) -> _Size | None:
    """Read the first chunk; none other may come first, ISO/IEC 15948 section 5.6."""
    if len(data) < 24 or data[8:16] != b'\0\0\0\x0dIHDR':
        return None
    return _Size(int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big'), 16)


def _jpeg_size(data: bytes) -> _Size | None:
    """
    Walk the segments up to the first scan, ITU-T T.81 section B.2.2.

    libjpeg passes over stray bytes and over markers that have no length; a walk that read one
    there would find the size elsewhere than libjpeg does. Neither belongs before a scan: a file
    that has them is refused, as is a second start of frame.
    """
    size = None
    place = len(_JPEG_START)
    while segment := _SEGMENT.match(data, place):
        marker, body = segment[1][0], segment.end()
        length = int.from_bytes(segment[2], 'big')  # with its own two bytes
        if length < 2:
            return None
        if marker == _START_OF_SCAN:
            return size and replace(size, offset=body)
        if marker in _START_OF_FRAME:
            if size is not None:
                return None
            height = int.from_bytes(data[body + 1 : body + 3], 'big')
            width = int.from_bytes(data[body + 3 : body + 5], 'big')
            size = _Size(width, height, body)
        place = body + length - 2
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
