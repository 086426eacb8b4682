"""What is refused before the first step: a checkpoint, folder or length that is not that of the run asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_wsd.anew import check_named
from hf_wsd.checkpoint import check_checkpoint, saved_checkpoints
from hf_wsd.errors import CheckpointError, ResumeError, RunError, ScheduleError
from hf_wsd.job import Job
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.plan import Plan
from hf_wsd.sameness import Sameness, compare
from hf_wsd.schedule import Schedule
from hf_wsd.scheduler import WSDScheduler
from hf_wsd.segment import Phase
from hf_wsd.settings import Settings

logger = logging.get_logger(__name__)

_CALL_TRAIN = "Have it call trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)"


def refuse_checkpoint(scheduler: WSDScheduler, settings: Settings, job: Job) -> None:
    """Refuse a checkpoint that is not whole: Trainer goes on silently with a fresh optimizer and schedule.

    Raises:
        CheckpointError: files are missing or damaged. RunError: the script ignores its checkpoint, or a run is there.
    """
    if job.checkpoint is not None and check_named(job.checkpoint, settings) != job.step:
        raise RunError(
            f"the run starts at step {job.step}, not from {job.checkpoint}: the script ignores "
            f"--resume_from_checkpoint. {_CALL_TRAIN}"
        )
    own = saved_checkpoints(job.folder)
    if job.step in own:
        check_checkpoint(own[job.step])
    if job.step == 0 and any((path / RECORD).exists() for path in own.values()):
        raise RunError(
            f"{job.folder} holds a run already (checkpoints at {', '.join(map(str, own))}): resume it with "
            f"--resume_from_checkpoint {list(own.values())[-1]}, or choose another --output_dir"
        )
    if scheduler.steps_done != job.step:
        raise CheckpointError(
            f"the checkpoint is at step {job.step} but the schedule at step {scheduler.steps_done}: its "
            "optimizer or scheduler state is missing. Resume from a checkpoint that has both (saved without "
            "--save_only_model)"
        )


def refuse_folder(scheduler: WSDScheduler, settings: Settings, planned: Lineage | None, job: Job) -> None:
    """Refuse a branch in its trunk's folder, or whose script ignores its flags: it would overwrite the trunk.

    Raises:
        RunError: as said.
    """
    begun = job.step in saved_checkpoints(job.folder)
    if planned is None:
        if scheduler.intent == "branch" and begun:
            raise RunError("a branch in its trunk's own folder would mix the two: give it an --output_dir of its own")
        return
    folder = Path(str(settings.branch))
    if job.folder.resolve() != folder.resolve():
        raise RunError(
            f"the branch belongs into {folder} but the script writes to {job.folder}: it ignores --output_dir"
        )
    if job.step != planned.step and not begun:
        raise RunError(
            f"the branch starts at step {planned.step} but the script starts at step {job.step}: it ignores "
            f"--resume_from_checkpoint. {_CALL_TRAIN}"
        )


def refuse_intent(scheduler: WSDScheduler, intent: str, settings: Settings, job: Job) -> None:
    """Refuse a run that is not what `expect` says. What goes on with a branch is one too.

    Args:
        scheduler: its `intent` is what this job does with its checkpoint.
        intent: how the run began.
        settings: a branch of `hf-wsd decay` has its trunk's `expect`, which is not meant for it.
        job: what the script asked for.

    Raises:
        RunError: as said.
    """
    began_so = intent in ("branch", "extend") and settings.expect == intent
    if settings.branch or settings.expect in (None, scheduler.intent) or began_so:
        return
    from_checkpoint = f"the schedule asked for is that of the checkpoint at step {job.step}"
    why = {
        "start": "no checkpoint was loaded",
        "continue": from_checkpoint,
        "branch": f"{from_checkpoint} up to there, then a decay of its own",
        "extend": f"{from_checkpoint} up to there, and longer",
    }[scheduler.intent]
    raise RunError(
        f"--expect {settings.expect} (or HF_WSD_EXPECT), but this is '{scheduler.intent}': {why} ({scheduler.schedule})"
    )


def refuse_differences(scheduler: WSDScheduler, now: Lineage, before: Lineage | None, job: Job) -> Mapping[str, Any]:
    """What the run's records say of its sameness with the checkpoint's run, once nothing differs that is not allowed.

    Args:
        scheduler: knows what its own state and that of the checkpoint differ in, and what is allowed.
        now: the record of the run.
        before: that of the checkpoint, or the one with which a branch was planned; None where there is neither.
        job: what the script asked for.

    Raises:
        ResumeError: as said, with all that differs.
    """
    if scheduler.intent == "start":
        return {}
    sameness = (compare(before, now) if before else Sameness()) | scheduler.sameness
    sameness.check(now.intent, step=job.step, allow=scheduler.allow)
    if sameness.changes:
        logger.warning(f"hf_wsd: not the checkpoint's run any more, so not its bits: {sameness}")
    earlier = before.sameness if before and before.kind != "planned" and scheduler.intent != "branch" else {}
    if scheduler.intent != "branch" and not sameness.changes:
        return earlier
    known = before is not None and job.order_known
    return sameness.record(earlier, step=job.step, allow=scheduler.allow, known=known)


def with_decided_end(scheduler: WSDScheduler, job: Job) -> Job:
    """The job of a run that was asked for its decay while it was training: it ends where that decay does.

    Raises:
        RunError: the script stops before.
    """
    end = scheduler.schedule.total_steps or job.max_steps
    if job.max_steps < end:
        raise RunError(
            f"the run was asked for its decay at step {scheduler.decided}, which ends at step {end}, but the script "
            f"stops at step {job.max_steps}: give --{job.length_flag} {end}"
        )
    return replace(job, max_steps=end)


def refuse_decay_data(scheduler: WSDScheduler, before: Lineage | None, now: Mapping[str, Any]) -> None:
    """Refuse other data than that with which the decay was begun.

    Raises:
        ResumeError: as said.
    """
    in_decay = before is not None and before.step and scheduler.schedule.phase(before.step - 1) is Phase.DECAY
    if before is not None and in_decay and list(before.decay_data.values()) != list(now.values()):  # a file may move
        was, asked = (dict(data) or "the trunk's data" for data in (before.decay_data, now))
        raise ResumeError(f"the decay was begun with {was}, this run asks for {asked}: repeat its own command")


def find_last_step(schedule: Schedule, plan: Plan, job: Job) -> int:
    """Where the run stops: a trunk whose length nobody gave in steps, at its last fork point.

    Raises:
        RunError: nothing is left to train. ScheduleError: the schedule ends elsewhere than the run.
    """
    total, last_step = schedule.total_steps, job.max_steps
    if total is None and plan.decays and not job.length_given:
        last_step = plan.trunk_steps
    if job.step >= last_step:  # Trainer would make one more update and overwrite the checkpoint
        raise RunError(
            f"nothing is left to train: the checkpoint is at step {job.step} and the run ends at step "
            f"{last_step}, so its model is that of the checkpoint. Give a larger --{job.length_flag}, or another "
            "--output_dir"
        )
    if total is not None and total != last_step:
        raise ScheduleError(
            f"the schedule has {total} steps but the run has {last_step}: give --{job.length_flag} {total}"
        )
    return last_step
