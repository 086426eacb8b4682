"""Decayed models as observations of a scaling law: read from families, and from tables of anybody's runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isclose, isnan, nan
from pathlib import Path
from typing import Any

from hf_wsd.errors import DataError
from hf_wsd.family import Run, read_run
from hf_wsd.lengths import DEFAULT_DECAY_FRACTION, nearest
from hf_wsd.lineage import Lineage
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase
from hf_wsd.tables import number_of, read_table

SIZES = ("parameters", "parameters_without_embeddings")  # what N may be
# in what the models of one law do not differ unasked
MIXABLE = ("schedule", "evaluation", "decay_fraction", "decay_type", "peak_lr")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One decayed model; what is not known is None.

    Args:
        tokens: seen by the model at its end: D of the law.
        loss: of its evaluation, in nats; not a number where it is unfinished or has diverged.
        parameters: trainable ones, embeddings included.
        parameters_without_embeddings: without input embedding, learned positions and an output head of its own.
        schedule: its name, such as wsd, wsd_s or cosine.
        decay_fraction: steps of its decay / steps of the model; in a WSD-S line, of the cycle.
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
    schedule: str | None = None
    decay_fraction: float | None = None
    decay_steps: int | None = None
    decay_type: str | None = None
    peak_lr: float | None = None
    evaluation: str | None = None
    run: str = ""
    seed: int | None = None

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """N by each count, as in SIZES."""
        return self.parameters, self.parameters_without_embeddings

    def size(self, name: str) -> int | None:
        """N by the name of its count, one of SIZES."""
        return dict(zip(SIZES, self.sizes, strict=True))[name]


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
        schedule=_kind(record.schedule, len(ends) - 1),
        decay_fraction=_fraction(record, end - fork, end - cycle),
        decay_steps=end - fork,
        decay_type=_shape(record.schedule, fork),
        peak_lr=trunk.identity.peak_lr,
        evaluation=None if evaluation == "unknown" else evaluation,
        run=str(run.path),
        seed=seed if isinstance(seed, int) else None,
    )


def _fraction(record: Lineage, steps: int, length: int) -> float:
    """A decay's part of its length: as it was asked for, if these are the steps which that is rounded to."""
    asked = record.settings.get("decay_fraction", DEFAULT_DECAY_FRACTION)
    is_asked = isinstance(asked, (int, float)) and nearest(asked * length) == steps
    return float(asked) if is_asked else steps / length


def _kind(schedule: Schedule, decays: int) -> str | None:
    """What the schedule of a run with so many decays is called; None of one without a stable phase."""
    if all(segment.phase is not Phase.STABLE for _, _, segment in schedule.spans()):
        return None
    return "wsd_s" if decays > 1 else "wsd"


def _shape(schedule: Schedule, fork: int) -> str:
    """The shape of the decay that starts at `fork`, with its parameters and its end where that is not 0."""
    segment = next(segment for start, _, segment in schedule.spans() if start == fork)
    return segment.shape_text + (f" to {segment.end:g}" if segment.end else "")


WHOLE = ("tokens", "parameters", "parameters_without_embeddings", "decay_steps", "seed")
POSITIVE = ("tokens", *SIZES, "peak_lr")
TEXTS = ("schedule", "decay_type", "evaluation", "run")
ALIASES = {  # columns of other tables that are read unasked
    "params": "parameters",
    "dataset": "evaluation",
    "scheduler": "schedule",
    "lr_scheduler_type": "schedule",
}
NEAR = {"decay_fraction": 0.05, "peak_lr": 1e-5}  # how far a value may be from one asked for: it was rounded to steps


def read_points(
    paths: Iterable[Path | str],
    *,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str | Collection[str]] | None = None,
) -> tuple[Point, ...]:
    """Observations from run folders, and from tables of anybody's runs (.csv, .tsv, .json, .jsonl).

    Args:
        paths: folders of trunks; files with a row a model. JSON is a list of rows, or has one under "points" or "rows".
        columns: for a field of `Point`, the column that has it. Needed are tokens and loss.
        where: a column, or a field of `Point`, and the value that rows must have, or several of which they have one.

    Raises:
        DataError: a file that cannot be read, a column that is not there, or no row that is wanted. RecordError: a
            folder that is no run.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "runs.csv"
    ...     _ = file.write_text("tokens,val,kind\\n1000,3.5,wsd\\n2M,3.4,wsd\\n2M,3.6,cosine\\n")
    ...     points = read_points([file], columns={"loss": "val"}, where={"kind": "wsd"})
    >>> [(point.tokens, point.loss) for point in points]
    [(1000, 3.5), (2000000, 3.4)]
    """
    wanted = {name: {value} if isinstance(value, str) else {*value} for name, value in (where or {}).items()}
    found, seen, given = list[Point](), dict[str, set[str]](), [*map(Path, paths)]
    times = Counter(path.resolve() for path in given)
    if twice := [path for path in given if times[path.resolve()] > 1]:
        raise DataError(f"{twice[0]} is given twice, and every model of it would count twice: name it once")
    for path in given:
        rows = _rows(path)
        read = _columns(path, {name: name for row in rows for name in row}, columns or {}, wanted)
        for number, row in enumerate(rows, 1):
            values = {name: row.get(read.get(name, name)) for name in wanted}
            if all(any(_same(name, values[name], value) for value in wanted[name]) for name in wanted):
                found.append(_read_row(path, number, row, read))
            for name, value in values.items():
                seen.setdefault(name, set()).add("" if value is None else str(value))
    if wanted and seen and not found:
        asked = " and ".join(f"{name}={' or '.join(sorted(values))}" for name, values in wanted.items())
        there = "; ".join(f"{name} is {some(sorted(values), 8)}" for name, values in seen.items())
        raise DataError(f"no row has {asked}: {there}")
    return tuple(found)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_dir():
        return read_table(path)
    run = read_run(path)
    found = [asdict(point) for point in points_of(run)]
    if not found and any(True for member in run.walk(rewound=False) for _ in member.decays()):
        raise DataError(f"{path} has decays, but none of only a falling lr and a known number of tokens")
    return found


def _columns(
    path: Path, names: Mapping[str, str], columns: Mapping[str, str], where: Iterable[str]
) -> Mapping[str, str]:
    """The column of each field, asked for or found by name; a column that is needed and not there is refused."""
    known = {field.name for field in fields(Point)}
    if unknown := sorted({*columns} - known):
        raise DataError(f"--columns names {unknown[0]!r}, but a point has {', '.join(sorted(known))}")
    read = {ALIASES[name]: name for name in names if name in ALIASES} | dict(names) | dict(columns)
    needed = [read.get(name, name) for name in ("tokens", "loss", *where)] + [*columns.values()]
    if names and (missing := [column for column in needed if column not in names]):
        repair = f"--columns {missing[0]}=my_{missing[0]} names another"
        raise DataError(
            f"{path} has no column {missing[0]!r} (it has {', '.join(names)}): "
            + ("--where has to name one of these" if missing[0] in where else repair)
        )
    return read


def _same(name: str, value: Any, wanted: str) -> bool:
    """Whether a row has what was asked for."""
    try:
        return isclose(number_of(value), number_of(wanted), rel_tol=NEAR.get(name, 1e-9))
    except ValueError:
        return str("" if value is None else value) == wanted


def _read_row(path: Path, number: int, row: Mapping[str, Any], read: Mapping[str, str]) -> Point:
    values: dict[str, Any] = {}
    for field in fields(Point):
        value = row.get(read.get(field.name, ""))
        try:
            values[field.name] = None if value is None or value == "" else _value(field.name, value)
        except (ValueError, OverflowError):
            what = "a whole number, such as 1500 or 1.5B" if field.name in WHOLE else "a number"
            raise DataError(f"{path}, row {number}: {field.name} is {what}, not {value!r}") from None
    for name in POSITIVE:
        if (values[name] is None and name == "tokens") or (values[name] is not None and values[name] <= 0):
            raise DataError(f"{path}, row {number}: {name} is a number above 0, not {row.get(read[name])!r}")
    values["loss"] = nan if values["loss"] is None else values["loss"]
    values["run"] = values["run"] or f"{path.name}:{number}"
    return Point(**values)


def _value(field: str, value: Any) -> str | float | None:
    """A cell as a field has it; a fraction of a token is a sign of another unit, such as billions."""
    if field in TEXTS:
        return str(value)
    number = number_of(value)
    if isnan(number) and field != "loss":  # how others write an empty cell
        return None
    if field in WHOLE and not isclose(number, round(number), rel_tol=1e-6):
        raise ValueError
    return round(number) if field in WHOLE else number


def some(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many more there are.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
