"""The tables of a comparison in Markdown, from its stored results; nothing is trained.

python recipes/comparison_tables.py recipes/results/compare.jsonl
python recipes/comparison_tables.py recipes/results/compare.jsonl --family "WSD, decays of 10 %"
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from comparison import ARMS, BASELINE, Comparison

from hf_wsd.lengths import show_tokens
from hf_wsd.plan import Plan


def describe(comparison: Comparison) -> Iterator[str]:
    """The page of a comparison: losses, costs, the trap."""
    yield "| budget (steps) | arm | peak lr | trunk loss at the fork | loss | against cosine | |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | --- |"
    for row in sorted(comparison.rows(), key=lambda row: row["budget"]):
        if row["loss"] is None:
            continue
        difference, fork = row["difference"], row["trunk_loss_at_fork"]
        edge = " (edge of the grid)" if row["at_edge_of_grid"] else ""
        apart = f"{difference['mean']:+.4f}{_spread(difference['spread'])}" if difference else "-"
        verdict = difference["verdict"] if difference and row["arm"] != BASELINE else ""
        start = "-" if fork is None else f"{fork:.4f}"
        loss = f"{row['loss']:.4f}{_spread(row['spread'])}"
        yield f"| {row['budget']} | {row['arm']} | {row['peak_lr']:g}{edge} | {start} | {loss} | {apart} | {verdict} |"
    seeds = max((row["seeds"] for row in comparison.rows()), default=0)
    yield ""
    yield (
        f"Losses are means over up to {seeds} seeds in nats per token, ± their standard deviation; differences are "
        "paired by seed. A difference is called lower or higher where its 95 % interval (Student's t) leaves out 0: "
        "one of twenty such calls is chance. Peak lrs are chosen by the same seeds and "
        "the same evaluation set, which favours arms that are tuned for each budget (cosine, linear to zero)."
    )
    yield ""
    yield from cost_table(comparison)
    yield ""
    yield "One peak lr and one seed: the search for the peak lr is not counted."
    yield ""
    for budget, gap in comparison.trap().items():
        apart = f"{gap.mean:+.4f}{_spread(gap.spread)}"
        yield f"- The longest cosine run at step {budget}: {apart} nats against the run of that length."


def cost_table(comparison: Comparison) -> Iterator[str]:
    """What each arm costs for a model at every budget, in updates and in seconds where it ran alone."""
    yield "| arm | updates | part of the separate cosine runs | wall-clock, s | part of theirs |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for cost in comparison.costs():
        clock = "-" if cost["seconds"] is None else f"{cost['seconds']:.0f}"
        part, ratio = (_part(cost[key]) for key in ("tokens_ratio", "seconds_ratio"))
        yield f"| {cost['arm']} | {cost['updates']:,} | {part} | {clock} | {ratio} |"


def family_table(comparison: Comparison, arm: str) -> Iterator[str]:
    """A family against the baseline: a row for each budget, with what all models up to that budget cost in tokens.

    The wall-clock of both is known where all are done, in the last row.

    Args:
        comparison: with the baseline and the arm.
        arm: one of kind "family".
    """
    fraction = float(ARMS[arm].flags[ARMS[arm].flags.index("--decay_fraction") + 1])
    heads = ("budget", "trunk loss at the fork", "decayed loss", "tuned cosine", "difference")
    yield f"| {' | '.join(heads)} | tokens paid so far: family | separate runs | wall-clock, part of theirs |"
    yield f"|{' ---: |' * 8}"
    clock = next((cost["seconds_ratio"] for cost in comparison.costs() if cost["arm"] == arm), None)
    for place, budget in enumerate(comparison.budgets, 1):
        plan = Plan.of_budgets([str(one) for one in comparison.budgets[:place]], decay_fraction=fraction)
        difference, scale = comparison.difference(arm, budget), comparison.tokens_per_step or 1
        if difference is None:
            continue
        cells = [
            show_tokens(budget * scale),
            f"{fmean(comparison.losses(arm, budget, of='fork_losses').values()):.4f}",
            f"{fmean(comparison.losses(arm, budget).values()):.4f}",
            f"{fmean(comparison.losses(BASELINE, budget).values()):.4f}",
            f"{difference.mean:+.4f}{_spread(difference.spread)}",
            show_tokens(plan.family_steps * scale),
            show_tokens(plan.separate_steps * scale),
            _part(clock if budget == comparison.budgets[-1] else None),
        ]
        yield f"| {' | '.join(cells)} |"


def _spread(value: float | None) -> str:
    return "" if value is None else f" ± {value:.4f}"


def _part(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Print the page of a results file, or its table of one family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="compare.jsonl")
    families = [name for name, arm in ARMS.items() if arm.kind == "family"]
    parser.add_argument("--family", choices=families, help="only this arm, against the baseline")
    args = parser.parse_args()
    comparison = Comparison.read(args.results)
    print("\n".join(family_table(comparison, args.family) if args.family else describe(comparison)))


if __name__ == "__main__":
    main()
