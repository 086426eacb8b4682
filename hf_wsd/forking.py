"""From a trunk's checkpoint to a decay branch: the checks, the branch's record, the command, and running it.

A branch is a run of the trunk's own command with another --output_dir, --max_steps and --resume_from_checkpoint; its
schedule is in the record that waits in its folder, which HF_WSD_BRANCH names. No torch: a login node can prepare it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hf_wsd.checkpoint import check_checkpoint, newest_whole
from hf_wsd.errors import CheckpointError, ForkError, RunError
from hf_wsd.family import Run, read_run
from hf_wsd.history import write_atomically
from hf_wsd.lineage import BRANCHES, RECORD, Command, Lineage, Parent
from hf_wsd.plan import Decay, Plan, show_tokens
from hf_wsd.schedule import Phase

LOG = "run.log"


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch that is ready to run: its folder, and the record that is (or will be) in it.

    Args:
        folder: where it runs.
        record: schedule, parent, requested budget; `step` is the fork point.
        checkpoint: what it resumes from: the fork point, or its own newest checkpoint.
        finished: whether it has reached its end.
        damage: what is wrong with newer checkpoints that had to be passed over.
    """

    folder: Path
    record: Lineage
    checkpoint: Path
    finished: bool = False
    damage: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """The step at which the model ends."""
        return self.record.last_step or 0

    def __str__(self) -> str:
        per_step = self.record.tokens_per_step
        fork, end = (
            (step, show_tokens(step * per_step if per_step else None)) for step in (self.record.step, self.end)
        )
        return (
            f"{self.folder.name}: decay from step {fork[0]} ({fork[1]} tokens), the model ends at step {end[0]} "
            f"({end[1]} tokens)"
        )


def fork(
    run: Run | Path | str, decay: Decay, *, decay_type: str = "1-sqrt", final: float = 0.0, name: str | None = None
) -> Branch:
    """The branch of a run for one decay; nothing is written.

    Args:
        run: the trunk (or its folder).
        decay: fork point and end, in steps; see `Plan`.
        decay_type: a key of `SHAPES`.
        final: multiplier at the end of the decay, in [0, 1].
        name: the branch's folder name; "<fork>-<shape>-<decay steps>" if None.

    Raises:
        ForkError: the fork point is in the warm-up or a decay, past the end, or has no checkpoint.
        CheckpointError: its checkpoint lacks something that an exact branch needs.
        RunError: another branch has that name already.
    """
    run = run if isinstance(run, Run) else read_run(run)
    latest = run.latest
    schedule = latest.schedule.fork(decay.fork, decay_steps=decay.steps, shape=decay_type, final=final)
    if decay.fork not in run.checkpoints:
        raise ForkError(_no_checkpoint(run, decay))
    parent = run.checkpoints[decay.fork]
    check_checkpoint(parent)
    record = run.records.get(decay.fork) or Lineage.read(parent)  # refuses a checkpoint without a record
    folder = run.path / BRANCHES / (name or f"{decay.fork}-{decay_type}-{decay.steps}")
    planned = replace(
        record,
        kind="planned",
        schedule=schedule,
        last_step=decay.end,
        intent="branch",
        parent=Parent(checkpoint=os.path.relpath(parent, folder), step=decay.fork),
        requested=str(decay.requested) if decay.requested else None,
        losses={},
    )
    return _continue(Branch(folder=folder, record=planned, checkpoint=parent))


def _continue(branch: Branch) -> Branch:
    """The branch where its folder has left it: new, begun or finished."""
    if not (branch.folder / RECORD).exists():
        return branch
    begun = Lineage.read(branch.folder)
    if begun.schedule != branch.record.schedule:
        raise RunError(
            f"{branch.folder} is another branch already ({begun.schedule}; asked: {branch.record.schedule}): give this "
            "one a --name of its own"
        )
    newest, damage = newest_whole(branch.folder)
    finished = newest is not None and newest.name == f"checkpoint-{branch.end}"
    checkpoint = newest or branch.checkpoint
    return replace(branch, record=begun, checkpoint=checkpoint, finished=finished, damage=tuple(damage))


def _no_checkpoint(run: Run, decay: Decay) -> str:
    stable = [s for s in run.checkpoints if run.latest.schedule.phase(s - 1) is not Phase.DECAY]
    asked = f"budget {decay.requested} ({decay.end} steps) needs" if decay.requested else "the fork needs"
    if not stable:
        return f"{asked} the checkpoint at step {decay.fork}, but {run.path} has no checkpoint to fork from"
    nearest = min(stable, key=lambda s: abs(s - decay.fork))
    return (
        f"{asked} the checkpoint at step {decay.fork}, which was not saved. Saved: {', '.join(map(str, stable))}. "
        f"Nearest: --at {nearest}. (A trunk started with --budgets saves them by itself.)"
    )


def prepare(branch: Branch) -> None:
    """Write the branch's record into its folder: from now on it can be started, and started again."""
    branch.folder.mkdir(parents=True, exist_ok=True)
    if not (branch.folder / RECORD).exists():
        branch.record.write(branch.folder)


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
    changes = {
        "output_dir": str(branch.folder.resolve()),
        "max_steps": str(branch.end),
        "resume_from_checkpoint": str(branch.checkpoint.resolve()),
    }
    launcher = [sys.executable]
    if command.world_size > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(command.world_size)]
    environment = dict(command.environment) | {"HF_WSD_BRANCH": str(branch.folder.resolve())}
    if tokens_per_step := branch.record.settings.get("tokens_per_step"):
        environment["HF_WSD_TOKENS_PER_STEP"] = str(tokens_per_step)
    if threads := branch.record.setup.get("threads"):
        environment["OMP_NUM_THREADS"] = str(threads)  # another number of threads adds in another order
    return [*launcher, *_replace_arguments(command, changes, branch.folder)], environment


def _replace_arguments(command: Command, changes: Mapping[str, str], folder: Path) -> list[str]:
    """The trunk's arguments with the changes: in a copy of its JSON file if that is all it has, else appended."""
    argv = list(command.argv)
    if argv[-1] in command.files and argv[-1].endswith(".json"):
        content = json.loads(command.files[argv[-1]]) | changes | {"max_steps": int(changes["max_steps"])}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "arguments.json", json.dumps(content, indent=1))
        return [*argv[:-1], str((folder / "arguments.json").resolve())]
    return argv + [word for name, value in changes.items() for word in (f"--{name}", value)]


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
    cwd = Path(command.cwd) if command and Path(command.cwd).is_dir() else None
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_WSD_")} | environment
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
    """Run branches, `jobs` at a time, and yield (branch, "started" | "finished" | what went wrong) as it happens.

    Leaving early (Ctrl-C) ends the processes that run; the same call again goes on from their newest checkpoints.
    """
    waiting = [branch for branch in branches if not branch.finished]
    running: dict[subprocess.Popen[bytes], Branch] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                branch = waiting.pop(0)
                running[start(branch)] = branch
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
        check_checkpoint(branch.folder / f"checkpoint-{branch.end}")
    except CheckpointError as error:
        return f"exited without its last checkpoint ({error}); the end of {branch.folder / LOG}:\n{tail}"
    return "finished"


def plan_decays(
    run: Run,
    *,
    budgets: Iterable[str] = (),
    at: Iterable[int] = (),
    num_decay_steps: int | None = None,
    decay_fraction: float | None = None,
) -> Plan:
    """The decays asked for; where nothing is said, the budgets and decay length that the trunk was started with.

    Raises:
        ForkError: neither budgets nor fork points are known. ScheduleError: lengths that do not fit.
    """
    latest = run.latest
    if num_decay_steps is None and decay_fraction is None:
        num_decay_steps = latest.settings.get("num_decay_steps")
        decay_fraction = latest.settings.get("decay_fraction")
    budgets, at = list(budgets), list(at)
    if not budgets and not at:
        budgets = list(latest.settings.get("budgets", ()))
    if not budgets and not at:
        raise ForkError(
            "say which decayed models you want: --budgets 1B 2B (tokens or steps of the decayed model), or --at STEP "
            f"(checkpoints: {', '.join(map(str, run.checkpoints))})"
        )
    length = {"tokens_per_step": latest.tokens_per_step, "num_decay_steps": num_decay_steps}
    plan = Plan.of_budgets(budgets, decay_fraction=decay_fraction, **length)
    forks = Plan.of_forks(at, decay_fraction=decay_fraction, **length)
    return replace(plan, decays=plan.decays + forks.decays)
