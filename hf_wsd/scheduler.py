"""`WSDScheduler`: a `Schedule` applied to a torch optimizer, and `get_scheduler` with transformers' signature."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hf_wsd.by_name import BUILDERS, allowed_differences, build_schedule
from hf_wsd.checks import count
from hf_wsd.errors import ResumeError, SettingsError
from hf_wsd.lineage import Lineage
from hf_wsd.optimizers import allowed_settings, compare_optimizers, optimizer_settings
from hf_wsd.sameness import Sameness
from hf_wsd.schedule import Schedule, derive_intent


class WSDScheduler(LRScheduler):
    """Sets each parameter group's lr to its base lr times `schedule(step)`.

    One `step()` is one schedule step (but see `calls_per_update`). A `LambdaLR` would not do: it keeps the lr of the
    *old* schedule for the first update after a resume, and a callable object inside it is overwritten by the
    checkpoint, so that a branch never decays. Here a checkpoint restores the step alone; its schedule, peak lrs and
    settings of the optimizer are compared. Peak lrs and settings that are allowed to differ (`hf_wsd.sameness`) are
    those of this run from the next update on, where torch would take the checkpoint's without a word.

    It has no `__call__` (DeepSpeed would take it for a factory) and no attribute `total_steps` (accelerate's wrapper
    would stop stepping there): ask `.schedule`.

    Args:
        optimizer: the optimizer; its groups' lrs are the peak lrs.
        schedule: the schedule.
        last_epoch: steps done - 1, as in torch; -1 starts anew.
        allow: differences to the checkpoint's run that are meant, beside those of HF_WSD_ALLOW.

    Attributes:
        schedule: the schedule.
        calls_per_update: calls of `step()` that make one schedule step: 1, but for schedulers that
            `accelerator.prepare` has wrapped, which are stepped once for every process.
        intent: "start", or what the last `load_state_dict` was: "continue", "branch" or "extend".
        allow: differences to the checkpoint's run that are meant.
        sameness: of the optimizer and its peak lrs here and in the checkpoint.
        keeper: the callback that looks after this run, if there is one.
        decided: the fork point of a decay that was asked of the run while it was training, or None.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Schedule, last_epoch: int = -1, *, allow: str | Iterable[str] = ()
    ) -> None:
        self.schedule = schedule
        self.allow = allowed_differences(allow)
        self.sameness = Sameness()
        inner = torch_optimizer(optimizer)
        self._asked = optimizer_settings(inner.param_groups, type(inner).__name__)
        self._allowed_settings: list[dict[str, Any]] = [{} for _ in self._asked]
        self.calls_per_update = 1
        self.intent = "start"
        self.keeper: object | None = None
        self.decided: int | None = None
        super().__init__(optimizer, last_epoch)
        # Loading an optimizer restores the lr that was current when it was saved. Trainer loads it before the
        # scheduler, others after: then the stale lr would win.
        inner.register_load_state_dict_post_hook(self._after_optimizer_load)

    @property
    def steps_done(self) -> int:
        """Number of schedule steps taken; torch's last_epoch counts calls."""
        return int(self.last_epoch) // self.calls_per_update

    def expect_calls(self, per_update: int) -> None:
        """From now on so many calls of `step()` make one schedule step."""
        self.last_epoch = self.steps_done * per_update
        self.calls_per_update = per_update

    def decide(self, schedule: Schedule, fork: int) -> None:
        """From `fork` on follow another schedule, as was asked of the running job: its past is that of this one.

        Raises:
            ResumeError: it is not.
        """
        if (difference := self.schedule.difference(schedule, until=min(self.steps_done, fork))) is not None:
            raise ResumeError(
                f"the decay that was decided for step {fork} belongs to another run; {difference} (this run | that)"
            )
        self.schedule, self.decided, self.intent = schedule, fork, "continue" if self.steps_done else "start"
        self._apply()

    def get_lr(self) -> list[float]:
        """The lr of the next update, one per parameter group.

        Raises:
            SettingsError: the optimizer has other groups than when the scheduler was made.
        """
        groups = len(self.optimizer.param_groups)
        if groups != len(self.base_lrs):
            raise SettingsError(
                f"the optimizer has {groups} parameter groups but {len(self.base_lrs)} had a peak lr when the "
                "scheduler was made: add all groups first"
            )
        multiplier = self.schedule(self.steps_done)
        return [peak_lr * multiplier for peak_lr in self.peak_lrs]

    @property
    def peak_lrs(self) -> list[float]:
        """The base lr of each parameter group, as plain numbers."""
        return [float(lr) for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: step, peak lrs, schedule.

        The names are those of `LambdaLR`, so that stock transformers resumes the checkpoint too.
        """
        return {
            "last_epoch": self.last_epoch,
            "calls_per_update": self.calls_per_update,
            "_step_count": self._step_count,
            "base_lrs": self.peak_lrs,
            "_last_lr": [float(lr) for lr in self._last_lr],
            "lr_lambdas": [None] * len(self.base_lrs),
            "schedule": self.schedule.to_dict(),
            "optimizer_settings": self._asked,
            "decided": self.decided,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the step, compare the rest, and set the lr of the next update at once.

        Raises:
            ResumeError: the state has no schedule, another past, or differences that are not allowed.
        """
        self.get_lr()  # refuses other groups before anything is changed
        stored, step, peak_lrs, settings = _read_state(state_dict)
        decided = state_dict.get("decided")
        if decided is not None and step > decided:  # the past of this checkpoint is not what the command asks for
            self.schedule, self.decided = stored, decided
        intent = derive_intent(stored, self.schedule, step=step)
        sameness = compare_optimizers(peak_lrs, settings, self.peak_lrs, self._asked)
        self._check(sameness, intent, step)
        self.intent, self.sameness = intent, sameness
        self._allowed_settings = allowed_settings(settings, self._asked, self.allow)
        self.last_epoch = step * self.calls_per_update
        self._step_count = self.last_epoch + 1
        self._after_optimizer_load()

    def take_up(self, record: Lineage) -> None:
        """Go on from a checkpoint without optimizer state, as its record says: the optimizer itself begins anew.

        Raises:
            ResumeError: as in `load_state_dict`.
        """
        schedule = record.schedule.to_dict()
        self.load_state_dict({"last_epoch": record.step, "base_lrs": list(record.peak_lrs), "schedule": schedule})
        self.sameness |= Sameness(changes={"optimizer_state": "trained -> new"})

    def _check(self, sameness: Sameness, intent: str, step: int) -> None:
        """Refuse what differs and is not allowed."""
        sameness.check(intent, step=step, allow=self.allow)

    def _apply(self) -> None:
        self._last_lr = self.get_lr()
        for group, base_lr, lr in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True):
            group["initial_lr"] = base_lr
            if isinstance(group["lr"], Tensor):  # a compiled optimizer holds on to the tensor
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _after_optimizer_load(self, *_: Any) -> None:
        self._apply()
        for group, allowed in zip(self.optimizer.param_groups, self._allowed_settings, strict=True):
            group.update(allowed)


def torch_optimizer(optimizer: Any) -> Any:
    """The optimizer inside the wrappers of Accelerate and DeepSpeed, one around the other: they forward no hooks."""
    while (inner := getattr(optimizer, "optimizer", None)) is not None:
        optimizer = inner
    return optimizer


def _read_state(state: Any) -> tuple[Schedule, int, list[float], list[dict[str, Any]]]:
    """The schedule, the step, the peak lrs and the optimizer's settings in a checkpoint's scheduler state."""
    if not isinstance(state, dict) or "schedule" not in state:
        raise ResumeError(
            "the checkpoint's scheduler state has no wsd schedule (another scheduler wrote it), so nobody can tell "
            "whether its past agrees with this run. Resume it with the scheduler that trained it"
        )
    try:
        calls = count("calls_per_update", state.get("calls_per_update", 1), at_least=1)
        step = count("last_epoch", state["last_epoch"]) // calls
        peak_lrs = [float(lr) for lr in state["base_lrs"]]
        settings = [dict(group) for group in state.get("optimizer_settings", [])]
        return Schedule.from_dict(state["schedule"]), step, peak_lrs, settings
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(
            f"the checkpoint's scheduler state is damaged ({type(error).__name__}: {error}): resume from another"
        ) from error


def get_scheduler(
    name: Any,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> LRScheduler:
    """The scheduler of that name: "wsd", "wsd_s", "cyclic_cosine", "multi_step" are ours, others transformers' own.

    Args:
        name: one of ours or of transformers.
        optimizer: the optimizer; its groups' lrs are the peak lrs.
        num_warmup_steps: updates of the warm-up; None is 0 for our names.
        num_training_steps: updates of the run; may be None for a trunk.
        scheduler_specific_kwargs: keyword arguments of the builder of that name, such as `hf_wsd.wsd`.

    Raises:
        WSDError: an unknown or doubled setting, or lengths that do not fit.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    >>> get_scheduler("wsd", optimizer, 10, 100, {"decay_fraction": 0.2}).schedule.checkpoint_steps()
    {80: 'pre-decay', 100: 'post-decay'}
    """
    if getattr(name, "value", name) in BUILDERS:
        for argument in ("name", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"):
            if argument in (scheduler_specific_kwargs or {}):
                raise SettingsError(f"{argument} is an argument of get_scheduler itself, not of the schedule")
        return make_scheduler(
            getattr(name, "value", name),
            optimizer,
            num_warmup_steps=num_warmup_steps or 0,
            num_training_steps=num_training_steps,
            **(scheduler_specific_kwargs or {}),
        )
    from transformers import get_scheduler as transformers_get_scheduler

    return transformers_get_scheduler(name, optimizer, num_warmup_steps, num_training_steps, scheduler_specific_kwargs)


def make_scheduler(
    name: str,
    optimizer: Optimizer,
    *,
    num_warmup_steps: int = 0,
    num_training_steps: int | None = None,
    last_epoch: int = -1,
    **kwargs: Any,
) -> WSDScheduler:
    """A `WSDScheduler` from transformers' arguments: what the registered names call.

    Raises:
        WSDError: as in `get_scheduler`.
    """
    schedule = build_schedule(
        name, num_training_steps=num_training_steps, num_warmup_steps=num_warmup_steps, kwargs=kwargs
    )
    return WSDScheduler(optimizer, schedule, last_epoch, allow=kwargs.get("allow", ()))


def find_wsd_scheduler(scheduler: Any) -> WSDScheduler | None:
    """The `WSDScheduler` inside whatever wrapper accelerate or DeepSpeed put around it, or None.

    Raises:
        SettingsError: wrappers nested without end.
    """
    for _ in range(8):
        if scheduler is None or isinstance(scheduler, WSDScheduler):
            return scheduler
        scheduler = getattr(scheduler, "scheduler", None)
    raise SettingsError("the lr scheduler is wrapped more than eight times: no WSDScheduler found inside")
