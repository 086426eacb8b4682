"""What a run leaves on disk beside Trainer's own files: records, history rows, kept checkpoints.

Nothing here may stop a training that can go on: a full disk or a lost mount is logged and tried again at the next save.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from weakref import finalize

from transformers.utils import logging

from hf_wsd.checkpoint import FORK_POINTS, step_in_name
from hf_wsd.extending import set_former_end_aside
from hf_wsd.history import append_history, cut_history
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.lock import take_lock

logger = logging.get_logger(__name__)


class Keeper:
    """Writes the files of one run, on the main process alone.

    Args:
        run: the run's folder.
        base: the record that all checkpoints of the run share.
        kinds: the steps whose checkpoints are kept for good, and why.
        prefix: of the checkpoints' names; Trainer's is "checkpoint-".
    """

    def __init__(self, run: Path, base: Lineage, kinds: Mapping[int, str], *, prefix: str = "checkpoint-") -> None:
        self.run = run
        self.base = base
        self.kinds = kinds
        self._prefix = prefix
        self._owed: dict[Path, Callable[[], None]] = {}
        self._unlock: Callable[[], object] | None = None
        for torn in (run / FORK_POINTS).glob(f".{prefix}*"):  # copies that a crash has cut short
            shutil.rmtree(torn, ignore_errors=True)

    def follow(self, base: Lineage, kinds: Mapping[int, str]) -> None:
        """From now on the run is another one: it was asked for its decay."""
        self.base, self.kinds = base, kinds

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.run / f"{self._prefix}{step}"

    def begin(self, step: int, *, tokens: int | None) -> None:
        """Make the folder, cut what a resumed run logs again, and mend a checkpoint whose save was cut short."""
        self.run.mkdir(parents=True, exist_ok=True)
        with suppress(ImportError, OSError):  # `hf-wsd decay`, which has started this process, may hold it
            self._unlock = finalize(self, os.close, take_lock(self.run))
        if aside := set_former_end_aside(self.run, self.base.schedule, step=step):
            logger.warning(f"hf_wsd: what was trained past step {step} on another schedule is a branch now: {aside}")
        cut_history(self.run, after=step)
        checkpoint = self.checkpoint(step)
        linked = step not in self.kinds or (self.run / FORK_POINTS / checkpoint.name).is_dir()
        if checkpoint.is_dir() and not ((checkpoint / RECORD).exists() and linked):
            self.save(step, tokens=tokens)

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a row to the run's history."""
        try:
            append_history(self.run, row)
        except Exception as error:  # a full disk, a value that JSON cannot hold: training is worth more than a row
            logger.error(f"hf_wsd: a row of the history of {self.run} is lost ({error}); training goes on")

    def save(self, step: int, *, at: Path | None = None, keep: bool = True, **changes: Any) -> None:
        """Write the record of a step's checkpoint, and link the checkpoint if it is to be kept for good.

        Args:
            step: updates done.
            at: where a script saved the state, if not in the run's own folder of that step.
            keep: link the checkpoint if its step is one of `kinds`.
            changes: fields of the record.
        """
        own = self.checkpoint(step)
        record = partial(self._record, step, saved_at=_now(), **changes)

        def write() -> None:
            record().write(at or own)
            if keep and step in self.kinds:
                link_checkpoint(own, self.run / FORK_POINTS / own.name)

        self._owed[at or own] = write
        for checkpoint in list(self._owed):
            if not checkpoint.is_dir():
                logger.error(f"hf_wsd: {checkpoint.name} was deleted before it could be recorded or kept")
                del self._owed[checkpoint]
                continue
            try:
                self._owed[checkpoint]()
                del self._owed[checkpoint]
            except Exception as error:  # as for a row
                logger.error(
                    f"hf_wsd: the record or the kept copy of {checkpoint.name} could not be written ({error}); "
                    "training goes on and the next save tries again"
                )
        if step == self.base.last_step and self._unlock is not None:
            self._unlock()

    def rotate(self, limit: int) -> None:
        """Delete the run's oldest checkpoints beyond `limit`, but for those whose kept copy is not made yet."""
        own = [path for path in self.run.glob(f"{self._prefix}*") if path.name.removeprefix(self._prefix).isdecimal()]
        own.sort(key=step_in_name)
        for old in own[: max(len(own) - limit, 0)]:
            if old not in self._owed:
                shutil.rmtree(old, ignore_errors=True)

    def _record(self, step: int, **changes: Any) -> Lineage:
        return replace(self.base, step=step, kind=self.kinds.get(step, "periodic"), **changes)


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")


def link_checkpoint(source: Path, target: Path) -> None:
    """Make `target` a copy of a checkpoint that costs no space: hard links, or real copies across devices.

    A copy and not a symlink, because Trainer's rotation deletes what a symlink points to. An older copy is replaced:
    torch.save truncates in place, so a checkpoint saved twice writes through its old links.
    """
    new = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new, copy_function=_link_or_copy)
    if target.exists():
        shutil.rmtree(target)
    new.replace(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def package_versions() -> dict[str, str]:
    """Versions of the packages on which a run's bits depend."""
    versions = {}
    for name in ("hf-wsd", "torch", "transformers", "accelerate", "datasets"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
