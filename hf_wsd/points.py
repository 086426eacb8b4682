"""Decayed models as observations of a scaling law: read from families, and from tables of anybody's runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from math import isclose, nan
from pathlib import Path
from typing import Any

from hf_wsd.errors import DataError
from hf_wsd.family import Run, read_run
from hf_wsd.schedule import Schedule

SIZES = ("parameters", "parameters_without_embeddings")  # what N may be
MIXABLE = (
    "decay_fraction",
    "decay_type",
    "peak_lr",
    "evaluation",
)  # in what the models of one law do not differ unasked


@dataclass(frozen=True, kw_only=True)
class Point:
    """One decayed model; what is not known is None.

    Args:
        tokens: seen by the model at its end: D of the law.
        loss: of its evaluation, in nats; not a number where it is unfinished or has diverged.
        parameters: trainable ones, embeddings included.
        parameters_without_embeddings: without input embedding, learned positions and an output head of its own.
        decay_fraction: steps of its decay / steps of the model.
        decay_steps: of its decay.
        decay_type: the shape of its decay.
        peak_lr: peak lr of its trunk.
        evaluation: fingerprint, or name, of the set that it was evaluated on.
        run: where it comes from, for messages.
        seed: of its trunk.

    >>> Point(tokens=1_000_000, loss=3.5).size("parameters") is None
    True
    """

    tokens: int
    loss: float
    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    decay_fraction: float | None = None
    decay_steps: int | None = None
    decay_type: str | None = None
    peak_lr: float | None = None
    evaluation: str | None = None
    run: str = ""
    seed: int | None = None

    def size(self, name: str) -> int | None:
        """N by the name of its count, one of SIZES."""
        return {"parameters": self.parameters, "parameters_without_embeddings": self.parameters_without_embeddings}[
            name
        ]


def points_of(run: Run) -> tuple[Point, ...]:
    """The decayed models of a trunk with its branches, or of a WSD-S line, shortest first.

    A model that is not finished, or was not evaluated at its end, has a loss that is not a number.

    >>> from hf_wsd.builders import wsd
    >>> from hf_wsd.lineage import Lineage
    >>> schedule = wsd(100, num_decay_steps=20)
    >>> record = Lineage(step=100, kind="end", schedule=schedule, tokens_per_step=1000, losses={"loss": 3.5})
    >>> run = Run(path=Path("RUN"), checkpoints={}, records={100: record}, history=(), planned=None, branches=())
    >>> [(point.tokens, point.loss, point.decay_fraction, point.decay_type) for point in points_of(run)]
    [(100000, 3.5, 0.2, '1-sqrt')]
    """
    found = [
        _point(run, member, fork, end)
        for member in run.walk(rewound=False)
        if not member.changed
        for fork, end in member.decays()
        if member.tokens_at(end) is not None
    ]
    return tuple(sorted(found, key=lambda point: (point.tokens, point.run)))


def _point(trunk: Run, run: Run, fork: int, end: int) -> Point:
    record, ends = run.identity, [0, *(end for _, end in run.decays())]
    cycle = max(before for before in ends if before < end) if record.intent != "branch" else 0
    seed, evaluation = trunk.identity.setup.get("seed"), run.records.get(end, record).evaluation
    return Point(
        tokens=run.tokens_at(end) or 0,
        loss=run.losses_at(end).get("loss", nan) if run.has_saved(end) else nan,
        parameters=trunk.identity.parameters,
        parameters_without_embeddings=trunk.identity.parameters_without_embeddings,
        decay_fraction=(end - fork) / (end - cycle),
        decay_steps=end - fork,
        decay_type=_shape(record.schedule, fork),
        peak_lr=trunk.identity.peak_lr,
        evaluation=None if evaluation == "unknown" else evaluation,
        run=str(run.path),
        seed=seed if isinstance(seed, int) else None,
    )


def _shape(schedule: Schedule, fork: int) -> str:
    """The shape of the decay that starts at `fork`, with its parameters and its end where that is not 0."""
    segment = next(segment for start, _, segment in schedule.spans() if start == fork)
    params = ", ".join(f"{name}={value:g}" for name, value in segment.shape_params)
    return segment.shape + (f"({params})" if params else "") + (f" to {segment.end:g}" if segment.end else "")


NUMBERS = ("tokens", "parameters", "parameters_without_embeddings", "decay_steps", "seed")
ALIASES = {"params": "parameters", "dataset": "evaluation"}  # columns of other tables that are read unasked


def read_points(
    paths: Iterable[Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
) -> tuple[Point, ...]:
    """Observations from run folders, and from tables of anybody's runs (.csv, .json, .jsonl).

    Args:
        paths: folders of trunks; files with a row a model. JSON is a list of rows, or has one under "points" or "rows".
        columns: for a field of `Point`, the column that has it. Needed are tokens and loss.
        where: a column and the value that rows must have; of folders, a field of `Point`.

    Raises:
        DataError: a file that cannot be read, or a column that is not there. RecordError: a folder that is no run.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "runs.csv"
    ...     _ = file.write_text("tokens,val,kind\\n1000,3.5,wsd\\n2000,3.4,wsd\\n2000,3.6,cosine\\n")
    ...     points = read_points([file], columns={"loss": "val"}, where={"kind": "wsd"})
    >>> [(point.tokens, point.loss) for point in points]
    [(1000, 3.5), (2000, 3.4)]
    """
    found: list[Point] = []
    for path in map(Path, paths):
        rows = _rows(path)
        names = {name: name for row in rows for name in row}
        read = {ALIASES.get(name, name): name for name in names} | names | dict(columns or {})
        _check_columns(path, names, read, where or {})
        kept = [row for row in rows if all(_same(name, row.get(name), value) for name, value in (where or {}).items())]
        found += [_read_row(path, number, row, read) for number, row in enumerate(kept, 1)]
    return tuple(found)


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        run = read_run(path)
        found = [asdict(point) for point in points_of(run)]
        if not found and any(True for member in run.walk(rewound=False) for _ in member.decays()):
            raise DataError(f"{path} has decays, but none of only a falling lr and a known number of tokens")
        return found
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            return [{**row} for row in csv.DictReader(text.splitlines())]
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        read = [json.loads(line) for line in lines if line.strip()]
        rows: Any = read if path.suffix == ".jsonl" else read[0]
        shared: dict[str, Any] = {}
        if isinstance(rows, dict):
            shared = {name: value for name, value in rows.items() if not isinstance(value, (list, dict))}
            rows = next(rows[name] for name in ("points", "rows") if name in rows)
        return [shared | row for row in rows]
    except FileNotFoundError:
        raise DataError(f"there is no {path}: give folders of runs, or .csv, .json and .jsonl files") from None
    except (OSError, ValueError, TypeError, IndexError, StopIteration, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table of runs ({error or 'no list of rows'})") from error


def _check_columns(path: Path, names: Mapping[str, str], read: Mapping[str, str], where: Mapping[str, str]) -> None:
    fields_ = {field.name for field in fields(Point)}
    if unknown_fields := sorted({*read} - fields_ - {*names} - {*ALIASES}):
        raise DataError(f"--columns names {unknown_fields[0]!r}, but a point has {', '.join(sorted(fields_))}")
    needed = [read.get("tokens", "tokens"), read.get("loss", "loss"), *where]
    needed += [column for name, column in read.items() if name not in names]
    if names and (missing := [column for column in needed if column not in names]):
        raise DataError(
            f"{path} has no column {missing[0]!r} (it has {', '.join(names)}): name another with "
            "--columns, such as --columns loss=final_loss"
        )


def _same(name: str, value: Any, wanted: str) -> bool:
    """Whether a row has what was asked for; a fraction is rounded to steps."""
    try:
        return isclose(float(value), float(wanted), rel_tol=0.05 if name == "decay_fraction" else 1e-9)
    except (TypeError, ValueError):
        return str("" if value is None else value) == wanted


def _read_row(path: Path, number: int, row: Mapping[str, Any], read: Mapping[str, str]) -> Point:
    values: dict[str, Any] = {}
    for field in fields(Point):
        value = row.get(read.get(field.name, ""))
        text = field.name in ("decay_type", "evaluation", "run")
        try:
            if value is None or value == "":
                values[field.name] = None
            elif text:
                values[field.name] = str(value)
            else:
                values[field.name] = round(float(value)) if field.name in NUMBERS else float(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{path}, row {number}: {field.name} is a number, not {value!r}") from None
    if values["tokens"] is None or values["tokens"] <= 0:
        raise DataError(f"{path}, row {number}: tokens is a number above 0, not {values['tokens']}")
    values["loss"] = nan if values["loss"] is None else values["loss"]
    values["run"] = values["run"] or f"{path.name}:{number}"
    return Point(**values)
