"""Runs that are killed and repeated: real processes, SIGKILL to all of them, until one ends by itself.

A run is killed after some seconds, or right before its n-th change of the files in its folder: so every moment between
two changes can be met, however short. The processes are forked from one that has torch imported: a start takes a
fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hf_wsd.checkpoint import FORK_POINTS, saved_checkpoints
from hf_wsd.history import read_history
from hf_wsd.lineage import BRANCHES, RECORD, Lineage

ROOT = Path(__file__).parents[1]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "transformers", "datasets", "evaluate", "accelerate", "hf_wsd.registration"])
NOTHING_LEFT = "nothing is left to train"
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")
_LEFT_OVER = ("_saving", "_replaced-*", "_damaged-*", ".*.json*", ".room*", ".checkpoint-*")
_TIMED = ("_runtime", "_per_second", "_time")  # what no two runs have alike


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When a process is killed: after some seconds, these counted from when a file is there, or before a change."""

    after: float | None = None
    when: str | None = None  # a pattern in the run's folder
    before_change: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command of a user's.

    Args:
        argv: what follows `python`: a script, or `-m` and a module, and its arguments.
        run: the folder in which it writes.
        log: where its output goes.
        resumes: adds what the user types to resume.
    """

    argv: Sequence[object]
    run: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    resumes: Callable[[Path], Sequence[object]] = lambda run: ()
    completes: bool = True  # a repeated command saves the model even if only that was left to do

    @property
    def log(self) -> Path:
        return Path(f"{self.run}.log")

    def start(self, before_change: int | None = None) -> BaseProcess:
        argv = [str(word) for word in (*self.argv, *self.resumes(self.run))]
        process = FORKS.Process(target=_run, args=(argv, self.environment, self.run, self.log, before_change))
        process.start()
        return process

    def killed(self, kill: Kill) -> bool:
        """Whether a run of it was killed before it ended by itself."""
        process, before = self.start(kill.before_change), set(self.run.glob(kill.when or "*"))
        while kill.when and process.is_alive() and set(self.run.glob(kill.when)) <= before:
            time.sleep(0.001)
        process.join(kill.after)
        _kill_group(process)
        process.join()
        return process.exitcode == -signal.SIGKILL

    def finished(self) -> Path:
        """The folder after a run of it that nobody has killed."""
        process = self.start()
        process.join(300)
        _kill_group(process)
        said = self.log.read_text()[-3000:]
        assert process.exitcode == 0 or (NOTHING_LEFT in said and not self.completes), said
        return self.run

    def changes(self) -> int:
        """How many changes of files a run of it makes."""
        self.finished()
        return int(Path(f"{self.log}.changes").read_text())


def _kill_group(process: BaseProcess) -> None:
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not made its group yet
            process.kill()


def _run(argv: list[str], environment: Mapping[str, str], run: Path, log: Path, before_change: int | None) -> None:
    os.setsid()
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    for name in [name for name in os.environ if name.startswith("HF_WSD_")]:
        del os.environ[name]
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | dict(environment))
    sys.orig_argv = [sys.executable, *argv]
    changes = Changes(run, before_change)
    sys.addaudithook(changes)
    try:
        if argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = argv
            sys.path.insert(0, str(Path(argv[0]).parent))
            runpy.run_path(argv[0], run_name="__main__")
    finally:
        Path(f"{log}.changes").write_text(str(changes.number))


class Changes:
    """Counts this process's changes of the files in a folder, and kills it and its children right before one."""

    def __init__(self, run: Path, kill_before: int | None) -> None:
        self.run, self.kill_before, self.number = str(run), kill_before, 0

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            changes = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            changes = event in _CHANGES
        if changes and self._is_below(event, args):
            self.number += 1
            if self.number == self.kill_before:
                os.killpg(0, signal.SIGKILL)

    def _is_below(self, event: str, args: tuple[object, ...]) -> bool:
        if event in ("os.remove", "os.rmdir") and args[1] != -1:  # by shutil.rmtree: a name in an open folder
            return True
        return any(str(arg).startswith(self.run) for arg in args if isinstance(arg, (str, os.PathLike)))


def repeat(job: Job, kills: Iterable[Kill]) -> int:
    """Repeat a job, kill it each time, and let it end; returns how often it was killed."""
    killed = 0
    for kill in kills:
        if not job.killed(kill):
            break
        killed += 1
    job.finished()
    return killed


def differences(one: Path, two: Path) -> list[str]:
    """What two runs do not have alike: weights, states, records, history, kept checkpoints, or what a kill has left."""
    found = [f"{path.relative_to(two)} is left over" for name in _LEFT_OVER for path in two.rglob(name)]
    for folder in (one, *(one / BRANCHES).glob("*/")):
        other = two / folder.relative_to(one)
        found += [f"{folder.name}: {text}" for text in _differences(folder, other)]
    return found


def _differences(one: Path, two: Path) -> Iterator[str]:
    if _history(one) != _history(two):
        yield "history"
    kept = [sorted(path.name for path in (run / FORK_POINTS).glob("*")) for run in (one, two)]
    if kept[0] != kept[1]:
        yield f"kept {kept}"
    if (one / "model.safetensors").exists() and not _same_file(one, two, "model.safetensors"):
        yield "model"
    newest = max(saved_checkpoints(one), default=0)
    for path in (*(one / FORK_POINTS).glob("*/"), one / f"checkpoint-{newest}"):
        other = two / path.relative_to(one)
        yield from (f"{path.name}/{file.name}" for file in path.iterdir() if not _same_file(path, other, file.name))
        if (other / RECORD).exists():
            records = [_record(folder) for folder in (path, other)]
            yield from (
                f"{path.name}: {name} {was} -> {records[1][name]}"
                for name, was in records[0].items()
                if was != records[1][name]
            )


def _same_file(one: Path, two: Path, name: str) -> bool:
    if not (two / name).exists():
        return False
    if name == RECORD:
        return True
    if name in ("trainer_state.json", "training_args.bin"):  # times, and the folder's name
        return True
    return (one / name).read_bytes() == (two / name).read_bytes()


def _record(folder: Path) -> dict[str, Any]:
    """A record without what depends on when and where it was written."""
    record = replace(Lineage.read(folder), saved_at="", command=None, group="").to_dict()
    record["settings"].pop("branch", None)
    return record


def _history(run: Path) -> list[dict[str, object]]:
    rows = read_history(run)
    return [{k: v for k, v in row.items() if not k.endswith(_TIMED)} for row in rows if "train_loss" not in row]
