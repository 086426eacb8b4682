"""What a run is, worked out before its first step: refused if it is not the one asked for, else a `Start`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_wsd.anew import begin_anew
from hf_wsd.asked import add_asked, setting
from hf_wsd.casts import cast
from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.command import capture_command
from hf_wsd.decision import Decision
from hf_wsd.errors import ScheduleError, WSDError
from hf_wsd.job import Job
from hf_wsd.keeper import package_versions
from hf_wsd.lengths import to_steps
from hf_wsd.lineage import RECORD, Lineage, Parent
from hf_wsd.model_size import count_parameters
from hf_wsd.moved import remaining, rewound_run
from hf_wsd.overrides import use_in_decay
from hf_wsd.plan import Plan, read_budgets
from hf_wsd.randomness import unchanged_randomness
from hf_wsd.refusals import (
    find_last_step,
    refuse_checkpoint,
    refuse_decay_data,
    refuse_differences,
    refuse_folder,
    refuse_intent,
    with_decided_end,
)
from hf_wsd.samples import Samples, take_samples
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
        decision: a decay that was asked of the run while it was training.
    """

    record: Lineage
    plan: Plan
    decision: Decision | None = None

    def follow(self, decision: Decision) -> Start:
        """The run with a decay that it was asked for: as its own end, or as a branch that leaves it."""
        if decision.then == "continue":
            decays = (*self.plan.decays, decision.decay)
            return replace(self, plan=replace(self.plan, decays=decays), decision=decision)
        decays = tuple(decay for decay in self.plan.decays if decay.fork <= decision.fork)
        record = replace(
            self.record,
            schedule=decision.schedule,
            last_step=decision.end,
            decided={"fork": decision.fork, "by": decision.by},
        )
        return replace(self, record=record, plan=replace(self.plan, decays=decays), decision=decision)

    @cached_property
    def kinds(self) -> dict[int, str]:
        """The steps whose checkpoints are kept for good, and why."""
        every = self.record.settings.get("keep_every")
        kept = dict.fromkeys(range(every, self.last_step, every), "kept") if every else {}
        forks = {decay.fork: "fork" for decay in self.plan.decays}
        return kept | {self.last_step: "end"} | forks | self.schedule.checkpoint_steps()

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
    rewound = rewound_run(planned, job)
    decision = None if planned and not rewound else Decision.read(job.folder)
    if decision is not None and decision.then == "stop" and scheduler.decided is None:
        scheduler.decide(decision.schedule, decision.fork)
    if scheduler.decided is not None:  # the end that the script asks for is not the run's any more
        job = with_decided_end(scheduler, job)
    begin_anew(scheduler, settings, job)
    refuse_checkpoint(scheduler, settings, job)
    refuse_folder(scheduler, settings, planned, job)
    with unchanged_randomness():  # a dataset may draw random numbers to make a sample
        samples = take_samples(dataset)
    per_step = _per_step(settings, samples, job)
    asked = dict(rewound.settings) if rewound and planned else _asked(settings, job, per_step)
    plan = _plan(scheduler, settings, asked, per_step, job, rewound)
    if rewound and "budgets" in asked:
        asked["budgets"] = [str(decay.requested) for decay in plan.decays]
    last_step = find_last_step(scheduler.schedule, plan, job)
    before = _record_before(job)
    intent, parent = _origin(scheduler, job, before=before, planned=planned or rewound)
    refuse_intent(scheduler, intent, settings, job)
    overrides = planned.optimizer if planned else settings.decay_optimizer or {}
    decay_data = getattr(dataset, "decay_data", {})
    refuse_decay_data(scheduler, before, decay_data)
    record = _record(
        scheduler,
        job,
        {"before": before, "planned": planned, "rewound": rewound},
        last_step=last_step,
        intent=intent,
        parent=parent,
        tokens_per_step=per_step["tokens_per_step"],
        **count_parameters(model),
        settings=asked,
        data=samples.fingerprint,
        decay_data=decay_data,
        optimizer=use_in_decay(scheduler, overrides, before),
    )
    sameness = refuse_differences(scheduler, record, before or planned, job)
    start = Start(record=replace(record, sameness=sameness), plan=plan)
    return start if decision is None else start.follow(decision)


def _plan(
    scheduler: WSDScheduler,
    settings: Settings,
    asked: dict[str, Any],
    per_step: dict[str, Any],
    job: Job,
    rewound: Lineage | None,
) -> Plan:
    """The decays that the budgets name, which an error repeats."""
    try:
        return _fitting_plan(scheduler, settings, asked, per_step, job, rewound)
    except WSDError as error:
        add_asked(error, [setting("budgets", settings.budgets)] if settings.budgets else [])
        raise


def _fitting_plan(
    scheduler: WSDScheduler,
    settings: Settings,
    asked: dict[str, Any],
    per_step: dict[str, Any],
    job: Job,
    rewound: Lineage | None,
) -> Plan:
    """The decays of the budgets; those of a branch, or of the run itself, need no fork point."""
    schedule, decided = scheduler.schedule, scheduler.decided
    texts = asked.get("budgets", ()) if rewound else () if settings.branch else settings.budgets
    ends, whole = read_budgets(texts, **per_step)
    budgets = [budget for end, budget in ends.items() if end != schedule.total_steps]
    length = {name: asked.get(name) for name in ("num_decay_steps", "decay_fraction")}
    plan = Plan.of_budgets(budgets, **per_step, of=str(whole) if whole else None, **length)
    if decided is not None:
        plan = replace(plan, decays=tuple(decay for decay in plan.decays if decay.fork <= decided))
    plan = remaining(plan, rewound)
    for decay in plan.decays:
        schedule.fork(decay.fork, decay_steps=decay.steps)  # refuses a fork in the warm-up or in a decay
    plan = _without_lost(plan, job)
    if plan.trunk_steps > job.max_steps:
        raise ScheduleError(
            f"the budgets need a trunk of {plan.trunk_steps} steps, but the run ends at step {job.max_steps}: give "
            f"--{job.length_flag} {plan.trunk_steps}, more epochs, or smaller budgets"
        )
    return plan


def _without_lost(plan: Plan, job: Job) -> Plan:
    """The plan without decays whose fork points could not be saved, which is told; what is new must not be too late."""
    saved, before = saved_checkpoints(job.folder), _record_before(job)
    lost = [decay for decay in plan.decays if decay.fork <= job.step and decay.fork not in saved]
    for decay in lost:
        why = (
            f"budget {decay.requested} needs a checkpoint at step {decay.fork}, which is past (step {job.step}) and "
            "was not saved: leave the budget out"
        )
        if before is None or str(decay.requested) not in before.settings.get("budgets", ()):
            raise ScheduleError(why)
        logger.warning(f"hf_wsd: {why}, or decay from the nearest checkpoint (hf-wsd decay {job.folder} --at STEP)")
    return replace(plan, decays=tuple(decay for decay in plan.decays if decay not in lost))


def _per_step(settings: Settings, samples: Samples, job: Job) -> dict[str, int | None]:
    """Tokens and samples of an update: as the user says, else as counted."""
    known = samples.tokens_per_sample is not None and job.samples_per_step is not None
    counted = (samples.tokens_per_sample or 0) * (job.samples_per_step or 0) if known else None
    return {
        "tokens_per_step": settings.tokens_per_step or counted,
        "samples_per_step": settings.samples_per_step or job.samples_per_step,
    }


def _record(scheduler: WSDScheduler, job: Job, others: Mapping[str, Lineage | None], **worked_out: Any) -> Lineage:
    """The record of a run: what was worked out, what its job says, and what other records hand on to it."""
    before, planned = others["before"], others["planned"]
    return Lineage(
        step=job.step,
        kind="periodic",
        schedule=scheduler.schedule,
        group=_group(job, before or planned),
        requested=planned.requested if planned else None,
        tokens=before.tokens if before else None,
        peak_lrs=tuple(scheduler.peak_lrs),
        losses=before.losses if before else {},
        evaluation=before.evaluation if before else "unknown",
        setup=job.setup,
        arguments=planned.arguments if planned else (),
        moved_data=next((r.moved_data for r in (planned, others["rewound"], before) if r), ()),
        skipped_updates=before.skipped_updates if before else 0,
        calls_per_update=scheduler.calls_per_update,
        command=capture_command(job.world_size, job.length_flag),
        versions=package_versions(),
        **worked_out,
    )


def _origin(
    scheduler: WSDScheduler, job: Job, *, before: Lineage | None, planned: Lineage | None
) -> tuple[str, Parent | None]:
    """How the run began, and the checkpoint that it left."""
    if planned is not None:
        return planned.intent, planned.parent
    if scheduler.intent == "continue" and before is not None:
        return before.intent, before.parent
    return scheduler.intent, _parent(job, before) if scheduler.intent in ("branch", "extend") else None


def _group(job: Job, before: Lineage | None) -> str:
    """What trackers call the family: the trunk's name."""
    return (before.group if before else "") or job.name or job.folder.resolve().name


def _record_before(job: Job) -> Lineage | None:
    """The record of the checkpoint that the run goes on from, wherever it lies."""
    found = [folder for folder in (job.checkpoint, job.own_checkpoint) if folder and (folder / RECORD).exists()]
    return Lineage.read(found[0]) if found and job.step else None


def _asked(settings: Settings, job: Job, per_step: dict[str, Any]) -> dict[str, Any]:
    """The settings of all sources, as defaults of the decays to come; 0 decay steps say no more than trunk.

    Lengths are kept in steps: 10 % of the longest budget (without budgets: of the run) stays what it is.
    """
    asked = {name: cast(name, value) for name, value in job.kwargs.items()} | settings.given()
    if settings.branch:
        asked.pop("keep_every", None)  # the trunk's, for forks: nothing can leave a decay
    for name in asked.keys() & {"num_decay_steps", "keep_every"}:
        whole = read_budgets(settings.budgets, **per_step)[1] if settings.trunk else None
        asked[name] = to_steps(asked[name], **per_step, of=whole or job.max_steps)
    of_job = ("allow", "expect")
    return {name: v for name, v in asked.items() if name not in of_job and (name, v) != ("num_decay_steps", 0)}


def _parent(job: Job, before: Lineage | None) -> Parent:
    if before is not None and before.fetched_from is not None:
        return before.fetched_from
    known = "unknown" if job.checkpoint is None else os.path.relpath(job.checkpoint, job.folder)
    return Parent(checkpoint=known, step=job.step)
