"""The page of several families, such as a ladder of model sizes: all decayed models, one law, the whole cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any

from hf_wsd.errors import SettingsError
from hf_wsd.family import Run
from hf_wsd.lengths import show_tokens
from hf_wsd.page import Grid, Page, Picture, Section
from hf_wsd.plots import families_figure
from hf_wsd.points import points_of
from hf_wsd.report import Report, Row, make_report
from hf_wsd.sections import commands_section, law_section, loss_text, settings_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Several families, smallest model first.

    Args:
        name: of the whole.
        runs: the trunks, by what their families are called.
        reports: of each, by the same name.
    """

    name: str
    runs: Mapping[str, Run]
    reports: Mapping[str, Report]

    @classmethod
    def make(cls, runs: Sequence[Run], *, name: str) -> Ladder:
        """The ladder of some trunks.

        Raises:
            SettingsError: one trunk is given twice.
        """
        folders = [run.path.resolve() for run in runs]
        if twice := [folder for folder, times in Counter(folders).items() if times > 1]:
            raise SettingsError(f"{twice[0]} is given {folders.count(twice[0])} times: name each run once")
        names = Counter(folder.name for folder in folders)
        called = {
            folder.name if names[folder.name] == 1 else f"{folder.parent.name}/{folder.name}": run
            for folder, run in zip(folders, runs, strict=True)
        }
        if len(called) < len(runs):
            called = {str(folder): run for folder, run in zip(folders, runs, strict=True)}
        reports = {name: make_report(run) for name, run in called.items()}
        order = sorted(called, key=lambda name: (reports[name].parameters or 0, name))
        return cls(name=name, runs={n: called[n] for n in order}, reports={n: reports[n] for n in order})

    @cached_property
    def rows(self) -> tuple[tuple[str, Row], ...]:
        """Every decayed model with the name of its family."""
        return tuple((name, row) for name, report in self.reports.items() for row in report.rows)

    def cost(self, kind: str, unit: str) -> int | None:
        """What all families took, or as many separate runs; None where a family's tokens or parameters are not known.

        Args:
            kind: "family" or "separate".
            unit: "tokens" or "flops".
        """
        parts = [
            getattr(report, unit)(report.family_steps if kind == "family" else report.separate_steps)
            for report in self.reports.values()
        ]
        return None if None in parts else sum(parts)

    @property
    def saving(self) -> float | None:
        """Part of the separate runs' FLOPs that the families save, at most 1; None where they are not known."""
        family, separate = (self.cost(kind, "flops") for kind in ("family", "separate"))
        return 1 - family / separate if family is not None and separate else None

    @property
    def sizes(self) -> list[int]:
        """Parameters of the models, each once."""
        return sorted({report.parameters for report in self.reports.values() if report.parameters})

    @property
    def best(self) -> tuple[str, Row] | None:
        """The model with the lowest loss, and its family."""
        done = [(name, row) for name, row in self.rows if row.loss is not None and isfinite(row.loss)]
        return min(done, key=lambda found: found[1].loss or 0, default=None)

    @property
    def claim(self) -> str:
        """What came out, in one sentence."""
        done, of = sum(row.finished for _, row in self.rows), f"{len(self.runs)} families"
        of += f" with {len(self.sizes)} model sizes" if len(self.sizes) > 1 else ""
        if self.best is None:
            return f"{done} of {len(self.rows)} decayed models of {of} are finished"
        name, row = self.best
        size, seen = self.reports[name].parameters, f" after {show_tokens(row.tokens)} tokens" if row.tokens else ""
        model = f"with {show_tokens(size)} parameters" if size else f"of {name}"
        return f"{done} decayed models of {of}: the lowest loss is {row.loss:.3f}, {model}{seen}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: each family's report, and the cost of all."""
        costs = {f"{kind}_{unit}": self.cost(kind, unit) for kind in ("family", "separate") for unit in _UNITS}
        families = [{"name": name} | report.to_dict() for name, report in self.reports.items()]
        return {"name": self.name, "claim": self.claim, "families": families, "saving": self.saving} | costs

    def figure(self, *, title: str = "") -> Figure:
        """The decayed losses of all families over their tokens."""
        return families_figure({_label(name, self.reports[name]): run for name, run in self.runs.items()}, title=title)


_UNITS = ("tokens", "flops")


def _label(name: str, report: Report) -> str:
    return name if report.parameters is None else f"{name} ({show_tokens(report.parameters)} parameters)"


def ladder_page(ladder: Ladder) -> tuple[Page, dict[str, Any]]:
    """The page of a ladder; and what it adds to the ladder's JSON."""
    law, told = law_section(point for run in ladder.runs.values() for point in points_of(run))
    alt = "Decayed loss over tokens seen, a line for each family: " + ", ".join(ladder.runs)
    caption = "Each mark is a decayed model; a line joins those of one trunk. The tokens are on a log scale."
    picture = Picture(figure=ladder.figure(), name="report", alt=alt, caption=caption)
    page = Page(
        title=ladder.name,
        kind=f"{len(ladder.runs)} Warmup-Stable-Decay families: each one trunk, and decays that leave it",
        claim=ladder.claim,
        facts=tuple(_facts(ladder)),
        sections=(
            Section(title="Decayed loss", picture=picture),
            _models(ladder),
            _cost(ladder),
            law,
            settings_section(ladder.runs),
            _families(ladder),
            commands_section(ladder.runs),
        ),
        made_by="Made by `hf-wsd report` from the records and logs of the runs. Each family has a page of its own.",
    )
    return page, {"fit": told}


def _facts(ladder: Ladder) -> Iterator[tuple[str, str]]:
    if ladder.best:
        yield f"{ladder.best[1].loss:.3f}", f"lowest decayed loss, {ladder.best[0]}"
    yield f"{sum(row.finished for _, row in ladder.rows)} of {len(ladder.rows)}", "decayed models finished"
    if ladder.saving is not None:
        yield f"{ladder.saving:.1%}", "of the compute of separate runs saved"
    if ladder.sizes:
        yield " to ".join(dict.fromkeys(show_tokens(n) for n in (ladder.sizes[0], ladder.sizes[-1]))), "parameters"


def _models(ladder: Ladder) -> Section:
    """Every decayed model."""
    heads = (
        *("family", "parameters", "budget (tokens seen)", "decay, from step to step", "trunk loss at the fork"),
        *("decayed loss", "drop in the decay", "bits per byte", "changed in the decay"),
    )
    rows = tuple(
        (
            name,
            f"{size:,}" if (size := ladder.reports[name].parameters) else "-",
            row.budget,
            f"{row.fork:,} to {row.end:,}",
            loss_text(row.trunk_loss_at_fork),
            loss_text(row.loss) if row.finished else "unfinished",
            loss_text(row.drop),
            loss_text(row.bits_per_byte),
            row.changed or "-",
        )
        for name, row in ladder.rows
    )
    notes = [f"{name}: {note}" for name, report in ladder.reports.items() for note in report.model_notes()]
    caption = "Losses are those of each training run's evaluation, in nats per token for language models."
    table = Grid(heads=heads, rows=rows, words=("family", "changed in the decay"), caption=caption)
    return Section(title="Decayed models", table=table.filled() if rows else None, notes=tuple(notes))


def _cost(ladder: Ladder) -> Section:
    """Tokens and FLOPs of each family and of all, against one separate run per model."""
    parts = {
        name: [
            measure(steps) for steps in (one.family_steps, one.separate_steps) for measure in (one.tokens, one.flops)
        ]
        for name, one in ladder.reports.items()
    }
    parts["all"] = [ladder.cost(kind, unit) for kind in ("family", "separate") for unit in _UNITS]
    savings = [report.saving for report in ladder.reports.values()] + [ladder.saving]
    rows = tuple(
        (name, *map(_amount, cells, (show_tokens, "{:.3g}".format) * 2), "-" if saved is None else f"{saved:.1%}")
        for (name, cells), saved in zip(parts.items(), savings, strict=True)
    )
    heads = ("family", "tokens", "FLOPs", "tokens of separate runs", "FLOPs of separate runs", "saved")
    notes = [f"{name}: {note}" for name, one in ladder.reports.items() for note in one.not_counted()]
    caption = "FLOPs are 6ND: 6 x parameters x tokens. A search for the peak learning rate is not counted."
    return Section(
        title="Cost", table=Grid(heads=heads, rows=rows, words=("family",), caption=caption), notes=tuple(notes)
    )


def _amount(value: int | None, show: Any) -> str:
    return "-" if value is None else str(show(value))


def _families(ladder: Ladder) -> Section:
    """Where each family is, with its own page."""
    rows = tuple((name, str(run.path.resolve()), report.claim) for (name, run), report in _pairs(ladder))
    heads = ("family", "folder, with a report.html of its own", "what its decays gave")
    return Section(title="The families", table=Grid(heads=heads, rows=rows, words=heads))


def _pairs(ladder: Ladder) -> Iterator[tuple[tuple[str, Run], Report]]:
    yield from zip(ladder.runs.items(), ladder.reports.values(), strict=True)
