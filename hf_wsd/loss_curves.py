"""Loss curves as the laws of a loss curve see them: the lr of every update, and losses measured on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_wsd.errors import FitError
from hf_wsd.family import Run
from hf_wsd.segment import Phase
from hf_wsd.tables import number_of, read_table

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]
Decay = tuple[int, int]  # fork point and end
MOST_POINTS = 250  # of one curve outside its decays that a fit needs: 24,000 steps of the public curves have 171
MOST_STEPS = 10**8  # beyond it a "step" is tokens
_NAMES = ("step", "lr", "loss")


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """The lr of every update of a run, and the losses that were measured.

    Args:
        name: what the run is called.
        lrs: lr of update 0, 1, 2, ...
        steps: updates done at each evaluation, rising; none is above the number of `lrs`.
        losses: the loss of each evaluation, in nats, above 0.
        warmup: updates of the first rise to the peak; losses measured in it are left out.
        decays: fork point and end of each decay, as far as they are known.
        shapes: the shapes of its decays, as far as they are known.
        peak_lr: the peak lr; None is the highest of `lrs`.

    Raises:
        FitError: lengths that do not fit, or losses that no law can describe.

    >>> curve = Curve(name="a", lrs=[0.5, 1, 1, 0.5], steps=[1, 2, 4], losses=[4, 3, 2], warmup=1, decays=((3, 4),))
    >>> curve.steps.tolist(), curve.in_decay().tolist(), curve.without((3, 4)).steps.tolist(), curve.peak_lr
    ([2, 4], [False, True], [2], 1.0)
    """

    name: str
    lrs: Floats
    steps: Steps
    losses: Floats
    warmup: int = 0
    decays: tuple[Decay, ...] = ()
    shapes: tuple[str, ...] = ()
    peak_lr: float | None = None

    def __post_init__(self) -> None:
        lrs, losses = np.asarray(self.lrs, dtype=float), np.asarray(self.losses, dtype=float)
        steps = np.asarray(self.steps, dtype=np.int64)
        if len(steps) != len(losses) or (len(steps) and (steps.max() > len(lrs) or np.any(np.diff(steps) <= 0))):
            raise FitError(f"{self.name}: {len(losses)} losses at {len(steps)} rising steps need the lr of each update")
        if np.any(lrs < 0) or not np.any(lrs > 0) or not np.all(np.isfinite(lrs)):
            raise FitError(f"{self.name}: the lrs have to be finite, at least 0, and not all 0")
        kept = (steps > self.warmup) & np.isfinite(losses)
        if np.any(losses[kept] <= 0):
            raise FitError(f"{self.name}: the laws are fitted to log losses, and one loss is {losses[kept].min():g}")
        values = {"lrs": lrs, "steps": steps[kept], "losses": losses[kept]}
        values["peak_lr"] = float(lrs.max()) if self.peak_lr is None else self.peak_lr
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def in_decay(self) -> NDArray[np.bool_]:
        """Which of the evaluations were made in a decay or at its end: where the lr is below what it was before."""
        if self.decays:
            return np.array([any(fork < step <= end for fork, end in self.decays) for step in self.steps], dtype=bool)
        return np.array(self.lrs[self.steps - 1] < 0.999 * (self.peak_lr or 0), dtype=bool)

    def kept(self, which: NDArray[np.bool_]) -> Curve:
        """The same curve with some of its losses."""
        return replace(self, steps=self.steps[which], losses=self.losses[which])

    def without(self, decay: Decay) -> Curve:
        """The same curve without what was measured in a decay."""
        return self.kept((self.steps <= decay[0]) | (self.steps > decay[1]))

    def thinned(self) -> Curve:
        """The same curve with at most MOST_POINTS evenly spaced losses outside the decays, and all within them."""
        decaying = self.in_decay()
        outside = np.flatnonzero(~decaying)
        which = decaying if len(outside) > MOST_POINTS and self.decays else np.zeros(len(self.steps), dtype=bool)
        pool = outside if self.decays else np.arange(len(self.steps))
        which[pool[np.unique(np.linspace(0, len(pool) - 1, min(len(pool), MOST_POINTS)).round().astype(int))]] = True
        return self.kept(which | decaying if self.decays else which)


def curves_of(run: Run, *, series: str = "eval_loss") -> tuple[tuple[Curve, ...], tuple[str, ...]]:
    """The curves of a family, each loss once (a branch's from its fork point on), and sentences on what is left out.

    Args:
        run: a trunk with its branches, or a WSD-S line; it may still be training.
        series: the logged value: "eval_loss", or "eval_NAME_loss" of one evaluation set of several.

    Raises:
        FitError: the peak lr is not one number in the whole family.
    """
    peaks = {record.peak_lrs for m in run.walk(rewound=False) for record in (*m.records.values(), m.identity)}
    known = {peak for lrs in peaks for peak in lrs}
    if len(peaks - {()}) > 1:
        raise FitError(
            f"the peak lr changes in {run.path.name}: {', '.join(f'{lr:g}' for lr in sorted(known))}. A law of the "
            "loss curve holds for one peak lr: forecast from a family that keeps it"
        )
    peak, curves, left_out = (known.pop() if len(known) == 1 else 1.0), [], []
    for member in run.walk(rewound=False):
        if member.planned is not None and member.changed:
            left_out.append(f"{member.path.name} is left out: its decay changes more than the lr ({member.changed}).")
        elif (curve := _curve(member, series, peak)) is not None:
            curves.append(curve)
    return tuple(curves), tuple(left_out)


def _curve(run: Run, series: str, peak: float) -> Curve | None:
    begin, schedule = run.planned.step if run.planned else 0, run.identity.schedule
    last = run.steps_done if schedule.total_steps is None else min(run.steps_done, schedule.total_steps)
    rows = {
        int(row["step"]): float(row[series])
        for row in run.history
        if begin < row["step"] <= last and isinstance(row.get(series), (int, float)) and isfinite(row[series])
    }
    if not rows:
        return None
    first = schedule.segments[0]
    shapes = {segment.shape for segment in schedule.segments if segment.phase is Phase.DECAY}
    return Curve(
        name=run.path.name,
        lrs=np.array(schedule.multipliers(0, max(rows))) * peak,
        steps=np.array(sorted(rows)),
        losses=np.array([rows[step] for step in sorted(rows)]),
        warmup=(first.steps or 0) if first.phase is Phase.WARMUP else 0,
        decays=tuple(run.decays()),
        shapes=tuple(sorted(shapes)),
        peak_lr=peak,
    )


def read_curves(files: Sequence[Path], *, warmup: int = 0, only: Sequence[str] = ()) -> tuple[Curve, ...]:
    """Curves from tables with the columns step, lr and loss.

    The curves of one file are told apart by its columns of texts that repeat, such as the run's name; where a step is
    still there twice, by all its columns that repeat.

    The lr between two rows is on a line, but a jump between two constant stretches is a jump, midway; before the first
    row it is that row's. A row without a loss gives an lr alone: a curve needs the lr from its very beginning.

    Args:
        files: tables, .csv, .tsv, .json or .jsonl.
        warmup: updates of a linear warm-up from 0 before the first row.
        only: patterns of the names of the curves wanted ("100/*_24000"); all if empty.

    Raises:
        DataError: a file that is no table.
        FitError: one without these columns, a cell that is no number, or no curve of that name.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "a.csv"
    ...     _ = file.write_text("run,step,lr,loss\\nx,2,1.0,4.0\\nx,4,1.0,3.5\\nx,8,0.5,3.0\\nx,10,0.5,\\n")
    ...     (curve,) = read_curves([file])
    >>> curve.name, curve.steps.tolist(), curve.lrs.tolist()
    ('x', [2, 4, 8], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5])
    """
    found = {name: rows for file in files for name, rows in _rows(file).items()}
    wanted = [name for name in found if not only or any(fnmatch(name, pattern) for pattern in only)]
    if not wanted:
        raise FitError(f"no curve is called {' or '.join(only) or 'anything'}: there are {', '.join(found) or 'none'}")
    return tuple(_curve_of_rows(name, found[name], warmup) for name in wanted)


def _rows(file: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Rows of a table by the name of their curve: step, lr, loss (not a number where the cell is empty)."""
    table = read_table(file)
    if missing := [name for name in _NAMES if name not in table[0]]:
        raise FitError(f"{file.name} needs the columns step, lr and loss: it has no {', '.join(missing)}")
    naming = _naming(table)
    rows: dict[str, list[tuple[int, float, float]]] = {}
    for number, row in enumerate(table, 1):
        name = "/".join(str(row[key]) for key in naming if key in row) or file.stem
        rows.setdefault(name, []).append(_numbers(file, number, row))
    return rows


def _naming(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that tell the curves of a table apart.

    >>> rows = [{"run": run, "step": step, "tokens": 1000 * step} for run in "ab" for step in (1, 2, 3)]
    >>> _naming(rows), _naming(rows[:3])
    (['run'], ['run'])
    """
    others = [key for key in table[0] if key not in _NAMES]
    repeated = [key for key in others if 2 * len({str(row.get(key)) for row in table}) <= len(table)]
    texts = [key for key in repeated if not all(_is_number(row.get(key)) for row in table)]
    steps = {(str(row["step"]), *(str(row.get(key)) for key in texts)) for row in table}
    return texts if len(steps) == len(table) else repeated


def _is_number(value: Any) -> bool:
    try:
        number_of(value)
    except ValueError:
        return False
    return True


def _numbers(file: Path, number: int, row: Mapping[str, Any]) -> tuple[int, float, float]:
    try:
        loss, step = row.get("loss", ""), float(row["step"])
        found = round(step), float(row["lr"]), float("nan" if loss in ("", None) else loss)
        if found[0] != step:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise FitError(
            f"row {number} of {file.name}: step is a whole number, lr and loss are numbers, not {dict(row)}"
        ) from None
    if not 0 <= step <= MOST_STEPS:
        raise FitError(
            f"row {number} of {file.name}: a step is the number of updates done, 0 to {MOST_STEPS:,}, not {step:g} "
            "(tokens? divide them by those of a step)"
        )
    return found


def _curve_of_rows(name: str, rows: list[tuple[int, float, float]], warmup: int) -> Curve:
    rows = sorted(rows)
    if twice := [step for (step, *_), (other, *_) in pairwise(rows) if step == other]:
        raise FitError(f"{name}: step {twice[0]} is there twice. One curve has a loss a step: name curves in a column")
    if warmup >= rows[-1][0]:
        raise FitError(f"{name} ends at step {rows[-1][0]}, in a warm-up of {warmup} steps: lower --warmup")
    steps, lrs = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    losses = np.array([row[2] for row in rows])
    every = np.arange(int(steps[-1]))
    lr = np.interp(every, steps, lrs)
    for i in range(1, len(steps) - 2):
        if lrs[i - 1] == lrs[i] != lrs[i + 1] == lrs[i + 2]:
            between = (every > steps[i]) & (every < steps[i + 1])
            lr[between] = np.where(every[between] < (steps[i] + steps[i + 1]) / 2, lrs[i], lrs[i + 1])
    if warmup:
        lr[:warmup] = np.linspace(0, lr[min(warmup, len(lr) - 1)], warmup, endpoint=False)
    measured = np.isfinite(losses)
    return Curve(name=name, lrs=lr, steps=steps[measured], losses=losses[measured], warmup=warmup)


def decays_of(curves: Sequence[Curve]) -> list[tuple[int, Decay]]:
    """Index of the curve, fork point and end of each decay in which something was measured, shortest model first."""
    found = [
        (end, fork, index)
        for index, curve in enumerate(curves)
        for fork, end in curve.decays or _falls(curve)
        if np.any((curve.steps > fork) & (curve.steps <= end))
    ]
    return [(index, (fork, end)) for end, fork, index in sorted(found)]


def _falls(curve: Curve) -> Iterator[Decay]:
    """The stretch below the peak lr, as one decay, of a curve of which only the lrs are known."""
    below = np.flatnonzero(curve.lrs[curve.warmup :] < 0.999 * (curve.peak_lr or 0)) + curve.warmup
    if len(below):
        yield int(below[0]), len(curve.lrs)
