"""Scripts without a Trainer, such as run_clm_no_trainer.py: the only file that changes argparse and accelerate.

Such a script has a list of scheduler names of its own in argparse, gives `transformers.get_scheduler` totals that it
has multiplied by the number of processes, has accelerate wrap ("prepare") the scheduler, which then is stepped so many
times in every update, and saves its checkpoints with `accelerator.save_state`. Here the totals become updates again,
the scheduler learns how often it is stepped, and every saved state gets its record. With other schedulers nothing of it
shows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.deepspeed import DeepSpeedSchedulerWrapper
from torch.optim import Optimizer
from transformers.trainer_utils import SchedulerType

from hf_wsd.by_name import NAMES, refuse_ignored_settings
from hf_wsd.callback import WSDCallback
from hf_wsd.errors import WSDError
from hf_wsd.scheduler import WSDScheduler, find_wsd_scheduler, make_scheduler, torch_optimizer
from hf_wsd.script_scheduler import ARGUMENTS, ScriptScheduler, Totals, training_loader
from hf_wsd.settings import Settings

_MOST_CHOICES = 50  # of a list that could be one of schedulers


def make_registered_scheduler(
    name: str,
    optimizer: Optimizer,
    *,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    last_epoch: int = -1,
    **kwargs: Any,
) -> WSDScheduler:
    """What the registered names call: a scheduler that fits a Trainer as well as a script without one.

    Raises:
        WSDError: as in `hf_wsd.get_scheduler`.
    """
    if num_training_steps is None:
        return make_scheduler(name, optimizer, num_warmup_steps=num_warmup_steps, last_epoch=last_epoch, **kwargs)
    totals = Totals(name=name, steps=num_training_steps, warmup_steps=num_warmup_steps, kwargs=kwargs)
    try:
        schedule = totals.schedule(1)
    except WSDError:  # lengths in updates need not fit into totals that were multiplied
        processes = AcceleratorState._shared_state.get("num_processes", 1)
        if WSDCallback.trainers or processes == 1:
            raise
        schedule = totals.schedule(processes)
    return ScriptScheduler(optimizer, schedule, totals, last_epoch)


def adapt_scripts() -> None:
    """Have argparse offer our names where it offers transformers', and accelerate say what it prepares and saves."""
    if getattr(Accelerator.prepare, "_hf_wsd", False):
        return
    _after(argparse._ActionsContainer, "add_argument", _offer_names)
    _after(argparse.ArgumentParser, "parse_known_args", _remember_arguments)
    _after(Accelerator, "prepare", _tell_schedulers)
    _after(Accelerator, "prepare_scheduler", _tell_schedulers)
    _after(Accelerator, "save_state", _write_record)
    load_state = Accelerator.load_state

    @wraps(load_state)
    def load_state_quietly(self: Any, *args: Any, **kwargs: Any) -> Any:
        ScriptScheduler.loading = True
        try:
            return load_state(self, *args, **kwargs)
        finally:
            ScriptScheduler.loading = False

    Accelerator.load_state = load_state_quietly


def _after(owner: type, method: str, then: Callable[[Any, Any], None]) -> None:
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
    choices = action.choices
    if not isinstance(choices, (list, tuple)) or not 1 < len(choices) <= _MOST_CHOICES:
        return
    names = {choice.value if isinstance(choice, SchedulerType) else choice for choice in _texts(choices)}
    for_schedulers = action.type is SchedulerType or "scheduler" in action.dest
    known = {member.value for member in SchedulerType}
    if for_schedulers and len(names) == len(choices) and {"linear", "cosine"} <= names <= known:
        action.choices = [*choices, *(name for name in NAMES if name not in names)]


def _texts(choices: Iterable[Any]) -> list[str]:
    return [choice for choice in choices if isinstance(choice, str)]


def _remember_arguments(parser: Any, parsed: tuple[argparse.Namespace, list[str]]) -> None:
    if hasattr(parsed[0], "output_dir"):
        ARGUMENTS.remember(parsed[0])


def _tell_schedulers(accelerator: Accelerator, prepared: Any) -> None:
    for wrapper in accelerator._schedulers:
        scheduler = find_wsd_scheduler(wrapper)
        if scheduler is None:
            _refuse_settings_at_first_update(wrapper)
            continue
        deepspeed = isinstance(wrapper, DeepSpeedSchedulerWrapper)
        if deepspeed and WSDCallback.trainers:  # a Trainer has it prepared there, and gives its totals in updates
            continue
        linked = wrapper.step_with_optimizer and not deepspeed
        calls = accelerator.num_processes if linked and not accelerator.split_batches else 1
        if linked:  # after an fp16 overflow it would not step: the schedule would lag behind the updates
            wrapper.optimizers = []
        if not isinstance(scheduler, ScriptScheduler):
            scheduler.expect_calls(calls)
        elif scheduler.accelerator is None:
            together = prepared if isinstance(prepared, tuple) else ()
            loaders = [loader for loader in accelerator._dataloaders if any(loader is one for one in together)]
            scheduler.prepared(
                accelerator, training_loader(loaders or accelerator._dataloaders), calls_per_update=calls
            )


def _refuse_settings_at_first_update(wrapper: Any) -> None:
    """Refuse settings that nobody uses, unless one of our schedulers is made before that scheduler's first update."""
    inner = getattr(wrapper, "scheduler", None)
    optimizer = torch_optimizer(getattr(inner, "optimizer", None))
    if WSDCallback.trainers or not isinstance(optimizer, Optimizer) or getattr(wrapper, "_hf_wsd", False):
        return
    wrapper._hf_wsd = True

    def refuse(*_: Any) -> None:
        if not ScriptScheduler.made:
            name = ARGUMENTS.typed("lr_scheduler_type") or type(inner).__name__
            refuse_ignored_settings(Settings.from_env(), getattr(name, "value", name))

    if Settings.from_env().given():
        optimizer.register_step_pre_hook(refuse)


def _write_record(accelerator: Accelerator, location: Any) -> None:
    """A state that the script saved gets its record; perhaps on one process alone, so nobody waits for the others."""
    for scheduler in map(find_wsd_scheduler, accelerator._schedulers):
        if isinstance(scheduler, ScriptScheduler) and scheduler.loop is not None:
            scheduler.loop.record_state(Path(location))
