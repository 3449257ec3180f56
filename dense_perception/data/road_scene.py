"""
What the camera of the road world meets: its own motion, traffic and people, all endless.

Everything is a function of time, so that any moment can be asked for in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import math

from dense_perception.data import road_people as people
from dense_perception.data import road_vehicles as vehicles
from dense_perception.data.road_bodies import big_vehicle, car, person, Solid, two_wheeler, Vector
from dense_perception.data.road_street import CHUNK, Chunk, Street
from dense_perception.data.road_textures import generator
import numpy as np
from numpy.typing import NDArray

VIEW = 170.0  # metres ahead that are drawn
ACTOR_VIEW = 110.0


@dataclass(frozen=True)
class Stream:
    """Bodies that follow one line at one speed, about `spacing` metres apart, for ever."""

    number: int
    kind: str  # 'traffic', 'tram', 'walker' or 'cyclist'
    d: float
    speed: float  # metres per second along x
    spacing: float


@dataclass(frozen=True)
class EgoMotion:
    """How the camera drives: everything about its own motion, as functions of time."""

    street: Street
    lane: float  # d of the lane's middle
    speed: float  # mean, metres per second
    swing: float  # share of the speed that comes and goes
    period: float  # seconds of that
    height: float  # metres
    pitch: float  # radians, down is positive
    bounce: float  # radians of pitch and roll noise
    phase: float

    def travelled(self, time: float) -> float:
        """Return x at a time in seconds."""
        omega = 2 * math.pi / self.period
        wave = math.sin(omega * time + self.phase) - math.sin(self.phase)
        return self.speed * (time + self.swing / omega * wave)

    def arrival(self, x: float) -> float:
        """Return the time at which the camera reaches x, to the millisecond."""
        early, late = 0.0, (x + 1) / (self.speed * (1 - self.swing))
        while late - early > 1e-3:
            middle = 0.5 * (early + late)
            early, late = (middle, late) if self.travelled(middle) < x else (early, middle)
        return late

    def pose(self, time: float) -> NDArray[np.float64]:
        """Return camera to world, (4, 4), in optical axes: x right, y down, z forward."""
        x = self.travelled(time)
        omega = 2 * math.pi / 11.0
        d = self.lane + 0.22 * math.sin(omega * time + self.phase)
        drift = math.atan(0.22 * omega * math.cos(omega * time + self.phase) / max(self.speed, 1))
        yaw = self.street.heading(x + 2.0) + drift
        shake = [
            math.sin(7.1 * time + self.phase) + 0.6 * math.sin(12.7 * time + 2 * self.phase),
            math.sin(5.3 * time + 3 * self.phase) + 0.5 * math.sin(10.1 * time),
        ]
        pitch, roll = self.pitch + self.bounce * shake[0], 0.8 * self.bounce * shake[1]
        pose = np.eye(4)
        pose[:3, :3] = _rotation(yaw, pitch, roll)
        pose[:3, 3] = self.street.place(x, d, self.height + 0.8 * self.bounce * shake[1])
        return pose


def _rotation(yaw: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """Turn body angles, left, down and clockwise positive, into optical axes in the world."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    turn = np.array(((cy, -sy, 0), (sy, cy, 0), (0, 0, 1)))
    nod = np.array(((cp, 0, sp), (0, 1, 0), (-sp, 0, cp)))
    lean = np.array(((1, 0, 0), (0, cr, -sr), (0, sr, cr)))
    optical = np.array(((0, 0, 1), (-1, 0, 0), (0, -1, 0)))
    return np.asarray(turn @ nod @ lean @ optical, np.float64)


_SPREAD = 500_000  # numbers of one stream start here, so that they are never negative
_CROSSERS = 90  # number of the stream of those who cross the road


class Scene:
    """Everything that can be seen, and where it is at a time."""

    def __init__(self, seed: int, horizon_pitch: float) -> None:
        """
        Lay out a world.

        :param seed: which one.
        :param horizon_pitch: radians the camera looks down on average.
        """
        rng = generator(5, seed)
        self.seed = seed
        self.street = Street(seed)
        street = self.street
        lane = -street.hand * (street.lanes - 0.5) * street.lane_width
        self.ego = EgoMotion(
            street,
            lane,
            speed=rng.uniform(4, 13),
            swing=rng.uniform(0, 0.7),
            period=rng.uniform(14, 30),
            height=rng.uniform(1.2, 1.75),
            pitch=horizon_pitch,
            bounce=rng.uniform(0.0005, 0.003),
            phase=rng.uniform(0, 6.28),
        )
        self.lead_gap = rng.uniform(12, 32) if rng.random() < 0.65 else None
        self.streams = self._streams(rng)
        self._chunks: dict[int, Chunk] = {}
        self._actors: dict[int, Solid] = {}

    def _streams(self, rng: np.random.Generator) -> dict[int, Stream]:
        street, width = self.street, self.street.lane_width
        hand, count = street.hand, street.lanes
        streams = []
        for lane in range(count):
            d = hand * (lane + 0.5) * width
            kind = 'tram' if street.tram and lane == 0 else 'traffic'
            streams.append((kind, d, -rng.uniform(6, 13), rng.uniform(22, 60)))
        if count == 2:
            speed = self.ego.speed * rng.uniform(0.75, 1.15)
            streams.append(('traffic', -hand * 0.5 * width, speed, rng.uniform(18, 50)))
        for side in (-1, 1):
            for direction in (-1, 1):
                d = side * (street.half_width + street.sidewalk * (0.55 + 0.2 * direction))
                speed = direction * rng.uniform(1.0, 1.5)
                streams.append(('walker', d, speed, street.people * rng.uniform(0.7, 1.5)))
            way = 1 if side == -hand else -1
            if rng.random() < 0.75:
                inner = 2.5 if street.parking[side] else 0.6
                d = side * (street.half_width - inner)
                streams.append(('cyclist', d, way * rng.uniform(3, 6), rng.uniform(18, 60)))
        return {n: Stream(n, *entry) for n, entry in enumerate(streams, start=1)}

    def chunk(self, number: int) -> Chunk:
        """Return one stretch of street, built when first asked for."""
        if number not in self._chunks:
            if len(self._chunks) > 24:
                self._chunks.pop(next(iter(self._chunks)))
            self._chunks[number] = Chunk(self.street, number)
        return self._chunks[number]

    def visible_chunks(self, x: float) -> list[Chunk]:
        """Return the stretches in front of x, nearest first."""
        first, last = math.floor((x - 12) / CHUNK), math.floor((x + VIEW) / CHUNK)
        return [self.chunk(number) for number in range(first, last + 1)]

    def visible_actors(self, time: float) -> Iterator[tuple[int, Solid]]:
        """Yield identity and body of everything that moves in view."""
        x = self.ego.travelled(time)
        if self.lead_gap is not None:
            yield _SPREAD, self._actor(_SPREAD)
        for chunk in self.visible_chunks(x):
            if chunk.crossing and chunk.number > 0 and chunk.start < x + ACTOR_VIEW:
                for k in (2 * chunk.number, 2 * chunk.number + 1):
                    yield 2 * _CROSSERS * _SPREAD + k, self._actor(2 * _CROSSERS * _SPREAD + k)
        for stream in self.streams.values():
            front = (x - 10 - stream.speed * time) / stream.spacing
            last = (x + ACTOR_VIEW - stream.speed * time) / stream.spacing
            for k in range(math.floor(front) - 1, math.ceil(last) + 1):
                identity = (2 * stream.number + 1) * _SPREAD + k
                if x - 10 < self.actor_pose(identity, time)[0] < x + ACTOR_VIEW:
                    yield identity, self._actor(identity)

    def actor_pose(self, identity: int, time: float) -> Vector:
        """Return x, y, z, yaw of a moving body at a time in seconds."""
        if identity == _SPREAD:
            wave = 4 * math.sin(0.31 * time + self.ego.phase)
            return self.street.pose(
                self.ego.travelled(time) + (self.lead_gap or 0) + wave, self.ego.lane
            )
        if identity >= 2 * _CROSSERS * _SPREAD:
            return self._crosser_pose(identity - 2 * _CROSSERS * _SPREAD, time)
        stream = self.streams[identity // (2 * _SPREAD)]
        k = identity - (2 * stream.number + 1) * _SPREAD
        jitter = 0.3 * math.sin(12.9898 * k + stream.number)
        x = (k + jitter) * stream.spacing + stream.speed * time
        d = stream.d + (0.35 * math.sin(78.233 * k) if stream.kind == 'walker' else 0.0)
        return self.street.pose(x, d, 0.0 if stream.speed > 0 else math.pi)

    def _crosser_pose(self, k: int, time: float) -> Vector:
        """Return the pose of someone who walks towards the camera's lane but is never hit."""
        street = self.street
        x = (k // 2) * CHUNK + (15.0, 16.4)[k % 2]
        edge = street.half_width + 1.0
        met = street.hand * (0.35 + 0.5 * (math.sin(7.7 * k) + 1) / 2) * edge
        d = met - street.hand * 1.3 * (time - self.ego.arrival(x))
        return street.pose(x, min(max(d, -edge), edge))

    def _actor(self, identity: int) -> Solid:
        if identity not in self._actors:
            if len(self._actors) > 400:
                self._actors.pop(next(iter(self._actors)))
            self._actors[identity] = self._build_actor(identity)
        return self._actors[identity]

    def _build_actor(self, identity: int) -> Solid:
        rng = generator(6, self.seed, identity)
        lead = identity == _SPREAD
        if identity >= 2 * _CROSSERS * _SPREAD:
            return person(2 * int(rng.integers(people.PEOPLE // 2)), 0.0)
        kind = 'traffic' if lead else self.streams[identity // (2 * _SPREAD)].kind
        if kind == 'walker':
            return person(int(rng.integers(people.PEOPLE)), rng.normal(0, 0.25))
        if kind == 'cyclist':
            return two_wheeler(2 * int(rng.integers(12)), ridden=True)
        if kind == 'tram' and rng.random() < 0.4:
            return big_vehicle('train', int(rng.integers(5)))
        roll = rng.random() * (0.9 if lead else 1.0)
        if roll < 0.76:
            body = str(rng.choice(list(vehicles.CAR_BODIES), p=(0.28, 0.22, 0.2, 0.18, 0.12)))
            return car(body, int(rng.integers(len(vehicles.CAR_COLORS))))
        if roll < 0.84:
            return two_wheeler(2 * int(rng.integers(12)) + 1, ridden=True)
        return big_vehicle('truck' if roll < 0.92 else 'bus', int(rng.integers(5)))
