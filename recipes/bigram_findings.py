"""What the bigram runs show: statements with their numbers, and a table; nothing is trained.

python recipes/bigram_findings.py recipes/results/bigram.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from hf_wsd.errors import DataError, WSDError

ERRORS = 2.0  # standard errors from which a difference is one
HOLDS = {True: "yes", False: "**no**", None: "not to be told"}
NAMES = {"table": "Table of logits, SGD", "gpt2": "GPT-2, AdamW"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Args:
        model: "table" or "gpt2".
        schedule: "constant", "WSD", "WSD-S" or "cosine".
        lr: the peak lr.
        seed: of the language, the samples and the weights.
        losses: by step, what certain and uncertain bigrams add to the loss above the entropy, in nats a token.
    """

    model: str
    schedule: str
    lr: float
    seed: int
    losses: dict[int, tuple[float, float]]

    @property
    def end(self) -> np.ndarray:
        """Certain and uncertain loss after the last step; with a constant lr the mean over the last fifth of the run.

        A model of the stable phase is one throw among the hills: over five seeds of the table, the last step alone puts
        the gain of a decay at 5 standard errors, the mean (from which the certain ones lose a little) at some 20.
        """
        last = max(self.losses)
        steps = [step for step in self.losses if step > last * 4 / 5] if self.schedule == "constant" else [last]
        return np.mean([self.losses[step] for step in steps], axis=0)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A claim of the theory, whether it holds here (None: the spread over seeds is too large to say), and numbers."""

    claim: str
    holds: bool | None
    numbers: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All runs of one model.

    Args:
        model: "table" or "gpt2".
        lr: the peak lr at which the schedules are compared.
        limit: 2 / the largest curvature at the optimum (SGD is stable below it), where it is known.
        runs: constant and WSD at several peak lrs, the others at `lr` alone; the same seeds.
    """

    model: str
    lr: float
    limit: float | None
    runs: tuple[Run, ...]

    @property
    def lrs(self) -> list[float]:
        """Peak lrs, rising."""
        return sorted({run.lr for run in self.runs})

    def ends(self, schedule: str, lr: float) -> np.ndarray:
        """Final losses, shape (seeds, 2): certain, uncertain."""
        chosen = [run for run in self.runs if (run.schedule, run.lr) == (schedule, lr)]
        return np.array([run.end for run in sorted(chosen, key=lambda run: run.seed)])

    def gains(self, lr: float) -> np.ndarray:
        """Constant minus WSD after the same steps, shape (seeds, 2): what the decay gave."""
        return self.ends("constant", lr) - self.ends("WSD", lr)

    def curve(self, schedule: str, lr: float) -> tuple[list[int], np.ndarray]:
        """Steps and the mean loss over the seeds."""
        runs = [run for run in self.runs if (run.schedule, run.lr) == (schedule, lr)]
        steps = sorted(runs[0].losses)
        return steps, np.array([np.mean([sum(run.losses[step]) for run in runs]) for step in steps])

    def statements(self) -> Iterator[Statement]:
        """What theory says of such a landscape."""
        gains = self.gains(self.lr)
        mean, error = spread(gains.sum(axis=1))
        yield Statement(
            claim="decayed loss is below stable loss by more than ten standard errors",
            holds=mean > 10 * error,
            numbers=f"{mean:.4f} +- {error:.4f} at lr {self.lr:g}: {mean / error:.0f} standard errors",
        )
        more, error = spread(gains[:, 1] - gains[:, 0])
        certain, uncertain = gains.mean(axis=0)
        yield Statement(
            claim="uncertain bigrams gain more from the decay than certain ones",
            holds=more > 3 * error,
            numbers=f"{uncertain:.4f} and {certain:.4f}: {more / error:.0f} standard errors apart",
        )
        noisy = self.noisy_lrs
        for claim, schedule, sign in (("stable loss rises", "constant", 1), ("decayed loss falls", "WSD", -1)):
            losses = [self.ends(schedule, lr).sum(axis=1) for lr in noisy]
            yield _trend(f"{claim} with lr (from the lowest stable loss on, up to stability)", noisy, losses, sign)
        rivers = [self.ends("WSD", lr)[:, 0] for lr in self.lrs]
        yield _trend("progress along the river grows with lr: certain bigrams end lower", self.lrs, rivers, -1)

    @property
    def noisy_lrs(self) -> list[float]:
        """Peak lrs up to stability at which noise and not the way counts: from the last on with the lowest stable loss.

        Those within ERRORS standard errors of the lowest (paired by seed) are as low: the lowest of several is chance.
        """
        stable = {lr: self.ends("constant", lr).sum(axis=1) for lr in self.lrs}
        lowest = min(self.lrs, key=lambda lr: stable[lr].mean())
        last = max(lr for lr in self.lrs if _beyond(stable[lr] - stable[lowest]) != 1)
        return [lr for lr in self.lrs if lr >= last and (self.limit is None or lr <= self.limit)]


def _beyond(values: np.ndarray) -> int:
    """The sign of a mean over seeds; 0 where it is within ERRORS standard errors of 0."""
    mean, error = spread(values)
    return int(np.sign(mean)) if abs(mean) > ERRORS * error else 0


def _trend(claim: str, lrs: Sequence[float], losses: Sequence[np.ndarray], sign: int) -> Statement:
    """Whether a loss moves one way from each lr to the next, in differences paired by seed."""
    steps = [sign * _beyond(after - before) for before, after in pairwise(losses)]
    means = ", ".join(f"{loss.mean():.4f}" for loss in losses)
    unclear = [f"{a:g} to {b:g}" for (a, b), step in zip(pairwise(lrs), steps, strict=True) if step == 0]
    told = f"; within {ERRORS:g} standard errors: {', '.join(unclear)}" if unclear else ""
    holds = False if -1 in steps else None if unclear or not steps else True
    return Statement(claim=claim, holds=holds, numbers=f"lr {lrs[0]:g} to {lrs[-1]:g}: {means}{told}")


def spread(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def describe(all_findings: list[Findings], curvature_error: float) -> Iterator[str]:
    """The results as lines of Markdown."""
    for found in all_findings:
        seeds = len(found.ends("WSD", found.lr))
        yield f"### {NAMES[found.model]}, {seeds} seeds\n"
        yield "| statement | holds | numbers |\n|---|---|---|"
        yield from (f"| {s.claim} | {HOLDS[s.holds]} | {s.numbers} |" for s in found.statements())
        if found.model == "table":
            holds = HOLDS[curvature_error < 1e-6]
            yield f"| curvature is p(i) (diag(P_i) - P_i P_i^T) | {holds} | largest difference {curvature_error:.0e} |"
        yield "\n| schedule | peak lr | loss | certain | uncertain |\n|---|---|---|---|---|"
        rows = {(run.schedule, run.lr) for run in found.runs}
        for schedule, lr in sorted(rows):
            ends = found.ends(schedule, lr)
            mean, error = spread(ends.sum(axis=1))
            certain, uncertain = ends.mean(axis=0)
            yield f"| {schedule} | {lr:g} | {mean:.4f} +- {error:.4f} | {certain:.4f} | {uncertain:.4f} |"
        yield ""


def write(file: Path, all_findings: list[Findings], curvature_error: float) -> None:
    """The results as JSON."""
    stored = {"curvature_error": curvature_error, "findings": [asdict(found) for found in all_findings]}
    file.write_text(json.dumps(stored) + "\n", encoding="utf-8")


def read(file: Path) -> tuple[list[Findings], float]:
    """What `write` has written.

    Raises:
        DataError: the file is something else.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        found = [
            Findings(**one | {"runs": tuple(Run(**run | {"losses": by_step(run)}) for run in one["runs"])})
            for one in stored["findings"]
        ]
        return found, float(stored["curvature_error"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} has no results of recipes/bigram.py ({error!r}): run that first") from error


def by_step(run: dict) -> dict[int, tuple[float, float]]:
    """The losses of a stored run: JSON has made text of the steps."""
    return {int(step): (certain, uncertain) for step, (certain, uncertain) in run["losses"].items()}


def main() -> None:
    """Print the tables of stored results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="bigram.json")
    print("\n".join(describe(*read(parser.parse_args().results))))


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
