"""Light, sky and haze of the road world, and the camera that films it."""

import math

import cv2
from dense_perception.arrays import Image
from dense_perception.data import road_surfaces as surfaces
from dense_perception.data.road_bodies import Quads, Solid
from dense_perception.data.road_textures import generator
import numpy as np
from numpy.typing import NDArray

# Weather: share of drives, light of the sky, light of the sun, sky colours high and low, clouds.
_WEATHER = (
    (0.40, (0.66, 0.70, 0.76), (0.62, 0.56, 0.46), (112, 150, 200), (206, 218, 228), 0.55),
    (0.42, (0.92, 0.93, 0.95), (0.16, 0.15, 0.14), (236, 240, 244), (250, 250, 250), 0.5),
    (0.18, (0.50, 0.50, 0.58), (0.42, 0.28, 0.16), (104, 118, 156), (232, 196, 160), 0.6),
)


class Light:
    """Sun, sky and haze, drawn from the seed."""

    def __init__(self, seed: int) -> None:
        rng = generator(61, seed)
        kind = int(rng.choice(3, p=[entry[0] for entry in _WEATHER]))
        _, sky, sun, high, low, cover = _WEATHER[kind]
        self.sky = np.array(sky) * rng.uniform(0.9, 1.1)
        self.sun = np.array(sun) * rng.uniform(0.75, 1.25)
        self.shadows = (0.6, 0.0, 0.45)[kind]  # how dark the shadows of the sun are
        azimuth = rng.uniform(0, 2 * math.pi)
        elevation = math.radians(rng.uniform(28, 62) if kind < 2 else rng.uniform(12, 24))
        self.to_sun = np.array(
            (
                math.cos(elevation) * math.cos(azimuth),
                math.cos(elevation) * math.sin(azimuth),
                math.sin(elevation),
            )
        )
        self._high = np.array(high, np.float32) + rng.normal(0, 3, 3).astype(np.float32)
        self._low = np.array(low, np.float32) + rng.normal(0, 3, 3).astype(np.float32)
        if kind == 1:  # an overcast sky is brighter than most cameras can show
            self._high *= np.float32(rng.uniform(0.9, 1.4))
            self._low *= np.float32(rng.uniform(1.0, 1.45))
        self._mist = np.minimum(self._low, 222).astype(np.float32)
        self._cover = cover * rng.uniform(0.3, 1.2)
        self._clouds = surfaces.clouds(int(rng.integers(8)))
        self._haze = np.float32(1 / np.exp(rng.uniform(math.log(180), math.log(2000))))

    def ground(self) -> NDArray[np.float32]:
        """Return the light on level ground in the sun, per colour."""
        return (self.sky + self.sun * self.to_sun[2]).astype(np.float32)

    def on_quads(
        self,
        world: NDArray[np.float64],
        facing: NDArray[np.int64],
        tint: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Return the light on quads in the sun, (N, 3)."""
        normal = np.cross(world[:, 2], world[:, 1])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
        lit = np.clip(normal @ self.to_sun * np.where(facing < 0, -1, 1), 0, 1)
        lit = np.where(facing == 0, 0.55, 0.15 + 0.85 * lit)
        up = 0.9 + 0.12 * np.abs(normal[:, 2])
        light = self.sky * up[:, None] + self.sun * lit[:, None]
        return (light * tint[:, None]).astype(np.float32)

    def paint_sky(self, color: NDArray[np.float32], rays: NDArray[np.float64]) -> None:
        """Fill the picture with sky; `rays` turns pixels into world directions."""
        height, width = color.shape[:2]
        columns = np.arange(0, width + 8, 8, dtype=np.float32)[None]
        rows = np.arange(0, height + 8, 8, dtype=np.float32)[:, None]
        x, y, z = (a * columns + (b * rows + c) for a, b, c in rays.astype(np.float32))
        elevation = z / np.hypot(x, y)
        # Clouds lie on a dome; the left-right seam of the tile is behind the camera.
        v = 127 - 150 * np.clip(elevation, 0, 0.84)
        u = 256 - np.arctan2(y, x) * np.float32(512 / (2 * math.pi)) * 3
        size = (8 * columns.shape[1], 8 * rows.shape[0])
        u, v, elevation = (
            _refined(field, size)[:height, :width]
            for field in (u, v, elevation.astype(np.float32))
        )
        cover = cv2.remap(self._clouds, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        rise = np.clip(elevation * 1.9, 0, 1)[..., None] ** 0.7
        cloud = np.maximum(self._low, np.float32(236))
        np.copyto(color, self._low + rise * (self._high - self._low))
        share = np.clip((cover - 0.45) * 2.2, 0, 1)[..., None] * min(self._cover, 0.9)
        color += (cloud - 30 * share - color) * share

    def add_haze(self, color: NDArray[np.float32], inverse: NDArray[np.float32]) -> None:
        """Let distant things fade into the colour of the low sky."""
        depth = 1 / np.maximum(inverse, 1e-3)
        share = 1 - np.exp(-self._haze * depth)
        share[inverse == 0] = 0
        color += (self._mist - color) * share[..., None]

    def crown_shadows(self, trees: list[tuple[float, float, float]]) -> Solid:
        """Return the shadows of tree crowns on the ground; x, y and height of each tree."""
        quads = Quads()
        for x, y, height in trees:
            reach = self.to_sun[:2] * (-0.6 * height * (self.shadows > 0) / self.to_sun[2])
            size = 0.6 * height
            corner = (x + reach[0] + size / 2, y + reach[1] + size / 2, 0.0)
            frame = (corner, (0, -size, 0), (-size, 0, 0))
            quads.add(frame, surfaces.tree_shadow(), tint=self.shadows or 0.18)
        return Solid(Quads(), quads)


def _refined(field: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Interpolate a field known at every eighth pixel, (rows, columns), to every pixel."""
    scale = np.array(((0.125, 0, 0), (0, 0.125, 0)))
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    fine = cv2.warpAffine(field, scale, size, flags=how, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(fine, np.float32)


class Sensor:
    """A camera's exposure, colour cast, vignetting, blur and noise, drawn from the seed."""

    def __init__(self, seed: int, height: int, width: int) -> None:
        rng = generator(62, seed)
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        vignette = 1 - rng.uniform(0.02, 0.22) * (x * x + y * y) / 2
        gain = np.exp(rng.normal(0, 0.022, 3))
        self._target = rng.uniform(88, 134)  # mean brightness that the exposure aims at
        self._gain = (vignette[..., None] * gain).astype(np.float32)
        self._blur = float(rng.uniform(0.35, 0.8)) * width / 480
        self._contrast = rng.uniform(0.9, 1.3)
        level = rng.uniform(0.6, 3.2)
        self._noise = level * generator(63, seed).standard_normal((height + 64, width + 64, 1))
        self._noise = self._noise.astype(np.float32)
        tint = rng.standard_normal((height + 64, width + 64, 3), np.float32)
        self._noise = self._noise + 0.5 * np.float32(level) * tint

    def expose(self, color: NDArray[np.float32], rng: np.random.Generator) -> Image:
        """Turn light into an image; `rng` decides this frame's noise."""
        meter = float(np.minimum(color[::8, ::8], 255).mean()) + 4.0
        picture = color * (self._gain * np.float32((self._target / meter) ** 0.75))
        if self._blur > 0.3:
            picture = cv2.GaussianBlur(picture, (0, 0), self._blur)
        contrast = np.float32(self._contrast)
        # A film-like curve: darks drop a little, lights roll off.
        picture *= contrast * (1 - (0.1 / 255) * picture)
        picture -= np.float32(26) * (contrast - 1)
        height, width = color.shape[:2]
        y, x = (int(v) for v in rng.integers(0, 64, 2))
        picture += self._noise[y : y + height, x : x + width]
        return np.clip(picture, 0, 255).astype(np.uint8)
