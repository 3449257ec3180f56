"""Optical flow on disk: Middlebury's `.flo` and KITTI's 16-bit PNG."""

from pathlib import Path
from typing import Any

import cv2
from dense_perception.arrays import Flow, Mask
from dense_perception.data.picture_files import decode_pixels
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray

FLO_TAG = 202021.25  # reads 'PIEH' in the file's first four bytes
UNKNOWN = 1e9  # a larger component marks an unknown pixel in a .flo file
_LARGEST_SIDE = 32768  # pixels; a header that says more is taken for damage


def read_flo(path: Path) -> tuple[Flow, Mask]:
    """
    Read a Middlebury flow file.

    :returns: flow (H, W, 2) float32 in pixels, zero where unknown; known (H, W) bool.
    :raises InputError: not such a file, or its size does not fit its header.
    """
    content = read_content(path)
    if len(content) < 12 or np.frombuffer(content, '<f4', 1)[0] != np.float32(FLO_TAG):
        raise InputError(f'{path}: no .flo file; it must start with {FLO_TAG} as float32')
    width, height = (int(number) for number in np.frombuffer(content, '<i4', 2, 4))
    if not (0 < width <= _LARGEST_SIDE and 0 < height <= _LARGEST_SIDE):
        raise InputError(f'{path}: the header says {width} x {height} pixels')
    needed = 12 + 8 * width * height
    if len(content) != needed:
        raise InputError(f'{path}: {len(content)} bytes; {width} x {height} pixels need {needed}')
    flow = np.frombuffer(content, '<f4', offset=12).reshape(height, width, 2).astype(np.float32)
    known: Mask = np.asarray((np.abs(flow) < UNKNOWN).all(axis=-1))
    flow[~known] = 0
    return flow, known


def write_flo(path: Path, flow: Flow) -> None:
    """Write a (H, W, 2) float32 flow in pixels as a Middlebury flow file."""
    height, width = flow.shape[:2]
    header = np.array([FLO_TAG], '<f4').tobytes() + np.array([width, height], '<i4').tobytes()
    path.write_bytes(header + np.ascontiguousarray(flow, '<f4').tobytes())


def read_kitti_flow(path: Path) -> tuple[Flow, Mask]:
    """
    Read a KITTI flow file: 16-bit PNG, red u, green v, blue 1 where known.

    :returns: flow (H, W, 2) float32 in pixels, zero where unknown; known (H, W) bool.
    :raises InputError: no PNG with three 16-bit channels.
    """
    coded = decode_pixels(path, read_content(path), cv2.IMREAD_UNCHANGED)
    try:
        return flow_from_samples(coded)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def write_kitti_flow(path: Path, flow: Flow, known: Mask) -> None:
    """
    Write flow in KITTI's format, in steps of 1/64 pixel.

    :raises InputError: a known component lies outside -512 to 511.98 pixels.
    """
    try:
        coded = flow_samples(flow, known)
    except InputError as error:
        raise InputError(f'{path}: {error}') from error
    if not cv2.imwrite(str(path), coded):
        raise InputError(f'{path}: cannot be written')


def flow_samples(flow: Flow, known: Mask) -> NDArray[np.uint16]:
    """
    Return the samples of a KITTI flow picture, in OpenCV's order of channels.

    :returns: (H, W, 3) uint16; 1 where known, v, u; zero where unknown.
    :raises InputError: a known component lies outside -512 to 511.98 pixels.
    """
    numbers = np.rint(flow * 64) + 32768
    if not ((numbers[known] >= 0) & (numbers[known] <= 65535)).all():  # nan is neither
        raise InputError('flow of 512 pixels or more does not fit the KITTI format')
    coded = np.zeros((*flow.shape[:2], 3), np.uint16)
    coded[:, :, :0:-1] = np.where(known[:, :, None], numbers, 0)
    coded[:, :, 0] = known
    return coded


def flow_from_samples(coded: NDArray[Any] | None) -> tuple[Flow, Mask]:
    """
    Return what the samples of a KITTI flow picture mean.

    :param coded: as OpenCV decodes the picture; None where it cannot.
    :returns: flow (H, W, 2) float32 in pixels, zero where unknown; known (H, W) bool.
    :raises InputError: no three 16-bit channels.
    """
    if coded is None or coded.dtype != np.uint16 or coded.ndim != 3 or coded.shape[2] != 3:
        raise InputError('no KITTI flow; it must be a PNG with three 16-bit channels')
    known: Mask = np.asarray(coded[:, :, 0] > 0)  # OpenCV gives the blue channel first
    flow: Flow = (coded[:, :, :0:-1].astype(np.float32) - np.float32(32768)) / np.float32(64)
    flow[~known] = 0
    return flow, known


def read_content(path: Path) -> bytes:
    """
    Return the bytes of a file.

    :raises InputError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from error
