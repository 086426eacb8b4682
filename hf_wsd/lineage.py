"""The record beside every checkpoint, and the tree of a family read back from the records.

A run is a folder:

    RUN/checkpoint-640/            Trainer's own, untouched
    RUN/checkpoint-640/wsd.json    the record: what schedule, from which parent, which losses, started how
    RUN/_fork-points/              hard links to the checkpoints that must outlive `save_total_limit`
    RUN/_branches/640-1-sqrt-160/  a branch: a run of its own, with a record in its root that names its parent
    RUN/wsd.jsonl                  every logged value by step

Tables and pictures are read from these files; nothing is kept twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.errors import RecordError, WSDError
from hf_wsd.schedule import Schedule

SCHEMA = 1
RECORD = "wsd.json"
HISTORY = "wsd.jsonl"
BRANCHES = "_branches"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The checkpoint that a branch left: its path (relative to the branch's folder where it can be) and its step."""

    checkpoint: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Command:
    """How a run was started, so that a branch can be started the same way.

    Args:
        argv: what followed the interpreter in each worker: ("-m", "hf_wsd", ..., "script.py", ...).
        cwd: working directory.
        world_size: number of processes.
        environment: the launcher's variables (ACCELERATE_* and friends).
        files: texts of the JSON and YAML argument files named in argv, by path as written there.
    """

    argv: tuple[str, ...]
    cwd: str
    world_size: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """One record: a checkpoint's identity.

    Args:
        step: updates done.
        kind: "pre-decay", "post-decay", "fork" (named in advance by a budget), "end", "periodic", or "planned" (the
            record in the root of a branch, written before the branch runs).
        schedule: the schedule of the run.
        last_step: where the run stops.
        intent: how the run began: "start", "continue", "branch" or "extend".
        parent: the checkpoint that a branch left; None on a trunk.
        requested: the budget asked for, as the user wrote it.
        tokens_per_step: tokens of one update over all processes; None where samples differ in length.
        tokens: tokens seen; None where nobody counted.
        parameters: trainable parameters, shared ones counted once.
        peak_lrs: base lr of each parameter group.
        losses: what the evaluation at this step gave; empty where there was none.
        setup: batch, accumulation, processes, seed, precision and threads: what must match for equal bits.
        settings: what the launcher or the recipe was asked for (trunk, budgets, decay_fraction, ...).
        data: fingerprint of the training data, or "unknown".
        skipped_updates: fp16 updates that were skipped for an overflow.
        command: how the run was started.
        versions: of the packages that matter.
        saved_at: time, ISO 8601, UTC.
    """

    step: int
    kind: str
    schedule: Schedule
    last_step: int | None = None
    intent: str = "start"
    parent: Parent | None = None
    requested: str | None = None
    tokens_per_step: int | None = None
    tokens: int | None = None
    parameters: int | None = None
    peak_lrs: tuple[float, ...] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    setup: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str = "unknown"
    skipped_updates: int = 0
    command: Command | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    saved_at: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` gives back an equal record."""
        return {"schema": SCHEMA} | asdict(self) | {"schedule": self.schedule.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lineage:
        """The record that `to_dict` wrote.

        Raises:
            RecordError: another schema, or fields that are missing, unknown or of the wrong kind.
        """
        if data.get("schema") != SCHEMA:
            raise RecordError(f"record of schema {data.get('schema')!r}: this version of hf_wsd reads {SCHEMA}")
        fields = {key: value for key, value in data.items() if key != "schema"}
        try:
            fields["schedule"] = Schedule.from_dict(fields["schedule"])
            fields["peak_lrs"] = tuple(fields.get("peak_lrs", ()))
            if fields.get("parent"):
                fields["parent"] = Parent(**fields["parent"])
            if fields.get("command"):
                fields["command"] = Command(**fields["command"] | {"argv": tuple(fields["command"]["argv"])})
            return cls(**fields)
        except (KeyError, TypeError, AttributeError, WSDError) as error:
            raise RecordError(f"damaged record: {error}") from error

    def write(self, folder: Path) -> None:
        """Write `wsd.json` into a folder, whole or not at all."""
        write_atomically(folder / RECORD, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Lineage:
        """The record in a folder.

        Raises:
            RecordError: there is none, or it is damaged; the message has the path and the repair.
        """
        file = Path(folder) / RECORD
        try:
            return cls.from_dict(json.loads(file.read_text()))
        except FileNotFoundError:
            raise RecordError(
                f"no record at {file}: was this checkpoint saved with a wsd schedule? If so, resume the run from it "
                "once and the record is written again"
            ) from None
        except (ValueError, AttributeError) as error:
            raise RecordError(
                f"{file} cannot be read ({error}). Delete it and resume the run from this checkpoint once: the record "
                "is written again"
            ) from error


def write_atomically(file: Path, text: str) -> None:
    """Replace a file by `text` so that a reader, or a crash, never sees half of it."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


def read_history(run: Path) -> list[dict[str, Any]]:
    """The rows of `wsd.jsonl`, oldest first; a last line torn by a crash is left out."""
    rows = []
    if (run / HISTORY).exists():
        for line in (run / HISTORY).read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def cut_history(run: Path, *, after: int) -> None:
    """Drop the rows past step `after`: a resumed run logs them again."""
    if (run / HISTORY).exists():
        kept = [row for row in read_history(run) if row["step"] <= after]
        write_atomically(run / HISTORY, "".join(json.dumps(row) + "\n" for row in kept))


def append_history(run: Path, row: Mapping[str, Any]) -> None:
    """Add one row to `wsd.jsonl`."""
    with (run / HISTORY).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its files tell it: records by step, logged rows, branches."""

    path: Path
    checkpoints: Mapping[int, Path]
    records: Mapping[int, Lineage]
    history: tuple[Mapping[str, Any], ...]
    planned: Lineage | None
    branches: tuple[Run, ...]

    @property
    def latest(self) -> Lineage:
        """The newest record of a checkpoint.

        Raises:
            RecordError: the run has none.
        """
        if not self.records:
            raise RecordError(f"{self.path} has no checkpoint with a record ({RECORD}): has the run saved one yet?")
        return self.records[max(self.records)]

    @property
    def identity(self) -> Lineage:
        """The record that says what the run is, also of a branch that has saved nothing yet."""
        return self.planned or self.latest

    @property
    def steps_done(self) -> int:
        """Updates done, as far as records and history tell; a branch that has not begun is at its fork point."""
        begin = self.planned.step if self.planned else 0
        return max([begin, *self.records, *(int(row["step"]) for row in self.history)])

    @property
    def finished(self) -> bool:
        """Whether the run's last step has been saved."""
        return self.identity.last_step is not None and self.has_saved(self.identity.last_step)

    def has_saved(self, step: int) -> bool:
        """Whether a checkpoint at `step`, or a later one, has been saved."""
        return max(self.records, default=0) >= step

    def decays(self) -> Iterator[tuple[int, int]]:
        """Fork point and end of each decay that the run itself makes: one of a branch, one a cycle of a WSD-S line."""
        fork, begin = 0, self.planned.step if self.planned else 0
        for step, kind in self.identity.schedule.checkpoint_steps().items():
            if kind == "pre-decay":
                fork = step
            elif step > begin:
                yield fork, step

    def tokens_at(self, step: int) -> int | None:
        """Tokens seen after that many updates: as counted by the run, else by the tokens of a step."""
        if step in self.records and self.records[step].tokens is not None:
            return self.records[step].tokens
        per_step = self.identity.tokens_per_step
        return None if per_step is None else step * per_step

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens of one update where they are known and the same in the whole family, else None."""
        known = {member.identity.tokens_per_step for member in self.walk()}
        return known.pop() if len(known) == 1 else None

    def losses_at(self, step: int) -> Mapping[str, float]:
        """What an evaluation after `step` updates gave, without the prefix `eval_`; empty where there was none."""
        rows = [row for row in self.history if row["step"] == step and "eval_loss" in row]
        if rows:
            return losses_of(rows[-1])
        return self.records[step].losses if step in self.records else {}

    def walk(self) -> Iterator[Run]:
        """This run, then its branches and theirs."""
        yield self
        for branch in self.branches:
            yield from branch.walk()


def losses_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation, without the prefix `eval_` and without timings.

    >>> losses_of({"eval_loss": 3.5, "eval_runtime": 2.0, "epoch": 1.0})
    {'loss': 3.5}
    """
    timings = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return {
        key.removeprefix("eval_"): float(value)
        for key, value in metrics.items()
        if key.startswith("eval_") and key not in timings and isinstance(value, (int, float))
    }


def read_run(path: Path | str) -> Run:
    """The run in a folder, with all its branches.

    Raises:
        RecordError: the folder has no record at all, or one that is damaged.
    """
    path = Path(path)
    checkpoints = saved_checkpoints(path)
    records = {step: Lineage.read(folder) for step, folder in checkpoints.items() if (folder / RECORD).exists()}
    planned = Lineage.read(path) if (path / RECORD).exists() else None
    if not records and planned is None:
        raise RecordError(
            f"{path} is no run of hf_wsd: it has no checkpoint with a {RECORD}. Give the --output_dir of a run that "
            "was trained with --lr_scheduler_type wsd or wsd_s"
        )
    branches = (read_run(folder) for folder in (path / BRANCHES).glob("*") if (folder / RECORD).exists())
    return Run(
        path=path,
        checkpoints=checkpoints,
        records=records,
        history=tuple(read_history(path)),
        planned=planned,
        branches=tuple(sorted(branches, key=lambda branch: branch.identity.schedule.total_steps or 0)),
    )
