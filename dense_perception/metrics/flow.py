"""Errors of optical flow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import math
from typing import Any

from dense_perception.arrays import Flow, Mask
from dense_perception.errors import InputError
from dense_perception.metrics.exact import ExactSum
from dense_perception.metrics.segmentation import stored
import numpy as np
from numpy.typing import NDArray

OUTLIER_PX = 3.0  # KITTI: a vector is an outlier if its error is larger than this ...
OUTLIER_SHARE = 0.05  # ... and, in KITTI 2015, larger than this share of the true length

# Parts of the pixels that are judged apart: KITTI's and Sintel's names. Of a speed that bounds two
# parts, Sintel counts 10 and 40 pixels in the middle one.
REGIONS = ('all', 'noc', 'occ', 's0-10', 's10-40', 's40+')


@dataclass
class EndPointError:
    """Mean distance between estimated and true flow vectors, over every valid pixel added."""

    total: ExactSum = ExactSum()  # pixels
    count: int = 0

    def add(self, flow: Flow, truth: Flow, valid: Mask) -> None:
        """
        Count the pixels of one frame pair.

        :param flow: (H, W, 2) float32; x then y, pixels per frame at full resolution.
        :param truth: same shape and unit as `flow`.
        :param valid: (H, W) bool; pixels that are False do not count.
        :raises InputError: the shapes differ.
        """
        _check_sizes(flow, truth, valid)
        distance = np.linalg.norm(flow[valid] - truth[valid], axis=-1)  # (valid pixels,), px
        self.total = self.total.plus(float(distance.sum(dtype=np.float64)))
        self.count += int(valid.sum())

    def __add__(self, other: 'EndPointError') -> 'EndPointError':
        return EndPointError(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        """Mean end-point error in pixels; nan before the first valid pixel."""
        return self.total.mean(self.count)


@dataclass(frozen=True)
class RegionErrors:
    """Errors of flow over the pixels of one region; every figure is nan without pixels."""

    count: int = 0
    distance: ExactSum = ExactSum()  # pixels
    angle: ExactSum = ExactSum()  # degrees
    long: int = 0  # vectors whose error is larger than OUTLIER_PX
    outliers: int = 0  # those that are OUTLIER_SHARE of the true length off, too

    def __add__(self, other: 'RegionErrors') -> 'RegionErrors':
        return RegionErrors(
            self.count + other.count,
            self.distance + other.distance,
            self.angle + other.angle,
            self.long + other.long,
            self.outliers + other.outliers,
        )

    @property
    def end_point_error_px(self) -> float:
        """Mean end-point error."""
        return self.distance.mean(self.count)

    @property
    def angular_error_deg(self) -> float:
        """Mean angle between (u, v, 1) and its truth; Barron et al. (1994), section 3.2."""
        return self.angle.mean(self.count)

    @property
    def long_share(self) -> float:
        """Share of vectors more than 3 pixels off: KITTI 2012's Out."""
        return self.long / self.count if self.count else math.nan

    @property
    def outlier_share(self) -> float:
        """Share of vectors more than 3 pixels and 5 % off: KITTI 2015's Fl."""
        return self.outliers / self.count if self.count else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return counts as numbers and sums as ratios."""
        return {
            'count': self.count,
            'distance': self.distance.to_json(),
            'angle': self.angle.to_json(),
            'long': self.long,
            'outliers': self.outliers,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> 'RegionErrors':
        """
        Return the errors that `to_json` gave.

        :raises InputError: a key is missing or of another form.
        """
        return cls(
            stored(content, 'count', int),
            ExactSum.from_json(stored(content, 'distance', str)),
            ExactSum.from_json(stored(content, 'angle', str)),
            stored(content, 'long', int),
            stored(content, 'outliers', int),
        )


@dataclass
class FlowErrors:
    """
    Errors of flow by region, over every frame pair added; parts of a set add up (`+`).

    The regions are all known pixels; those whose point stays visible (noc) and those whose point
    is hidden in the second image (occ); and those of a true length below 10, up to 40, and above
    40 pixels.
    """

    regions: dict[str, RegionErrors] = field(
        default_factory=lambda: {name: RegionErrors() for name in REGIONS}
    )

    def add(self, flow: Flow, truth: Flow, valid: Mask, occluded: Mask | None = None) -> None:
        """
        Count the pixels of one frame pair.

        :param flow: (H, W, 2) float32; x then y, pixels per frame at full resolution. A vector
            that is not finite is an outlier, and makes the means nan.
        :param truth: same shape and unit as `flow`.
        :param valid: (H, W) bool; pixels that are False do not count.
        :param occluded: (H, W) bool; None where that is not known: the pair then counts in neither
            noc nor occ.
        :raises InputError: the shapes differ.
        """
        _check_sizes(flow, truth, valid)
        if occluded is not None and occluded.shape != valid.shape:
            raise InputError(f'valid is {valid.shape}, occluded {occluded.shape}; must match')
        vectors = _Vectors.of(flow[valid].astype(np.float64), truth[valid].astype(np.float64))
        slow, fast = vectors.speed < 10, vectors.speed > 40
        parts = {
            'all': np.ones_like(slow),
            's0-10': slow,
            's10-40': ~slow & ~fast,
            's40+': fast,
        }
        if occluded is not None:
            parts |= {'noc': ~occluded[valid], 'occ': occluded[valid]}
        for name, part in parts.items():
            self.regions[name] += vectors.errors(part)

    def __add__(self, other: 'FlowErrors') -> 'FlowErrors':
        return FlowErrors({name: self.regions[name] + other.regions[name] for name in REGIONS})

    def __getitem__(self, region: str) -> RegionErrors:
        if region not in self.regions:
            raise InputError(f'there is no region {region!r}; known are {", ".join(REGIONS)}')
        return self.regions[region]

    def to_json(self) -> dict[str, Any]:
        """Return every region's errors as plain numbers and ratios."""
        return {name: errors.to_json() for name, errors in self.regions.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> 'FlowErrors':
        """
        Return the errors that `to_json` gave.

        :raises InputError: a region is missing or of another form.
        """
        return cls({name: RegionErrors.from_json(stored(content, name, dict)) for name in REGIONS})


@dataclass(frozen=True)
class _Vectors:
    """Errors of flow vectors, each (pixels,) float64 or bool."""

    speed: NDArray[np.float64]  # true length, px
    distance: NDArray[np.float64]  # px
    angle: NDArray[np.float64]  # degrees
    long: Mask
    outlier: Mask

    @classmethod
    def of(cls, flow: NDArray[np.float64], truth: NDArray[np.float64]) -> '_Vectors':
        (u, v), (true_u, true_v) = flow.T, truth.T
        with np.errstate(invalid='ignore'):  # infinite flow; its error is infinite or nan
            distance = np.sqrt((u - true_u) ** 2 + (v - true_v) ** 2)
            # The cross product keeps small angles, of which the arc cosine loses half the digits.
            cross = np.sqrt(distance**2 + (u * true_v - v * true_u) ** 2)
            angle = np.degrees(np.arctan2(cross, u * true_u + v * true_v + 1))
        speed = np.sqrt(true_u**2 + true_v**2)
        long = ~(distance <= OUTLIER_PX)  # so that nan is an outlier
        return cls(speed, distance, angle, long, long & ~(distance <= OUTLIER_SHARE * speed))

    def errors(self, part: Mask) -> RegionErrors:
        return RegionErrors(
            int(part.sum()),
            ExactSum().plus(float(self.distance[part].sum())),
            ExactSum().plus(float(self.angle[part].sum())),
            int(self.long[part].sum()),
            int(self.outlier[part].sum()),
        )


def _check_sizes(flow: Flow, truth: Flow, valid: Mask) -> None:
    if flow.shape != truth.shape or valid.shape != truth.shape[:2]:
        raise InputError(
            f'flow is {flow.shape}, truth {truth.shape}, valid {valid.shape}; sizes must match'
        )
