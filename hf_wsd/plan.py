"""From token budgets to a trunk, its branches and what they cost, before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_wsd.builders import decay_length, total_for_fork
from hf_wsd.checks import count
from hf_wsd.errors import ForkError, ScheduleError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_LENGTH = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)([KMBT]?)", re.IGNORECASE)


def is_length(text: Any) -> bool:
    """Whether a text is a length: tokens with a unit, or a whole number of steps."""
    match = _LENGTH.fullmatch(text) if isinstance(text, str) else None
    return match is not None and float(match[1]) > 0 and (match[2] != "" or "." not in text)


@dataclass(frozen=True)
class Length:
    """A length as the user wrote it: `1.5B` is tokens, a bare whole number is steps.

    >>> Length("2M").steps(tokens_per_step=2048), Length("300").steps()
    (977, 300)
    """

    text: str

    def __post_init__(self) -> None:
        if not is_length(self.text):
            raise ScheduleError(
                f"{self.text!r} is no length: write tokens as 400K, 2M or 1.5B, steps as a whole number"
            )

    @property
    def tokens(self) -> int | None:
        """The number of tokens asked for, or None if the length is in steps."""
        match = _LENGTH.fullmatch(self.text)
        assert match  # checked when the length was made
        return round(float(match[1]) * UNITS[match[2].upper()]) if match[2] else None

    def steps(self, tokens_per_step: int | None = None) -> int:
        """The length in steps, rounded to the nearest.

        Raises:
            ScheduleError: it is in tokens and nobody knows the tokens of a step, or it is less than half a step.
        """
        if self.tokens is None:
            return int(self.text)
        if tokens_per_step is None:
            raise ScheduleError(
                f"{self.text} is tokens, but the tokens of one step are not known here: give lengths in steps, or say "
                "how many tokens a step has (--tokens-per-step)"
            )
        steps = round(self.tokens / count("tokens_per_step", tokens_per_step, at_least=1))
        if steps == 0:
            raise ScheduleError(f"{self.text} tokens are less than half a step of {tokens_per_step} tokens")
        return steps

    def __str__(self) -> str:
        return self.text


def show_tokens(tokens: float | None) -> str:
    """A number of tokens for people.

    >>> show_tokens(409600), show_tokens(1.5e9), show_tokens(None)
    ('409.6K', '1.5B', '?')
    """
    if tokens is None:
        return "?"
    unit = next((u for u in "TBMK" if tokens >= UNITS[u]), "")
    return f"{tokens / UNITS[unit]:.4g}{unit}"


@dataclass(frozen=True, kw_only=True)
class Decay:
    """One decayed model of a family: where its decay leaves the trunk and where the model ends."""

    fork: int
    end: int
    requested: Length | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fork < self.end:
            asked = f" ({self.requested})" if self.requested else ""
            raise ForkError(f"a model of {self.end} steps{asked} cannot have a decay of {self.steps} steps")

    @property
    def steps(self) -> int:
        """Updates of the decay."""
        return self.end - self.fork


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A trunk with its decays, shortest first, and the cost of both.

    >>> plan = Plan.of_budgets(["100", "300", "500", "700", "1000"])
    >>> [d.fork for d in plan.decays], plan.trunk_steps
    ([90, 270, 450, 630, 900], 900)
    >>> plan.family_steps, plan.separate_steps, round(plan.saving, 3)
    (1160, 2600, 0.554)
    """

    decays: tuple[Decay, ...]
    tokens_per_step: int | None = None

    @classmethod
    def of_budgets(
        cls,
        budgets: Sequence[str | Length],
        *,
        tokens_per_step: int | None = None,
        num_decay_steps: int | None = None,
        decay_fraction: float | None = None,
    ) -> Plan:
        """The plan with one decayed model per budget.

        Args:
            budgets: lengths of the decayed models, decay included: tokens ("1.5B") or steps ("3000").
            tokens_per_step: tokens of one update over all processes; needed for budgets in tokens.
            num_decay_steps: the same decay for every budget, in steps.
            decay_fraction: decay steps over the steps of each decayed model; at most one of the two, neither is 0.1.

        Raises:
            ScheduleError: a length that cannot be read or is too short.
        """
        lengths = dict.fromkeys(Length(str(budget)) for budget in budgets)
        decays = []
        for length in lengths:
            end = length.steps(tokens_per_step)
            steps = decay_length(end, num_decay_steps=num_decay_steps, decay_fraction=decay_fraction)
            decays.append(Decay(fork=end - steps, end=end, requested=length))
        return cls(decays=tuple(sorted(decays, key=lambda d: d.end)), tokens_per_step=tokens_per_step)

    @classmethod
    def of_forks(
        cls,
        forks: Sequence[int],
        *,
        tokens_per_step: int | None = None,
        num_decay_steps: int | None = None,
        decay_fraction: float | None = None,
    ) -> Plan:
        """The plan with one decayed model per fork point: the smallest whose decay starts there.

        Args and Raises: as in `of_budgets`; `forks` are steps of saved checkpoints.
        """
        decays = []
        for fork in forks:
            count("fork point", fork, at_least=1)
            if num_decay_steps is None:
                end = total_for_fork(fork, 0.1 if decay_fraction is None else decay_fraction)
            else:
                end = fork + decay_length(fork, num_decay_steps=num_decay_steps, decay_fraction=decay_fraction)
            decays.append(Decay(fork=fork, end=end))
        return cls(decays=tuple(sorted(decays, key=lambda d: d.end)), tokens_per_step=tokens_per_step)

    @property
    def trunk_steps(self) -> int:
        """Updates of the trunk: up to the last fork point."""
        return max((decay.fork for decay in self.decays), default=0)

    @property
    def family_steps(self) -> int:
        """Updates of the trunk and all decays."""
        return self.trunk_steps + sum(decay.steps for decay in self.decays)

    @property
    def separate_steps(self) -> int:
        """Updates of one separate run per budget."""
        return sum(decay.end for decay in self.decays)

    @property
    def saving(self) -> float:
        """Part of the separate runs' compute that the family saves, at most 1."""
        return 1 - self.family_steps / self.separate_steps if self.decays else 0.0

    def tokens(self, steps: int) -> int | None:
        """Tokens of that many updates, or None where the tokens of a step are not known."""
        return None if self.tokens_per_step is None else steps * self.tokens_per_step

    def __str__(self) -> str:
        return "\n".join(self._line(decay) for decay in self.decays)

    def _line(self, decay: Decay) -> str:
        fork, end = show_tokens(self.tokens(decay.fork)), show_tokens(self.tokens(decay.end))
        return (
            f"{decay.requested or '-'!s:>6}: decay from step {decay.fork} ({fork} tokens), "
            f"the model ends at step {decay.end} ({end} tokens)"
        )


def training_flops(parameters: int, tokens: int) -> int:
    """Training compute in FLOPs by the usual estimate C = 6 N D (arXiv 2001.08361), embeddings counted once.

    >>> training_flops(124_000_000, 10**9)
    744000000000000000
    """
    return 6 * parameters * tokens
