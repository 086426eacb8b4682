"""`wsd.jsonl`: every logged value of a run, a row each; written so that a crash costs one row at most."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HISTORY = "wsd.jsonl"


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON of whatever a script may have logged: a numpy or torch scalar is its number, what else is no JSON its text.

    >>> to_json({"loss": 3.5, "device": Path("cuda"), ("a", "b"): 1})
    '{"loss": 3.5, "device": "cuda"}'
    """

    def plain(value: Any) -> Any:
        with suppress(AttributeError, TypeError, ValueError, RuntimeError):  # torch's and numpy's, of more numbers
            return value.item()
        return str(value)

    return json.dumps(value, default=plain, skipkeys=True, indent=indent)


def write_atomically(file: Path, text: str) -> None:
    """Replace a file by `text` so that a reader, or a crash, never sees half of it.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     write_atomically(Path(run) / "report.md", "new")
    ...     [(file.name, file.read_text()) for file in Path(run).iterdir()]
    [('report.md', 'new')]
    """
    new = file.with_name(f".{file.name}.{os.getpid()}")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)


def read_history(run: Path) -> list[dict[str, Any]]:
    """The rows of `wsd.jsonl`, oldest first; a line torn by a crash, or without a step, is left out.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     append_history(Path(run), {"step": 10, "loss": 3.5})
    ...     read_history(Path(run))
    [{'step': 10, 'loss': 3.5}]
    """
    rows = []
    if (run / HISTORY).exists():
        for line in (run / HISTORY).read_bytes().splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line.decode()))
    return [row for row in rows if isinstance(row, dict) and type(row.get("step")) is int]


def cut_history(run: Path, *, after: int) -> None:
    """Drop the rows past step `after`: a resumed run logs them again.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     for step in (10, 20, 30):
    ...         append_history(Path(run), {"step": step})
    ...     cut_history(Path(run), after=20)
    ...     read_history(Path(run))
    [{'step': 10}, {'step': 20}]
    """
    if (run / HISTORY).exists():
        kept = [row for row in read_history(run) if row["step"] <= after]
        write_atomically(run / HISTORY, "".join(to_json(row) + "\n" for row in kept))


def append_history(run: Path, row: Mapping[str, Any]) -> None:
    """Add one row to `wsd.jsonl`, on a line of its own even where a crash has torn the last one.

    Raises:
        OSError: there is no room for it; nothing of it is written.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     _ = (Path(run) / HISTORY).write_text('{"step": 10, "lo')
    ...     append_history(Path(run), {"step": 10, "loss": 3.5})
    ...     read_history(Path(run))
    [{'step': 10, 'loss': 3.5}]
    """
    text = to_json(row).encode() + b"\n"
    with (run / HISTORY).open("a+b", buffering=0) as stream:
        size = stream.tell()
        stream.seek(max(0, size - 1))
        text = b"\n" * (stream.read(1) not in (b"", b"\n")) + text
        if stream.write(text) != len(text):  # the disk is full
            stream.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / HISTORY))


def losses_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation, without the prefix `eval_` and without timings.

    >>> losses_of({"eval_loss": 3.5, "eval_runtime": 2.0, "epoch": 1.0})
    {'loss': 3.5}
    """
    timings = ("_runtime", "_per_second", "_time")
    return {
        key.removeprefix("eval_"): float(value)
        for key, value in metrics.items()
        if str(key).startswith("eval_") and not key.endswith(timings) and isinstance(value, (int, float))
    }
