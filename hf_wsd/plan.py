"""From token budgets to a trunk, its branches and what they cost, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_wsd.checks import count
from hf_wsd.errors import ForkError
from hf_wsd.lengths import DEFAULT_DECAY_FRACTION, Length, decay_length, show_tokens, to_steps, total_for_fork

FLOPS_PER = 6  # of a parameter and a token: forward 2, backward 4 (arXiv 2001.08361)


@dataclass(frozen=True, kw_only=True)
class Decay:
    """One decayed model of a family: where its decay leaves the trunk and where the model ends.

    Raises:
        ForkError: no step is left for the trunk, or none for the decay.

    >>> Decay(fork=900, end=1000).steps
    100
    """

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


def read_budgets(
    budgets: Sequence[str | Length], *, of: str | None = None, **per_step: int | None
) -> tuple[dict[int, Length], int | None]:
    """Budgets by the step at which their models end, shortest first; and the steps of the whole.

    Args:
        budgets: lengths; of two with the same end the first counts.
        of: the whole of which "30%" is a part; None is the longest budget.
        per_step: tokens_per_step and samples_per_step, as in `Length.steps`.

    Raises:
        ScheduleError: a length that cannot be read, or not be turned into steps.

    >>> read_budgets(["2K", "50%", "1000"], tokens_per_step=1)
    ({1000: Length(text='50%'), 2000: Length(text='2K')}, 2000)
    """
    lengths = [Length(str(budget)) for budget in budgets]
    longest = max((length.steps(**per_step) for length in lengths if length.kind != "part"), default=None)
    whole = to_steps(of, **per_step) or longest
    ends = {length.steps(**per_step, of=whole): length for length in reversed(lengths)}
    return dict(sorted(ends.items())), whole


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
        samples_per_step: int | None = None,
        of: str | None = None,
        num_decay_steps: int | str | None = None,
        decay_fraction: float | None = None,
    ) -> Plan:
        """The plan with one decayed model per budget.

        Args:
            budgets: lengths of the decayed models, decay included: tokens ("1.5B"), steps ("3000"), samples
                ("640samples") or parts of the whole ("30%").
            tokens_per_step: tokens of one update over all processes; needed for lengths in tokens.
            samples_per_step: samples of one update over all processes; needed for lengths in samples.
            of: the whole of which "30%" is a part; None is the longest budget.
            num_decay_steps: the same decay for every budget, in steps or as a length ("10%" is of the whole).
            decay_fraction: decay steps over the steps of each decayed model; at most one of the two, neither is 0.1.

        Raises:
            ScheduleError: a length that cannot be read or is too short.

        >>> plan = Plan.of_budgets(["20%", "100%"], of="1000", num_decay_steps="10%")
        >>> [(decay.fork, decay.end) for decay in plan.decays]
        [(100, 200), (900, 1000)]
        """
        known = {"tokens_per_step": tokens_per_step, "samples_per_step": samples_per_step}
        ends, whole = read_budgets(budgets, of=of, **known)
        decay_steps = to_steps(num_decay_steps, **known, of=whole)
        decays = []
        for end, length in ends.items():
            steps = decay_length(end, num_decay_steps=decay_steps, decay_fraction=decay_fraction)
            decays.append(Decay(fork=end - steps, end=end, requested=length))
        return cls(decays=tuple(sorted(decays, key=lambda d: d.end)), tokens_per_step=tokens_per_step)

    @classmethod
    def of_forks(
        cls,
        forks: Sequence[int | str],
        *,
        tokens_per_step: int | None = None,
        samples_per_step: int | None = None,
        num_decay_steps: int | str | None = None,
        decay_fraction: float | None = None,
    ) -> Plan:
        """The plan with one decayed model per fork point: the smallest whose decay starts there.

        Args and Raises: as in `of_budgets`; `forks` are lengths of trunk whose checkpoints are saved.

        >>> [decay.end for decay in Plan.of_forks([90, 900]).decays]
        [100, 1000]
        """
        known = {"tokens_per_step": tokens_per_step, "samples_per_step": samples_per_step}
        decay_steps = to_steps(num_decay_steps, **known) if forks else None
        decays = []
        for length in forks:
            fork = count("fork point", to_steps(length, **known), at_least=1)
            if decay_steps is None:
                end = total_for_fork(fork, DEFAULT_DECAY_FRACTION if decay_fraction is None else decay_fraction)
            else:
                end = fork + decay_length(fork, num_decay_steps=decay_steps, decay_fraction=decay_fraction)
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


def branch_name(decay: Decay, shape: str, params: Mapping[str, float] | None = None) -> str:
    """The folder name of a branch: fork point, shape with its parameters, decay steps.

    >>> branch_name(Decay(fork=900, end=1000), "power", {"p": 1.5})
    '900-power-p1.5-100'
    """
    words = [shape.replace(":", "."), *(f"{name}{value:g}" for name, value in (params or {}).items())]
    return f"{decay.fork}-{'-'.join(words)}-{decay.steps}"


def training_flops(parameters: int, tokens: int) -> int:
    """Training compute in FLOPs by the usual estimate C = 6 N D (`FLOPS_PER`), embeddings counted once.

    >>> training_flops(124_000_000, 10**9)
    744000000000000000
    """
    return FLOPS_PER * parameters * tokens
