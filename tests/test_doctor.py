"""`hf-wsd doctor`: on real jobs, exact ones and one that is not; and what it prints."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from test_cli import hf_wsd  # noqa: F401
from trainer_runs import ROOT, SCRIPT, command

from hf_wsd.bits import difference
from hf_wsd.checkup import TRIALS, check, check_all
from hf_wsd.doctor import doctor_text, read_job
from hf_wsd.errors import CheckpointError, RunError
from hf_wsd.trials import Job

TINY = (str(SCRIPT), "--learning_rate", "1e-2", "--per_device_train_batch_size", "4", "--use_cpu")


# --- real runs ---


@pytest.mark.slow
def test_job_that_is_exact_is_found_exact_and_measured(tmp_path):
    plan = ("--budgets", "1B", "2B", "--tokens-per-step", "0.5M", "--model-size", "1M")
    result = command(["-m", "hf_wsd.cli", "doctor", "--folder", tmp_path, "--json", *plan, "--", *TINY])
    found = json.loads(result.stdout)
    assert {check["claim"]: check["result"] for check in found["checks"]} == dict.fromkeys(TRIALS, "exact")
    assert found["exact"]
    assert found["job"]["world_size"] == 1
    assert all(0 < one["least"] <= one["median"] <= one["most"] < 60 for one in found["times"].values())
    # trunk checkpoints and ends of both, 12 bytes a parameter; optimizer.pt has a few bytes more
    assert found["plan"]["checkpoints"] == 4
    assert found["plan"]["bytes"] == pytest.approx(4 * 12e6, rel=0.2)
    assert list(tmp_path.iterdir()) == []
