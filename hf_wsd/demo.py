"""The main job in small: what `hf-wsd demo` trains before it decays and reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hf_wsd.errors import RecordError, RunError
from hf_wsd.family import read_run
from hf_wsd.lock import locked

BUDGETS = ("0.4M", "0.8M", "1.6M", "3.2M")


def recipes_folder() -> Path:
    """The folder of the recipes: inside an installed package, beside it in a checkout.

    Raises:
        RunError: neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / "pretrain.py").is_file():
            return folder
    raise RunError(f"no recipes in {package} or beside it: reinstall hf-wsd")


def demo_command(run: Path) -> list[str]:
    """The command of the demo's trunk: a GPT-2 of 0.5M parameters on the embedded corpus."""
    return [
        *(sys.executable, str(recipes_folder() / "pretrain.py"), "--output_dir", str(run)),
        *("--preset", "0.5M", "--trunk", "--budgets", *BUDGETS, "--decay_fraction", "0.2"),
        *("--block_size", "128", "--learning_rate", "5e-3", "--warmup_steps", "80"),
        *("--eval_steps", "200", "--save_steps", "200", "--max_eval_blocks", "192"),
    ]


def train_trunk(run: Path) -> None:
    """Train the demo's trunk, or go on with it; nothing is done where it has reached its end.

    Raises:
        RunError: the training failed.
    """
    if _is_finished(run):
        return
    run.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_WSD_")}
    with locked(run) as lock:
        process = subprocess.run(demo_command(run), env=environment, pass_fds=(lock,), check=False)
    if process.returncode != 0:
        raise RunError(f"the demo's trunk failed (exit {process.returncode}); repeat the command to go on with it")


def _is_finished(run: Path) -> bool:
    try:
        return read_run(run).finished
    except RecordError:
        return False
