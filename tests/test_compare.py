"""Comparing arms: what may be said from losses over seeds, and the recipe with real runs."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from compare import CompareArguments, repeat, tasks, tune
from comparison import BASELINE, Comparison, Difference, Launch
from comparison_figures import draw
from comparison_tables import describe, family_table
from trainer_runs import ROOT

from hf_wsd.errors import SettingsError

RECIPES = ROOT / "recipes"
TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1", "--block_size", "32", "--max_eval_blocks", "8"),
    *("--per_device_train_batch_size", "4", "--warmup_steps", "2", "--use_cpu"),
)


def launch(arm, lr, seed, losses, **known):
    defaults = {"fork_losses": {}, "evaluations": {}, "updates": max(losses), "tokens_per_step": 100, "seconds": 1.0}
    return Launch(arm=arm, lr=lr, seed=seed, budgets=tuple(losses), losses=losses, **(defaults | known))


def comparison(*launches):
    return Comparison(settings={"tuning_seed": 1}, launches=launches)


# 10 steps are best at lr 0.1, 20 steps and the mean of both at 0.2.
TUNING = comparison(
    *(launch(BASELINE, 0.1, 1, {10: 5.0}), launch(BASELINE, 0.2, 1, {10: 5.1})),
    *(launch(BASELINE, 0.1, 1, {20: 4.5}), launch(BASELINE, 0.2, 1, {20: 4.2})),
    *(launch("WSD-S", 0.1, 1, {10: 5.0, 20: 4.5}), launch("WSD-S", 0.2, 1, {10: 5.1, 20: 4.2})),
)


def test_separate_runs_are_tuned_for_each_budget():
    assert [TUNING.lr_of(BASELINE, budget) for budget in (10, 20)] == [0.1, 0.2]


def test_line_has_one_peak_lr():
    assert [TUNING.lr_of("WSD-S", budget) for budget in (10, 20)] == [0.2, 0.2]


def test_mean_over_seeds_decides_among_the_peak_lrs_that_all_have_tried():
    first = {0.1: 5.0, 0.2: 4.0, 0.4: 4.5, 0.8: 4.9}
    lucky = (launch("WSD-S", 0.2, 2, {10: 6.0}), launch("WSD-S", 0.4, 2, {10: 4.5}))
    found = comparison(*(launch("WSD-S", lr, 1, {10: loss}) for lr, loss in first.items()), *lucky)
    assert (found.ranking("WSD-S", 10, seed=1), found.lr_of("WSD-S", 10)) == ([0.2, 0.4, 0.8, 0.1], 0.4)


def test_lr_whose_loss_is_not_a_number_is_never_the_best():
    found = comparison(launch("WSD-S", 0.1, 1, {10: float("nan")}), launch("WSD-S", 0.2, 1, {10: 9.0}))
    assert found.lr_of("WSD-S", 10) == 0.2


def test_best_lr_between_two_others_is_not_at_the_edge():
    found = [launch("WSD-S", lr, 1, {10: loss}) for lr, loss in ((0.1, 5.0), (0.2, 4.0), (0.4, 5.0))]
    assert (comparison(*found).at_edge("WSD-S", 10), comparison(*found[:2]).at_edge("WSD-S", 10)) == (False, True)


@pytest.mark.parametrize(
    ("losses", "beyond"),
    [
        ({0.1: 5.0, 0.2: 4.0, 0.4: 5.0}, None),
        ({0.1: 4.0, 0.2: 5.0, 0.4: 6.0}, 0.05),
        ({0.1: 5.0, 0.2: 4.0}, 0.4),
        ({0.01: 5.0, 0.02: 4.5, 0.06: 4.0}, 0.18),
        ({0.1: 5.0}, None),  # one peak lr: nobody asked for a search
        ({0.1: 5.0, 0.2: float("nan")}, 0.05),
    ],
)
def test_best_lr_at_the_edge_calls_for_the_next_beyond_it(losses, beyond):
    found = comparison(*(launch("WSD-S", lr, 1, {10: loss}) for lr, loss in losses.items()))
    assert found.beyond("WSD-S", 10) == beyond


def test_peak_lr_that_the_tuning_seed_was_lucky_with_calls_for_the_next_best(tmp_path, monkeypatch):
    losses = {(0.1, 1): 5.0, (0.2, 1): 4.0, (0.4, 1): 4.5, (0.8, 1): 4.9, (0.2, 2): 6.0, (0.4, 2): 4.5}
    tried = []

    def run(task, *, jobs):
        tried.append((task.lr, task.seed))
        return launch(task.arm, task.lr, task.seed, {10: losses[task.lr, task.seed]})

    monkeypatch.setattr("compare.run", run)
    args = CompareArguments(output_dir=str(tmp_path), steps=10, budgets=["10"], lrs=[], arms=[BASELINE])
    first = comparison(*(launch(BASELINE, lr, 1, {10: losses[lr, 1]}) for lr in (0.1, 0.2, 0.4, 0.8)))
    first.write(tmp_path / "compare.jsonl")
    found = repeat(args, [2], [], first)
    assert (tried, found.lr_of(BASELINE, 10)) == ([(0.2, 2), (0.4, 2)], 0.4)


def test_peak_lrs_are_tried_until_the_best_lies_between_two_others(tmp_path, monkeypatch):
    tried = []

    def run(task, *, jobs):  # the best peak lr falls with the length: 0.08 for 10 steps, 0.04 for 20
        tried.append((task.lr, task.budgets))
        losses = {budget: abs(math.log(task.lr * budget / 0.8)) for budget in task.budgets}
        return launch(task.arm, task.lr, task.seed, losses)

    monkeypatch.setattr("compare.run", run)
    args = CompareArguments(output_dir=str(tmp_path), steps=20, budgets=["10", "20"], lrs=[0.01, 0.02], arms=[BASELINE])
    found = tune(args, [], {"tuning_seed": 1})
    assert [found.lr_of(BASELINE, budget) for budget in (10, 20)] == [0.08, 0.04]
    assert sorted(tried)[4:] == [(0.04, (10,)), (0.04, (20,)), (0.08, (10,)), (0.08, (20,)), (0.16, (10,))]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([-0.1], "no difference seen"),  # one seed says nothing
        ([-0.11, -0.09], "no difference seen"),  # of two seeds the interval is 12.7 standard errors to each side
        ([-0.101, -0.100, -0.099], "lower"),
        ([0.101, 0.100, 0.099], "higher"),
        ([-0.3, 0.1, -0.1], "no difference seen"),
    ],
)
def test_difference_is_called_one_where_the_interval_leaves_out_zero(values, verdict):
    assert Difference.of(values).verdict == verdict


def test_difference_to_a_run_that_has_diverged_is_called_so():
    assert Difference.of([-0.1, float("nan"), -0.1]).verdict == "diverged"


def test_interval_is_students():
    assert Difference.of([1.0, 2.0, 3.0]).half_width == pytest.approx(4.302652729911275 / 3**0.5)


def test_differences_are_paired_by_seed():
    found = comparison(
        *(launch(BASELINE, 0.1, seed, {10: loss}) for seed, loss in ((1, 5.0), (2, 7.0))),
        *(launch("WSD-S", 0.1, seed, {10: loss}) for seed, loss in ((2, 6.9), (1, 4.9), (3, 1.0))),
    ).difference("WSD-S", 10)
    assert (found.mean, found.seeds, found.spread) == (pytest.approx(-0.1), 2, pytest.approx(0, abs=1e-9))


def test_wall_clock_of_an_arm_with_a_resumed_run_is_not_known():
    runs = (launch(BASELINE, 0.1, 1, {10: 5.0}), launch(BASELINE, 0.1, 1, {20: 5.0}))
    resumed = comparison(runs[0], replace(runs[1], seconds=None))
    assert (comparison(*runs).seconds(BASELINE), resumed.seconds(BASELINE)) == (2.0, None)


def test_wall_clock_is_that_of_the_launches_that_ran_alone_at_any_peak_lr():
    found = comparison(
        *(launch(BASELINE, lr, 1, {10: loss}, seconds=time) for lr, loss, time in ((0.1, 5, None), (0.2, 6, 3.0))),
        *(launch(BASELINE, lr, 1, {20: loss}, seconds=time) for lr, loss, time in ((0.1, 5, 7.0), (0.2, 6, 9.0))),
    )
    assert found.seconds(BASELINE) == 3.0 + 8.0


def test_results_are_the_same_when_read_back(tmp_path):
    TUNING.write(tmp_path / "compare.jsonl")
    assert Comparison.read(tmp_path / "compare.jsonl") == TUNING


def test_diverged_loss_is_not_a_number_when_read_back(tmp_path):
    comparison(launch("WSD-S", 0.1, 1, {10: float("nan")})).write(tmp_path / "compare.jsonl")
    assert math.isnan(Comparison.read(tmp_path / "compare.jsonl").losses("WSD-S", 10)[1])


def test_budgets_that_share_no_evaluation_step_are_refused():
    args = CompareArguments(output_dir="runs", steps=1000, budgets=["333", "1000"])
    with pytest.raises(SettingsError, match="only 1 as a common divisor"):
        list(tasks(args, BASELINE, 0.1, 1, []))


def test_readme_has_the_rows_of_the_stored_comparison():
    found = Comparison.read(RECIPES / "results" / "compare.jsonl")
    families = [row for arm in ("WSD, decays of 10 %", "WSD, decays of 20 %") for row in family_table(found, arm)]
    for file, lines in ((ROOT / "README.md", families), (RECIPES / "README.md", describe(found))):
        readme = file.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if line.startswith(("|", "-")) and line not in readme] == []


def compare(folder, *arms, **kwargs):
    command = [sys.executable, str(RECIPES / "compare.py"), "--output_dir", str(folder), "--steps", "40", *TINY]
    command += ["--budgets", "50%", "100%", "--lrs", "1e-2", "--seeds", "1", "2", "--arms", *arms]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, **kwargs)


@pytest.mark.slow
def test_comparison_that_was_killed_goes_on_and_counts_what_was_trained(tmp_path):
    arms = (BASELINE, "WSD, decays of 10 %", "WSD-S")
    killed, file = compare(tmp_path, *arms, stdout=subprocess.DEVNULL), tmp_path / "compare.jsonl"
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    page, _ = (again := compare(tmp_path, *arms, stdout=subprocess.PIPE, text=True)).communicate()
    assert again.returncode == 0
    found = Comparison.read(file)
    assert len({(one.arm, one.seed, one.budgets) for one in found.launches}) == len(found.launches) == 2 * (2 + 1 + 1)
    # 20 + 40 of separate runs; a trunk of 36 with decays of 2 and 4; one line of 40.
    assert [cost["updates"] for cost in found.costs()] == [60, 42, 40]
    assert page == "\n".join(describe(found)) + "\n"
    clock = [cost["seconds_ratio"] for cost in found.costs()][1]  # of the seed whose runs were not killed
    assert [row.split(" | ")[5:] for row in family_table(found, "WSD, decays of 10 %")][2:] == [
        ["2.56K", "2.56K", "- |"],  # the trunk up to step 18 and a decay of 2 steps, of 128 tokens each
        ["5.376K", "7.68K", f"{clock:.3f} |"],
    ]
    assert all(drawn.stat().st_size > 0 for drawn in draw(found, tmp_path))
