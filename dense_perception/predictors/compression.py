"""
Labels and flow as the bytes of PNG pictures, and pictures read back with care.

For links that an image of every pixel is too much for. Labels come back exactly; flow comes back
in steps of 1/64 pixel, as KITTI stores it.
"""

from dataclasses import dataclass
from typing import Any

import cv2
from dense_perception.arrays import Flow, Image, Labels, Mask
from dense_perception.data.flow_files import flow_from_samples, flow_samples
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 1 << 26  # 8192 x 8192; a picture that claims more is refused before it is decoded

_PNG_START = b'\x89PNG\r\n\x1a\n'


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
    if data.startswith(_PNG_START):
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


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image:
    """
    Decode a JPEG, PNG or WebP picture, on the grid of the file.

    :param max_pixels: the largest width x height that is decoded.
    :returns: (H, W, 3) uint8 RGB.
    :raises InputError: another form, too large, cut short or damaged.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = np.asarray(_decode(data, flags, max_pixels), np.uint8)
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def encode_labels(labels: Labels) -> bytes:
    """
    Compress labels, or confidence, without loss.

    :param labels: (H, W) uint8.
    :returns: a grey 8-bit PNG.
    :raises InputError: not such an array, or empty.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2 or labels.size == 0:
        raise InputError(f'labels are {labels.shape} {labels.dtype}; they must be (H, W) uint8')
    return _encode(labels)


def decode_labels(data: bytes, max_pixels: int = MAX_PIXELS) -> Labels:
    """
    Read labels back.

    :returns: (H, W) uint8, as they went into `encode_labels`.
    :raises InputError: not a grey 8-bit PNG, too large, cut short or damaged.
    """
    labels = _decode_png(data, max_pixels)
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise InputError(
            f'PNG holds {labels.shape} {labels.dtype}; labels are one channel of 8 bits'
        )
    return np.asarray(labels, np.uint8)


def encode_flow(flow: Flow, known: Mask | None = None) -> bytes:
    """
    Compress flow as KITTI does, in steps of 1/64 pixel.

    :param flow: (H, W, 2) float32, pixels.
    :param known: (H, W) bool; None: where the flow is finite and fits.
    :returns: a 16-bit PNG: red u, green v, blue 1 where known.
    :raises InputError: another shape, empty, or known flow outside of -512 to 511.98 pixels.
    """
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise InputError(f'flow is {flow.shape}; it must be (H, W, 2)')
    if known is None:
        known = np.asarray(((flow >= -512) & (flow < 511.99)).all(axis=-1))  # nan is neither
    if known.shape != flow.shape[:2]:
        raise InputError(f'known pixels are {known.shape}, flow is {flow.shape}; sizes must match')
    return _encode(flow_samples(flow, known))


def decode_flow(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Flow, Mask]:
    """
    Read flow back.

    :returns: flow (H, W, 2) float32 in pixels, zero where unknown; known (H, W) bool.
    :raises InputError: no PNG with three 16-bit channels, too large, cut short or damaged.
    """
    return flow_from_samples(_decode_png(data, max_pixels))


def scaled_flow(flow: Flow, scale: float) -> Flow:
    """
    Return flow between the images shrunk by a factor.

    :param flow: (H, W, 2) float32, pixels.
    :param scale: over 0, at most 1; sizes are rounded, and one pixel at least.
    :returns: (H', W', 2) float32, in pixels of the small images; each the mean of what it covers.
    :raises InputError: the scale is out of range.
    """
    if not 0 < scale <= 1:
        raise InputError(f'scale of flow is {scale}; it must be over 0, at most 1')
    height, width = flow.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(flow, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small * (np.array(size) / (width, height)), np.float32)


def _encode(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    written, data = cv2.imencode('.png', pixels)
    if not written:
        raise InputError(f'{pixels.shape} {pixels.dtype} cannot be written as PNG')
    return bytes(data.data)


def _decode_png(data: bytes, max_pixels: int) -> NDArray[Any]:
    if not data.startswith(_PNG_START):
        raise InputError(f'{len(data)} bytes are no PNG')
    return _decode(data, cv2.IMREAD_UNCHANGED, max_pixels)


def _decode(data: bytes, flags: int, max_pixels: int) -> NDArray[Any]:
    header = read_header(data)
    size = f'{header.form} picture of {header.width} x {header.height}'
    if header.width == 0 or header.height == 0:
        raise InputError(f'{size}; both sizes must be over 0')
    if header.width * header.height > max_pixels:
        raise InputError(f'{size}; at most {max_pixels} pixels are taken')
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f'{size} cannot be decoded: {error.err}') from error
    if pixels is None:
        raise InputError(f'{size} and {len(data)} bytes is damaged and cannot be decoded')
    return np.asarray(pixels)


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
