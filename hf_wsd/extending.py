"""A run that goes on to a larger budget: from which of its checkpoints, and where its former end is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hf_wsd.checkpoint import FORK_POINTS, check_checkpoint, saved_checkpoints, step_in_name
from hf_wsd.decision import DECISION
from hf_wsd.errors import CheckpointError
from hf_wsd.history import HISTORY, read_history, to_json, write_atomically
from hf_wsd.lineage import BRANCHES, RECORD, Lineage, Parent
from hf_wsd.plan import Decay, branch_name
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase


def newest_agreeing(run: Path, schedule: Schedule) -> Path | None:
    """The newest whole checkpoint of a run whose past is that of a schedule, or None.

    >>> from hf_wsd.builders import wsd
    >>> newest_agreeing(Path("nowhere"), wsd(100)) is None
    True
    """
    for path in reversed(saved_checkpoints(run).values()):
        try:
            check_checkpoint(path)
            record = Lineage.read(path)
        except CheckpointError:
            continue
        if record.schedule.agrees_with(schedule, until=record.step):
            return path
    return None


def point_to_extend(run: Path, newest: Path, schedule: Schedule) -> tuple[Path, str]:
    """The checkpoint that a run goes on from to what is asked for now, and why it is not the newest (empty if it is).

    A finished model that gets a larger budget has to go on from before its decay. Where no checkpoint agrees with what
    is asked for it is the newest all the same, to be refused with the difference.

    Args:
        run: the run's folder.
        newest: its newest whole checkpoint.
        schedule: what is asked for now.

    >>> from tempfile import TemporaryDirectory
    >>> from hf_wsd.builders import wsd
    >>> with TemporaryDirectory() as newest:
    ...     Lineage(step=100, kind="post-decay", schedule=wsd(100)).write(Path(newest))
    ...     point_to_extend(Path("RUN"), Path(newest), wsd(100))[1]
    ''
    """
    if not (newest / RECORD).exists() or (run / DECISION).exists():  # a decay that was asked for is followed
        return newest, ""
    record = Lineage.read(newest)
    difference = record.schedule.difference(schedule, until=record.step)
    point = newest_agreeing(run, schedule) if difference else None
    if point is None:
        return newest, ""
    return point, (
        f"{newest} was trained on another schedule than the one asked for; {difference} (it | asked). The run goes on "
        f"from the newest checkpoint that agrees, {point}"
    )


def set_former_end_aside(run: Path, schedule: Schedule, *, step: int) -> Path | None:
    """Make a branch of what a run trained past `step` on another schedule: the decay of a model that was finished.

    A run that grows goes back to the fork point before that decay. The finished model and the rows of its history
    would be in the way of what is to come; as a branch they stay what they are. A crash in the middle is mended by
    the next call.

    Args:
        run: the run's folder.
        schedule: on which the run goes on.
        step: updates done.

    Returns:
        The branch's folder, or None where nothing is in the way.

    >>> from tempfile import TemporaryDirectory
    >>> from hf_wsd.builders import wsd
    >>> record = Lineage(step=100, kind="post-decay", schedule=wsd(100), last_step=100)
    >>> with TemporaryDirectory() as folder:
    ...     run = Path(folder)
    ...     (run / "checkpoint-100").mkdir()
    ...     record.write(run / "checkpoint-100")
    ...     branch = set_former_end_aside(run, wsd(200), step=90)
    ...     branch.name, list(saved_checkpoints(run)), list(saved_checkpoints(branch))
    ('90-1-sqrt-10', [], [100])
    """
    aside = [
        (path, record)
        for path, record in _past(run, step)
        if not record.schedule.agrees_with(schedule, until=record.step)
    ]
    if not aside:
        return None
    folder = _branch(run, aside[-1][1], step)
    for path, _ in aside:  # the last one last: it tells a repeated call which branch this is
        target = folder / path.relative_to(run)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
    return folder


def _past(run: Path, step: int) -> Iterator[tuple[Path, Lineage]]:
    """The checkpoints past a step, rising, with their records; of each the kept copy too."""
    found = [path for folder in (run, run / FORK_POINTS) for path in folder.glob("*/") if (path / RECORD).exists()]
    checkpoints = [path for path in found if not path.name.startswith("_")]
    for path in sorted(checkpoints, key=lambda path: (step_in_name(path), path)):
        if step_in_name(path) > step:
            yield path, Lineage.read(path)


def _branch(run: Path, last: Lineage, step: int) -> Path:
    """The folder of the branch that `last` is the end of, its record and history written."""
    number = 1
    while True:
        folder = run / BRANCHES / (_name(last, step) + (f"-{number}" if number > 1 else ""))
        record = _planned(run, folder, last, step)
        if not (folder / RECORD).exists():
            break
        if Lineage.read(folder) == record:
            return folder
        number += 1
    folder.mkdir(parents=True, exist_ok=True)
    rows = (row for row in read_history(run) if row["step"] > step)
    write_atomically(folder / HISTORY, "".join(to_json(row) + "\n" for row in rows))
    record.write(folder)
    return folder


def _name(last: Lineage, step: int) -> str:
    """What `hf-wsd decay` would call the branch."""
    falls = [(begin, s) for begin, _, s in last.schedule.spans() if s.phase is Phase.DECAY and s.shape != "constant"]
    begin, fall = next((fall for fall in reversed(falls) if 0 < fall[0] < last.step), (0, None))
    if fall is None:
        return f"{step}-{last.step}"
    return branch_name(Decay(fork=begin, end=last.last_step or last.step), fall.shape, dict(fall.shape_params))


def _planned(run: Path, folder: Path, last: Lineage, step: int) -> Lineage:
    """The record of that branch."""
    parent = saved_checkpoints(run).get(step)
    tokens = Lineage.read(parent).tokens if parent and (parent / RECORD).exists() else None
    budgets = last.settings.get("budgets", ())
    return replace(
        last,
        step=step,
        kind="planned",
        intent="branch",
        parent=Parent(checkpoint=os.path.relpath(parent, folder) if parent else "unknown", step=step),
        requested=last.requested or (str(budgets[0]) if len(budgets) == 1 else None),
        tokens=tokens,
        losses={},
        saved_at="",
    )
