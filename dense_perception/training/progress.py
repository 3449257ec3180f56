"""What a running loop shows."""

from collections.abc import Mapping
from pathlib import Path
import time
from typing import Any

from dense_perception.training.loader import Loader
from dense_perception.training.record import Record
from tqdm import tqdm

SLOW_DATA = 0.2  # share of the time spent waiting for samples that is worth a word


class Progress:
    """Bar with the time left, log and curves of a run."""

    def __init__(
        self, place: tuple[Path, int, int] | None, seconds: float, loader: Loader[Any]
    ) -> None:
        """
        Take what the run has been so far.

        :param place: folder, step and last step of the run; None for one that only counts time.
        :param seconds: that earlier parts of the run took.
        :param loader: is asked how long batches were waited for.
        """
        self._place, self._loader = place, loader
        self._before, self._started = seconds, time.monotonic()
        self._since, self._since_step, self._waited_s = (
            self._started,
            place[1] if place else 0,
            0.0,
        )
        self._record: Record | None = None

    def __enter__(self) -> 'Progress':
        _, step, steps = self._place or (None, 0, 0)
        self._bar = tqdm(
            total=steps, initial=step, unit='step', mininterval=30, disable=self._place is None
        )
        if self._place is not None:
            self._record = Record(self._place[0], step)
            if not self._record.curves:
                self._bar.write('tensorboard is not installed: scores are in log.csv alone')
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._record is not None:
            self._record.close()

    @property
    def seconds(self) -> float:
        """How long the run has taken, earlier parts included."""
        return self._before + time.monotonic() - self._started

    @property
    def waited(self) -> float:
        """Share of the time since the last evaluation in which a step waited for its batch."""
        elapsed = time.monotonic() - self._since
        return (self._loader.waited_s - self._waited_s) / max(elapsed, 1e-9)

    def stepped(self, step: int, loss: float) -> None:
        """Move the bar on."""
        self._bar.update()
        self._bar.set_postfix(loss=f'{loss:.4f}', wait=f'{self.waited:.0%}', refresh=False)

    def curve(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each name."""
        if self._record is not None:
            self._record.curve(step, {**values, 'data_wait': self.waited})

    def speed(self, step: int) -> dict[str, float]:
        """Return the figures of the time since the last evaluation, for the log."""
        elapsed = max(time.monotonic() - self._since, 1e-9)
        return {
            'seconds': round(self.seconds),
            'steps_per_s': round((step - self._since_step) / elapsed, 3),
            'data_wait': round(self.waited, 3),
        }

    def scored(self, step: int, values: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Log an evaluation, and begin to measure anew."""
        assert self._record is not None
        self._record.row({'step': step, **values, **scores})
        self._record.curve(step, scores)
        self._bar.write(f'step {step}: loss {values["loss"]:.4f}, {dict(scores)}')
        if values['data_wait'] > SLOW_DATA:
            share = values['data_wait']
            self._bar.write(f'{share:.0%} of the time went by waiting for samples; raise loaders')
        self._since, self._since_step = time.monotonic(), step
        self._waited_s = self._loader.waited_s
