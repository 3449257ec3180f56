"""How a camera is mounted: from tf2, or from parameters where nobody publishes it."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
from dense_perception.errors import InputError, SettingError
from dense_perception.geometry.camera import Array
from dense_perception.settings import setting, Settings
import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

_PATIENCE_S = 0.1  # that a transform may be later than its image


@dataclass(frozen=True)
class MountingSettings(Settings):
    """Where the turn of the camera's body comes from."""

    mounting: str = setting(
        'tf',
        'tf: from tf2, by the frame_id of the messages; parameters: from the camera_... ones. Is '
        'read when the node starts',
        choices=('tf', 'parameters'),
    )
    camera_roll: float = setting(0.0, 'radians, of its body about x, forward', low=-7, high=7)
    camera_pitch: float = setting(
        0.0, 'radians, about y, left; positive looks down', low=-7, high=7
    )
    camera_yaw: float = setting(0.0, 'radians, about z, up; positive looks left', low=-7, high=7)


class Transforms:
    """Looks transforms up in tf2."""

    def __init__(self, node: Node) -> None:
        """
        Listen to /tf and /tf_static.

        :raises SettingError: tf2_ros is not installed.
        """
        try:
            self._tf2: Any = import_module('tf2_ros')
        except ImportError as error:
            raise SettingError(
                'mounting is tf, but tf2_ros is not installed (ros-DISTRO-tf2-ros-py); install '
                'it, or set mounting to parameters'
            ) from error
        self._buffer = self._tf2.Buffer()
        self._listener = self._tf2.TransformListener(self._buffer, node, spin_thread=False)

    def pose(self, target: str, source: str, stamp: TimeMessage) -> Array:
        """
        Return the pose of a frame in another one; not to be called by the node's executor.

        :returns: (4, 4) float64, points in `source` to those in `target`, metres.
        :raises InputError: tf2 does not know it for that time, or a transform is none.
        """
        if not (target and source):
            raise InputError(
                f'transform from {source!r} to {target!r}; a message has no frame_id. Set it, or '
                'set mounting to parameters'
            )
        patience = Duration(seconds=_PATIENCE_S)
        try:
            found = self._buffer.lookup_transform(
                target, source, Time.from_msg(stamp), timeout=patience
            )
        # A stamp before 0 is a ValueError.
        except (self._tf2.TransformException, ValueError) as error:
            raise InputError(f'no transform from {source} to {target}: {error}') from error
        return pose_matrix(found.transform)


def pose_matrix(transform: Any) -> Array:
    """
    Return a transform as a matrix.

    :param transform: geometry_msgs/Transform.
    :returns: (4, 4) float64.
    :raises InputError: its quaternion is no rotation, or a number is not finite.
    """
    q, t = transform.rotation, transform.translation
    quaternion, position = np.array((q.x, q.y, q.z, q.w)), np.array((t.x, t.y, t.z))
    length = float(np.linalg.norm(quaternion))
    if not (np.isfinite(position).all() and abs(length - 1) < 0.01):
        raise InputError(
            f'transform has rotation {quaternion.tolist()} and translation {position.tolist()}; '
            'it must be a unit quaternion and finite metres'
        )
    x, y, z, w = quaternion / length
    pose = np.eye(4)
    pose[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    pose[:3, 3] = position
    return pose
