"""Images that an engine is judged by before the camera has sent any."""

from functools import lru_cache

import cv2
from dense_perception.arrays import Image
from dense_perception.data.road_world import RoadWorld
from dense_perception.predictors.engines.calibration import calibration_runs, Run
from dense_perception.predictors.engines.settings import EngineSettings
import numpy as np

_SEED = 1012  # of the drive; recipes train on those below 1000


def first_runs(
    settings: EngineSettings, size: tuple[int, int], frames: int, count: int
) -> list[Run]:
    """
    Return runs of successive images: of the frames for calibration, or else of a rendered drive.

    :param settings: name these frames; only those are taken that do not scale int8.
    :param size: rows and columns that the images are resized to.
    :param frames: images of each run.
    :param count: runs at most.
    :raises InputError: these frames are missing, or one cannot be read.
    """
    if settings.calibration_frames:
        return calibration_runs(settings, size, frames)[1][:count]
    images = [
        np.asarray(cv2.resize(_rendered(at), size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
        for at in range(count + frames - 1)
    ]
    return [images[at : at + frames] for at in range(count)]


@lru_cache(maxsize=1)
def _world() -> RoadWorld:
    return RoadWorld(_SEED)


@lru_cache(maxsize=8)  # each takes a while, and both labels and flow ask for them
def _rendered(index: int) -> Image:
    return _world().frame(index).image
