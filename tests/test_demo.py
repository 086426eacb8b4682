"""The main job, and the package that carries it, as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from test_recipe import TINY
from trainer_runs import ROOT, command

from hf_wsd.demo import demo_command
from hf_wsd.family import read_run


def start_demo(run: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "hf_wsd.cli", "demo", "--output-dir", str(run)]
    return subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def interrupt(process: subprocess.Popen[bytes], when: Path, with_signal: signal.Signals) -> None:
    """Send a signal to the demo and all it has started, as a terminal does, as soon as a path exists."""
    while not when.exists():
        assert process.poll() is None, f"the demo ended (exit {process.returncode}) before {when} was there"
        time.sleep(0.05)
    os.killpg(process.pid, with_signal)
    assert process.wait() != 0


@pytest.mark.slow
def test_demo_stopped_with_ctrl_c_and_killed_goes_on_and_every_decay_ends_below_the_trunk(tmp_path):
    run = tmp_path / "demo"
    interrupt(start_demo(run), run / "checkpoint-400", signal.SIGINT)
    interrupt(start_demo(run), run / "_branches" / "1250-1-sqrt-312" / "checkpoint-1400", signal.SIGKILL)
    done = [branch.path.name for branch in read_run(run).branches if branch.finished]
    assert start_demo(run).wait() == 0

    assert done == ["313-1-sqrt-78", "625-1-sqrt-156"]  # the third was under way
    rows = json.loads((run / "report.json").read_text())["rows"]
    assert [row["requested"] for row in rows] == ["0.4M", "0.8M", "1.6M", "3.2M"]
    for row in rows:
        assert row["loss"] < row["trunk_loss_at_fork"] - 0.05
        assert row["trunk_loss_at_end"] is None or row["loss"] < row["trunk_loss_at_end"] - 0.02
    assert all(longer["loss"] < shorter["loss"] - 0.1 for shorter, longer in pairwise(rows))


@pytest.mark.slow
def test_wheel_carries_recipe_corpus_and_tokenizer(tmp_path):
    command(["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT])
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    command(["-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel])

    def installed(*argv: object) -> str:
        return command(list(argv), cwd=tmp_path, PYTHONPATH=str(site)).stdout.strip()

    found = installed("-c", "from hf_wsd.demo import recipes_folder; print(recipes_folder())")
    assert Path(found) == site / "hf_wsd" / "recipes"
    installed(f"{found}/pretrain.py", "--output_dir", "run", *TINY, "--trunk", "--budgets", 20)
    installed("-m", "hf_wsd.cli", "decay", "run")
    assert read_run(tmp_path / "run").branches[0].finished


def test_demo_trains_the_budgets_that_readme_names(tmp_path):
    words = demo_command(tmp_path)
    start = words.index("--budgets") + 1
    assert words[start : start + 4] == ["0.4M", "0.8M", "1.6M", "3.2M"]
    readme = (ROOT / "README.md").read_text()
    assert all(f"\n| {budget} (" in readme for budget in words[start : start + 4])
