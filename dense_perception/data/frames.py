"""A folder of pictures or a video as a stream of images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from dense_perception.arrays import Image, Labels
from dense_perception.data.picture_files import read_pixels
from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray

PICTURE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.ppm')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mkv', '.mov', '.webm', '.m4v', '.mpg', '.mpeg')


@dataclass(frozen=True)
class Frame:
    """One image of a stream."""

    name: str  # file name without suffix; frame number for a video
    stamp_ns: int  # since the start of the stream
    image: Image


def pictures(folder: Path) -> list[Path]:
    """
    Return the picture files of a folder, sorted by name.

    :raises InputError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder')
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
    )
    if not found:
        raise InputError(f'{folder}: no picture in it; looked for {", ".join(PICTURE_SUFFIXES)}')
    return found


def read_picture(path: Path) -> Image:
    """
    Read one picture as RGB on the grid of its file, whatever orientation EXIF asks for.

    :raises InputError: the file is missing or cannot be decoded.
    """
    return _rgb(read_pixels(path, cv2.IMREAD_COLOR))


def read_label_picture(path: Path) -> Labels:
    """
    Read one label picture, its values as they are.

    :returns: (H, W) uint8.
    :raises InputError: the file is missing, cannot be decoded, or is not one 8-bit channel.
    """
    labels = read_pixels(path, cv2.IMREAD_UNCHANGED)
    if labels.ndim != 2 or labels.dtype != np.uint8:
        channels = 1 if labels.ndim == 2 else labels.shape[2]
        raise InputError(
            f'{path}: {channels} channels of {labels.dtype}; '
            'a label picture has one 8-bit channel of class indices'
        )
    return labels


def frames(source: Path, *, rate: float | None = None) -> Iterator[Frame]:
    """
    Read a folder of pictures by name, or a video by time.

    :param source: folder, or video file; sizes may differ from picture to picture.
    :param rate: frames per second; None takes the video's own, and 15 for a folder.
    :raises InputError: nothing to read, or a picture that cannot be decoded.
    """
    if rate is not None and not 0 < rate < 10_000:
        raise InputError(f'rate is {rate} Hz; it must lie between 0 and 10000')
    if source.is_dir():
        for number, path in enumerate(pictures(source)):
            yield Frame(path.stem, _stamp_ns(number, rate or 15.0), read_picture(path))
    elif not source.is_file():
        raise InputError(f'{source}: no such folder or video')
    else:
        yield from _video_frames(source, rate)


def _video_frames(path: Path, rate: float | None) -> Iterator[Frame]:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(
            f'{path}: neither a folder nor a video; a video ends in {", ".join(VIDEO_SUFFIXES)}'
        )
    video = cv2.VideoCapture(str(path))
    try:
        rate = rate or video.get(cv2.CAP_PROP_FPS) or 15.0
        number = 0
        while True:
            read, picture = video.read()
            if not read:
                break
            yield Frame(f'{number:06d}', _stamp_ns(number, rate), _rgb(picture))
            number += 1
    finally:
        video.release()
    if number == 0:
        raise InputError(f'{path}: no frame of it can be decoded as video')


def _stamp_ns(number: int, rate: float) -> int:
    """Time of one frame, without the drift of adding up rounded periods."""
    return round(number * 1e9 / rate)


def _rgb(picture: NDArray[Any]) -> Image:
    """Turn OpenCV's order of colours round; 8 bits stay 8 bits."""
    image: NDArray[Any] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return image
