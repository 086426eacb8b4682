"""The schedule: one pure object from which every lr, phase, checkpoint and cost of a run is derived.

Steps follow transformers' convention: update u (0-based) uses `schedule(u)`; a warm-up of W steps reaches the peak at
u = W; a decay of D steps up to T runs from update T - D to T - 1 and its last update has progress (D - 1) / D. A
*checkpoint at step k* means that k updates are done. Multipliers are lr / peak lr, in [0, 1].
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from hf_wsd.checks import count
from hf_wsd.errors import ForkError, ResumeError, ScheduleError
from hf_wsd.segment import Phase, Segment

SCHEMA = 1


@dataclass(frozen=True)
class Schedule:
    """A tuple of segments as a function: `schedule(step)` is the lr of update `step` over the peak lr.

    >>> from hf_wsd.builders import wsd
    >>> schedule = wsd(100, num_warmup_steps=10, num_decay_steps=20, decay_type="linear")
    >>> [schedule(u) for u in (0, 5, 10, 79, 80, 90, 99, 100)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.050000000000000044, 0.0]
    >>> schedule.phase(80).value, schedule.total_steps, schedule.checkpoint_steps()
    ('decay', 100, {80: 'pre-decay', 100: 'post-decay'})

    Any line of segments is a schedule: here a stable phase, a drop, and a tail at the minimum.

    >>> drop = Segment.decay(10, shape="linear", end=0.1)
    >>> tail = Segment(phase=Phase.DECAY, steps=5, start=0.1, end=0.1)
    >>> Schedule((Segment(phase=Phase.STABLE, steps=100), drop, tail)).total_steps
    115
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if not self.segments:
            raise ScheduleError("a schedule needs at least one segment")
        for segment in self.segments[:-1]:
            if segment.steps is None:
                raise ScheduleError(f"only the last segment may be open-ended, not '{segment}'")

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        starts = [0]
        for segment in self.segments[:-1]:
            starts.append(starts[-1] + (segment.steps or 0))
        return tuple(starts)

    def _locate(self, step: int) -> int:
        if step < 0:
            raise ScheduleError(f"a schedule starts at step 0, not {step}")
        return bisect_right(self._starts, step) - 1

    def __call__(self, step: int) -> float:
        """Multiplier of update `step` (0-based), in [0, 1]; past the end, where the last segment ends."""
        index = self._locate(step)
        return self.segments[index].multiplier(step - self._starts[index])

    def multipliers(self, start: int = 0, stop: int | None = None) -> list[float]:
        """Multipliers of updates `start` to `stop` - 1 (None: to the end), as `schedule(step)` gives them one by one.

        Raises:
            ScheduleError: a negative start, or no end at all.

        >>> from hf_wsd.builders import wsd
        >>> wsd(100, num_decay_steps=20, decay_type="linear").multipliers(78, 84)
        [1.0, 1.0, 1.0, 0.95, 0.9, 0.85]
        """
        stop = self.total_steps if stop is None else stop
        if stop is None:
            raise ScheduleError("an open-ended schedule has no last update: say where to stop")
        values: list[float] = []
        for index in range(self._locate(start), len(self.segments)):
            begin = self._starts[index]
            end = self._starts[index + 1] if index + 1 < len(self.segments) else stop
            first, last = max(start, begin), min(stop, max(end, begin))
            if first < last:
                values += self.segments[index].multipliers(first - begin, last - begin)
        return values

    def phase(self, step: int) -> Phase:
        """Phase of update `step` (0-based); past the end, that of the last segment."""
        return self.segments[self._locate(step)].phase

    @property
    def total_steps(self) -> int | None:
        """Number of updates, or None for an open-ended schedule."""
        last = self.segments[-1].steps
        return None if last is None else self._starts[-1] + last

    def spans(self) -> Iterator[tuple[int, int | None, Segment]]:
        """The segments with their first update and the one after their last (None: open)."""
        for start, segment in zip(self._starts, self.segments, strict=True):
            yield start, None if segment.steps is None else start + segment.steps, segment

    def checkpoint_steps(self) -> dict[int, str]:
        """The steps at which a checkpoint must be kept: where each decay starts and where it ends.

        A decay ends where its phase does, or where the lr rises at once (the restart of a cycle).
        """
        marks: dict[int, str] = {}
        before: Segment | None = None
        for start, _, segment in self.spans():
            decayed = before is not None and before.phase is Phase.DECAY
            if before is not None and segment.phase is Phase.DECAY and not decayed:
                marks[start] = "pre-decay"
            if before is not None and decayed and (segment.phase is not Phase.DECAY or segment.start > before.end):
                marks[start] = "post-decay"
            before = segment
        if before is not None and before.phase is Phase.DECAY and self.total_steps is not None:
            marks[self.total_steps] = "post-decay"
        return marks

    def fork(
        self,
        at: int,
        *,
        decay_steps: int,
        shape: str = "1-sqrt",
        final: float | None = None,
        params: Mapping[str, float] | None = None,
    ) -> Schedule:
        """This schedule up to the checkpoint at step `at`, then a decay.

        Args:
            at: fork point; update `at` - 1 must be stable, or the last of the warm-up.
            decay_steps: updates of the decay, at least 1.
            shape: a key of `SHAPES`, or `pkg.module:function`.
            final: multiplier at the end, in [0, 1]; None is the shape's own end, else 0.
            params: parameters of the shape.

        Raises:
            ForkError: the fork point is in the warm-up, in a decay, or past the end.

        >>> from hf_wsd.builders import wsd
        >>> trunk = wsd(num_warmup_steps=10, num_decay_steps=0)
        >>> trunk.fork(80, decay_steps=20) == wsd(100, num_warmup_steps=10, num_decay_steps=20)
        True
        """
        kept = self._until(self._fork_point(at))
        decay = Segment.decay(decay_steps, shape=shape, start=kept[-1].end, end=final, params=params)
        return Schedule((*kept, decay))

    def _fork_point(self, at: int) -> int:
        at = count("fork point", at, at_least=1)
        if self.total_steps is not None and at > self.total_steps:
            raise ForkError(f"cannot fork at step {at}: the trunk ends at step {self.total_steps}.")
        if not self._can_fork(at):
            start, end, segment = list(self.spans())[self._locate(at - 1)]
            nearest = end if segment.phase is Phase.WARMUP else start
            hint = f" Nearest stable checkpoint: {nearest}." if nearest and self._can_fork(nearest) else ""
            raise ForkError(
                f"cannot fork at step {at}: update {at - 1} is in the {segment.phase.value} phase "
                f"({start}-{(end or at) - 1}).{hint}"
            )
        return at

    def _can_fork(self, at: int) -> bool:
        _, end, segment = list(self.spans())[self._locate(at - 1)]
        return segment.phase is Phase.STABLE or (segment.phase is Phase.WARMUP and at == end)

    def _until(self, step: int | None) -> tuple[Segment, ...]:
        """The segments that updates 0 to `step` - 1 need; constants cut there, equal neighbours merged."""
        kept: list[Segment] = []
        for start, end, segment in self.spans():
            if step is not None and start >= step:
                break
            if segment.shape == "constant":
                stop = min((n for n in (end, step) if n is not None), default=None)
                if kept and replace(segment, steps=kept[-1].steps) == kept[-1]:
                    start -= kept.pop().steps or 0
                segment = replace(segment, steps=None if stop is None else stop - start)
            kept.append(segment)
        return tuple(kept)

    def difference(self, other: Schedule, *, until: int | None = None) -> str | None:
        """The first difference to `other` in updates 0 to `until` - 1 (None: all) in words; None if there is none."""
        mine, theirs = self._until(until), other._until(until)
        start = 0
        for a, b in zip((*mine, None), (*theirs, None), strict=False):
            if a != b:
                return f"from step {start}: {a or 'the end'} | {b or 'the end'}"
            start += (a.steps or 0) if a else 0
        return None

    def agrees_with(self, other: Schedule, *, until: int) -> bool:
        """Whether updates 0 to `until` - 1 have the same lr and phase in both."""
        return self.difference(other, until=until) is None

    def first_difference(self, other: Schedule) -> int | None:
        """The first update whose lr differs, or that only one of the two has; None if there is none.

        >>> from hf_wsd.builders import wsd
        >>> wsd(100, num_decay_steps=20).first_difference(wsd(100, num_decay_steps=10))
        81
        """
        if self.difference(other) is None:
            return None
        borders = sorted({*self._starts, *other._starts, *(t for t in (self.total_steps, other.total_steps) if t)})
        for start, stop in zip(borders, [*borders[1:], None], strict=True):
            if any(one.total_steps is not None and start >= one.total_steps for one in (self, other)):
                return start if self.total_steps != other.total_steps else None
            a, b = (one.segments[one._locate(start)] for one in (self, other))
            straight = a.shape == b.shape == "constant"
            for step in [start] if straight or stop is None else range(start, stop):
                if self(step) != other(step):
                    return step
        return None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `Schedule.from_dict` gives back an equal schedule.

        >>> from hf_wsd.builders import wsd
        >>> Schedule.from_dict(wsd(100).to_dict()) == wsd(100)
        True
        """
        return {"schema": SCHEMA, "segments": [segment.to_dict() for segment in self.segments]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schedule:
        """The schedule that `to_dict` wrote.

        Raises:
            ScheduleError: another schema, or fields that are missing or unknown.
        """
        schema = data.get("schema") if isinstance(data, dict) else data
        if schema != SCHEMA:
            raise ScheduleError(f"schedule of schema {schema!r}: this version of hf_wsd reads {SCHEMA}")
        names = [field.name for field in fields(Segment) if field.name != "shape_params"]
        try:
            schedule = cls(tuple(Segment(**{name: s[name] for name in names} | s) for s in data["segments"]))
        except (KeyError, TypeError) as error:  # no field may be missing: a default would hide the damage
            raise ScheduleError(f"damaged schedule: {type(error).__name__} {error}") from error
        if schedule.to_dict() != data:
            raise ScheduleError(f"damaged schedule: it reads as '{schedule}', which is written in another way")
        return schedule

    def __str__(self) -> str:
        return "; ".join(str(segment) for segment in self.segments)


def derive_intent(stored: Schedule, asked: Schedule, *, step: int) -> str:
    """What a resume at `step` is: "continue" (nothing changed), "branch" (a decay of its own) or "extend" (longer).

    Raises:
        ResumeError: the two schedules differ in an update that is already done.

    >>> from hf_wsd.builders import wsd
    >>> trunk, model = wsd(num_decay_steps=0), wsd(100, num_decay_steps=20)
    >>> derive_intent(trunk, trunk, step=80), derive_intent(trunk, model, step=80)
    ('continue', 'branch')
    >>> derive_intent(model, wsd(200, num_decay_steps=20), step=80)
    'extend'
    """
    if stored.difference(asked) is None:
        return "continue"
    if (difference := stored.difference(asked, until=step)) is not None:
        raise ResumeError(
            f"the checkpoint at step {step} was trained with another schedule than the one asked for; {difference} "
            "(checkpoint | asked). The past of a run cannot change: give the settings it was trained with or start anew"
        )
    end = stored.total_steps
    if end is None and asked.total_steps is None:  # a trunk that climbs to its peak again
        return "extend"
    longer = end is not None and (asked.total_steps is None or asked.total_steps > end)
    whole = end is not None and stored.agrees_with(asked, until=end)
    return "extend" if longer and (whole or asked.phase(step) is not Phase.DECAY) else "branch"
