"""The runs of which a plan consists: a trunk and its branches, one line of cycles, or separate runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hf_wsd.baselines import cosine, cyclic_cosine
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.plan import Plan, branch_name
from hf_wsd.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One run: from the checkpoint at step `start` (0: from the beginning) to step `end` on its schedule.

    >>> Leg(name="trunk", schedule=wsd(num_decay_steps=0), start=0, end=900).steps
    900
    """

    name: str
    schedule: Schedule
    start: int
    end: int

    @property
    def steps(self) -> int:
        """Updates that the run makes itself."""
        return self.end - self.start


def leg_to(end: int, legs: Sequence[Leg]) -> Leg:
    """The run that makes the model which ends at step `end`.

    >>> leg_to(1000, list(LEGS["wsd"]([1000, 2000], 0, {}))).name
    '900-1-sqrt-100'
    """
    return next(leg for leg in legs if leg.start < end <= leg.end and leg.name != "trunk")


def _trunk_and_branches(ends: list[int], warmup: int, decay: dict[str, Any]) -> Iterator[Leg]:
    length = {name: decay[name] for name in ("num_decay_steps", "decay_fraction") if name in decay}
    shape = {name: value for name, value in decay.items() if name not in length}
    plan = Plan.of_budgets([str(end) for end in ends], **length)
    trunk = wsd(num_warmup_steps=warmup, num_decay_steps=0, **shape)
    yield Leg(name="trunk", schedule=trunk, start=0, end=plan.trunk_steps)
    kind, params = shape.get("decay_type", "1-sqrt"), shape.get("decay_params")
    for one in plan.decays:
        final = shape.get("min_lr_ratio")
        schedule = trunk.fork(one.fork, decay_steps=one.steps, shape=kind, final=final, params=params)
        yield Leg(name=branch_name(one, kind, params), schedule=schedule, start=one.fork, end=one.end)


def _line(build: Callable[..., Schedule], ends: list[int], warmup: int, decay: dict[str, Any]) -> Iterator[Leg]:
    schedule = build(cycle_ends=ends, num_warmup_steps=warmup, **decay)
    yield Leg(name="line", schedule=schedule, start=0, end=ends[-1])


def _separate(ends: list[int], warmup: int, decay: dict[str, Any]) -> Iterator[Leg]:
    for end in ends:
        yield Leg(name=f"cosine-{end}", schedule=cosine(end, num_warmup_steps=warmup, **decay), start=0, end=end)


LEGS: dict[str, Callable[[list[int], int, dict[str, Any]], Iterator[Leg]]] = {
    "wsd": _trunk_and_branches,
    "wsd_s": partial(_line, wsd_s),
    "cosine": _separate,
    "cyclic_cosine": partial(_line, cyclic_cosine),
}
METHODS = tuple(LEGS)
