"""Our schedules in stock transformers' words: how a run goes on where hf_wsd is not installed."""

from __future__ import annotations

import json
from typing import Any

from hf_wsd.builders import wsd
from hf_wsd.errors import ScheduleError
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase, Segment

DECAYS = ("linear", "cosine", "1-sqrt")  # of transformers' get_wsd_schedule


def stock_flags(schedule: Schedule, *, last_step: int, start: int = 0) -> list[str]:
    """Flags with which stock transformers gives updates `start` to `last_step` - 1 the same lrs, to the last bit.

    Args:
        schedule: the schedule of the run.
        last_step: where the run stops.
        start: updates done; how they were made need not be known to transformers.

    Raises:
        ScheduleError: transformers has no such schedule; the message says what it lacks.

    >>> print(*stock_flags(wsd(num_warmup_steps=10, num_decay_steps=0), last_step=80))
    --lr_scheduler_type constant_with_warmup --warmup_steps 10 --max_steps 80
    >>> print(*stock_flags(wsd(100, decay_type="linear"), last_step=100)[:4])
    --lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs {"num_decay_steps": 10, "decay_type": "linear"}
    >>> stock_flags(wsd(100, decay_type="square"), last_step=100)
    Traceback (most recent call last):
        ...
    hf_wsd.errors.ScheduleError: transformers has no square decay
    """
    warmup = schedule.segments[0] if schedule.phase(0) is Phase.WARMUP else None
    warmup_steps = (warmup.steps or 0) if warmup else 0
    length = ["--warmup_steps", str(warmup_steps), "--max_steps", str(last_step)]
    plain = wsd(num_warmup_steps=warmup_steps, num_decay_steps=0)
    if _differs_at(schedule, plain, start, last_step) is None:
        return ["--lr_scheduler_type", "constant_with_warmup", *length]
    end, fall = _next_decay(schedule, start)
    kwargs: dict[str, Any] = {"num_decay_steps": 0, "min_lr_ratio": warmup.start if warmup else 0.0}
    if fall:
        kwargs = {"num_decay_steps": fall.steps, "decay_type": fall.shape, "min_lr_ratio": fall.end}
    if warmup and warmup.shape != "linear":
        kwargs["warmup_type"] = warmup.shape
    rest = max(last_step - end, 0) if fall else 0
    asked = wsd(last_step, num_warmup_steps=warmup_steps, num_min_steps=rest, **kwargs)
    if (update := _differs_at(schedule, asked, start, last_step)) is not None:
        segment = next(s for _, end, s in schedule.spans() if end is None or end > update)
        raise ScheduleError(f"transformers' warmup_stable_decay has no '{segment}' at update {update}")
    if rest:
        kwargs["num_stable_steps"] = last_step - warmup_steps - kwargs["num_decay_steps"] - rest
    if not kwargs["min_lr_ratio"]:
        del kwargs["min_lr_ratio"]
    return ["--lr_scheduler_type", "warmup_stable_decay", "--lr_scheduler_kwargs", json.dumps(kwargs), *length]


def _next_decay(schedule: Schedule, start: int) -> tuple[int, Segment | None]:
    """Where the decay of update `start`, or the next one, ends (of a tail: the last one), and the decay."""
    falls = [(end or 0, s) for _, end, s in schedule.spans() if s.phase is Phase.DECAY and s.shape != "constant"]
    end, fall = next((fall for fall in falls if fall[0] > start), falls[-1] if falls else (0, None))
    if fall and fall.shape not in DECAYS:
        raise ScheduleError(f"transformers has no {fall.shape} decay")
    return end, fall


def _differs_at(one: Schedule, other: Schedule, start: int, stop: int) -> int | None:
    """The first update from `start` to `stop` - 1 whose lr differs."""
    pairs = zip(one.multipliers(start, stop), other.multipliers(start, stop), strict=True)
    return next((start + i for i, (a, b) in enumerate(pairs) if a != b), None)
