"""
The street of the road world and everything on it that does not move.

A place is given in street coordinates (x, d, z): x as in the world, d is how far left of the
street's centre line it lies, z up. The street is built in chunks; each depends on the seed and its
number alone.
"""

import math
from typing import Any

from dense_perception.data import road_furniture as furniture
from dense_perception.data import road_people as people
from dense_perception.data import road_plants as plants
from dense_perception.data import road_surfaces as surfaces
from dense_perception.data import road_vehicles as vehicles
from dense_perception.data.road_bodies import (
    car,
    Frame,
    person,
    placed,
    Quads,
    Solid,
    two_wheeler,
    Vector,
)
from dense_perception.data.road_textures import generator, Texture
import numpy as np

CHUNK = 40.0  # metres of street


class Street:
    """What is the same along the whole street, drawn from the seed."""

    def __init__(self, seed: int) -> None:
        rng = generator(1, seed)
        self.seed = seed
        self.hand = 1 if rng.random() < 0.65 else -1  # 1 drives on the right
        self.lane_width = rng.uniform(2.7, 3.5)
        self.lanes = int(rng.choice((1, 2), p=(0.8, 0.2)))  # per direction
        self.parking = {side: bool(rng.random() < 0.5) for side in (-1, 1)}
        shoulder = rng.uniform(2.1, 2.4) if any(self.parking.values()) else rng.uniform(0.3, 1.4)
        self.half_width = round(self.lanes * self.lane_width + shoulder, 2)
        self.sidewalk = round(rng.uniform(2.2, 5.0), 2)
        self.verge = round(rng.uniform(0.9, 2.0), 2)
        self.grassy = bool(rng.random() < 0.4)  # grass between road and sidewalk at gardens
        self.weights = rng.dirichlet((1.3, 1.0, 0.8))  # urban, garden, park
        self.curves = [
            (rng.uniform(0, 0.13), rng.uniform(55, 90), rng.uniform(0, 6.28)),
            (rng.uniform(0, 0.16), rng.uniform(100, 190), rng.uniform(0, 6.28)),
        ]
        self.tree_share = rng.uniform(0.1, 1.0)
        self.parked_share = rng.uniform(0.3, 0.95)
        self.palette = rng.integers(0, surfaces.FACADES, 10)
        self.lamp_side = int(rng.choice((-1, 1)))
        self.people = rng.uniform(6, 22)  # metres between walkers
        self.tram = bool(rng.random() < 0.14)

    def center(self, x: Any) -> Any:
        """Return y of the centre line at x."""
        return np.asarray(
            sum(
                slope * length * np.sin(x / length + phase) for slope, length, phase in self.curves
            )
        )

    def heading(self, x: float) -> float:
        """Return the direction of the street at x, radians."""
        slope = sum(a * math.cos(x / length + phase) for a, length, phase in self.curves)
        return math.atan(slope)

    def place(self, x: float, d: float, z: float = 0.0) -> Vector:
        """Turn street coordinates into world coordinates."""
        return np.array((x, float(self.center(x)) + d, z))

    def pose(self, x: float, d: float, turn: float = 0.0) -> Vector:
        """Return x, y, z, yaw of something that stands on the street."""
        return np.array((*self.place(x, d), self.heading(x) + turn))

    def is_crossing(self, chunk: int) -> bool:
        """Tell whether a side street crosses in a chunk."""
        return bool(generator(2, self.seed, chunk + 10_000).random() < 0.3) and chunk != 0

    def zone(self, chunk: int, side: int) -> int:
        """Return what lies beside the road: 0 urban, 1 garden, 2 park; in runs of three chunks."""
        rng = generator(3, self.seed, chunk // 3 + 10_000, side + 1)
        return int(rng.choice(3, p=self.weights))

    def building_line(self, zone: int) -> float:
        """Return the distance of house fronts from the centre line."""
        return self.walk_end(zone) + (0.0, 4.5, 9.0)[zone]

    def walk_end(self, zone: int) -> float:
        """Return the distance of the sidewalk's outer edge from the centre line."""
        grass = self.verge if zone == 2 or (zone == 1 and self.grassy) else 0.0
        return self.half_width + self.sidewalk + grass


# Stretches of a crossing chunk in metres from its start.
CROSSING = ((14.0, 17.5, 'zebra'), (17.5, 19.5, 'corner'), (19.5, 27.0, 'junction'),
            (27.0, 29.0, 'corner'), (29.0, 32.5, 'zebra'))  # fmt: skip
_GAP = (17.5, 29.0)  # no buildings here


class Chunk:
    """The immovable things on one stretch of street."""

    def __init__(self, street: Street, number: int) -> None:
        self.street, self.number, self.start = street, number, number * CHUNK
        self.crossing = street.is_crossing(number)
        self.rng = generator(4, street.seed, number + 10_000)
        self.quads, self.shadows = Quads(), Quads()
        self.tree_places: list[tuple[float, float, float]] = []
        self.roofline: dict[int, list[tuple[float, float, float]]] = {-1: [], 1: []}
        for side in (-1, 1):
            zone = street.zone(number, side)
            self._build_houses(side, zone)
            self._build_border(side, zone)
            self._plant(side, zone)
            self._park(side)
            self._furnish(side)
            self._close_view(side)
        if self.crossing:
            self._build_crossing()
        self.solid = Solid(self.quads, self.shadows)

    def _free(self, x: float, margin: float = 0.0) -> bool:
        """Tell whether x, from the chunk's start, is clear of the side street."""
        return not self.crossing or not _GAP[0] - margin < x < _GAP[1] + margin

    def _along(self, side: int, x0: float, x1: float, d: float, z: tuple[float, float]) -> Frame:
        """Return a frame that stands along the street and faces it; x from the chunk's start."""
        a = self.street.place(self.start + x0, side * d)
        b = self.street.place(self.start + x1, side * d)
        if side < 0:
            a, b = b, a
        return a + (0, 0, z[1]), b - a, (0, 0, z[0] - z[1])

    def _across(
        self, side: int, x: float, d: tuple[float, float], z: tuple[float, float]
    ) -> Frame:
        """Return a frame that stands across the street's direction and faces the driver."""
        left = self.street.place(self.start + x, side * d[1] if side > 0 else side * d[0])
        return left + (0, 0, z[1]), (0, d[0] - d[1], 0), (0, 0, z[0] - z[1])

    def _build_houses(self, side: int, zone: int) -> None:
        if zone == 2 and self.rng.random() < 0.7:
            return
        line = self.street.building_line(zone)
        x = 0.0
        while x < CHUNK - 3:
            bays = int(self.rng.integers(1, 4)) if zone == 0 else 2
            length = min(bays * self.rng.uniform(4.4, 6.0), CHUNK - x)
            if zone == 0 and CHUNK - x - length < 4:
                length = CHUNK - x
            middle = x + length / 2
            if self._free(middle, length / 2):
                self._build_house(side, (x, length), line, zone)
            elif x < _GAP[0] - 4:
                self._build_house(side, (x, _GAP[0] - x), line, zone)
            x = x + length
            if self.crossing and _GAP[0] - 4 < x < _GAP[1]:
                x = _GAP[1]
            if zone:
                x += self.rng.uniform(1.5, 6)
            elif self.rng.random() < 0.06:
                x += 3.0

    def _build_house(self, side: int, span: tuple[float, float], line: float, zone: int) -> None:
        x, length = span
        variant = int(self.rng.choice(self.street.palette))
        floors = surfaces.facade_floors(variant) if zone == 0 else 2
        if zone == 1:
            variant = next(v for v in range(variant, variant + 200)
                           if surfaces.facade_floors(v % surfaces.FACADES) == 2)  # fmt: skip
            variant %= surfaces.FACADES
        height = floors * surfaces.FLOOR + 0.4 + self.rng.uniform(0, 0.8)
        bays = max(1, round(length / 5))
        tint = self.rng.uniform(0.88, 1.08)
        for bay in range(bays):
            shop = zone == 0 and self.rng.random() < 0.3
            kind = 2 if shop else (1 if bay == bays // 2 else 0)
            x0, x1 = x + bay * length / bays, x + (bay + 1) * length / bays
            frame = self._along(side, x0, x1, line, (0, height))
            self.quads.add(frame, surfaces.facade(variant, kind), facing=1, tint=tint)
        depth = 9.0
        wall = self._across(side, x, (line, line + depth), (0, height))
        self.quads.add(wall, surfaces.facade(variant, 3), facing=1, tint=tint)
        rise = self.rng.uniform(1.8, 3.4)
        top = self._across(side, x, (line, line + depth), (height, height + rise))
        self.quads.add(top, surfaces.gable(variant), tint=tint)
        corner, across, _ = self._along(side, x, x + length, line, (0, height))
        back = np.array((0, side * depth / 2, rise))
        roof = surfaces.roof(variant % 12)
        self.quads.add((corner + back, across, -back), roof, facing=1, tint=tint)
        if self.rng.random() < 0.5:
            chimney = self._across(
                side, x + 0.4, (line + 3.6, line + 5.2), (height, height + rise + 1)
            )
            self.quads.add(chimney, surfaces.wall(0), tint=0.9)
        self.roofline[side].append((self.start + x, self.start + x + length, height + rise / 2))

    def _build_border(self, side: int, zone: int) -> None:
        """Put walls, fences and hedges between sidewalk and gardens, parks or gaps."""
        if zone == 0:
            return
        street = self.street
        d = street.walk_end(zone) + 0.15
        kind = self.rng.choice(3, p=(0.3, 0.45, 0.25))
        variant = int(self.rng.integers(0, 8))
        height = self.rng.uniform(0.8, 2.0)
        texture = (surfaces.wall, surfaces.fence, plants.hedge)[kind](variant)
        for x in np.arange(0, CHUNK, 4.0):
            if not self._free(x + 2, 2) or self.rng.random() < 0.1:
                continue
            frame = self._along(side, x, x + 4, d, (0, height))
            self.quads.add(frame, texture, tint=self.rng.uniform(0.95, 1.05))
            if kind == 2:
                frame = self._along(side, x, x + 4, d + 0.8, (0, height * 1.15))
                self.quads.add(frame, texture, tint=0.85)
            elif self.rng.random() < 0.35:
                bush = plants.hedge(2 * int(self.rng.integers(0, 4)) + 1)
                frame = self._along(
                    side, x, x + 4, d + 1.2, (0, height + self.rng.uniform(0.2, 1))
                )
                self.quads.add(frame, bush, tint=0.9)

    def _tree(self, side: int, x: float, d: float, height: float) -> None:
        texture = plants.tree(int(self.rng.integers(0, 40)))
        width = 0.78 * height
        turn = self.rng.uniform(-0.35, 0.35)
        base = self.street.place(self.start + x, side * d)
        for angle, tint in ((turn, 1.0), (turn + 1.45, 0.93)):
            across = width * np.array((math.sin(angle), -math.cos(angle), 0.0))
            corner = base - across / 2 + (0, 0, height)
            self.quads.add((corner, across, (0, 0, -height)), texture, tint=tint)
        self.tree_places.append((float(base[0]), float(base[1]), height))

    def _plant(self, side: int, zone: int) -> None:
        street = self.street
        edge = street.half_width
        if zone != 1 and self.rng.random() < street.tree_share:
            step = self.rng.uniform(8, 14)
            for x in np.arange(self.rng.uniform(1, 6), CHUNK, step):
                if self._free(x, 3):
                    self._tree(side, x, edge + 0.8, self.rng.uniform(6, 10))
        for _ in range((0, 4, 11)[zone]):
            x = self.rng.uniform(0, CHUNK)
            d = edge + street.sidewalk + self.rng.uniform(2.5, 6 if zone == 1 else 16)
            if self._free(x, 3):
                self._tree(side, x, d, self.rng.uniform(5, 12))

    def _park(self, side: int) -> None:
        """Fill the parking lane."""
        street = self.street
        if not street.parking[side]:
            return
        d = street.half_width - 1.05
        turn = 0.0 if side == -street.hand else math.pi
        x = self.rng.uniform(2, 5)
        while x < CHUNK - 3:
            if self._free(x, 7) and self.rng.random() < street.parked_share:
                roll = self.rng.random()
                if roll < 0.9:
                    body = str(
                        self.rng.choice(list(vehicles.CAR_BODIES), p=(0.3, 0.2, 0.2, 0.18, 0.12))
                    )
                    solid = car(body, int(self.rng.integers(len(vehicles.CAR_COLORS))))
                else:
                    solid = two_wheeler(int(self.rng.integers(20)), ridden=False)
                pose = street.pose(self.start + x, side * d, turn + self.rng.normal(0, 0.02))
                self._stand(solid, pose)
            x += self.rng.uniform(5.6, 7.5)

    def _stand(self, solid: Solid, pose: Vector) -> None:
        """Add a body that stays where it is."""
        for source, geometry, target in (
            (solid.surfaces, solid.geometry, self.quads),
            (solid.shadows, solid.shadow_geometry, self.shadows),
        ):
            for index, frame in enumerate(placed(geometry, pose)):
                target.add(
                    (frame[0], frame[1], frame[2]),
                    source.texture[index],
                    facing=source.facing[index],
                    tint=source.tint[index],
                )

    def _post(self, x: float, d: float, height: float, width: float = 0.13) -> None:
        """Add a plain post."""
        base = self.street.place(self.start + x, d)
        frame = (base + (0, width / 2, height), (0, -width, 0), (0, 0, -height))
        self.quads.add(frame, furniture.pole(int(self.rng.integers(4))))

    def _furnish(self, side: int) -> None:
        """Add lamps, signs, bollards, bicycles and standing people."""
        street, rng = self.street, self.rng
        edge = street.half_width + 0.45
        if side == street.lamp_side or rng.random() < 0.4:
            for x in (8.0, 33.0):
                base = street.place(self.start + x, side * edge)
                across = (0, -2.0 * side, 0)  # the arm reaches over the road
                lamp = furniture.lamp(street.seed % 3)
                self.quads.add((base + (0, 0.16 * side, 8.0), across, (0, 0, -8.0)), lamp)
        for _ in range(int(rng.integers(0, 4))):
            x, height = rng.uniform(2, 38), rng.uniform(2.1, 2.7)
            if self._free(x, 0):
                self._post(x, side * edge, height + 0.3, 0.08)
                facing_us = side == -street.hand or rng.random() < 0.2
                kind = (
                    int(rng.integers(0, furniture.SIGNS - 1)) if facing_us else furniture.SIGNS - 1
                )
                self._plate(furniture.sign(kind), (x - 0.06, side * edge), 0.75, 0.75, height)
        if rng.random() < 0.2:
            for x in np.arange(2, 14, 1.8):
                self._post(x, side * edge, 0.9, 0.14)
        if rng.random() < 0.4:
            x, machine = rng.uniform(2, 12), int(rng.integers(1, 3))
            for index in range(int(rng.integers(1, 5))):
                pose = street.pose(
                    self.start + x + 0.8 * index, side * (edge + 0.6), 1.57 * side + 0.3
                )
                self._stand(two_wheeler(machine * int(rng.integers(10)), ridden=False), pose)
        if rng.random() < 0.5:
            pose = street.pose(
                self.start + rng.uniform(2, 14), side * (edge + rng.uniform(0.5, 1.2))
            )
            self._stand(person(int(rng.integers(people.PEOPLE)), rng.normal(0, 0.3)), pose)

    def _plate(
        self, texture: Texture, place: tuple[float, float], width: float, height: float, z: float
    ) -> None:
        """Add a plate across the street, facing the driver, with its middle at height z."""
        base = self.street.place(self.start + place[0], place[1])
        frame = (base + (0, width / 2, z + height / 2), (0, -width, 0), (0, 0, -height))
        self.quads.add(frame, texture)

    def _close_view(self, side: int) -> None:
        """Put trees or houses far back, so that gaps do not show the bare horizon."""
        variant = int(self.rng.integers(0, 6))
        d = 44.0
        for x in (0.0, 20.0):
            height = self.rng.uniform(7, 13)
            frame = self._along(side, x, x + 20, d, (0, height))
            self.quads.add(frame, plants.grove(variant), tint=self.rng.uniform(0.8, 1))
        frame = self._across(side, 30.0, (26.0, 46.0), (0, self.rng.uniform(6, 10)))
        self.quads.add(frame, plants.grove(variant + 1), tint=0.85)

    def _build_crossing(self) -> None:
        """Add traffic lights and the houses along the side street."""
        street = self.street
        edge = street.half_width + 0.5
        lights = self.rng.random() < 0.85
        for side in (-1, 1):
            if lights:
                own = side == -street.hand
                x = 13.4 if own else 29.6
                self._post(x, side * edge, 3.4, 0.14)
                head = furniture.traffic_light(int(self.rng.integers(3)) if own else 3)
                self._plate(head, (x - 0.12, side * edge), 0.42, 1.05, 2.8)
                if own or self.rng.random() < 0.5:
                    self._post(29.8, side * edge, 3.4, 0.14)
                    self._plate(furniture.traffic_light(int(self.rng.integers(3))),
                                (29.7, side * edge), 0.42, 1.05, 2.8)  # fmt: skip
            line = street.building_line(street.zone(self.number, side)) + 9
            for index in range(2):
                near = line + 10 * index
                variant = int(self.rng.choice(street.palette))
                height = surfaces.facade_floors(variant) * surfaces.FLOOR
                for bay in range(2):
                    d = (near + 5 * bay, near + 5 * bay + 5)
                    frame = self._across(side, _GAP[1], d, (0, height))
                    self.quads.add(frame, surfaces.facade(variant, bay % 2), facing=1)
            if self.rng.random() < 0.6:
                pose = street.pose(self.start + 21.5 + 3.2 * (self.rng.random() < 0.5),
                                   side * (street.half_width + 4 + self.rng.uniform(0, 6)),
                                   math.pi / 2 * self.rng.choice((-1, 1)))  # fmt: skip
                self._stand(
                    car('hatchback', int(self.rng.integers(len(vehicles.CAR_COLORS)))), pose
                )
