"""Other data from the fork point on: `--decay_dataset` of the recipes, arguments of a branch after `--`."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pretrain
import pretrain_no_trainer
import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from decay_data import DecayBlocks, DecayStream
from mixture import TRUNK, Batches, Mixture, Source, read_weights
from trainer_runs import ROOT, command, command_line, same_weights

from hf_wsd.errors import DataError, ResumeError, RunError
from hf_wsd.family import read_run

TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1", "--block_size", "32"),
    *("--max_eval_blocks", "8", "--per_device_train_batch_size", "4", "--warmup_steps", "4", "--use_cpu"),
    *("--decay_fraction", "0.25", "--logging_steps", "1", "--eval_steps", "7", "--save_steps", "6"),
)  # 128 tokens a step; a budget of 40 decays from step 30
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
    """Rows for the trunk, for three epochs, and for a decay that reads them several times."""
    for name, rows, text in (("rows", 90, "{0} and {1}. "), ("code", 12, "x{0} = {0} * {1}\n")):
        lines = (json.dumps({"text": text.format(n, n * n) * 9}) + "\n" for n in range(rows))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


def run_here(recipe, run, *flags, trunk="rows.jsonl"):
    """Run a recipe in this process."""
    data = ("--train_file", run.parent / trunk, "--validation_percent", 10)
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


@pytest.mark.parametrize("batches", [Batches(3, 1, 2), Batches(2, 2, 3), Batches(3, 2, 1, True), Batches(1, 1, 4, True)])
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


# --- in training ---


@BOTH
@pytest.mark.slow
def test_straight_run_equals_trunk_and_branch_and_the_killed_branch_bit_for_bit(files, recipe):
    trunk = run_here(recipe, files / "trunk", "--trunk", "--budgets", 40)
    straight = run_here(recipe, files / "straight", "--budgets", 40, *mixed(files))
    resume = ("--resume_from_checkpoint", trunk / "checkpoint-30")
    branch = run_here(recipe, files / "branch", "--budgets", 40, *mixed(files), *resume)
    for folder in branch.glob("**/checkpoint-40"):
        (folder / "optimizer.pt").write_bytes(b"torn")
        (folder / "optimizer.bin").write_bytes(b"torn")
    resumed = run_here(recipe, branch, "--budgets", 40, *mixed(files))
    fork = "_fork-points/checkpoint-30"
    assert same_weights(trunk / fork, straight / fork)
    assert same_weights(resumed / "checkpoint-40", straight / "checkpoint-40")
    plain = run_here(recipe, files / "plain", "--budgets", 40, *resume)
    assert not same_weights(plain / "checkpoint-40", straight / "checkpoint-40")
