"""The real runs of `hf-wsd doctor`: one job, trained again and again: repeated, killed, ended, decayed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hf_wsd.checkpoint import newest_whole, step_in_name
from hf_wsd.errors import RunError
from hf_wsd.family import read_run
from hf_wsd.running import read_launcher

STEPS, FORK, WARMUP, SAVES, EVALUATIONS = 20, 14, 4, 8, 5
HALT = 11  # between two saves: what was trained after the first is lost
DECAY = ("--num-decay-steps", str(STEPS - FORK))
TRUNK = ("--trunk", "--budgets", str(STEPS), *DECAY)
_FLAGS = (  # after the script's own: the last one counts
    *("--lr_scheduler_type", "wsd", "--warmup_steps", str(WARMUP), "--logging_steps", "1"),
    *("--save_strategy", "steps", "--save_steps", str(SAVES), "--load_best_model_at_end", "False"),
    *("--report_to", "none", "--push_to_hub", "False", "--disable_tqdm", "True"),
)
_EVALUATE = ("--eval_strategy", "steps", "--eval_steps", str(EVALUATIONS))
_REACHED = 2.0  # seconds within which a signal has reached every process: torchrun hands it on


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training that the doctor starts again and again, with a few flags more.

    Args:
        folder: where all its runs go.
        script: SCRIPT.py, or -m MODULE, with its arguments.
        launcher: what starts the processes, as typed; None is this interpreter.
        evaluates: whether the script has an evaluation set.
        timeout: seconds that one run may take.
    """

    folder: Path
    script: Sequence[str]
    launcher: str | None = None
    evaluates: bool = True
    timeout: float = 900

    def run(self, name: str, *flags: str, schedule: Sequence[str] = DECAY, evaluates: bool | None = None) -> Path:
        """The folder of a run that has been trained to its end.

        Raises:
            RunError: it failed, or took too long.
        """
        run = self.folder / name
        argv = self._argv(run, schedule, self.evaluates if evaluates is None else evaluates)
        with self._started(run, [*argv, *flags]) as process:
            self._wait(run, lambda: process.poll() is not None)
        return _checked(run, process)

    def interrupted(self, name: str, by: signal.Signals) -> Path:
        """The folder of a run whose processes got a signal after step HALT, and which was then resumed to its end.

        Raises:
            RunError: one of the two failed, or SIGTERM did not make it save.
        """
        run = self.folder / name
        halt = Path(f"{run}.halt")
        halt.write_text(str(HALT))
        with self._started(run, self._argv(run, DECAY, self.evaluates)) as process:
            self._wait(run, lambda: has_halted(run) or process.poll() is not None)
            if not has_halted(run):
                _checked(run, process)
                raise RunError(f"the run did not come to step {HALT}; {_end_of_log(run)}")
            processes = _tree(process)
            try:
                self._interrupt(run, process, processes, by)
            finally:
                _kill(processes)
        newest, _ = newest_whole(run)
        step, expected = step_in_name(newest) if newest else 0, HALT if by == signal.SIGTERM else SAVES
        if not expected <= step < STEPS:
            raise RunError(
                f"{by.name} was sent after step {HALT}, and the newest checkpoint is that of step {step}, not one of "
                f"steps {expected} to {STEPS - 1}; {_end_of_log(run)}"
            )
        return self.run(name, "--resume_from_checkpoint", str(newest))

    def _interrupt(
        self, run: Path, process: subprocess.Popen[bytes], processes: list[psutil.Process], by: signal.Signals
    ) -> None:
        if by == signal.SIGKILL:
            _kill(processes)
        else:
            os.killpg(process.pid, by)  # as a terminal or a batch system does; torchrun hands it on to its workers
            time.sleep(_REACHED)
        Path(f"{run}.halt").unlink()
        self._wait(run, lambda: not any(map(_is_alive, processes)))

    def branch(self) -> Path:
        """The folder of a branch that `hf-wsd decay` has trained off a trunk.

        Raises:
            RunError: the trunk or the branch failed.
        """
        trunk = self.run("trunk", "--max_steps", str(FORK), schedule=TRUNK)
        launcher = ["--launcher", self.launcher] if self.launcher is not None else []
        with self._started(trunk, [sys.executable, "-m", "hf_wsd.cli", "decay", str(trunk), *launcher]) as process:
            self._wait(trunk, lambda: process.poll() is not None)
        _checked(trunk, process)
        return read_run(trunk).branches[0].path

    def _argv(self, run: Path, schedule: Sequence[str], evaluates: bool) -> list[str]:
        launcher = read_launcher(self.launcher) if self.launcher is not None else [sys.executable]
        evaluation = _EVALUATE if evaluates else ("--eval_strategy", "no")
        own = ("--output_dir", str(run), "--max_steps", str(STEPS), *_FLAGS, *evaluation)
        return [*launcher, "-m", "hf_wsd.stopwatch", *schedule, *self.script, *own]

    @contextmanager
    def _started(self, run: Path, argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A process, with all that it starts: none of them is left behind."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_WSD_")}
        with Path(f"{run}.times").open("a") as times:
            times.write(json.dumps({"event": "start", "time": time.time()}) + "\n")
        with Path(f"{run}.log").open("ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(argv, env=env, start_new_session=True, **streams)
            try:
                yield process
            finally:
                _kill(_tree(process))
                process.wait()

    def _wait(self, run: Path, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.timeout
        while not done():
            if time.monotonic() > deadline:
                raise RunError(f"the run takes more than {self.timeout:g} s (--timeout); {_end_of_log(run)}")
            time.sleep(0.02)


def read_times(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's stopwatch, and when the doctor started it."""
    return [json.loads(line) for line in Path(f"{run}.times").read_text().splitlines(keepends=True) if line[-1] == "\n"]


def has_halted(run: Path) -> bool:
    """Whether a run stands still."""
    return any(row["event"] == "halt" for row in read_times(run))


def _checked(run: Path, process: subprocess.Popen[bytes]) -> Path:
    if process.returncode:
        raise RunError(f"exit {process.returncode}; {_end_of_log(run)}")
    return run


def _end_of_log(run: Path) -> str:
    lines = Path(f"{run}.log").read_text(errors="replace").splitlines()
    return "\n".join([f"the end of {run.name}.log:", *lines[-15:]])


def _tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and its descendants: torchrun's workers are in sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        return [top, *top.children(recursive=True)]
    return []


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _kill(processes: Sequence[psutil.Process]) -> None:
    """Kill processes and wait until they are dead: ten seconds, for one that hangs in the kernel cannot be helped."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + 10
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
