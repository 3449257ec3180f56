"""
The free space node: label images in; an occupancy grid and free distances out.

Frames are those of REP-105: the ground is the x y plane of `base_footprint`, in which both outputs
lie, whatever the camera does. Stamps are those of the label images.
"""

from array import array
from dataclasses import dataclass
import sys
from typing import Any

from dense_perception.errors import InputError, SettingError
from dense_perception.geometry.camera import Array, Camera, mounted
from dense_perception.geometry.free_space import (
    find_free_space,
    FreeSpaceSettings,
    GridSettings,
    GroundView,
    occupancy_grid,
)
from dense_perception.labels import LabelClass, LabelSet
from dense_perception.ros.consumed import KnownCamera, read_label_info, Together
from dense_perception.ros.consumer_health import ConsumerHealth
from dense_perception.ros.consuming import Consumer, ConsumerSettings, Waiting
from dense_perception.ros.free_distance import Beams, Scan
from dense_perception.ros.messages import message_to_labels
from dense_perception.ros.mounting import MountingSettings, Transforms
from dense_perception.ros.quality import latched_quality, result_quality
from dense_perception.ros.serving import run
from dense_perception.settings import setting, Settings
from nav_msgs.msg import OccupancyGrid
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, LaserScan
from std_msgs.msg import Header, String

MAX_CELLS = 4_000_000  # of the grid; 2000 x 2000


@dataclass(frozen=True)
class FreeSpaceNodeSettings(Settings):
    """Where the camera is, and which classes there are."""

    label_names: str = setting(
        '', 'names of the classes in the order of their index, with commas; empty: `label_info`'
    )
    base_frame: str = setting('base_footprint', 'frame on the ground in which outputs lie')
    camera_height: float = setting(
        0.0, 'metres above the ground, with mounting: parameters', low=0, high=1000
    )
    camera_x: float = setting(0.0, 'metres forward of base_frame, with mounting: parameters')
    camera_y: float = setting(0.0, 'metres left of base_frame, with mounting: parameters')


class FreeSpaceNode(Consumer):
    """Node that publishes `~/free_space` and `~/free_distance`."""

    def __init__(self, **options: Any) -> None:
        kinds = (FreeSpaceNodeSettings, MountingSettings, FreeSpaceSettings, GridSettings)
        self._started = False
        super().__init__('free_space', kinds, **options)
        own = self.settings(FreeSpaceNodeSettings)
        by_tf = self.settings(MountingSettings).mounting == 'tf'
        self._transforms = Transforms(self) if by_tf else None
        self._label_set = _named(own.label_names)
        self._camera_info: CameraInfo | None = None
        self._camera = KnownCamera()
        self._beams: Beams | None = None  # of the last image
        self._confidence = self.settings(FreeSpaceSettings).least_confidence > 0
        names = ('labels', 'confidence') if self._confidence else ('labels',)
        self._together = Together(names)
        # The grid is kept for those who come later, as Nav2 expects of a map.
        self.offer('free_space', OccupancyGrid, latched_quality())
        self.offer('free_distance', LaserScan, result_quality())
        for name in names:
            self.listen(name, Image, self._on_image(name), result_quality())
        self.listen('camera_info', CameraInfo, self._on_camera_info, result_quality())
        if self._label_set is None:
            self.listen('label_info', String, self._on_label_info, latched_quality(), once=True)
        self._health = ConsumerHealth(self, self._describe)
        self._started = True
        self.start()

    def check_settings(self, settings: dict[type[Settings], Any]) -> None:
        """Check the size of the grid, and what is read at the start alone."""
        grid: GridSettings = settings[GridSettings]
        if grid.width * grid.height > MAX_CELLS:
            raise SettingError(
                f'width and height are {grid.width} x {grid.height} cells; they must be at most '
                f'{MAX_CELLS} cells in all'
            )
        if not self._started:
            return
        if settings[MountingSettings].mounting != self.settings(MountingSettings).mounting:
            raise SettingError('mounting is read when the node starts; start it again')
        if (settings[FreeSpaceSettings].least_confidence > 0) != self._confidence:
            raise SettingError(
                'least_confidence decides when the node starts whether confidence is listened to; '
                'start it again'
            )
        if (
            settings[FreeSpaceNodeSettings].label_names
            != self.settings(FreeSpaceNodeSettings).label_names
        ):
            raise SettingError('label_names is read when the node starts; start it again')

    # In the executor's thread.

    def _on_image(self, name: str) -> Any:
        def add(message: Image) -> None:
            images = self._together.add(name, message)
            if images is not None:
                self.put(images)

        return add

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    def _on_label_info(self, message: String) -> None:
        try:
            self._label_set = read_label_info(message.data)
        except InputError as error:
            self.statistics.note_error(str(error))
            self.get_logger().error(str(error))

    def _describe(self) -> tuple[str, dict[str, str]]:
        label_set = self._label_set
        rows = {'label set': label_set.name if label_set else 'not known yet'}
        if self._confidence:
            rows['labels or confidence alone'] = str(self._together.incomplete)
        return '', rows

    # In the thread that works.

    def process(self, job: Any) -> None:
        """
        Find what is free in one image, and publish it.

        :param job: label message, and confidence message where that is asked for.
        """
        wanted = self.wanted()
        if not wanted:
            return
        message = job[0]
        age_s = self.check_age(message.header.stamp)
        label_set, info = self._label_set, self._camera_info
        if label_set is None:
            raise Waiting(f'label_info ({self.inputs["label_info"].topic})')
        if info is None:
            raise Waiting(f'camera_info ({self.inputs["camera_info"].topic})')
        labels = message_to_labels(message)
        confidence = message_to_labels(job[1]) if len(job) > 1 else None
        camera = self._camera.of(info, rectified=self.settings(ConsumerSettings).rectified)
        camera.check_size('labels', labels)  # before anything of the camera's size is made
        settings = self.settings(FreeSpaceSettings)
        beams = self._beams_of(camera, self._pose(message.header), settings.range_m)
        space = find_free_space(labels, beams.view, label_set, settings, confidence)
        header = Header(stamp=message.header.stamp)
        header.frame_id = self.settings(FreeSpaceNodeSettings).base_frame
        if 'free_space' in wanted:
            grid = self.settings(GridSettings)
            cells = occupancy_grid(space, beams.view, grid)
            self.outputs['free_space'].publish(grid_message(cells, grid, header))
        if 'free_distance' in wanted:
            self.outputs['free_distance'].publish(scan_message(beams.scan(space), beams, header))
        self.statistics.count_processed(age_s)

    def _pose(self, header: Header) -> Array:
        """Return the pose of the camera in the base frame."""
        own, mounting = self.settings(FreeSpaceNodeSettings), self.settings(MountingSettings)
        if self._transforms is not None:
            return self._transforms.pose(own.base_frame, header.frame_id, header.stamp)
        if own.camera_height <= 0:
            raise InputError(
                'camera_height is 0; with mounting: parameters it must be set, in metres'
            )
        return mounted(
            (own.camera_x, own.camera_y, own.camera_height),
            roll=mounting.camera_roll,
            pitch=mounting.camera_pitch,
            yaw=mounting.camera_yaw,
        )

    def _beams_of(self, camera: Camera, pose: Array, range_m: float) -> Beams:
        """Return what depends on camera, pose and range alone, from the last image if it can."""
        last = self._beams
        if last is None or last.view.camera is not camera or (last.view.pose != pose).any():
            self._beams = Beams(GroundView(camera, pose), range_m)
        elif last.range_m != range_m:
            self._beams = Beams(last.view, range_m)
        assert self._beams is not None
        return self._beams


def grid_message(cells: NDArray[np.int8], settings: GridSettings, header: Header) -> OccupancyGrid:
    """
    Make the message of an occupancy grid.

    :param cells: (height, width) int8, as `occupancy_grid` returns them.
    """
    message = OccupancyGrid(header=header, data=array('b', cells.tobytes()))
    message.info.map_load_time = header.stamp
    message.info.resolution = settings.resolution_m
    message.info.width, message.info.height = settings.width, settings.height
    message.info.origin.position.x = settings.origin_x_m
    message.info.origin.position.y = settings.origin_y_m
    return message


def scan_message(scan: Scan, beams: Beams, header: Header) -> LaserScan:
    """Make the message of free distances; intensities tell what is blocked."""
    message = LaserScan(header=header)
    message.angle_min, message.angle_max = beams.angle_min, beams.angle_max
    message.angle_increment = beams.angle_increment
    message.range_min, message.range_max = beams.range_min_m, beams.range_m
    message.ranges = array('f', scan.ranges.tobytes())
    message.intensities = array('f', scan.blocked.tobytes())
    return message


def _named(names: str) -> LabelSet | None:
    """Return a label set of names with commas between; None of none."""
    found = [name.strip() for name in names.split(',') if name.strip()]
    classes = tuple(LabelClass(name, (0, 0, 0)) for name in found)
    return LabelSet('label_names', classes) if classes else None


def main(arguments: list[str] | None = None) -> int:
    """Run the node until it is told to stop; returns the exit status."""
    return run(FreeSpaceNode, arguments)


if __name__ == '__main__':
    sys.exit(main())
