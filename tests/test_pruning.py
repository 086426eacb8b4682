"""`hf-wsd prune` on families whose files are small, and of which real hard links are made."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_report import plan_branch, save

from hf_wsd import cli
from hf_wsd.checkpoint import check_checkpoint, newest_whole
from hf_wsd.disk import used_bytes
from hf_wsd.errors import CheckpointError
from hf_wsd.family import read_run
from hf_wsd.forking import fork
from hf_wsd.keeper import Keeper, link_checkpoint
from hf_wsd.lock import locked
from hf_wsd.plan import Decay
from hf_wsd.report import make_report

STATE = 10_000  # bytes of a checkpoint's weights, and half of those of its optimizer state


def save_whole(run: Path, step: int, *, keep: bool = True, **changes: object) -> None:
    """A checkpoint with all files that a resume needs, and its kept copy."""
    save(run, step, **changes)
    folder = run / f"checkpoint-{step}"
    save_file({"weights": torch.zeros(STATE, dtype=torch.uint8)}, folder / "model.safetensors")
    torch.save(torch.zeros(2 * STATE, dtype=torch.uint8), folder / "optimizer.pt")
    for name in ("scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "best_model_checkpoint": None}))
    if keep:
        (run / "_fork-points").mkdir(exist_ok=True)
        link_checkpoint(folder, run / "_fork-points" / folder.name)


@pytest.fixture
def run(tmp_path):
    """A trunk of 80 steps; 20 and 40 are kept by keep_every, branches have left 30 (finished) and 60 (at step 70)."""
    run = tmp_path / "small"
    settings = {"keep_every": 20, "budgets": ["40", "80"], "decay_fraction": 0.25}
    for step, kind in {20: "kept", 30: "fork", 40: "kept", 60: "fork", 80: "end"}.items():
        save_whole(run, step, kind=kind, last_step=80, settings=settings)
    save_whole(run, 70, keep=False, kind="periodic", last_step=80)
    for fork_point, end, done, kind in ((30, 40, 40, "post-decay"), (60, 80, 70, "periodic")):
        folder, record = plan_branch(run, fork_point, end, last_step=end)
        save_whole(folder, done, kind=kind, schedule=record.schedule, last_step=end)
    return run


@pytest.fixture
def prune(monkeypatch, capsys):
    """Run `hf-wsd prune WORDS` in this process: its exit code or message, and what it printed."""

    def call(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["hf-wsd", "prune", *map(str, words)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    return call


def everything_in(run: Path) -> set[Path]:
    return {path for path in run.rglob("*") if path.name != "_lock"}


# --- what goes ---


def test_named_steps_go_with_both_their_copies_and_nothing_else_does(prune, run):
    before = everything_in(run)
    assert prune(run, "--steps", 20, 70)[0] == 0
    gone = {path.parent.relative_to(run).as_posix() for path in before - everything_in(run) if path.suffix}
    assert gone == {"checkpoint-20", "_fork-points/checkpoint-20", "checkpoint-70"}
    assert list(read_run(run).checkpoints) == [30, 40, 60, 80]


def test_what_is_said_to_be_freed_is_what_the_disk_has_more(prune, run):
    before = used_bytes(run)
    freed = json.loads(prune(run, "--kept", "--branch", "30-1-sqrt-10", "--json")[1])["freed_bytes"]
    assert freed == before - used_bytes(run) > 3 * 3 * STATE


def test_dry_run_says_the_same_and_deletes_nothing(prune, run):
    before = everything_in(run)
    _, told, _ = prune(run, "--kept", "--dry-run", "--json")
    assert everything_in(run) == before
    assert json.loads(told)["freed_bytes"] == json.loads(prune(run, "--kept", "--json")[1])["freed_bytes"]


def test_kept_takes_those_of_keep_every_but_for_one_that_a_branch_has_left(prune, run):
    plan_branch(run, 40, 50)
    _, _, told = prune(run, "--kept")
    assert list(read_run(run).checkpoints) == [30, 40, 60, 70, 80]
    assert "checkpoint-40 (kept every 20) stays (40-1-sqrt-10 has left it)" in told


def test_branch_goes_with_all_that_is_in_it(prune, run):
    assert prune(run, "--branch", "30-1-sqrt-10")[0] == 0
    assert [branch.path.name for branch in read_run(run).branches] == ["60-1-sqrt-20"]


def test_branch_s_own_checkpoints_are_named_in_its_folder(prune, run):
    branch = run / "_branches" / "30-1-sqrt-10"
    save_whole(branch, 35, kind="kept", last_step=40)
    assert prune(branch, "--steps", 35)[0] == 0
    assert list(read_run(branch).checkpoints) == [40]


# --- optimizer state ---


def test_optimizer_state_of_finished_decayed_models_alone_goes(prune, run):
    assert prune(run, "--optimizer")[0] == 0
    assert {path.parent for path in run.rglob("model.safetensors")} - {p.parent for p in run.rglob("optimizer.pt")} == {
        run / "_branches" / "30-1-sqrt-10" / "checkpoint-40",
        run / "_branches" / "30-1-sqrt-10" / "_fork-points" / "checkpoint-40",
    }


def test_model_without_optimizer_state_is_finished_reported_and_not_trained_again(prune, run):
    before = make_report(read_run(run))
    prune(run, "--optimizer")
    assert make_report(read_run(run)) == before
    assert fork(run, Decay(fork=30, end=40)).finished


def test_model_without_optimizer_state_is_no_checkpoint_to_resume_from(prune, run):
    prune(run, "--optimizer")
    with pytest.raises(CheckpointError, match="no optimizer state"):
        check_checkpoint(run / "_branches" / "30-1-sqrt-10" / "checkpoint-40")


def test_run_that_was_cut_short_in_the_save_of_its_weights_is_not_finished_without_optimizer_state(prune, run):
    prune(run, "--optimizer")
    branch = run / "_branches" / "30-1-sqrt-10"
    weights = branch / "checkpoint-40" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert newest_whole(branch)[0] is None


# --- what does not go ---


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--steps", 30), r"checkpoint-30 \(fork point of budget 40\) is needed \(30-1-sqrt-10 has left it\)"),
        (("--steps", 20, 80), r"checkpoint-80 .* is needed \(it is what a longer run goes on from\)"),
        (("--branch", "60-1-sqrt-20"), r"branch 60-1-sqrt-20 is needed \(it is at step 70 of 80"),
    ],
)
def test_what_is_needed_goes_with_force_alone(prune, run, words, told):
    before = everything_in(run)
    code, _, _ = prune(run, *words)
    assert re.search(told, str(code))
    assert everything_in(run) == before
    assert prune(run, *words, "--force")[0] == 0
    assert everything_in(run) < before


def test_newest_checkpoint_of_an_unfinished_run_and_its_best_model_are_needed(prune, run):
    branch = run / "_branches" / "60-1-sqrt-20"
    for step in (64, 66):
        save_whole(branch, step, kind="periodic", last_step=80, keep=False)
    state = branch / "checkpoint-70" / "trainer_state.json"
    state.write_text(json.dumps({"global_step": 70, "best_model_checkpoint": str(branch / "checkpoint-64")}))
    code, _, _ = prune(branch, "--steps", 64, 66, 70)
    assert "checkpoint-70 (periodic) is needed (the run goes on from it)" in str(code)
    assert "checkpoint-64 (periodic) is needed (it is the best model so far)" in str(code)
    assert "checkpoint-66" not in str(code)


def test_damaged_checkpoint_that_is_newer_than_the_newest_whole_one_is_needed_by_nobody(prune, run):
    branch = run / "_branches" / "60-1-sqrt-20"
    save_whole(branch, 75, kind="periodic", last_step=80, keep=False)
    (branch / "checkpoint-75" / "optimizer.pt").unlink()
    assert prune(branch, "--steps", 75)[0] == 0


def test_trunk_that_trains_is_left_alone_until_its_last_save(prune, run):
    keeper = Keeper(run, read_run(run).records[80], {})
    keeper.begin(80, tokens=None)
    before = everything_in(run)
    code, _, _ = prune(run, "--steps", 20)
    assert f"a process is already training in {run}" in str(code)
    assert everything_in(run) == before
    keeper.save(80)
    assert prune(run, "--steps", 20)[0] == 0


def test_branch_that_trains_is_left_alone(prune, run):
    branch = run / "_branches" / "60-1-sqrt-20"
    before = everything_in(run)
    with locked(branch):
        code, _, _ = prune(run, "--branch", branch.name, "--force")
    assert f"a process is already training in {branch}" in str(code)
    assert everything_in(run) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "say what may go: --steps, --kept, --branch or --optimizer. Checkpoints: 20, 30, 40, 60, 70, 80"),
        (("--steps", 50), "no checkpoint at step 50. Checkpoints: 20, 30, 40, 60, 70, 80. Branches: 30-1-sqrt-10, 60"),
        (("--branch", "30-1-sqrt-11"), "did you mean '30-1-sqrt-10'"),
        (("--optimizer", "--kept"), "give --optimizer by itself"),
        (("--steps", 20, "--branch", "no"), "unknown branch 'no'"),
    ],
)
def test_bad_input_is_one_message_and_deletes_nothing(prune, run, words, told):
    before = everything_in(run)
    code, _, _ = prune(run, *words)
    assert told in str(code)
    assert everything_in(run) == before


# --- kills ---


@pytest.mark.slow
def test_what_a_killed_prune_left_goes_with_the_same_command(run):
    """Killed in the middle of the deletion: by then everything has its other name."""
    words = [sys.executable, "-m", "hf_wsd.cli", "prune", str(run), "--steps", "20", "70"]
    killing = (
        "import os, shutil, signal, sys, runpy\n"
        "shutil.rmtree = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_module('hf_wsd.cli', run_name='__main__', alter_sys=True)\n"
    )
    killed = subprocess.run([sys.executable, "-c", killing, "hf-wsd", *words[3:]], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (list(read_run(run).checkpoints), len(os.listdir(run / "_pruned"))) == ([30, 40, 60, 80], 3)
    left = used_bytes(run / "_pruned")
    told = subprocess.run([*words, "--json"], check=True, capture_output=True, text=True).stdout
    assert not (run / "_pruned").exists()
    assert json.loads(told)["freed_bytes"] == left > 2 * 3 * STATE
