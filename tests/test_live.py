"""A decay on demand, and the end of a job: hf_wsd/live.py through real Trainers, signals and processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import transformers
from packaging.version import Version
from trainer_runs import FLAGS, ROOT, command, same_weights, train_here

from hf_wsd.checkpoint import newest_whole
from hf_wsd.decision import DECISION, read_answer
from hf_wsd.family import read_run
from hf_wsd.history import read_history
from hf_wsd.lineage import Lineage

SCRIPT = ROOT / "tests" / "downstream" / "train_and_ask.py"
TRUNK = ("--trunk", "--decay-fraction", "0.25")
RESUMES_SEVERAL = Version(transformers.__version__) >= Version("5.18")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)


def train(run, *flags, do="", wish="", launch=TRUNK, steps=40):
    os.environ.update(DO=do, WISH=wish)
    try:
        return train_here(run, "--max_steps", steps, "--logging_steps", 1, *flags, launch=launch, script=SCRIPT)
    finally:
        del os.environ["DO"], os.environ["WISH"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """18 stable updates, then a decay of 6."""
    run = tmp_path_factory.mktemp("live") / "straight"
    return train(run, launch=("--num-decay-steps", 6), steps=24)


@pytest.mark.parametrize("how", ["file", *(pytest.param(how, marks=pytest.mark.slow) for how in ("usr1", "ask"))])
def test_running_job_decays_at_once_and_ends_in_the_bits_of_a_straight_run(straight, tmp_path, how):
    run = train(tmp_path / "run", do=f"{how}@18")
    assert same_weights(run / "checkpoint-24", straight / "checkpoint-24")
    assert same_weights(run, straight)  # what the script itself saves at its end
    lrs, straights = (
        {row["step"]: row["learning_rate"] for row in read_history(one) if "learning_rate" in row}
        for one in (run, straight)
    )
    assert lrs == straights
    kept = {step: record.kind for step, record in read_run(run).records.items()}
    assert kept == {18: "pre-decay", 24: "post-decay"}
    assert read_run(run).finished


def test_who_asked_is_answered_and_named_in_the_record(tmp_path):
    run = train(tmp_path / "run", do="file@18", wish="num_decay_steps=4 decay_type=linear")
    said = "decay from step 18, the model ends at step 22 (asked by hf-wsd decay)"
    assert read_answer(run, "1") == (said, True)
    record = Lineage.read(run / "checkpoint-22")
    assert (record.decided, record.schedule.segments[-1].shape) == ({"fork": 18, "by": "hf-wsd decay"}, "linear")


REFUSED = {
    "past the planned end": (
        "file@38",
        "",
        "38 to 50 would pass the planned end at step 40: ask for at most 2 decay steps",
    ),
    "a second one": ("ask@18,file@20", "", "one was decided already: decay from step 18"),
    "a script that cannot go back": ("file@18", "then=continue", "cannot go back to its fork point"),
    "a shape that is not there": ("file@18", "decay_type=linaer", "did you mean 'linear'"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("do", "wish", "why"), REFUSED.values(), ids=REFUSED)
def test_wish_that_cannot_be_is_refused_and_training_goes_on(tmp_path, do, wish, why):
    run = train(tmp_path / "run", do=do, wish=wish)
    said, accepted = read_answer(run, "1")
    assert re.search(why, said)
    assert not accepted
    assert read_run(run).finished


@pytest.mark.slow
def test_wish_in_the_warm_up_waits_for_its_end(tmp_path):
    run = train(tmp_path / "run", do="usr1@2", wish="")
    assert json.loads((run / DECISION).read_text())["fork"] == 5
    assert read_run(run).finished


@pytest.mark.slow
def test_wish_of_an_earlier_job_is_none_for_this_one(tmp_path):
    from hf_wsd.decision import Request, write_request

    (tmp_path / "run").mkdir()
    write_request(tmp_path / "run", Request(by="hf-wsd decay"))
    run = train(tmp_path / "run")
    assert not (run / DECISION).exists()


@pytest.mark.slow
def test_decay_past_the_planned_end_goes_on_in_the_next_job_if_asked_to(tmp_path):
    wish = "num_decay_steps=6 extend=1"
    with pytest.raises(SystemExit) as end:
        train(tmp_path / "run", do="file@18", wish=wish, steps=20)
    assert end.value.code == 75
    run = train(tmp_path / "run", "--resume_from_checkpoint", tmp_path / "run" / "checkpoint-18", steps=20)
    again = train(tmp_path / "again", launch=("--num-decay-steps", 6), steps=24)
    assert same_weights(run / "checkpoint-24", again / "checkpoint-24")


@pytest.mark.slow
def test_decision_survives_kills(straight, tmp_path):
    argv = ["-m", "hf_wsd", *TRUNK, SCRIPT, "--output_dir", tmp_path / "run", *FLAGS, "--max_steps", 40]
    for killed, do in ((True, "usr1@18,kill@19"), (True, "kill@22"), (False, "")):
        newest, _ = newest_whole(tmp_path / "run")
        result = command([*argv, *(["--resume_from_checkpoint", newest] if newest else [])], check=False, DO=do)
        assert result.returncode == (-signal.SIGKILL if killed else 0), result.stderr[-2000:]
    assert same_weights(tmp_path / "run" / "checkpoint-24", straight / "checkpoint-24")


# --- the job's end ---


@pytest.mark.slow
@pytest.mark.parametrize("at", [12, 19, 21])  # before the fork, and in the decay
def test_sigterm_saves_and_the_next_job_ends_in_the_same_weights(straight, tmp_path, at):
    with pytest.raises(SystemExit) as end:
        train(tmp_path / "run", do=f"ask@18,term@{at}")
    assert end.value.code == 75
    newest, damage = newest_whole(tmp_path / "run")
    assert (newest.name, damage) == (f"checkpoint-{at}", [])
    run = train(tmp_path / "run", "--resume_from_checkpoint", newest, do="ask@18" if at < 18 else "")
    assert same_weights(run / "checkpoint-24", straight / "checkpoint-24")


# --- several processes ---


def two_processes(run, *flags, launch=TRUNK, check=True, script=SCRIPT, **environment):
    argv = [*TORCHRUN, "-m", "hf_wsd", *launch, script, "--output_dir", run, *FLAGS, *flags]
    return command(argv, check=check, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", **environment)


@pytest.mark.slow
@pytest.mark.skipif(not RESUMES_SEVERAL, reason="before 5.18 transformers resumes no run of several CPU processes")
def test_wish_that_one_of_two_processes_hears_is_obeyed_by_both_at_the_same_step(tmp_path):
    flags = ("--max_steps", 40, "--per_device_train_batch_size", 2, "--logging_steps", 1)
    two_processes(tmp_path / "run", *flags, DO="usr1:1@18,abort@2")
    two_processes(tmp_path / "straight", *flags[2:], "--max_steps", 24, launch=("--num-decay-steps", 6))
    assert json.loads((tmp_path / "run" / DECISION).read_text())["fork"] == 18
    assert same_weights(tmp_path / "run" / "checkpoint-24", tmp_path / "straight" / "checkpoint-24")


@pytest.mark.slow
@pytest.mark.skipif(not RESUMES_SEVERAL, reason="before 5.18 transformers resumes no run of several CPU processes")
@pytest.mark.parametrize("whom", ["torchrun", "everybody"])  # Slurm's scancel: data loader workers too
def test_sigterm_under_torchrun_saves_exits_and_resumes_to_the_same_weights(tmp_path, whom):
    flags = ("--max_steps", 400, "--per_device_train_batch_size", 2, "--dataloader_num_workers", 2)
    run, script = tmp_path / "run", ROOT / "tests" / "downstream" / "train_tiny_lm.py"
    argv = [sys.executable, *TORCHRUN, "-m", "hf_wsd", *TRUNK, script, "--output_dir", run, *FLAGS, *flags]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*map(str, argv)], env=env, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not [row for row in read_history(run) if row["step"] >= 20]:
        time.sleep(0.05)
        assert process.poll() is None
    (os.killpg if whom == "everybody" else os.kill)(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    newest, damage = newest_whole(run)
    assert damage == []
    assert f"the job ends at step {newest.name.partition('-')[2]} (SIGTERM)" in said
    two_processes(run, *flags, "--resume_from_checkpoint", newest, script=script)
    two_processes(tmp_path / "whole", *flags, script=script)
    assert same_weights(run / "checkpoint-400", tmp_path / "whole" / "checkpoint-400")


# --- deadlines ---


@pytest.mark.slow
def test_time_budget_ends_in_time_with_a_decayed_model_and_is_used(tmp_path):
    begun = time.time()
    budget = 60  # room for a stall of some seconds: one that was seen is kept free for another
    launch = ("--trunk", "--decay-fraction", "0.1", "--time-budget", f"{budget}s")
    argv = ["-m", "hf_wsd", *launch, SCRIPT, "--output_dir", tmp_path / "run", *FLAGS]
    command([*argv, "--max_steps", 10**6, "--logging_steps", 100])
    took = (tmp_path / "run" / "_fork-points").stat().st_mtime - begun
    assert 0.9 * budget < took < budget
    record = read_run(tmp_path / "run").latest
    assert (record.kind, record.decided["by"]) == ("post-decay", "--time-budget")


@pytest.mark.slow
def test_job_time_limit_saves_and_exits_in_time(tmp_path):
    begun = time.time()
    argv = ["-m", "hf_wsd", *TRUNK, "--job-time-limit", "25s", SCRIPT, "--output_dir", tmp_path / "run", *FLAGS]
    result = command([*argv, "--max_steps", 10**6, "--logging_steps", 100], check=False)
    assert (result.returncode, "(its time limit); saved at step" in result.stderr) == (75, True)
    assert 15 < time.time() - begun < 25


@pytest.mark.slow
def test_job_end_decays_where_it_is_asked_to(tmp_path):
    argv = ["-m", "hf_wsd", *TRUNK, "--on-job-end", "decay", SCRIPT, "--output_dir", tmp_path / "run", *FLAGS]
    end = str(int(time.time()) + 30)
    result = command([*argv, "--max_steps", 10**6, "--logging_steps", 100], SLURM_JOB_END_TIME=end)
    assert result.returncode == 0
    assert read_run(tmp_path / "run").latest.decided["by"] == "--on-job-end"
    assert time.time() < int(end)
