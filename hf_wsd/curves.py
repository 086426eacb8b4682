"""What led to a revision: the logged rows of the runs that made it, and their picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from hf_wsd.family import Run
from hf_wsd.lengths import show_tokens
from hf_wsd.plots import DECAY, TRAINING, TRUNK
from hf_wsd.retention import left_at
from hf_wsd.revisions import Revision
from hf_wsd.scrubbing import clean
from hf_wsd.segment import Phase

POINTS = 400  # drawn of one phase
_TIMINGS = ("_runtime", "_per_second", "_time", "total_flos")  # of this machine, not of the model
_STEEP = 0.1  # part of the steps whose training losses do not set the y axis: they would flatten all else


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The updates after `first` up to `last` of a run, which a revision has gone through."""

    run: Run
    first: int
    last: int


def stretches(revision: Revision) -> tuple[Stretch, ...]:
    """The trunk up to the fork point, then the branch (and its own branch): each with the updates that it gave."""
    parents = {branch.path: member for member in revision.family.walk() for branch in member.branches}
    run, last, found = revision.run, revision.step, list[Stretch]()
    while run.path in parents:
        first = left_at(run)
        found.insert(0, Stretch(run=run, first=first, last=last))
        run, last = parents[run.path], first
    return Stretch(run=run, first=0, last=last), *found


def tokens_at(revision: Revision, step: int) -> int | None:
    """Tokens that a revision had seen after so many updates, as counted by the run that made them."""
    return next(one.run for one in stretches(revision) if step <= one.last).tokens_at(step)


def training_curve(revision: Revision) -> dict[str, Any]:
    """JSON-ready: a row for each step at which something was logged, of the trunk, then of the branch.

    Numbers and phases alone; what was no number is None; timings are left out.
    """
    rows, name = dict[int, dict[str, Any]](), cache(clean)
    for one in stretches(revision):
        for logged in one.run.history:
            step = int(logged["step"])
            if one.first < step <= one.last or step == one.first == 0:
                row = rows.setdefault(step, {"step": step})
                row |= {name(key): number for key, value in logged.items() for number in _plain(key, value)}
    return {"revision": revision.name, "rows": [rows[step] for step in sorted(rows) if len(rows[step]) > 1]}


def _plain(key: str, value: Any) -> Iterator[float | str | None]:
    """The value as JSON has it; nothing for what does not belong into a curve."""
    if key == "phase" and value in list(Phase):
        yield str(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not key.endswith(_TIMINGS):
        if key.startswith("train_"):  # Trainer's summary of a whole job
            return
        yield value if isfinite(value) else None


def schedule_picture(revision: Revision, file: Path) -> None:
    """Write a PNG of 900 x 500 pixels: the lr over tokens, the loss below; the same data give the same bytes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    # Never transparent: on a page in dark mode black text would be lost.
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained", facecolor="white")
    lr, loss = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    per_step = revision.run.tokens_per_step or 1
    _draw_lr(lr, revision, per_step)
    _draw_losses(loss, revision, per_step)
    loss.set_xlim(0, revision.step * per_step * 1.02)
    loss.set_xlabel("tokens seen" if revision.run.tokens_per_step else "steps")
    loss.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_tokens(x)))
    for ax in (lr, loss):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Software": None})


def _draw_lr(ax: Any, revision: Revision, per_step: int) -> None:
    schedule, peak = revision.record.schedule, revision.record.peak_lr
    for start, end, segment in schedule.spans():
        last = min(end or revision.step, revision.step)
        if start < last:
            falls = segment.phase is Phase.DECAY
            begin = start if falls else max(start - 1, 0)  # a restart is drawn as a rise, not as part of the decay
            stop = last if not falls or last == revision.step else last - 1
            steps = sorted({*range(begin, stop, 1 + (stop - begin) // POINTS), start, stop})
            ax.plot(
                [step * per_step for step in steps],
                [schedule(step) * (peak or 1) for step in steps],
                color=DECAY if falls else TRUNK,
                linewidth=2,
            )
    ax.set_ylabel("learning rate" if peak else "lr / peak lr")
    ax.set_ylim(bottom=0)


def _draw_losses(ax: Any, revision: Revision, per_step: int) -> None:
    rows = training_curve(revision)["rows"]
    series = {
        key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in ("loss", "eval_loss")
    }
    phase = revision.record.schedule.phase
    if series["loss"]:
        ax.plot(*_over(series["loss"], per_step), color=TRAINING, linewidth=1, label="training loss")
    if evaluated := series["eval_loss"]:
        ax.plot(*_over(evaluated, per_step), color=TRUNK, linewidth=2, label="evaluation loss")
        decay = [pair for pair in evaluated if phase(max(pair[0] - 1, 0)) is Phase.DECAY]
        if decay:
            ax.plot(*_over(decay, per_step), "o", color=DECAY, markersize=5, label="in a decay")
    shown = [value for points in series.values() for step, value in points if step > _STEEP * revision.step]
    if len(set(shown)) > 1:
        margin = 0.08 * (max(shown) - min(shown))
        ax.set_ylim(min(shown) - margin, max(shown) + margin)
    if any(series.values()):
        ax.legend(frameon=False, loc="upper right")
    ax.set_ylabel("loss")


def _over(points: list[tuple[int, float]], per_step: int) -> tuple[list[int], list[float]]:
    return [step * per_step for step, _ in points], [value for _, value in points]
