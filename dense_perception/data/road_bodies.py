"""
Bodies of the road world: textured parallelograms that stand or move together.

World axes are those of REP 103: x forward along the street, y left, z up, in metres.
"""

from dataclasses import dataclass, field
from functools import lru_cache
import math
from typing import Any

from dense_perception.data import road_people as people
from dense_perception.data import road_surfaces as surfaces
from dense_perception.data import road_vehicles as vehicles
from dense_perception.data.road_textures import Texture
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Frame = tuple[Any, Any, Any]  # corner, across, down: three numbers each


@dataclass
class Quads:
    """Textured parallelograms: corner (upper left), across (to the right) and down vectors."""

    corner: list[Vector] = field(default_factory=list)
    across: list[Vector] = field(default_factory=list)
    down: list[Vector] = field(default_factory=list)
    texture: list[Texture] = field(default_factory=list)
    facing: list[int] = field(default_factory=list)  # 0 both, 1 front, -1 back is visible
    tint: list[float] = field(default_factory=list)  # brightness; opacity for shadows

    def add(
        self,
        frame: Frame,
        texture: Texture,
        *,
        facing: int = 0,
        tint: float = 1.0,
    ) -> None:
        """Append one parallelogram given as (corner, across, down)."""
        corner, across, down = (np.asarray(entry, np.float64) for entry in frame)
        self.corner.append(corner)
        self.across.append(across)
        self.down.append(down)
        self.texture.append(texture)
        self.facing.append(facing)
        self.tint.append(tint)

    def geometry(self) -> NDArray[np.float64]:
        """Return (N, 3, 3): per quad the rows corner, across, down."""
        if not self.corner:
            return np.zeros((0, 3, 3))
        return np.stack((self.corner, self.across, self.down), axis=1)


class Solid:
    """Quads that move as one, frozen for drawing: surfaces and the shadows below them."""

    def __init__(self, surfaces: Quads, shadows: Quads) -> None:
        self.surfaces, self.shadows = surfaces, shadows
        self.geometry, self.shadow_geometry = surfaces.geometry(), shadows.geometry()


def placed(geometry: NDArray[np.float64], pose: Vector) -> NDArray[np.float64]:
    """
    Move quads to a pose.

    :param geometry: (N, 3, 3) corner, across, down.
    :param pose: x, y, z, yaw.
    """
    c, s = math.cos(pose[3]), math.sin(pose[3])
    turn = np.array(((c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0)))
    moved = geometry @ turn
    moved[:, 0] += pose[:3]
    return moved


# ---- bodies, around their own origin on the ground, front towards x ----


@lru_cache(maxsize=128)
def car(body: str, color: int) -> Solid:
    """Build a car from its side outline."""
    outline = vehicles.CAR_BODIES[body]
    length, half = outline[-1][0], vehicles.CAR_WIDTH / 2
    top, width = max(z for _, z in outline), vehicles.CAR_WIDTH
    back = -length / 2
    quads, shadows = Quads(), Quads()
    upper, lower = vehicles.car_sides(body, color)
    belt, inset = vehicles.CAR_BELTS[body], vehicles.CAR_INSET
    frame: Frame
    for y, facing in ((-1, 1), (1, -1)):
        frame = ((back, y * (half - inset), top), (length, 0, 0), (0, y * inset, belt - top))
        quads.add(frame, upper, facing=facing)
        quads.add(((back, y * half, belt), (length, 0, 0), (0, 0, -belt)), lower, facing=facing)
    z = outline[0][1]
    rear = vehicles.car_end(body, color, True)
    quads.add(((back, half, z), (0, -width, 0), (0, 0, -z)), rear, facing=1)
    z = outline[-1][1]
    front = vehicles.car_end(body, color, False)
    quads.add(((-back, -half, z), (0, width, 0), (0, 0, -z)), front, facing=1)
    for x in (back + 0.62, -back - 0.62):
        quads.add(((x, half, 0.5), (0, -width, 0), (0, 0, -0.5)), vehicles.car_tyres(), tint=0.8)
    for (x0, z0), (x1, z1) in zip(outline, outline[1:], strict=False):
        high = max(z0, z1) > 0.8 * top
        steep = high and abs(z1 - z0) > 0.3
        kind = ('back' if z1 > z0 else 'front') if steep else ('roof' if high else 'hood')
        reach = half - inset if kind == 'roof' else half
        if z1 > z0:
            frame = ((back + x1, reach, z1), (0, -2 * reach, 0), (x0 - x1, 0, z0 - z1))
        else:
            frame = ((back + x0, -reach, z0), (0, 2 * reach, 0), (x1 - x0, 0, z1 - z0))
        quads.add(frame, vehicles.car_panel(kind, color), facing=1)
    _shadow(shadows, length + 0.7, width + 0.7, 0.75)
    return Solid(quads, shadows)


def _shadow(shadows: Quads, length: float, width: float, opacity: float) -> None:
    frame = ((length / 2, width / 2, 0.0), (0, -width, 0), (-length, 0, 0))
    shadows.add(frame, surfaces.blob(), tint=opacity)


def _box(
    quads: Quads, kind: str, variant: int, start: float, length: float, height: float
) -> None:
    """Add one box of a big vehicle from x = start on."""
    half, end = 1.24, start + length
    side = vehicles.box_side(kind, variant)
    for y, facing in ((-half, 1), (half, -1)):
        quads.add(((start, y, height), (length, 0, 0), (0, 0, -height)), side, facing=facing)
    rear = vehicles.box_end(kind, variant, True)
    quads.add(((start, half, height), (0, -2 * half, 0), (0, 0, -height)), rear, facing=1)
    front = vehicles.box_end(kind, variant, False)
    quads.add(((end, -half, height), (0, 2 * half, 0), (0, 0, -height)), front, facing=1)


@lru_cache(maxsize=32)
def big_vehicle(kind: str, variant: int) -> Solid:
    """Build a 'bus', 'train' or 'truck'."""
    quads, shadows = Quads(), Quads()
    if kind == 'truck':
        _box(quads, 'cargo', variant, -4.2, 6.0, 3.4)
        _box(quads, 'cab', variant, 2.0, 2.1, 2.8)
        _shadow(shadows, 9.0, 3.2, 0.75)
    elif kind == 'bus':
        _box(quads, 'bus', variant, -5.5, 11.0, 3.1)
        _shadow(shadows, 11.8, 3.2, 0.75)
    else:
        _box(quads, 'train', variant, -14.2, 14.0, 3.5)
        _box(quads, 'train', variant, 0.2, 14.0, 3.5)
        _shadow(shadows, 29.0, 3.2, 0.75)
    return Solid(quads, shadows)


def person(variant: int, turn: float) -> Solid:
    """Build a walker whose picture faces along x, turned by `turn` radians."""
    quads, shadows = Quads(), Quads()
    size = 0.9 + 0.13 * math.sin(variant * 7.3)
    across = size * np.array((math.sin(turn), -math.cos(turn), 0.0))
    corner = -across / 2 + (0, 0, 1.8 * size)
    quads.add((corner, across, (0, 0, -1.8 * size)), people.walker(variant))
    _shadow(shadows, 0.7, 0.8, 0.5)
    return Solid(quads, shadows)


@lru_cache(maxsize=64)
def two_wheeler(variant: int, ridden: bool) -> Solid:
    """Build a bicycle or motorcycle from two crossed pictures."""
    quads, shadows = Quads(), Quads()
    down = (0, 0, -1.8)
    side = people.two_wheeler(variant, True, False)  # one rider only, or heads would double
    quads.add(((-0.9, 0, 1.8), (1.8, 0, 0), down), side)
    rear = people.two_wheeler(variant, False, ridden)
    quads.add(((-0.25, 0.9, 1.8), (0, -1.8, 0), down), rear)
    _shadow(shadows, 2.0, 0.8, 0.5)
    return Solid(quads, shadows)
