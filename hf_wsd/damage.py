"""Before a run is resumed: saves that were cut short are finished, and damaged checkpoints kept from being picked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from transformers.utils import logging

from hf_wsd.anew import check_named
from hf_wsd.errors import CheckpointError
from hf_wsd.lock import ORPHANS, has_lock, release, take_lock
from hf_wsd.mending import finish_saves, newest_cut_short, put_back, refuse_damage, set_aside, was_cut_short
from hf_wsd.ranks import from_main
from hf_wsd.settings import Settings

logger = logging.get_logger(__name__)


def mend(run: Path, settings: Settings, *, named: object = None) -> None:
    """Have a run's folder hold whole checkpoints before one is looked for; all processes of a job have to ask.

    Args:
        run: the run's folder.
        settings: what is to be done about damage.
        named: what the user asked to resume from; where that is a checkpoint, newer ones may be damaged.

    Raises:
        CheckpointError: the named checkpoint, or the newest where damage is to be refused, is not whole.
    """
    path = Path(named) if isinstance(named, str) and Path(named).is_dir() else None
    refused = from_main(_mend(run, settings, path) if PartialState().is_main_process else None)
    if refused is not None:
        raise CheckpointError(refused)


def _mend(run: Path, settings: Settings, named: Path | None) -> str | None:
    """Mend, on the main process; returns why the run is refused."""
    try:
        if newest_cut_short(run) or was_cut_short(run):
            with _alone(run, in_branch=settings.branch is not None) as alone:
                if alone:
                    _settle(run, settings, named)
        if named is not None:
            check_named(named, settings)
    except CheckpointError as error:
        return str(error)
    except OSError as error:  # nothing can be written there: whoever trains will be told
        logger.error(f"hf_wsd: what a crash has left in {run} cannot be mended ({error})")
    return None


def _settle(run: Path, settings: Settings, named: Path | None) -> None:
    finish_saves(run)
    damaged = newest_cut_short(run)
    told = [f"{path} is damaged: {'; '.join(problems)}." for path, problems in damaged.items()]
    refuse_damage(told, settings.on_damage if named is None else None)
    for path, text in zip(damaged, told, strict=True):
        if named is None or not path.samefile(named):
            logger.warning(f"hf_wsd: passed over: {text} It is {set_aside(path)} now")
    if damaged and (newest := put_back(run)) is not None:
        logger.warning(f"hf_wsd: {newest} was put back from its kept copy")


@contextmanager
def _alone(run: Path, *, in_branch: bool) -> Iterator[bool]:
    """Whether nobody else trains in the folder, and a block in which nobody begins to."""
    lock = None
    try:
        if not (in_branch or has_lock(run)):  # `hf-wsd decay` has the lock for the process that it starts
            lock = take_lock(run, patience=ORPHANS)
    except BlockingIOError:
        logger.warning(f"hf_wsd: another process trains in {run}: what looks damaged there is left alone")
        yield False
        return
    except (ImportError, OSError):  # no locks here
        pass
    try:
        yield True
    finally:
        if lock is not None:
            release(lock)
