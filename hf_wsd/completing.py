"""What is left to do when a run was killed after its last checkpoint: its model's own files, and the last record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hf_wsd.lineage import RECORD
from hf_wsd.mending import finish_saves

_MODEL = (".safetensors", ".json", ".jinja", ".txt", ".model")  # of the files that `save_model` and a checkpoint share
_NOT_MODEL = ("trainer_state.json", RECORD)


def complete(run: Path, checkpoint: Path, *, like: Path | None = None) -> None:
    """Do what was left to do when a run was killed after it had saved its last checkpoint; see `missing_model`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     checkpoint = Path(run) / "checkpoint-80"
    ...     checkpoint.mkdir()
    ...     _ = (checkpoint / "config.json").write_text("{}")
    ...     complete(Path(run), checkpoint)
    ...     (Path(run) / "config.json").read_text()
    '{}'
    """
    finish_saves(run)
    for file in missing_model(run, checkpoint, like=like):
        shutil.copy2(file, run / file.name)


def missing_model(run: Path, checkpoint: Path, *, like: Path | None = None) -> list[Path]:
    """The files of a finished run's model that its own last save has not written, or not to their end.

    Args:
        run: the run's folder.
        checkpoint: the last of the run.
        like: a finished run of the same script: only files that it has are wanted.

    Returns:
        Files of the checkpoint; none where the run's best model may be another than its last.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     checkpoint = Path(run) / "checkpoint-80"
    ...     checkpoint.mkdir()
    ...     _ = (checkpoint / "config.json").write_text("{}"), (checkpoint / "trainer_state.json").write_text("{}")
    ...     [file.name for file in missing_model(Path(run), checkpoint)]
    ['config.json']
    """
    state = checkpoint / "trainer_state.json"
    if state.exists() and json.loads(state.read_text()).get("best_model_checkpoint"):
        return []
    files = (file for file in checkpoint.iterdir() if file.suffix in _MODEL and file.name not in _NOT_MODEL)
    wanted = (file for file in files if like is None or (like / file.name).exists())
    return sorted(file for file in wanted if not _as_long(file, run / file.name))


def _as_long(a: Path, b: Path) -> bool:
    return b.exists() and a.stat().st_size == b.stat().st_size
