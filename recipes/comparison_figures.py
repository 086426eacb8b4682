"""The pictures of a comparison, drawn from its stored results; nothing is trained.

python recipes/comparison_figures.py runs/compare/compare.jsonl --into runs/compare
"""

from __future__ import annotations

import argparse
from math import inf, isfinite
from pathlib import Path
from statistics import fmean

from comparison import BASELINE, Comparison
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hf_wsd.lengths import show_tokens
from hf_wsd.plots import AMBER, BLUE, DECAY, GREEN, PURPLE, SKY, TRUNK

STYLES = {  # colour, marker
    BASELINE: (TRUNK, "s"),
    "linear to zero": (AMBER, "D"),
    "WSD, decays of 10 %": (DECAY, "o"),
    "WSD, decays of 20 %": (DECAY, "^"),
    "multi-step": (PURPLE, "v"),
    "WSD-S": (BLUE, "o"),
    "cyclic cosine": (SKY, "P"),
    "constant": (GREEN, "X"),
}


def plot_differences(ax: Axes, comparison: Comparison) -> Axes:
    """Loss minus the tuned baseline's at the same tokens: mean over seeds and its 95 % interval, a group per budget.

    A constant lr ends far above the others, and would flatten them: beyond the axis its numbers stand at the edge.
    """
    arms = [arm for arm in comparison.arms if arm != BASELINE]
    decayed = [comparison.difference(arm, budget) for arm in arms if arm != "constant" for budget in comparison.budgets]
    ends = [one.mean + (one.half_width or 0) for one in decayed if one and isfinite(one.mean)]
    top = 1.1 * max(ends, default=inf)
    ax.axhline(0, color=STYLES[BASELINE][0], linewidth=1.5, label="cosine, tuned for each length")
    for place, arm in enumerate(arms):
        colour, marker = STYLES[arm]
        for group, budget in enumerate(comparison.budgets):
            if (difference := comparison.difference(arm, budget)) is None:
                continue
            x = group + (place - (len(arms) - 1) / 2) * 0.8 / len(arms)
            drawn = {"color": colour, "marker": marker, "markersize": 8, "linestyle": ""}
            label = arm if group == 0 else None
            if difference.mean > top:
                ax.plot(x, top, label=label, **drawn)
                ax.annotate(f"{difference.mean:+.2f}", (x, top), (0, 7), textcoords="offset points", ha="center")
            else:
                ax.errorbar(x, difference.mean, yerr=difference.half_width or 0, label=label, capsize=3, **drawn)
    if isfinite(top):
        ax.set_ylim(top=1.1 * top)
    for group in range(1, len(comparison.budgets)):
        ax.axvline(group - 0.5, color="#e0e0e0", linewidth=1)
    ax.set_xticks(range(len(comparison.budgets)), [_budget(comparison, budget) for budget in comparison.budgets])
    ax.set_xlim(-0.5, len(comparison.budgets) - 0.5)
    ax.set_xlabel("tokens seen by the model")
    ax.set_ylabel("loss minus tuned cosine's, nats (below 0: better)")
    ax.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 1))
    return ax


def plot_trap(ax: Axes, comparison: Comparison) -> Axes:
    """The longest cosine run on its way, and the runs that were made for its intermediate lengths; over tokens."""
    longest, scale = comparison.budgets[-1], comparison.tokens_per_step or 1
    lr = comparison.lr_of(BASELINE, longest)
    runs = [one for one in comparison.of(BASELINE, longest) if one.lr == lr]
    steps = sorted(step for step in runs[0].evaluations if step >= comparison.budgets[0])
    curve = [fmean(one.evaluations[step] for one in runs) for step in steps]
    ax.plot([step * scale for step in steps], curve, color=TRUNK, linewidth=2.2, label="the longest cosine run")
    on_the_way = [fmean(one.evaluations[budget] for one in runs) for budget in comparison.budgets]
    tokens = [budget * scale for budget in comparison.budgets]
    ax.plot(tokens, on_the_way, "s", color=TRUNK, markerfacecolor="white", markersize=17, label="its checkpoints")
    for arm, label, size in (
        (BASELINE, "a cosine run of that length", 12),
        ("WSD, decays of 10 %", "a 10 % decay off one trunk", 7),
    ):
        if comparison.of(arm):
            means = [fmean(comparison.losses(arm, budget).values()) for budget in comparison.budgets]
            colour, marker = (BLUE, "s") if arm == BASELINE else STYLES[arm]
            ax.plot(tokens, means, marker, color=colour, markersize=size, label=label)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(tokens))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_tokens(x)))
    ax.set_xlabel("tokens seen (log scale)")
    ax.set_ylabel("evaluation loss, nats")
    ax.legend(frameon=False, labelspacing=0.9)
    return ax


def plot_costs(ax: Axes, comparison: Comparison) -> Axes:
    """Tokens that each arm trains for a model at every budget, as a part of the separate cosine runs'."""
    costs = sorted(comparison.costs(), key=lambda cost: -cost["tokens_ratio"])
    names = [cost["arm"] for cost in costs]
    bars = ax.barh(names, [cost["tokens_ratio"] for cost in costs], color=[STYLES[name][0] for name in names])
    ax.bar_label(bars, [f"{cost['tokens_ratio']:.3f}" for cost in costs], padding=4)
    ax.set_xlim(0, 1.12)
    ax.set_xlabel("tokens for a model at every budget / those of separate cosine runs")
    return ax


def _budget(comparison: Comparison, budget: int) -> str:
    scale = comparison.tokens_per_step
    return f"{budget / comparison.budgets[-1]:.0%}\n{show_tokens(budget * scale) if scale else f'{budget} steps'}"


def save(file: Path, plot: object, comparison: Comparison, *, title: str, height: float) -> None:
    """One picture with a title: 1600 pixels wide; the same results give the same bytes."""
    figure = Figure(figsize=(10, height), dpi=160, layout="constrained", facecolor="white")
    ax = figure.subplots()
    plot(ax, comparison)
    ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=14)
    figure.savefig(file, metadata={"Software": None})


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write compare-losses.png, compare-costs.png and cosine-trap.png into a folder; returns their paths."""
    seeds = len(comparison.losses(BASELINE, comparison.budgets[-1]))
    against = f"Loss against a cosine run of the same length (mean of {seeds} seeds, bars: 95 %)"
    titles = {
        "compare-losses": (plot_differences, against, 5.5),
        "compare-costs": (plot_costs, "What a model at every budget costs", 0.8 + 0.45 * len(comparison.arms)),
        "cosine-trap": (plot_trap, "The longest cosine run on its way, and runs of each length", 5.5),
    }
    files = []
    for name, (plot, title, height) in titles.items():
        files.append(folder / f"{name}.png")
        save(files[-1], plot, comparison, title=title, height=height)
    return files


def main() -> None:
    """Draw the pictures of a results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="compare.jsonl")
    parser.add_argument("--into", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args()
    for file in draw(Comparison.read(args.results), args.into):
        print(file)


if __name__ == "__main__":
    main()
