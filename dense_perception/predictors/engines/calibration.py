"""Frames of the user's camera that scale int8, and frames held back to judge it."""

from pathlib import Path

import cv2
from dense_perception.arrays import Image
from dense_perception.data.frames import pictures, read_picture
from dense_perception.errors import InputError
from dense_perception.predictors.engines.settings import EngineSettings
import numpy as np

Run = list[Image]  # successive images, as many as a predictor takes

_HELD_BACK = 8  # every eighth run of the folder judges int8 instead of scaling it


def check_calibration(settings: EngineSettings, frames: int) -> None:
    """
    Refuse a folder that cannot scale int8; no folder is one's choice.

    :param frames: images that a predictor takes at a time.
    :raises InputError: no such folder, or too few pictures in it.
    """
    if settings.calibration_frames:
        _starts(settings, _paths(settings), frames)


def calibration_runs(
    settings: EngineSettings, size: tuple[int, int], frames: int
) -> tuple[list[Run], list[Run]]:
    """
    Return runs of the folder's images that scale int8, and runs that judge it; evenly spaced.

    :param size: rows and columns that the images are resized to.
    :param frames: images of each run.
    :returns: both empty where there is no folder.
    :raises InputError: no such folder, too few pictures in it, or one that cannot be read.
    """
    if not settings.calibration_frames:
        return [], []
    paths = _paths(settings)
    runs = [
        [_of_size(read_picture(path), size) for path in paths[at : at + frames]]
        for at in _starts(settings, paths, frames)
    ]
    return [run for at, run in enumerate(runs) if at % _HELD_BACK], runs[::_HELD_BACK]


def _paths(settings: EngineSettings) -> list[Path]:
    return pictures(Path(settings.calibration_frames).expanduser())


def _starts(settings: EngineSettings, paths: list[Path], frames: int) -> list[int]:
    """Return where runs of successive pictures begin."""
    count = min(settings.calibration_count, len(paths) - frames + 1)
    if count < 2:
        raise InputError(
            f'{settings.calibration_frames} holds {len(paths)} images; '
            f'{frames + 1} are needed for calibration'
        )
    return [int(at) for at in np.linspace(0, len(paths) - frames, count)]


def _of_size(image: Image, size: tuple[int, int]) -> Image:
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
