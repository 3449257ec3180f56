"""The ground plane of the road world: asphalt, markings, kerbs, sidewalks, grass, shadows."""

import math
from typing import Any

import cv2
from dense_perception.data import road_surfaces as surfaces
from dense_perception.data.road_light import Light
from dense_perception.data.road_scene import Scene, VIEW
from dense_perception.data.road_street import CHUNK, CROSSING
from dense_perception.data.road_textures import generator
from dense_perception.labels import CITYSCAPES
import numpy as np
from numpy.typing import NDArray

_STEP = 0.02  # metres per column of the profile table
_REACH = 40.0  # metres left and right of the centre that the table covers
_COLUMNS = round(_REACH / _STEP)
_LEVELS = 8  # rows per profile, each blurred twice as wide as the one before
_ALONG = 0.5  # metres per entry of the tables along the street
_BEHIND = 20.0  # metres behind the camera that those tables cover
_AHEAD = 1000.0
ROAD, SIDEWALK, TERRAIN = (CITYSCAPES.index(n) for n in ('road', 'sidewalk', 'terrain'))
# Profiles: what lies across the street, from its centre outward; see _profile.
_PROFILES = ('urban', 'garden', 'park', 'zebra0', 'zebra1', 'zebra2', 'corner', 'junction')


class Ground:
    """Paints the ground of a scene and tells where the sun reaches."""

    def __init__(self, scene: Scene, light: Light) -> None:
        self._scene, self._light = scene, light
        rng = generator(71, scene.seed)
        self._dashes = ((9.0, 3.0), (6.0, 2.0), (12.0, 6.0))[rng.integers(3)]
        self._solid_centre = bool(rng.random() < 0.15)
        self._edge_line = bool(rng.random() < 0.4)
        self._zebra = bool(rng.random() < 0.7)
        grey = rng.uniform(72, 128)
        self._asphalt = np.array(
            (grey, grey * rng.uniform(0.97, 1.02), grey * rng.uniform(0.94, 1.05))
        )
        paving = rng.uniform(128, 176)
        self._paving = paving * np.array((1.0, rng.uniform(0.9, 0.99), rng.uniform(0.8, 0.97)))
        self._grass = np.array(((92, 112, 52), (110, 118, 62), (78, 98, 48), (132, 122, 78))[
            rng.integers(4)]) * rng.uniform(0.85, 1.1)  # fmt: skip
        self._white = rng.uniform(196, 236)
        tables = [self._profile(name) for name in _PROFILES]
        self._table = np.concatenate([_blurred(table) for table, _ in tables])
        self._labels = np.stack([labels for _, labels in tables])  # (profiles, columns)
        self._detail = surfaces.ground_detail(int(rng.integers(8)))
        self._stains = surfaces.ground_stains(int(rng.integers(8)))
        self._along: dict[int, tuple[NDArray[Any], ...]] = {}

    def _profile(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return colour and dash share, (columns, 4), and labels of one profile."""
        street = self._scene.street
        d = (np.arange(_COLUMNS) + 0.5) * _STEP
        table = np.zeros((_COLUMNS, 4), np.float32)
        labels = np.full(_COLUMNS, ROAD, np.uint8)
        table[:, :3] = self._asphalt
        edge = street.half_width
        wear = 0.05 * np.cos(2 * math.pi * (d % street.lane_width) / street.lane_width * 2)
        table[:, :3] *= (1 + wear * (d < street.lanes * street.lane_width))[:, None]
        if name == 'junction':
            return table, labels
        beside = d > edge
        labels[beside] = SIDEWALK
        table[beside, :3] = self._paving
        kind = name[-1] if name.startswith('zebra') else name
        zone = {'garden': 1, '1': 1, 'park': 2, '2': 2}.get(kind, 0)
        if zone:
            walk = street.walk_end(zone)
            self._grow(table, labels, (d > edge + 0.15) & (d < walk - street.sidewalk))
            self._grow(table, labels, d > walk)
        table[(d > edge) & (d < edge + 0.16), :3] = 0.5 * self._paving + 78
        table[(d > edge - 0.06) & (d < edge), :3] *= 0.5
        table[(d > edge - 0.35) & (d < edge - 0.06), :3] *= 0.9
        if kind == 'corner':
            return table, labels
        if name.startswith('zebra') and self._zebra:
            table[(d % 1.0 < 0.5) & (d < edge - 0.3), :3] = self._white
            return table, labels
        self._mark(table, d)
        return table, labels

    def _grow(self, table: NDArray[np.float32], labels: NDArray[np.uint8], where: Any) -> None:
        table[where, :3] = self._grass
        labels[where] = TERRAIN

    def _mark(self, table: NDArray[np.float32], d: NDArray[Any]) -> None:
        """Add lane markings; dashed ones go to the fourth channel."""
        street = self._scene.street
        if self._solid_centre:
            table[(d > 0.06) & (d < 0.18), :3] = self._white
        else:
            table[d < 0.07, 3] = 1
        if street.lanes == 2:
            table[np.abs(d - street.lane_width) < 0.07, 3] = 1
        inner = street.lanes * street.lane_width
        if self._edge_line and street.half_width - inner > 0.5:
            table[np.abs(d - inner) < 0.06, :3] = self._white
        if street.tram:
            for rail in (0.78, 2.22):
                place = street.lane_width / 2 + rail - 1.5
                table[np.abs(d - place) < 0.05, :3] = (62, 60, 58)

    def _tables(self, x: float) -> tuple[float, NDArray[Any], NDArray[Any]]:
        """Return start, profile per side and roof height per side, along the street from x on."""
        number = math.floor((x - _BEHIND) / CHUNK)
        if number not in self._along:
            if len(self._along) > 8:
                self._along.clear()
            self._along[number] = self._build_tables(number)
        profiles, heights = self._along[number]
        return number * CHUNK, profiles, heights

    def _build_tables(self, first: int) -> tuple[NDArray[Any], NDArray[Any]]:
        street = self._scene.street
        count = math.ceil(_AHEAD / CHUNK)
        each = round(CHUNK / _ALONG)
        profiles = np.zeros((2, count * each), np.intp)
        heights = np.zeros((2, count * each), np.float32)
        for number in range(first, first + count):
            start = (number - first) * each
            for row, side in enumerate((-1, 1)):
                zone = street.zone(number, side)
                profiles[row, start : start + each] = zone
                if street.is_crossing(number):
                    for begin, end, name in CROSSING:
                        name = f'zebra{zone}' if name == 'zebra' else name
                        where = np.s_[start + round(begin / _ALONG) : start + round(end / _ALONG)]
                        profiles[row, where] = _PROFILES.index(name)
                if (number - first) * CHUNK > VIEW + 3 * CHUNK or not self._light.shadows:
                    continue
                for begin, end, height in self._scene.chunk(number).roofline[side]:
                    a, b = ((v - first * CHUNK) / _ALONG for v in (begin, end))
                    heights[row, round(a) : round(b)] = height
        return profiles, heights

    def paint(self, canvas: Any, rays: Any, position: Any, travelled: float) -> None:
        """Fill colour, inverse depth, labels and bodies of all pixels that look at the ground."""
        a, b, c = (-rays[2] / position[2]).astype(np.float32)
        ends = a * np.array((0, canvas.width - 1)) + c
        top = max(0, math.floor(float(((1e-3 - ends) / b).min())))
        if top >= canvas.height:
            return
        columns, rows = canvas.columns[None], canvas.rows[top:, None]
        inverse = a * columns + (b * rows + c)
        looks_down = inverse > 1e-3
        inverse = np.where(looks_down, inverse, 0).astype(np.float32)
        depth = 1 / np.maximum(inverse, np.float32(1e-3))
        x_ray, y_ray = ((p * columns + (q * rows + r)) for p, q, r in rays[:2].astype(np.float32))
        x = x_ray * depth + np.float32(position[0])
        y = y_ray * depth + np.float32(position[1])
        color, labels = self._seen(canvas.focal, position[2], depth, (x, y), travelled)
        np.copyto(canvas.inverse[top:], inverse)
        np.copyto(canvas.labels[top:], labels, where=looks_down)
        np.copyto(canvas.bodies[top:], 0, where=looks_down)
        np.copyto(canvas.color[top:], color, where=looks_down[..., None])

    def _seen(
        self, focal: float, height: float, depth: NDArray[np.float32], xy: Any, travelled: float
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return colour and label of ground points."""
        x, y = xy
        start, profiles, heights = self._tables(travelled)
        offset = y - self._scene.street.center(x)
        distance = np.minimum(np.abs(offset), np.float32(_REACH - 2 * _STEP))
        entry = ((x - np.float32(start)) * np.float32(1 / _ALONG)).astype(np.intp)
        np.clip(entry, 0, profiles.shape[1] - 1, out=entry)
        side = offset > 0
        profile = np.where(side, profiles[1][entry], profiles[0][entry])
        column = distance * np.float32(1 / _STEP)
        labels = self._labels.ravel()[profile * _COLUMNS + column.astype(np.intp)]
        footprint = depth * np.float32(1 / (focal * _STEP))
        level = np.clip(np.log2(np.maximum(footprint, 1)), 0, _LEVELS - 1.001)
        row = (profile * _LEVELS).astype(np.float32) + level
        color = cv2.remap(self._table, column - np.float32(0.5), row, cv2.INTER_LINEAR)
        self._dash(color, x, depth * depth / np.float32(focal * height))
        color = color[..., :3] * self._texture(x, offset, depth, labels, focal)[..., None]
        color *= self._light.ground()
        if self._light.shadows:
            hidden = self._hidden(x - np.float32(start), offset, 0.0, heights)
            color *= (1 - np.float32(self._light.shadows) * hidden)[..., None]
        return color, labels

    def _dash(self, color: Any, x: NDArray[np.float32], footprint: NDArray[np.float32]) -> None:
        """Blend dashed lines into the colour, box filtered along the street."""
        rows, columns = np.nonzero(color[..., 3] > 0.01)
        period, length = self._dashes
        place, wide = x[rows, columns], np.clip(footprint[rows, columns], 0.02, 200)

        def painted(until: NDArray[Any]) -> NDArray[Any]:
            whole = np.floor(until / period)
            return np.asarray(whole * length + np.minimum(until - whole * period, length))

        share = (painted(place + wide / 2) - painted(place - wide / 2)) / wide
        share *= color[rows, columns, 3] * 0.9
        color[rows, columns, :3] += (self._white - color[rows, columns, :3]) * share[:, None]

    def _texture(self, x: Any, offset: Any, depth: Any, labels: Any, focal: float) -> Any:
        """Return the relative brightness of the ground's grain, which fades with distance."""
        scale = np.float32(surfaces.GROUND_SCALE)
        tile = surfaces.GROUND_TILE
        base = np.float32(math.floor(float(x.min()) * scale / tile) * tile)
        u, v = x * scale - base, offset * scale + np.float32(8 * tile)
        np.clip(u, 0, 32000, out=u)
        np.clip(v, 0, 32000, out=v)
        grain = cv2.remap(self._detail, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        near = np.clip(1.3 - depth * np.float32(1 / 16), 0, 1)
        grain = np.where(labels == ROAD, grain[..., 0],
                         np.where(labels == SIDEWALK, grain[..., 1], grain[..., 2]))  # fmt: skip
        stains = cv2.remap(self._stains, u * np.float32(0.2), v * np.float32(0.2),
                           cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)  # fmt: skip
        far = np.clip(1.2 - depth * np.float32(1 / 60), 0, 1)
        return 1 + grain * near + stains * far * np.where(labels == ROAD, 1, np.float32(0.5))

    def _hidden(self, x: Any, offset: Any, z: Any, heights: NDArray[np.float32]) -> Any:
        """Return how far points lie in the shadow of houses, 0 to 1; x from the tables' start."""
        sun = self._light.to_sun
        side = 1 if sun[1] > 0 else -1
        street = self._scene.street
        line = street.half_width + street.sidewalk + 1.0
        across = np.maximum(line - side * offset, 0)
        slope = abs(float(sun[1])) + 1e-3
        rise = across * np.float32(sun[2] / slope)
        entry = ((x + across * np.float32(sun[0] / slope)) * (1 / _ALONG)).astype(np.intp)
        np.clip(entry, 0, heights.shape[1] - 1, out=entry)
        roof = heights[(side + 1) // 2][entry]
        return np.clip((roof - rise - z) * np.float32(1.5), 0, 1)

    def sunlit(self, world: NDArray[np.float64], travelled: float) -> NDArray[np.float32]:
        """Return how much light the houses leave on the middles of quads, (N,), near x."""
        if not self._light.shadows:
            return np.ones(len(world), np.float32)
        middle = world[:, 0] + 0.5 * (world[:, 1] + world[:, 2])
        start, _, heights = self._tables(travelled)
        offset = middle[:, 1] - self._scene.street.center(middle[:, 0])
        hidden = self._hidden(middle[:, 0] - start, offset, middle[:, 2], heights)
        street = self._scene.street
        low = np.abs(offset) < street.half_width + street.sidewalk
        return (1 - 0.75 * self._light.shadows * hidden * low).astype(np.float32)


def _blurred(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a profile at every level, (levels, columns, 4)."""
    full = np.concatenate((table[::-1], table))[None]  # both sides of the centre line
    levels = [cv2.blur(full, (2**k, 1))[0, len(table) :] for k in range(_LEVELS)]
    return np.stack(levels).astype(np.float32)
