"""What a ladder is and costs: sizes and budgets, the sweep of the peak lr, tokens and FLOPs before and after."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from hf_wsd.errors import SettingsError
from hf_wsd.family import Run
from hf_wsd.history import to_json, write_atomically
from hf_wsd.lengths import Length, show_tokens
from hf_wsd.plan import Plan, training_flops
from hf_wsd.points import Point

TABLES = ("sweeps", "peak_lrs", "seconds", "tokens", "evaluations", "failed")
EXTENSIONS = 2  # steps by which a grid is extended where its best peak lr is at an edge


@dataclass(frozen=True, kw_only=True)
class Size:
    """One model size of a ladder.

    Args:
        preset: its name in recipes/pretrain.py.
        parameters: trainable ones, embeddings included.
        budgets: lengths of its decayed models, in tokens.
        sweep_budget: length of each run of the sweep, in tokens.
        decay: length of a decay, as `Plan.of_budgets` takes it.
    """

    preset: str
    parameters: int
    budgets: tuple[str, ...]
    sweep_budget: str
    decay: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for text in (*self.budgets, self.sweep_budget):
            if Length(text).tokens is None:
                raise SettingsError(f"{text} is not in tokens: sizes have steps of one length only by chance; write 2M")

    @property
    def plan(self) -> Plan:
        """Trunk and decays, counted in tokens."""
        return Plan.of_budgets(self.budgets, tokens_per_step=1, **self.decay)

    def cost(self, lrs: int) -> dict[str, int]:
        """Tokens of the family, of separate runs and of a sweep over so many peak lrs; a single one needs none."""
        sweep = lrs * (Length(self.sweep_budget).tokens or 0) if lrs > 1 else 0
        return {"family": self.plan.family_steps, "separate": self.plan.separate_steps, "sweep": sweep}


def make_size(preset: str, parameters: int, budgets: Sequence[str], ratios: Sequence[float], **more: Any) -> Size:
    """A size whose budgets are given in tokens, or as tokens per parameter.

    Raises:
        SettingsError: both are given, or fewer than two: a ladder needs a curve at every size.
    """
    if bool(budgets) == bool(ratios) or len(budgets or ratios) < 2:
        raise SettingsError(
            "a ladder needs two budgets or more (four for a law that may be quoted): --budgets 0.2M 0.4M 0.8M 1.6M, or "
            "--tokens_per_parameter 5 10 20 40; one of the two"
        )
    texts = tuple(budgets) or tuple(f"{round(ratio * parameters)}tokens" for ratio in ratios)
    sweep = more.pop("sweep_budget") or min(texts, key=lambda text: Length(text).tokens or 0)
    return Size(preset=preset, parameters=parameters, budgets=texts, sweep_budget=sweep, **more)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Peak lrs that were tried, and the loss each gave; one that diverged has an infinite one.

    >>> sweep = Sweep(losses={1e-3: 3.5, 2e-3: 3.4})
    >>> sweep.best, sweep.at_edge, sweep.next(grid=2)
    (0.002, True, 0.004)
    """

    losses: Mapping[float, float]

    @property
    def best(self) -> float:
        """The peak lr with the lowest loss."""
        return min(self.losses, key=lambda lr: (self.losses[lr], lr))

    @property
    def diverged(self) -> bool:
        """Whether no peak lr gave a number."""
        return min(self.losses.values()) == inf

    @property
    def at_edge(self) -> bool:
        """Whether the best is the lowest or the highest that was tried: a better one may lie outside."""
        return len(self.losses) > 1 and self.best in (min(self.losses), max(self.losses))

    def next(self, *, grid: int) -> float | None:
        """The peak lr beyond the edge, at the grid's own ratio; None where none is to be tried.

        Args:
            grid: peak lrs that were asked for; at most EXTENSIONS more are tried.
        """
        if not self.at_edge or self.diverged or len(self.losses) >= grid + EXTENSIONS:
            return None
        lrs = sorted(self.losses)
        beyond = lrs[-1] ** 2 / lrs[-2] if self.best == lrs[-1] else lrs[0] ** 2 / lrs[1]
        return float(f"{beyond:.6g}")  # 2e-3 and not 0.0020000000000000005: it names a folder

    def statement(self, size: Size) -> str:
        """What was swept and found, in one sentence."""
        tried = ", ".join(f"{lr:g}: {loss:.4f}" for lr, loss in sorted(self.losses.items()))
        edge = (
            f"; the edge of the grid after {EXTENSIONS} more, so a better one may lie outside" if self.at_edge else ""
        )
        return f"{size.preset}: peak lr {self.best:g}, of runs of {size.sweep_budget} (loss by peak lr: {tried}){edge}"


def cost_before(sizes: Sequence[Size], lrs: int) -> dict[str, Any]:
    """Tokens and FLOPs that a ladder will take, and those of separate runs with the same sweep."""
    rows = [{"preset": size.preset, "parameters": size.parameters, **size.cost(lrs)} for size in sizes]
    tokens, flops = dict[str, int](), dict[str, int]()
    for name in ("family", "separate", "sweep"):
        tokens[name] = sum(size.cost(lrs)[name] for size in sizes)
        flops[name] = sum(training_flops(size.parameters, size.cost(lrs)[name]) for size in sizes)
    return {"sizes": rows, "tokens": tokens, "flops": flops}


def cost_lines(cost: Mapping[str, Any]) -> Iterator[str]:
    """The same for people: a line a size, the sum, and what it is against."""
    yield f"{'size':>8} {'parameters':>12} {'sweep':>10} {'trunk and decays':>17} {'separate runs':>14}"
    for row in cost["sizes"]:
        cells = (show_tokens(row[name]) for name in ("sweep", "family", "separate"))
        yield "{:>8} {:>12,} {:>10} {:>17} {:>14}".format(row["preset"], row["parameters"], *cells)
    tokens, flops = cost["tokens"], cost["flops"]
    for name, words in (("family", "one trunk a size, O(M C)"), ("separate", "a cosine run a model, O(M K C)")):
        both = tokens[name] + tokens["sweep"], flops[name] + flops["sweep"]
        yield f"{words}: {show_tokens(both[0])} tokens, {both[1]:.3g} FLOPs (6 N D), sweep included"
    saved = 1 - (flops["family"] + flops["sweep"]) / (flops["separate"] + flops["sweep"])
    yield f"saving: {saved:.1%} of the FLOPs of the separate runs"


def doubts(points: Sequence[Point]) -> Iterator[str]:
    """Sizes that end above a smaller one at every budget that both have: a sweep that was too short misleads so."""
    losses: dict[int, dict[int, float]] = defaultdict(dict)
    for point in points:
        losses[point.parameters or 0][point.tokens] = point.loss
    for smaller, larger in pairwise(sorted(losses)):
        shared = losses[smaller].keys() & losses[larger].keys()
        if shared and all(losses[larger][tokens] > losses[smaller][tokens] for tokens in shared):
            peak_lr = next(point.peak_lr for point in points if point.parameters == larger)
            yield (
                f"{larger:,} parameters end above {smaller:,} at every budget: {peak_lr} is hardly the best peak lr of "
                "the larger. Sweep with longer runs (--sweep_budget), in another --output_dir; do not trust the fit"
            )


def trained_tokens(run: Run) -> int:
    """Tokens that a run and its branches have trained."""
    return run.family_updates * (run.latest.tokens_per_step or 0)


class Ledger:
    """`ladder.json`: what cannot be read from the runs again, written after every event."""

    def __init__(self, file: Path, asked: dict[str, Any]) -> None:
        self.file = file
        self.told: dict[str, Any] = {"asked": asked} | {table: {} for table in TABLES}
        if file.exists():
            before = json.loads(file.read_text())
            for name in ("arguments", "sweep_budget"):
                if before["asked"][name] != asked[name]:
                    raise SettingsError(
                        f"{file} was made with {name} {before['asked'][name]}, not {asked[name]}: give another "
                        "--output_dir"
                    )
            self.told |= before | {"asked": asked, "failed": {}}

    def write(self) -> None:
        """Replace the file."""
        write_atomically(self.file, to_json(self.told, indent=1) + "\n")

    def note(self, table: str, name: str, value: object) -> None:
        """Add to a table of it."""
        self.told[table][name] = value
        self.write()


def cost_after(ledger: Ledger) -> str:
    """What was measured, in a sentence."""
    tokens, seconds = (ledger.told[table] for table in ("tokens", "seconds"))
    swept = sum(value for name, value in tokens.items() if name.startswith("_sweep/"))
    return (
        f"trained: {show_tokens(sum(tokens.values()))} tokens ({show_tokens(swept)} of them in the sweep) in "
        f"{sum(seconds.values()):,.0f} s, with start-up, evaluations and checkpoints, without tries that were killed"
    )
