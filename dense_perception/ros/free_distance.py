"""Free distance of image columns as a laser scan: one range for each of many even bearings."""

from dataclasses import dataclass
import math

from dense_perception.geometry.camera import Array
from dense_perception.geometry.free_space import FreeSpace, GroundView
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scan:
    """
    Ranges over bearings from the origin of `base_footprint`, as `sensor_msgs/LaserScan` has them.

    Metres to what ends free ground. By REP-117, inf: free for the whole range; -inf: blocked
    nearer than the nearest ground that is seen; nan: not known.
    """

    ranges: NDArray[np.float32]  # (N,)
    blocked: NDArray[np.float32]  # (N,), 1 where a thing stands there, 0 where the view ends


class Beams:
    """
    Even bearings over the ground that a camera sees within range.

    Depends on camera, place and range alone, so that it is worked out once for a stream.
    """

    def __init__(self, view: GroundView, range_m: float) -> None:
        """
        Spread as many bearings as the image has columns.

        :param range_m: metres; ground farther away is left out.
        """
        self.view, self.range_m = view, range_m
        self._heading = _heading(view.pose)
        reach = np.hypot(view.edges[..., 0], view.edges[..., 1])
        seen = view.edges[reach <= range_m]
        self.range_min_m = float(reach[reach <= range_m].min(initial=range_m))
        bearings = self._bearings(seen) if len(seen) else np.zeros(1)
        low, high = float(bearings.min()), float(bearings.max())
        self._angles = np.linspace(low, high, view.camera.width)  # from the heading
        # May lie beyond pi, where the camera looks back.
        self.angle_min = self._heading + low
        self.angle_max = self._heading + high
        self.angle_increment = (high - low) / max(view.camera.width - 1, 1)

    def scan(self, space: FreeSpace) -> Scan:
        """
        Return the free distance at each bearing, the lesser of the two columns beside it.

        :param space: found in the same view, with the same range.
        """
        columns = np.flatnonzero(np.isfinite(space.distance))
        count = len(self._angles)
        if len(columns) < 2:
            return Scan(np.full(count, np.nan, np.float32), np.zeros(count, np.float32))
        ends = self.view.edges[space.limit[columns] + 1, columns]
        bearings = self._bearings(ends)
        order = np.argsort(bearings, kind='stable')
        columns, bearings = columns[order], bearings[order]
        above = np.searchsorted(bearings, self._angles).clip(1, len(columns) - 1)
        left, right = columns[above - 1], columns[above]
        unseen = np.cumsum(~np.isfinite(space.distance))
        half = self.angle_increment / 2 + 1e-9
        known = (
            (self._angles >= bearings[0] - half)
            & (self._angles <= bearings[-1] + half)
            & (unseen[left] == unseen[right])
        )
        ranges = _ranges(space, self.range_m)
        nearer = np.where(_order(ranges)[left] <= _order(ranges)[right], left, right)
        scan = np.where(known, ranges[nearer], np.nan).astype(np.float32)
        blocked = known & space.blocked[nearer] & np.isfinite(scan)
        return Scan(scan, blocked.astype(np.float32))

    def _bearings(self, points: Array) -> Array:
        """Return bearings from the heading, -pi to pi."""
        angles = np.arctan2(points[..., 1], points[..., 0]) - self._heading
        return np.asarray((angles + math.pi) % (2 * math.pi) - math.pi)


def _heading(pose: Array) -> float:
    """Return the bearing that a camera looks in; straight down, that of the image's top."""
    forward = pose[:2, 2] if np.hypot(*pose[:2, 2]) > 1e-3 else -pose[:2, 1]
    return math.atan2(forward[1], forward[0])


def _ranges(space: FreeSpace, range_m: float) -> NDArray[np.float32]:
    """Return the range of each column, as `Scan` has them."""
    none = space.distance == 0  # no free ground is seen at all
    ranges = np.where(none, np.where(space.blocked, -np.inf, np.nan), space.distance)
    return np.where(~space.blocked & (space.distance >= range_m), np.inf, ranges).astype(
        np.float32
    )


def _order(ranges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what sorts by caution: blocked at once, then not known, then by range."""
    return np.where(np.isnan(ranges), np.float32(-1), ranges)
