"""A branch's process: the trunk's command with the branch's changes, started, watched, and never started twice."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

from hf_wsd.checkpoint import check_checkpoint, saved_checkpoints
from hf_wsd.command import LAUNCHER_VARIABLES
from hf_wsd.completing import complete
from hf_wsd.errors import CheckpointError, RunError
from hf_wsd.forking import Branch, prepare
from hf_wsd.history import write_atomically
from hf_wsd.lineage import Command
from hf_wsd.lock import locked

LOG = "run.log"
ENDED = 75  # the status of `hf_wsd.live.JobEnd`
_NOT_INHERITED = (  # a branch is a run of its own, also for trackers
    *("HF_WSD_", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_FORK_FROM", "WANDB_NAME", "MLFLOW_RUN_ID"),
    *("COMET_EXPERIMENT_KEY", "NEPTUNE_CUSTOM_RUN_ID", "SWANLAB_RUN_ID", "SWANLAB_RESUME"),
)


def read_launcher(text: str) -> list[str]:
    """The words of a launcher's command line, its program and files by their full paths: a branch runs elsewhere.

    A program is looked for beside this interpreter first: `accelerate` is the one of the environment that runs us.

    Raises:
        RunError: the text is no command line, or its program is not there.

    >>> read_launcher("no-such-launcher --nodes 2")
    Traceback (most recent call last):
        ...
    hf_wsd.errors.RunError: --launcher 'no-such-launcher --nodes 2': there is no program no-such-launcher
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RunError(f"--launcher {text!r} is no command line: {error}") from None
    if not words:
        raise RunError(
            "--launcher is empty: say what starts the processes, as in 'accelerate launch --num_processes 8'"
        )
    program = shutil.which(words[0], path=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))
    if program is None:
        raise RunError(f"--launcher {text!r}: there is no program {words[0]}")
    return [os.path.abspath(program), *map(_full_path, words[1:])]


def _full_path(word: str) -> str:
    """A word that names a file, alone or as in `--config_file=x.yaml`, with the file's full path."""
    flag, equals, file = word.rpartition("=")
    return flag + equals + os.path.abspath(file) if Path(file).suffix and Path(file).is_file() else word


def branch_command(branch: Branch, launcher: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """The command that runs a branch, and the variables to add to the environment.

    Args:
        branch: the branch.
        launcher: words of what starts the processes, how many is its affair; without any, as many as the trunk's start
            on this machine.

    Raises:
        RunError: the record does not say how the trunk was started, or it ran on several machines.
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
        argv += branch.record.arguments
        argv += [word for name, value in changes.items() for word in (f"--{name}", value)]
    else:
        argv[-1] = str((branch.folder / f"arguments{Path(arguments).suffix}").resolve())
    environment = dict(command.environment)
    if launcher:  # it tells its workers what they must know
        environment = {name: text for name, text in environment.items() if not name.startswith(LAUNCHER_VARIABLES)}
    launcher = launcher or _own_launcher(command)
    environment["HF_WSD_BRANCH"] = str(branch.folder.resolve())
    for name in ("tokens_per_step", "calls_per_update"):
        if value := branch.record.settings.get(name):
            environment[f"HF_WSD_{name.upper()}"] = str(value)
    if threads := branch.record.setup.get("threads"):
        environment["OMP_NUM_THREADS"] = str(threads)  # another number of threads adds in another order
    return [*launcher, *argv], environment


def _own_launcher(command: Command) -> list[str]:
    """What starts as many processes as the trunk had."""
    if command.nodes > 1:
        raise RunError(
            f"the trunk ran on {command.nodes} machines ({command.world_size} processes), and only processes on this "
            "one can be started without being told how: --launcher 'accelerate launch --config_file multi_node.yaml', "
            f"or, where they all fit on this one, --launcher 'torchrun --nproc_per_node {command.world_size}'"
        )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(command.world_size)]
    return [sys.executable, *(torchrun if command.world_size > 1 else [])]


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
    text = command.files[file]
    changes = _as_table(branch.record.arguments) | _changes(branch) | {command.length_flag: branch.end}
    if file.endswith(".json"):
        text = json.dumps(json.loads(text) | changes, indent=1)
    else:  # of a YAML key that is there twice, the last counts
        text += "\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in changes.items())
    write_atomically(branch.folder / f"arguments{Path(file).suffix}", text)


def _as_table(arguments: Sequence[str]) -> dict[str, Any]:
    """Arguments of a command line as an argument file has them: `--a 1 --b x y --c` is 1, a list and true."""
    table: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            table[name] = [value] if equals else []
        else:
            table[name].append(word)
    values = {name: [_json_value(word) for word in words] or [True] for name, words in table.items()}
    return {name: many if len(many) > 1 else many[0] for name, many in values.items()}


def _json_value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def read_arguments(words: Sequence[str]) -> list[str]:
    """What follows `--`, files by their full paths, also in `code.jsonl=0.7` and globs: a branch runs elsewhere.

    >>> read_arguments(["--decay_dataset", "no-such-file.jsonl=0.7", "trunk=0.3"])
    ['--decay_dataset', 'no-such-file.jsonl=0.7', 'trunk=0.3']
    """
    return [_file_with_weight(word) for word in words]


def _file_with_weight(word: str) -> str:
    file, equals, weight = word.rpartition("=")
    if equals and glob(file):
        return os.path.abspath(file) + equals + weight
    return os.path.abspath(word) if Path(word).suffix and glob(word) else _full_path(word)


def show_command(branch: Branch, launcher: Sequence[str] = ()) -> str:
    """The branch's command for a shell, working directory and variables included."""
    argv, environment = branch_command(branch, launcher)
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    cwd = branch.record.command.cwd if branch.record.command else "."
    return f"cd {shlex.quote(cwd)} && {variables} {shlex.join(argv)}"


def start(branch: Branch, launcher: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """The running process of a branch; what it prints goes to `run.log` in its folder."""
    argv, environment = branch_command(branch, launcher)
    prepare(branch)
    command = branch.record.command
    if command is not None:
        _write_arguments(branch, command)
    cwd = Path(command.cwd) if command and Path(command.cwd).is_dir() else None
    env = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)} | environment
    with locked(branch.folder) as lock, (branch.folder / LOG).open("ab") as log:
        return subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)
        )


def run_branches(
    branches: Iterable[Branch], *, jobs: int = 1, launcher: Sequence[str] = ()
) -> Iterable[tuple[Branch, str]]:
    """Run branches, `jobs` at a time; yield (branch, "started" | "finished" | what went wrong) as it happens.

    Leaving early (Ctrl-C) ends the processes that run; the same call again goes on from their newest checkpoints.
    """
    waiting = []
    for branch in branches:
        _complete(branch) if branch.finished else waiting.append(branch)
    running: dict[subprocess.Popen[bytes], Branch] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                branch = waiting.pop(0)
                try:
                    running[start(branch, launcher)] = branch
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


def _complete(branch: Branch) -> None:
    """Do what was left to do when the process of a finished branch was killed after its last checkpoint."""
    with suppress(RunError), locked(branch.folder):  # it runs still
        complete(branch.folder, branch.checkpoint, like=branch.folder.parent.parent)


def _exited(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return False
    return True


def _outcome(branch: Branch, returncode: int) -> str:
    tail = "\n".join((branch.folder / LOG).read_text(errors="replace").splitlines()[-15:])
    if returncode == ENDED:
        return "its job has ended, and it has saved: the command goes on from there"
    if returncode != 0:
        return f"failed (exit {returncode}); the end of {branch.folder / LOG}:\n{tail}"
    try:
        saved = saved_checkpoints(branch.folder)
        check_checkpoint(saved.get(branch.end, branch.folder / f"checkpoint-{branch.end}"))
    except CheckpointError as error:
        return f"exited without its last checkpoint ({error}); the end of {branch.folder / LOG}:\n{tail}"
    return "finished"
