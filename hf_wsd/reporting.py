"""The verb `hf-wsd report`: the page of a family, or of several, with its numbers and pictures beside it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_wsd.errors import SettingsError
from hf_wsd.family import Run, read_run
from hf_wsd.history import write_atomically
from hf_wsd.report import COLUMNS, Report, make_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hf_wsd.page import Page

_RUNS = "The --output_dir of a trunk; of several for one page on all."
_OUTPUT = "Folder of the page: RUN itself, unless there are several."
out = Console()


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help=_RUNS, show_default=False)],
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help=_OUTPUT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """One page on RUN's family: losses, cost, scaling law, settings; written to report.html, .md, .json, .png and .svg.

    Of several runs, such as a ladder of model sizes: one page on all of them, and each family's own beside its run.
    """
    if len(runs) > 1 and output is None:
        raise SettingsError(f"a page on {len(runs)} runs needs a place: give --output FOLDER")
    families = [read_run(run) for run in runs]
    written = [write_report(run, None if len(runs) > 1 else output) for run in families]
    reports = [make_report(run) for run in families]
    if len(runs) > 1 and output is not None:
        written.append(write_ladder(families, output))
    if as_json:
        print(written[-1]["json"].read_text(encoding="utf-8"), end="")
    elif out.is_terminal:
        out.print(*map(terminal_table, reports), sep="\n")
    else:
        print("\n".join(one.to_markdown() for one in reports), end="\n" if len(reports) == 1 else "")
    for files in written:
        print(f"written: {', '.join(str(file) for file in files.values())}", file=sys.stderr)


def terminal_table(report: Report) -> Table:
    """A family's claim, table and cost for a terminal."""
    notes = "\n".join(report.notes())
    table = Table(title=report.claim, caption=notes, caption_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    heads, *rows = report.table()
    for column in COLUMNS[:-1]:
        table.add_column(column, justify="right", min_width=7)
    for column in heads[len(COLUMNS) - 1 :]:
        table.add_column(column, no_wrap=column == COLUMNS[-1])
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table


def write_report(run: Run | Path | str, folder: Path | None = None) -> dict[str, Path]:
    """Write a family's page, numbers and pictures: report.html, .md, .json, .png and .svg; returns them by suffix.

    Args:
        run: the trunk, or its folder.
        folder: where to; None is the run's own.

    Raises:
        RecordError: the folder is no run of hf_wsd.
    """
    from hf_wsd.family_page import family_page
    from hf_wsd.plots import family_figure

    run = run if isinstance(run, Run) else read_run(run)
    told: Report = make_report(run)
    page, more = family_page(run, told)
    return _write(folder or run.path, page, told.to_dict() | more, family_figure(run, title=told.claim))


def write_ladder(runs: Sequence[Run], folder: Path) -> dict[str, Path]:
    """The same for several families in one.

    Args:
        runs: the trunks.
        folder: where to; it is made.

    Raises:
        SettingsError: one trunk is given twice, or the folder is one of the runs.
    """
    from hf_wsd.ladder_page import Ladder, ladder_page

    if any(run.path.resolve() == folder.resolve() for run in runs):
        raise SettingsError(f"{folder} is one of the runs, with a page of its own: give --output another folder")
    ladder = Ladder.make(runs, name=folder.resolve().name)
    page, more = ladder_page(ladder)
    return _write(folder, page, ladder.to_dict() | more, ladder.figure(title=ladder.claim))


def _write(folder: Path, page: Page, told: dict[str, Any], figure: Figure) -> dict[str, Path]:
    """The five files; each is whole or not there."""
    from hf_wsd.page import svg_text

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made: {error}") from None
    files = {suffix: folder / f"report.{suffix}" for suffix in ("html", "md", "json", "png", "svg")}
    write_atomically(files["html"], page.html())
    write_atomically(files["md"], page.markdown())
    write_atomically(files["json"], json.dumps(finite(told), indent=1, allow_nan=False) + "\n")
    write_atomically(files["svg"], svg_text(figure, salt="report"))
    pictures = {files["png"]: figure}
    pictures |= {folder / f"{one.name}.png": one.figure for one in page.pictures if one.name != "report"}
    for file, drawn in pictures.items():
        new = file.with_name(f".{file.name}.{os.getpid()}")
        drawn.savefig(new, format="png", metadata={"Software": None})
        new.replace(file)
    return files


def finite(value: Any) -> Any:
    """A JSON-ready value with None for each number that JSON does not have.

    >>> finite({"losses": [1.5, float("nan")]})
    {'losses': [1.5, None]}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
