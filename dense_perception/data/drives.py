"""Drives that the demonstration shows: frames with whatever truth is known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Flow, Image, Labels, Mask
from dense_perception.data.frames import frames
from dense_perception.data.road_world import RoadWorld
from dense_perception.data.segmentation import read_labels
from dense_perception.errors import InputError
from dense_perception.labels import CAMVID, CITYSCAPES, LabelSet
import numpy as np
from numpy.typing import NDArray

SHOWN_SEED = 1011  # of the bundled drive; recipes train on seeds below 1000
FIRST_STAMP_NS = 1_000_000_000  # a stamp of zero would mean no time at all


@dataclass(frozen=True)
class DriveFrame:
    """One camera image and what is known about it."""

    stamp_ns: int
    image: Image
    labels: Labels | None = None


@dataclass(frozen=True)
class Drive:
    """A stream of frames, and how to judge what is made of it."""

    frames: Callable[[], Iterator[DriveFrame]]
    label_set: LabelSet  # of the frames' labels
    camera_matrix: NDArray[np.float64] | None = None
    # Flow and where it is visible, from one frame's stamp to another's; None where unknown.
    flow: Callable[[int, int], tuple[Flow, Mask]] | None = None


def rendered_drive(seed: int, count: int) -> Drive:
    """Return a drive through the bundled road world, with all truth."""
    world = RoadWorld(seed)
    period_ns = round(1e9 / world.settings.rate_hz)

    def rendered() -> Iterator[DriveFrame]:
        for index in range(count):
            frame = world.frame(index)
            yield DriveFrame(FIRST_STAMP_NS + index * period_ns, frame.image, frame.labels)

    def flow(first_ns: int, second_ns: int) -> tuple[Flow, Mask]:
        first, second = (
            round((stamp - FIRST_STAMP_NS) / period_ns) for stamp in (first_ns, second_ns)
        )
        return world.flow(first, second)

    return Drive(rendered, CITYSCAPES, world.camera_matrix, flow)


def folder_drive(source: Path, rate: float = 15.0) -> Drive:
    """
    Return a folder of pictures, or a video, as a drive.

    Labels are read from the folder of the same name with `annot` behind it, as the SegNet version
    of CamVid lays them out, in CamVid's classes.

    :raises InputError: there is no such folder or video.
    """
    if not source.exists():
        raise InputError(f'{source}: no such folder of frames, and no such video')
    annotations = source.with_name(f'{source.name}annot')

    def read() -> Iterator[DriveFrame]:
        for frame in frames(source, rate=rate if source.is_dir() else None):
            path = annotations / f'{frame.name}.png'
            labels = read_labels(path, CAMVID) if path.is_file() else None
            yield DriveFrame(FIRST_STAMP_NS + frame.stamp_ns, frame.image, labels)

    return Drive(read, CAMVID)
