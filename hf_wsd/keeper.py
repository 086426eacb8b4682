"""What a run leaves on disk beside Trainer's own files: records, history rows, kept checkpoints.

Nothing here may stop a training that can go on: a full disk or a lost mount is logged and tried again at the next save.
"""

from __future__ import annotations

import os
import shutil
import time
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

from hf_wsd.checkpoint import FORK_POINTS, cut_short, saved_checkpoints, step_in_name
from hf_wsd.disk import used_bytes
from hf_wsd.errors import RecordError, RunError
from hf_wsd.extending import set_former_end_aside
from hf_wsd.history import append_history, cut_history, losses_of, read_history
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.lock import ORPHANS, has_lock, release, take_lock
from hf_wsd.mending import announce, conclude, finish_saves, link_checkpoint, make_way
from hf_wsd.pushing import Pusher
from hf_wsd.room import why_no_room
from hf_wsd.samples import take_samples

logger = logging.get_logger(__name__)
PATIENCE_KEPT, PATIENCE_LAST = 60.0, 300.0  # seconds that a fork point, and the last checkpoint, wait for room on disk


class Keeper:
    """Writes the files of one run, on the main process alone.

    Args:
        run: the run's folder.
        base: the record that all checkpoints of the run share.
        kinds: the steps whose checkpoints are kept for good, and why.
        prefix: of the checkpoints' names; Trainer's is "checkpoint-".
        pusher: is told of each decayed model.
    """

    def __init__(
        self,
        run: Path,
        base: Lineage,
        kinds: Mapping[int, str],
        *,
        prefix: str = "checkpoint-",
        pusher: Pusher | None = None,
    ) -> None:
        self.run = run
        self.base = base
        self.kinds = kinds
        self._prefix, self._pusher = prefix, pusher
        self._owed: dict[Path, Callable[[], None]] = {}
        self._rows: list[Mapping[str, Any]] = []  # that could not be written yet
        self._evaluated: Any = None  # the evaluation set, once its fingerprint is taken
        self._size = 0  # bytes of the newest checkpoint
        self._unlock: finalize[[int], Keeper] | None = None

    def follow(self, base: Lineage, kinds: Mapping[int, str]) -> None:
        """From now on the run is another one: it was asked for its decay."""
        self.base, self.kinds = replace(base, evaluation=self.base.evaluation), kinds

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.run / f"{self._prefix}{step}"

    def begin(self, step: int, *, tokens: int | None) -> None:
        """Make the folder, cut what a resumed run logs again, and mend a checkpoint whose save was cut short.

        Raises:
            RunError: another process trains in the folder.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        with suppress(OSError):
            finish_saves(self.run)
        if aside := set_former_end_aside(self.run, self.base.schedule, step=step):
            logger.warning(f"hf_wsd: what was trained past step {step} on another schedule is a branch now: {aside}")
        cut_history(self.run, after=step)
        told = [row["evaluation"] for row in read_history(self.run) if isinstance(row.get("evaluation"), str)]
        self.base = replace(self.base, evaluation=[self.base.evaluation, *told][-1])
        checkpoint, kept = self.checkpoint(step), self.run / FORK_POINTS / self.checkpoint(step).name
        is_kept = step not in self.kinds or (kept.is_dir() and not cut_short(kept))
        if checkpoint.is_dir() and not ((checkpoint / RECORD).exists() and is_kept):
            known_by = None
            with suppress(RecordError):  # it has one, and only its kept copy is missing
                known_by = Lineage.read(checkpoint).probe
            losses = self.base.losses or self._logged_losses(step)
            self.save(step, tokens=tokens, losses=losses, probe=known_by)
        parent = [self.run / self.base.parent.checkpoint] if self.base.parent else []
        self._size = used_bytes(*(list(saved_checkpoints(self.run).values())[-1:] or parent))

    def _take_lock(self) -> None:
        """Keep other processes from training in the folder.

        Raises:
            RunError: one does.
        """
        in_branch = bool(os.environ.get("HF_WSD_BRANCH"))  # `hf-wsd decay` has the lock for the process that it starts
        try:
            if not has_lock(self.run):
                lock = take_lock(self.run, patience=0.0 if in_branch else ORPHANS)
                self._unlock = finalize(self, release, lock)
                self._unlock.atexit = False  # the end of the process is enough, and a forked one must not do it
        except BlockingIOError:
            if not in_branch:
                raise RunError(f"a process is already training in {self.run}: wait for it, or end it") from None
        except (ImportError, OSError):  # no locks here
            pass

    def _logged_losses(self, step: int) -> dict[str, float]:
        rows = [losses_of(row) for row in read_history(self.run) if row["step"] == step]
        return {name: loss for row in rows for name, loss in row.items()}

    def log(self, row: Mapping[str, Any], evaluated: Any = None) -> None:
        """Add a row to the run's history; one that finds no room is written with a later one.

        Args:
            row: what was logged.
            evaluated: the data loader of the latest evaluation; its set is named in the row that has the loss.
        """
        if "eval_loss" in row and (dataset := getattr(evaluated, "dataset", None)) is not None:
            if dataset is not self._evaluated:
                self.base = replace(self.base, evaluation=take_samples(dataset).fingerprint)
                self._evaluated = dataset
            row = {**row, "evaluation": self.base.evaluation}
        self._rows.append(row)
        while self._rows:
            try:
                append_history(self.run, self._rows[0])
            except OSError as error:  # a full disk: training is worth more than a row
                if len(self._rows) == 1:
                    logger.error(
                        f"hf_wsd: a row of the history of {self.run} could not be written ({error}); training goes on, "
                        "and the next row tries again"
                    )
                return
            except Exception as error:  # a value that JSON cannot hold
                logger.error(f"hf_wsd: a row of the history of {self.run} is lost ({error}); training goes on")
            del self._rows[0]

    def make_ready(self, step: int, *, again: bool = False, **changes: Any) -> bool:
        """Whether a step's checkpoint can be saved now; if so its record is announced and its folder free.

        A save that is sure to fail is not tried: Trainer ends the training with its error. A fork point waits for room,
        the last checkpoint longer, and that is tried in any case.

        Args:
            step: updates done.
            again: an earlier save was put off; nothing new needs to be said.
            changes: fields of the record.
        """
        last = step == self.base.last_step
        why = self._wait_for_room(step, PATIENCE_LAST if last else PATIENCE_KEPT if step in self.kinds else 0.0)
        if why is not None and not last:
            lost = ", and no branch can leave the run there" if step in self.kinds else ""
            if lost or not again:
                logger.error(
                    f"hf_wsd: the checkpoint of step {step} cannot be saved: {why}{lost}. Training goes on, and saves "
                    "as soon as it can"
                )
            return False
        self.announce(step, **changes)
        with suppress(OSError):
            make_way(self.checkpoint(step))
        return True

    def announce(self, step: int, **changes: Any) -> None:
        """Write down what is known of a checkpoint that is about to be saved."""
        with suppress(Exception):  # it is written again after the save, where an error is told
            announce(self.checkpoint(step), self._record(step, saved_at=_now(), **changes))

    def _wait_for_room(self, step: int, patience: float) -> str | None:
        """Why the checkpoint of a step cannot be saved, also after waiting so many seconds."""
        end = time.monotonic() + patience
        while (why := why_no_room(self.run, self._size)) is not None and time.monotonic() < end:
            if patience:
                logger.error(f"hf_wsd: step {step} waits up to {patience:.0f} s for room for its checkpoint: {why}")
                patience = 0.0
            time.sleep(1)
        return why

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
            if at is None:
                conclude(own)
                self._size = used_bytes(own)
            if keep and self._pusher and self.kinds.get(step) == "post-decay":
                self._pusher.push()

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


def package_versions() -> dict[str, str]:
    """Versions of the packages on which a run's bits depend."""
    versions = {}
    for name in ("hf-wsd", "torch", "transformers", "accelerate", "datasets"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
