"""Other data from the fork point on: `--decay_dataset` of the recipes, arguments of a branch after `--`."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pretrain
import pretrain_no_trainer
import pytest
import torch
import transformers
from accelerate.data_loader import SeedableRandomSampler
from accelerate.state import AcceleratorState, GradientState, PartialState
from blocks import DataArguments, load_documents, load_training_documents
from datasets import Dataset
from decay_data import DecayBlocks, DecayStream, with_decay_data
from mixture import TRUNK, Batches, Mixture, Source, read_weights
from packaging.version import Version
from trainer_runs import FAMILY, ROOT, command, command_line, same_weights, train

from hf_wsd.errors import DataError, ResumeError
from hf_wsd.family import read_run

TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1", "--block_size", "32"),
    *("--max_eval_blocks", "8", "--per_device_train_batch_size", "4", "--warmup_steps", "4", "--use_cpu"),
    *("--decay_fraction", "0.25", "--logging_steps", "1", "--eval_steps", "7", "--save_steps", "6"),
)  # 128 tokens a step; a budget of 40 decays from step 30
FORK = "_fork-points/checkpoint-30"
DECAY = ("-m", "hf_wsd.cli", "decay")
TWO_PROCESSES = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="before 5.18 transformers resumes no run of several processes on CPU: it loads the optimizer to cpu:0",
)
BOTH = pytest.mark.parametrize("recipe", [pretrain, pretrain_no_trainer], ids=lambda recipe: recipe.__name__)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


def write_files(folder):
    """Rows for the trunk: the decay starts in its second epoch and ends in its third. And for a decay."""
    for name, rows, text in (("rows", 30, "{0} and {1}. "), ("code", 12, "x{0} = {0} * {1}\n")):
        lines = (json.dumps({"text": text.format(n, n * n) * 9}) + "\n" for n in range(rows))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def run_here(recipe, run, *flags):
    """Run a recipe in this process."""
    data = ("--train_file", run.parent / "rows.jsonl", "--validation_percent", 10)
    with command_line(f"{recipe.__name__}.py", "--output_dir", run, *TINY, *data, *flags):
        recipe.main()
    return run


def mixed(folder):
    return ("--decay_dataset", f"{folder / 'code.jsonl'}=0.7", "trunk=0.3")


# --- which rows ---


def blocks(rows, first=0):
    return Dataset.from_dict({"input_ids": [[n] for n in range(first, first + rows)]}).with_format("torch")


def epochs(data, count):
    rows = []
    for epoch in range(count):
        data.set_epoch(epoch)
        rows.append(list(data.sampler))
    return rows


def own_order(rows, epoch):
    sampler = SeedableRandomSampler(range(rows), data_seed=42)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_trunk_part_has_the_order_of_accelerate_and_the_decay_starts_at_its_first_update():
    data = DecayBlocks(blocks(20), {"code": 1.0}, {"code": blocks(8, 100)}, begin=7, batches=Batches(4, 1, 1), seed=42)
    first, second, third = epochs(data, 3)  # 5 updates an epoch: the decay begins at the third update of the second
    assert (first, second[:8]) == (own_order(20, 0), own_order(20, 1)[:8])
    passes = [20 + row for nth in range(4) for row in own_order(8, nth)]
    assert second[8:] + third == passes


@pytest.mark.parametrize(
    "batches", [Batches(3, 1, 2), Batches(2, 2, 3), Batches(3, 2, 1, True), Batches(1, 1, 4, True)]
)
@pytest.mark.parametrize("begin", [1, 4, 9, 10])
def test_trunk_alone_as_decay_data_is_the_trunks_own_order(batches, begin):
    data = DecayBlocks(blocks(23), {TRUNK: 1.0}, {}, begin=begin, batches=batches, seed=42)
    used = batches.used(23)
    assert [rows[:used] for rows in epochs(data, 5)] == [own_order(23, epoch)[:used] for epoch in range(5)]


def test_mixture_has_its_weights_in_every_stretch_and_each_source_in_order():
    sources = [Source(offset=0, length=50, used=50), Source(offset=50, length=7, used=7)]
    rows = Mixture([7, 3], sources, seed=1).rows(np.arange(3000))
    assert {abs(int((rows[n : n + 20] < 50).sum()) - 14) <= 1 for n in range(2980)} == {True}
    assert set(np.unique(rows[rows < 50][:50], return_counts=True)[1]) == {1}  # a pass has each sample once


def test_stream_goes_over_to_the_mixture_and_its_trunk_part_goes_on():
    trunk = ({"input_ids": torch.tensor([n])} for n in range(10**6))
    mixture = {"code": 1.0, TRUNK: 1.0}
    data = DecayStream(trunk, mixture, {"code": blocks(4, 10**7)}, begin=2, batches=Batches(3, 1, 1), seed=42)
    read = [int(row["input_ids"]) for row in islice(data, 2006)]
    assert read[:6] == list(range(6))
    assert [n for n in read[6:] if n < 10**6] == list(range(6, 1006))
    assert len({*read[6:14]} - {*range(6, 10)}) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a.txt=0", "a weight is a number above 0"),
        ("a.txt=nan", "a weight is a number above 0"),
        ("a.txt=1 a.txt=2", "a.txt is there twice"),
        ("a.txt=1 b.txt=0.0001", "b.txt has less than a part in 1000"),
    ],
)
def test_weights_that_make_no_mixture_are_refused(words, message):
    with pytest.raises(DataError, match=message):
        read_weights(words.split())


@pytest.mark.parametrize(
    ("kind", "settings", "more", "message"),
    [
        ("wsd_s", {"HF_WSD_CYCLE_ENDS": "20 40"}, {}, "for one decay, but the line has 2"),
        ("cosine", {}, {}, "--lr_scheduler_type cosine: it is for wsd"),
        ("wsd", {"HF_WSD_FINISH_BY": "2030-01-01T08:00"}, {}, "with finish_by: a running job reads batches ahead"),
        ("wsd", {}, {"max_steps": -1}, "give --budgets, or --max_steps"),
        ("wsd", {}, {"ignore_data_skip": True}, "with --ignore_data_skip: nobody could tell"),
        ("wsd", {}, {"train_sampling_strategy": "sequential"}, "with --train_sampling_strategy: nobody"),
    ],
)
def test_run_that_could_not_go_over_to_other_data_is_refused(monkeypatch, kind, settings, more, message):
    for name, text in settings.items():
        monkeypatch.setenv(name, text)
    args = SimpleNamespace(**{"lr_scheduler_type": kind, "max_steps": 40, "warmup_steps": 4, "seed": 1} | more)
    with pytest.raises(DataError, match=message):
        with_decay_data(blocks(8), DataArguments(decay_dataset=["no.txt"]), args, None, Batches(1, 1, 1))


def test_trunk_reads_its_own_data(monkeypatch):
    monkeypatch.setenv("HF_WSD_TRUNK", "1")
    args, data = SimpleNamespace(lr_scheduler_type="wsd", max_steps=30), DataArguments(decay_dataset=["no.txt"])
    own = blocks(8)
    assert with_decay_data(own, data, args, None, Batches(1, 1, 1)) is own


def test_documents_held_out_of_the_trunk_are_in_no_decay_data(files):
    code = str(files / "code.jsonl")
    data = DataArguments(train_file=code, validation_percent=30)
    held_out = load_documents(data)["validation"]
    trained = load_training_documents(code, data)
    assert len(held_out) > 0
    assert {row["text"] for row in trained} | {row["text"] for row in held_out} == texts(code)
    assert len(trained) + len(held_out) == 12
    own_validation = replace(data, validation_file=code)
    assert {row["text"] for row in load_training_documents(code, own_validation)} == texts(code)


def texts(file):
    return {json.loads(line)["text"] for line in Path(file).read_text().splitlines()}


# --- in training ---


@BOTH
@pytest.mark.slow
def test_straight_run_equals_trunk_and_branch_and_the_killed_branch_bit_for_bit(files, recipe):
    trunk = run_here(recipe, files / "trunk", "--trunk", "--budgets", 40)
    straight = run_here(recipe, files / "straight", "--budgets", 40, *mixed(files))
    resume = ("--resume_from_checkpoint", trunk / "checkpoint-30")
    branch = run_here(recipe, files / "branch", "--budgets", 40, *mixed(files), *resume)
    assert same_weights(trunk / FORK, straight / FORK)
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")
    cut_back(branch)
    run_here(recipe, branch, "--budgets", 40, *mixed(files))
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")
    plain = run_here(recipe, files / "plain", "--budgets", 40, *resume)
    assert not same_weights(plain / "checkpoint-40", straight / "checkpoint-40")


def cut_back(run):
    """As a kill in mid-decay leaves it: the newest checkpoint is that of step 36."""
    for folder in (run, run / "_fork-points"):
        shutil.rmtree(folder / "checkpoint-40")
    shutil.rmtree(run / "checkpoint-42", ignore_errors=True)


@pytest.mark.slow
def test_family_in_one_process_decays_on_it_too(files):
    run = run_here(pretrain, files / "run", "--budgets", 20, 40, *mixed(files))
    straight = run_here(pretrain, files / "straight", "--budgets", 40, *mixed(files))
    branch = run / "_branches" / "30-1-sqrt-10"
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")
    assert read_run(branch).changed == "code.jsonl 70 %, trunk 30 %"


@pytest.mark.slow
def test_trunk_that_is_a_stream_goes_over_too(files):
    stream = ("--streaming", "--budgets", 40)
    trunk = run_here(pretrain, files / "trunk", *stream, "--trunk")
    straight = run_here(pretrain, files / "straight", *stream, *mixed(files))
    resume = ("--resume_from_checkpoint", trunk / "checkpoint-30")
    branch = run_here(pretrain, files / "branch", *stream, *mixed(files), *resume)
    cut_back(branch)
    run_here(pretrain, branch, *stream, *mixed(files))
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")


@pytest.mark.slow
def test_decay_that_was_begun_goes_on_with_its_own_data_alone(files):
    run = run_here(pretrain, files / "run", "--budgets", 40, *mixed(files))
    cut_back(run)
    with pytest.raises(
        ResumeError, match=r"the decay was begun with .*code.jsonl.*, this run asks for the trunk's data"
    ):
        run_here(pretrain, run, "--budgets", 40)


@pytest.mark.slow
@TWO_PROCESSES
def test_branch_of_two_processes_equals_the_straight_run_also_after_a_kill(files):
    run = train_two(files / "run", "--trunk", "--budgets", 40)
    straight = train_two(files / "straight", "--budgets", 40, *mixed(files))
    command([*DECAY, run, "--", *mixed(files)])
    branch = run / "_branches" / "30-1-sqrt-10-code.jsonl-0.7-trunk-0.3"
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")
    cut_back(branch)
    command([*DECAY, run, "--", *mixed(files)])
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")
    assert read_run(branch).latest.arguments == mixed(files)


def train_two(run, *flags):
    argv = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, ROOT / "recipes" / "pretrain.py"]
    data = ("--train_file", run.parent / "rows.jsonl", "--validation_percent", 10)
    argv += ["--output_dir", run, *TINY, "--per_device_train_batch_size", 2, *data, *flags]
    command(argv, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    return run


@pytest.mark.slow
def test_script_that_nobody_edited_gets_other_data_by_its_own_flags_and_on_the_users_word(tmp_path):
    run = train(tmp_path / "run", "--num_train_epochs", 9, launch=FAMILY)
    other = ("--budgets", 20, "--", "--blocks", 48)
    refused = command([*DECAY, run, *other], check=False)
    assert re.search(r"data 64-\w+ -> 48-\w+\n.*--allow data", refused.stderr)
    command([*DECAY, run, "--allow", "data", *other])
    (branch,) = read_run(run).branches
    assert (branch.path.name, branch.finished, branch.changed) == ("15-1-sqrt-5-48", True, "--blocks 48")
