"""The measured times of a run, and what they tell about the time that work to come will need."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import inf, sqrt
from typing import Any

from hf_wsd.errors import RecordError

COLD = 5  # first steps of a process: compilation, empty caches, filling loaders; they count as start-up
ENOUGH = 20  # steps of a process before any is counted: what is a stall shows beside the others
WINDOW = 200  # steps that tell the present pace: their mean is known to 2 % where single steps vary by 30 %
STALL = 5  # a step that takes longer than so many usual ones is a stall
Z = 3.0  # standard deviations of the margin: 1 case in 1000 is beyond, were the sum of all times normal
UNMEASURED = 30  # steps that an evaluation, a save or a start is taken for until one was measured: a guess
WEIGHTS = {"steps": WINDOW, "evaluations": 10, "saves": 10, "starts": 10}  # of the times of earlier jobs, at most


@dataclass
class Times:
    """Seconds of one kind of event: how many there were, their mean, spread and the longest.

    >>> times = Times()
    >>> for seconds in (1.0, 3.0):
    ...     times.add(seconds)
    >>> times.count, times.mean, times.longest
    (2, 2.0, 3.0)
    """

    count: float = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean (Welford)
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more event."""
        self.count += 1
        distance = seconds - self.mean
        self.mean += distance / self.count
        self.squares += distance * (seconds - self.mean)
        self.longest = max(self.longest, seconds)

    @property
    def variance(self) -> float:
        """Of one event; as if one more had been seen that was half the mean away: a single event tells no spread."""
        return (self.squares + self.mean**2 / 4) / self.count if self.count else 0.0

    def lighter(self, weight: int) -> Times:
        """The same times as if only so many had been seen: what comes now then counts more."""
        part = min(1.0, weight / self.count) if self.count else 1.0
        return Times(self.count * part, self.mean, self.squares * part, self.longest)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What lies between now and a decayed model on disk: counts of steps, evaluations, saves and starts of a process.

    >>> Work(steps=500, evaluations=2, saves=2).starts
    0
    """

    steps: int
    evaluations: int = 0
    saves: int = 0
    starts: int = 0


@dataclass
class Pace:
    """The measured times of a run. Every second that passes must be told, to one of the four kinds.

    So a clock is best read after each event: what passed since the last reading was that event. A start lasts until
    the fifth step of its process has ended. A job that goes on with a stored pace (`from_dict`) gives it the weight of
    200 steps and 10 events, since its machine may be another; stalls are remembered in full.

    >>> pace = Pace()
    >>> pace.start(30)
    >>> for _ in range(105):
    ...     pace.step(2.0)
    >>> pace.starts.mean, pace.steps.count, pace.expected(Work(steps=50)), round(pace.needed(Work(steps=50)))
    (40.0, 100, 100.0, 103)
    """

    steps: Times = field(default_factory=Times)  # those that are no stalls
    stalls: Times = field(default_factory=Times)  # what stalls took beyond a usual step
    evaluations: Times = field(default_factory=Times)
    saves: Times = field(default_factory=Times)
    starts: Times = field(default_factory=Times)
    seen: int = 0  # counted steps, stalls among them: with these, how often there is one
    usual: float = 0.0  # seconds of a step that is no stall: the mean of all or of the last 200, the larger
    spent: float = 0.0  # all seconds told, over all jobs

    def __post_init__(self) -> None:
        self._cold, self._start = COLD, 0.0
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def step(self, seconds: float) -> None:
        """Count a step: all the time since the last event ended, the wait for its data included."""
        self.spent += seconds
        if self._cold:
            self._cold, self._start = self._cold - 1, self._start + seconds
            if not self._cold:
                self.starts.add(self._start)
            return
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > WINDOW:
            del self._sorted[bisect_right(self._sorted, self._recent.popleft()) - 1]
        if len(self._recent) >= ENOUGH:
            self._count(self._recent if len(self._recent) == ENOUGH else [seconds])

    def _count(self, steps: Iterable[float]) -> None:
        """Count steps as usual ones or as stalls."""
        median = self._sorted[len(self._sorted) // 2]
        for seconds in steps:
            self.seen += 1
            if seconds > STALL * median:
                self.stalls.add(seconds - median)
            else:
                self.steps.add(seconds)
        recent = self._sorted[: bisect_right(self._sorted, STALL * median)]
        self.usual = max(self.steps.mean, sum(recent) / len(recent) if len(recent) >= WINDOW // 2 else 0.0)

    def evaluation(self, seconds: float) -> None:
        """Count an evaluation."""
        self.spent += seconds
        self.evaluations.add(seconds)

    def save(self, seconds: float) -> None:
        """Count a save of a checkpoint."""
        self.spent += seconds
        self.saves.add(seconds)

    def start(self, seconds: float) -> None:
        """Count the time of this process before its first step."""
        self.spent += seconds
        self._start += seconds

    def expected(self, work: Work) -> float:
        """Seconds that `work` takes on average, without the margin of `needed`."""
        return sum(mean for mean, _, _ in self._sums(work))

    def needed(self, work: Work) -> float:
        """Seconds in which `work` ends but for about 1 case in 500 (simulated, tests/test_deadline.py)::

            sum of n a  +  3 sqrt(sum of n (1 + n / m) s^2)  +  max(longest - a)

        over steps, stalls, evaluations, saves and starts. n: events to come. m: events measured. a, s, longest: their
        mean, standard deviation and the longest of them, in seconds; a of steps is that of all or of the last 200, the
        larger. n / m stands for a being measured itself. Of stalls as many are to come as came in as many steps; under
        the root one more was seen, and a^2 + s^2 stands in place of s^2, since how many come is random too.

        It covers stalls like those seen so far. A stall in mid-decay longer than all before it, or a machine that
        becomes slower after the decay has started, is beyond any margin taken from the past.
        """
        sums = list(self._sums(work))
        spread = sqrt(sum(variance for _, variance, _ in sums))
        return sum(mean for mean, _, _ in sums) + Z * spread + max(longest for _, _, longest in sums)

    def _sums(self, work: Work) -> Iterator[tuple[float, float, float]]:
        """For each kind the mean and the variance of its sum, and what its longest took beyond its mean."""
        n, steps, stalls, part = work.steps, self.steps, self.stalls, min(1.0, work.steps / max(self.seen, 1))
        yield n * self.usual, n * (1 + n / max(steps.count, 1)) * steps.variance, steps.longest - steps.mean
        spread = stalls.mean**2 + stalls.variance
        yield part * stalls.count * stalls.mean, part * (stalls.count + 1) * (1 + part) * spread, stalls.longest
        for n, times in ((work.evaluations, self.evaluations), (work.saves, self.saves), (work.starts, self.starts)):
            if n:
                one = times if times.count else Times(1, UNMEASURED * self.usual)
                yield n * one.mean, n * (1 + n / one.count) * one.variance, one.longest - one.mean

    def to_dict(self) -> dict[str, Any]:
        """The measured times as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Pace:
        """The times that another job measured, with less weight than those that this one will measure.

        Raises:
            RecordError: the data is no pace.

        >>> Pace.from_dict({"seen": 1})
        Traceback (most recent call last):
            ...
        hf_wsd.errors.RecordError: no pace of a run: KeyError('stalls')
        """
        try:
            read = {kind: Times(**_amounts(data[kind])) for kind in ("stalls", *WEIGHTS)}
            times = {kind: one.lighter(WEIGHTS[kind]) if kind in WEIGHTS else one for kind, one in read.items()}
            rest = _amounts({name: data[name] for name in ("seen", "usual", "spent")})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecordError(f"no pace of a run: {error!r}") from None
        times["steps"].mean = rest["usual"]  # what was seen of a drift is not forgotten
        return cls(**times, seen=int(rest["seen"]), usual=rest["usual"], spent=rest["spent"])


def _amounts(data: Mapping[str, Any]) -> dict[str, float]:
    """Numbers read from a file: a NaN among them would start a decay at once."""
    amounts = {name: float(number) for name, number in data.items()}
    if not all(0 <= number < inf for number in amounts.values()):
        raise ValueError(f"{amounts} are no amounts")
    return amounts
