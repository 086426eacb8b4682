"""`WSDLoop`: for a training loop of your own with Accelerate what `WSDCallback` is for a Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging

from hf_wsd.decision import Request
from hf_wsd.errors import RunError
from hf_wsd.history import losses_of
from hf_wsd.job import Job
from hf_wsd.keeper import Keeper
from hf_wsd.lineage import Lineage
from hf_wsd.live import Verdict, listen
from hf_wsd.machine import machine_setup
from hf_wsd.mending import undo
from hf_wsd.moved import refuse_moved_data
from hf_wsd.probe import probe
from hf_wsd.randomness import unchanged_randomness
from hf_wsd.ranks import from_main, highest
from hf_wsd.scheduler import WSDScheduler
from hf_wsd.settings import Settings
from hf_wsd.signals import spare_workers
from hf_wsd.start import Start, start_run

logger = logging.get_logger(__name__)


class WSDLoop:
    """Keeps what a WSD run needs kept: refusals before the first update, fork points, records, history.

    The scheduler is not prepared (a prepared one is stepped once for every process) but registered, so that
    `accelerator.save_state` and `load_state` have it:

        accelerator.register_for_checkpointing(scheduler)
        if checkpoint: accelerator.load_state(checkpoint)
        job = accelerator_job(accelerator, batch_size=..., folder=..., step=scheduler.steps_done, max_steps=...)
        run = WSDLoop(accelerator, scheduler, job, model=model, dataset=dataset)
        while run.step < run.last_step:
            ...                              # forward, backward, optimizer.step() of one update
            run.update()                     # the schedule goes on by one step
            if run.evaluates:                # a fork point, the end of a decay or of a budget
                with run.evaluation(): run.log({"eval_loss": ...})
            if run.keeps: run.save()         # a fork point, or the end of a decay

    Args:
        accelerator: has prepared model, optimizer and data.
        scheduler: at the step that the run starts from.
        job: what the script asked for.
        model: its trainable parameters are counted.
        dataset: training data; some samples are read, for a fingerprint and the tokens of a step.
        save_total_limit: checkpoints of the run itself; what is kept for good is out of its reach. None: all.

    Raises:
        WSDError: the checkpoint, the length, the folder or the budgets do not fit; nothing has been trained.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        scheduler: WSDScheduler,
        job: Job,
        *,
        model: torch.nn.Module | None,
        dataset: Any,
        save_total_limit: int | None = None,
    ) -> None:
        self._save_total_limit = save_total_limit
        self._losses: dict[str, float] = {}
        self._probe: float | None = None
        self._saving = False
        self._accelerator, self._model = accelerator, model
        self._scheduler = scheduler
        self._start: Start = start_run(scheduler, Settings.from_env(), job, model=model, dataset=dataset)
        refuse_moved_data(self.record)
        self._keeper = Keeper(job.folder, self.record, self._start.kinds, prefix=job.prefix)
        self._skipped_updates = self.record.skipped_updates
        scheduler.keeper = self
        self._live = listen(job, self._start, Settings.from_env(), main=accelerator.is_main_process)
        self._ends: str | None = None
        if accelerator.is_main_process:
            self._keeper.begin(self.step, tokens=self.tokens)
            logger.warning(self._start.announcement)
        accelerator.wait_for_everyone()
        for loader in accelerator._dataloaders:
            spare_workers(loader)

    @property
    def record(self) -> Lineage:
        """What the records of all checkpoints of the run share."""
        return self._start.record

    @property
    def step(self) -> int:
        """Updates done."""
        return self._scheduler.steps_done

    @property
    def last_step(self) -> int:
        """Where the run stops."""
        return self._start.last_step

    @property
    def tokens(self) -> int | None:
        """Tokens seen; None where samples differ in length."""
        return self.record.tokens_at(self.step)

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint of this step."""
        return self._keeper.checkpoint(self.step)

    @property
    def keeps(self) -> bool:
        """Whether the checkpoint of this step is a fork point, the end of a decay, of the run or of the job."""
        return self.step in self._start.kinds or self._ends is not None

    @property
    def evaluates(self) -> bool:
        """Whether a loss on evaluation data is wanted at this step: with what is kept, and to compare budgets with."""
        return self.step in self._start.kinds or self.step in self._start.budget_ends

    def update(self) -> None:
        """One update is done, or was skipped for an fp16 overflow: the schedule goes on by one step."""
        self._skipped_updates += self._accelerator.optimizer_step_was_skipped
        for _ in range(self._scheduler.calls_per_update):  # of a prepared one it takes several
            self._scheduler.step()
        self.updated()

    def updated(self) -> None:
        """The schedule has gone on by one step: ask, with all other processes, what is wanted from outside."""
        self._losses = {}
        self._obey(self._live.after_update(self.step))

    def decay_now(self, **decay: Any) -> None:
        """Ask for the decay: it starts after the next `update`, on all processes.

        Args:
            decay: fields of `hf_wsd.decision.Request`, such as `num_decay_steps=500`.
        """
        self._live.ask(Request(**{"by": "the script"} | decay))

    def _obey(self, verdict: Verdict) -> None:
        """Do what all processes have agreed on."""
        self._ends = verdict.ends
        if (decision := verdict.decision) is not None:
            self._start = self._start.follow(decision)
            self._keeper.follow(self.record, self._start.kinds)
            self._scheduler.decide(decision.schedule, decision.fork)
            if decision.stops_first:
                self._ends = f"its planned end is before step {decision.end}, where the decay ends"

    def log(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write a row of the history; returns it with tokens and phase (0 warm-up, 1 stable, 2 decay), for trackers.

        Args:
            values: numbers by name; those of an evaluation begin with `eval_`, and go into this step's record too.
        """
        self._losses |= losses_of(values)
        phase = self.record.schedule.phase(max(self.step - 1, 0))
        row = dict(values) | ({} if self.tokens is None else {"tokens": self.tokens})
        if self._accelerator.is_main_process:
            self._keeper.log({"step": self.step} | row | {"phase": phase.value})
        return row | {"phase": phase.number}

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """A block that evaluates: every random generator is put back after it, so that training does not change."""
        with unchanged_randomness():
            yield
        self._live.evaluated()

    def save(self) -> Path:
        """Save the state of everything, its record beside it, and keep it for good if it is one to keep.

        What goes wrong, such as a full disk, is logged and leaves nothing behind; training goes on.

        Returns:
            Where it is, if it could be saved.

        Raises:
            Exception: that of the last save of the run.
        """
        failed = self._try_to_save()
        if failed is not None and self.step >= self.last_step:
            raise failed
        return self.checkpoint

    def save_unasked(self) -> None:
        """The same where a script did not ask for it: nothing is raised."""
        self._try_to_save()

    def _try_to_save(self) -> Exception | None:
        """Save where there is room, on all processes or on none; returns what went wrong."""
        main, failed = self._accelerator.is_main_process, None
        self._probe = None
        if main and self._model is not None and self.step in self._start.kinds:
            self._probe = probe(self._accelerator.unwrap_model(self._model))
        if from_main(self._keeper.make_ready(self.step, **self._now()) if main else None):
            try:
                self._save_state()
            except Exception as error:  # a full disk, a lost mount
                failed = error
            if highest(failed is not None):
                failed = failed or RunError(f"another process could not save {self.checkpoint}")
                logger.error(f"hf_wsd: {self.checkpoint} could not be saved ({failed})")
            if main:
                self._keep_or_undo(failed)
            self._accelerator.wait_for_everyone()
        self._after_save()
        return failed

    def _keep_or_undo(self, failed: Exception | None) -> None:
        if failed is not None:
            return undo(self.checkpoint)
        self._keeper.save(self.step, **self._now())
        if self._save_total_limit is not None:
            self._keeper.rotate(self._save_total_limit)

    def _after_save(self) -> None:
        self._live.saved()
        if self.step >= self.last_step:
            self._live.close()
        if self._ends is not None:
            self._live.end_job(self._ends, step=self.step)

    def record_state(self, location: Path) -> None:
        """Write the record of a state that a script has saved by itself."""
        if self._accelerator.is_main_process and not self._saving:
            self._keeper.save(self.step, at=location, keep=False, **self._now())

    def _now(self) -> dict[str, Any]:
        now = {"tokens": self.tokens, "losses": self._losses, "probe": self._probe}
        return now | {"skipped_updates": self._skipped_updates}

    def _save_state(self) -> None:
        """Save into our folder, whatever name the Accelerator would choose."""
        project = self._accelerator.project_configuration
        before = project.automatic_checkpoint_naming, project.iteration
        project.automatic_checkpoint_naming, self._saving = False, True
        try:
            self._accelerator.save_state(str(self.checkpoint))
        finally:
            (project.automatic_checkpoint_naming, project.iteration), self._saving = before, False


def accelerator_job(
    accelerator: Accelerator,
    *,
    batch_size: int | None,
    folder: Path | str,
    step: int,
    max_steps: int,
    checkpoint: Path | str | None = None,
    seed: int | None = None,
    accumulation: int | None = None,
    **more: Any,
) -> Job:
    """The `Job` of a loop that is about to train.

    Args:
        accelerator: what was prepared with.
        batch_size: samples of one process in a forward pass; None where nobody knows.
        folder: the run's folder.
        step: updates done.
        max_steps: where the loop would end.
        checkpoint: the checkpoint that the user named.
        seed: of the run.
        accumulation: forward passes of an update, where the loop accumulates without Accelerate.
        more: other fields of `Job`.
    """
    accumulation = accumulation or int(accelerator.gradient_accumulation_steps)
    setup = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "world_size": accelerator.num_processes,
        "seed": seed,
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
    } | machine_setup(accelerator.device, main=accelerator.is_main_process)
    return Job(
        folder=Path(folder),
        step=step,
        max_steps=max_steps,
        checkpoint=Path(checkpoint) if isinstance(checkpoint, (str, Path)) and Path(checkpoint).is_dir() else None,
        setup=setup,
        samples_per_step=batch_size * accumulation * accelerator.num_processes if batch_size else None,
        **more,
    )
