"""The ladder of sizes and budgets: its cost, its sweep, and the real thing, killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from math import inf

import ladder
import pytest
from ladder_plan import Size, Sweep, cost_before, doubts, make_size
from trainer_runs import ROOT, command

from hf_wsd.errors import SettingsError
from hf_wsd.family import read_run
from hf_wsd.points import Point


def size(**changes):
    budgets = ("1M", "3M", "5M", "7M", "10M")
    return Size(**{"preset": "2M", "parameters": 100, "budgets": budgets, "sweep_budget": "0.5M"} | changes)


def test_the_family_of_each_size_costs_what_its_trunk_and_decays_do_and_the_sweep_comes_on_top():
    cost = cost_before([size(), size(parameters=300)], 3)
    assert cost["tokens"] == {"family": 2 * 11_600_000, "separate": 2 * 26_000_000, "sweep": 2 * 1_500_000}
    assert cost["flops"]["family"] == 6 * 400 * 11_600_000
    assert cost_before([size()], 1)["tokens"]["sweep"] == 0


def test_budgets_by_tokens_per_parameter_grow_with_the_model():
    found = make_size("2M", 1500, [], [2, 4.5], sweep_budget=None)
    assert (found.budgets, found.sweep_budget) == (("3000tokens", "6750tokens"), "3000tokens")


@pytest.mark.parametrize(
    ("budgets", "ratios", "says"),
    [
        (["1M"], [], "needs two budgets or more"),
        (["1M", "2M"], [5, 10], "one of the two"),
        (["1M", "3000"], [], "3000 is not in tokens"),
    ],
)
def test_budgets_that_give_no_curve_are_refused(budgets, ratios, says):
    with pytest.raises(SettingsError, match=says):
        make_size("2M", 1500, budgets, ratios, sweep_budget=None)


@pytest.mark.parametrize(
    ("losses", "beyond"),
    [
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 2.5}, None),  # the best lies inside
        ({1e-3: 3.0, 2e-3: 2.5, 4e-3: 2.0}, 8e-3),
        ({1e-3: 2.0, 2e-3: 2.5, 4e-3: inf}, 5e-4),
        ({1e-3: 4.0, 2e-3: 3.5, 4e-3: 3.0, 8e-3: 2.5, 16e-3: 2.0}, None),  # two more have been tried
        ({1e-3: inf, 2e-3: inf, 4e-3: inf}, None),
    ],
)
def test_a_grid_grows_where_its_best_peak_lr_is_at_the_edge(losses, beyond):
    assert Sweep(losses=losses).next(grid=3) == beyond


def test_a_best_peak_lr_at_the_edge_is_stated():
    assert "a better one may lie outside" in Sweep(losses={1e-3: 3.0, 2e-3: 2.5}).statement(size())
    assert "outside" not in Sweep(losses={1e-3: 3.0, 2e-3: 2.5, 4e-3: 2.8}).statement(size())


@pytest.mark.parametrize(("losses", "doubtful"), [((3.0, 2.8), 1), ((3.0, 2.7), 0), ((2.9, 2.7), 0)])
def test_a_larger_model_that_ends_above_a_smaller_one_at_every_budget_is_doubted(losses, doubtful):
    small = [Point(tokens=tokens, loss=loss, parameters=10) for tokens, loss in ((100, 2.95), (200, 2.75))]
    large = [Point(tokens=tokens, loss=loss, parameters=20) for tokens, loss in zip((100, 200), losses, strict=True)]
    assert len(list(doubts([*small, *large]))) == doubtful


@pytest.mark.parametrize("flag", ["--budgets", "--learning-rate", "--output_dir=x"])
def test_what_the_ladder_sets_itself_is_refused_after_the_dashes(flag):
    args, rest = ladder.read_arguments(["--output_dir", "x", "--presets", "2M", "--budgets", "1M", "2M", "--", flag])
    with pytest.raises(SettingsError, match=f"{flag} after --: the ladder sets it itself"):
        ladder.read_sizes(args, rest)


def test_a_ladder_does_not_go_on_with_other_arguments(tmp_path):
    asked = {"arguments": ["--block_size", "128"], "sweep_budget": None}
    ladder.Ledger(tmp_path / "ladder.json", asked).write()
    with pytest.raises(SettingsError, match=r"was made with arguments .*128.*, not .*256.*: give another --output_dir"):
        ladder.Ledger(tmp_path / "ladder.json", asked | {"arguments": ["--block_size", "256"]})


TINY = (
    *("--decay_fraction", "0.25", "--block_size", "32", "--max_eval_blocks", "8", "--warmup_steps", "4", "--use_cpu"),
    *("--per_device_train_batch_size", "4"),  # 128 tokens a step
)
EVALUATION = """
import json, sys
if "15-1-sqrt-5" in sys.argv[1]:
    sys.exit("no such task")
print(json.dumps({"accuracy": 0.5}))
"""


@pytest.mark.slow
def test_a_ladder_that_is_killed_goes_on_and_states_what_it_found(tmp_path):
    (tmp_path / "eval.py").write_text(EVALUATION)
    out = tmp_path / "ladder"
    out.mkdir()
    argv = [ROOT / "recipes" / "ladder.py", "--output_dir", out, "--presets", "0.1M", "0.25M"]
    argv += ["--budgets", "2.56K", "5.12K", "--lrs", "5e-3", "1e-2", "--sweep_budget", "1.28K"]
    argv += ["--eval_command", f"{sys.executable} {tmp_path / 'eval.py'} {{model}}", "--", *TINY]
    swept_before = ladder.Ledger(out / "ladder.json", {"arguments": [*TINY], "sweep_budget": "1.28K"})
    swept_before.note("sweeps", "0.25M", {"0.005": 3.0, "0.01": 2.0, "0.02": 2.5})  # their folders are gone
    process = subprocess.Popen(
        [sys.executable, *map(str, argv)], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (out / "0.1M" / "checkpoint-15").exists():
        assert process.poll() is None, "the ladder ended before its first trunk"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    swept = {file: file.stat().st_mtime_ns for file in (out / "_sweep").glob("*/model.safetensors")}

    ended = command(argv, check=False)
    told = json.loads((out / "ladder.json").read_text())
    assert "2 failed: 0.1M/_branches/15-1-sqrt-5, 0.25M/_branches/15-1-sqrt-5" in ended.stderr
    assert {file: file.stat().st_mtime_ns for file in swept} == swept != {}
    for preset in ("0.1M", "0.25M"):
        run = read_run(out / preset)
        losses = told["sweeps"][preset]
        assert run.latest.peak_lr == told["peak_lrs"][preset]["lr"] == float(min(losses, key=losses.get))
        assert [branch.finished for branch in run.branches] == [True, True]
        assert told["evaluations"][f"{preset}/_branches/30-1-sqrt-10"] == {"accuracy": 0.5}
        assert told["tokens"][preset] == (30 + 5 + 10) * 128
    assert not list((out / "_sweep").glob("0.25M-*"))
    assert "at least 3 budgets" in told["fit"]["refused"]
    assert (out / "report.html").exists()
