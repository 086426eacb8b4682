"""A run that goes on from a model without optimizer state: the optimizer begins anew, steps and data do not."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging

from hf_wsd.checkpoint import check_checkpoint, weights_alone
from hf_wsd.job import Job
from hf_wsd.lineage import Lineage
from hf_wsd.scheduler import WSDScheduler
from hf_wsd.settings import Settings

logger = logging.get_logger(__name__)


def check_named(checkpoint: Path, settings: Settings) -> int:
    """The step of a checkpoint that was named: whole, but for the optimizer state where a re-warm-up was asked for.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    anew = settings.rewarmup_at is not None and weights_alone(checkpoint)
    return check_checkpoint(checkpoint, to_resume=not anew)


def begin_anew(scheduler: WSDScheduler, settings: Settings, job: Job) -> None:
    """Have the schedule go on from a checkpoint without optimizer state, where a re-warm-up was asked for."""
    checkpoint = job.checkpoint
    if checkpoint is None or scheduler.steps_done or job.step != settings.rewarmup_at or not weights_alone(checkpoint):
        return
    scheduler.take_up(Lineage.read(checkpoint))
    climb = f"climbs from 0 over {settings.rewarmup_steps} steps" if settings.rewarmup_steps else "is what it was"
    logger.warning(
        f"hf_wsd: {checkpoint} has no optimizer state: its moments and the random generators begin anew, so the run is "
        f"not bit for bit what its trunk would have been. The lr {climb}; steps and data go on from step {job.step}"
    )
