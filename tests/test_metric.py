"""The metric of hf_wsd/metrics/bits_per_byte, loaded by path as a user would."""

import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest

METRIC = Path(__file__).resolve().parents[1] / "hf_wsd" / "metrics" / "bits_per_byte"


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(str(METRIC), cache_dir=str(tmp_path))


def test_results_equal_the_closed_form(metric):
    result = metric.compute(nll_sum=[10 * math.log(8)], n_tokens=[10], n_bytes=[15])
    assert result == pytest.approx({"loss": math.log(8), "perplexity": 8, "bits_per_byte": 2})


def test_rows_weigh_by_their_tokens_and_bytes(metric):
    metric.add_batch(nll_sum=[1.0, 90.0], n_tokens=[1, 30], n_bytes=[2, 100])
    metric.add(nll_sum=9.0, n_tokens=9, n_bytes=8)
    result = metric.compute()
    assert result["loss"] == 100 / 40
    assert result["bits_per_byte"] == pytest.approx(100 / math.log(2) / 110)


def test_how_rows_are_grouped_does_not_matter(metric):
    whole = metric.compute(nll_sum=[0.1 * 10], n_tokens=[10], n_bytes=[30])
    parts = metric.compute(nll_sum=[0.1] * 10, n_tokens=[1] * 10, n_bytes=[3] * 10)
    assert parts == whole  # ten times 0.1 is not 1 in a running sum


def test_sums_are_float64(metric):
    result = metric.compute(nll_sum=[2.0**30, 1.0], n_tokens=[1 << 30, 1 << 30], n_bytes=[0, 0])
    assert result["loss"] == (2**30 + 1) / 2**31  # float32 would lose the 1


def test_bits_per_byte_are_left_out_without_bytes(metric):
    assert set(metric.compute(nll_sum=[3.0], n_tokens=[2], n_bytes=[0])) == {"loss", "perplexity"}


def test_a_diverged_loss_has_infinite_perplexity(metric):
    assert metric.compute(nll_sum=[1e4], n_tokens=[1], n_bytes=[0])["perplexity"] == math.inf
    assert math.isnan(metric.compute(nll_sum=[math.nan], n_tokens=[1], n_bytes=[0])["perplexity"])


def test_no_tokens_at_all_are_refused(metric):
    with pytest.raises(ValueError, match="at least 1"):
        metric.compute(nll_sum=[0.0], n_tokens=[0], n_bytes=[0])


@pytest.mark.slow
def test_loads_offline_by_folder_or_file_and_its_example_is_true(tmp_path):
    script = f"""
import doctest, sys, evaluate
evaluate.load({str(METRIC / "bits_per_byte.py")!r})
metric = evaluate.load({str(METRIC)!r})
example = doctest.DocTestParser().get_doctest(metric.inputs_description, {{}}, "example", None, 0)
sys.exit(not example.examples or doctest.DocTestRunner().run(example).failed)
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=METRIC.parents[2],
        env=os.environ | offline,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
