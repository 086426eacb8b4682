"""Schedules to compare WSD with: cosine, cyclic cosine, multi-step, constant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hf_wsd.checks import count, fraction, ratio
from hf_wsd.cycles import cycle, cycles, read_cycle_ends, read_list, stable_segment, warmup_segment
from hf_wsd.errors import ScheduleError
from hf_wsd.lengths import nearest
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase, Segment


def cosine(
    num_training_steps: int,
    *,
    num_warmup_steps: int = 0,
    num_min_steps: int = 0,
    min_lr_ratio: float = 0.0,
    warmup_start: float = 0.0,
) -> Schedule:
    """The baseline: a linear warm-up, then one half cosine from the peak to `min_lr_ratio` (arXiv 1608.03983).

    Args:
        num_training_steps: all updates.
        num_warmup_steps: updates of the warm-up, from `warmup_start` to the peak.
        num_min_steps: updates after the cosine, at its minimum.
        min_lr_ratio: multiplier that the cosine tends to, in [0, 1].
        warmup_start: multiplier of the first update of the warm-up.

    Raises:
        ScheduleError: lengths that do not fit.

    >>> cosine(110, num_warmup_steps=10)(60)
    0.5
    """
    total = count("num_training_steps", num_training_steps, at_least=1)
    return cyclic_cosine(
        total,
        num_warmup_steps=num_warmup_steps,
        num_min_steps=num_min_steps,
        min_lr_ratio=min_lr_ratio,
        warmup_start=warmup_start,
    )


def cyclic_cosine(
    num_training_steps: int | None = None,
    *,
    cycle_ends: Sequence[int] | None = None,
    cycle_peaks: Sequence[float] | None = None,
    num_warmup_steps: int = 0,
    num_rewarmup_steps: int | None = None,
    rewarmup_fraction: float | None = None,
    num_min_steps: int = 0,
    min_lr_ratio: float = 0.0,
    warmup_start: float = 0.0,
) -> Schedule:
    """The baseline of one line: a half cosine in every cycle, from the peak to `min_lr_ratio` (SGDR, arXiv 1608.03983).

    Args:
        num_training_steps, cycle_ends, cycle_peaks: as in `wsd_s`.
        num_warmup_steps, num_rewarmup_steps, rewarmup_fraction: as in `wsd_s`; the climbs are linear.
        num_min_steps: updates at the minimum at the end of each cycle.
        min_lr_ratio: multiplier that each cosine tends to, in [0, 1].
        warmup_start: multiplier of the first update of the warm-up.

    Raises:
        ScheduleError: lengths that do not fit.

    >>> cyclic_cosine(cycle_ends=[100, 200]).multipliers(99, 101)
    [0.0002467198171342, 1.0]
    """
    ends = read_cycle_ends(num_training_steps, cycle_ends)
    minimum, begin = ratio("min_lr_ratio", min_lr_ratio), warmup_start
    rest = count("num_min_steps", num_min_steps)
    segments: list[Segment] = []
    for start, end, peak, climb in cycles(
        ends,
        cycle_peaks,
        minimum=minimum,
        num_warmup_steps=num_warmup_steps,
        num_rewarmup_steps=num_rewarmup_steps,
        rewarmup_fraction=rewarmup_fraction,
    ):
        warmup = warmup_segment(climb, start=begin, end=peak, shape="linear")
        steps = end - start - climb - rest
        if steps < 1:
            raise ScheduleError(
                f"a warm-up of {climb} steps leaves nothing of {'a run' if len(ends) == 1 else 'the cycle'} of "
                f"{end - start}" + (f" with {rest} steps at the minimum" if rest else "")
            )
        decay = Segment.decay(steps, shape="cosine", start=peak, end=minimum)
        segments += cycle(end - start, what="the run", warmup=warmup, peak=peak, decay=decay, rest=rest)
        begin = minimum
    return Schedule(tuple(segments))


def multi_step(
    num_training_steps: int,
    *,
    num_warmup_steps: int = 0,
    milestones: Sequence[int] | None = None,
    milestone_fractions: Sequence[float] | None = None,
    multipliers: Sequence[float] = (0.316, 0.1),
) -> Schedule:
    """The baseline of DeepSeek LLM (arXiv 2401.02954): warm-up, constant peak, then constant at each lower multiplier.

    Args:
        num_training_steps: all updates.
        num_warmup_steps: updates of the linear warm-up from 0.
        milestones: first step at each multiplier, rising.
        milestone_fractions: the same over `num_training_steps`, in (0, 1). At most one of the two; neither is 0.8, 0.9.
        multipliers: lr / peak lr from each milestone on, falling, in [0, 1].

    Raises:
        ScheduleError: milestones or multipliers that do not fit.

    >>> multi_step(1000).multipliers(799, 901)[::50]
    [1.0, 0.316, 0.316]
    """
    total = count("num_training_steps", num_training_steps, at_least=1)
    if milestones is not None and milestone_fractions is not None:
        raise ScheduleError(f"give milestones ({milestones}) or milestone_fractions ({milestone_fractions}), not both")
    warmup = warmup_segment(num_warmup_steps, start=0.0, shape="linear")
    if milestones is None:
        parts = (0.8, 0.9) if milestone_fractions is None else read_list("milestone_fractions", milestone_fractions)
        milestones = [nearest(fraction("a milestone fraction", part) * total) for part in parts]
    steps = [count("a milestone", step, at_least=1) for step in read_list("milestones", milestones)]
    levels = [1.0, *(ratio("a multiplier", level) for level in read_list("multipliers", multipliers))]
    borders = [*steps, total]
    if len(levels) != len(steps) + 1 or not steps:
        raise ScheduleError(f"{len(steps)} milestones need as many multipliers, not {len(levels) - 1}")
    if steps[0] < num_warmup_steps or any(after <= before for before, after in pairwise(borders)):
        raise ScheduleError(
            f"milestones rise from the warm-up's end ({num_warmup_steps}) to the run's ({total}), not as {steps}"
        )
    if any(after > before for before, after in pairwise(levels)):
        raise ScheduleError(f"multipliers fall from the peak on, not as {list(multipliers)}")
    segments = [*warmup, *stable_segment(steps[0] - num_warmup_steps)]
    for (begin, end), level in zip(pairwise(borders), levels[1:], strict=True):
        segments.append(Segment(phase=Phase.DECAY, steps=end - begin, start=level, end=level))
    return Schedule(tuple(segments))


def constant(
    num_training_steps: int | None = None,
    *,
    num_warmup_steps: int = 0,
    warmup_type: str = "linear",
    warmup_start: float = 0.0,
) -> Schedule:
    """The baseline without a decay, and the schedule of a trunk: warm-up, then the peak.

    Args:
        num_training_steps: all updates; None is open-ended.
        num_warmup_steps: updates of the warm-up, from `warmup_start` to the peak.
        warmup_type: a key of `WARMUP_SHAPES`.
        warmup_start: multiplier of the first update of the warm-up.

    Raises:
        ScheduleError: lengths that do not fit.

    >>> from hf_wsd.builders import wsd
    >>> constant(num_warmup_steps=10) == wsd(num_warmup_steps=10, num_decay_steps=0)
    True
    """
    warmup = warmup_segment(num_warmup_steps, start=warmup_start, shape=warmup_type)
    if num_training_steps is None:
        return Schedule((*warmup, *stable_segment(None)))
    total = count("num_training_steps", num_training_steps, at_least=1)
    if num_warmup_steps > total:
        raise ScheduleError(f"a warm-up of {num_warmup_steps} steps is longer than the run of {total}")
    return Schedule((*warmup, *stable_segment(total - num_warmup_steps)))
