"""The schedules that people name: each builder checks the lengths and returns a `Schedule`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hf_wsd.checks import count, fraction, ratio
from hf_wsd.errors import ScheduleError
from hf_wsd.schedule import Phase, Schedule, Segment
from hf_wsd.shapes import find_shape

DEFAULT_DECAY_FRACTION = 0.1


def decay_length(length: int, *, num_decay_steps: int | None = None, decay_fraction: float | None = None) -> int:
    """Decay steps of a model (or cycle) of `length` steps: as given, or `round(fraction * length)`; fraction 0.1.

    Raises:
        ScheduleError: both are given, or the fraction rounds to no step.

    >>> decay_length(1000), decay_length(1000, decay_fraction=0.29), decay_length(1000, num_decay_steps=5)
    (100, 290, 5)
    """
    if num_decay_steps is not None and decay_fraction is not None:
        raise ScheduleError(f"give num_decay_steps ({num_decay_steps}) or decay_fraction ({decay_fraction}), not both")
    if num_decay_steps is not None:
        return count("num_decay_steps", num_decay_steps)
    part = fraction("decay_fraction", DEFAULT_DECAY_FRACTION if decay_fraction is None else decay_fraction)
    steps = round(part * length)
    if steps == 0:
        raise ScheduleError(f"a decay of {part:g} of {length} steps is no step: give num_decay_steps")
    return steps


def total_for_fork(fork: int, decay_fraction: float) -> int:
    """The smallest total T whose decay of `round(decay_fraction * T)` steps starts at step `fork`.

    Raises:
        ScheduleError: the fork comes too early for a decay of that fraction to have a step.

    >>> total_for_fork(900, 0.1), total_for_fork(80, 0.2)
    (1000, 100)
    """
    fork = count("fork point", fork, at_least=1)
    fraction("decay_fraction", decay_fraction)
    total = max(fork, int((fork - 0.5) / (1 - decay_fraction)) - 2)
    while total - round(decay_fraction * total) < fork:  # T - round(f T) grows by 0 or 1 a step: every fork is met
        total += 1
    if total == fork:  # no step of decay yet; one more step is one of decay, or else too many of trunk
        total += 1
    if total - round(decay_fraction * total) != fork:
        raise ScheduleError(f"a decay of {decay_fraction:g} from step {fork} is no step: give num_decay_steps")
    return total


def _warmup(steps: int, *, start: float, shape: str) -> tuple[Segment, ...]:
    steps = count("num_warmup_steps", steps)
    find_shape(shape, end=1.0, warmup=True)
    return (Segment(phase=Phase.WARMUP, steps=steps, start=start, shape=shape),) if steps else ()


def _stable(steps: int | None) -> tuple[Segment, ...]:
    return (Segment(phase=Phase.STABLE, steps=steps),) if steps != 0 else ()


def wsd(
    num_training_steps: int | None = None,
    *,
    num_warmup_steps: int = 0,
    num_decay_steps: int | None = None,
    decay_fraction: float | None = None,
    num_stable_steps: int | None = None,
    decay_type: str = "1-sqrt",
    min_lr_ratio: float = 0.0,
    warmup_type: str = "linear",
) -> Schedule:
    """Warmup-Stable-Decay (MiniCPM, arXiv 2404.06395): warm-up, constant peak, one decay at the end.

    Args:
        num_training_steps: all updates, decay included. Not needed for a trunk.
        num_warmup_steps: updates of the warm-up, from `min_lr_ratio` to 1.
        num_decay_steps: updates of the decay; 0 is a *trunk*, stable for as long as the run lasts.
        decay_fraction: decay steps over `num_training_steps`, in (0, 1). At most one of the two; neither means 0.1.
        num_stable_steps: updates at the peak, if you want the sum checked.
        decay_type: a key of `SHAPES`.
        min_lr_ratio: multiplier that the decay tends to, in [0, 1].
        warmup_type: a key of `WARMUP_SHAPES`.

    Raises:
        ScheduleError: lengths that do not fit. ShapeError: an unknown shape.

    >>> wsd(1000, num_warmup_steps=100).checkpoint_steps()
    {900: 'pre-decay', 1000: 'post-decay'}
    """
    find_shape(decay_type, end=ratio("min_lr_ratio", min_lr_ratio))
    warmup = _warmup(num_warmup_steps, start=min_lr_ratio, shape=warmup_type)
    if num_decay_steps is not None:
        num_decay_steps = count("num_decay_steps", num_decay_steps)
    if num_decay_steps == 0 and decay_fraction is None:
        if num_stable_steps is not None:
            raise ScheduleError(
                f"a trunk (num_decay_steps 0) has no end: leave out num_stable_steps={num_stable_steps}"
            )
        return Schedule((*warmup, *_stable(None)))
    if num_training_steps is None:
        raise ScheduleError("num_training_steps is needed, unless num_decay_steps is 0 (a trunk)")
    total = count("num_training_steps", num_training_steps, at_least=1)
    decay_steps = decay_length(total, num_decay_steps=num_decay_steps, decay_fraction=decay_fraction)
    stable_steps = total - num_warmup_steps - decay_steps
    if stable_steps < 0:
        raise ScheduleError(
            f"warm-up ({num_warmup_steps}) + decay ({decay_steps}) = {num_warmup_steps + decay_steps} steps, "
            f"longer than the run of {total}: shorten one of them, or train at least {total - stable_steps} steps"
        )
    if num_stable_steps is not None and num_stable_steps != stable_steps:
        raise ScheduleError(
            f"warm-up ({num_warmup_steps}) + num_stable_steps ({num_stable_steps}) + decay ({decay_steps}) is not the "
            f"run of {total} steps: leave num_stable_steps out, or make it {stable_steps}"
        )
    decay = Segment(phase=Phase.DECAY, steps=decay_steps, end=min_lr_ratio, shape=decay_type)
    return Schedule((*warmup, *_stable(stable_steps), decay))


def wsd_s(
    num_training_steps: int | None = None,
    *,
    cycle_ends: Sequence[int] | None = None,
    num_warmup_steps: int = 0,
    num_decay_steps: int | None = None,
    decay_fraction: float | None = None,
    decay_type: str = "inverse",
    min_lr_ratio: float = 0.1,
    warmup_type: str = "linear",
) -> Schedule:
    """WSD-S (arXiv 2410.05192): one line that decays at the end of every cycle and goes on from there at the peak.

    Args:
        num_training_steps: must be the last cycle's end; None means just that.
        cycle_ends: cumulative steps at which a decayed model is wanted, rising; None is one cycle.
        num_warmup_steps: updates of the warm-up, part of the first cycle.
        num_decay_steps: updates of each decay, at least 1.
        decay_fraction: decay steps over the steps of the *cycle*, in (0, 1). At most one of the two; neither means 0.1.
        decay_type, min_lr_ratio, warmup_type: as in `wsd`; the paper's inverse decay to a tenth by default.

    Raises:
        ScheduleError: lengths that do not fit. ShapeError: an unknown shape.

    >>> wsd_s(cycle_ends=[100, 200]).checkpoint_steps()
    {90: 'pre-decay', 100: 'post-decay', 190: 'pre-decay', 200: 'post-decay'}
    """
    if cycle_ends is None and num_training_steps is None:
        raise ScheduleError("give cycle_ends, for example [1000, 2000, 4000], or num_training_steps for one cycle")
    ends = _cycle_ends([num_training_steps] if cycle_ends is None else cycle_ends)
    if num_training_steps is not None and ends[-1:] != [num_training_steps]:
        raise ScheduleError(
            f"the run has {num_training_steps} steps but cycle_ends is {ends}: train as many steps as the last cycle's "
            f"end (--max_steps {ends[-1]}), or end the last cycle at {num_training_steps}"
        )
    ratio("min_lr_ratio", min_lr_ratio)
    segments = [*_warmup(num_warmup_steps, start=min_lr_ratio, shape=warmup_type)]
    begin = 0
    for end in ends:
        decay_steps = decay_length(end - begin, num_decay_steps=num_decay_steps, decay_fraction=decay_fraction)
        count("num_decay_steps of wsd_s", decay_steps, at_least=1)
        warmup_steps = num_warmup_steps if begin == 0 else 0
        if warmup_steps + decay_steps > end - begin:
            raise ScheduleError(
                f"the cycle {begin}-{end} has {end - begin} steps but needs {warmup_steps} of warm-up and "
                f"{decay_steps} of decay: shorten one of them or end the cycle later"
            )
        segments += _stable(end - begin - warmup_steps - decay_steps)
        segments.append(Segment(phase=Phase.DECAY, steps=decay_steps, end=min_lr_ratio, shape=decay_type))
        begin = end
    return Schedule(tuple(segments))


def _cycle_ends(ends: Any) -> list[int]:
    try:
        steps = [count("a cycle end", end, at_least=1) for end in ends]
    except TypeError:
        steps = []
    if not steps:
        raise ScheduleError(f"cycle_ends is a list of steps such as [1000, 2000, 4000], not {ends!r}")
    for before, after in pairwise(steps):
        if after <= before:
            raise ScheduleError(f"cycle_ends must rise, but {after} follows {before}: {steps}")
    return steps


def cosine(num_training_steps: int, *, num_warmup_steps: int = 0, min_lr_ratio: float = 0.0) -> Schedule:
    """The baseline: a linear warm-up, then one half cosine from the peak to `min_lr_ratio` (arXiv 1608.03983).

    >>> cosine(110, num_warmup_steps=10)(60)
    0.5
    """
    total = count("num_training_steps", num_training_steps, at_least=1)
    warmup = _warmup(num_warmup_steps, start=0.0, shape="linear")
    steps = total - num_warmup_steps
    if steps < 1:
        raise ScheduleError(f"a warm-up of {num_warmup_steps} steps leaves nothing of a run of {total}")
    return Schedule((*warmup, Segment(phase=Phase.DECAY, steps=steps, end=min_lr_ratio, shape="cosine")))
