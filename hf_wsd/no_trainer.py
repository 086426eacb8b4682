"""Scripts without a Trainer, such as run_clm_no_trainer.py: the only file that changes argparse and accelerate.

Such a script has a list of scheduler names of its own in argparse, gives `transformers.get_scheduler` totals that it
has multiplied by the number of processes, has accelerate wrap ("prepare") the scheduler, which then is stepped so many
times in every update, and saves its checkpoints with `accelerator.save_state`. Here the totals become updates again,
the scheduler learns how often it is stepped, and every saved state gets its record. With other schedulers nothing of it
shows.
"""

from __future__ import annotations

import argparse
from functools import wraps
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.deepspeed import DeepSpeedSchedulerWrapper
from torch.optim import Optimizer
from transformers.trainer_utils import SchedulerType

from hf_wsd.callback import WSDCallback
from hf_wsd.errors import RunError, ScheduleError, SettingsError
from hf_wsd.job import Job
from hf_wsd.loop import WSDLoop, accelerator_job
from hf_wsd.schedule import Schedule
from hf_wsd.scheduler import WSDScheduler, find_wsd_scheduler, make_scheduler
from hf_wsd.settings import NAMES, Settings, build_schedule, refuse_ignored_settings

_typed: dict[str, Any] = {}  # the script's arguments, as its parser last read them


class ScriptScheduler(WSDScheduler):
    """The `WSDScheduler` of a script that knows nothing of it: looks after the run by itself.

    Args:
        optimizer, schedule: as in `WSDScheduler`.
        max_steps: updates that the script will make.
        totals_per_update: by what the script's totals were divided.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, *, max_steps: int, totals_per_update: int) -> None:
        self.accelerator: Accelerator | None = None
        self.loop: WSDLoop | None = None
        self._max_steps = max_steps
        self._totals_per_update = totals_per_update
        super().__init__(optimizer, schedule)
        self._first_update = optimizer.register_step_pre_hook(lambda *_: self.begin())

    def step(self, epoch: int | None = None) -> None:
        """One call; where it ends an update whose checkpoint is to be kept, everything is saved."""
        if self.accelerator is not None:
            self.begin()
        super().step(epoch)
        ends_update = self.last_epoch % self.calls_per_update == 0
        if self.accelerator is not None and self.loop is not None and ends_update and self.loop.keeps:
            self.accelerator.save_state(str(self.loop.checkpoint))

    def begin(self) -> None:
        """Refuse, before the first update, a run that would not be the one asked for; begin its files.

        Raises:
            WSDError: the scheduler is not prepared, or as in `WSDLoop`.
        """
        self._first_update.remove()
        if self.loop is not None or self.keeper is not None:  # begun, or a Trainer's after all
            return
        if self.accelerator is None:
            return self._refuse_unprepared()
        if _typed.get("output_dir") and self.accelerator._dataloaders:
            self.loop = WSDLoop(
                self.accelerator,
                self,
                self._job(self.accelerator),
                model=self.accelerator._models[0],
                dataset=self.accelerator._dataloaders[0].dataset,
            )

    def _refuse_unprepared(self) -> None:
        if self._totals_per_update > 1 and Settings.from_env().calls_per_update is None:
            raise RunError(
                f"the script's totals were divided by {self._totals_per_update}, the number of processes, as scripts "
                "that hand their scheduler to accelerator.prepare multiply them by it; this one does not hand it over. "
                "Say what it does: --calls-per-update 1 (HF_WSD_CALLS_PER_UPDATE=1) if it counts updates"
            )

    def _job(self, accelerator: Accelerator) -> Job:
        loader = accelerator._dataloaders[0]
        samples = getattr(loader, "total_batch_size", None)  # a stream's loader has none
        return accelerator_job(
            accelerator,
            batch_size=samples // accelerator.num_processes if samples else loader.batch_size or 1,
            folder=_typed["output_dir"],
            step=self.steps_done,
            max_steps=self._max_steps,
            length_flag=_flags()[0],
            checkpoint=_typed.get("resume_from_checkpoint"),
            seed=_typed.get("seed"),
            prefix="step_",  # what such a script reads its place in the data from
        )


def make_registered_scheduler(
    name: str,
    optimizer: Optimizer,
    *,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    last_epoch: int = -1,
    **kwargs: Any,
) -> WSDScheduler:
    """What the registered names call: a `WSDScheduler`, in a script without a Trainer a `ScriptScheduler`.

    Raises:
        WSDError: as in `hf_wsd.get_scheduler`; totals that are not multiplied by the number of processes.
    """
    settings = Settings.from_env()
    if WSDCallback.trainers or not AcceleratorState._shared_state or num_training_steps is None:
        if settings.calls_per_update:
            raise SettingsError("calls_per_update is for scripts without a Trainer: leave it out")
        length: dict[str, Any] = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
        return make_scheduler(name, optimizer, **length, last_epoch=last_epoch, **kwargs)
    per_update = settings.calls_per_update or int(AcceleratorState().num_processes)
    if num_warmup_steps % per_update:
        raise ScheduleError(
            f"the script asks for {num_warmup_steps} warm-up steps, no multiple of its {per_update} processes: it does "
            "not multiply its totals by them as others do. Give --calls-per-update 1 (HF_WSD_CALLS_PER_UPDATE=1)"
        )
    max_steps = -(-num_training_steps // per_update)
    warmup_steps = num_warmup_steps // per_update
    schedule = build_schedule(
        name, num_training_steps=max_steps, num_warmup_steps=warmup_steps, kwargs=kwargs, flags=_flags()
    )
    return ScriptScheduler(optimizer, schedule, max_steps=max_steps, totals_per_update=per_update)


def _flags() -> tuple[str, str]:
    """What the script calls its length and its warm-up."""
    return (
        "max_steps" if "max_steps" in _typed else "max_train_steps",
        "warmup_steps" if "warmup_steps" in _typed else "num_warmup_steps",
    )


def adapt_scripts() -> None:
    """Have argparse offer our names where it offers transformers', and accelerate say what it prepares and saves."""
    if getattr(Accelerator.prepare, "_hf_wsd", False):
        return
    _after(argparse._ActionsContainer, "add_argument", _offer_names)
    _after(argparse.ArgumentParser, "parse_known_args", _remember_arguments)
    _after(Accelerator, "prepare", _tell_schedulers)
    _after(Accelerator, "prepare_scheduler", _tell_schedulers)
    _after(Accelerator, "save_state", _write_record)


def _after(owner: type, method: str, then: Any) -> None:
    """Call `then(self, result)` after a method."""
    original = getattr(owner, method)

    @wraps(original)
    def with_more(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        then(self, result)
        return result

    with_more._hf_wsd = True  # type: ignore[attr-defined]
    setattr(owner, method, with_more)


def _offer_names(parser: Any, action: argparse.Action) -> None:
    """A list of nothing but transformers' scheduler names gets ours too."""
    choices = [getattr(choice, "value", choice) for choice in action.choices or ()]
    if {"linear", "cosine"} <= set(choices) <= {member.value for member in SchedulerType}:
        action.choices = [*choices, *(name for name in NAMES if name not in choices)]


def _remember_arguments(parser: Any, parsed: tuple[argparse.Namespace, list[str]]) -> None:
    if hasattr(parsed[0], "output_dir"):
        _typed.clear()
        _typed.update(vars(parsed[0]))


def _tell_schedulers(accelerator: Accelerator, prepared: Any) -> None:
    ours = [(wrapper, found) for wrapper in accelerator._schedulers if (found := find_wsd_scheduler(wrapper))]
    if accelerator._schedulers and not ours and not WSDCallback.trainers:
        name = _typed.get("lr_scheduler_type", "another")
        refuse_ignored_settings(Settings.from_env(), getattr(name, "value", name))
    for wrapper, scheduler in ours:
        once = accelerator.split_batches or isinstance(wrapper, DeepSpeedSchedulerWrapper)
        scheduler.expect_calls(1 if once else accelerator.num_processes)
        wrapper.optimizers = []  # after an fp16 overflow it would not step: the schedule would lag behind the updates
        if isinstance(scheduler, ScriptScheduler):
            scheduler.accelerator = accelerator


def _write_record(accelerator: Accelerator, location: Any) -> None:
    for scheduler in map(find_wsd_scheduler, accelerator._schedulers):
        if isinstance(scheduler, ScriptScheduler) and scheduler.loop is not None:
            scheduler.loop.write_record(Path(location))
