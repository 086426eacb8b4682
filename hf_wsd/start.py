"""What a run is, worked out before its first step: refused if it is not the one asked for, else a `Start`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_wsd.asked import add_asked, setting
from hf_wsd.casts import cast
from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.command import capture_command
from hf_wsd.errors import ScheduleError, WSDError
from hf_wsd.job import Job
from hf_wsd.keeper import package_versions
from hf_wsd.lengths import to_steps
from hf_wsd.lineage import RECORD, Lineage, Parent
from hf_wsd.plan import Plan, read_budgets
from hf_wsd.randomness import unchanged_randomness
from hf_wsd.refusals import find_last_step, refuse_checkpoint, refuse_folder
from hf_wsd.samples import UNKNOWN, Samples, take_samples
from hf_wsd.schedule import Schedule
from hf_wsd.scheduler import WSDScheduler
from hf_wsd.settings import Settings

logger = logging.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run as it begins.

    Args:
        record: what the records of all its checkpoints share.
        plan: the decays that its budgets ask for.
    """

    record: Lineage
    plan: Plan

    @cached_property
    def kinds(self) -> dict[int, str]:
        """The steps whose checkpoints are kept for good, and why."""
        forks = {decay.fork: "fork" for decay in self.plan.decays}
        return {self.last_step: "end"} | forks | self.schedule.checkpoint_steps()

    @cached_property
    def budget_ends(self) -> frozenset[int]:
        """Where decayed models will end: the trunk's losses there are what theirs are compared with."""
        return frozenset(decay.end for decay in self.plan.decays)

    @property
    def last_step(self) -> int:
        """Where the run stops."""
        return self.record.last_step or 0

    @property
    def schedule(self) -> Schedule:
        """The schedule of the run."""
        return self.record.schedule

    @property
    def announcement(self) -> str:
        """What the run is, in a line, and the fork points that it keeps."""
        kept = f"\nhf_wsd: fork points that are kept\n{self.plan}" if self.plan.decays else ""
        return f"hf_wsd: {self.record.intent} at step {self.record.step}: {self.schedule}{kept}"


def start_run(scheduler: WSDScheduler, settings: Settings, job: Job, *, model: Any, dataset: Any) -> Start:
    """The `Start` of a run whose scheduler, model and data stand ready.

    Args:
        scheduler: at the step that the run starts from.
        settings: of the launcher or the environment.
        job: what the script asked for.
        model: its trainable parameters are counted.
        dataset: some of its samples are read, for a fingerprint and the tokens of a step.

    Raises:
        WSDError: the checkpoint, the length, the folder or the budgets do not fit; nothing has been trained.
    """
    planned = Lineage.read(Path(settings.branch)) if settings.branch else None
    refuse_checkpoint(scheduler, job)
    refuse_folder(scheduler, settings, planned, job)
    with unchanged_randomness():  # a dataset may draw random numbers to make a sample
        samples = take_samples(dataset)
    tokens_per_step = settings.tokens_per_step or _tokens_per_step(samples, job)
    samples_per_step = settings.samples_per_step or job.samples_per_step
    per_step = {"tokens_per_step": tokens_per_step, "samples_per_step": samples_per_step}
    asked = _asked(settings, job, per_step)
    plan = _plan(scheduler.schedule, settings, asked, per_step, job)
    last_step = find_last_step(scheduler.schedule, plan, job)
    before = _record_before(job)
    intent, parent = _origin(scheduler, job, before=before, planned=planned)
    record = Lineage(
        step=job.step,
        kind="periodic",
        schedule=scheduler.schedule,
        last_step=last_step,
        intent=intent,
        parent=parent,
        group=_group(job, before or planned),
        requested=planned.requested if planned else None,
        tokens_per_step=tokens_per_step,
        tokens=before.tokens if before else None,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad) if model is not None else None,
        peak_lrs=tuple(scheduler.peak_lrs),
        losses=before.losses if before else {},
        setup=job.setup,
        settings=asked,
        data=samples.fingerprint,
        skipped_updates=before.skipped_updates if before else 0,
        calls_per_update=scheduler.calls_per_update,
        command=capture_command(job.world_size, job.length_flag),
        versions=package_versions(),
    )
    if before is not None and (differences := _changes(before, record)):
        logger.warning(f"hf_wsd: not the same run as the checkpoint's, so not the same bits: {', '.join(differences)}")
    return Start(record=record, plan=plan)


def _plan(schedule: Schedule, settings: Settings, asked: dict[str, Any], per_step: dict[str, Any], job: Job) -> Plan:
    """The decays that the budgets name, which an error repeats."""
    try:
        return _fitting_plan(schedule, settings, asked, per_step, job)
    except WSDError as error:
        add_asked(error, [setting("budgets", settings.budgets)] if settings.budgets else [])
        raise


def _fitting_plan(
    schedule: Schedule, settings: Settings, asked: dict[str, Any], per_step: dict[str, Any], job: Job
) -> Plan:
    """The decays of the budgets; those of a branch, or of the run itself, need no fork point."""
    ends, whole = read_budgets(() if settings.branch else settings.budgets, **per_step)
    budgets = [budget for end, budget in ends.items() if end != schedule.total_steps]
    length = {name: asked.get(name) for name in ("num_decay_steps", "decay_fraction")}
    plan = Plan.of_budgets(budgets, **per_step, of=str(whole) if whole else None, **length)
    for decay in plan.decays:
        schedule.fork(decay.fork, decay_steps=decay.steps)  # refuses a fork in the warm-up or in a decay
        if decay.fork < job.step and decay.fork not in saved_checkpoints(job.folder):
            raise ScheduleError(
                f"budget {decay.requested} needs a checkpoint at step {decay.fork}, which is past (step "
                f"{job.step}) and was not saved: leave the budget out"
            )
    if plan.trunk_steps > job.max_steps:
        raise ScheduleError(
            f"the budgets need a trunk of {plan.trunk_steps} steps, but the run ends at step {job.max_steps}: give "
            f"--{job.length_flag} {plan.trunk_steps}, more epochs, or smaller budgets"
        )
    return plan


def _tokens_per_step(samples: Samples, job: Job) -> int | None:
    if samples.tokens_per_sample is None or job.samples_per_step is None:
        return None
    return samples.tokens_per_sample * job.samples_per_step


def _origin(
    scheduler: WSDScheduler, job: Job, *, before: Lineage | None, planned: Lineage | None
) -> tuple[str, Parent | None]:
    """How the run began, and the checkpoint that it left."""
    if planned is not None:
        return "branch", planned.parent
    if scheduler.intent == "continue" and before is not None:
        return before.intent, before.parent
    return scheduler.intent, _parent(job) if scheduler.intent in ("branch", "extend") else None


def _group(job: Job, before: Lineage | None) -> str:
    """What trackers call the family: the trunk's name."""
    return (before.group if before else "") or job.name or job.folder.resolve().name


def _record_before(job: Job) -> Lineage | None:
    """The record of the checkpoint that the run goes on from, wherever it lies."""
    found = [folder for folder in (job.checkpoint, job.own_checkpoint) if folder and (folder / RECORD).exists()]
    return Lineage.read(found[0]) if found and job.step else None


def _asked(settings: Settings, job: Job, per_step: dict[str, Any]) -> dict[str, Any]:
    """The settings of all sources, as defaults of the decays to come; 0 decay steps say no more than trunk.

    The decay's length is kept in steps: 10 % of the longest budget (without budgets: of the run) stays what it is.
    """
    asked = {name: cast(name, value) for name, value in job.kwargs.items()} | settings.given()
    if "num_decay_steps" in asked:
        whole = read_budgets(settings.budgets, **per_step)[1] if settings.trunk else None
        asked["num_decay_steps"] = to_steps(asked["num_decay_steps"], **per_step, of=whole or job.max_steps)
    return {name: value for name, value in asked.items() if (name, value) != ("num_decay_steps", 0)}


def _changes(before: Lineage, now: Lineage) -> list[str]:
    """What differs between the run of a checkpoint and the run that goes on from it, by name."""
    names = before.setup.keys() & now.setup.keys()
    found = [f"{n} {before.setup[n]} -> {now.setup[n]}" for n in sorted(names) if before.setup[n] != now.setup[n]]
    if UNKNOWN not in (before.data, now.data) and before.data != now.data:
        found.append(f"training data {before.data} -> {now.data}")
    return found


def _parent(job: Job) -> Parent:
    known = "unknown" if job.checkpoint is None else os.path.relpath(job.checkpoint, job.folder)
    return Parent(checkpoint=known, step=job.step)
