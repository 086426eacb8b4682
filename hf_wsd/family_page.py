"""The page of one family: what its decays gave, a picture, the table, the cost; below that, how it was made."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from hf_wsd.family import Run
from hf_wsd.landscape_page import landscape_section
from hf_wsd.lengths import show_tokens
from hf_wsd.page import Grid, Page, Picture, Section
from hf_wsd.plots import family_figure
from hf_wsd.points import points_of
from hf_wsd.report import Report, Row
from hf_wsd.sections import (
    commands_section,
    law_section,
    loss_text,
    models_section,
    previews,
    previews_section,
    sameness_section,
    schedule_section,
    settings_section,
    tree_section,
)


def family_page(run: Run, report: Report) -> tuple[Page, dict[str, Any]]:
    """The page of a trunk with its branches, or of a WSD-S line; and what it adds to the report's JSON.

    Args:
        run: the trunk.
        report: `make_report(run)`.
    """
    law, told = law_section(points_of(run))
    valley, landscape = landscape_section(run)
    sections = [picture_section(run, report), models_table(report), cost_section(report), law, valley]
    sections += [previews_section(run)]
    sections += [schedule_section(run), sameness_section(run), settings_section({report.run: run})]
    sections += [tree_section(run), models_section(run, report), commands_section({report.run: run})]
    page = Page(
        title=report.run,
        kind="A WSD-S line: one run that decays at the end of each cycle" if any(run.decays()) else _KIND,
        claim=report.claim,
        facts=tuple(_facts(report)),
        sections=tuple(section for section in sections if section),
        made_by=f"Made by `hf-wsd report` from the records and logs in `{run.path.resolve()}`.",
    )
    return page, {"fit": told, "previews": previews(run), "landscape": landscape}


_KIND = "A Warmup-Stable-Decay family: one trunk, and decays that leave it"


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    """The numbers that matter most."""
    done = [row for row in report.rows if row.loss is not None and isfinite(row.loss)]
    if done:
        best = min(done, key=lambda row: row.loss or 0)
        yield (
            f"{best.loss:.3f}",
            "lowest decayed loss" + (f", {show_tokens(best.tokens)} tokens" if best.tokens else ""),
        )
    yield f"{sum(row.finished for row in report.rows)} of {len(report.rows)}", "decayed models finished"
    if report.saving:
        yield f"{report.saving:.1%}", "of the compute of separate runs saved"
    if report.parameters:
        yield show_tokens(report.parameters), "trainable parameters"


def picture_section(run: Run, report: Report) -> Section:
    """Losses and lr over tokens."""
    ends = ", ".join(f"{loss_text(row.loss)} at {row.budget}" for row in report.rows if row.loss is not None)
    over = "tokens seen" if run.tokens_per_step else "steps"
    alt = (
        f"Two charts over {over}. Above, the evaluation loss: the trunk in grey, and decays that leave it"
        f"{f' and end at {ends}' if ends else ''}. Below, the learning rate: at its peak, falling in decays."
    )
    caption = (
        "Grey: the trunk, whose learning rate stays at the peak; thin, its training loss. Orange: decays. Each leaves "
        "the trunk at an open circle and ends with a finished model, the dot, labelled with its budget and its loss; "
        "dashed where it is not finished. What lies above the loss at the first fork point is cut off."
    )
    picture = Picture(figure=family_figure(run), name="report", alt=alt, caption=caption)
    return Section(title="Loss and learning rate", picture=picture)


def models_table(report: Report) -> Section:
    """The decayed models with the drop of each decay."""
    heads = (
        *("budget (tokens seen)", "decay, from step to step", "shape", "trunk loss at the fork", "decayed loss"),
        *("drop in the decay", "below the trunk at equal tokens", "bits per byte", "branch", "changed in the decay"),
    )
    rows = tuple(tuple(_cells(row)) for row in report.rows)
    caption = (
        "Losses are those of the training run's evaluation, in nats per token for a language model. The drop is from "
        "the fork point to the end of the decay. The column after it compares with the trunk after as many tokens."
    )
    table = Grid(heads=heads, rows=rows, words=("shape", "branch", "changed in the decay"), caption=caption)
    return Section(title="Decayed models", table=table.filled() if rows else None, notes=tuple(report.model_notes()))


def _cells(row: Row) -> Iterator[str]:
    yield from (row.budget, f"{row.fork:,} to {row.end:,}", row.shape or "-", loss_text(row.trunk_loss_at_fork))
    yield loss_text(row.loss) if row.finished else "unfinished"
    yield from ("-" if row.loss is None or not isfinite(row.loss) else loss_text(one) for one in (row.drop, row.gain))
    yield from (loss_text(row.bits_per_byte), row.name, row.changed or "-")


def cost_section(report: Report) -> Section:
    """What the family took, against one separate run per model."""
    costs = {"this family": report.family_steps, "separate runs of the same budgets": report.separate_steps}
    rows = tuple((name, *cost_cells(report, steps)) for name, steps in costs.items())
    if report.saving is not None:
        rows += (("saved", *([f"{report.saving:.1%}"] * len(rows[0][1:]))),)
    heads = ("", "steps", *(["tokens"] if report.tokens(1) else []), *(["FLOPs"] if report.flops(1) else []))
    caption = f"FLOPs are 6ND: 6 x {report.parameters:,} parameters x tokens." if report.flops(1) else ""
    table = Grid(heads=heads, rows=rows, words=("",), caption=caption) if report.separate_steps else None
    return Section(title="Cost", table=table, notes=tuple(report.not_counted()))


def cost_cells(report: Report, steps: int) -> list[str]:
    """Steps, tokens and FLOPs, as far as they are known."""
    tokens, flops = report.tokens(steps), report.flops(steps)
    return [f"{steps:,}", *([show_tokens(tokens)] if tokens else []), *([f"{flops:.3g}"] if flops else [])]
