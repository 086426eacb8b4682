"""A `Trainer`'s arguments and state as a `Job`, and what of them no WSD run can have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.integrations.deepspeed import deepspeed_config
from transformers.trainer_utils import SaveStrategy

from hf_wsd.by_name import NAMES, refuse_ignored_settings
from hf_wsd.decision import Decision
from hf_wsd.errors import RunError, ScheduleError, SettingsError
from hf_wsd.job import Job
from hf_wsd.machine import machine_setup
from hf_wsd.schedule import Schedule
from hf_wsd.settings import Settings


def trainer_job(args: TrainingArguments, state: TrainerState) -> Job:
    """The `Job` of a Trainer that is about to train."""
    named = args.resume_from_checkpoint
    return Job(
        folder=Path(args.output_dir),
        step=state.global_step,
        max_steps=int(state.max_steps),
        length_given=args.max_steps > 0,
        checkpoint=Path(named) if isinstance(named, str) and Path(named).is_dir() else None,
        kwargs=args.lr_scheduler_kwargs if isinstance(args.lr_scheduler_kwargs, dict) else {},
        setup=_setup(args, resumed=state.global_step > 0),
        samples_per_step=int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size),
        name=args.run_name or None,
    )


def _setup(args: TrainingArguments, *, resumed: bool) -> dict[str, Any]:
    configured = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # by `accelerate launch`
    return {
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "world_size": args.world_size,
        "seed": args.seed,
        "data_seed": args.data_seed,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32" if configured == "no" else configured,
        "max_grad_norm": args.max_grad_norm,
        "label_smoothing_factor": args.label_smoothing_factor,
        "ignore_data_skip": args.ignore_data_skip and resumed,
        "dataloader_num_workers": args.dataloader_num_workers,
        "torch_compile": args.torch_compile,
    } | machine_setup(args.device, main=args.process_index == 0)


def reach_decided_end(args: TrainingArguments) -> None:
    """Have a Trainer that is being made train as far as the decay that its run was asked for, if that goes further.

    Its epochs are counted from `max_steps`: a decay that passes them would silently stop early.
    """
    decision = None if Settings.from_env().branch else Decision.read(Path(args.output_dir))
    if decision is not None and decision.stops_first:
        args.max_steps = max(args.max_steps, decision.end)


def refuse_trainer_arguments(
    schedule: Schedule, args: TrainingArguments, state: TrainerState, settings: Settings
) -> None:
    """Refuse arguments with which the run would not be the one asked for, or would lose its fork points.

    Raises:
        ScheduleError: the warm-up of a trunk as a part of its length. RunError: ways of saving that drop fork points.
        SettingsError: a setting for scripts without a Trainer.
    """
    if settings.calls_per_update is not None:
        raise SettingsError("calls_per_update is for scripts without a Trainer: leave it out")
    trunk = schedule.total_steps is None
    if trunk and 0 < args.warmup_steps < 1:
        raise ScheduleError(
            f"a trunk has no length of which {args.warmup_steps:g} could be the warm-up: it would move with max_steps. "
            f"Give --warmup_steps as a number of steps, for example {args.get_warmup_steps(state.max_steps)}"
        )
    if args.save_strategy == SaveStrategy.BEST:
        raise RunError(
            "--save_strategy best decides after each evaluation what is saved, and would drop fork points: use steps, "
            "epoch or no (fork points and decay ends are saved with each of them)"
        )
    if trunk and args.save_only_model:
        raise RunError("--save_only_model leaves out the optimizer state: no branch could leave this trunk. Drop it")


def set_state(args: TrainingArguments, state: TrainerState, *, last_step: int, new_run: bool) -> None:
    """Give a Trainer's state what a resume would keep of the checkpoint's: the intervals, and a trunk's best model.

    Args:
        args: have the intervals.
        state: of the Trainer that is about to train.
        last_step: where the run stops.
        new_run: the trunk's best model says nothing about it, and could displace its own.
    """
    state.max_steps = last_step
    state.compute_steps(args, last_step)
    if new_run:
        state.best_metric = state.best_model_checkpoint = state.best_global_step = None
        state.log_history = []


def refuse_other_scheduler(args: TrainingArguments, lr_scheduler: Any, settings: Settings) -> None:
    """Refuse a run that asks for one of our schedules, or settings of one, where another scheduler sets the lr.

    Args:
        args: the Trainer's arguments.
        lr_scheduler: the scheduler in use, which is none of ours; None where it is not known.
        settings: of the launcher or the environment.

    Raises:
        SettingsError: one of ours was asked for, or a setting that would be ignored.
    """
    asked = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if asked not in NAMES or lr_scheduler is None:
        return refuse_ignored_settings(settings, asked)
    if section := (deepspeed_config() or {}).get("scheduler"):
        file = args.deepspeed if isinstance(args.deepspeed, str) else os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        raise SettingsError(
            f'--lr_scheduler_type {asked} would be ignored: DeepSpeed sets the lr by the section "scheduler" '
            f"({section.get('type')}) of its config {file or '(a dict)'}. Delete that section"
        )
    kind = type(getattr(lr_scheduler, "scheduler", lr_scheduler)).__name__
    raise SettingsError(
        f"--lr_scheduler_type {asked} would be ignored: the script trains with a {kind} of its own. Let Trainer make "
        f"the scheduler, make it with hf_wsd.get_scheduler, or leave --lr_scheduler_type {asked} out"
    )
