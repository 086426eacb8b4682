"""What the builders share: the segments of one cycle, and where cycles begin, peak and end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hf_wsd.checks import count, fraction, ratio
from hf_wsd.errors import ScheduleError
from hf_wsd.lengths import nearest
from hf_wsd.segment import Phase, Segment
from hf_wsd.shape_lookup import find_shape


def warmup_segment(steps: int, *, start: float, shape: str, end: float = 1.0) -> tuple[Segment, ...]:
    """The warm-up from `start` to `end`, or nothing if it has no steps.

    >>> warmup_segment(10, start=0.0, shape="linear")[0].multipliers(0, 3), warmup_segment(0, start=0.0, shape="linear")
    ([0.0, 0.1, 0.2], ())
    """
    steps = count("num_warmup_steps", steps)
    find_shape(shape, warmup=True)
    ratio("warmup_start", start)
    return (Segment(phase=Phase.WARMUP, steps=steps, start=start, end=end, shape=shape),) if steps else ()


def stable_segment(steps: int | None, at: float = 1.0) -> tuple[Segment, ...]:
    """The stable phase at a multiplier, open-ended for None, or nothing if it has no steps.

    >>> [str(segment) for segment in stable_segment(None)]
    ['stable at 1, open-ended']
    """
    return (Segment(phase=Phase.STABLE, steps=steps, start=at, end=at),) if steps != 0 else ()


def cycle(
    length: int, *, what: str, warmup: tuple[Segment, ...], peak: float, decay: Segment, rest: int
) -> list[Segment]:
    """Warm-up, stable phase, decay, then `rest` updates at its end: `length` updates in all.

    Raises:
        ScheduleError: the parts are longer than `length`; `what` names the whole in the message.

    >>> decay = Segment.decay(20, shape="linear")
    >>> [segment.steps for segment in cycle(100, what="the run", warmup=(), peak=1.0, decay=decay, rest=5)]
    [75, 20, 5]
    """
    warmup_steps, decay_steps = sum(s.steps or 0 for s in warmup), decay.steps or 0
    needed = warmup_steps + decay_steps + rest
    if needed > length:
        parts = {"warm-up": warmup_steps, "decay": decay_steps, "num_min_steps": rest}
        asked = " + ".join(f"{name} ({steps})" for name, steps in parts.items() if steps)
        raise ScheduleError(
            f"{asked} = {needed} steps, longer than {what} of {length}: shorten one of them, or train at least "
            f"{needed} steps"
        )
    tail = (Segment(phase=Phase.DECAY, steps=rest, start=decay.end, end=decay.end),) if rest else ()
    return [*warmup, *stable_segment(length - needed, peak), decay, *tail]


def read_cycle_ends(total: int | None, ends: Any) -> list[int]:
    """The cumulative steps at which cycles end; one cycle of `total` steps if no ends are given.

    Raises:
        ScheduleError: they do not rise, or do not end with the run.

    >>> read_cycle_ends(None, [100, 300]), read_cycle_ends(300, None)
    ([100, 300], [300])
    """
    if ends is None and total is None:
        raise ScheduleError("give cycle_ends, for example [1000, 2000, 4000], or num_training_steps for one cycle")
    try:
        steps = [count("a cycle end", end, at_least=1) for end in ([total] if ends is None else ends)]
    except TypeError:
        steps = []
    if not steps:
        raise ScheduleError(f"cycle_ends is a list of steps such as [1000, 2000, 4000], not {ends!r}")
    for before, after in pairwise(steps):
        if after <= before:
            raise ScheduleError(f"cycle_ends must rise, but {after} follows {before}: {steps}")
    if total is not None and steps[-1] != total:
        raise ScheduleError(
            f"the run has {total} steps but cycle_ends is {steps}: train as many steps as the last cycle's "
            f"end (--max_steps {steps[-1]}), or end the last cycle at {total}"
        )
    return steps


def cycles(
    ends: list[int],
    peaks: Sequence[float] | None = None,
    *,
    minimum: float | None = None,
    num_warmup_steps: int = 0,
    num_rewarmup_steps: int | None = None,
    rewarmup_fraction: float | None = None,
) -> list[tuple[int, int, float, int]]:
    """Start, end, peak (1 by default) and updates of the climb of each cycle: a warm-up, later re-warm-ups.

    Raises:
        ScheduleError: another number of peaks than of cycles, one that is not above `minimum` and at most 1, or a
            re-warm-up as in `rewarmup_length`.

    >>> cycles([100, 300], [1, 0.5], num_warmup_steps=20, rewarmup_fraction=0.05)
    [(0, 100, 1.0, 20), (100, 300, 0.5, 10)]
    """
    rewarmup_length(10**9, num_rewarmup_steps, rewarmup_fraction)  # also refused where no cycle needs one
    given = peaks is not None
    peaks = [1.0] * len(ends) if peaks is None else read_list("cycle_peaks", peaks)
    if len(peaks) != len(ends):
        raise ScheduleError(f"cycle_peaks has a multiplier for each of the {len(ends)} cycles, not {peaks!r}")
    for peak in peaks:
        if ratio("a multiplier of cycle_peaks", peak) == 0:
            raise ScheduleError("a multiplier of cycle_peaks must be above 0: at lr 0 nothing is learned")
        if given and minimum is not None and peak <= minimum:
            raise ScheduleError(f"a peak of {peak:g} leaves nothing to decay to min_lr_ratio {minimum:g}: lower that")
    starts = [0, *ends[:-1]]
    later = [
        rewarmup_length(end - start, num_rewarmup_steps, rewarmup_fraction)
        for start, end in zip(starts[1:], ends[1:], strict=True)
    ]
    return list(zip(starts, ends, map(float, peaks), [num_warmup_steps, *later], strict=True))


def read_list(name: str, values: Any) -> list[Any]:
    """Several values as a list.

    Raises:
        ScheduleError: it is a single value.

    >>> read_list("milestones", (80, 90))
    [80, 90]
    """
    if not isinstance(values, (str, bytes)):
        try:
            return list(values)
        except TypeError:
            pass
    raise ScheduleError(f"{name} is a list of numbers, not {values!r}")


def rewarmup_length(length: int, steps: int | None, part: float | None) -> int:
    """Updates in which a cycle of `length` steps climbs back to its peak: `steps`, or a part of the cycle.

    Raises:
        ScheduleError: both are given, or the part rounds to no step.

    >>> rewarmup_length(200, None, 0.05), rewarmup_length(200, 7, None), rewarmup_length(200, None, None)
    (10, 7, 0)
    """
    if steps is not None and part is not None:
        raise ScheduleError(f"give num_rewarmup_steps ({steps}) or rewarmup_fraction ({part}), not both")
    if part is None:
        return count("num_rewarmup_steps", 0 if steps is None else steps)
    climb = nearest(fraction("rewarmup_fraction", part) * length)
    if climb == 0:
        raise ScheduleError(f"a re-warm-up of {part:g} of {length} steps is no step: give num_rewarmup_steps")
    return climb
