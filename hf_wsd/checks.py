"""Checks of single numbers: each returns the number, or says what was asked, what is allowed and the repair."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin

from hf_wsd.errors import ScheduleError


def count(name: str, value: Any, *, at_least: int = 0) -> int:
    """`value` as a whole number of steps.

    Raises:
        ScheduleError: it is no whole number, or below `at_least`; a fraction is named as one.

    >>> count("num_warmup_steps", 10)
    10
    >>> count("num_decay_steps", 0.2)
    Traceback (most recent call last):
        ...
    hf_wsd.errors.ScheduleError: num_decay_steps is a number of steps, not 0.2: a fraction is written decay_fraction=0.2
    >>> count("num_decay_steps", 20.5)
    Traceback (most recent call last):
        ...
    hf_wsd.errors.ScheduleError: num_decay_steps is a number of steps, not 20.5
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = int(operator.index(value))
    except TypeError:
        is_fraction = name == "num_decay_steps" and isinstance(value, float) and 0 < value < 1
        repair = f": a fraction is written decay_fraction={value}" if is_fraction else ""
        raise ScheduleError(f"{name} is a number of steps, not {value!r}{repair}") from None
    if number < at_least:
        raise ScheduleError(f"{name} must be at least {at_least}, not {number}")
    return number


def ratio(name: str, value: Any) -> float:
    """`value` as a multiplier in [0, 1].

    Raises:
        ScheduleError: it is no number, or outside.

    >>> ratio("min_lr_ratio", 1.5)
    Traceback (most recent call last):
        ...
    hf_wsd.errors.ScheduleError: min_lr_ratio must lie in [0, 1], as a part of the peak lr, not 1.5
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
        return value
    raise ScheduleError(f"{name} must lie in [0, 1], as a part of the peak lr, not {value!r}")


def fraction(name: str, value: Any) -> float:
    """`value` as a part of a length, strictly between 0 and 1.

    Raises:
        ScheduleError: it is no number, or outside.

    >>> fraction("decay_fraction", 20)
    Traceback (most recent call last):
        ...
    hf_wsd.errors.ScheduleError: decay_fraction must lie strictly between 0 and 1, not 20: 20 % is 0.2
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1:
        return value
    hint = f": {value} % is {value / 100:g}" if isinstance(value, (int, float)) and 1 < value < 100 else ""
    raise ScheduleError(f"{name} must lie strictly between 0 and 1, not {value!r}{hint}")


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value read from a file is what a dataclass field's type hint says.

    >>> has_type(None, int | None), has_type({"a": "x"}, Mapping[str, float]), has_type((1, 2.5), tuple[float, ...])
    (True, False, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is UnionType:
        return any(has_type(value, one) for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(has_type(item, inner[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(
            has_type(k, inner[0]) and has_type(v, inner[1]) for k, v in value.items()
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
