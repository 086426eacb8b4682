"""The lower sections of a report's page: how a family was made, how exact its decays are, where its models are."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_wsd.command import is_secret, scrub_arguments
from hf_wsd.errors import FitError
from hf_wsd.family import Run
from hf_wsd.lengths import show_tokens
from hf_wsd.lineage import Command
from hf_wsd.page import Grid, Picture, Section
from hf_wsd.points import Point
from hf_wsd.report import Report
from hf_wsd.retention import left_at
from hf_wsd.sameness import UNKNOWN
from hf_wsd.segment import Phase
from hf_wsd.told import data_of, evaluation_of, showable
from hf_wsd.tree import family_tree

if TYPE_CHECKING:
    from hf_wsd.law import Prediction

PHASES = {Phase.WARMUP: "warm-up", Phase.STABLE: "stable phase", Phase.DECAY: "decay"}
_LEVEL, _AHEAD = 0.9, (2, 4)  # of the intervals; forecasts are for so many times the longest model's tokens
MANY = 12  # rows or commands; where there are more, the reader opens them


def name_of(run: Run, member: Run) -> str:
    """What a member of a family is called on its page: the name of its folder."""
    return (run if member is run else member).path.resolve().name


def loss_text(loss: float | None) -> str:
    """A loss, or the difference of two, as tables have it."""
    return "-" if loss is None else f"{loss:.3f}" if isfinite(loss) else "diverged"


# --- the law ---


def law_section(points: Iterable[Point]) -> tuple[Section, dict[str, Any]]:
    """The scaling law of decayed models with its forecasts, or why there is none; and the same JSON-ready."""
    from hf_wsd.scaling import fit_law
    from hf_wsd.scaling_plots import law_figure

    title = "What more data would give"
    try:
        fit = fit_law(points)
    except FitError as error:
        return Section(title=title, texts=(f"No law by `hf-wsd fit`: {str(error).rstrip('.')}.",)), {
            "refused": str(error)
        }
    longest = max(point.tokens for point in fit.points)
    sizes = sorted({point.size(fit.size) or 0 for point in fit.points}) if fit.size else [None]
    ahead = [fit.predict(times * longest, size, _LEVEL) for size in sizes for times in _AHEAD]
    picture = Picture(
        figure=law_figure(fit),
        name="report-law",
        alt=f"Decayed loss over tokens, on a log scale: the models and the fitted law. {fit.statements()[0]}",
    )
    law, *notes = fit.statements()
    section = Section(title=title, texts=(law,), picture=picture, table=_forecasts(ahead, longest), notes=(*notes,))
    return section, fit.to_dict() | {"forecasts": [asdict(one) for one in ahead]}


def _forecasts(ahead: Iterable[Prediction], longest: int) -> Grid:
    rows = tuple(
        (
            *([f"{one.parameters:,}"] if one.parameters else []),
            f"{show_tokens(one.tokens)} ({one.tokens / longest:g} times the longest)",
            loss_text(one.loss),
            "-" if one.low is None else f"{loss_text(one.low)} to {loss_text(one.high)}",
        )
        for one in ahead
    )
    last = ("tokens", "forecast loss", f"{_LEVEL:.0%} interval")
    heads = last if len(rows[0]) == len(last) else ("parameters", *last)
    caption = f"In nats. The interval holds one more run with as many tokens in {_LEVEL:.0%} of cases."
    table = Grid(heads=heads, rows=rows, caption=caption).filled()
    return table if heads[-1] in table.heads else replace(table, caption="In nats.")


# --- schedule and settings ---


def schedule_section(run: Run) -> Section:
    """Each phase of the trunk, then each decay."""
    texts = (
        "A step is one update of the weights. A decay starts from the trunk's checkpoint and lowers the learning rate "
        "along its shape.",
    )
    heads = ("run", "phase", "from step", "to step", "tokens", "learning rate", "shape")
    rows = tuple(row for member in run.walk(rewound=False) for row in _phases(run, member))
    table = Grid(heads=heads, rows=rows, words=("run", "phase", "shape"))
    return Section(title="Schedule", texts=texts, table=table, folded=len(rows) > MANY)


def _phases(run: Run, member: Run) -> Iterator[tuple[str, ...]]:
    record, begin = member.identity, 0 if member is run else left_at(member)
    peak = record.peak_lr or 1.0
    for start, end, segment in record.schedule.spans():
        if end is not None and end <= begin:
            continue
        first, constant = max(start, begin), segment.shape == "constant"
        per_step = record.tokens_per_step
        yield (
            name_of(run, member),
            PHASES[segment.phase],
            f"{first:,}",
            "open" if end is None else f"{end:,}",
            "-" if end is None or per_step is None else show_tokens((end - first) * per_step),
            (f"{segment.end * peak:g}" if constant else f"{segment.start * peak:g} to {segment.end * peak:g}")
            + ("" if record.peak_lr else " of the peak"),
            segment.shape_text,
        )


def settings_section(runs: Mapping[str, Run]) -> Section:
    """What each trunk was trained with, as its record and its command tell: a column a family."""
    told = {name: dict(_settings(run)) for name, run in runs.items()}
    keys = dict.fromkeys(key for settings in told.values() for key in settings)
    rows = tuple((key, *(settings.get(key, "-") for settings in told.values())) for key in keys)
    heads = ("setting", *runs) if len(runs) > 1 else ("setting", "value")
    return Section(title="Settings", table=Grid(heads=heads, rows=rows, words=heads))


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    record = run.identity
    named: dict[str, Any] = {
        "peak learning rate": ", ".join(f"{lr:g}" for lr in dict.fromkeys(record.peak_lrs)),
        "tokens of a step": record.tokens_per_step and f"{record.tokens_per_step:,}",
        "trainable parameters": record.parameters and f"{record.parameters:,}",
    }
    without = record.parameters_without_embeddings
    named |= {"of these without embeddings": without and f"{without:,}"}
    named |= {"training data": data_of(record.command)[0], "fingerprint of the training data": record.data}
    named |= {"evaluated on": evaluation_of(record.command) if record.command else None}
    named |= {"fingerprint of the evaluation set": record.evaluation}
    for table in (record.setup, record.settings, showable(record.command)):
        named |= {name: value for name, value in table.items() if name not in named and not is_secret(name)}
    named |= {f"version of {name}": version for name, version in sorted(record.versions.items())}
    for name, value in named.items():
        if value is not None and value != "" and value != []:
            yield name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


# --- sameness ---


def sameness_section(run: Run) -> Section:
    """For each branch, how much of it is what one straight run would have been."""
    rows = [(name_of(run, member), *_sameness(run, member)) for member in run.walk(rewound=False)]
    heads = ("run", "level", "what differs", "allowed by name")
    texts = (
        "bitwise: nothing that is recorded differs from the run of the checkpoint that it went on from. "
        "same samples: every update has the same samples, but was computed elsewhere; only rounding differs. "
        "changed: something that the model learns from differs.",
    )
    table = Grid(heads=heads, rows=tuple(rows[1:] if rows[0][1] == "start" else rows), words=heads)
    title, shown = "How exact each decay is", table if table.rows else None
    return Section(title=title, texts=texts, table=shown, folded=len(rows) > MANY)


def _sameness(run: Run, member: Run) -> tuple[str, str, str]:
    told = member.latest.sameness if member.records else {}
    if not told:
        return "start" if member is run else "not recorded" if member.records else "not begun", "-", "-"
    changes = [f"{name}: {change}" for name, change in told.get("changes", {}).items()]
    changes += [member.changed] if member.changed else []
    level = "unknown: the order of its samples is not recorded" if told.get("level") == UNKNOWN else told.get("level")
    return str(level), "; ".join(changes) or "nothing", ", ".join(told.get("allowed", ())) or "-"


# --- files and commands ---


def tree_section(run: Run) -> Section:
    """The checkpoints that are kept, why, and the branches that left them."""
    return Section(title="Tree", tree=family_tree(run), folded=len(run.branches) > MANY)


def models_section(run: Run, report: Report) -> Section:
    """The folder of each finished model."""
    rows = tuple((row.budget, f"{row.end:,}", row.model or "no longer there") for row in report.rows if row.finished)
    heads = ("budget (tokens seen)", "step", "folder")
    texts = (f"Folders are those in `{run.path.resolve()}`; `from_pretrained(folder)` loads a model.",)
    table = Grid(heads=heads, rows=rows, words=("folder",)) if rows else None
    texts = texts if rows else ("No model is finished yet.",)
    return Section(title="Where the models are", texts=texts, table=table, folded=len(rows) > MANY)


def commands_section(runs: Mapping[str, Run]) -> Section:
    """The commands of all members as their records have them: without secrets, a line for those that share one."""
    made: dict[str, list[str]] = {}
    for name, run in runs.items():
        for member in run.walk(rewound=False):
            record = member.latest if member.records else member.identity
            if record.command and (member.records or member is run):
                shown = name_of(run, member) if member is not run else name
                made.setdefault(_shell(record.command), []).append(f"`{shown}`")
    commands = tuple((", ".join(names), line) for line, names in made.items())
    texts = ("As recorded in each process; flags that hold secrets are left out.",)
    texts = texts if commands else ("No command is recorded.",)
    return Section(title="Commands", texts=texts, commands=commands, folded=len(commands) > MANY)


def _shell(command: Command) -> str:
    variables = [f"{name}={value}" for name, value in command.environment.items() if not is_secret(name)]
    words = [*variables, "python", *scrub_arguments(command.argv)]
    processes = f"  # on {command.world_size} processes" if command.world_size > 1 else ""
    return f"cd {shlex.quote(command.cwd)}\n{shlex.join(words)}{processes}"


# --- merge previews ---


def previews(run: Run) -> list[dict[str, Any]]:
    """What `merge.json` says of each merge preview of a trunk, and its folder's `name`; `damaged` where it cannot."""
    found = [{"name": file.parent.name} | _preview(file) for file in (run.path / "_merged").glob("*/merge.json")]
    return sorted(found, key=lambda told: (told.get("end", 0), told["name"]))


def _preview(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {"damaged": str(error)}
    return told if isinstance(told, dict) and told.get("preview") else {"damaged": "it tells of no preview"}


def previews_section(run: Run) -> Section | None:
    """The merge previews beside the true branches; None where there are none."""
    found = previews(run)
    heads = ("preview", "imitates", "checkpoints merged", "trunk loss", "preview's loss", "true decay's loss", "branch")
    rows = tuple(
        (
            str(told["name"]),
            f"{told.get('decay_type', '?')}, step {told.get('fork', '?')} to {told.get('end', '?')}",
            str(len(told.get("checkpoints", ()))),
            *(loss_text((told.get(name) or {}).get("loss")) for name in ("trunk_losses", "losses", "branch_losses")),
            Path(str(told.get("branch") or "-")).name,
        )
        for told in found
        if "damaged" not in told
    )
    notes = tuple(
        f"`_merged/{told['name']}/merge.json` cannot be read ({told['damaged']}): delete its folder and repeat "
        "`hf-wsd merge`."
        for told in found
        if "damaged" in told
    )
    texts = (
        "A preview is no decayed model: it averages checkpoints of the trunk with weights that imitate a decay "
        "(WSM, arXiv 2507.17634). It costs no training, and it counts in no fit.",
    )
    table = Grid(heads=heads, rows=rows, words=("preview", "imitates", "branch")) if rows else None
    return Section(title="Merge previews", texts=texts, table=table, notes=notes) if found else None
