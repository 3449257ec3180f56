"""Hold a limit of age: cheaper settings while results come too late, better ones otherwise."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
import math

from dense_perception.errors import SettingError

WINDOW = 30  # frames that a judgement looks at
FEWEST = 10  # frames since a change that a step down needs
PATIENCE = 60  # frames on a rung before a better one is tried; doubled by each that failed
MOST_PATIENCE = 1920  # a minute at 30 frames a second
UNLIMITED_S = 1e18  # seconds; a limit that results of any age hold
ROOM = 0.8  # share of the limit that a better rung must be expected to hold
_QUANTILE = 0.95
_ALWAYS = 0.6  # share of a frame's age that is the same when the network labels fewer frames


@dataclass(frozen=True)
class Rung:
    """Settings of some cost."""

    scale: float  # of the input's width
    keyframe_interval: int  # every how many frames the network labels one

    @property
    def cost(self) -> float:
        """Expected share of the full age: a network's time goes with its pixels, waiting less."""
        return self.scale**2 * (_ALWAYS + (1 - _ALWAYS) / self.keyframe_interval)

    def __str__(self) -> str:
        frames = {1: 'every frame', 2: 'every second frame', 3: 'every third frame'}
        every = frames.get(self.keyframe_interval, f'one of {self.keyframe_interval} frames')
        return f'{self.scale:.0%} of the width, {every} labelled'


# From the best labels to the cheapest: a smaller input costs less than a longer way along the
# flow, and both less than either at its limit.
LADDER = (
    Rung(1.0, 1),
    Rung(1.0, 2),
    Rung(0.75, 1),
    Rung(0.75, 2),
    Rung(0.5, 1),
    Rung(0.5, 2),
    Rung(0.5, 3),
)
# For where memory is short: carrying labels along flow saves none.
SMALLER = tuple(rung for rung in LADDER if rung.keyframe_interval == 1)


class Deadline:
    """
    Chooses the rung of a ladder that keeps the age of results below a limit.

    Age is what a frame waited and what the networks took. Where the 95th percentile of recent
    ages is above the limit, the best rung that is expected to hold it is taken at once. Where
    there is room, the next better one is tried, but only after a while, and after a longer one if
    the last try failed: so settings never swing from frame to frame. Where memory is short, a
    smaller input is taken at once, and a larger one is tried in the same way.
    """

    def __init__(
        self,
        max_latency_s: float,
        ladder: Sequence[Rung] = LADDER,
        *,
        measured_s: Sequence[float] = (),
    ) -> None:
        """
        Start on the best rung that holds the limit by what was measured before, or on the first.

        :param max_latency_s: seconds; what the age of 95 of 100 results must not exceed.
        :param ladder: from the best to the cheapest.
        :param measured_s: seconds that a frame took on each rung, as warming up tells; their
            ratios say what another rung will bring. Empty: pixels and keyframes do.
        :raises SettingError: no limit above 0, no ladder, or times not of its rungs.
        """
        if not (math.isfinite(max_latency_s) and max_latency_s > 0):
            raise SettingError(f'max_latency_s is {max_latency_s}; it must be above 0')
        if not ladder:
            raise SettingError('the ladder has no rung; it must have one or more')
        if measured_s and (len(measured_s) != len(ladder) or not min(measured_s) > 0):
            raise SettingError(
                f'measured_s is {list(measured_s)}; it must be {len(ladder)} times above 0'
            )
        self.max_latency_s = max_latency_s
        self.ladder = tuple(ladder)
        self._costs = tuple(measured_s) or tuple(rung.cost for rung in ladder)
        self._at = self._best_within(max_latency_s, 0) if measured_s else 0
        self._ages: deque[float] = deque(maxlen=WINDOW)
        self._frames = 0  # since the newest change
        self._patience = PATIENCE
        self._tried = False  # whether the newest change was a step up
        self.short = ''  # what memory was short for, until the largest input is tried again
        self.starved = False  # whether memory is short even for the smallest input
        self.reason = f'{self.rung}: nothing has been measured yet'

    @property
    def rung(self) -> Rung:
        """What the next frame is to be run with."""
        return self.ladder[self._at]

    @property
    def holds(self) -> bool:
        """Whether recent ages keep the limit; where even the cheapest rung fails, they do not."""
        return self._late_s() <= self.max_latency_s

    def measure(self, wait_s: float, inference_s: float) -> bool:
        """
        Take one frame's times.

        :param wait_s: seconds from the frame's stamp until the networks began.
        :param inference_s: seconds that they took.
        :returns: whether another rung was chosen; `reason` says why.
        :raises SettingError: a time is negative or no number.
        """
        age = wait_s + inference_s
        if not (math.isfinite(age) and wait_s >= 0 and inference_s >= 0):
            raise SettingError(
                f'wait is {wait_s} s, inference {inference_s} s; both must be 0 or more'
            )
        self.starved = False
        self._ages.append(age)
        self._frames += 1
        if self._tried and self._frames >= self._patience:
            self._tried, self._patience = False, PATIENCE  # the step up has proved itself
        if self._frames < FEWEST:
            return False
        late = self._late_s()
        if late > self.max_latency_s:
            return self._step_down(late)
        if self._at and self._frames >= self._patience and self._room(late):
            return self._step_up(late)
        return False

    def make_room(self, error: str) -> bool:
        """
        Take a smaller input, as memory was short for this one.

        :param error: what was short, in words.
        :returns: whether there is a smaller one; `reason` says what was chosen and why.
        """
        self.short = error
        rungs = range(self._at + 1, len(self.ladder))
        smaller = [at for at in rungs if self.ladder[at].scale < self.rung.scale]
        if not smaller:
            self.starved = True
            self.reason = f'{self.rung}: the smallest there is, but memory is short: {error}'
            return False
        self._change(smaller[0], tried=False)
        self.reason = f'{self.rung}: memory was short for more: {error}'
        return True

    def _late_s(self) -> float:
        """Return the 95th percentile of recent ages."""
        if not self._ages:
            return 0.0
        ages = sorted(self._ages)
        # Of few, the second largest: one frame that was held up says nothing.
        return ages[max(0, min(len(ages) - 2, math.ceil(_QUANTILE * len(ages)) - 1))]

    def _best_within(self, cost: float, first: int) -> int:
        """Return the first rung from one on that costs no more, or the last."""
        rungs = range(first, len(self.ladder))
        return next((at for at in rungs if self._costs[at] <= cost), len(self.ladder) - 1)

    def _room(self, late: float) -> bool:
        """Whether the next better rung is expected to hold the limit."""
        expected = late * self._costs[self._at - 1] / self._costs[self._at]
        return expected <= ROOM * self.max_latency_s

    def _step_down(self, late: float) -> bool:
        if self._at == len(self.ladder) - 1:
            self.reason = (
                f'{self.rung}: the cheapest there is, though 95 of 100 results are up to '
                f'{1e3 * late:.0f} ms old, more than {1e3 * self.max_latency_s:.0f} ms'
            )
            return False
        affordable = self._costs[self._at] * self.max_latency_s / late
        self._change(self._best_within(affordable, self._at + 1), tried=False)
        self.reason = (
            f'{self.rung}: results were up to {1e3 * late:.0f} ms old, more than '
            f'{1e3 * self.max_latency_s:.0f} ms'
        )
        return True

    def _step_up(self, late: float) -> bool:
        why = (
            f'memory sufficed for the last {self._frames} images; it was short before: '
            f'{self.short}'
            if self.short
            else f'results were at most {1e3 * late:.0f} ms old, which leaves room below '
            f'{1e3 * self.max_latency_s:.0f} ms'
        )
        self._change(self._at - 1, tried=True)
        self.reason = f'{self.rung}: {why}'
        if self.rung.scale == self.ladder[0].scale:
            self.short = ''
        return True

    def _change(self, at: int, *, tried: bool) -> None:
        if self._tried and not tried:  # the step up has failed
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._at, self._frames, self._tried = at, 0, tried
        self._ages.clear()
