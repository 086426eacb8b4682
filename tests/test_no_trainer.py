"""Scripts without a Trainer through the launcher: the schedule by updates, records, fork points, branches."""

from __future__ import annotations

import argparse
import copy
import os
import pickle
import re
import runpy
import signal

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from reference import wsd
from trainer_runs import ROOT, command, command_line
from transformers import SchedulerType, get_scheduler

import hf_wsd
import hf_wsd.__main__ as launcher
from hf_wsd import WSDCallback, no_trainer
from hf_wsd.checkpoint import check_checkpoint
from hf_wsd.errors import CheckpointError, RunError
from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage
from hf_wsd.loop import WSDLoop
from hf_wsd.script_scheduler import ARGUMENTS, ScriptScheduler
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
    ARGUMENTS.remember(argparse.Namespace())
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


def test_save_of_the_script_does_not_write_through_the_links_of_a_kept_checkpoint(tmp_path):
    run = run_here(tmp_path / "run", "--checkpointing_steps", 15)  # where the decay begins
    own, kept = run / "step_15", run / "_fork-points" / "step_15"
    assert check_checkpoint(own) == check_checkpoint(kept) == 15
    assert not (own / "optimizer.bin").samefile(kept / "optimizer.bin")


@pytest.mark.slow
def test_new_learning_rate_at_a_resume_is_refused_with_all_else_or_trained_with_at_once(tmp_path, capsys):
    saved = run_here(tmp_path / "run", "--checkpointing_steps", 6) / "step_12"
    capsys.readouterr()
    changes = ("--learning_rate", 2 * PEAK, "--seed", 1, "--resume_from_checkpoint", saved)
    with pytest.raises(
        SystemExit, match=r"learning_rate 0\.01 -> 0\.02\n  seed 0 -> 1\n.* --allow learning_rate seed "
    ):
        run_here(tmp_path / "refused", *changes)
    assert printed_lrs(capsys.readouterr().out) == []
    run = run_here(tmp_path / "allowed", *changes, launch=(*LAUNCH, "--allow", "learning_rate", "seed"))
    assert printed_lrs(capsys.readouterr().out) == [2 * lr for lr in straight_lrs(20, 5, begin=12).expected]
    assert read_run(run).latest.sameness["allowed"] == ["learning_rate", "seed"]


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
    return run_here(tmp_path / "run", "--checkpointing_steps", "6", launch=(*TRUNK, "--keep-every", "512tokens"))


def test_saved_state_has_its_record(trunk):
    record = Lineage.read(trunk / "step_6")
    assert (record.step, record.kind, record.tokens, record.calls_per_update) == (6, "periodic", 6 * 64, 1)
    assert record.command.length_flag == "max_train_steps"


def test_fork_point_of_a_budget_and_every_so_many_steps_are_saved_and_kept(trunk):
    kinds = {step: record.kind for step, record in read_run(trunk).records.items() if record.kind != "periodic"}
    assert kinds == {8: "kept", 15: "fork", 16: "kept", 20: "end"}
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


UNPREPARED = {
    "model, optimizer, train_dataloader, lr_scheduler = ": "model, optimizer, train_dataloader = ",
    "optimizer, train_dataloader, lr_scheduler\n": "optimizer, train_dataloader\n",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (UNPREPARED, "does not hand its scheduler to accelerator.prepare"),
        ({"args = parse_args()\n": "args = parse_args()\n    args.output_dir = None\n"}, "has no --output_dir"),
    ],
)
def test_fork_points_that_nobody_could_save_are_refused(tmp_path, capsys, changes, said):
    script = changed(tmp_path, changes)
    needs = "trunk and budgets and keep_every need checkpoints with records"
    with pytest.raises(SystemExit, match=f"{needs}, but the script {said}"):
        run_here(tmp_path / "run", launch=(*TRUNK, "--keep-every", 5), script=script)
    assert printed_lrs(capsys.readouterr().out) == []


def changed(folder, changes):
    """The script with other lines."""
    text = SCRIPT.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "train_changed.py").write_text(text)
    return folder / "train_changed.py"


# --- scripts of other habits ---


def test_settings_in_the_scripts_own_kwargs_place_its_fork_points(tmp_path):
    kwargs = {"optimizer=optimizer,": "optimizer=optimizer, scheduler_specific_kwargs={'decay_fraction': 0.5},"}
    run = run_here(tmp_path / "run", launch=("--trunk", "--budgets", 20), script=changed(tmp_path, kwargs))
    assert sorted(path.name for path in (run / "_fork-points").iterdir()) == ["step_10", "step_20"]


def test_checkpoints_follow_an_output_dir_that_the_script_changes(tmp_path):
    line = "args = parse_args()\n"
    script = changed(tmp_path, {line: f"{line}    args.output_dir += '/sub'\n"})
    run = run_here(tmp_path / "run", launch=TRUNK, script=script)
    assert set(read_run(run / "sub").records) == {15, 20}


def test_accumulation_by_hand_counts_its_tokens(tmp_path):
    by_hand = "Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)"
    script = changed(tmp_path, {by_hand: "Accelerator()"})  # the typed flag says how many passes an update has
    run = run_here(tmp_path / "run", "--gradient_accumulation_steps", 2, script=script)
    assert read_run(run).latest.tokens_per_step == 2 * 64


def test_run_past_the_schedule_is_told_and_not_stopped(tmp_path, capsys, caplog):
    script = changed(tmp_path, {"if completed_steps >= args.max_train_steps": "if completed_steps >= 22"})
    script.write_text(script.read_text().replace("math.ceil(args.max_train_steps /", "math.ceil(22 /"))
    run_here(tmp_path / "run", script=script)
    assert printed_lrs(capsys.readouterr().out)[20:] == [0.0, 0.0]


def test_save_that_the_script_did_not_ask_for_cannot_stop_it(tmp_path, capsys):
    lost = "    for epoch in range(starting_epoch, args.num_train_epochs):\n"
    file = (
        "    os.makedirs(args.output_dir)\n    open(f'{args.output_dir}/step_15', 'w').close()\n"  # in the fork's place
    )
    run_here(tmp_path / "run", launch=TRUNK, script=changed(tmp_path, {lost: file + lost}))
    assert len(printed_lrs(capsys.readouterr().out)) == 20


def prepare(*more, totals=20, **options):
    """A prepared optimizer and one of transformers' own `get_scheduler`."""
    hf_wsd.register()
    accelerator = Accelerator(cpu=True, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler("wsd", optimizer, 0, totals)
    return (accelerator, *accelerator.prepare(optimizer, scheduler))


def test_other_hooks_of_the_optimizer_go_on_working():
    _, optimizer, scheduler = prepare()
    seen = []
    optimizer.optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    optimizer.step()
    scheduler.step()
    assert (seen, scheduler.scheduler.steps_done) == ([1], 1)


def test_second_scheduler_made_to_draw_the_curve_changes_nothing():
    _, optimizer, scheduler = prepare()
    drawn = get_scheduler("wsd", optimizer.optimizer, 0, 20)
    optimizer.step()
    scheduler.step()
    assert (drawn.loop, scheduler.scheduler.steps_done) == (None, 1)


def test_step_for_nothing_while_a_state_is_loaded_begins_no_run(tmp_path):
    """As torch makes FSDP's optimizer do; the run begins, and is refused here, with the first true update."""
    accelerator, optimizer, _ = prepare()
    hf_wsd.register(trunk=True)
    accelerator.save_state(str(tmp_path))
    accelerator.register_load_state_pre_hook(lambda models, folder: optimizer.optimizer.step())
    accelerator.load_state(str(tmp_path))
    with pytest.raises(RunError, match="has no --output_dir"):
        optimizer.step()


def test_copies_of_the_scheduler_look_after_no_run():
    _, _, scheduler = prepare()
    for copied in (copy.deepcopy(scheduler.scheduler), pickle.loads(pickle.dumps(scheduler.scheduler))):
        assert (copied.accelerator, copied.loop, copied.schedule) == (None, None, scheduler.scheduler.schedule)


def test_scheduler_begins_at_the_step_it_is_told():
    hf_wsd.register()
    Accelerator(cpu=True)
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "initial_lr": PEAK}], lr=PEAK)
    made = get_scheduler("wsd", optimizer, 5, 20, scheduler_specific_kwargs={"last_epoch": 17})
    assert made.steps_done == 18


def test_totals_that_the_typed_length_does_not_divide_are_refused(tmp_path):
    script = changed(tmp_path, {"args.max_train_steps * accelerator.num_processes": "args.max_train_steps + 1"})
    with pytest.raises(SystemExit, match=r"asked for --max_train_steps 20 but gives its scheduler 21 steps"):
        run_here(tmp_path / "run", script=script)


# --- what is left alone ---


def test_scripts_own_names_are_offered_with_ours():
    hf_wsd.register()
    action = argparse.ArgumentParser().add_argument("--s", type=SchedulerType, choices=["linear", "cosine"])
    assert action.choices == ["linear", "cosine", *hf_wsd.by_name.NAMES]


OTHERS = [["linear", "quadratic"], ["linear"], ["a", "b"], [1, 2], [{"a": 1}], range(10**12), None]


@pytest.mark.parametrize("choices", OTHERS, ids=str)
def test_other_choices_are_left_alone(choices):
    hf_wsd.register()
    assert argparse.ArgumentParser().add_argument("--scheduler", metavar="S", choices=choices).choices is choices


def test_same_names_for_something_else_are_left_alone():
    hf_wsd.register()
    action = argparse.ArgumentParser().add_argument("--beta_schedule", choices=["linear", "cosine"])
    assert action.choices == ["linear", "cosine"]


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
@pytest.mark.parametrize("habit", ["keeps its scheduler to itself", "saves on one process", "splits batches"])
def test_on_two_processes_every_habit_has_the_lrs_of_the_schedule(tmp_path, habit):
    script = changed(tmp_path, HABITS[habit])
    result = torchrun(tmp_path / "run", "--checkpointing_steps", "6", launch=LAUNCH, script=script)
    assert printed_lrs(result.stdout) == LRS


HABITS = {
    "keeps its scheduler to itself": UNPREPARED
    | {
        " * accelerator.num_processes,\n": ",\n",
        "lr_scheduler.step()": "lr_scheduler.step() if accelerator.sync_gradients else None",
    },
    "saves on one process": {  # as diffusers' scripts do
        "accelerator.save_state(os": "accelerator.is_main_process and accelerator.save_state(os"
    },
    "splits batches": {
        "Accelerator(": "Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True), ",
        "import Accelerator": "import Accelerator, DataLoaderConfiguration",
        " * accelerator.num_processes,\n": ",\n",
    },
}


@pytest.mark.slow
def test_running_script_decays_at_once_and_ends_with_its_decay(tmp_path, capsys, monkeypatch):
    updated = WSDLoop.updated

    def updated_and_killed(self):
        if self.step == 12:
            os.kill(os.getpid(), signal.SIGUSR1)
        updated(self)

    monkeypatch.setattr(WSDLoop, "updated", updated_and_killed)
    with pytest.raises(SystemExit) as end:
        run_here(tmp_path / "run", launch=("--trunk", "--decay-fraction", "0.25"))
    assert end.value.code == 0
    printed = printed_lrs(capsys.readouterr().out)  # the last update ends the script before it prints
    assert printed == pytest.approx(straight_lrs(16, 4).expected[: len(printed)], rel=1e-14)
    assert len(printed) == 15
    assert {step: record.kind for step, record in read_run(tmp_path / "run").records.items()} == {
        12: "pre-decay",
        16: "post-decay",
    }
