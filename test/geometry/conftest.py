"""Two frames of a rendered drive with everything that is known about them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
import math

from dense_perception.arrays import Flow, Image, Labels, Mask
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.geometry.camera import Camera, pixel_grid
from dense_perception.geometry.moving import MovingSettings, static_mask
from dense_perception.labels import CITYSCAPES
import numpy as np
from numpy.typing import NDArray
import pytest

SETTINGS = RoadWorldSettings(height=180, width=240, sensor=False)
SECONDS = 1 / SETTINGS.rate_hz


@dataclass(frozen=True)
class Pair:
    """Truth of two frames, the first one's grid."""

    camera: Camera
    images: tuple[Image, Image]
    labels: Labels
    points: NDArray[
        np.float64
    ]  # (H, W, 3), metres, in the first camera's axes; far away on the sky
    flow: Flow
    valid: Mask
    static: Mask  # of labels that cannot move
    rotation: NDArray[np.float64]  # (3, 3), from the first camera's axes to the second's
    path: NDArray[np.float64]  # (3,), metres, in the first camera's axes
    pose: NDArray[np.float64]  # (4, 4), first camera to the base_footprint below it

    def static_flow(self, *, rotation: bool = True) -> Flow:
        """Project again what is seen, as if nothing moved but the camera."""
        turned = (self.points - self.path) @ (self.rotation.T if rotation else np.eye(3))
        return self.camera.pixels(turned) - pixel_grid(*self.labels.shape)


@cache
def drive_pair(seed: int, index: int = 20, step: int = 1) -> Pair:
    world = RoadWorld(seed, SETTINGS)
    camera = Camera(SETTINGS.width, SETTINGS.height, world.camera_matrix)
    first, second = world.frame(index), world.frame(index + step)
    one, two = world.camera_pose(index), world.camera_pose(index + step)
    relative = np.linalg.inv(two) @ one
    rotation = relative[:3, :3]
    depth = np.minimum(first.depth[..., None].astype(np.float64), 1e7)
    flow, valid = world.flow(index, index + step)
    return Pair(
        camera=camera,
        images=(first.image, second.image),
        labels=first.labels,
        points=np.concatenate((camera.rays * depth, depth), axis=-1),
        flow=flow,
        valid=valid,
        static=static_mask(first.labels, CITYSCAPES, MovingSettings()),
        rotation=rotation,
        path=-rotation.T @ relative[:3, 3],
        pose=np.linalg.inv(footprint(one)) @ one,
    )


def footprint(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return base_footprint in the world: on the ground below the camera, turned as it is."""
    yaw = math.atan2(pose[1, 2], pose[0, 2])  # of the optical axis
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array(
        ((c, -s, 0, pose[0, 3]), (s, c, 0, pose[1, 3]), (0, 0, 1, 0), (0, 0, 0, 1)), np.float64
    )


@pytest.fixture
def pair() -> Callable[..., Pair]:
    """Return the function that renders two frames, by seed."""
    return drive_pair


def angle(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Degrees between two vectors."""
    return math.degrees(math.atan2(np.linalg.norm(np.cross(one, two)), one @ two))


@pytest.fixture(name='angle')
def angle_fixture() -> Callable[..., float]:
    return angle
