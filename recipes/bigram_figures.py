"""The picture of the bigram runs, drawn from their stored results; nothing is trained.

python recipes/bigram_figures.py recipes/results/bigram.json --into recipes/figures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bigram_findings import NAMES, Findings, read, spread
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from hf_wsd.errors import WSDError
from hf_wsd.plots import BLUE, DECAY, GREEN, SKY, TRUNK


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


def main() -> None:
    """Draw bigram.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="bigram.json")
    parser.add_argument("--into", type=Path, required=True, help="folder for bigram.png")
    args = parser.parse_args()
    args.into.mkdir(parents=True, exist_ok=True)
    figure(read(args.results)[0]).savefig(args.into / "bigram.png", metadata={"Software": None})


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
