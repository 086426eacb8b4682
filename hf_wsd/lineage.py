"""The record beside every checkpoint: what a run is, where it came from, how it was started.

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
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from hf_wsd.casts import show_numbers
from hf_wsd.checks import has_type
from hf_wsd.errors import RecordError, ShapeImportError, WSDError
from hf_wsd.history import to_json, write_atomically
from hf_wsd.schedule import Schedule

SCHEMA = 1
RECORD = "wsd.json"
BRANCHES = "_branches"
_COMMIT = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The checkpoint that a branch left: its path (relative to the branch's folder where it can be) and its step.

    A published one is USER/NAME@COMMIT.

    >>> from os.path import normpath
    >>> parent = Parent(checkpoint="../../_fork-points/checkpoint-640", step=640)
    >>> normpath(Path("RUN/_branches/640-1-sqrt-160") / parent.checkpoint)
    'RUN/_fork-points/checkpoint-640'
    """

    checkpoint: str
    step: int

    def __post_init__(self) -> None:
        _check_types(self, "parent.")


@dataclass(frozen=True, kw_only=True)
class Command:
    """How a run was started, so that a branch can be started the same way.

    Args:
        argv: what followed the interpreter in each worker: ("-m", "hf_wsd", ..., "script.py", ...).
        cwd: working directory.
        world_size: number of processes.
        nodes: number of machines that they ran on.
        environment: the launcher's variables (ACCELERATE_* and friends).
        files: texts of the JSON and YAML argument files named in argv, by path as written there.
        length_flag: what the script calls the number of its updates.

    >>> command = Command(argv=("-m", "hf_wsd", "--trunk", "run_clm.py"), cwd="/work")
    >>> " ".join(["python", *command.argv])
    'python -m hf_wsd --trunk run_clm.py'
    """

    argv: tuple[str, ...]
    cwd: str
    world_size: int = 1
    nodes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    length_flag: str = "max_steps"

    def __post_init__(self) -> None:
        _check_types(self, "command.")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """One record: a checkpoint's identity.

    Args:
        step: updates done.
        kind: "pre-decay", "post-decay", "fork" (named in advance by a budget), "kept" (by keep_every), "end",
            "periodic", or "planned" (the record in the root of a branch, written before the branch runs).
        schedule: the schedule of the run.
        last_step: where the run stops.
        intent: how the run began: "start", "continue", "branch", "extend", "rewind" (past batches that were skipped) or
            "adopt" (from a checkpoint of another scheduler).
        parent: the checkpoint that a branch, or a run that goes on elsewhere, left; None on a trunk.
        group: what trackers call the family: the trunk's run name, or the name of its folder.
        requested: the budget asked for, as the user wrote it.
        tokens_per_step: tokens of one update over all processes; None where samples differ in length.
        tokens: tokens seen; None where nobody counted.
        parameters: trainable parameters, shared ones counted once.
        parameters_without_embeddings: of them, those that `hf_wsd.model_size` calls no embeddings.
        peak_lrs: base lr of each parameter group.
        losses: what the evaluation at this step gave; empty where there was none.
        evaluation: fingerprint of the set that the run is evaluated on, or "unknown".
        probe: loss on a fixed sequence, by which a copy of the model is known; see `hf_wsd.probe`.
        setup: batch, accumulation, processes, seed, precision, device, ...: what must match for equal bits.
        settings: what the launcher or the recipe was asked for (trunk, budgets, decay_fraction, ...).
        data: fingerprint of the training data, or "unknown".
        sameness: how much of the checkpoint's run is the same: `level`, `changes` by name, `allowed`.
        decay_data: what the decay reads instead of the trunk's data: part and fingerprint by source.
        arguments: further arguments of a branch's script, such as its own data.
        optimizer: settings of the optimizer from the decay's first step on.
        moved_data: spans of updates whose samples were moved to the end of their epoch.
        decided: who asked a running job for its decay, and when.
        skipped_updates: fp16 updates that were skipped for an overflow.
        calls_per_update: calls of the scheduler's `step()` in an update; steps are updates all the same.
        command: how the run was started.
        versions: of the packages that matter.
        saved_at: time, ISO 8601, UTC.

    >>> from tempfile import TemporaryDirectory
    >>> from hf_wsd.builders import wsd
    >>> record = Lineage(step=80, kind="pre-decay", schedule=wsd(100, num_decay_steps=20), losses={"loss": 3.5})
    >>> with TemporaryDirectory() as checkpoint:
    ...     record.write(Path(checkpoint))
    ...     Lineage.read(Path(checkpoint)) == record
    True
    """

    step: int
    kind: str
    schedule: Schedule
    last_step: int | None = None
    intent: str = "start"
    parent: Parent | None = None
    group: str = ""
    requested: str | None = None
    tokens_per_step: int | None = None
    tokens: int | None = None
    parameters: int | None = None
    parameters_without_embeddings: int | None = None
    peak_lrs: tuple[float, ...] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    evaluation: str = "unknown"
    probe: float | None = None
    setup: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str = "unknown"
    sameness: Mapping[str, Any] = field(default_factory=dict)
    decay_data: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    optimizer: Mapping[str, float] = field(default_factory=dict)
    moved_data: tuple[tuple[int, int], ...] = ()
    decided: Mapping[str, Any] | None = None
    skipped_updates: int = 0
    calls_per_update: int = 1
    command: Command | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    saved_at: str = ""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.step < 0:
            raise RecordError(f"damaged record: step cannot be {self.step}")

    def tokens_at(self, step: int) -> int | None:
        """Tokens seen after `step` updates of this run, if each update has as many.

        >>> from hf_wsd.builders import wsd
        >>> record = Lineage(step=80, kind="fork", schedule=wsd(100), tokens_per_step=1000, tokens=79_000)
        >>> record.tokens_at(90)
        89000
        """
        if self.tokens_per_step is None:
            return None
        before = self.step * self.tokens_per_step if self.tokens is None else self.tokens
        return before + (step - self.step) * self.tokens_per_step

    @property
    def peak_lr(self) -> float | None:
        """The peak lr that all parameter groups share; None where they differ.

        >>> from hf_wsd.builders import wsd
        >>> [Lineage(step=8, kind="fork", schedule=wsd(100), peak_lrs=lrs).peak_lr for lrs in ((0.1, 0.1), (0.1, 0.2))]
        [0.1, None]
        """
        return self.peak_lrs[0] if len(set(self.peak_lrs)) == 1 else None

    @property
    def fetched_from(self) -> Parent | None:
        """The commit on a hub (USER/NAME@COMMIT) that this checkpoint is a copy of, if it is one.

        >>> from hf_wsd.builders import wsd
        >>> parent = Parent(checkpoint=f"me/small@{'0' * 40}", step=80)
        >>> records = [Lineage(step=step, kind="fork", schedule=wsd(100), parent=parent) for step in (80, 90)]
        >>> [record.fetched_from == parent for record in records]
        [True, False]
        """
        parent = self.parent
        return parent if parent and parent.step == self.step and _COMMIT.fullmatch(parent.checkpoint) else None

    @property
    def changed(self) -> str:
        """In what this decay differs from one that only lowers the lr, for tables: its data and its optimizer.

        >>> from hf_wsd.builders import wsd
        >>> data = {"code.jsonl": {"part": 0.7, "data": "812-1f"}, "trunk": {"part": 0.3, "data": "99-2e"}}
        >>> Lineage(step=80, kind="fork", schedule=wsd(100), decay_data=data, optimizer={"beta2": 0.99}).changed
        'code.jsonl 70 %, trunk 30 %, beta2=0.99'
        """
        sources = [f"{os.path.basename(name)} {100 * told['part']:g} %" for name, told in self.decay_data.items()]
        words, named = [], False
        for word in self.arguments:
            named = word == "--decay_dataset" if word.startswith("--") else named
            words += [] if named and sources else [os.path.basename(word) if os.path.isabs(word) else word]
        return ", ".join(filter(None, [*sources, " ".join(words), show_numbers(self.optimizer)]))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_dict` gives back an equal record.

        >>> from hf_wsd.builders import wsd
        >>> record = Lineage(step=80, kind="pre-decay", schedule=wsd(100, num_decay_steps=20))
        >>> Lineage.from_dict(record.to_dict()) == record
        True
        """
        return {"schema": SCHEMA} | asdict(self) | {"schedule": self.schedule.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lineage:
        """The record that `to_dict` wrote.

        Raises:
            RecordError: another schema, or fields that are missing, unknown or of the wrong kind.

        >>> Lineage.from_dict({"schema": 2})
        Traceback (most recent call last):
            ...
        hf_wsd.errors.RecordError: record of schema 2: this version of hf_wsd reads 1
        """
        schema = data.get("schema") if isinstance(data, Mapping) else data
        if schema != SCHEMA:
            raise RecordError(f"record of schema {schema!r}: this version of hf_wsd reads {SCHEMA}")
        fields = {key: value for key, value in data.items() if key != "schema"}
        try:
            fields["schedule"] = Schedule.from_dict(fields["schedule"])
            for name in ("peak_lrs", "arguments"):
                fields[name] = _as_tuple(fields.get(name, ()))
            fields["moved_data"] = tuple(map(_as_tuple, fields.get("moved_data", ())))
            if fields.get("parent"):
                fields["parent"] = Parent(**fields["parent"])
            if fields.get("command"):
                fields["command"] = Command(**fields["command"] | {"argv": _as_tuple(fields["command"]["argv"])})
            return cls(**fields)
        except (RecordError, ShapeImportError):
            raise
        except (KeyError, TypeError, WSDError) as error:
            raise RecordError(f"damaged record: {error}") from error

    def write(self, folder: Path) -> None:
        """Write `wsd.json` into a folder, whole or not at all."""
        write_atomically(folder / RECORD, to_json(self.to_dict(), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Lineage:
        """The record in a folder.

        Raises:
            RecordError: there is none, or it is damaged; the message has the path and the repair.
        """
        file = Path(folder) / RECORD
        try:
            return cls.from_dict(json.loads(file.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            raise RecordError(
                f"no record at {file}: was this checkpoint saved with a wsd schedule? If so, resume the run from it "
                "once and the record is written again"
            ) from None
        except ShapeImportError as error:
            raise ShapeImportError(f"{file} names a shape of yours: {error}") from error
        except (ValueError, OSError) as error:
            raise RecordError(
                f"{file} cannot be read ({error}). Delete it and resume the run from this checkpoint once: the record "
                "is written again"
            ) from error


def _check_types(record: Parent | Command | Lineage, prefix: str = "") -> None:
    for name, hint in get_type_hints(type(record)).items():
        if not has_type(getattr(record, name), hint):
            raise RecordError(f"damaged record: {prefix}{name} cannot be {getattr(record, name)!r}")


def _as_tuple(value: Any) -> Any:
    """JSON has lists for tuples; what is neither stays, for the check of types to refuse."""
    return tuple(value) if isinstance(value, list) else value
