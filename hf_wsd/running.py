"""A branch's process: the trunk's command with the branch's changes, started, watched, and never started twice."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_wsd.checkpoint import check_checkpoint, saved_checkpoints
from hf_wsd.errors import CheckpointError, RunError
from hf_wsd.forking import Branch, prepare
from hf_wsd.history import write_atomically
from hf_wsd.lineage import Command

LOG = "run.log"
_NOT_INHERITED = ("HF_WSD_", "WANDB_RUN_ID", "WANDB_RESUME")  # a branch is a run of its own


def branch_command(branch: Branch) -> tuple[list[str], dict[str, str]]:
    """The command that runs a branch, and the variables to add to the environment.

    Raises:
        RunError: the record does not say how the trunk was started.
    """
    command = branch.record.command
    if command is None or not command.argv or command.argv[0].startswith("-c"):
        raise RunError(
            f"the record of {branch.checkpoint} does not say how the run was started (a notebook or `python -c`?): "
            f"start the branch yourself, with HF_WSD_BRANCH={branch.folder}, --output_dir {branch.folder}, --max_steps "
            f"{branch.end} and --resume_from_checkpoint {branch.checkpoint}"
        )
    changes = _changes(branch)
    argv, arguments = list(command.argv), _argument_file(command)
    if arguments is None:
        argv += [word for name, value in changes.items() for word in (f"--{name}", value)]
    else:
        argv[-1] = str((branch.folder / f"arguments{Path(arguments).suffix}").resolve())
    launcher = [sys.executable]
    if command.world_size > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(command.world_size)]
    environment = dict(command.environment) | {"HF_WSD_BRANCH": str(branch.folder.resolve())}
    for name in ("tokens_per_step", "calls_per_update"):
        if value := branch.record.settings.get(name):
            environment[f"HF_WSD_{name.upper()}"] = str(value)
    if threads := branch.record.setup.get("threads"):
        environment["OMP_NUM_THREADS"] = str(threads)  # another number of threads adds in another order
    return [*launcher, *argv], environment


def _changes(branch: Branch) -> dict[str, str]:
    """The arguments in which a branch differs from its trunk."""
    length_flag = branch.record.command.length_flag if branch.record.command else "max_steps"
    return {
        "output_dir": str(branch.folder.resolve()),
        length_flag: str(branch.end),
        "resume_from_checkpoint": str(branch.checkpoint.resolve()),
    }


def _argument_file(command: Command) -> str | None:
    """The file that holds all arguments of a script, where it has no other: `script.py arguments.json`."""
    last = command.argv[-1]
    alone = command.argv[-2:-1] and (command.argv[-2].endswith(".py") or command.argv[-3:-2] == ("-m",))
    return last if alone and last in command.files else None


def _write_arguments(branch: Branch, command: Command) -> None:
    """Write the trunk's argument file with the branch's changes into its folder."""
    if (file := _argument_file(command)) is None:
        return
    text, changes = command.files[file], _changes(branch) | {command.length_flag: branch.end}
    if file.endswith(".json"):
        text = json.dumps(json.loads(text) | changes, indent=1)
    else:  # of a YAML key that is there twice, the last counts
        text += "\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in changes.items())
    write_atomically(branch.folder / f"arguments{Path(file).suffix}", text)


def show_command(branch: Branch) -> str:
    """The branch's command for a shell, working directory and variables included."""
    argv, environment = branch_command(branch)
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    cwd = branch.record.command.cwd if branch.record.command else "."
    return f"cd {shlex.quote(cwd)} && {variables} {shlex.join(argv)}"


def start(branch: Branch) -> subprocess.Popen[bytes]:
    """The running process of a branch; what it prints goes to `run.log` in its folder."""
    prepare(branch)
    argv, environment = branch_command(branch)
    command = branch.record.command
    if command is not None:
        _write_arguments(branch, command)
    cwd = Path(command.cwd) if command and Path(command.cwd).is_dir() else None
    env = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)} | environment
    with locked(branch.folder) as lock, (branch.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)
        )


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """A lock on a run's folder, as a file descriptor: hand it to the process that runs there, and it ends with it.

    Raises:
        RunError: a process runs there already, perhaps left over from a command that was killed.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"a process is already training in {folder}: wait for it, or end it") from None
        yield file.fileno()


def run_branches(branches: Iterable[Branch], *, jobs: int = 1) -> Iterable[tuple[Branch, str]]:
    """Run branches, `jobs` at a time; yield (branch, "started" | "finished" | what went wrong) as it happens.

    Leaving early (Ctrl-C) ends the processes that run; the same call again goes on from their newest checkpoints.
    """
    waiting = [branch for branch in branches if not branch.finished]
    running: dict[subprocess.Popen[bytes], Branch] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                branch = waiting.pop(0)
                try:
                    running[start(branch)] = branch
                except RunError as error:
                    yield branch, f"not started: {error}"
                else:
                    yield branch, "started"
            done = next((p for p in running if _exited(p)), None)
            if done is not None:
                yield running[done], _outcome(running.pop(done), done.returncode)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _exited(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return False
    return True


def _outcome(branch: Branch, returncode: int) -> str:
    tail = "\n".join((branch.folder / LOG).read_text(errors="replace").splitlines()[-15:])
    if returncode != 0:
        return f"failed (exit {returncode}); the end of {branch.folder / LOG}:\n{tail}"
    try:
        saved = saved_checkpoints(branch.folder)
        check_checkpoint(saved.get(branch.end, branch.folder / f"checkpoint-{branch.end}"))
    except CheckpointError as error:
        return f"exited without its last checkpoint ({error}); the end of {branch.folder / LOG}:\n{tail}"
    return "finished"
