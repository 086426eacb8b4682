"""What a run has on disk: each checkpoint, why it is kept, what it takes, and the branches that left it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_wsd.checkpoint import FORK_POINTS, weights_alone
from hf_wsd.disk import used_bytes
from hf_wsd.errors import WSDError
from hf_wsd.family import Run
from hf_wsd.forking import plan_decays

_PASSING = ("periodic", "unrecorded", "gone")
_WORDS = {
    "end": "end of the run",
    "fork": "fork point",
    "gone": "checkpoint is gone",
    "unrecorded": "without a record",
}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A step of a run of which a checkpoint is there, or was, for branches have left it.

    Args:
        step: updates done.
        kind: of its record; "unrecorded" without one, "gone" without a checkpoint.
        why: the reason for which it is there, in words.
        folders: its copies: the run's own, and the one that is kept for good.
        branches: those that left it.
    """

    step: int
    kind: str
    why: str
    folders: tuple[Path, ...]
    branches: tuple[Run, ...]

    @cached_property
    def bytes(self) -> int:
        """What it takes on disk; copies that are hard links take nothing."""
        return used_bytes(*self.folders)

    @property
    def for_good(self) -> bool:
        """Whether it is to be kept for good, and not just until newer ones come."""
        return self.kind not in _PASSING

    def to_dict(self, family: Path) -> dict[str, Any]:
        """A JSON-ready dictionary; paths are relative to the folder of the family's trunk."""
        folders = [folder.relative_to(family).as_posix() for folder in self.folders]
        branches = [branch.path.name for branch in self.branches]
        texts = {"step": self.step, "kind": self.kind, "why": self.why}
        return texts | {"bytes": self.bytes, "folders": folders, "branches": branches}


def stored(run: Run) -> Iterator[Stored]:
    """The checkpoints of a run itself, by rising step."""
    children: dict[int, list[Run]] = defaultdict(list)
    for branch in run.branches:
        children[left_at(branch)].append(branch)
    budgets = _budgets_by_fork(run)
    for step in sorted({*run.checkpoints, *children}):
        folders = copies(run, step)
        record = run.records.get(step)
        kind = record.kind if record else "unrecorded" if folders else "gone"
        yield Stored(
            step=step,
            kind=kind,
            why=", ".join(_reasons(run, step, kind, folders, budgets)),
            folders=folders,
            branches=tuple(children[step]),
        )


def left_at(branch: Run) -> int:
    """The step at which a branch left its trunk."""
    parent = branch.identity.parent
    return branch.identity.step if parent is None else parent.step


def copies(run: Run, step: int) -> tuple[Path, ...]:
    """The folders that hold a run's checkpoint of a step: its own, and the copy that is kept for good."""
    if step not in run.checkpoints:
        return ()
    name = run.checkpoints[step].name
    return tuple(folder for folder in (run.path / name, run.path / FORK_POINTS / name) if folder.is_dir())


def _reasons(run: Run, step: int, kind: str, folders: tuple[Path, ...], budgets: dict[int, list[str]]) -> Iterator[str]:
    if kind == "kept":
        yield f"kept every {run.records[step].settings.get('keep_every', '?')}"
    elif kind == "fork" and step in budgets:
        yield f"fork point of budget {' and '.join(budgets[step])}"
    else:
        yield _WORDS.get(kind, kind)
    if kind not in _PASSING and all(folder.parent == run.path for folder in folders):
        yield "no kept copy"
    if any(map(weights_alone, folders)):
        yield "weights alone"


def _budgets_by_fork(run: Run) -> dict[int, list[str]]:
    """The budgets that the run was started with, by their fork points."""
    budgets: dict[int, list[str]] = defaultdict(list)
    with suppress(WSDError):  # it had none, or they no longer fit
        for decay in plan_decays(run).decays:
            budgets[decay.fork].append(str(decay.requested))
    return budgets
