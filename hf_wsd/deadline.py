"""When a decay must start so that it ends, evaluations and saves included, before a deadline."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from hf_wsd.pace import Pace, Work


@dataclass(frozen=True, kw_only=True)
class Start:
    """The decay must start now. In seconds: what is left, what the decay takes on average, and with its margin.

    >>> Start(left=100.0, expected=130.0, needed=150.0).late
    30.0
    """

    left: float
    expected: float
    needed: float

    @property
    def late(self) -> float:
        """By how much the deadline will be missed if all goes as on average; 0 if it will not."""
        return max(0.0, self.expected - self.left)


@dataclass(frozen=True)
class Deadline:
    """When all must be done, and when the jobs end until then, in seconds of one clock (unix time).

    Args:
        at: the decayed model must be on disk.
        job_end: this job ends; what is not done goes on in another job, after a save and a start.
        job_seconds: the length of the jobs after it.

    >>> pace = Pace()
    >>> for _ in range(105):
    ...     pace.step(2.0)
    >>> ahead = lambda fork: Work(steps=fork - 100 + 50)  # at step 100: fixed decays of 50 steps
    >>> deadline = Deadline(at=1000.0)
    >>> [deadline.decide(100, now, pace, ahead) is None for now in (894.0, 896.0)]
    [True, False]
    """

    at: float
    job_end: float = inf
    job_seconds: float = inf

    def decide(self, step: int, now: float, pace: Pace, ahead: Callable[[int], Work]) -> Start | None:
        """`Start` if the decay must start at `step`, since one step later it would no longer fit; None: there is time.

        Args:
            step: updates done.
            now: unix seconds.
            pace: the times of this run until now.
            ahead: all work from *now* on if the decay starts at that step (this one, or the next): the steps until
                there, the decay's, the evaluations and saves among them, of the fork point and of the end.
        """
        if not pace.seen or now + self._needed(now, ahead(step + 1), pace.needed) <= self.at:
            return None
        work = ahead(step)
        expected, needed = (self._needed(now, work, seconds) for seconds in (pace.expected, pace.needed))
        return Start(left=self.at - now, expected=expected, needed=needed)

    def steps_that_fit(self, now: float, pace: Pace, work: Work) -> int:
        """The largest number of steps, up to those of `work`, with which it would end in time; 0 if none would."""
        steps = range(1, work.steps + 1)
        return bisect_right(steps, self.at - now, key=lambda n: self._needed(now, replace(work, steps=n), pace.needed))

    def _needed(self, now: float, work: Work, seconds: Callable[[Work], float]) -> float:
        """Seconds of `work`, with a save and a start for every job end that falls into it."""
        ends, needed, end = 0, seconds(work), self.job_end
        while now + needed > end and ends < 1000:  # jobs too short for their own start would never end
            ends, end = ends + 1, end + self.job_seconds
            needed = seconds(replace(work, saves=work.saves + ends, starts=work.starts + ends))
        return needed
