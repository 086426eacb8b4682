"""From a trunk's checkpoint to a decay branch: what is planned, the checks, and the branch's record.

A branch is a run of the trunk's own command with another --output_dir, --max_steps and --resume_from_checkpoint; its
schedule is in the record that waits in its folder, which HF_WSD_BRANCH names. No torch: a login node can prepare it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from hf_wsd.casts import show_numbers
from hf_wsd.checkpoint import check_checkpoint, newest_whole, step_in_name
from hf_wsd.command import scrub_arguments
from hf_wsd.decision import decay_shape
from hf_wsd.errors import ForkError, RunError
from hf_wsd.family import Run, read_run
from hf_wsd.lengths import show_tokens
from hf_wsd.lineage import BRANCHES, RECORD, Lineage, Parent
from hf_wsd.mending import refuse_damage
from hf_wsd.plan import Decay, Plan, branch_name
from hf_wsd.sameness import check_names
from hf_wsd.segment import Phase
from hf_wsd.settings import Settings

_OWN_ARGUMENTS = ("output_dir", "resume_from_checkpoint", "max_steps", "max_train_steps", "num_train_epochs")
_LONGEST_NAME = 120
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch that is ready to run: its folder, and the record that is (or will be) in it.

    Args:
        folder: where it runs.
        record: schedule, parent, requested budget; `step` is the fork point.
        checkpoint: what it resumes from: the fork point, or its own newest checkpoint.
        finished: whether it has reached its end.
        damage: what is wrong with newer checkpoints that had to be passed over.
    """

    folder: Path
    record: Lineage
    checkpoint: Path
    finished: bool = False
    damage: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """The step at which the model ends."""
        return self.record.last_step or 0

    def __str__(self) -> str:
        per_step = self.record.tokens_per_step
        fork, end = (
            (step, show_tokens(step * per_step if per_step else None)) for step in (self.record.step, self.end)
        )
        return (
            f"{self.folder.name}: decay from step {fork[0]} ({fork[1]} tokens), the model ends at step {end[0]} "
            f"({end[1]} tokens)"
        )


def fork(
    run: Run | Path | str,
    decay: Decay,
    *,
    decay_type: str = "1-sqrt",
    decay_params: Mapping[str, float] | None = None,
    final: float | None = None,
    name: str | None = None,
    arguments: Sequence[str] = (),
    optimizer: Mapping[str, float] | None = None,
    allow: Iterable[str] = (),
) -> Branch:
    """The branch of a run for one decay; nothing is written.

    Args:
        run: the trunk (or its folder).
        decay: fork point and end, in steps; see `Plan`.
        decay_type: a key of `SHAPES`, or `pkg.module:function`.
        decay_params: parameters of the shape.
        final: multiplier at the end of the decay, in [0, 1]; None is the shape's own end, else 0.
        name: the branch's folder name; "<fork>-<shape>-<decay steps>", and what else it changes, if None.
        arguments: further arguments of its script.
        optimizer: settings of the optimizer in the decay.
        allow: names of differences to the trunk that are meant; see `hf_wsd.sameness.NAMES`.

    Raises:
        ForkError: the fork point is in the warm-up or a decay, past the end, or has no checkpoint.
        CheckpointError: its checkpoint lacks something that an exact branch needs.
        RunError: another branch has that name already, or the arguments are the branch's own business.
    """
    _refuse_arguments(arguments)
    run = run if isinstance(run, Run) else read_run(run)
    latest = run.latest
    schedule = latest.schedule.fork(
        decay.fork, decay_steps=decay.steps, shape=decay_type, final=final, params=decay_params
    )
    if decay.fork not in run.checkpoints:
        raise ForkError(_no_checkpoint(run, decay))
    parent = run.checkpoints[decay.fork]
    check_checkpoint(parent)
    record = run.records.get(decay.fork) or Lineage.read(parent)  # refuses a checkpoint without a record
    name = name or _branch_name(branch_name(decay, decay_type, decay_params), arguments, optimizer or {})
    folder = run.path / BRANCHES / name
    planned = replace(
        record,
        kind="planned",
        schedule=schedule,
        last_step=decay.end,
        intent="branch",
        parent=Parent(checkpoint=os.path.relpath(parent, folder), step=decay.fork),
        requested=str(decay.requested) if decay.requested else None,
        losses={},
        decay_data={},
        arguments=tuple(arguments),
        command=record.command or latest.command,  # what was fetched from a hub has none
        optimizer=dict(optimizer or {}),
        sameness={"allowed": sorted(check_names(allow))} if allow else {},
    )
    return continued(Branch(folder=folder, record=planned, checkpoint=parent))


def fork_all(
    run: Run,
    plan: Plan,
    *,
    decay_type: str | None = None,
    decay_params: Mapping[str, float] | None = None,
    min_lr_ratio: float | None = None,
    name: str | None = None,
    arguments: Sequence[str] = (),
    optimizer: Mapping[str, float] | None = None,
    allow: Iterable[str] = (),
    control: bool = False,
) -> list[Branch]:
    """The branches of a plan; shape, minimum and optimizer are those the trunk (or the line) was started with.

    Args:
        run, decay_type, decay_params, name, arguments, optimizer, allow: as in `fork`.
        plan: fork points and ends.
        min_lr_ratio: lr at the end of a decay / peak lr.
        control: with each branch the one without its arguments and settings of the optimizer, to compare it with.

    Raises:
        RunError: one name for several branches, or a control of nothing. WSDError: as in `fork`.
    """
    if control and not (arguments or optimizer):
        raise RunError(
            "--control trains the same decay without what is changed in it, but nothing is: give --optimizer, or "
            "arguments of the script after --, such as -- --decay_dataset code.jsonl"
        )
    if name is not None and len(plan.decays) > 1:
        raise RunError(f"--name {name} names one branch, but {len(plan.decays)} are asked for: name them one by one")
    settings, schedule = run.latest.settings, run.latest.schedule
    found = decay_shape(schedule, settings, decay_type=decay_type, decay_params=decay_params, min_lr_ratio=min_lr_ratio)
    shape: dict[str, Any] = {"decay_type": found["shape"], "decay_params": found["params"], "final": found["final"]}
    own_optimizer = settings.get("decay_optimizer")
    kinds: list[dict[str, Any]] = [
        {"name": name, "arguments": arguments, "optimizer": optimizer or own_optimizer},
    ]
    if control:
        kinds.append({"name": name and f"{name}-control", "optimizer": own_optimizer})
    branches = (fork(run, decay, **shape, **kind, allow=allow) for decay in plan.decays for kind in kinds)
    return list({branch.folder: branch for branch in branches}.values())  # 2M and its number of steps are one branch


def _refuse_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that the branch itself sets, and secrets, which a record must not keep."""
    for word in arguments:
        flag = word.partition("=")[0].lstrip("-").replace("-", "_")
        if word.startswith("-") and flag in _OWN_ARGUMENTS:
            raise RunError(f"{word} after --: a branch has its own. Its length is --budgets or --at, its folder --name")
    if tuple(arguments) != scrub_arguments(arguments):
        raise RunError("a secret after -- would be written into the branch's record: put it into the environment")
    if arguments and not arguments[0].startswith("-"):
        raise RunError(
            f"{arguments[0]}: no flag. Arguments of the script follow --, as in -- --decay_dataset code.jsonl"
        )


def _branch_name(name: str, arguments: Sequence[str], optimizer: Mapping[str, float]) -> str:
    """The name with what the branch changes: values without their flags, files without their folders."""
    words = [os.path.basename(word) for word in arguments if not word.startswith("--")] or list(arguments)
    words += [show_numbers(optimizer)] if optimizer else []
    return "-".join([name, *(re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-.") for word in words)])[:_LONGEST_NAME]


def continued(branch: Branch) -> Branch:
    """The branch where its folder has left it: new, begun or finished."""
    if not (branch.folder / RECORD).exists():
        return branch
    begun = Lineage.read(branch.folder)
    for was, asked in zip(_identity(begun), _identity(branch.record), strict=True):
        if was != asked:
            raise RunError(
                f"{branch.folder} is another branch already ({was or 'nothing changed'}; asked: "
                f"{asked or 'nothing changed'}): give this one a --name of its own"
            )
    begun = replace(begun, sameness={**begun.sameness, **branch.record.sameness})  # the first try may have been refused
    newest, damage = newest_whole(branch.folder)
    refuse_damage(damage, Settings.from_env().on_damage)
    finished = newest is not None and step_in_name(newest) == branch.end
    checkpoint = newest or branch.checkpoint
    return replace(branch, record=begun, checkpoint=checkpoint, finished=finished, damage=tuple(damage))


def _identity(record: Lineage) -> tuple[object, ...]:
    """What a branch is, beside its place."""
    return record.schedule, shlex.join(record.arguments), show_numbers(record.optimizer)


def _no_checkpoint(run: Run, decay: Decay) -> str:
    stable = [s for s in run.checkpoints if run.latest.schedule.phase(s - 1) is not Phase.DECAY]
    asked = f"budget {decay.requested} ({decay.end} steps) needs" if decay.requested else "the fork needs"
    if not stable:
        return f"{asked} the checkpoint at step {decay.fork}, but {run.path} has no checkpoint to fork from"
    nearest = min(stable, key=lambda s: abs(s - decay.fork))
    return (
        f"{asked} the checkpoint at step {decay.fork}, which was not saved. Saved: {', '.join(map(str, stable))}. "
        f"Nearest: --at {nearest}. (A trunk started with --budgets saves them by itself.)"
    )


def prepare(branch: Branch) -> None:
    """Write the branch's record into its folder: from now on it can be started, and started again."""
    branch.folder.mkdir(parents=True, exist_ok=True)
    if not (branch.folder / RECORD).exists() or Lineage.read(branch.folder).sameness != branch.record.sameness:
        branch.record.write(branch.folder)


def plan_decays(
    run: Run,
    *,
    budgets: Iterable[str] = (),
    at: Iterable[int | str] = (),
    num_decay_steps: int | str | None = None,
    decay_fraction: float | None = None,
) -> Plan:
    """The decays asked for; where nothing is said, the budgets and decay length that the trunk was started with.

    Raises:
        ForkError: neither budgets nor fork points are known. ScheduleError: lengths that do not fit.
    """
    latest = run.latest
    if num_decay_steps is None and decay_fraction is None:
        num_decay_steps = latest.settings.get("num_decay_steps")
        decay_fraction = latest.settings.get("decay_fraction")
    budgets, at = list(budgets), list(at)
    if not budgets and not at:
        budgets = list(latest.settings.get("budgets", ()))
    if not budgets and not at:
        raise ForkError(
            "say which decayed models you want: --budgets 1B 2B (tokens or steps of the decayed model), or --at STEP "
            f"(checkpoints: {', '.join(map(str, run.checkpoints))})"
        )
    length: dict[str, Any] = {
        "tokens_per_step": latest.tokens_per_step,
        "samples_per_step": samples_per_step(latest),
        "num_decay_steps": num_decay_steps,
        "decay_fraction": decay_fraction,
    }
    plan = Plan.of_budgets(budgets, **length)
    forks = Plan.of_forks(at, **length)
    return replace(plan, decays=plan.decays + forks.decays)


def samples_per_step(record: Lineage) -> int | None:
    """Samples of one update over all processes; None where nobody knows."""
    if asked := record.settings.get("samples_per_step"):
        return int(asked)
    parts = [part for name in _BATCH if isinstance(part := record.setup.get(name), int)]
    return prod(parts) if len(parts) == len(_BATCH) else None
