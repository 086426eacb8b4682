"""What was asked for, in the words that users type: a builder can only name its own arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from hf_wsd.errors import SettingsError, WSDError, unknown

TRAINER_FLAGS = ("max_steps", "warmup_steps")
# What Trainer hands to every scheduler by itself: asked for beside lr_scheduler_kwargs, never in them.
SCRIPT_FLAGS = {
    "num_warmup_steps": "--warmup_steps",
    "warmup_steps": "--warmup_steps",
    "warmup_ratio": "--warmup_steps, below 1 a part of the run",
    "num_training_steps": "--max_steps",
    "max_steps": "--max_steps",
}


def setting(name: str, value: Any) -> str:
    """A setting as a flag of the launcher, and the variable that it may have come from.

    >>> setting("decay_fraction", 1.5), setting("trunk", True)
    ('--decay-fraction 1.5 (or HF_WSD_DECAY_FRACTION)', '--trunk (or HF_WSD_TRUNK)')
    """
    if isinstance(value, Mapping):
        value = [f"{key}={number}" for key, number in value.items()]
    words = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
    return f"{' '.join(map(str, ['--' + name.replace('_', '-'), *words]))} (or HF_WSD_{name.upper()})"


def run_settings(
    steps: int | None,
    warmup_steps: int,
    kwargs: Mapping[str, Any] | None,
    flags: tuple[str, str] = TRAINER_FLAGS,
) -> list[str]:
    """What a script's own flags asked for; `flags` are its words for its length and its warm-up.

    >>> run_settings(800, 900, None)
    ['800 steps (--max_steps or epochs)', 'a warm-up of 900 (--warmup_steps)']
    >>> run_settings(None, 0, {"min_lr_ratio": 0.1})
    ['lr_scheduler_kwargs {"min_lr_ratio": 0.1}']
    """
    asked = [] if steps is None else [f"{steps} steps (--{flags[0]} or epochs)"]
    asked += [f"a warm-up of {warmup_steps} (--{flags[1]})"] if warmup_steps else []
    return asked + ([f"lr_scheduler_kwargs {json.dumps(kwargs, default=str)}"] if kwargs else [])


def add_asked(error: WSDError, asked: Iterable[str]) -> None:
    """Add to an error's message what was asked for, on a line of its own.

    >>> error = WSDError("warm-up (900) is longer than the run of 800")
    >>> add_asked(error, run_settings(800, 900, None))
    >>> print(error)
    warm-up (900) is longer than the run of 800
    (asked for: 800 steps (--max_steps or epochs); a warm-up of 900 (--warmup_steps))
    """
    if words := "; ".join(asked):
        error.args = (f"{error}\n(asked for: {words})",)


def no_such_setting(name: str, schedule: str, known: Mapping[str, Iterable[str]], fields: Iterable[str]) -> str:
    """The sentence for a name that a schedule has no setting of: where it belongs, or the nearest one.

    >>> known = {"wsd": ["decay_fraction"], "wsd_s": ["decay_fraction", "cycle_ends"]}
    >>> no_such_setting("cycle_ends", "wsd", known, [])
    "unknown setting 'cycle_ends': it is one of wsd_s. Known: decay_fraction. (lr_scheduler_type wsd)"
    """
    others = [other for other, names in known.items() if name in names]
    if name in SCRIPT_FLAGS:
        hint = f"the script has a flag for it ({SCRIPT_FLAGS[name]})"
    elif others:
        hint = f"it is one of {', '.join(others)}"
    elif name in fields:
        hint = f"it is a flag of the launcher, {setting(name, True)}"
    else:
        return f"{unknown('setting', name, known[schedule])} (lr_scheduler_type {schedule})"
    return f"unknown setting {name!r}: {hint}. Known: {', '.join(known[schedule])}. (lr_scheduler_type {schedule})"


def check_kwargs(kwargs: Any) -> None:
    """Refuse what Python could not hand to a schedule as keywords: transformers' own error would not say what it is.

    Raises:
        SettingsError: `kwargs` is no table of names, or names what Trainer gives by itself.

    >>> check_kwargs({"num_warmup_steps": 10})
    Traceback (most recent call last):
        ...
    hf_wsd.errors.SettingsError: num_warmup_steps in lr_scheduler_kwargs: give it as --warmup_steps
    """
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise SettingsError(
            f"lr_scheduler_kwargs is names and values such as '{{\"decay_fraction\": 0.2}}', not {kwargs!r}"
        )
    for name in kwargs or {}:
        if name in SCRIPT_FLAGS:
            raise SettingsError(f"{name} in lr_scheduler_kwargs: give it as {SCRIPT_FLAGS[name]}")
