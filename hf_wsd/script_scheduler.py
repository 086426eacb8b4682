"""`ScriptScheduler`: the schedule of a script that knows nothing of it, and looks after the script's run by itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary, WeakSet

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.optim import Optimizer
from torch.utils.data import RandomSampler
from transformers.utils import logging

from hf_wsd.asked import TRAINER_FLAGS
from hf_wsd.by_name import build_schedule
from hf_wsd.callback import WSDCallback
from hf_wsd.errors import ResumeError, RunError, ScheduleError
from hf_wsd.extending import newest_agreeing
from hf_wsd.job import Job
from hf_wsd.loop import WSDLoop, accelerator_job
from hf_wsd.mending import begin_anew
from hf_wsd.sameness import Sameness
from hf_wsd.schedule import Schedule
from hf_wsd.scheduler import WSDScheduler, find_wsd_scheduler, torch_optimizer
from hf_wsd.settings import Settings

logger = logging.get_logger(__name__)


class ScriptArguments:
    """What the command line of the running script said; its parser is listened to."""

    def __init__(self) -> None:
        self._typed: dict[str, Any] = {}
        self._namespace = argparse.Namespace()

    def remember(self, namespace: argparse.Namespace) -> None:
        """Keep what a parser read; the last one with an output_dir counts."""
        self._typed, self._namespace = dict(vars(namespace)), namespace

    def typed(self, name: str) -> Any:
        """The value as it was read: scripts fill in what was not given."""
        return self._typed.get(name)

    def now(self, name: str) -> Any:
        """The value as the script has it now."""
        return getattr(self._namespace, name, self._typed.get(name))

    def flags(self) -> tuple[str, str]:
        """What the script calls its length and its warm-up."""
        length = "max_train_steps" if "max_train_steps" in self._typed else TRAINER_FLAGS[0]
        return length, "num_warmup_steps" if "num_warmup_steps" in self._typed else TRAINER_FLAGS[1]


ARGUMENTS = ScriptArguments()


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a script gave `transformers.get_scheduler`: scripts multiply, mostly by the number of processes.

    Args:
        name: of the schedule.
        steps, warmup_steps: as given.
        kwargs: its `scheduler_specific_kwargs`.
    """

    name: str
    steps: int
    warmup_steps: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def updates(self, per_update: int) -> int:
        """The updates of the run; an epoch's batches need not share out evenly."""
        return -(-self.steps // per_update)

    def schedule(self, per_update: int) -> Schedule:
        """The schedule of the run, by updates.

        Raises:
            WSDError: as in `build_schedule`, or a warm-up that was not multiplied as the length was.
        """
        if self.warmup_steps % per_update:
            raise ScheduleError(
                f"the script gives a warm-up of {self.warmup_steps} steps, no multiple of {per_update}, by which its "
                f"length of {self.steps} seems to be multiplied. {_SAY}"
            )
        return build_schedule(
            self.name,
            num_training_steps=self.updates(per_update),
            num_warmup_steps=self.warmup_steps // per_update,
            kwargs=self.kwargs,
            flags=ARGUMENTS.flags(),
        )


_SAY = "Say what the script counts: --calls-per-update 1 (HF_WSD_CALLS_PER_UPDATE=1) if its totals are updates"
_of_optimizer: WeakKeyDictionary[Optimizer, WeakSet[ScriptScheduler]] = WeakKeyDictionary()


class ScriptScheduler(WSDScheduler):
    """The `WSDScheduler` that transformers' own `get_scheduler` makes.

    Until an Accelerator prepares it, its schedule is that of the totals as they are: a Trainer's, or a plain loop's.
    Prepared, it divides them, learns how often it is stepped, and looks after the run.

    Args:
        optimizer, last_epoch: as in `WSDScheduler`.
        schedule: of the totals as they are.
        totals: what the script gave.

    Attributes:
        accelerator: the one that has prepared it.
        loop: the run that it looks after, from the first update on.
    """

    made: ClassVar[bool] = False  # in this process, so that settings are not ignored
    loading: ClassVar[bool] = False  # torch makes FSDP's optimizer step once, for nothing, before it loads its state

    def __init__(self, optimizer: Optimizer, schedule: Schedule, totals: Totals, last_epoch: int = -1) -> None:
        self.totals = totals
        self.accelerator: Accelerator | None = None
        self.loop: WSDLoop | None = None
        self._loader: Any = None
        self._max_steps = totals.steps
        self._begun = False
        super().__init__(optimizer, schedule, last_epoch, allow=totals.kwargs.get("allow", ()))
        ScriptScheduler.made = True
        torch_optimizer(optimizer).register_step_pre_hook(self._before_update)
        _of_optimizer.setdefault(torch_optimizer(optimizer), WeakSet()).add(self)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, such as one made to draw the curve, looks after no run."""
        return self.__dict__ | {"accelerator": None, "loop": None, "keeper": None, "_loader": None, "_begun": True}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `WSDScheduler`; where the past is another one, the error names a checkpoint that agrees."""
        try:
            super().load_state_dict(state_dict)
        except ResumeError as error:
            folder = WSDCallback.folder or ARGUMENTS.now("output_dir")
            point = newest_agreeing(Path(folder), self.schedule) if folder else None
            hint = f". The newest checkpoint that agrees: --resume_from_checkpoint {point}" if point else ""
            raise ResumeError(f"{error}{hint}") from None

    def _check(self, sameness: Sameness, intent: str, step: int) -> None:
        """Not yet: before the first update, with all other differences to the checkpoint's run (`start_run`)."""

    def prepared(self, accelerator: Accelerator, loader: Any, *, calls_per_update: int) -> None:
        """An Accelerator has wrapped this scheduler, and will call `step()` so often in an update.

        Args:
            accelerator: the one.
            loader: the training data; None if it was not prepared.
            calls_per_update: calls of `step()`.

        Raises:
            WSDError: the totals are no multiple of what the script was asked for, or do not fit the settings.
        """
        per_update = self._totals_per_update(accelerator, calls_per_update)
        self._max_steps = self.totals.updates(per_update)
        self.schedule = self.totals.schedule(per_update)
        self.last_epoch = self.last_epoch // per_update * calls_per_update
        self.calls_per_update = calls_per_update
        self.accelerator, self._loader = accelerator, loader
        self._apply()

    def _totals_per_update(self, accelerator: Accelerator, calls_per_update: int) -> int:
        """By what the script has multiplied: as told, as the length that was typed shows, or as scripts do."""
        flag = ARGUMENTS.flags()[0]
        told, typed = Settings.from_env().calls_per_update, ARGUMENTS.typed(flag)
        if told is not None:
            return told
        if isinstance(typed, int) and typed > 0:
            if self.totals.steps % typed:
                raise ScheduleError(
                    f"the script was asked for --{flag} {typed} but gives its scheduler {self.totals.steps} steps, no "
                    f"multiple of it. {_SAY}"
                )
            return self.totals.steps // typed
        multiplied = calls_per_update > 1 or accelerator.distributed_type == DistributedType.DEEPSPEED
        return int(accelerator.num_processes) if multiplied else 1

    def step(self, epoch: int | None = None) -> None:
        """One call; where it ends an update whose checkpoint is to be kept, everything is saved."""
        if self.accelerator is not None:
            self._begin()  # for the optimizer's first update may be one that fp16 skips
        super().step(epoch)
        if self.loop is None or self.last_epoch % self.calls_per_update:
            return
        self.loop.updated()
        if self.loop.keeps:
            self.loop.save_unasked()
        if self.decided is not None and self.steps_done == self.loop.last_step:
            logger.warning(f"hf_wsd: the decay that was asked for ends at step {self.steps_done}; so does the script")
            raise SystemExit(0)  # its own loop would go on at the minimum
        if self.steps_done == self.loop.last_step + 1:
            logger.error(f"hf_wsd: the script goes on past its {self.loop.last_step} updates; the lr stays where it is")

    def _before_update(self, *_: Any) -> None:
        a_trainers = self.accelerator is None and WSDCallback.trainers > 0
        if not a_trainers and not ScriptScheduler.loading:
            self._begin()
        if self.keeper is None:  # nobody looks after the run
            super()._check(self.sameness, self.intent, self.steps_done)

    def _begin(self) -> None:
        """Before the first update: refuse a run that would not be the one asked for, and begin its files."""
        if self._begun or self.keeper is not None:  # a Trainer's, or that of a WSDLoop
            return
        self._begun = True
        others = [other for other in _of_optimizer[torch_optimizer(self.optimizer)] if other is not self]
        if self.accelerator is None and any(other.accelerator or other.keeper for other in others):
            return  # made beside the one that trains, to draw the curve
        if why := self._why_without_files():
            return self._refuse_without_files(why)
        accelerator, dataset = cast(Accelerator, self.accelerator), getattr(self._loader, "dataset", None)
        model = next(iter(accelerator._models), None)
        self.loop = WSDLoop(accelerator, self, self._job(accelerator), model=model, dataset=dataset)
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: begin_anew(Path(folder)))

    def _why_without_files(self) -> str | None:
        if self.accelerator is None:
            return "does not hand its scheduler to accelerator.prepare"
        if not ARGUMENTS.now("output_dir"):
            return "has no --output_dir"
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return "runs under DeepSpeed, which steps the scheduler in the middle of an update"
        ours = [one for one in map(find_wsd_scheduler, self.accelerator._schedulers) if one is not None]
        return "has several schedulers of ours" if len(ours) > 1 else None

    def _refuse_without_files(self, why: str) -> None:
        settings = Settings.from_env()
        asked = [name for name in ("trunk", "budgets", "keep_every", "branch") if getattr(settings, name)]
        if asked:
            raise RunError(
                f"{' and '.join(asked)} need checkpoints with records, but the script {why}: hf_wsd cannot look after "
                f"its run. Leave {' and '.join(asked)} out, or use hf_wsd.WSDLoop in it"
            )
        logger.warning(f"hf_wsd: {self.schedule}. No records are written: the script {why}")

    def _job(self, accelerator: Accelerator) -> Job:
        by_hand = ARGUMENTS.now("gradient_accumulation_steps") if accelerator.gradient_accumulation_steps == 1 else None
        return accelerator_job(
            accelerator,
            batch_size=_batch_size(self._loader, accelerator),
            accumulation=by_hand if isinstance(by_hand, int) else None,
            folder=ARGUMENTS.now("output_dir"),
            step=self.steps_done,
            max_steps=self._max_steps,
            length_flag=ARGUMENTS.flags()[0],
            checkpoint=ARGUMENTS.now("resume_from_checkpoint"),
            seed=ARGUMENTS.now("seed"),
            kwargs=self.totals.kwargs,
            order_known=False,
            prefix="step_",  # what such a script reads its place in the data from
        )


def training_loader(loaders: Sequence[Any]) -> Any:
    """The loader that shuffles, else the first one: scripts prepare training data before evaluation data."""
    shuffling = [loader for loader in loaders if isinstance(loader.get_sampler(), RandomSampler)]
    return next(iter([*shuffling, *loaders]), None)


def _batch_size(loader: Any, accelerator: Accelerator) -> int | None:
    """Samples of one process in a forward pass, where the loader knows them."""
    together = getattr(loader, "total_batch_size", None)  # a stream's loader has none
    size = together // accelerator.num_processes if together else getattr(loader, "batch_size", None)
    return int(size) if size else None
