"""Checkpoints of stock transformers that get a record: hf_wsd/adopting.py and hf_wsd/foreign.py."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from trainer_runs import FLAGS, SCRIPT, command, command_line, same_weights, train_here

from hf_wsd.adopting import adopt
from hf_wsd.builders import wsd
from hf_wsd.errors import CheckpointError, ForkError, ResumeError, RunError, ScheduleError, SettingsError
from hf_wsd.family import read_run
from hf_wsd.foreign import derive_schedule, read_arguments, read_foreign
from hf_wsd.lineage import Lineage

STOCK = FLAGS[2:]  # without --lr_scheduler_type wsd
SAVES = ("--save_strategy", "steps", "--save_steps", 5, "--logging_steps", 1)
CONSTANT = ("--lr_scheduler_type", "constant_with_warmup", "--max_steps", 15)
DECAYING = ("--lr_scheduler_type", "warmup_stable_decay", "--max_steps", 15)


def train_stock(run, *flags):
    """Run the script as it is, without hf_wsd."""
    with command_line(SCRIPT, "--output_dir", run, *STOCK, *SAVES, *flags):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return run


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Fifteen updates of stock transformers at a constant lr after a warm-up of five."""
    return train_stock(tmp_path_factory.mktemp("stock") / "run", *CONSTANT)


@pytest.fixture
def copy(stock, tmp_path):
    return Path(shutil.copytree(stock, tmp_path / "run"))


# --- what it is good for ---


@pytest.mark.slow
def test_decay_from_an_adopted_checkpoint_is_that_of_a_straight_run_bit_for_bit(tmp_path):
    run, new, cli = tmp_path / "run", tmp_path / "new", ["-m", "hf_wsd.cli"]
    command([SCRIPT, "--output_dir", run, *STOCK, *SAVES, *CONSTANT])
    words = ["--", "python", "-m", "hf_wsd", "--trunk", SCRIPT, "--output_dir", run, *FLAGS]
    command([*cli, "adopt", run / "checkpoint-10", "--into", new, *words])
    command([*cli, "decay", new, "--at", 10, "--decay-steps", 5])
    straight = train_here(tmp_path / "straight", "--max_steps", 15, launch=("--num-decay-steps", 5))
    (branch,) = read_run(new).branches
    assert (branch.finished, branch.latest.parent.step) == (True, 10)
    assert same_weights(branch.path / "checkpoint-15", straight / "checkpoint-15")


@pytest.mark.slow
def test_trunk_goes_on_from_an_adopted_checkpoint_as_if_it_had_always_been_ours(copy, tmp_path):
    adopt(copy / "checkpoint-10", into=tmp_path / "new")
    resume = ("--resume_from_checkpoint", tmp_path / "new" / "checkpoint-10")
    run = train_here(tmp_path / "new", "--max_steps", 20, *resume, launch=("--trunk",))
    straight = train_here(tmp_path / "straight", "--max_steps", 20, launch=("--trunk",))
    assert same_weights(run / "checkpoint-20", straight / "checkpoint-20")
    assert read_run(run).latest.intent == "adopt"


# --- the record ---


def test_adopted_checkpoint_has_a_record_and_leaves_the_old_one_as_it_was(copy, tmp_path, capsys):
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    adopt(copy / "checkpoint-10", into=tmp_path / "new", tokens_per_step=64)
    assert before == {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    new = tmp_path / "new" / "checkpoint-10"
    links = {file.name for file in (copy / "checkpoint-10").iterdir() if file.samefile(new / file.name)}
    assert {file.name for file in new.iterdir()} - links == {"scheduler.pt", "wsd.json"}
    record = Lineage.read(new)
    assert (record.schedule, record.peak_lrs) == (wsd(num_warmup_steps=5, num_decay_steps=0), (1e-2, 1e-2))
    assert (record.parent.checkpoint, record.tokens_at(20)) == ("../run/checkpoint-10", 1280)
    assert record.setup["per_device_train_batch_size"] == 4
    assert torch.load(new / "scheduler.pt")["optimizer_settings"][0]["betas"] == [0.9, 0.999]
    assert [row["step"] for row in read_run(tmp_path / "new").history] == list(range(1, 11))
    assert "not known: the training data" in capsys.readouterr().err


def test_default_place_is_beside_the_old_run(copy):
    adopt(copy / "checkpoint-10")
    adopt(copy / "checkpoint-15")
    assert sorted(read_run(copy.with_name("run-wsd")).records) == [10, 15]


@pytest.mark.slow
def test_stable_phase_of_transformers_own_wsd_is_told_by_its_arguments(tmp_path):
    kwargs = json.dumps({"num_decay_steps": 4, "decay_type": "1-sqrt", "min_lr_ratio": 0.1})
    run = train_stock(tmp_path / "run", *DECAYING, "--lr_scheduler_kwargs", kwargs)
    adopt(run / "checkpoint-10")
    expected = wsd(15, num_warmup_steps=5, num_decay_steps=4, min_lr_ratio=0.1)
    assert Lineage.read(run.with_name("run-wsd") / "checkpoint-10").schedule == expected
    with pytest.raises(ForkError, match=r"checkpoint-15 is in the decay of .*, which starts at step 11"):
        adopt(run / "checkpoint-15")


# --- refused ---


def test_schedule_that_the_logged_lrs_deny_is_refused_with_the_first_difference(stock):
    with pytest.raises(
        ResumeError, match=r"at step 2 the logged lr is 0.002, that of the schedule 0.0025 \(peak lr 0.01\)"
    ):
        adopt(stock / "checkpoint-10", schedule="wsd(num_warmup_steps=4, num_decay_steps=0)")


def test_lr_of_the_next_update_is_checked_where_none_was_logged(copy):
    state = json.loads((copy / "checkpoint-10" / "trainer_state.json").read_text())
    (copy / "checkpoint-10" / "trainer_state.json").write_text(json.dumps(state | {"log_history": []}))
    with pytest.raises(ResumeError, match=r"lr of its next update is 1 of the peak lr, that of the schedule 0\.5"):
        adopt(copy / "checkpoint-10", schedule="wsd(num_warmup_steps=20, num_decay_steps=0)")


def test_logged_lr_may_be_that_of_the_next_update_as_before_transformers_5(copy):
    file = copy / "checkpoint-10" / "trainer_state.json"
    state, schedule = json.loads(file.read_text()), wsd(num_warmup_steps=5, num_decay_steps=0)
    for row in state["log_history"]:
        row["learning_rate"] = 1e-2 * schedule(row["step"])
    file.write_text(json.dumps(state))
    read_foreign(copy / "checkpoint-10").check(schedule)


def test_updates_that_fp16_skipped_hold_the_schedule_back(copy):
    file = copy / "checkpoint-10" / "scheduler.pt"
    torch.save(torch.load(file) | {"last_epoch": 8}, file)
    foreign, schedule = read_foreign(copy / "checkpoint-10"), wsd(num_warmup_steps=5, num_decay_steps=0)
    foreign.state["log_history"][:] = [
        {"step": s, "learning_rate": 1e-2 * schedule(max(s - 3, 0))} for s in range(1, 11)
    ]
    foreign.check(schedule)
    assert foreign.skipped == 2


def test_weights_alone_are_refused_with_what_they_are_good_for(copy):
    (copy / "checkpoint-10" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer state is lost.*--model_name_or_path .*checkpoint-10"):
        adopt(copy / "checkpoint-10")


def test_schedule_without_a_stable_phase_is_refused_with_the_repair(stock):
    foreign = read_foreign(stock / "checkpoint-10")
    foreign.arguments["lr_scheduler_type"] = "cosine"
    with pytest.raises(ScheduleError, match=r"its --lr_scheduler_type was cosine. If its lr was constant.*--schedule"):
        derive_schedule(foreign)


def test_run_of_another_schedule_is_no_place_for_it(copy):
    adopt(copy / "checkpoint-10")
    folder = copy.with_name("run-wsd")
    with pytest.raises(RunError, match="has a checkpoint at step 10 already"):
        adopt(copy / "checkpoint-10", into=folder)
    for part in ("checkpoint-10", "_fork-points/checkpoint-10"):
        other = Lineage.read(folder / part).to_dict() | {"schedule": wsd(99).to_dict()}
        Lineage.from_dict(other).write(folder / part)
    with pytest.raises(RunError, match="is another run"):
        adopt(copy / "checkpoint-15", into=folder)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["accelerate", "launch", "train.py"], RunError, "is not what one process runs"),
        (
            ["python", "train.py", "--lr_scheduler_type", "constant"],
            SettingsError,
            "--lr_scheduler_type wsd, not constant",
        ),
    ],
)
def test_command_that_would_not_train_with_ours_is_refused(stock, words, error, message, tmp_path):
    with pytest.raises(error, match=message):
        adopt(stock / "checkpoint-10", words, into=tmp_path / "new")


# --- reading ---


class Evil:
    """Whose pickle would run code."""

    def __reduce__(self):
        return Path.touch, (Path("evil"),)


def test_arguments_are_read_without_running_or_importing_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Arguments:  # as a script's own, which no other process can import
        pass

    arguments = Arguments()
    arguments.__dict__ |= {"seed": 7, "evil": Evil(), "lr_scheduler_type": torch.device("cpu")}
    Arguments.__qualname__, Arguments.__module__ = "Arguments", __name__
    globals()["Arguments"] = Arguments
    torch.save(arguments, tmp_path / "training_args.bin")
    del globals()["Arguments"]
    assert read_arguments(tmp_path / "training_args.bin")["seed"] == 7
    assert not (tmp_path / "evil").exists()
