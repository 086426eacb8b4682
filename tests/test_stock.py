"""Where hf_wsd is not installed: stock transformers resumes, loads and generates; hf_wsd/stock.py, `hf-wsd tree`."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from reference import wsd_arguments
from trainer_runs import FAMILY, FLAGS, SCRIPT, command, lrs_in_an_optimizer, same_weights, train_here
from transformers import HfArgumentParser, TrainingArguments

from hf_wsd import cli
from hf_wsd.baselines import cosine, cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import ScheduleError
from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage
from hf_wsd.stock import DECAYS, stock_flags
from hf_wsd.tree import stock_resume

EVERY_UPDATE = ("--logging_steps", 1, "--eval_strategy", "no")  # in stock transformers an evaluation moves dropout
SAVES = ("--save_strategy", "steps", "--save_steps", 12)
OTHER_FLAGS = (*FLAGS[2:], *EVERY_UPDATE, *SAVES)  # without --lr_scheduler_type wsd, which stock transformers refuses
DECAY = ("--num-decay-steps", 10, "--decay-type", "linear", "--min-lr-ratio", 0.1)

# --- the same lrs ---


def stock_lrs(flags, *, steps, peak):
    """What stock transformers makes of flags, parsed as a script parses them and applied as Trainer does."""
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--use_cpu", *flags])
    assert args.max_steps == steps

    def make(optimizer):
        warmup_steps, kwargs = args.get_warmup_steps(steps), args.lr_scheduler_kwargs
        return transformers.get_scheduler(args.lr_scheduler_type, optimizer, warmup_steps, steps, kwargs)

    return lrs_in_an_optimizer(make, steps=steps, peak=peak)


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps:UserWarning")
def same_lrs(schedule, *, steps, start=0, peak=0.3):
    stock = stock_lrs(stock_flags(schedule, last_step=steps, start=start), steps=steps, peak=peak)
    return stock[start:] == [peak * schedule(update) for update in range(start, steps)]


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps:UserWarning")
@given(arguments=wsd_arguments(falls=DECAYS), tail=st.integers(0, 5))
def test_decayed_run_has_the_same_lrs_in_stock_transformers(arguments, tail):
    steps = arguments["num_training_steps"] + tail
    assert same_lrs(wsd(**arguments | {"num_training_steps": steps, "num_min_steps": tail}), steps=steps)


@given(
    warmup=st.integers(0, 30),
    warmup_type=st.sampled_from(DECAYS),
    warmup_start=st.sampled_from([0.0, 0.1]) | st.floats(0, 1),
    stable=st.integers(1, 30),
)
def test_trunk_has_the_same_lrs_in_stock_transformers(warmup, warmup_type, warmup_start, stable):
    trunk = wsd(num_decay_steps=0, num_warmup_steps=warmup, warmup_type=warmup_type, warmup_start=warmup_start)
    assert same_lrs(trunk, steps=warmup + stable)


@pytest.mark.parametrize(
    ("schedule", "start"),
    [
        pytest.param(wsd(num_warmup_steps=10, num_decay_steps=0).fork(80, decay_steps=20), 80, id="branch"),
        pytest.param(wsd(100, num_warmup_steps=10, warmup_start=0.3), 10, id="after an odd warm-up"),
        pytest.param(wsd(100, num_warmup_steps=10, warmup_start=0.3), 95, id="in the decay"),
        pytest.param(wsd_s(cycle_ends=[50, 100], decay_type="linear"), 50, id="last cycle"),
        pytest.param(
            wsd_s(cycle_ends=[50, 100], num_warmup_steps=4, num_rewarmup_steps=5, decay_type="cosine"),
            55,
            id="after a re-warm-up",
        ),
        pytest.param(cosine(100, num_warmup_steps=10), 0, id="cosine"),
    ],
)
def test_rest_of_a_run_has_the_same_lrs_in_stock_transformers(schedule, start):
    assert same_lrs(schedule, steps=100, start=start)


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps:UserWarning")
@pytest.mark.parametrize("start", [0, 85, 92, 97])
def test_tail_at_the_minimum_has_the_same_lrs_in_stock_transformers(start):
    assert same_lrs(wsd(100, num_decay_steps=10, num_min_steps=5, min_lr_ratio=0.1), steps=100, start=start)


@pytest.mark.parametrize(
    ("schedule", "start", "lack"),
    [
        (wsd(100, decay_type="square"), 0, "transformers has no square decay"),
        (wsd_s(cycle_ends=[50, 100]), 0, "transformers has no inverse decay"),
        (wsd_s(cycle_ends=[50, 100], decay_type="linear"), 0, r"has no 'stable at 1, 45 steps' at update 50"),
        (
            wsd_s(cycle_ends=[50, 100], num_rewarmup_steps=5, decay_type="linear"),
            50,
            r"has no 'warmup linear 0.1 -> 1, 5 steps' at update 50",
        ),
        (wsd_s(cycle_ends=[50, 100], cycle_peaks=[1, 0.5], decay_type="linear"), 60, r"has no 'stable at 0\.5"),
        (wsd(100, num_warmup_steps=10, warmup_start=0.3), 0, r"has no 'warmup linear 0\.3 -> 1, 10 steps' at update 0"),
        (cyclic_cosine(cycle_ends=[50, 100]), 0, r"at update 50"),
        (multi_step(100), 0, r"has no 'decay at 0\.316, 10 steps' at update 80"),
    ],
)
def test_schedule_that_transformers_lacks_is_refused_with_what_it_lacks(schedule, start, lack):
    with pytest.raises(ScheduleError, match=lack):
        stock_flags(schedule, last_step=100, start=start)


# --- `hf-wsd tree` ---


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    run = tmp_path_factory.mktemp("stock") / "trunk"
    return train_here(run, "--num_train_epochs", 9, *EVERY_UPDATE, *SAVES, launch=FAMILY)


@pytest.fixture(scope="module")
def decayed(tmp_path_factory):
    run = tmp_path_factory.mktemp("stock") / "decayed"
    return train_here(run, "--max_steps", 30, *EVERY_UPDATE, *SAVES, launch=DECAY)


def tree(capsys, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["hf-wsd", "tree", *map(str, words)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    return capsys.readouterr()


def test_tree_ends_with_the_flags_for_stock_transformers_as_talk(trunk, capsys, monkeypatch):
    _, talk = tree(capsys, monkeypatch, trunk)
    newest = trunk / "_fork-points" / "checkpoint-30"
    assert shlex.split(talk) == [
        *("without", "hf_wsd:", "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "5"),
        *("--max_steps", "30", "--resume_from_checkpoint", str(newest)),
    ]


def test_tree_as_json_has_the_flags_and_no_talk(trunk, capsys, monkeypatch):
    data, talk = tree(capsys, monkeypatch, trunk, "--json")
    assert (talk, json.loads(data)["without_hf_wsd"]["flags"][1]) == ("", "constant_with_warmup")


def test_tree_of_a_finished_run_says_that_its_model_loads_anywhere(decayed, capsys, monkeypatch):
    _, talk = tree(capsys, monkeypatch, decayed)
    assert talk.startswith("without hf_wsd: the run is finished: from_pretrained(")


def test_tree_says_in_one_line_why_transformers_cannot_go_on(trunk, tmp_path, capsys, monkeypatch):
    run = stopped_at(trunk, 15, tmp_path / "run")
    record = Lineage.read(run / "checkpoint-15")
    for checkpoint in run.glob("**/checkpoint-15"):
        replace(record, schedule=record.schedule.fork(15, decay_steps=5, shape="square")).write(checkpoint)
    _, talk = tree(capsys, monkeypatch, run)
    assert talk == "without hf_wsd: this run cannot go on: transformers has no square decay\n"


def test_branch_that_has_saved_nothing_has_no_checkpoint_to_resume(trunk, tmp_path):
    replace(Lineage.read(trunk / "checkpoint-15"), kind="planned").write(tmp_path)
    assert stock_resume(read_run(tmp_path)) == {}


# --- a process without hf_wsd ---

WITHOUT = """
import runpy, sys
sys.modules["hf_wsd"] = None  # an import is an ImportError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def stopped_at(run, step, copy):
    """The run as a kill after that step leaves it."""
    shutil.copytree(run, copy)
    for checkpoint in copy.glob("**/checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    rows = [row for row in (copy / "wsd.jsonl").read_text().splitlines() if json.loads(row)["step"] <= step]
    (copy / "wsd.jsonl").write_text("\n".join(rows) + "\n")
    return copy


def logged(run):
    """Loss and lr of every update, as Trainer logged them."""
    state = json.loads((run / "checkpoint-30" / "trainer_state.json").read_text())
    return [(row["step"], row["loss"], row["learning_rate"]) for row in state["log_history"] if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("trunk", 12), ("trunk", 15), ("decayed", 12), ("decayed", 24)])
def test_stock_transformers_resumes_with_the_flags_to_the_same_bits(name, step, tmp_path, request):
    run = stopped_at(request.getfixturevalue(name), step, tmp_path / "run")
    ours, resume = tmp_path / "ours", ("--resume_from_checkpoint", tmp_path / "ours" / f"checkpoint-{step}")
    shutil.copytree(run, ours)
    launch = FAMILY if name == "trunk" else DECAY
    length = ("--num_train_epochs", 9) if name == "trunk" else ("--max_steps", 30)
    train_here(ours, *length, *EVERY_UPDATE, *SAVES, *resume, launch=launch)

    flags = stock_resume(read_run(run))["flags"]
    command(["-c", WITHOUT, SCRIPT, "--output_dir", run, *OTHER_FLAGS, *flags])

    assert [row[0] for row in logged(run)] == list(range(1, 31))
    assert logged(run) == logged(ours)
    assert same_weights(run / "checkpoint-30", ours / "checkpoint-30")


GENERATE = """
import sys
sys.modules["hf_wsd"] = None
import torch
from transformers import GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained(sys.argv[1])
arguments = torch.load(sys.argv[1] + "/training_args.bin", weights_only=False)
print(arguments.lr_scheduler_type, *model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, min_new_tokens=5).shape)
"""


@pytest.mark.slow
def test_model_of_a_checkpoint_generates_where_hf_wsd_is_not_installed(decayed):
    result = command(["-c", GENERATE, decayed / "checkpoint-30"])
    assert result.stdout.split() == ["wsd", "1", "8"]
