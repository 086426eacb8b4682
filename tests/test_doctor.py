"""`hf-wsd doctor` on real jobs, exact ones and others; and what it prints."""

from __future__ import annotations

import json
import shlex

import psutil
import pytest
import torch
import torch.distributed.checkpoint
import transformers
from packaging.version import Version
from safetensors.torch import save_file
from trainer_runs import ROOT, SCRIPT, command
from typer.testing import CliRunner

from hf_wsd.bits import difference
from hf_wsd.checkup import TRIALS, check, check_all
from hf_wsd.cli import app
from hf_wsd.doctor import read_job
from hf_wsd.errors import CheckpointError, RunError
from hf_wsd.trials import Job

FLAGS = ("--learning_rate", "1e-2", "--per_device_train_batch_size", "4", "--use_cpu")


# --- real runs ---


@pytest.mark.slow
def test_exact_job_is_found_exact_and_measured(tmp_path):
    plan = ("--budgets", "1B", "2B", "--tokens-per-step", "0.5M", "--model-size", "1M")
    doctor = ("-m", "hf_wsd.cli", "doctor", "--folder", tmp_path, "--json")
    found = json.loads(command([*doctor, *plan, "--", SCRIPT, *FLAGS]).stdout)
    assert {one["claim"]: one["result"] for one in found["checks"]} == dict.fromkeys(TRIALS, "exact")
    assert found["exact"]
    assert found["job"]["parameters"] == 29_568
    assert list(found["times"]) == ["start-up", "first update", "update", "evaluation", "save"]
    assert found["plan"]["checkpoints"] == 4  # two fork points, two decayed models
    assert found["plan"]["bytes"] == pytest.approx(4 * 12e6, rel=0.1)  # fp32 weights and AdamW's two moments
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_job_whose_order_of_data_is_not_seeded_differs(tmp_path):
    script, order = tmp_path / "train_unseeded.py", "[numpy.random.default_rng().permutation(count)]"
    text = SCRIPT.read_text().replace("self.ids = steps.cumsum(dim=1) % 64", f"self.ids = steps{order} % 64")
    script.write_text(f"import numpy\n{text}")
    first = next(check_all(Job(folder=tmp_path, script=(str(script), *FLAGS))))
    assert (first.claim, first.result, first.from_step) == ("the same command again", "differs", 1)
    assert first.max_difference > 1e-4


@pytest.mark.slow
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="before 5.18 transformers resumes no run of several processes on CPU: it loads the optimizer to cpu:0",
)
def test_two_processes_of_a_launcher_are_killed_and_resumed_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launcher = "torchrun --standalone --nproc_per_node 2"
    job = Job(folder=tmp_path, script=(str(SCRIPT), *FLAGS), launcher=launcher)
    assert str(check("kill -9, resumed", job, job.run("straight"))) == "exact"


# --- what fails ---


def test_first_run_that_fails_shows_its_log_and_nothing_else_is_tried(tmp_path):
    launch = f"sh -c {shlex.quote('echo no driver; exit 3')}"
    result = CliRunner().invoke(app, ["doctor", "--launch", launch, "--folder", str(tmp_path), "--json"])
    checks = json.loads(result.stdout)["checks"]
    assert result.exit_code == 1
    assert [one["result"] for one in checks] == ["failed", *["not tried"] * len(TRIALS)]
    assert checks[0]["why"] == "exit 3; the end of straight.log:\nno driver"
    assert "no driver" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_run_that_does_not_end_is_ended_with_all_that_it_started(tmp_path):
    in_a_session_of_its_own = f"setsid sleep 60 & echo $$ $! > {tmp_path}/pids; wait"
    launch = f"sh -c {shlex.quote(in_a_session_of_its_own)}"
    with pytest.raises(RunError, match=r"more than 1 s \(--timeout\)"):
        Job(folder=tmp_path, script=("train.py",), launcher=launch, timeout=1).run("straight")
    started = (tmp_path / "pids").read_text().split()
    assert len(started) == 2
    assert [pid for pid in map(int, started) if is_running(pid)] == []


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("torchrun", "train.py"), "not with 'torchrun': what starts the processes goes into --launch"),
        (("no_such_script.py",), "not with 'no_such_script.py'"),
        (("python", "-m", "hf_wsd", "--trunk", str(SCRIPT)), "not with '--trunk'"),
    ],
)
def test_job_that_is_no_script_is_refused(words, message):
    with pytest.raises(RunError, match=message):
        read_job(words)


# --- the job ---


@pytest.mark.parametrize("before", [(), ("python", "-m", "hf_wsd"), ("/usr/bin/python3.12",)])
def test_job_is_a_script_also_as_it_is_started_without_the_doctor(before):
    assert read_job([*before, str(SCRIPT), "--bf16"]) == (str(SCRIPT), "--bf16")


def test_flags_alone_are_for_the_recipe():
    job = read_job(["--bf16"])
    assert (job[0], job[-1]) == (str(ROOT / "recipes" / "pretrain.py"), "--bf16")


# --- bits ---


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints of given weights."""

    def save(one, other):
        for name, weights in (("one", one), ("other", other)):
            (tmp_path / name).mkdir()
            save_file({key: torch.tensor(value) for key, value in weights.items()}, tmp_path / name / "m.safetensors")
        return tmp_path / "one", tmp_path / "other"

    return save


def test_largest_difference_of_all_weights_is_found(checkpoints):
    assert difference(*checkpoints({"a": [1.0, 2.0], "b": 0.0}, {"a": [1.5, 2.0], "b": -2.0})) == 2.0


def test_same_numbers_in_other_bits_are_a_difference(checkpoints):
    assert difference(*checkpoints({"a": 0.0}, {"a": -0.0})) == 0.0


def test_same_bits_are_none_even_where_they_are_no_number(checkpoints):
    assert difference(*checkpoints({"a": float("nan")}, {"a": float("nan")})) is None


def test_weights_of_another_name_or_shape_are_no_difference_but_an_error(checkpoints, tmp_path):
    one, other = checkpoints({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(CheckpointError, match="hold different weights: a, b"):
        difference(one, other)
    save_file({"a": torch.ones(2)}, other / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"shape \(1,\) in one run and \(2,\) in the other"):
        difference(one, other)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_of_fsdp_are_compared_weight_by_weight(tmp_path):
    for name, value in (("one", 1.0), ("other", 1.25)):
        state = {"model": {"a": torch.full((3,), value)}}
        torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / name / "pytorch_model_fsdp_0", no_dist=True)
    assert difference(tmp_path / "one", tmp_path / "other") == 0.25
