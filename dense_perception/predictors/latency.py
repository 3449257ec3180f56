"""Hold a limit of age: cheaper settings while results come too late, better ones otherwise."""

from collections import deque
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Rung:
    """Settings of some cost."""

    scale: float  # of the input's width
    keyframe_interval: int  # every how many frames the network labels one

    @property
    def cost(self) -> float:
        """Expected share of the full time, where none was measured: it goes with the pixels."""
        return self.scale**2  # of keyframes, which are as late however few they are

    def __str__(self) -> str:
        frames = {1: 'every frame', 2: 'every second frame', 3: 'every third frame'}
        every = frames.get(self.keyframe_interval, f'one of {self.keyframe_interval} frames')
        return f'{self.scale:.0%} of the width, {every} labelled'


# From the best labels to the cheapest: a smaller input costs less than a longer way along the
# flow, and both less than either at its limit. Keyframes alone hold no limit, see `rung_times`;
# they are for where no rung does.
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


def rung_times(
    ladder: Sequence[Rung], labelling_s: Mapping[float, float], carrying_s: float
) -> list[float]:
    """
    Return the seconds that labels of the slowest frames take on each rung.

    :param labelling_s: seconds in which the network labels a frame, by the scale of its input.
    :param carrying_s: seconds of flow to a frame and of carrying labels along it, which are the
        same on every rung.
    """
    # A keyframe takes as long as if every frame were labelled, and with one in three they are
    # more than the 5 of 100 results that may be too old. The other frames wait for flow, which
    # may take longer still. So keyframes never lower what a limit is about.
    return [
        labelling_s[rung.scale]
        if rung.keyframe_interval == 1
        else max(labelling_s[rung.scale], carrying_s)
        for rung in ladder
    ]


class Deadline:
    """
    Chooses the rung of a ladder that keeps the age of results below a limit.

    Age is what labelling took, which goes with the rung, and the rest, which does not: waiting,
    and flow that is wanted besides. Where the 95th percentile of recent ages is above the limit,
    the best rung that is expected to hold it is taken at once; where none is, the cheapest, and
    of several the one that labels the fewest frames: no result at its limit is younger for that,
    but most are. Where there is room, the next better one is tried, but only after a while, and
    after a longer one if the last try failed: so settings never swing from frame to frame. Rungs
    that cost no less than a better one are passed over. Where memory is short, a smaller input is
    taken at once, and a larger one is tried in the same way.
    """

    def __init__(
        self,
        max_latency_s: float,
        ladder: Sequence[Rung] = LADDER,
        *,
        measured_s: Sequence[float] = (),
    ) -> None:
        """
        Start on the first rung, or on the best that holds the limit by what was measured before.

        :param max_latency_s: seconds; what the age of 95 of 100 results must not exceed.
        :param ladder: from the best to the cheapest.
        :param measured_s: seconds that labels take on each rung, as warming up tells; their
            ratios say what another rung will bring. Empty: the pixels do.
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
        self.measured_s = tuple(measured_s)
        self._costs = self.measured_s or tuple(rung.cost for rung in ladder)
        self._at = 0
        self._ages: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # what no rung changes, rest
        self._frames = 0  # since the newest change
        self._patience = PATIENCE
        self._tried = False  # whether the newest change was a step up
        self.short = ''  # what memory was short for, until the largest input is tried again
        self.starved = False  # whether memory is short even for the smallest input
        self.reason = f'{self.rung}: nothing has been measured yet'
        if measured_s:
            within = (at for at, cost in enumerate(self._costs) if cost <= max_latency_s)
            self._at = next(within, self._cheapest())
            took = 1e3 * self._costs[self._at]
            self.reason = f'{self.rung}: labels took {took:.0f} ms with it in warming up'

    @property
    def rung(self) -> Rung:
        """What the next frame is to be run with."""
        return self.ladder[self._at]

    @property
    def holds(self) -> bool:
        """Whether recent ages keep the limit; where even the cheapest rung fails, they do not."""
        return self._late_s() <= self.max_latency_s

    def measure(self, rest_s: float, labelling_s: float) -> bool:
        """
        Take one frame's times, which together are its age.

        :param rest_s: seconds that are the same on every rung: until labelling began, and after.
        :param labelling_s: seconds until its labels were there.
        :returns: whether another rung was chosen; `reason` says why.
        :raises SettingError: a time is negative or no number.
        """
        if not (math.isfinite(rest_s + labelling_s) and rest_s >= 0 and labelling_s >= 0):
            raise SettingError(
                f'labelling took {labelling_s} s, the rest {rest_s} s; both must be 0 or more'
            )
        self.starved = False
        self._ages.append((rest_s, labelling_s))
        self._frames += 1
        if self._tried and self._frames >= self._patience:
            self._tried, self._patience = False, PATIENCE  # the step up has proved itself
        if self._frames < FEWEST:
            return False
        late = self._late_s()
        if late > self.max_latency_s:
            return self._step_down(late)
        if self._at and self._frames >= self._patience and self._room(self._better()):
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

    def _late_s(self, change: float = 1.0) -> float:
        """
        Return the 95th percentile of recent ages.

        :param change: what labelling is to take, as a share of what it took.
        """
        if not self._ages:
            return 0.0
        ages = sorted(rest + change * labelling for rest, labelling in self._ages)
        # Of few, the second largest: one frame that was held up says nothing.
        return ages[max(0, min(len(ages) - 2, math.ceil(_QUANTILE * len(ages)) - 1))]

    def _expected_s(self, at: int) -> float:
        """Return what the 95th percentile would be on another rung."""
        return self._late_s(self._costs[at] / self._costs[self._at])

    def _cheapest(self) -> int:
        """Return the cheapest rung from the present one on; of several, the last."""
        rungs = range(self._at, len(self.ladder))
        return min(rungs, key=lambda at: (self._costs[at], -at))

    def _better(self) -> int:
        """Return the next better rung that costs less than all that are better still."""
        rungs = range(self._at - 1, 0, -1)
        return next((at for at in rungs if self._costs[at] < min(self._costs[:at])), 0)

    def _room(self, at: int) -> bool:
        """Whether a better rung is expected to hold the limit."""
        dearer = self._costs[at] > self._costs[self._at]
        return self._expected_s(at) <= (ROOM if dearer else 1.0) * self.max_latency_s

    def _step_down(self, late: float) -> bool:
        rungs = range(self._at + 1, len(self.ladder))
        within = (at for at in rungs if self._expected_s(at) <= self.max_latency_s)
        at = next(within, self._cheapest())
        if at == self._at:
            self.reason = (
                f'{self.rung}: the cheapest there is, though 95 of 100 results are up to '
                f'{1e3 * late:.0f} ms old, more than {1e3 * self.max_latency_s:.0f} ms'
            )
            return False
        self._change(at, tried=False)
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
        self._change(self._better(), tried=True)
        self.reason = f'{self.rung}: {why}'
        if self.rung.scale == self.ladder[0].scale:
            self.short = ''
        return True

    def _change(self, at: int, *, tried: bool) -> None:
        if self._tried and not tried:  # the step up has failed
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._at, self._frames, self._tried = at, 0, tried
        self._ages.clear()
