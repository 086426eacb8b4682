"""What the bigram runs show: statements with their numbers, a table, a picture; nothing is trained.

python recipes/bigram_findings.py recipes/results/bigram.json --into recipes/figures
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from hf_wsd.errors import DataError, WSDError
from hf_wsd.plots import BLUE, DECAY, GREEN, SKY, TRUNK

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
    """A claim of the theory, whether it holds here, and the numbers."""

    claim: str
    holds: bool
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
        stable = [self.ends("constant", lr).sum(axis=1).mean() for lr in self.lrs]
        decayed = [self.ends("WSD", lr).sum(axis=1).mean() for lr in self.lrs]
        lowest = int(np.argmin(stable))
        below = [at for at, lr in enumerate(self.lrs) if at >= lowest and (self.limit is None or lr <= self.limit)]
        where = f"lr {self.lrs[below[0]]:g} to {self.lrs[below[-1]]:g}"
        for name, losses, sign in (("stable loss rises", stable, 1), ("decayed loss falls", decayed, -1)):
            values = [losses[at] for at in below]
            yield Statement(
                claim=f"{name} with lr (from the lowest stable loss on, up to stability)",
                holds=len(values) > 1 and all(sign * step > 0 for step in np.diff(values)),
                numbers=f"{where}: " + ", ".join(f"{value:.4f}" for value in values),
            )
        rivers = [self.ends("WSD", lr)[:, 0].mean() for lr in self.lrs]
        yield Statement(
            claim="progress along the river grows with lr: certain bigrams end lower",
            holds=all(step < 0 for step in np.diff(rivers)),
            numbers=f"lr {self.lrs[0]:g} to {self.lrs[-1]:g}: " + ", ".join(f"{loss:.4f}" for loss in rivers),
        )


def spread(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def describe(all_findings: list[Findings], curvature_error: float) -> Iterator[str]:
    """The results as lines of Markdown."""
    for found in all_findings:
        seeds = len(found.ends("WSD", found.lr))
        yield f"### {NAMES[found.model]}, {seeds} seeds\n"
        yield "| statement | holds | numbers |\n|---|---|---|"
        yield from (f"| {s.claim} | {'yes' if s.holds else '**no**'} | {s.numbers} |" for s in found.statements())
        if found.model == "table":
            holds = "yes" if curvature_error < 1e-6 else "**no**"
            yield f"| curvature is p(i) (diag(P_i) - P_i P_i^T) | {holds} | largest difference {curvature_error:.0e} |"
        yield "\n| schedule | peak lr | loss | certain | uncertain |\n|---|---|---|---|---|"
        rows = {(run.schedule, run.lr) for run in found.runs}
        for schedule, lr in sorted(rows):
            ends = found.ends(schedule, lr)
            mean, error = spread(ends.sum(axis=1))
            certain, uncertain = ends.mean(axis=0)
            yield f"| {schedule} | {lr:g} | {mean:.4f} +- {error:.4f} | {certain:.4f} | {uncertain:.4f} |"
        yield ""


def plot_curves(ax: Axes, found: Findings) -> Axes:
    """Loss over steps with each schedule: mean over the seeds."""
    steps, stable = found.curve("constant", found.lr)
    fork = len(steps) * 4 // 5 - 1
    for name, color in (("cosine", GREEN), ("WSD-S", BLUE)):
        ax.plot(*found.curve(name, found.lr), color=color, linewidth=1.5, label=name)
    ax.plot(steps, stable, color=TRUNK, linewidth=2.2, label="constant (stable phase)")
    ax.plot(steps[fork:], found.curve("WSD", found.lr)[1][fork:], "-", color=DECAY, linewidth=2.2, label="WSD's decay")
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("loss above entropy (log scale)")
    scale_log(ax.yaxis)
    ax.legend(frameon=False)
    return ax


def plot_gains(ax: Axes, found: Findings) -> Axes:
    """What the decay gave to certain and to uncertain bigrams, with standard errors."""
    means, errors = zip(*(spread(gain) for gain in found.gains(found.lr).T), strict=True)
    bars = ax.bar(["certain", "uncertain"], means, yerr=errors, color=[SKY, DECAY], capsize=5, width=0.55)
    ax.bar_label(bars, [f"{mean:+.4f}" for mean in means], padding=4, weight="bold")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.margins(y=0.15)
    ax.set_ylabel("stable loss - decayed loss, nats")
    return ax


def plot_lrs(ax: Axes, found: Findings) -> Axes:
    """Final losses over the peak lr: stable, decayed, and what certain bigrams have of the decayed."""
    for schedule, color, label in (("constant", TRUNK, "stable"), ("WSD", DECAY, "decayed")):
        means, errors = zip(*(spread(found.ends(schedule, lr).sum(axis=1)) for lr in found.lrs), strict=True)
        ax.errorbar(found.lrs, means, yerr=errors, color=color, marker="o", linewidth=2.2, capsize=3)
        label_line(ax, label, found.lrs[-2], means[-2], color)
    rivers = [found.ends("WSD", lr)[:, 0].mean() for lr in found.lrs]
    ax.plot(found.lrs, rivers, "--", color=BLUE, linewidth=2)
    label_line(ax, "certain ones of it: the river", found.lrs[-1], rivers[-1], BLUE, above=False)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(y=0.14)
    if found.limit:
        ax.axvline(found.limit, color="black", linewidth=1, linestyle=":")
        place = {"xy": (found.limit, 0.6), "xycoords": ("data", "axes fraction")}
        ax.annotate("2 / curvature ", **place, rotation=90, ha="right", va="center")
    scale_log(ax.yaxis)
    ax.xaxis.set_major_locator(FixedLocator(found.lrs))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_xlabel("peak lr (log scale)")
    ax.set_ylabel("loss above entropy (log scale)")
    return ax


def label_line(ax: Axes, text: str, x: float, y: float, color: str, *, above: bool = True) -> None:
    """The name of a line, above one of its points or below."""
    place = {"xytext": (0, 20 if above else -12), "va": "bottom" if above else "top", "ha": "right"}
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.annotate(text, (x, y), textcoords="offset points", color=color, weight="bold", bbox=white, **place)


def scale_log(axis: Axis) -> None:
    """Ticks at 1, 2 and 5, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def figure(all_findings: list[Findings]) -> Figure:
    """A row for each model: curves, who gains, the peak lr."""
    whole = Figure(figsize=(13, 4.5 * len(all_findings)), dpi=125, layout="constrained", facecolor="white")
    rows = whole.subfigures(len(all_findings), 1, squeeze=False)[:, 0]
    parts = {
        "A decay drops the loss": plot_curves,
        "Uncertain bigrams gain": plot_gains,
        "What the peak lr does": plot_lrs,
    }
    for row, found in zip(rows, all_findings, strict=True):
        row.suptitle(NAMES[found.model], x=0.01, ha="left", weight="bold", fontsize=15)
        for ax, (title, plot) in zip(row.subplots(1, 3), parts.items(), strict=True):
            plot(ax, found).set_title(title, loc="left", fontsize=13)
            ax.spines[["top", "right"]].set_visible(False)
    return whole


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
    """Print the table of stored results and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="bigram.json")
    parser.add_argument("--into", type=Path, required=True, help="folder for bigram.png")
    args = parser.parse_args()
    found, curvature_error = read(args.results)
    print("\n".join(describe(found, curvature_error)))
    args.into.mkdir(parents=True, exist_ok=True)
    figure(found).savefig(args.into / "bigram.png", metadata={"Software": None})


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
