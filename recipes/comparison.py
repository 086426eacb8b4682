"""What is compared, and what came out: arms, launches, their losses, differences with their spread."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, log, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from hf_wsd.history import to_json, write_atomically

BASELINE = "cosine"
SURE = 0.95  # of the interval that has to leave out 0 before a difference is called one


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to get a model at every budget.

    Args:
        name: as in tables.
        flags: of recipes/pretrain.py, beside the budgets.
        kind: "separate", a run for each budget; "family", a trunk and its decays in one process; "line", one run with
            a finished model at the end of each cycle; "constant", one run that is evaluated at the budgets.
    """

    name: str
    flags: tuple[str, ...]
    kind: str


ARMS = {
    arm.name: arm
    for arm in (
        Arm(name=BASELINE, flags=("--lr_scheduler_type", "cosine"), kind="separate"),
        Arm(name="linear to zero", flags=("--lr_scheduler_type", "linear"), kind="separate"),
        Arm(name="WSD, decays of 10 %", flags=("--decay_fraction", "0.1"), kind="family"),
        Arm(name="WSD, decays of 20 %", flags=("--decay_fraction", "0.2"), kind="family"),
        Arm(name="multi-step", flags=("--decay_fraction", "0.2", "--decay_type", "multi-step"), kind="family"),
        Arm(name="WSD-S", flags=("--lr_scheduler_type", "wsd_s"), kind="line"),
        Arm(name="cyclic cosine", flags=("--lr_scheduler_type", "cyclic_cosine"), kind="line"),
        Arm(name="constant", flags=("--lr_scheduler_type", "constant_with_warmup"), kind="constant"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One command of an arm, and what it gave.

    Args:
        arm, lr, seed: what was trained, at which peak lr.
        budgets: lengths of its models, in steps.
        losses: evaluation loss of the model at each budget, in nats per token.
        fork_losses: of a decay's trunk where the decay starts, by the budget of its model.
        evaluations: every evaluation on the way, by step (of a family: of its trunk).
        updates: that it trained.
        tokens_per_step: tokens of one update; None where its records do not say.
        seconds: from the command to its end; None where it was resumed, or did not run alone.
    """

    arm: str
    lr: float
    seed: int
    budgets: tuple[int, ...]
    losses: Mapping[int, float]
    fork_losses: Mapping[int, float]
    evaluations: Mapping[int, float]
    updates: int
    tokens_per_step: int | None
    seconds: float | None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Launch:
        """The launch as JSON stores it, with texts for steps."""
        by_step = {
            key: {int(step): loss for step, loss in stored[key].items()}
            for key in ("losses", "fork_losses", "evaluations")
        }
        return cls(**{**stored, **by_step, "budgets": tuple(stored["budgets"])})


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Loss of an arm minus loss of the baseline, paired by seed: same weights at the start, same order of the data.

    Args:
        mean, spread: mean and standard deviation over seeds, in nats; no spread of one seed.
        seeds: how many.
        half_width: of the 95 % interval of the mean (Student's t).
    """

    mean: float
    spread: float | None
    seeds: int
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        """The summary of differences, one per seed; that of a run that has diverged is not a number."""
        if not all(map(isfinite, values)):
            return cls(mean=nan, spread=None, seeds=len(values), half_width=None)
        spread = stdev(values) if len(values) > 1 else None
        width = spread and float(student.ppf((1 + SURE) / 2, len(values) - 1)) * spread / len(values) ** 0.5
        return cls(mean=fmean(values), spread=spread, seeds=len(values), half_width=width)

    @property
    def verdict(self) -> str:
        """What may be said: "lower" or "higher" only where the spread allows it."""
        if not isfinite(self.mean):
            return "diverged"
        if self.half_width is None or abs(self.mean) <= self.half_width:
            return "no difference seen"
        return "lower" if self.mean < 0 else "higher"


def _badness(loss: float) -> tuple[bool, float]:
    """Losses in the order of their worth: that of a run that has diverged is the worst."""
    return not isfinite(loss), loss


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All launches of a comparison, and what may be read from them.

    Args:
        settings: what was asked for, the same for all: steps, budgets, tuning_seed, arguments of recipes/pretrain.py.
        launches: as they ended.
    """

    settings: Mapping[str, Any]
    launches: tuple[Launch, ...] = ()

    @classmethod
    def read(cls, file: Path) -> Comparison:
        """The comparison in a file: a line with its settings, then one for each launch."""
        settings, *launches = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        return cls(settings=settings, launches=tuple(map(Launch.from_dict, launches)))

    def write(self, file: Path) -> None:
        """The file that `read` reads, whole or not at all."""
        rows = [dict(self.settings), *(asdict(launch) for launch in self.launches)]
        write_atomically(file, "".join(to_json(row) + "\n" for row in rows))

    @property
    def tuning_seed(self) -> int:
        """The seed that tried every peak lr."""
        return int(self.settings["tuning_seed"])

    def of(self, arm: str, budget: int | None = None) -> list[Launch]:
        """The launches of an arm that made the model of a budget, or any."""
        return [one for one in self.launches if one.arm == arm and (budget is None or budget in one.budgets)]

    @property
    def budgets(self) -> tuple[int, ...]:
        """Lengths of the models, shortest first."""
        return tuple(sorted({budget for one in self.launches for budget in one.budgets}))

    @property
    def arms(self) -> list[str]:
        """Names of the arms that have a launch, in the order of ARMS."""
        return [name for name in ARMS if self.of(name)]

    def ranking(self, arm: str, budget: int, *, seed: int | None = None) -> list[float]:
        """The peak lrs that most seeds have tried, or that one seed has, by the mean of their losses, lowest first.

        Separate runs are tuned for each budget; one trunk or line has one peak lr for all, by the mean over budgets.
        Not a number is worst.
        """
        tried = self._tried(arm, budget, seed)
        most = max(map(len, tried.values()), default=0)
        means = {lr: fmean(losses.values()) for lr, losses in tried.items() if len(losses) == most}
        return sorted(means, key=lambda lr: _badness(means[lr]))

    def _tried(self, arm: str, budget: int, seed: int | None = None) -> dict[float, dict[int, float]]:
        """By peak lr and seed: the loss that a peak lr is judged by."""
        tried: dict[float, dict[int, float]] = {}
        for one in self.of(arm, budget):
            if seed in (None, one.seed):
                loss = one.losses[budget] if ARMS[arm].kind == "separate" else fmean(one.losses.values())
                tried.setdefault(one.lr, {})[one.seed] = loss
        return tried

    def hopeful(self, arm: str, budget: int) -> float:
        """The peak lr that every seed should try: that with the lowest mean over the seeds it has so far.

        The tuning seed may be lucky with an lr that spoils the next: then another's turn comes.
        """
        tried = self._tried(arm, budget)
        return min(tried, key=lambda lr: _badness(fmean(tried[lr].values())))

    def tuned_at(self, arm: str) -> tuple[int, ...]:
        """Budgets for which an arm has a peak lr of its own: all of separate runs, else one that stands for all."""
        return self.budgets if ARMS[arm].kind == "separate" else self.budgets[-1:]

    def beyond(self, arm: str, budget: int) -> float | None:
        """The peak lr to try next: one more of the same ratio where the tuning seed's best is the lowest or highest."""
        best, *rest = self.ranking(arm, budget, seed=self.tuning_seed)
        if not rest or min(rest) < best < max(rest):
            return None
        return float(f"{best * best / min(rest, key=lambda lr: abs(log(lr / best))):.3g}")

    def lr_of(self, arm: str, budget: int) -> float | None:
        """The peak lr with which an arm's model of that budget is compared: the best of those that all seeds tried."""
        return next(iter(self.ranking(arm, budget)), None)

    def at_edge(self, arm: str, budget: int) -> bool:
        """Whether that peak lr is the lowest or the highest that was tried: a better one may lie outside."""
        tried = {one.lr for one in self.of(arm, budget)}
        return self.lr_of(arm, budget) in (min(tried), max(tried))

    def losses(self, arm: str, budget: int, *, of: str = "losses") -> dict[int, float]:
        """Loss by seed, at the tuned peak lr."""
        chosen = [one for one in self.of(arm, budget) if one.lr == self.lr_of(arm, budget)]
        return {one.seed: getattr(one, of)[budget] for one in chosen if budget in getattr(one, of)}

    def difference(self, arm: str, budget: int) -> Difference | None:
        """To the baseline, over the seeds that both have."""
        ours, theirs = self.losses(arm, budget), self.losses(BASELINE, budget)
        both = sorted(ours.keys() & theirs.keys())
        return Difference.of([ours[seed] - theirs[seed] for seed in both]) if both else None

    def updates(self, arm: str) -> int:
        """Updates that give one model at each budget."""
        return sum({one.budgets: one.updates for one in self.of(arm)}.values())

    def seconds(self, arm: str) -> float | None:
        """Wall-clock of the same, of launches that ran alone at any peak lr and seed; None where one never did."""
        times: dict[tuple[int, ...], list[float]] = {one.budgets: [] for one in self.of(arm)}
        for one in self.of(arm):
            times[one.budgets] += [one.seconds] if one.seconds else []
        return sum(map(fmean, times.values())) if times and all(times.values()) else None

    @property
    def tokens_per_step(self) -> int | None:
        """Of every launch alike, as the records say."""
        known = {one.tokens_per_step for one in self.launches} - {None}
        return known.pop() if len(known) == 1 else None

    def trap(self) -> dict[int, Difference]:
        """By budget: the checkpoint of the longest baseline run at that step, minus the run of that length."""
        *shorter, longest = self.budgets
        found = {}
        for budget in shorter:
            lr = self.lr_of(BASELINE, longest)
            runs = {one.seed: one for one in self.of(BASELINE, longest) if one.lr == lr}
            own = self.losses(BASELINE, budget)
            pairs = [one.evaluations[budget] - own[seed] for seed, one in runs.items() if seed in own]
            found |= {budget: Difference.of(pairs)} if pairs else {}
        return found

    def rows(self) -> Iterator[dict[str, Any]]:
        """The table: one row for each arm and budget."""
        for arm in self.arms:
            for budget in self.budgets:
                losses, forks = self.losses(arm, budget), self.losses(arm, budget, of="fork_losses")
                difference = self.difference(arm, budget)
                yield {
                    "arm": arm,
                    "budget": budget,
                    "tokens": budget * self.tokens_per_step if self.tokens_per_step else None,
                    "peak_lr": self.lr_of(arm, budget),
                    "at_edge_of_grid": self.at_edge(arm, budget) if losses else None,
                    "loss": fmean(losses.values()) if losses else None,
                    "spread": Difference.of([*losses.values()]).spread if losses else None,
                    "seeds": len(losses),
                    "trunk_loss_at_fork": fmean(forks.values()) if forks else None,
                    "difference": asdict(difference) | {"verdict": difference.verdict} if difference else None,
                }

    def costs(self) -> Iterator[dict[str, Any]]:
        """What each arm costs for a model at every budget, against the separate runs of the baseline."""
        base, clock = self.updates(BASELINE), self.seconds(BASELINE)
        for arm in self.arms:
            updates, seconds = self.updates(arm), self.seconds(arm)
            yield {
                "arm": arm,
                "updates": updates,
                "tokens": updates * self.tokens_per_step if self.tokens_per_step else None,
                "tokens_ratio": updates / base if base else None,
                "seconds": seconds,
                "seconds_ratio": seconds / clock if seconds and clock else None,
            }
