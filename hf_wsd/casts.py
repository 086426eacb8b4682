"""What people type, texts or numbers, in the type that a setting has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hf_wsd.errors import SettingsError
from hf_wsd.lengths import Length, is_length


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)  # transformers turns "10" into an int and leaves "1e-3" a string


def _whole_number(value: Any) -> int | float:
    number = _number(value)
    return int(number) if number.is_integer() else number


def _length(value: Any) -> int | float | str:
    """Steps as a number; tokens, samples and parts as the text that `Length` reads."""
    if is_length(value) and Length(value).kind != "steps":
        return str(value)
    return Length(value).steps() if is_length(value) else _whole_number(value)


def _words(value: Any) -> list[Any]:
    if isinstance(value, Mapping):  # its names would be taken for the values
        raise TypeError
    return value.replace(",", " ").split() if isinstance(value, str) else list(value)


def _lengths(value: Any) -> list[int | float | str]:
    return [_length(word) for word in _words(value)]


def _numbers(value: Any) -> list[float]:
    return [_number(word) for word in _words(value)]


def _named_numbers(value: Any) -> dict[str, int | float]:
    """`p=1.5`, several apart from each other by commas or spaces, or a mapping."""
    pairs = list(value.items() if isinstance(value, Mapping) else [word.split("=") for word in _words(value)])
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice")
    return {str(name): _whole_number(number) for name, number in pairs}


CASTS: dict[str, Callable[[Any], Any]] = {
    "num_decay_steps": _length,
    "decay_fraction": _number,
    "decay_type": str,
    "decay_params": _named_numbers,
    "min_lr_ratio": _number,
    "num_min_steps": _length,
    "num_stable_steps": _length,
    "warmup_type": str,
    "warmup_start": _number,
    "cycle_ends": _lengths,
    "cycle_peaks": _numbers,
    "num_rewarmup_steps": _length,
    "rewarmup_fraction": _number,
    "milestones": _lengths,
    "milestone_fractions": _numbers,
    "multipliers": _numbers,
    "tokens_per_step": _whole_number,
    "samples_per_step": _whole_number,
    "calls_per_update": _whole_number,
    "allow": _words,
    "expect": str,
    "rewarmup_at": _whole_number,
    "rewarmup_steps": _whole_number,
    "keep_every": _length,
    "finish_by": str,
    "time_budget": str,
    "job_time_limit": str,
    "on_job_end": str,
    "on_damage": str,
    "decay_optimizer": _named_numbers,
}


def cast(name: str, value: Any) -> Any:
    """The value of a schedule setting in its type; strings, numbers and lists are understood.

    Raises:
        SettingsError: the value cannot be read as what the setting is.

    >>> cast("decay_fraction", "1e-1"), cast("cycle_ends", ["100", 200])
    (0.1, [100, 200])
    """
    try:
        return None if value is None else CASTS[name](value)
    except (AttributeError, TypeError, ValueError, OverflowError):
        kind = CASTS[name].__name__.strip("_").replace("_", " ")
        raise SettingsError(f"{name}={value!r} cannot be read as {kind}") from None


def show_numbers(named: Mapping[str, float]) -> str:
    """Named numbers as people type them.

    >>> show_numbers({"beta2": 0.99, "weight_decay": 0.05})
    'beta2=0.99 weight_decay=0.05'
    """
    return " ".join(f"{name}={number}" for name, number in named.items())
