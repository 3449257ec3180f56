"""
Labels and flow as the bytes of PNG pictures, and pictures read back with care.

For links that an image of every pixel is too much for. Labels come back exactly; flow comes back
in steps of 1/64 pixel, as KITTI stores it.
"""

from typing import Any

import cv2
from dense_perception.arrays import Flow, Image, Labels, Mask
from dense_perception.data.flow_files import flow_from_samples, flow_samples
from dense_perception.data.picture_files import (
    check_decoded,
    check_size,
    MAX_PIXELS,
    PNG_START,
    read_header,
)
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray


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
    if not data.startswith(PNG_START):
        raise InputError(f'{len(data)} bytes are no PNG')
    return _decode(data, cv2.IMREAD_UNCHANGED, max_pixels)


def _decode(data: bytes, flags: int, max_pixels: int) -> NDArray[Any]:
    header = read_header(data)
    check_size(header, data, max_pixels)
    size = f'{header.form} picture of {header.width} x {header.height}'
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f'{size} cannot be decoded: {error.err}') from error
    if pixels is None:
        raise InputError(f'{size} and {len(data)} bytes is damaged and cannot be decoded')
    check_decoded(header, pixels)
    return np.asarray(pixels)
