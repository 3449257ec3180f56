"""
How soon the camera meets what it sees, for each sector of the image.

Points on the camera's path flow away from one point of the image, the faster the sooner they are
met: what a drone avoids obstacles by, without knowing sizes or distances. Two measures stand side
by side. `time_to_contact_s` takes the camera's own motion, and is right for everything static,
slanted or not. `looming_time_s` takes the divergence alone, and so is right for what moves by
itself too, but only where it faces the camera: on the ground it is up to a third too short.
"""

from dataclasses import dataclass
import math

from dense_perception.arrays import Flow, Mask
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Camera, pixel_grid
from dense_perception.geometry.ego_motion import closeness, EgoMotion, parallax, without_rotation
from dense_perception.settings import setting, Settings
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SectorSettings(Settings):
    """Into which sectors the image is cut, and how each is judged."""

    rows: int = setting(3, 'sectors from top to bottom', low=1, high=64)
    columns: int = setting(5, 'sectors from left to right', low=1, high=64)
    least_share: float = setting(
        0.1, 'share of the pixels of a sector that must be usable', low=0.001, high=1
    )
    quantile: float = setting(
        0.5, 'of the pixels of a sector, which is its time: 0 is the soonest', low=0, high=1
    )
    blind_px: float = setting(
        8.0, 'pixels around the point driven at, where flow tells no time', low=0, high=1000
    )


@dataclass(frozen=True)
class SectorMotion:
    """What each sector does; every array is (rows, columns), nan where too few pixels tell."""

    flow_px: NDArray[np.float64]  # (rows, columns, 2), mean flow without rotation, in pixels
    divergence_per_s: NDArray[np.float64]  # of that flow, 1 / s
    # Seconds from the second image until the plane of the camera reaches it; inf for what is not
    # approached.
    time_to_contact_s: NDArray[np.float64]

    @property
    def looming_time_s(self) -> NDArray[np.float64]:
        """Time to contact of what faces the camera, (rows, columns) seconds, from divergence."""
        with np.errstate(divide='ignore'):
            time = 2 / self.divergence_per_s
        return np.asarray(np.where(self.divergence_per_s <= 0, math.inf, time))


def sector_motion(
    flow: Flow,
    camera: Camera,
    motion: EgoMotion,
    seconds: float,
    settings: SectorSettings = SectorSettings(),
    *,
    usable: Mask | None = None,
) -> SectorMotion:
    """
    Judge each sector of the image.

    :param flow: (H, W, 2) float32, pixels from the first image to the second; nan where unknown.
    :param camera: without distortion.
    :param motion: of the camera between the images, as `estimate_ego_motion` finds it.
    :param seconds: from the first image to the second.
    :param usable: (H, W) bool, pixels to count, for example those that are static; None: all.
    :raises InputError: sizes differ, the camera is distorted, or no time between the images.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f'time between images is {seconds} s; it must be over 0')
    straight = without_rotation(flow, camera, motion.rotation)
    counted: Mask = np.asarray(np.isfinite(straight).all(axis=-1))
    if usable is not None:
        camera.check_size('mask of usable pixels', usable)
        counted &= usable
    path = closeness(straight, camera, motion.direction)
    # Path / depth times its share along the axis: the part of the way that was driven.
    driven = path * motion.direction[2]
    still = not motion.direction.any()
    lever = np.linalg.norm(parallax(camera, motion.direction), axis=-1)
    clear = still | (lever > settings.blind_px * abs(motion.direction[2]))
    grid = pixel_grid(camera.height, camera.width)
    shape = (settings.rows, settings.columns)
    result = SectorMotion(
        np.full((*shape, 2), np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    )
    for place in np.ndindex(shape):
        part = _part(place, shape, (camera.height, camera.width))
        chosen = counted[part]
        if chosen.mean() < settings.least_share:
            continue
        vectors = straight[part][chosen].astype(np.float64)
        result.flow_px[place] = vectors.mean(axis=0)
        result.divergence_per_s[place] = _divergence(grid[part][chosen], vectors) / seconds
        told = chosen & clear[part]
        if told.mean() >= settings.least_share:
            share = float(np.quantile(driven[part][told], 1 - settings.quantile))
            result.time_to_contact_s[place] = _time(share, seconds)
    return result


def _part(
    place: tuple[int, ...], shape: tuple[int, int], size: tuple[int, int]
) -> tuple[slice, ...]:
    """Return rows and columns of one sector; the sectors differ by a pixel where they must."""
    return tuple(
        slice(index * length // count, (index + 1) * length // count)
        for index, count, length in zip(place, shape, size, strict=True)
    )


def _divergence(pixels: NDArray[np.float32], vectors: NDArray[np.float64]) -> float:
    """Fit flow that is affine in the pixel, and return its divergence, 1 / frame."""
    centred = pixels - pixels.mean(axis=0, dtype=np.float64)
    if np.linalg.matrix_rank(centred) < 2:
        return math.nan
    slope = np.linalg.lstsq(centred, vectors - vectors.mean(axis=0), rcond=None)[0]
    return float(np.trace(slope))


def _time(driven: float, seconds: float) -> float:
    """Return the time left, of which this share of the way was driven in some seconds."""
    return seconds * (1 - driven) / driven if driven > 0 else math.inf
