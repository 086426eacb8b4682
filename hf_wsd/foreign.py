"""What a checkpoint of another scheduler tells about its run: its arguments, its lrs, and a schedule that fits them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, isclose
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hf_wsd.builders import wsd
from hf_wsd.checkpoint import check_checkpoint
from hf_wsd.errors import CheckpointError, ResumeError, ScheduleError, WSDError
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.optimizers import optimizer_settings
from hf_wsd.schedule import Schedule
from hf_wsd.scheduler import WSDScheduler

_TOLERANCE = 1e-6  # relative: another formula rounds another way
_CONSTANT = ("constant", "constant_with_warmup")
_WEIGHTS_ALONE = (
    "Its optimizer state is lost: AdamW's moments, the step, the lr and the place in the data. No run can go on from "
    "it exactly. What it can be is the start of a new run with a warm-up of its own: --model_name_or_path {path}"
)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A whole checkpoint of a Trainer with another scheduler than ours.

    Args:
        path: its folder.
        step: updates done.
        state: trainer_state.json.
        arguments: TrainingArguments, plain values alone; empty where nobody knows.
        peak_lrs: base lr of each parameter group.
        next_lr: lr of the next update over its base lr.
        skipped: updates that moved no schedule: fp16 overflows.
    """

    path: Path
    step: int
    state: Mapping[str, Any]
    arguments: Mapping[str, Any]
    peak_lrs: tuple[float, ...]
    next_lr: float
    skipped: int

    @property
    def world_size(self) -> int:
        """Number of processes: each has saved its random state."""
        return len(list(self.path.glob("rng_state_*.pth"))) or 1

    @property
    def logged(self) -> Iterator[tuple[int, float]]:
        """Steps and the lrs that were logged there."""
        for row in self.state.get("log_history", ()):
            if isinstance(row.get("learning_rate"), float) and isinstance(row.get("step"), int):
                yield row["step"], row["learning_rate"]

    def check(self, schedule: Schedule) -> None:
        """Refuse a schedule that is not the one that the run had.

        Trainer has logged the lr of the update just made since transformers 5, that of the next one before.

        Raises:
            ResumeError: a logged lr, or that of the next update, is another one.
        """
        misfits = [next(self._misfits(schedule, shift), None) for shift in (1, 0)]
        if None not in misfits:
            step, lr, asked = max(misfit for misfit in misfits if misfit is not None)
            raise ResumeError(
                f"{self.path} was not trained on '{schedule}': at step {step} the logged lr is {lr:g}, that of the "
                f"schedule {asked:g} (peak lr {self.peak_lrs[0]:g}). Say what it was trained on: --schedule"
            )
        asked = schedule(self.step - self.skipped)
        if not _close(self.next_lr, asked):
            raise ResumeError(
                f"{self.path} was not trained on '{schedule}': the lr of its next update is {self.next_lr:g} of the "
                f"peak lr, that of the schedule {asked:g}"
            )

    def _misfits(self, schedule: Schedule, shift: int) -> Iterator[tuple[int, float, float]]:
        """Step, logged lr and the schedule's, where they differ; an overflow may have held the schedule back."""
        peak = self.peak_lrs[0]
        for step, lr in self.logged:
            updates = [step - shift - skipped for skipped in range(self.skipped + 1) if step - shift >= skipped]
            if not any(_close(lr, peak * schedule(update)) for update in updates):
                yield step, lr, peak * schedule(max(step - shift, 0))


def _close(one: float, other: float) -> bool:
    return isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-15)


def read_foreign(path: Path) -> Foreign:
    """What a checkpoint tells.

    Raises:
        CheckpointError: it is not whole, has weights alone, has a record already, or was not saved by a Trainer.
    """
    if (path / RECORD).exists():
        raise CheckpointError(f"{path} has a record already: use its run as it is")
    if path.is_dir() and not (path / "trainer_state.json").exists():
        if any(path.glob("random_states_*.pkl")):
            raise CheckpointError(f"{path} was saved by accelerator.save_state: only a Trainer's can be adopted")
        if any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin")):
            raise CheckpointError(f"{path} has weights alone. {_WEIGHTS_ALONE.format(path=path)}")
    try:
        step = check_checkpoint(path)
    except CheckpointError as error:
        alone = "no optimizer state" in str(error)
        raise CheckpointError(f"{error}. {_WEIGHTS_ALONE.format(path=path)}" if alone else str(error)) from None
    scheduler = _scheduler_state(path / "scheduler.pt")
    peak_lrs = tuple(float(lr) for lr in scheduler["base_lrs"])
    return Foreign(
        path=path,
        step=step,
        state=json.loads((path / "trainer_state.json").read_text()),
        arguments=read_arguments(path / "training_args.bin"),
        peak_lrs=peak_lrs,
        next_lr=float(scheduler["_last_lr"][0]) / peak_lrs[0] if peak_lrs[0] else 0.0,
        skipped=step - int(scheduler["last_epoch"]),
    )


def _scheduler_state(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        raise CheckpointError(f"{file.parent} has no scheduler.pt: its lr was set elsewhere, so nobody knows its peak")
    state = load_plain(file)
    if isinstance(state, dict) and "schedule" in state:
        raise CheckpointError(f"{file.parent} is one of ours: resume its run from it once, and its record is written")
    missing = {"base_lrs", "_last_lr", "last_epoch"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise CheckpointError(f"{file} has no {', '.join(sorted(missing))}: only PyTorch's own schedulers can be read")
    return dict(state)


def read_arguments(file: Path) -> dict[str, Any]:
    """The plain values of a saved TrainingArguments, whatever class the script made of it; nothing of it is run."""
    if not file.exists():
        return {}
    kept = getattr(load_plain(file), "state", {})
    plain = {name: value.name() if isinstance(value, _Stand) else value for name, value in kept.items()}
    return {name: value for name, value in plain.items() if isinstance(value, (str, int, float, dict, type(None)))}


def derive_schedule(foreign: Foreign) -> Schedule:
    """The schedule that the arguments of a run say it had.

    Raises:
        ScheduleError: it was none with a stable phase, or nobody knows.
    """
    arguments, total = foreign.arguments, int(foreign.state.get("max_steps", 0))
    kind = arguments.get("lr_scheduler_type")
    warmup = arguments.get("warmup_steps") or arguments.get("warmup_ratio") or 0
    warmup_steps = ceil(total * warmup) if 0 < warmup < 1 else int(warmup)
    if kind in _CONSTANT:
        return wsd(num_warmup_steps=warmup_steps if kind != "constant" else 0, num_decay_steps=0)
    if kind != "warmup_stable_decay":
        asked = f"its --lr_scheduler_type was {kind}" if kind else "it has no training_args.bin"
        raise ScheduleError(
            f"nobody can tell a schedule with a stable phase for {foreign.path}: {asked}. If its lr was constant all "
            "the same, say so: --schedule 'wsd(num_warmup_steps=100, num_decay_steps=0)'"
        )
    kwargs: dict[str, Any] = dict(arguments.get("lr_scheduler_kwargs") or {})
    stable, decay = kwargs.pop("num_stable_steps", None), int(kwargs.pop("num_decay_steps", 0))
    cycles = kwargs.pop("num_cycles", 0.5)
    kwargs.setdefault("decay_type", "cosine")
    rest = 0 if stable is None else total - warmup_steps - stable - decay
    try:
        if cycles != 0.5 or rest < 0:
            raise ScheduleError("not a decay of ours")
        return wsd(total, num_warmup_steps=warmup_steps, num_decay_steps=decay, num_min_steps=rest, **kwargs)
    except (WSDError, TypeError):  # of its decay nothing is needed as long as it has not begun
        names = ("warmup_type", "min_lr_ratio")
        start: dict[str, Any] = {name: kwargs[name] for name in names if name in kwargs}
        return wsd(num_warmup_steps=warmup_steps, num_decay_steps=0, **start)


def write_scheduler(file: Path, record: Lineage) -> None:
    """Write the state that our scheduler would have had in the checkpoint of a record."""
    groups = [torch.nn.Parameter(torch.zeros(0)) for _ in record.peak_lrs]
    optimizer = torch.optim.SGD([{"params": [one], "lr": lr} for one, lr in zip(groups, record.peak_lrs, strict=True)])
    scheduler = WSDScheduler(optimizer, record.schedule)
    scheduler.last_epoch = record.step
    now = {"_step_count": record.step + 1, "_last_lr": scheduler.get_lr()}
    torch.save(scheduler.state_dict() | now | {"optimizer_settings": _settings(file.with_name("optimizer.pt"))}, file)


def _settings(file: Path) -> list[dict[str, Any]]:
    """The optimizer's settings by parameter group; empty where it was saved in another way, as FSDP's."""
    if not file.exists():
        return []
    groups = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["param_groups"]
    known = optimizer_settings(groups, "")
    return [{name: value for name, value in group.items() if name != "class"} for group in known]


def load_plain(file: Path) -> Any:
    """What torch has saved, without a line of code from it: what is no plain value is a stand-in.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it has more than plain values
        module = SimpleNamespace(Unpickler=_Unpickler, load=pickle.load, __name__="pickle")
        try:
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=module)
        except Exception as error:  # torch and pickle raise what they like
            raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error})") from error


class _Stand:
    """In the place of an object: what it was made of, and its state."""

    made_of: tuple[Any, ...]
    state: dict[str, Any]

    def __new__(cls, *made_of: Any) -> _Stand:
        new = super().__new__(cls)
        new.made_of, new.state = made_of, {}
        return new

    def __call__(self, *made_of: Any) -> _Stand:
        return _Stand(*made_of)

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def name(self) -> Any:
        """The value of an enum's member, else None."""
        last = self.made_of[-1] if self.made_of else None
        return last.lower() if isinstance(last, str) else None


class _Unpickler(pickle.Unpickler):
    """Takes stand-ins for everything: neither classes nor functions are looked up."""

    def find_class(self, module: str, name: str) -> Any:
        return _Stand
