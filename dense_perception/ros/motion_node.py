"""
The motion node: flow and an IMU in; what is approached how soon, and what moves, out.

Axes are optical, as in REP-103: x right, y down, z forward.
"""

from dataclasses import dataclass, replace
import sys
from typing import Any, NamedTuple

import cv2
from dense_perception.arrays import Flow, Labels
from dense_perception.errors import InputError, SettingError
from dense_perception.geometry.approach import sector_motion, SectorMotion, SectorSettings
from dense_perception.geometry.camera import Array, mounted
from dense_perception.geometry.ego_motion import (
    EgoMotion,
    EgoMotionSettings,
    estimate_ego_motion,
    rotation_from_rate,
)
from dense_perception.geometry.free_space import class_indices
from dense_perception.geometry.moving import find_moving, MovingSettings, static_mask
from dense_perception.labels import LabelSet
from dense_perception.ros.coarse import CoarseGrid
from dense_perception.ros.consumed import KnownCamera, read_label_info, Recent, Together
from dense_perception.ros.consumer_health import ConsumerHealth
from dense_perception.ros.consuming import Consumer, ConsumerSettings, nanoseconds, Waiting
from dense_perception.ros.messages import labels_message, message_to_flow, message_to_labels
from dense_perception.ros.mounting import MountingSettings, Transforms
from dense_perception.ros.quality import latched_quality, result_quality
from dense_perception.ros.sector_messages import array_message, flow_rate, sectors_message
from dense_perception.ros.serving import run
from dense_perception.ros.turn_rates import TurnRates
from dense_perception.settings import setting, Settings
from geometry_msgs.msg import TwistStamped
import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, Imu, TimeReference
from std_msgs.msg import Float32MultiArray, Header, String

ARRAYS = ('sector_flow', 'divergence', 'time_to_contact')


@dataclass(frozen=True)
class MotionNodeSettings(Settings):
    """How the camera's motion is found, and at which cost."""

    use_labels: bool = setting(
        True,
        'listen to labels, for `moving` and to find the motion in what cannot move; false: the '
        'perception node need not label. Is read when the node starts',
    )
    stride: int = setting(
        4,
        'pixels of the image; flow is looked at every so many rows and columns',
        low=1,
        high=64,
    )
    motion_step: int = setting(
        16, "pixels of the image; the same for finding the camera's motion", low=1, high=256
    )
    motion_threshold_px: float = setting(
        1.0,
        "pixels of the image off the camera's motion that still agree with it",
        low=0.01,
        high=100,
    )
    still_share: float = setting(
        0.9, 'share of pixels that a turn alone explains: the camera stays', low=0.5, high=1
    )


class Job(NamedTuple):
    """Messages of one image, and the labels of the one before."""

    flow: Image
    reference: TimeReference
    labels: Image | None


class Seen(NamedTuple):
    """Labels of the image before, whole and thinned out."""

    header: Header
    labels: Labels
    coarse: Labels
    label_set: LabelSet


class MotionNode(Consumer):
    """Node that publishes what sectors of the image do, the camera's motion, and `~/moving`."""

    def __init__(self, **options: Any) -> None:
        kinds = (MotionNodeSettings, MountingSettings, SectorSettings, MovingSettings)
        self._started = False
        super().__init__('motion', kinds, **options)
        by_tf = self.settings(MountingSettings).mounting == 'tf'
        self._transforms = Transforms(self) if by_tf else None
        self._with_labels = self.settings(MotionNodeSettings).use_labels
        self._label_set: LabelSet | None = None
        self._camera_info: CameraInfo | None = None
        self._camera = KnownCamera()
        self._grid: CoarseGrid | None = None  # of the last image
        self._rates = TurnRates()
        self._turned_by = {'imu': 0, 'flow': 0}  # images whose turn came from there
        self._without_imu = self._bad_imu = self._bad_labels = ''
        self._without_labels = 0  # images
        self._together, self._labels = Together(('flow', 'flow_reference')), Recent()
        self._offer()
        self._listen()
        self._health = ConsumerHealth(self, self._describe)
        self._started = True
        self.start()

    def check_settings(self, settings: dict[type[Settings], Any]) -> None:
        """Refuse to change what is read at the start alone."""
        if not self._started:
            return
        for kind, name in ((MountingSettings, 'mounting'), (MotionNodeSettings, 'use_labels')):
            if getattr(settings[kind], name) != getattr(self.settings(kind), name):
                raise SettingError(f'{name} is read when the node starts; start it again')

    def _offer(self) -> None:
        self.offer('sectors', Image, result_quality())
        for name in ARRAYS:
            self.offer(name, Float32MultiArray, result_quality())
        self.offer('motion', TwistStamped, result_quality())
        if self._with_labels:
            self.offer('moving', Image, result_quality())

    def _listen(self) -> None:
        self.listen('flow', Image, lambda m: self._on_part('flow', m), result_quality())
        self.listen(
            'flow_reference',
            TimeReference,
            lambda m: self._on_part('flow_reference', m),
            result_quality(),
        )
        self.listen('camera_info', CameraInfo, self._on_camera_info, result_quality())
        # Deep, as many come between two images, and best effort, as sensors publish.
        quality = QoSProfile(depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.listen('imu', Imu, self._on_imu, quality, needed=False)
        if self._with_labels:
            self.listen('labels', Image, self._labels.add, result_quality(), needed=False)
            self.listen(
                'label_info',
                String,
                self._on_label_info,
                latched_quality(),
                once=True,
                needed=False,
            )

    # In the executor's thread.

    def _on_part(self, name: str, message: Any) -> None:
        both = self._together.add(name, message)
        if both is not None:
            # Flow lies on the grid of the image before, and so must its labels.
            flow, reference = both
            self.put(Job(flow, reference, self._labels.find(reference.time_ref)))

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    def _on_imu(self, message: Imu) -> None:
        try:
            self._rates.add(message)
            self._bad_imu = ''
        except InputError as error:
            self._bad_imu = str(error)
            self.get_logger().warning(self._bad_imu, throttle_duration_sec=5.0)

    def _on_label_info(self, message: String) -> None:
        try:
            self._label_set = read_label_info(message.data)
        except InputError as error:
            self.statistics.note_error(str(error))
            self.get_logger().error(str(error))

    def _describe(self) -> tuple[str, dict[str, str]]:
        rows = {
            'turn from imu': str(self._turned_by['imu']),
            'turn from flow': str(self._turned_by['flow']),
            'flow or flow_reference alone': str(self._together.incomplete),
        }
        if self._with_labels:
            rows['images without labels'] = str(self._without_labels)
        return self._bad_imu or self._bad_labels or self._without_imu, rows

    # In the thread that works.

    def process(self, job: Any) -> None:
        """
        Find what moved how from one image to the next, and publish it.

        :param job: a `Job`.
        """
        wanted = self.wanted()
        if not wanted:
            return
        age_s = self.check_age(job.flow.header.stamp)
        if self._camera_info is None:
            raise Waiting(f'camera_info ({self.inputs["camera_info"].topic})')
        start_ns = nanoseconds(job.reference.time_ref)
        end_ns = nanoseconds(job.flow.header.stamp)
        seconds = (end_ns - start_ns) / 1e9
        if seconds <= 0:
            raise InputError(f'flow_reference is {-seconds} s after its image; it must be before')
        flow = message_to_flow(job.flow)
        grid = self._grid_of(self._camera_info, flow.shape[1::-1])
        flow = grid.flow(flow)
        seen = self._seen(job.labels, grid)
        turn = self._turn(start_ns, end_ns, job.flow.header, grid)
        motion = self._motion(flow, grid, seen, turn)
        if 'motion' in wanted:
            self._publish_motion(job.flow.header, grid, motion, seconds)
        if wanted.intersection({'sectors', *ARRAYS}):
            settings = self.settings(SectorSettings)
            settings = replace(settings, blind_px=settings.blind_px / grid.pixels)
            sectors = sector_motion(flow, grid.straight, motion, seconds, settings)
            self._publish_sectors(job.flow.header, sectors, grid, seconds)
        if 'moving' in wanted and seen is not None:
            self._publish_moving(seen, flow, grid, motion)
        self.statistics.count_processed(age_s)

    def _grid_of(self, info: CameraInfo, flow_size: tuple[int, int]) -> CoarseGrid:
        """
        Return the pixels that are looked at, from the last image if it can.

        :param flow_size: width and height of the flow.
        :raises InputError: the camera is none, or not that of the flow.
        """
        camera = self._camera.of(info, rectified=self.settings(ConsumerSettings).rectified)
        stride = self.settings(MotionNodeSettings).stride
        grid, wanted = self._grid, (camera, stride, flow_size)
        if grid is None or (grid.camera, grid.stride, grid.flow_size) != wanted:
            grid = self._grid = CoarseGrid(camera, stride, flow_size)
        return grid

    def _turn(self, start_ns: int, end_ns: int, header: Header, grid: CoarseGrid) -> Array | None:
        """Return the camera's turn as the IMU has measured it, None where it has not."""
        rate = self._rates.mean(start_ns, end_ns)
        if rate is None:
            heard = self.inputs['imu'].heard
            reason = 'has nothing of the time of the images' if heard else 'is silent'
            self._without_imu = f'{self.inputs["imu"].topic} {reason}; turns come from the flow'
            self._turned_by['flow'] += 1
            return None
        self._without_imu = ''
        self._turned_by['imu'] += 1
        if self._transforms is not None:
            frame = self._rates.frame
            to_optical = self._transforms.pose(header.frame_id, frame, header.stamp)[:3, :3]
        else:
            mounting = self.settings(MountingSettings)
            turned = {
                'roll': mounting.camera_roll,
                'pitch': mounting.camera_pitch,
                'yaw': mounting.camera_yaw,
            }
            to_optical = mounted((0, 0, 0), **turned)[:3, :3].T
        seconds = (end_ns - start_ns) / 1e9
        return rotation_from_rate(rate, seconds, grid.camera.rotation @ to_optical)

    def _seen(self, message: Image | None, grid: CoarseGrid) -> Seen | None:
        """Read the labels of the image before; bad ones cost themselves alone."""
        if message is None or self._label_set is None:
            self._without_labels += 1
            return None
        try:
            labels = message_to_labels(message)
            settings = self.settings(MovingSettings)
            for names in (settings.movable, settings.ground):
                class_indices(names, self._label_set)  # told before they are needed
            seen = Seen(message.header, labels, grid.labels(labels), self._label_set)
        except InputError as error:
            self._bad_labels = f'labels not used: {error}'
            self._without_labels += 1
            self.get_logger().warning(self._bad_labels, throttle_duration_sec=1.0)
            return None
        self._bad_labels = ''
        return seen

    def _motion(
        self, flow: Flow, grid: CoarseGrid, seen: Seen | None, turn: Array | None
    ) -> EgoMotion:
        """Find the camera's motion, where there are labels in what cannot move by itself."""
        own = self.settings(MotionNodeSettings)
        settings = EgoMotionSettings(
            threshold_px=max(own.motion_threshold_px / grid.pixels, 0.01),
            step=max(int(own.motion_step / grid.pixels), 1),
            still_share=own.still_share,
        )
        static = None
        if seen is not None:
            static = static_mask(seen.coarse, seen.label_set, self.settings(MovingSettings))
        return estimate_ego_motion(flow, grid.straight, settings, static=static, rotation=turn)

    def _publish_motion(
        self, header: Header, grid: CoarseGrid, motion: EgoMotion, seconds: float
    ) -> None:
        message = TwistStamped(header=header)
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z = map(float, grid.to_camera(motion.direction))
        # What is seen turns the other way than the camera.
        turned = np.asarray(cv2.Rodrigues(motion.rotation)[0].ravel() / -seconds, np.float64)
        angular.x, angular.y, angular.z = map(float, grid.to_camera(turned))
        self.outputs['motion'].publish(message)

    def _publish_sectors(
        self, header: Header, sectors: SectorMotion, grid: CoarseGrid, seconds: float
    ) -> None:
        rate = flow_rate(sectors, grid.straight, seconds)
        self.outputs['sectors'].publish(sectors_message(sectors, rate, header))
        values = (rate, sectors.divergence_per_s, sectors.time_to_contact_s)
        for name, content in zip(ARRAYS, values, strict=True):
            self.outputs[name].publish(array_message(content))

    def _publish_moving(self, seen: Seen, flow: Flow, grid: CoarseGrid, motion: EgoMotion) -> None:
        """Publish the mask of what moves, on the grid of the labels."""
        settings = self.settings(MovingSettings)
        coarse = replace(settings, threshold_px=max(settings.threshold_px / grid.pixels, 0.01))
        found = find_moving(flow, seen.coarse, grid.straight, motion, seen.label_set, coarse)
        # What was looked at coarsely is cut out along the labels.
        movable = np.isin(seen.labels, class_indices(settings.movable, seen.label_set))
        mask = (grid.fine(found.mask) & movable).astype(np.uint8) * np.uint8(255)
        self.outputs['moving'].publish(labels_message(mask, seen.header))


def main(arguments: list[str] | None = None) -> int:
    """Run the node until it is told to stop; returns the exit status."""
    return run(MotionNode, arguments)


if __name__ == '__main__':
    sys.exit(main())
