"""WSD and WSD-S: each builder checks the lengths and returns a `Schedule`; what to compare with is in baselines.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_wsd.checks import count, ratio
from hf_wsd.cycles import cycle, cycles, read_cycle_ends, stable_segment, warmup_segment
from hf_wsd.errors import ScheduleError, ShapeError
from hf_wsd.lengths import decay_length
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase, Segment
from hf_wsd.shape_lookup import find_shape


def wsd(
    num_training_steps: int | None = None,
    *,
    num_warmup_steps: int = 0,
    num_decay_steps: int | None = None,
    decay_fraction: float | None = None,
    num_stable_steps: int | None = None,
    num_min_steps: int = 0,
    decay_type: str = "1-sqrt",
    decay_params: Mapping[str, float] | None = None,
    min_lr_ratio: float | None = None,
    warmup_type: str = "linear",
    warmup_start: float | None = None,
) -> Schedule:
    """Warmup-Stable-Decay (MiniCPM, arXiv 2404.06395): warm-up, constant peak, one decay at the end.

    Args:
        num_training_steps: all updates, decay included. Not needed for a trunk.
        num_warmup_steps: updates of the warm-up.
        num_decay_steps: updates of the decay; 0 is a *trunk*, stable for as long as the run lasts.
        decay_fraction: decay steps over `num_training_steps`, in (0, 1). At most one of the two; neither means 0.1.
        num_stable_steps: updates at the peak, if you want the sum checked.
        num_min_steps: updates after the decay, at its minimum.
        decay_type: a key of `SHAPES`, or `pkg.module:function` for a fall of your own.
        decay_params: parameters of the shape: {"p": 1.5} of power, {"half_life": 5000}, {"factor": 0.7}.
        min_lr_ratio: multiplier that the decay tends to, in [0, 1]; None is 0, or the shape's own end.
        warmup_type: a key of `WARMUP_SHAPES`.
        warmup_start: multiplier of the first update of the warm-up; None is `min_lr_ratio`, as in transformers.

    Raises:
        ScheduleError: lengths that do not fit. ShapeError: an unknown shape, or one that cannot reach the minimum.

    >>> wsd(1000, num_warmup_steps=100).checkpoint_steps()
    {900: 'pre-decay', 1000: 'post-decay'}
    """
    minimum = None if min_lr_ratio is None else ratio("min_lr_ratio", min_lr_ratio)
    begin = minimum or 0.0 if warmup_start is None else warmup_start
    warmup = warmup_segment(num_warmup_steps, start=begin, shape=warmup_type)
    rest = count("num_min_steps", num_min_steps)
    fall: dict[str, Any] = {"shape": decay_type, "end": minimum, "params": decay_params}
    if num_decay_steps is not None and count("num_decay_steps", num_decay_steps) == 0 and decay_fraction is None:
        if num_stable_steps is not None or rest:
            asked = f"num_min_steps={rest}" if rest else f"num_stable_steps={num_stable_steps}"
            raise ScheduleError(f"a trunk (num_decay_steps 0) has no end: leave out {asked}")
        if find_shape(decay_type).own_end is not None and minimum is not None:
            raise ShapeError(f"the {decay_type} shape ends by itself: leave min_lr_ratio={minimum} out")
        Segment.decay(10**6, **fall)  # a trunk's decays come later, but a bad shape is refused now
        return Schedule((*warmup, *stable_segment(None)))
    if num_training_steps is None:
        raise ScheduleError("num_training_steps is needed, unless num_decay_steps is 0 (a trunk)")
    total = count("num_training_steps", num_training_steps, at_least=1)
    decay = Segment.decay(decay_length(total, num_decay_steps=num_decay_steps, decay_fraction=decay_fraction), **fall)
    segments = cycle(total, what="the run", warmup=warmup, peak=1.0, decay=decay, rest=rest)
    stable_steps = total - num_warmup_steps - (decay.steps or 0) - rest
    if num_stable_steps is not None and num_stable_steps != stable_steps:
        raise ScheduleError(
            f"warm-up ({num_warmup_steps}) + num_stable_steps ({num_stable_steps}) + decay ({decay.steps}) is not the "
            f"run of {total} steps: leave num_stable_steps out, or make it {stable_steps}; num_min_steps are updates "
            "after the decay"
        )
    return Schedule(tuple(segments))


def wsd_s(
    num_training_steps: int | None = None,
    *,
    cycle_ends: Sequence[int] | None = None,
    cycle_peaks: Sequence[float] | None = None,
    num_warmup_steps: int = 0,
    num_rewarmup_steps: int | None = None,
    rewarmup_fraction: float | None = None,
    num_decay_steps: int | None = None,
    decay_fraction: float | None = None,
    num_min_steps: int = 0,
    decay_type: str = "inverse",
    decay_params: Mapping[str, float] | None = None,
    min_lr_ratio: float | None = None,
    warmup_type: str = "linear",
    warmup_start: float | None = None,
) -> Schedule:
    """WSD-S (arXiv 2410.05192): one line that decays at the end of every cycle and goes on from there at the peak.

    Args:
        num_training_steps: must be the last cycle's end; None means just that.
        cycle_ends: cumulative steps at which a decayed model is wanted, rising; None is one cycle.
        cycle_peaks: multiplier of each cycle's stable phase, in (0, 1]; None is 1 for all.
        num_warmup_steps: updates of the warm-up, part of the first cycle.
        num_rewarmup_steps: updates in which each later cycle climbs from the minimum back to its peak; None is 0.
        rewarmup_fraction: the same over the steps of the cycle, in (0, 1). At most one of the two.
        num_decay_steps: updates of each decay, at least 1.
        decay_fraction: decay steps over the steps of the *cycle*, in (0, 1). At most one of the two; neither means 0.1.
        num_min_steps: updates at the minimum at the end of each cycle.
        decay_type, decay_params, warmup_type, warmup_start: as in `wsd`; the paper's inverse decay by default.
        min_lr_ratio: multiplier that each decay tends to, in [0, 1]; None is 0.1, or the shape's own end.

    Raises:
        ScheduleError: lengths that do not fit. ShapeError: an unknown shape, or one that cannot reach the minimum.

    >>> wsd_s(cycle_ends=[100, 200]).checkpoint_steps()
    {90: 'pre-decay', 100: 'post-decay', 190: 'pre-decay', 200: 'post-decay'}
    """
    ends = read_cycle_ends(num_training_steps, cycle_ends)
    if min_lr_ratio is None and find_shape(decay_type).own_end is None:
        min_lr_ratio = 0.1
    minimum = None if min_lr_ratio is None else ratio("min_lr_ratio", min_lr_ratio)
    rest = count("num_min_steps", num_min_steps)
    begin = minimum or 0.0 if warmup_start is None else warmup_start
    segments: list[Segment] = []
    for start, end, peak, climb in cycles(
        ends,
        cycle_peaks,
        minimum=minimum,
        num_warmup_steps=num_warmup_steps,
        num_rewarmup_steps=num_rewarmup_steps,
        rewarmup_fraction=rewarmup_fraction,
    ):
        steps = decay_length(end - start, num_decay_steps=num_decay_steps, decay_fraction=decay_fraction)
        count("num_decay_steps of wsd_s", steps, at_least=1)
        decay = Segment.decay(steps, shape=decay_type, start=peak, end=minimum, params=decay_params)
        warmup = warmup_segment(climb, start=begin, end=peak, shape=warmup_type)
        what = f"the cycle {start}-{end}"
        segments += cycle(end - start, what=what, warmup=warmup, peak=peak, decay=decay, rest=rest)
        begin = decay.end
    return Schedule(tuple(segments))


def rewarmed(schedule: Schedule, *, at: int, steps: int, shape: str = "linear") -> Schedule:
    """The schedule with a climb from 0 back to its stable lr: for an optimizer that begins anew at step `at`.

    Args:
        schedule: with a stable phase at that step.
        at: updates done when the climb begins.
        steps: updates of the climb; 0 is none.
        shape: a key of `WARMUP_SHAPES`.

    Raises:
        ScheduleError: the climb does not fit into the stable phase.

    >>> print(rewarmed(wsd(100, num_warmup_steps=10), at=50, steps=20))
    warmup linear 0 -> 1, 10 steps; stable at 1, 40 steps; warmup linear 0 -> 1, 20 steps; stable at 1, 20 steps; \
decay 1-sqrt 1 -> 0, 10 steps
    """
    if count("rewarmup_steps", steps) == 0:
        return schedule
    segments: list[Segment] = []
    for start, end, segment in schedule.spans():
        if segment.phase is Phase.STABLE and start <= at and (end is None or at + steps <= end):
            segments += stable_segment(at - start, segment.end)
            segments += warmup_segment(steps, start=0.0, end=segment.end, shape=shape)
            segments += stable_segment(None if end is None else end - at - steps, segment.end)
        else:
            segments.append(segment)
    if len(segments) == len(schedule.segments):
        raise ScheduleError(
            f"a re-warm-up over updates {at} to {at + steps - 1} does not fit into the stable phase of '{schedule}': "
            "give fewer rewarmup_steps, or a longer run"
        )
    return Schedule(tuple(segments))
