"""Settings of the optimizer that change with the decay, such as beta2 and weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from hf_wsd.casts import show_numbers
from hf_wsd.errors import ResumeError, SettingsError, unknown
from hf_wsd.lineage import Lineage
from hf_wsd.scheduler import WSDScheduler, torch_optimizer
from hf_wsd.segment import Phase

Groups = Sequence[dict[str, Any]]
_BETA = "beta"


def use_in_decay(scheduler: WSDScheduler, asked: Mapping[str, float], before: Lineage | None) -> dict[str, float]:
    """Have the optimizer take these settings with the first update of the decay; returns them for the record.

    They are set right before that update: the checkpoint of the fork point has the trunk's, for other branches.

    Args:
        scheduler: of the run; a decay that is asked of a running job begins when its schedule says so.
        asked: settings by name, as in the optimizer's parameter groups; a beta by its number, beta2.
        before: the record of the checkpoint that the run goes on from.

    Raises:
        SettingsError: a name or value that the optimizer cannot have. ResumeError: the decay began with others.
    """
    if before is not None and dict(before.optimizer) != dict(asked) and _decays_at(scheduler, before.step - 1):
        raise ResumeError(
            f"the decay was begun with {show_numbers(before.optimizer) or 'the optimizer as it was'}, this run asks "
            f"for {show_numbers(asked) or 'nothing of the kind'}: repeat the decay's own command"
        )
    if not asked:
        return {}
    begins = [step for step, kind in scheduler.schedule.checkpoint_steps().items() if kind == "pre-decay"]
    if len(begins) > 1:
        raise SettingsError(
            f"{show_numbers(asked)}: the line has {len(begins)} decays, and what goes on after each would have "
            "them too. Train a trunk, then its branches: hf-wsd decay RUN --optimizer ..."
        )
    optimizer = torch_optimizer(scheduler.optimizer)
    check_overrides(optimizer.param_groups, asked)

    def before_update(*_: Any) -> None:
        if _decays_at(scheduler, scheduler.steps_done):
            override(optimizer.param_groups, asked)

    optimizer.register_step_pre_hook(before_update)
    return dict(asked)


def _decays_at(scheduler: WSDScheduler, update: int) -> bool:
    return update >= 0 and scheduler.schedule.phase(update) is Phase.DECAY


def check_overrides(groups: Groups, asked: Mapping[str, float]) -> None:
    """Refuse what an optimizer with these parameter groups cannot take.

    Raises:
        SettingsError: an unknown name, a value out of its range, or a weight decay where no group has any.
    """
    known = list(dict.fromkeys(name for group in groups for name in _numbers(group)))
    for name, value in asked.items():
        if name in ("lr", "initial_lr"):
            raise SettingsError(f"{name}={value}: the lr is the schedule's. Give the decay another shape")
        if name not in known:
            raise SettingsError(unknown("setting of the optimizer", name, known))
        below_1 = name.startswith(_BETA) or name == "momentum"
        if not isfinite(value) or value < 0 or (below_1 and value >= 1):
            raise SettingsError(f"{name}={value}: it must be at least 0{' and below 1' if below_1 else ''}")
    if asked.get("weight_decay") and not any(group.get("weight_decay") for group in groups):
        raise SettingsError(
            f"weight_decay={asked['weight_decay']}: no parameter group has a weight decay, so nobody could tell "
            "which should get one. Train with --weight_decay above 0"
        )


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    """What can be set in a group, by name; the betas one by one."""
    betas = {f"{_BETA}{nth}": beta for nth, beta in enumerate(group.get("betas", ()), start=1)}
    numbers = {name: value for name, value in group.items() if type(value) in (int, float)}
    return {name: value for name, value in (betas | numbers).items() if name not in ("lr", "initial_lr")}


def override(groups: Groups, asked: Mapping[str, float]) -> None:
    """Set the groups' settings; a weight decay only where there is one: vectors keep their 0."""
    for group in groups:
        for name, value in asked.items():
            if name == "weight_decay" and not group.get(name):
                continue
            if name in group:
                group[name] = value
            elif name in _numbers(group):
                betas = list(group["betas"])
                betas[int(name.removeprefix(_BETA)) - 1] = value
                group["betas"] = tuple(betas)
