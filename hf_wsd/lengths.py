"""Lengths as people write them, and the one place where they become steps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from hf_wsd.checks import count, fraction
from hf_wsd.errors import ScheduleError

DEFAULT_DECAY_FRACTION = 0.1
Span = tuple[int, int]  # of updates: from the first to before the second
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LENGTH = re.compile(
    r"(\d{1,18}(?:\.\d{1,18})?)([KMBT]?)(steps|tokens|samples)?|(\d{1,18}(?:\.\d{1,18})?)%", re.I | re.A
)
_HOW = "write tokens as 400K, 2M or 1.5B, steps as a whole number, samples as 640samples, a part of the whole as 10%"


def is_length(text: Any) -> bool:
    """Whether a text is a length that `Length` can read.

    >>> [is_length(text) for text in ("1.5B", "3000", "640samples", "10%", "1.5", "run.py")]
    [True, True, True, True, False, False]
    """
    match = _LENGTH.fullmatch(text) if isinstance(text, str) else None
    if match is None or float(match[1] or match[4]) <= 0:
        return False
    number, kind = _read(match)
    return kind == "part" or number == round(number)


def _read(match: re.Match[str]) -> tuple[float, str]:
    """Number and kind: decimals are exact, and whole numbers stay whole, however large."""
    if match[4]:
        return float(Fraction(match[4]) / 100), "part"
    number = Fraction(match[1]) * UNITS[match[2].upper()]
    kind = (match[3] or ("tokens" if match[2] else "steps")).lower()
    return int(number) if number.denominator == 1 else float(number), kind


def nearest(steps: float) -> int:
    """The whole number of steps nearest to a length, halves to even: the only rounding of lengths.

    >>> nearest(0.29 * 100), nearest(2.5)
    (29, 2)
    """
    return round(steps)


@dataclass(frozen=True)
class Length:
    """A length as the user wrote it.

    `1.5B` is tokens, a bare whole number is steps, `640samples` is samples, `10%` is a part of the whole; `tokens`,
    `samples` and `steps` may follow any number: `2048tokens`, `1.5Msamples`, `10Ksteps`.

    Raises:
        ScheduleError: the text is no length above 0.

    >>> Length("2M").steps(tokens_per_step=2048), Length("300").steps(), Length("640samples").steps(samples_per_step=64)
    (977, 300, 10)
    >>> Length("10%").steps(of=2990)
    299
    """

    text: str

    def __post_init__(self) -> None:
        if not is_length(self.text):
            raise ScheduleError(f"{self.text!r} is no length: {_HOW}")

    @cached_property
    def _amount(self) -> tuple[float, str]:
        match = _LENGTH.fullmatch(self.text)
        assert match  # checked when the length was made
        return _read(match)

    @property
    def kind(self) -> str:
        """What is counted: "steps", "tokens", "samples" or "part"."""
        return self._amount[1]

    @property
    def tokens(self) -> int | None:
        """The number of tokens asked for, or None if the length is in something else."""
        return round(self._amount[0]) if self.kind == "tokens" else None

    def steps(
        self, tokens_per_step: int | None = None, *, samples_per_step: int | None = None, of: int | None = None
    ) -> int:
        """The length in steps, rounded to the nearest.

        Args:
            tokens_per_step: tokens of one update over all processes, at least 1.
            samples_per_step: samples of one update over all processes, at least 1.
            of: steps of the whole of which `10%` is a part.

        Raises:
            ScheduleError: what is counted has no known number per step, or the length is less than half a step.
        """
        number, kind = self._amount
        if kind == "steps":
            return int(number)
        name = {"tokens": "tokens_per_step", "samples": "samples_per_step", "part": "of"}[kind]
        size = {"tokens": tokens_per_step, "samples": samples_per_step, "part": of}[kind]
        if size is None:
            raise ScheduleError(f"{self.text} {_UNKNOWN[kind]}")
        size = count(name, size, at_least=1)
        steps = nearest(number * size if kind == "part" else number / size)
        if steps == 0:
            raise ScheduleError(
                f"{self.text} of {size} steps is less than half a step"
                if kind == "part"
                else f"{self.text} is less than half a step of {size} {kind}"
            )
        return steps

    def __str__(self) -> str:
        return self.text


_UNKNOWN = {
    "tokens": "is tokens, but the tokens of one step are not known here: give lengths in steps, or say how many tokens "
    "a step has (--tokens-per-step)",
    "samples": "is samples, but the samples of one step are not known here: give lengths in steps, or say how many "
    "samples a step has (--samples-per-step)",
    "part": "is a part of a whole that has no length here: give the longest in steps or tokens (or `hf-wsd plan --of`)",
}


def to_steps(length: Any, **known: int | None) -> Any:
    """A length in steps: texts are read as `Length`, everything else is returned as it is.

    >>> to_steps("2M", tokens_per_step=2000), to_steps(1000), to_steps(None)
    (1000, 1000, None)
    """
    if isinstance(length, str):
        length = Length(length)
    return length.steps(**known) if isinstance(length, Length) else length


def show_tokens(tokens: float | None) -> str:
    """A number of tokens for people.

    >>> show_tokens(409600), show_tokens(1.5e9), show_tokens(None)
    ('409.6K', '1.5B', '?')
    """
    if tokens is None:
        return "?"
    unit = next((u for u in "TBMK" if tokens >= UNITS[u]), "")
    return f"{tokens / UNITS[unit]:.4g}{unit}"


def decay_length(length: int, *, num_decay_steps: int | None = None, decay_fraction: float | None = None) -> int:
    """Decay steps of a model (or cycle) of `length` steps: as given, or `round(fraction * length)`; fraction 0.1.

    Raises:
        ScheduleError: both are given, or the fraction rounds to no step.

    >>> decay_length(1000), decay_length(1000, decay_fraction=0.29), decay_length(1000, num_decay_steps=5)
    (100, 290, 5)
    """
    if num_decay_steps is not None and decay_fraction is not None:
        raise ScheduleError(f"give num_decay_steps ({num_decay_steps}) or decay_fraction ({decay_fraction}), not both")
    if num_decay_steps is not None:
        return count("num_decay_steps", num_decay_steps)
    part = fraction("decay_fraction", DEFAULT_DECAY_FRACTION if decay_fraction is None else decay_fraction)
    steps = nearest(part * length)
    if steps == 0:
        raise ScheduleError(f"a decay of {part:g} of {length} steps is no step: give num_decay_steps")
    return steps


def total_for_fork(fork: int, decay_fraction: float) -> int:
    """The smallest total T whose decay of `round(decay_fraction * T)` steps starts at step `fork`.

    Raises:
        ScheduleError: the fork comes too early for a decay of that fraction to have a step.

    >>> total_for_fork(900, 0.1), total_for_fork(80, 0.2)
    (1000, 100)
    """
    fork = count("fork point", fork, at_least=1)
    fraction("decay_fraction", decay_fraction)
    total = max(fork, int((fork - 0.5) / (1 - decay_fraction)) - 2)
    while total - nearest(decay_fraction * total) < fork:  # T - round(f T) grows by 0 or 1 a step: every fork is met
        total += 1
    if total == fork:  # no step of decay yet; one more step is one of decay, or else too many of trunk
        total += 1
    if total - nearest(decay_fraction * total) != fork:
        raise ScheduleError(f"a decay of {decay_fraction:g} from step {fork} is no step: give num_decay_steps")
    return total


def show_spans(spans: Iterable[Span]) -> str:
    """Spans of updates in words, each with its last.

    >>> show_spans([(60, 70), (80, 85)])
    '60-69, 80-84'
    """
    return ", ".join(f"{start}-{stop - 1}" for start, stop in spans)
