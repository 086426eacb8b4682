"""A family in one process: the trunk to a fork point, the decay, back to the fork point, and on.

What a separate `hf-wsd decay` would do in a process of its own is a *stretch* here: a new Trainer, always through
`train(resume_from_checkpoint=)`. Which one is next is read from the run's files, so a repeated command goes on. Records
and bits are those of separate processes; start-up, data and compilation are paid once.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from hf_wsd.callback import WSDCallback
from hf_wsd.checkpoint import saved_checkpoints, step_in_name
from hf_wsd.completing import complete
from hf_wsd.decision import DECISION, Decision
from hf_wsd.family import read_run
from hf_wsd.forking import Branch, fork_all, prepare
from hf_wsd.plan import Decay, Plan
from hf_wsd.pushing import push_strategy
from hf_wsd.ranks import from_main
from hf_wsd.shape_lookup import find_shape
from hf_wsd.trackers import survive


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What is trained next.

    Args:
        args: for a new Trainer.
        branch: the branch's folder; None on the trunk.
        checkpoint: what it resumes from; None is a fresh start.
        stops_at: fork points at which the trunk is left for a decay.
    """

    args: TrainingArguments
    branch: Path | None = None
    checkpoint: str | None = None
    stops_at: frozenset[int] = frozenset()


class Family:
    """A run with all that is to be trained of it in this process.

    Args:
        args: of the trunk; `max_steps` is where it ends.
        resume_point: where a Trainer with such arguments goes on; None is a fresh start.
        decays: the decays to train on the way.
        then: what a wish for a decay that leaves it open means: "stop", or "continue" the trunk.
    """

    def __init__(
        self,
        args: TrainingArguments,
        resume_point: Callable[[TrainingArguments], str | None],
        decays: Sequence[Decay] = (),
        *,
        then: str = "stop",
    ) -> None:
        self._args, self._resume_point, self._decays, self.then = args, resume_point, tuple(decays), then
        self._run = Path(args.output_dir)
        self.begun = False  # a checkpoint that the user named is where this process begins, once

    def next(self) -> Stretch | None:
        """What has to be trained next; None if all is done. All processes have to ask: the main one looks."""
        args = copy.copy(self._args)
        args.resume_from_checkpoint = None if self.begun else args.resume_from_checkpoint
        checkpoint = self._resume_point(args)
        folder, checkpoint, end, stops_at = from_main(self._look(checkpoint) if args.process_index == 0 else None)
        if end is None:
            return None
        args.max_steps, args.output_dir = end, str(folder)
        args.resume_from_checkpoint = checkpoint
        branch = None if folder == self._run else folder
        return Stretch(args=args, branch=branch, checkpoint=checkpoint, stops_at=frozenset(stops_at))

    def _look(self, checkpoint: str | None) -> tuple[Path, str | None, int | None, list[int]]:
        """Folder, checkpoint and end of the next stretch, and where it is left for a decay; no end: nothing is next."""
        decision = Decision.read(self._run)
        asked = [decision.decay] if decision and decision.then == "continue" else []
        decays = sorted({(d.fork, d.end): d for d in (*asked, *self._decays)}.values(), key=lambda d: (d.fork, d.end))
        saved = saved_checkpoints(self._run)
        for decay in decays:
            if decay.fork in saved and (branch := self._branch(decay, decision)):
                return branch.folder, str(branch.checkpoint), branch.end, []
        if asked and decision and decision.fork in saved:  # its branch is finished
            (self._run / DECISION).unlink()
        end = decision.end if decision and decision.then == "stop" else self._args.max_steps
        if end > 0 and checkpoint is not None and step_in_name(Path(checkpoint)) >= end:
            complete(self._run, Path(checkpoint))
            return self._run, None, None, []
        return self._run, checkpoint, end, [decay.fork for decay in decays]

    def _branch(self, decay: Decay, decision: Decision | None) -> Branch | None:
        """The branch of a decay, ready to run; None if it is finished."""
        run = read_run(self._run)
        shape: dict[str, Any] = {}
        if decision is not None and decay == decision.decay:
            asked = decision.schedule.segments[-1]
            final = asked.end if find_shape(asked.shape).own_end is None else None
            shape = {"decay_type": asked.shape, "decay_params": dict(asked.shape_params), "min_lr_ratio": final}
        (branch,) = fork_all(run, Plan(decays=(decay,)), **shape)
        if branch.finished:
            complete(branch.folder, branch.checkpoint)
            return None
        own = run.records.get(branch.end)
        if own is not None and own.schedule == branch.record.schedule:  # becomes this branch when the trunk goes on
            return None
        prepare(branch)
        return branch


def train_family(family: Family, make_trainer: Callable[[TrainingArguments], Trainer]) -> None:
    """Train all that a family needs, one stretch after the other, and save each finished model into its run's folder.

    Args:
        family: what is to be trained.
        make_trainer: a new Trainer for given arguments. It may share model, tokenizer and data between Trainers; not
            the model under FSDP and DeepSpeed, which change it.

    Raises:
        WSDError: as before the first step of any run. JobEnd: the job ends; a repeated command goes on.
    """
    while (stretch := family.next()) is not None:
        with _branch_variable(stretch.branch):
            trainer = _make(make_trainer, stretch.args, again=family.begun)
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, WSDCallback):
                    callback.goes_on, callback.then, callback.stops_at = True, family.then, stretch.stops_at
            trainer.train(resume_from_checkpoint=stretch.checkpoint)
            os.environ.pop("HF_WSD_EXPECT", None)  # was meant for the first: the next ones continue it
            family.begun = True
            if trainer.state.global_step >= trainer.state.max_steps:
                trainer.save_model()
        _let_go(trainer)
        del trainer
        gc.collect()


def _make(make_trainer: Callable[[TrainingArguments], Trainer], args: TrainingArguments, *, again: bool) -> Trainer:
    """A Trainer. With --push_to_hub it asks the hub when it is made: once is enough, a lost hub stops no training."""
    push = args.push_to_hub
    args.push_to_hub = push and not (again and push_strategy(args) == "end")
    trainer = make_trainer(args)
    trainer.args.push_to_hub = push
    return trainer


@contextmanager
def _branch_variable(folder: Path | None) -> Iterator[None]:
    """A block in which HF_WSD_BRANCH names the branch's folder, as in a process of its own."""
    if folder is None:
        yield
        return
    os.environ["HF_WSD_BRANCH"] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ["HF_WSD_BRANCH"]


def _let_go(trainer: Trainer) -> None:
    """End the trackers' runs, and take away what the Trainer put around the model: the next one does it again."""
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    for name in ("wandb", "trackio"):
        tracker = sys.modules.get(name)
        if tracker is not None and callable(getattr(tracker, "finish", None)):
            with survive(trainer):
                tracker.finish()
