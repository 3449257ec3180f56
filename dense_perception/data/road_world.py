"""
A small road world: camera frames of a drive with exact labels, depth and optical flow.

Every surface is a flat textured parallelogram on a rigid body, and the ground is one plane. So the
inverse depth of a surface is affine in pixel coordinates, textures are warped by homographies, and
the flow of a pixel follows from its depth and the poses of its body and of the camera.
"""

from collections import OrderedDict
from dataclasses import dataclass
import math

from dense_perception.arrays import Flow, Image, Labels, Mask
from dense_perception.data import road_ground, road_light
from dense_perception.data.road_bodies import placed, Solid
from dense_perception.data.road_drawing import Batch, Canvas, STATIC
from dense_perception.data.road_scene import Scene
from dense_perception.data.road_street import Chunk
from dense_perception.data.road_textures import generator
from dense_perception.errors import InputError
from dense_perception.settings import setting, Settings
import numpy as np
from numpy.typing import NDArray

_KEPT = 4  # rendered frames that are remembered


@dataclass(frozen=True)
class RoadWorldSettings(Settings):
    """How the road world is filmed."""

    height: int = setting(360, 'image rows', low=16, high=2048)
    width: int = setting(480, 'image columns', low=16, high=4096)
    rate_hz: float = setting(10.0, 'frames per second of drive', low=0.5, high=120.0)
    sensor: bool = setting(True, 'exposure, noise, blur, vignetting and colour cast of a camera')


@dataclass(frozen=True)
class WorldFrame:
    """One camera frame and its truth."""

    image: Image
    labels: Labels
    depth: NDArray[np.float32]  # (H, W), metres along the optical axis; inf on the sky
    stamp_ns: int  # since the start of the drive


@dataclass(frozen=True)
class _Raster:
    """What the renderer leaves of one moment."""

    image: Image
    labels: Labels
    inverse_depth: NDArray[np.float32]  # (H, W), 1 / m; 0 on the sky
    bodies: NDArray[np.int32]  # (H, W), which moving body; STATIC or NOTHING otherwise
    moving: tuple[int, ...]  # the moving bodies that were drawn


class RoadWorld:
    """An endless drive that depends on its seed and settings alone."""

    def __init__(self, seed: int, settings: RoadWorldSettings = RoadWorldSettings()) -> None:
        """
        Lay out a world.

        :param seed: which world, 0 or more.
        :param settings: size and rate of the frames.
        :raises InputError: the seed is negative.
        """
        if seed < 0:
            raise InputError(f'seed is {seed}; it must be 0 or more')
        self.seed, self.settings = seed, settings
        rng = generator(7, seed)
        height, width = settings.height, settings.width
        focal = 0.5 * width / math.tan(0.5 * math.radians(rng.uniform(50, 78)))
        self.camera_matrix = np.array(
            ((focal, 0, (width - 1) / 2), (0, focal, (height - 1) / 2), (0, 0, 1))
        )
        horizon = rng.uniform(0.42, 0.54)
        self._scene = Scene(seed, math.atan((0.5 - horizon) * height / focal))
        self._light = road_light.Light(seed)
        self._lens = road_light.Sensor(seed, height, width) if settings.sensor else None
        self._ground = road_ground.Ground(self._scene, self._light)
        self._kept: OrderedDict[int, _Raster] = OrderedDict()

    def frame(self, index: int) -> WorldFrame:
        """
        Render one frame.

        :param index: 0 for the first; any order.
        :raises InputError: the index is negative.
        """
        raster = self._raster(index)
        with np.errstate(divide='ignore'):
            depth = np.float32(1) / raster.inverse_depth
        stamp_ns = round(index * 1e9 / self.settings.rate_hz)
        return WorldFrame(raster.image.copy(), raster.labels.copy(), depth, stamp_ns)

    def camera_pose(self, index: int) -> NDArray[np.float64]:
        """Return camera to world, (4, 4) float64; optical axes: x right, y down, z forward."""
        return self._scene.ego.pose(self._time(index))

    def flow(self, first: int, second: int) -> tuple[Flow, Mask]:
        """
        Where the points seen in one frame lie in another.

        :param first: index of the frame on whose pixels the flow is given.
        :param second: index of the frame that it points into.
        :returns: (H, W, 2) float32 in pixels, also right where the point gets hidden or leaves the
            image (a point that ends behind the camera keeps only a rough direction); and (H, W)
            bool, True where the point is seen in `second`.
        """
        raster = self._raster(first)
        target, target_inverse = self._reprojected(raster, first, second)
        columns, rows = self._pixels()
        flow = np.stack((target[0] - columns, target[1] - rows), axis=-1).astype(np.float32)
        if first == second:
            flow[:] = 0
        return flow, self._seen(raster, self._raster(second), target, target_inverse)

    def _time(self, index: int) -> float:
        if index < 0:
            raise InputError(f'frame index is {index}; it must be 0 or more')
        return index / self.settings.rate_hz

    def _pixels(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return columns (1, W) and rows (H, 1)."""
        columns = np.arange(self.settings.width, dtype=np.float32)[None]
        return columns, np.arange(self.settings.height, dtype=np.float32)[:, None]

    def _raster(self, index: int) -> _Raster:
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        self._kept[index] = self._render(index)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[index]

    # -- geometry of flow --

    def _reprojected(
        self, raster: _Raster, first: int, second: int
    ) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]:
        """Return column, row and inverse depth in `second` of the points seen in `first`."""
        one, two = self.camera_pose(first), self.camera_pose(second)
        columns, rows = self._pixels()
        inverse = raster.inverse_depth
        seen = [_moved(self._point_map(one, two, np.eye(4)), columns, rows, inverse)]
        for body in raster.moving:
            where = raster.bodies == body
            if not where.any():
                continue
            motion = self._body_motion(body, first, second)
            row, column = np.nonzero(where)
            moved = _moved(
                self._point_map(one, two, motion),
                column.astype(np.float32),
                row.astype(np.float32),
                inverse[where],
            )
            for whole, part in zip(seen[0], moved, strict=True):
                whole[where] = part
        x, y, z = seen[0]
        z = np.maximum(z, 1e-2)  # keep points behind the camera finite
        return (x / z, y / z), inverse / z

    def _body_motion(self, body: int, first: int, second: int) -> NDArray[np.float64]:
        """Return the world motion, (4, 4), of a moving body between two frames."""
        motions = []
        for index in (first, second):
            x, y, z, yaw = self._scene.actor_pose(body, self._time(index))
            c, s = math.cos(yaw), math.sin(yaw)
            motions.append(np.array(((c, -s, 0, x), (s, c, 0, y), (0, 0, 1, z), (0, 0, 0, 1))))
        return motions[1] @ np.linalg.inv(motions[0])

    def _point_map(
        self, one: NDArray[np.float64], two: NDArray[np.float64], motion: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return (3, 4): pixel (x, y, 1) and inverse depth to the other frame's pixel, scaled."""
        relative = np.linalg.inv(two) @ motion @ one
        rotation = self.camera_matrix @ relative[:3, :3] @ np.linalg.inv(self.camera_matrix)
        return np.column_stack((rotation, self.camera_matrix @ relative[:3, 3]))

    def _seen(
        self,
        raster: _Raster,
        other: _Raster,
        target: tuple[NDArray[np.float32], NDArray[np.float32]],
        target_inverse: NDArray[np.float32],
    ) -> Mask:
        """Tell which reprojected points lie in the other image and are the nearest thing there."""
        height, width = raster.labels.shape
        x, y = target
        inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        column = np.clip(np.rint(x), 0, width - 1).astype(np.intp)
        row = np.clip(np.rint(y), 0, height - 1).astype(np.intp)
        place = row * width + column
        # Within half a pixel inverse depth changes by up to about this much on ground and walls.
        slack = 0.02 * target_inverse + np.float32(0.5 / self.camera_matrix[0, 0])
        difference = np.abs(other.inverse_depth.ravel()[place] - target_inverse)
        same = other.bodies.ravel()[place] == raster.bodies
        return inside & same & (difference < slack)

    # -- rendering --

    def _render(self, index: int) -> _Raster:
        time, pose = self._time(index), self.camera_pose(index)
        canvas = Canvas(self.camera_matrix, pose, (self.settings.height, self.settings.width))
        x = self._scene.ego.travelled(time)
        rays = pose[:3, :3] @ np.linalg.inv(self.camera_matrix)  # pixel to world direction
        self._light.paint_sky(canvas.color, rays)
        self._ground.paint(canvas, rays, pose[:3, 3], x)
        chunks = self._scene.visible_chunks(x)
        actors = list(self._scene.visible_actors(time))
        self._draw_shadows(canvas, chunks, actors, time)
        batch = Batch()
        for chunk in chunks:
            batch.add(chunk.solid, chunk.solid.geometry, STATIC)
        for body, solid in actors:
            pose_of_body = self._scene.actor_pose(body, time)
            batch.add(solid, placed(solid.geometry, pose_of_body), body)
        sunlit = self._ground.sunlit(batch.world(), x)
        batch.draw(canvas, self._light, sunlit)
        self._light.add_haze(canvas.color, canvas.inverse)
        if self._lens:
            image = self._lens.expose(canvas.color, generator(8, self.seed, index))
        else:
            image = np.clip(canvas.color + 0.5, 0, 255).astype(np.uint8)
        moving = tuple(body for body, _ in actors)
        return _Raster(image, canvas.labels, canvas.inverse, canvas.bodies, moving)

    def _draw_shadows(
        self, canvas: Canvas, chunks: list[Chunk], actors: list[tuple[int, Solid]], time: float
    ) -> None:
        """Darken the ground below things, before they are drawn."""
        batch = Batch()
        for chunk in chunks:
            batch.add_shadows(chunk.solid, chunk.solid.shadow_geometry)
            crowns = self._light.crown_shadows(chunk.tree_places)
            batch.add_shadows(crowns, crowns.shadow_geometry)
        for body, solid in actors:
            geometry = placed(solid.shadow_geometry, self._scene.actor_pose(body, time))
            batch.add_shadows(solid, geometry)
        batch.darken(canvas)


def _moved(
    point_map: NDArray[np.float64],
    columns: NDArray[np.float32],
    rows: NDArray[np.float32],
    inverse: NDArray[np.float32],
) -> tuple[NDArray[np.float32], ...]:
    """Apply a (3, 4) point map to pixels with inverse depth."""
    m = point_map.astype(np.float32)
    return tuple((a * columns) + (b * rows + c) + d * inverse for a, b, c, d in m)
