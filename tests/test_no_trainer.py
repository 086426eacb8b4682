"""Scripts without a Trainer through the launcher: the schedule by updates, records, fork points, branches."""

from __future__ import annotations

import argparse
import os
import re
import runpy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from reference import wsd
from trainer_runs import ROOT, command, command_line
from transformers import SchedulerType

import hf_wsd
import hf_wsd.__main__ as launcher
from hf_wsd import WSDCallback, no_trainer
from hf_wsd.checkpoint import check_checkpoint
from hf_wsd.errors import CheckpointError
from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage
from hf_wsd.script_scheduler import ScriptScheduler
from hf_wsd.tree import stock_resume

SCRIPT = ROOT / "tests" / "downstream" / "train_no_trainer.py"
PEAK = 1e-2
FLAGS = ("--lr_scheduler_type", "wsd", "--num_warmup_steps", "5", "--max_train_steps", "20", "--seed", "0")
LAUNCH = ("--decay-fraction", "0.25")
TRUNK = ("--trunk", "--budgets", "20", *LAUNCH)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)


def straight_lrs(steps, decay, begin=0):
    """The lr of every update of a straight run, from update `begin` on, by the oracle."""
    shapes = {"decay_type": "1-sqrt", "warmup_type": "linear", "min_lr_ratio": 0.0}
    multipliers = wsd(steps, num_warmup_steps=5, num_decay_steps=decay, **shapes)
    return pytest.approx([PEAK * multiplier for multiplier in multipliers[begin:]], rel=1e-14)


LRS = straight_lrs(20, 5)


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """What a new process has: no Trainer yet, no Accelerator."""
    monkeypatch.setattr(WSDCallback, "trainers", 0)
    monkeypatch.setattr(ScriptScheduler, "made", False)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def run_here(run, *flags, launch=LAUNCH, script=SCRIPT):
    """Run the script through the launcher in this process."""
    with command_line("hf_wsd", *launch, script, "--output_dir", run, *FLAGS, *flags):
        os.environ["ACCELERATE_USE_CPU"] = "true"
        launcher.main()
    return run


def printed_lrs(text):
    """The lr of every update, as the script printed it."""
    return [float(lr) for lr in re.findall(r"^step \d+ .* lr (\S+)$", text, re.MULTILINE)]


# --- the schedule ---


@pytest.mark.parametrize("accumulation", [1, 3])
def test_lr_of_every_update_is_the_schedules(tmp_path, capsys, accumulation):
    run_here(tmp_path / "run", "--gradient_accumulation_steps", accumulation)
    assert printed_lrs(capsys.readouterr().out) == LRS


def test_resume_goes_on_with_the_lrs_of_the_schedule(tmp_path, capsys):
    run_here(tmp_path / "run", "--checkpointing_steps", 6)
    capsys.readouterr()
    run_here(tmp_path / "run", "--resume_from_checkpoint", tmp_path / "run" / "step_12")
    assert printed_lrs(capsys.readouterr().out) == straight_lrs(20, 5, begin=12)


def test_skipped_fp16_update_does_not_shift_the_schedule():
    hf_wsd.register()
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    optimizer, scheduler = accelerator.prepare(optimizer, hf_wsd.get_scheduler("wsd", optimizer, 0, 100))
    optimizer.step()
    scheduler.step()
    optimizer._is_overflow = True  # what accelerate's optimizer notes when the GradScaler has skipped the step
    scheduler.step()
    assert scheduler.scheduler.steps_done == 2


def test_schedule_is_the_same_through_the_other_door(tmp_path, capsys):
    with command_line(SCRIPT, "--output_dir", tmp_path / "run", *FLAGS):
        os.environ["ACCELERATE_USE_CPU"] = "true"
        hf_wsd.register(decay_fraction=0.25)
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert printed_lrs(capsys.readouterr().out) == LRS


# --- records and checkpoints ---


@pytest.fixture
def trunk(tmp_path):
    return run_here(tmp_path / "run", "--checkpointing_steps", "6", launch=TRUNK)


def test_saved_state_has_its_record(trunk):
    record = Lineage.read(trunk / "step_6")
    assert (record.step, record.kind, record.tokens, record.calls_per_update) == (6, "periodic", 6 * 64, 1)
    assert record.command.length_flag == "max_train_steps"


def test_fork_point_of_a_budget_is_saved_and_kept(trunk):
    kinds = {step: record.kind for step, record in read_run(trunk).records.items() if record.kind != "periodic"}
    assert kinds == {15: "fork", 20: "end"}
    assert check_checkpoint(trunk / "_fork-points" / "step_15") == 15


def test_tree_has_no_flags_of_a_trainer_for_it(trunk):
    assert stock_resume(read_run(trunk)) == {}


@pytest.mark.parametrize("file", ["optimizer.bin", "scheduler.bin", "random_states_0.pkl", "model.safetensors"])
def test_torn_state_is_found_damaged(trunk, file):
    torn = trunk / "step_6" / file
    torn.write_bytes(torn.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=re.escape(file)):
        check_checkpoint(trunk / "step_6")


def test_state_saved_at_the_end_of_an_epoch_has_its_record_too(tmp_path):
    run = run_here(tmp_path / "run", "--checkpointing_steps", "epoch")
    assert Lineage.read(run / "epoch_0").step == check_checkpoint(run / "epoch_0") == 16


# --- refusals ---


@pytest.mark.parametrize(
    ("flags", "launch", "message"),
    [
        (("--num_warmup_steps", 18), LAUNCH, r"--max_train_steps.*--num_warmup_steps"),
        ((), ("--trunk", "--budgets", 40), r"--max_train_steps 36"),
        (
            ("--lr_scheduler_type", "cosine"),
            LAUNCH,
            "decay_fraction would be ignored: the script's scheduler is cosine",
        ),
        ((), ("--calls-per-update", 2), "a warm-up of 5 steps, no multiple of 2"),
    ],
)
def test_refusal_comes_before_the_first_update_in_the_scripts_own_words(tmp_path, capsys, flags, launch, message):
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        run_here(tmp_path / "run", *flags, launch=launch)
    assert printed_lrs(capsys.readouterr().out) == []


def test_run_in_a_folder_that_holds_one_is_refused(trunk):
    with pytest.raises(SystemExit, match=r"holds a run already .* --resume_from_checkpoint \S+step_20"):
        run_here(trunk, launch=TRUNK)


def test_another_past_is_refused(trunk, tmp_path):
    resume = ("--resume_from_checkpoint", trunk / "step_12", "--num_warmup_steps", 6)
    with pytest.raises(SystemExit, match="warmup"):
        run_here(tmp_path / "other", *resume)


# --- what is left alone ---


def test_scripts_own_names_are_offered_with_ours():
    hf_wsd.register()
    action = argparse.ArgumentParser().add_argument("--s", type=SchedulerType, choices=["linear", "cosine"])
    assert action.choices == ["linear", "cosine", *hf_wsd.settings.NAMES]


@pytest.mark.parametrize("choices", [["linear", "quadratic"], ["linear"], ["a", "b"], [1, 2], None])
def test_other_choices_are_left_alone(choices):
    hf_wsd.register()
    assert argparse.ArgumentParser().add_argument("--s", choices=choices).choices == choices


def test_another_scheduler_is_prepared_as_ever(tmp_path):
    hf_wsd.register()
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    optimizer, scheduler = accelerator.prepare(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
    accelerator.save_state(str(tmp_path / "state"))
    assert scheduler.optimizers == [optimizer]
    assert not (tmp_path / "state" / "wsd.json").exists()


def test_registering_twice_wraps_once():
    hf_wsd.register()
    before = Accelerator.prepare, Accelerator.save_state, argparse.ArgumentParser.parse_known_args
    no_trainer.adapt_scripts()
    assert (Accelerator.prepare, Accelerator.save_state, argparse.ArgumentParser.parse_known_args) == before


# --- processes ---


def torchrun(run, *flags, launch, script=SCRIPT, check=True):
    argv = [*TORCHRUN, "-m", "hf_wsd", *launch, script, "--output_dir", run, *FLAGS, *flags]
    return command(argv, check=check, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
def test_on_two_processes_trunk_and_branch_have_the_lrs_of_a_straight_run(tmp_path, accumulation):
    flags = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", accumulation)
    torchrun(tmp_path / "run", *flags, launch=TRUNK)
    command(["-m", "hf_wsd.cli", "decay", tmp_path / "run"])
    straight = torchrun(tmp_path / "straight", *flags, launch=LAUNCH)
    branch = read_run(tmp_path / "run").branches[0]
    assert printed_lrs(straight.stdout) == LRS
    assert printed_lrs((branch.path / "run.log").read_text()) == straight_lrs(20, 5, begin=15)
    assert (branch.latest.calls_per_update, branch.latest.setup["world_size"], branch.finished) == (2, 2, True)


@pytest.mark.slow
def test_run_counted_in_epochs_has_the_same_schedule_on_two_processes(tmp_path):
    epochs = [flag for flag in FLAGS if flag not in ("--max_train_steps", "20")]
    argv = [*TORCHRUN, "-m", "hf_wsd", *LAUNCH, SCRIPT, *epochs, "--num_train_epochs", 2, "--output_dir", tmp_path]
    result = command(argv, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert printed_lrs(result.stdout) == straight_lrs(16, 4)


@pytest.mark.slow
def test_script_that_keeps_its_scheduler_to_itself_must_say_what_it_counts(tmp_path):
    script = tmp_path / "train_unprepared.py"
    text = SCRIPT.read_text()
    for old, new in UNPREPARED.items():
        assert old in text
        text = text.replace(old, new)
    script.write_text(text)
    refused = torchrun(tmp_path / "refused", launch=LAUNCH, script=script, check=False)
    assert "--calls-per-update 1" in refused.stderr
    assert printed_lrs(refused.stdout) == []
    told = torchrun(tmp_path / "told", launch=(*LAUNCH, "--calls-per-update", 1), script=script)
    assert printed_lrs(told.stdout) == LRS


UNPREPARED = {
    "model, optimizer, train_dataloader, lr_scheduler = ": "model, optimizer, train_dataloader = ",
    "optimizer, train_dataloader, lr_scheduler\n": "optimizer, train_dataloader\n",
    " * accelerator.num_processes,\n": ",\n",
    "lr_scheduler.step()": "lr_scheduler.step() if accelerator.sync_gradients else None",
}
