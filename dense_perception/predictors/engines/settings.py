"""What a predictor's network runs in, as its user asks for it."""

from dataclasses import dataclass
from pathlib import Path

from dense_perception.predictors.engines.cache import Cache
from dense_perception.predictors.engines.choice import AUTO, ENGINES
from dense_perception.settings import setting, Settings

TORCH = 'torch'  # as it is, in the placement's precision


@dataclass(frozen=True)
class EngineSettings(Settings):
    """What a predictor's network runs in."""

    engine: str = setting(
        TORCH,
        'torch; auto: the fastest engine that agrees with torch, measured once on this machine '
        'for each size of image; or the name of one',
        choices=(TORCH, AUTO, *ENGINES),
    )
    engine_agreement: float = setting(
        0.97,
        "least share of an engine's labels (flow vectors) that are those of torch in float32",
        low=0.0,
        high=1.0,
    )
    engine_timing_s: float = setting(
        2.0, 'seconds for which auto times each engine', low=0.01, high=60.0
    )
    engine_cache: str = setting(
        '~/.cache/dense_perception', 'folder of built engines; empty: built at every start'
    )
    calibration_frames: str = setting(
        '',
        'folder, video or rosbag2 recording of the camera that scales int8; empty: no int8',
    )
    calibration_count: int = setting(64, 'of these frames to use, evenly spaced', low=2, high=1000)

    def cache(self) -> Cache | None:
        """Return where engines are kept."""
        return Cache(Path(self.engine_cache).expanduser()) if self.engine_cache else None
