"""Frames of the user's camera that scale int8, and frames held back to judge it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
import hashlib
from pathlib import Path
from typing import Protocol, TypeVar

import cv2
from dense_perception.arrays import Image
from dense_perception.data.frames import frames as stream
from dense_perception.data.frames import pictures, read_picture, VIDEO_SUFFIXES
from dense_perception.errors import InputError
from dense_perception.predictors.engines.settings import EngineSettings
import numpy as np

Run = list[Image]  # successive images, as many as a predictor takes
Item = TypeVar('Item')

_HELD_BACK = 8  # every eighth run of the frames judges int8 instead of scaling it
_BAG_SUFFIXES = ('.db3', '.mcap')


class FrameSource(Protocol):
    """The images of a camera, of which some are read."""

    def __len__(self) -> int:
        """Return how many there are, by what the source says of itself."""

    def read(self, wanted: Sequence[int]) -> Iterator[Image]:
        """
        Read some images, one at a time; fewer where the source ends before the last of them.

        :param wanted: their places, rising.
        :raises InputError: it is damaged, or one of them is.
        """


BagOpener = Callable[[Path], FrameSource]  # raises InputError where a bag has no images
_bag_openers: list[BagOpener] = []


def read_bags_with(opener: BagOpener) -> None:
    """Take what opens bags; their messages are read by ROS, which is not needed here."""
    _bag_openers[:] = [opener]


def is_bag(path: Path) -> bool:
    """Whether a path names a rosbag2 recording: its folder, or one of its files."""
    return path.suffix in _BAG_SUFFIXES or (path / 'metadata.yaml').is_file()


def pick(items: Iterable[Item], wanted: Sequence[int]) -> Iterator[Item]:
    """
    Return the items at some places, and take none behind the last of them.

    :param wanted: places, rising, one at least.
    """
    places = frozenset(wanted)
    for at, item in enumerate(items):
        if at in places:
            yield item
        if at >= wanted[-1]:
            return


@dataclass(frozen=True)
class _Pictures:
    """A folder of pictures, by name."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, wanted: Sequence[int]) -> Iterator[Image]:
        return (read_picture(self.paths[at]) for at in wanted)


@dataclass(frozen=True)
class _Video:
    """A video, as many frames as its header says."""

    path: Path

    def __len__(self) -> int:
        told = 0
        if self.path.suffix.lower() in VIDEO_SUFFIXES:
            video = cv2.VideoCapture(str(self.path))
            told = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
            video.release()
        return told if told > 0 else sum(1 for _ in stream(self.path))

    def read(self, wanted: Sequence[int]) -> Iterator[Image]:
        return (frame.image for frame in pick(stream(self.path), wanted))


def check_calibration(settings: EngineSettings, frames: int) -> None:
    """
    Refuse frames that cannot scale int8; none is one's choice.

    :param frames: images that a predictor takes at a time.
    :raises InputError: no such folder, video or bag, none that is readable, or too few images.
    """
    if settings.calibration_frames:
        _starts(settings, len(_source(settings)), frames)


def calibration_runs(
    settings: EngineSettings, size: tuple[int, int], frames: int
) -> tuple[list[Run], list[Run]]:
    """
    Return runs of the user's images that scale int8, and runs that judge it; evenly spaced.

    Only these images are kept, at the size that is asked for, however long the recording is.

    :param size: rows and columns that the images are resized to.
    :param frames: images of each run.
    :returns: both empty where no frames are named.
    :raises InputError: no such folder, video or bag, too few images, or one that cannot be read.
    """
    if not settings.calibration_frames:
        return [], []
    source = _source(settings)
    starts = _starts(settings, len(source), frames)
    wanted = sorted({at + later for at in starts for later in range(frames)})
    read = (_of_size(image, size) for image in source.read(wanted))
    images = dict(zip(wanted, read, strict=False))
    runs = [
        [images[at + later] for later in range(frames)]
        for at in starts
        if at + frames - 1 in images  # a header may promise more than follows
    ]
    if len(runs) < 2:
        raise InputError(
            f'{settings.calibration_frames} ends after {len(images)} of {len(wanted)} images '
            f'that it should hold for calibration'
        )
    return [run for at, run in enumerate(runs) if at % _HELD_BACK], runs[::_HELD_BACK]


def calibration_state(settings: EngineSettings) -> str:
    """
    Describe the files of the frames so that a change is noticed.

    :returns: hexadecimal digits; empty where no frames are named.
    """
    if not settings.calibration_frames:
        return ''
    path = _path(settings)
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            state = file.stat()
            digest.update(f'{file.name} {state.st_size} {state.st_mtime_ns}\n'.encode())
    return digest.hexdigest()


def _path(settings: EngineSettings) -> Path:
    return Path(settings.calibration_frames).expanduser()


def _source(settings: EngineSettings) -> FrameSource:
    path = _path(settings)
    if is_bag(path):
        if not _bag_openers:
            raise InputError(
                f'{path}: a bag, which is read by ROS 2: call dense_perception.ros.'
                'calibration_bags.read_calibration_bags() first, or name a folder of its images'
            )
        return _bag_openers[0](path)
    return _Video(path) if path.is_file() else _Pictures(pictures(path))


def _starts(settings: EngineSettings, images: int, frames: int) -> list[int]:
    """Return where runs of successive images begin."""
    count = min(settings.calibration_count, images - frames + 1)
    if count < 2:
        raise InputError(
            f'{settings.calibration_frames} holds {images} images; '
            f'{frames + 1} are needed for calibration'
        )
    return [int(at) for at in np.linspace(0, images - frames, count)]


def _of_size(image: Image, size: tuple[int, int]) -> Image:
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
