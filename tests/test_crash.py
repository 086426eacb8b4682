"""Runs that are killed, damaged or out of room: hf_wsd/mending.py, damage.py, room.py and what they hold up.

KILLS=40 pytest tests/test_crash.py -k killed: a longer campaign; SEED=7 another one.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kills import Job, Kill, differences, repeat
from test_checkpoint import cut_short, make_checkpoint
from trainer_runs import FLAGS, ROOT, SCRIPT, same_weights, train_here

from hf_wsd.builders import wsd
from hf_wsd.checkpoint import FORK_POINTS, check_checkpoint, newest_whole
from hf_wsd.history import read_history
from hf_wsd.keeper import Keeper
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.lock import locked
from hf_wsd.mending import announce, finish_saves, make_way
from hf_wsd.room import why_no_room

KILLS, SEED = int(os.environ.get("KILLS", "10")), int(os.environ.get("SEED", "1"))
SAVES = ("--save_strategy", "steps", "--save_steps", 4, "--save_total_limit", 1)
TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1", "--block_size", 32, "--max_eval_blocks", 8),
    *("--per_device_train_batch_size", 4, "--warmup_steps", 4, "--use_cpu", "--logging_steps", 1, "--eval_steps", 10),
    *("--decay_fraction", "0.25", "--save_steps", 4, "--save_total_limit", 1),
)
RECORDED = Lineage(step=5, kind="fork", schedule=wsd(100), last_step=100, losses={"loss": 3.5})


# --- killed at any moment ---


def newest(run: Path) -> tuple[object, ...]:
    """What the user of a script types to resume."""
    found, _ = newest_whole(run)
    return () if found is None else ("--resume_from_checkpoint", found)


def script(run: Path) -> Job:
    flags = (*FLAGS, *SAVES, "--eval_steps", 10, "--logging_steps", 1, "--num_train_epochs", 9)
    argv = ("-m", "hf_wsd", "--trunk", "--budgets", 20, 40, "--decay-fraction", 0.25, SCRIPT, "--output_dir", run)
    return Job(argv=(*argv, *flags), run=run, resumes=newest)


def recipe(run: Path) -> Job:
    flags = (*TINY, "--disable_tqdm", "True", "--budgets", 24)
    return Job(argv=(ROOT / "recipes" / "pretrain.py", "--output_dir", run, *flags), run=run)


def loop(run: Path) -> Job:
    flags = (*TINY, "--trunk", "--budgets", 20, 40)
    return Job(argv=(ROOT / "recipes" / "pretrain_no_trainer.py", "--output_dir", run, *flags), run=run)


def random_kill(rng: random.Random, *, seconds: float, changes: int) -> Kill:
    by_time = rng.random() < 0.3
    return Kill(after=rng.uniform(0, seconds)) if by_time else Kill(before_change=rng.randint(1, changes))


@pytest.mark.slow
@pytest.mark.parametrize("job", [script, recipe, loop], ids=lambda job: job.__name__)
def test_command_killed_and_repeated_ends_as_if_it_had_not_been(job, tmp_path):
    changes = job(tmp_path / "whole").changes()
    begin = time.monotonic()
    job(tmp_path / "again").finished()
    seconds = time.monotonic() - begin
    assert differences(tmp_path / "whole", tmp_path / "again") == []
    rng, killed, runs = random.Random(SEED), 0, 0
    while killed < KILLS * 0.3:
        runs += 1
        run = tmp_path / f"run-{runs}"
        killed += repeat(job(run), (random_kill(rng, seconds=seconds, changes=changes) for _ in range(rng.randint(1, 3))))
        assert differences(tmp_path / "whole", run) == []
        shutil.rmtree(run)


@pytest.mark.slow
def test_decay_killed_with_its_branches_and_repeated_ends_as_if_it_had_not_been(tmp_path):
    run = tmp_path / "run"
    recipe_argv = (ROOT / "recipes" / "pretrain.py", "--output_dir", run, *TINY, "--disable_tqdm", "True")
    Job(argv=(*recipe_argv, "--trunk", "--budgets", 20), run=run).finished()
    trunk = Path(shutil.copytree(run, tmp_path / "trunk"))
    decay = Job(argv=("-m", "hf_wsd.cli", "decay", run), run=run)
    whole = Path(shutil.copytree(decay.finished(), tmp_path / "whole"))
    rng, killed = random.Random(SEED), 0
    windows = ("_saving", "checkpoint-*/trainer_state.json", "checkpoint-*/wsd.json", "_fork-points/.*", "config.json")
    while killed < KILLS * 0.1:
        shutil.rmtree(run)
        shutil.copytree(trunk, run)
        killed += repeat(decay, [Kill(when=f"_branches/*/{rng.choice(windows)}", after=rng.uniform(0, 0.02))])
        assert differences(whole, run) == []


# --- what a kill leaves ---


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_save_killed_before_its_record_gets_record_and_kept_copy(run):
    announce(run / "checkpoint-5", RECORDED)
    own = make_checkpoint(run, 5)
    finish_saves(run)
    assert Lineage.read(own) == Lineage.read(run / FORK_POINTS / own.name) == RECORDED
    assert sorted(path.name for path in run.iterdir()) == [FORK_POINTS, own.name]


def test_save_killed_over_an_older_one_leaves_the_older_one(run):
    own = make_checkpoint(run, 5)
    torch.save({"state": "older"}, own / "optimizer.pt")
    announce(own, RECORDED)
    make_way(own)
    cut_short(make_checkpoint(run, 5) / "optimizer.pt")
    finish_saves(run)
    assert torch.load(own / "optimizer.pt") == {"state": "older"}
    assert [path.name for path in run.iterdir()] == [own.name]


def test_save_that_is_whole_stays_where_its_older_one_was(run):
    make_way(make_checkpoint(run, 5))
    own = make_checkpoint(run, 5)
    announce(own, RECORDED)
    torch.save({"state": "newer"}, own / "optimizer.pt")
    finish_saves(run)
    assert torch.load(own / "optimizer.pt") == {"state": "newer"}
    assert sorted(path.name for path in run.iterdir()) == [FORK_POINTS, own.name]


def test_save_over_a_kept_checkpoint_does_not_write_through_its_links(run):
    keeper = Keeper(run, RECORDED, {5: "fork"})
    keeper.begin(0, tokens=None)
    for state in ("older", "newer"):
        assert keeper.make_ready(5)
        torch.save({"state": state}, make_checkpoint(run, 5) / "optimizer.pt")
        if state == "older":
            keeper.save(5)
    assert torch.load(run / FORK_POINTS / "checkpoint-5" / "optimizer.pt") == {"state": "older"}
    keeper.save(5)
    assert torch.load(run / FORK_POINTS / "checkpoint-5" / "optimizer.pt") == {"state": "newer"}


@pytest.mark.parametrize("script", [SCRIPT, "resumes itself"], ids=["named", "newest"])
def test_lost_record_is_written_again_with_its_losses(tmp_path, script):
    script = SCRIPT if script == SCRIPT else resumes_newest(tmp_path)
    flags = ("--save_strategy", "steps", "--save_steps", 4, "--eval_steps", 4)
    train_here(run := tmp_path / "run", "--max_steps", 12, *flags)
    for step in (8, 12):
        (run / f"checkpoint-{step}" / RECORD).rename(tmp_path / f"wsd-{step}.json")
    shutil.rmtree(run / "checkpoint-12")
    train_here(run, "--max_steps", 12, *flags, "--resume_from_checkpoint", run / "checkpoint-8", script=script)
    (tmp_path / "wsd-8.json").rename(tmp_path / RECORD)
    assert Lineage.read(run / "checkpoint-8").losses == Lineage.read(tmp_path).losses


# --- damaged ---


def resumes_newest(folder: Path) -> Path:
    """A script that leaves it to Trainer to find its newest checkpoint."""
    resumes = "resume_from_checkpoint=training_args.resume_from_checkpoint"
    assert resumes in SCRIPT.read_text()
    script = folder / "train_newest.py"
    script.write_text(SCRIPT.read_text().replace(resumes, "resume_from_checkpoint=True"))
    return script
