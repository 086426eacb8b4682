"""A schedule from what the user points at: a run, a checkpoint, a file, or a call such as `wsd(1000)`."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

from hf_wsd.baselines import constant, cosine, cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import CheckpointError, SettingsError, WSDError, unknown
from hf_wsd.family import read_run
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.schedule import Schedule

CALLS: dict[str, Callable[..., Schedule]] = {
    "wsd": wsd,
    "wsd_s": wsd_s,
    "cosine": cosine,
    "cyclic_cosine": cyclic_cosine,
    "multi_step": multi_step,
    "constant": constant,
}


def read_schedule(source: str) -> tuple[Schedule, int | None]:
    """The schedule that a text names, and the last step to show of one that is open-ended.

    Args:
        source: a call of a builder, a folder (checkpoint, run or branch) or a file (`wsd.json`, or what
            `Schedule.to_dict` wrote).

    Raises:
        SettingsError: it is none of them. WSDError: as the builder or the reader says.

    >>> read_schedule("wsd(100, num_decay_steps=20)")[0].checkpoint_steps()
    {80: 'pre-decay', 100: 'post-decay'}
    """
    if re.match(r"\w+\(", source):
        return _call(source), None
    path = Path(source)
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        raise SettingsError(f"{source!r} is no run, checkpoint or file, and no call such as 'wsd(1000)'")
    if (path / RECORD).exists():
        record = Lineage.read(path)
    elif (path / "scheduler.pt").exists():
        return _scheduler_state(path / "scheduler.pt"), None
    else:
        record = read_run(path).identity
    return record.schedule, record.last_step


def _file(path: Path) -> tuple[Schedule, int | None]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as JSON ({error})") from None
    if isinstance(data, dict) and "schedule" in data:
        record = Lineage.from_dict(data)
        return record.schedule, record.last_step
    return Schedule.from_dict(data), None


def _call(text: str) -> Schedule:
    """A builder called with plain values; nothing else is evaluated."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not one call")
        values = [ast.literal_eval(value) for value in call.args]
        named = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        if len(named) < len(call.keywords):
            raise ValueError(f"a word twice: {', '.join(str(word.arg) for word in call.keywords)}")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise SettingsError(f"{text!r} cannot be read ({error}): write wsd(1000, decay_fraction=0.2)") from None
    if call.func.id not in CALLS:
        raise SettingsError(unknown("schedule", call.func.id, CALLS))
    try:
        return CALLS[call.func.id](*values, **named)
    except WSDError:
        raise
    except TypeError as error:
        raise SettingsError(f"{text!r}: {error}") from None


def _scheduler_state(file: Path) -> Schedule:
    """The schedule in a checkpoint whose record is lost; torch is needed to read it."""
    import torch

    try:
        state = torch.load(file, weights_only=True)
    except Exception as error:  # torch and pickle raise what they like
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or "schedule" not in state:
        raise CheckpointError(f"{file} was written by another scheduler: there is no wsd schedule in it")
    return Schedule.from_dict(state["schedule"])
