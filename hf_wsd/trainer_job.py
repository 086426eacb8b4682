"""A `Trainer`'s arguments and state as a `Job`, and what of them no WSD run can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_wsd.errors import RunError, ScheduleError
from hf_wsd.job import Job
from hf_wsd.schedule import Schedule


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
        setup=_setup(args),
        samples_per_step=int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size),
        name=args.run_name or None,
    )


def _setup(args: TrainingArguments) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "world_size": args.world_size,
        "seed": args.seed,
        "data_seed": args.data_seed,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "threads": torch.get_num_threads(),
    }


def refuse_trainer_arguments(schedule: Schedule, args: TrainingArguments, state: TrainerState) -> None:
    """Refuse arguments with which the run would not be the one asked for, or would lose its fork points.

    Raises:
        ScheduleError: the warm-up of a trunk as a part of its length. RunError: ways of saving that drop fork points.
    """
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
