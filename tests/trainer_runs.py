"""Real runs of the downstream script: in this process through the launcher, or as the processes users start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

import hf_wsd.__main__ as launcher
from hf_wsd.lineage import Command, Lineage

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "downstream" / "train_tiny_lm.py"
FLAGS = (
    *("--lr_scheduler_type", "wsd", "--learning_rate", "1e-2", "--warmup_steps", "5"),
    *(
        "--per_device_train_batch_size",
        "4",
        "--save_strategy",
        "no",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1000",
    ),
    *("--logging_steps", "5", "--report_to", "none", "--use_cpu", "--disable_tqdm", "True"),
)
FAMILY = ("--trunk", "--budgets", "20", "40", "--decay-fraction", "0.25")  # fork points 15 and 30, decays of 5 and 10


@contextmanager
def command_line(*argv: object) -> Iterator[None]:
    """A block that runs as if this process had been started with these arguments; nothing it sets outlives it."""
    before = sys.argv, sys.path[:], dict(os.environ)
    sys.argv = [str(arg) for arg in argv]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before[:2]
        os.environ.clear()
        os.environ.update(before[2])


def train_here(run: Path, *flags: object, launch: tuple[object, ...] = (), script: Path = SCRIPT) -> Path:
    """Run the script through `python -m hf_wsd` in this process; a refusal is a SystemExit with its message."""
    with command_line("hf_wsd", *launch, script, "--output_dir", run, *FLAGS, *flags):
        launcher.main()
    return run


def train(run: Path, *flags: object, launch: tuple[object, ...] = (), script: Path = SCRIPT) -> Path:
    """The same in a process of its own, whose recorded command can be replayed."""
    command(["-m", "hf_wsd", *launch, script, "--output_dir", run, *FLAGS, *flags])
    return run


def command(
    argv: list[object], *, check: bool = True, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run python with these arguments; what it printed is in the error if it fails."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_WSD_")}
    result = subprocess.run(
        [sys.executable, *map(str, argv)],
        env=env | {"HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert not check or result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def record_command(run: Path, command: Command | None) -> None:
    """Have every record of a run say that it was started so; a run in the tests' own process cannot be replayed."""
    for folder in run.glob("**/checkpoint-*"):
        replace(Lineage.read(folder), command=command).write(folder)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def lrs_in_an_optimizer(make_scheduler, *, steps, peak=0.1):
    """The lr with which each update is made."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = make_scheduler(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen
