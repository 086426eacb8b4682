"""Checkpoints whose save may be killed at any moment: what a kill leaves is finished, undone or set aside.

    RUN/_saving/checkpoint-80/wsd.json   the record of a checkpoint that is being saved; gone when all of it is there
    RUN/_replaced-checkpoint-80/         the checkpoint that it replaces: saving writes in place
    RUN/_damaged-checkpoint-80/          one that was cut short, hidden from Trainer, which takes the newest unchecked

Each step is a rename or can be repeated, so that a kill in the middle of mending is mended too.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from hf_wsd.checkpoint import FORK_POINTS, cut_short, newest_whole, step_in_name
from hf_wsd.errors import CheckpointError, RecordError
from hf_wsd.history import HISTORY
from hf_wsd.lineage import RECORD, Lineage

SAVING = "_saving"
REPLACED, DAMAGED = "_replaced-", "_damaged-"
_TORN = "."  # begins the name of a kept copy that is not made yet


def announce(own: Path, record: Lineage) -> None:
    """Write the record of a checkpoint down before the checkpoint is saved.

    Args:
        own: where it will be saved.
        record: what will lie in it.

    >>> from tempfile import TemporaryDirectory
    >>> from hf_wsd.builders import wsd
    >>> with TemporaryDirectory() as run:
    ...     announce(Path(run) / "checkpoint-80", Lineage(step=80, kind="periodic", schedule=wsd(100)))
    ...     Lineage.read(Path(run) / SAVING / "checkpoint-80").step
    80
    """
    announced = own.parent / SAVING / own.name
    announced.mkdir(parents=True, exist_ok=True)
    record.write(announced)


def make_way(own: Path) -> None:
    """Put an older checkpoint of the step that is about to be saved out of the way.

    Saving writes in place: a kill in the middle would leave files of both, each of them whole.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     (Path(run) / "checkpoint-80").mkdir()
    ...     make_way(Path(run) / "checkpoint-80")
    ...     [path.name for path in Path(run).iterdir()]
    ['_replaced-checkpoint-80']
    """
    if own.exists():
        _move(own, own.with_name(REPLACED + own.name))


def begin_anew(folder: Path) -> None:
    """Before a script saves over a checkpoint: take away its record, and files that its kept copy shares.

    Saving writes in place, also through hard links; without the record nobody takes it for whole.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     own, kept = Path(run) / "step_80", Path(run) / FORK_POINTS / "step_80"
    ...     own.mkdir()
    ...     (own / "optimizer.bin").touch()
    ...     link_checkpoint(own, kept)
    ...     begin_anew(own)
    ...     [(own / "optimizer.bin").exists(), (kept / "optimizer.bin").exists()]
    [False, True]
    """
    (folder / RECORD).unlink(missing_ok=True)
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # each process does it before it writes: another one was first
            if file.is_file() and file.stat().st_nlink > 1:
                file.unlink()


def conclude(own: Path) -> None:
    """After a checkpoint was saved, with its record and its kept copy: delete what its save and a kill have left.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     (Path(run) / "_damaged-checkpoint-80").mkdir()
    ...     conclude(Path(run) / "checkpoint-80")
    ...     list(Path(run).iterdir())
    []
    """
    for left in (REPLACED, DAMAGED):
        shutil.rmtree(own.with_name(left + own.name), ignore_errors=True)
    for torn in own.glob(f".{RECORD}.*"):
        torn.unlink(missing_ok=True)
    _forget(own.parent / SAVING / own.name)


def undo(own: Path) -> None:
    """Take back a save that has failed: the checkpoint that it was to replace is there again, if there was one.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     (Path(run) / "checkpoint-80").mkdir()
    ...     undo(Path(run) / "checkpoint-80")
    ...     list(Path(run).iterdir())
    []
    """
    replaced = own.with_name(REPLACED + own.name)
    shutil.rmtree(own, ignore_errors=True)
    if replaced.is_dir():
        replaced.replace(own)
    _forget(own.parent / SAVING / own.name)


def was_cut_short(run: Path) -> bool:
    """Whether a kill has left something of a run to `finish_saves`.

    >>> was_cut_short(Path("nowhere"))
    False
    """
    return (run / SAVING).is_dir() or any(_torn(run))


def _torn(run: Path) -> list[Path]:
    """What was written under a name that was still to be changed: files of the run, copies of checkpoints."""
    names = (f".{HISTORY}.*", f".{RECORD}.*", "._*.json.*", ".room", f"{FORK_POINTS}/{_TORN}*")
    return [torn for name in names for torn in run.glob(name)]


def finish_saves(run: Path) -> None:
    """Finish each save of a run that a kill has cut short where the checkpoint is whole, and undo the others.

    Only where nobody trains in the folder.

    >>> from tempfile import TemporaryDirectory
    >>> from hf_wsd.builders import wsd
    >>> with TemporaryDirectory() as run:
    ...     own = Path(run) / "checkpoint-80"
    ...     announce(own, Lineage(step=80, kind="periodic", schedule=wsd(100)))
    ...     finish_saves(Path(run))  # nothing of it was saved
    ...     list(Path(run).iterdir())
    []
    """
    for torn in _torn(run):
        if torn.is_dir():
            shutil.rmtree(torn)
        else:
            torn.unlink()
    for announced in (run / SAVING).glob("*/"):
        own = run / announced.name
        replaced = own.with_name(REPLACED + own.name)
        if own.is_dir() and not cut_short(own):
            _finish(own, announced)
            conclude(own)
        elif replaced.is_dir():
            undo(own)
        else:  # what there is of it may be set aside
            _forget(announced)
    with suppress(OSError):
        (run / SAVING).rmdir()


def _finish(own: Path, announced: Path) -> None:
    with suppress(RecordError):  # of another version of hf_wsd
        record = Lineage.read(announced)
        if not (own / RECORD).exists():
            record.write(own)
        if record.kind != "periodic":
            link_checkpoint(own, own.parent / FORK_POINTS / own.name)


def newest_cut_short(run: Path) -> dict[Path, list[str]]:
    """The checkpoints of Trainer's in a run's folder that are newer than its newest whole one, and what is wrong.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     (Path(run) / "checkpoint-80").mkdir()
    ...     [path.name for path in newest_cut_short(Path(run))]
    ['checkpoint-80']
    """
    found: dict[Path, list[str]] = {}
    own = [path for path in run.glob("checkpoint-*/") if path.name.removeprefix("checkpoint-").isdecimal()]
    for path in sorted(own, key=step_in_name, reverse=True):
        if not (problems := cut_short(path)):
            break
        found[path] = problems
    return found


def refuse_damage(damage: list[str], on_damage: str | None) -> None:
    """Refuse to go on from an older checkpoint than the newest, where the user has asked for that.

    Args:
        damage: what is wrong with the newer ones.
        on_damage: the user's word: "refuse", else they are passed over.

    Raises:
        CheckpointError: as said.

    >>> refuse_damage(["checkpoint-80 is damaged."], "refuse")
    Traceback (most recent call last):
        ...
    hf_wsd.errors.CheckpointError: checkpoint-80 is damaged.
    This is refused, as asked (--on-damage refuse, HF_WSD_ON_DAMAGE). Say pass-over to go on from an older one
    """
    if damage and on_damage == "refuse":
        raise CheckpointError(
            "\n".join(damage) + "\nThis is refused, as asked (--on-damage refuse, HF_WSD_ON_DAMAGE). Say pass-over to "
            "go on from an older one"
        )


def set_aside(damaged: Path) -> Path:
    """Rename a damaged checkpoint so that nobody resumes from it; returns its new path.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     (Path(run) / "checkpoint-80").mkdir()
    ...     set_aside(Path(run) / "checkpoint-80").name
    '_damaged-checkpoint-80'
    """
    aside = damaged.with_name(DAMAGED + damaged.name)
    _move(damaged, aside)
    return aside


def put_back(run: Path) -> Path | None:
    """Where a run's newest whole checkpoint is a kept copy alone: put it where Trainer looks; returns it then.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     put_back(Path(run)) is None
    True
    """
    newest, _ = newest_whole(run)
    if newest is None or newest.parent.name != FORK_POINTS or (run / newest.name).exists():
        return None
    link_checkpoint(newest, run / newest.name)
    return run / newest.name


def link_checkpoint(source: Path, target: Path) -> None:
    """Make `target` a copy of a checkpoint that costs no space: hard links, or real copies across devices.

    A copy and not a symlink, because Trainer's rotation deletes what a symlink points to. An older copy is replaced:
    torch.save truncates in place, so a checkpoint saved twice writes through its old links.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     checkpoint, kept = Path(run) / "checkpoint-80", Path(run) / FORK_POINTS / "checkpoint-80"
    ...     checkpoint.mkdir()
    ...     (checkpoint / "trainer_state.json").touch()
    ...     link_checkpoint(checkpoint, kept)
    ...     kept.joinpath("trainer_state.json").samefile(checkpoint / "trainer_state.json")
    True
    """
    new, old = target.with_name(f"{_TORN}{target.name}.new"), target.with_name(f"{_TORN}{target.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new, copy_function=_link_or_copy, ignore=shutil.ignore_patterns(f".{RECORD}.*"))
    if target.exists():
        _move(target, old)
    new.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _forget(announced: Path) -> None:
    shutil.rmtree(announced, ignore_errors=True)
    with suppress(OSError):  # others are there
        announced.parent.rmdir()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _move(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    source.replace(target)
