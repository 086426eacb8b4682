"""A family of a script that never imports hf_wsd, as its user would make it: real processes, real kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from trainer_runs import FAMILY, FLAGS, SCRIPT, command, same_weights, train

from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage

CLI = ("-m", "hf_wsd.cli")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A trunk with two branches of `hf-wsd decay`."""
    run = train(tmp_path_factory.mktemp("family") / "run", "--num_train_epochs", 9, launch=FAMILY)
    command([*CLI, "decay", run])
    return run


@pytest.mark.parametrize(("branch", "end"), [("15-1-sqrt-5", 20), ("30-1-sqrt-10", 40)])
def test_branch_equals_the_straight_run_bit_for_bit(family, tmp_path, branch, end):
    straight = train(tmp_path / "straight", "--max_steps", end, launch=("--decay-fraction", 0.25))
    decayed = family / "_branches" / branch / f"checkpoint-{end}"
    assert same_weights(decayed, straight / f"checkpoint-{end}")
    assert Lineage.read(decayed).losses == Lineage.read(straight / f"checkpoint-{end}").losses


def test_branch_knows_its_parent_and_its_budget(family):
    record = read_run(family).branches[1].latest
    assert (record.intent, record.kind, record.requested, record.parent.step) == ("branch", "post-decay", "40", 30)


def test_decaying_again_trains_nothing(family):
    before = {path: path.stat().st_mtime_ns for path in family.rglob("checkpoint-*")}
    result = command([*CLI, "decay", family])
    assert result.stderr.count("(finished)") == 2
    assert before == {path: path.stat().st_mtime_ns for path in family.rglob("checkpoint-*")}


def test_killed_branch_goes_on_from_its_newest_whole_checkpoint(family, tmp_path):
    again = Path(shutil.copytree(family, tmp_path / "run"))
    branch = again / "_branches" / "30-1-sqrt-10"
    damaged = branch / "checkpoint-40" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:100])  # as a kill in the middle of the save leaves it
    shutil.rmtree(branch / "_fork-points")
    result = command([*CLI, "decay", again])
    assert "passed over" in result.stderr
    assert same_weights(branch / "checkpoint-40", family / "_branches" / "30-1-sqrt-10" / "checkpoint-40")


def test_script_that_ignores_resume_from_checkpoint_is_caught(tmp_path):
    script = tmp_path / "train_bare.py"
    bare = SCRIPT.read_text().replace("resume_from_checkpoint=training_args.resume_from_checkpoint", "")
    assert "trainer.train()" in bare
    script.write_text(bare)
    run = train(tmp_path / "run", "--num_train_epochs", 9, launch=FAMILY, script=script)
    result = command([*CLI, "decay", run, "--budgets", 20], check=False)
    assert result.returncode == 1
    assert "ignores --resume_from_checkpoint" in result.stderr
    assert not list((run / "_branches").glob("*/checkpoint-*"))


def test_trunk_killed_at_random_and_repeated_ends_in_the_same_weights(family, tmp_path):
    run = tmp_path / "run"
    saves = ("--num_train_epochs", "9", "--save_strategy", "steps", "--save_steps", "3")
    argv = [sys.executable, "-m", "hf_wsd", *FAMILY, str(SCRIPT), "--output_dir", str(run), *FLAGS, *saves]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "checkpoint-18").exists():
        time.sleep(0.005)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    newest = max(read_run(run).records)
    command([*argv[1:], "--resume_from_checkpoint", run / f"checkpoint-{newest}"])
    assert same_weights(run / "checkpoint-30", family / "checkpoint-30")


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="before 5.18 transformers resumes no run of several processes on CPU: it loads the optimizer to cpu:0",
)
def test_two_processes_train_trunk_and_branch_as_a_straight_run_and_agree_with_each_other(tmp_path):
    script = tmp_path / "train_with_digest.py"
    script.write_text(SCRIPT.read_text().replace("    trainer.save_model()\n", WRITE_DIGEST))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    flags = (*FLAGS, "--per_device_train_batch_size", 2, "--logging_steps", 1)

    def train_two(run, *more, launch):
        argv = [*torchrun, "-m", "hf_wsd", *launch, script, "--output_dir", run, *flags, *more]
        command(argv, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
        return run

    run = train_two(tmp_path / "run", "--num_train_epochs", 9, launch=FAMILY)
    command([*CLI, "decay", run, "--budgets", 40])
    straight = train_two(tmp_path / "straight", "--max_steps", 40, launch=("--decay-fraction", 0.25))

    branch = read_run(run).branches[0]
    assert (branch.latest.setup["world_size"], branch.latest.tokens_per_step) == (2, 64)
    for trained in (run, branch.path, straight):
        assert len({(trained / f"digest-{rank}").read_text() for rank in (0, 1)}) == 1
    assert (branch.path / "digest-0").read_text() == (straight / "digest-0").read_text()
    lrs = {row["step"]: row["learning_rate"] for row in branch.history if "learning_rate" in row}
    assert lrs == {step: 1e-2 * branch.latest.schedule(step - 1) for step in range(31, 41)}


WRITE_DIGEST = """
    import hashlib
    state = trainer.model.state_dict()
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
    with open(f"{training_args.output_dir}/digest-{training_args.process_index}", "w") as file:
        file.write(digest)
"""
