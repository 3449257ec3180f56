"""
Where a robot can drive: ground that is labelled drivable, seen from a camera above it.

The ground is the plane z = 0 of `base_footprint` (REP-105). In each image column the drivable
pixels from the bottom up are free ground, and the first other thing stands where its foot is. What
lies behind it cannot be seen, so it stays unknown. Columns are taken for upright: the camera
should roll by no more than a few degrees.
"""

from dataclasses import dataclass

from dense_perception.arrays import Confidence, Labels, Mask
from dense_perception.errors import InputError
from dense_perception.geometry.camera import Array, Camera, check_rotation, pixel_grid
from dense_perception.labels import LabelSet, UNLABELLED
from dense_perception.settings import setting, Settings
import numpy as np
from numpy.typing import NDArray

# The values of nav_msgs/OccupancyGrid.
UNKNOWN, FREE, OCCUPIED = -1, 0, 100


@dataclass(frozen=True)
class FreeSpaceSettings(Settings):
    """What counts as free ground."""

    drivable: str = setting('road', 'names of the classes to drive on, with commas between')
    least_confidence: int = setting(
        0, 'of 255; a pixel whose confidence is lower counts as unlabelled', low=0, high=255
    )
    obstacle_rows: int = setting(
        3, 'rows without drivable ground that end it; fewer are taken for noise', low=1, high=100
    )
    range_m: float = setting(30.0, 'metres; ground farther away is left out', low=0.1, high=1000)


@dataclass(frozen=True)
class GridSettings(Settings):
    """Where an occupancy grid lies in `base_footprint`."""

    resolution_m: float = setting(0.1, 'metres, side of a cell', low=0.005, high=10)
    width: int = setting(200, 'cells along x, forward', low=1, high=10_000)
    height: int = setting(200, 'cells along y, to the left', low=1, high=10_000)
    origin_x_m: float = setting(0.0, 'metres, x of the corner of the first cell')
    origin_y_m: float = setting(-10.0, 'metres, y of the corner of the first cell')


class GroundView:
    """
    Where each pixel of a camera meets the ground.

    Depends on the camera and its place alone, so that it is worked out once for a stream.
    """

    def __init__(self, camera: Camera, pose: Array) -> None:
        """
        Look at the ground.

        :param camera: distorted or not.
        :param pose: (4, 4), optical axes to `base_footprint`; `camera.mounted` makes one.
        :raises InputError: the pose is no rigid motion, or the camera is not above the ground.
        """
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise InputError(f'camera pose is {pose.tolist()}; it must be (4, 4) and finite')
        check_rotation('rotation of the camera pose', pose[:3, :3])
        if pose[2, 3] <= 0:
            raise InputError(f'camera is {pose[2, 3]} m above the ground; it must be over 0')
        self.camera, self.pose = camera, pose
        edges = pixel_grid(camera.height + 1, camera.width)
        edges[..., 1] -= 0.5
        # (H + 1, W, 2), metres: where the upper edge of each pixel meets the ground, that of row H
        # is the image's lower edge; nan from the horizon up.
        self.edges = self._ground(camera.normalised(edges))

    def _ground(self, rays: Array) -> Array:
        directions = rays @ self.pose[:3, :2].T + self.pose[:3, 2]  # in base_footprint
        down = -directions[..., 2:]
        with np.errstate(divide='ignore', invalid='ignore'):
            reach = np.where(down > 1e-9, self.pose[2, 3] / down, np.nan)
        return np.asarray(self.pose[:2, 3] + reach * directions[..., :2])


@dataclass(frozen=True)
class FreeSpace:
    """How far the ground of each image column is free."""

    limit: NDArray[np.intp]  # (W,), row of the lowest pixel that is not free; -1 for none
    blocked: Mask  # (W,), whether something stands there, and not only the view ends
    # (W,), metres along the ground from the origin of base_footprint: to what blocks, to the last
    # ground that is seen, at most the range. 0 where no ground is seen; nan where none can be,
    # because the whole column looks over it.
    distance: NDArray[np.float32]


def find_free_space(
    labels: Labels,
    view: GroundView,
    label_set: LabelSet,
    settings: FreeSpaceSettings = FreeSpaceSettings(),
    confidence: Confidence | None = None,
) -> FreeSpace:
    """
    Find the free ground of each image column.

    :param labels: (H, W) uint8; 255 is unlabelled and ends free ground without blocking it.
    :param view: of the camera that the labels are from.
    :param label_set: names the classes.
    :param confidence: (H, W) uint8, 0 to 255; None counts every label.
    :raises InputError: sizes differ, or a drivable class does not exist.
    """
    camera = view.camera
    camera.check_size('labels', labels)
    if confidence is not None:
        camera.check_size('confidence', confidence)
        labels = np.where(confidence < settings.least_confidence, np.uint8(UNLABELLED), labels)
    drivable = np.isin(labels, class_indices(settings.drivable, label_set))
    reach = np.hypot(view.edges[..., 0], view.edges[..., 1])  # (H + 1, W), m
    # The lower edge of a pixel tells whether it shows ground within range.
    in_range = reach[1:] <= settings.range_m
    ended = _runs(~drivable, settings.obstacle_rows) | ~in_range
    limit = _lowest(ended)
    columns = np.arange(camera.width)
    seen = (limit >= 0) & in_range[limit, columns]
    distance = np.fmin(reach[limit + 1, columns], settings.range_m)  # nan is beyond the horizon
    distance[(limit >= 0) & ~seen] = settings.range_m
    distance[limit == camera.height - 1] = 0
    distance[~in_range[-1]] = np.nan
    things = ~drivable & (labels != UNLABELLED)
    run = np.maximum(limit - np.arange(settings.obstacle_rows)[:, None], 0)  # (rows, W)
    blocked = seen & things[run, columns].any(axis=0)
    return FreeSpace(limit, blocked, distance.astype(np.float32))


def occupancy_grid(
    free_space: FreeSpace, view: GroundView, settings: GridSettings = GridSettings()
) -> NDArray[np.int8]:
    """
    Draw free space as a grid, as nav_msgs/OccupancyGrid has it.

    :param free_space: of the same view.
    :returns: (height, width) int8 over y and x: 0 is free, 100 occupied, -1 unknown. Flattened in
        this order it is the message's data.
    """
    grid = np.full((settings.height, settings.width), UNKNOWN, np.int8)
    grid[_free_cells(free_space, view, settings)] = FREE
    columns = np.flatnonzero(free_space.blocked)
    foot = view.edges[free_space.limit[columns] + 1, columns]
    origin = (settings.origin_x_m, settings.origin_y_m)
    cells = np.floor((foot - origin) / settings.resolution_m)
    inside = ((cells >= 0) & (cells < (settings.width, settings.height))).all(axis=-1)
    x, y = cells[inside].astype(np.intp).T
    grid[y, x] = OCCUPIED
    return grid


def class_indices(names: str, label_set: LabelSet) -> list[int]:
    """
    Return the indices of classes that a setting names, with commas between.

    :raises InputError: one of them does not exist.
    """
    return [label_set.index(name.strip()) for name in names.split(',') if name.strip()]


def _free_cells(free_space: FreeSpace, view: GroundView, settings: GridSettings) -> Mask:
    """Tell which cells have their middle on free ground that the camera sees."""
    camera = view.camera
    x = settings.origin_x_m + (np.arange(settings.width) + 0.5) * settings.resolution_m
    y = settings.origin_y_m + (np.arange(settings.height) + 0.5) * settings.resolution_m
    middles = np.stack((*np.meshgrid(x, y), np.zeros((settings.height, settings.width))), axis=-1)
    points = (middles - view.pose[:3, 3]) @ view.pose[:3, :3]
    pixels = camera.pixels(points)
    with np.errstate(invalid='ignore'):  # nan is behind the camera
        inside = ((pixels > -0.5) & (pixels < (camera.width - 0.5, camera.height - 0.5))).all(-1)
    column, row = np.rint(pixels[inside]).astype(np.intp).T
    # Far outside the view a distortion polynomial leads back into it.
    rays = points[inside][:, :2] / points[inside][:, 2:]
    true = (np.abs(camera.rays[row, column] - rays) < 3 / camera.matrix[0, 0]).all(axis=-1)
    distance = np.hypot(*np.moveaxis(middles[inside][:, :2], -1, 0))
    below = pixels[inside][:, 1] > free_space.limit[column] + 0.5
    free = np.zeros(inside.shape, np.bool_)
    free[inside] = true & below & (distance <= free_space.distance[column])
    return free


def _runs(mask: Mask, length: int) -> Mask:
    """Tell where, going up, a run of at least `length` rows begins or goes on that long."""
    height = len(mask)
    padded = np.concatenate((np.ones((length - 1, mask.shape[1]), np.bool_), mask))
    runs = padded[length - 1 :].copy()
    for step in range(1, length):
        runs &= padded[length - 1 - step : length - 1 - step + height]
    return runs


def _lowest(mask: Mask) -> NDArray[np.intp]:
    """Return the row of the lowest pixel of each column that is set; -1 for none."""
    height = len(mask)
    return np.where(mask.any(axis=0), height - 1 - mask[::-1].argmax(axis=0), -1)
