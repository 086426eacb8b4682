"""A loop of one's own, as recipes/pretrain_no_trainer.py has it: hf_wsd/loop.py."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pretrain_no_trainer
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from trainer_runs import ROOT, command, command_line, same_weights

from hf_wsd import WSDLoop, get_scheduler
from hf_wsd.errors import RunError, ScheduleError, SettingsError
from hf_wsd.family import read_run
from hf_wsd.loop import accelerator_job

RECIPE = ROOT / "recipes" / "pretrain_no_trainer.py"
TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1", "--block_size", "32"),
    *("--max_eval_blocks", "8", "--per_device_train_batch_size", "4", "--warmup_steps", "4", "--use_cpu"),
    *("--decay_fraction", "0.25", "--logging_steps", "1", "--eval_steps", "7", "--save_steps", "6"),
)  # 128 tokens a step


@pytest.fixture(autouse=True)
def fresh_accelerator():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def pretrain_here(run, *flags):
    """Run the recipe in this process."""
    with command_line("pretrain_no_trainer.py", "--output_dir", run, *TINY, *flags):
        pretrain_no_trainer.main()
    return run


@pytest.fixture
def rows(tmp_path):
    """Documents for a few epochs of a small run."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n} and {n * n}. " * 9}) + "\n" for n in range(60)))
    return ("--train_file", file, "--validation_percent", 20)


def lrs(run):
    return {row["step"]: row["learning_rate"] for row in run.history if "learning_rate" in row}


# --- the recipe ---


@pytest.mark.parametrize(
    "data",
    [
        # 25 batches an epoch: the last update of each has one of the two; forks at 30, in the third epoch
        pytest.param(("--gradient_accumulation_steps", 2), id="map-style"),
        pytest.param(("--streaming",), id="stream", marks=pytest.mark.slow),
    ],
)
def test_branch_by_hand_equals_the_straight_run_bit_for_bit(tmp_path, rows, data):
    trunk = pretrain_here(tmp_path / "trunk", *rows, *data, "--trunk", "--budgets", 40)
    straight = pretrain_here(tmp_path / "straight", *rows, *data, "--budgets", 40)
    resume = ("--resume_from_checkpoint", trunk / "checkpoint-30")
    branch = pretrain_here(tmp_path / "branch", *rows, *data, "--budgets", 40, *resume)
    latest = read_run(branch).latest
    assert (latest.intent, latest.kind, latest.parent.step) == ("branch", "post-decay", 30)
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")


def test_lr_of_every_update_is_the_schedules(tmp_path, rows):
    run = read_run(pretrain_here(tmp_path / "run", *rows, "--budgets", 20, "--learning_rate", 1e-2))
    assert lrs(run) == {step: 1e-2 * run.latest.schedule(step - 1) for step in range(1, 21)}


def test_repeated_command_goes_on_and_ends_in_the_same_weights(tmp_path, rows):
    run = pretrain_here(tmp_path / "run", *rows, "--budgets", 20)
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for folder in (again, again / "_fork-points"):
        shutil.rmtree(folder / "checkpoint-20")
    (again / "checkpoint-18" / "optimizer.bin").write_bytes(b"torn")
    pretrain_here(again, *rows, "--budgets", 20)
    assert same_weights(again / "checkpoint-20", run / "checkpoint-20")
    assert [row["step"] for row in read_run(again).history if "loss" in row] == list(range(1, 21))


def test_fork_points_and_those_of_keep_every_survive_save_total_limit(tmp_path, rows):
    limits = ("--save_total_limit", 1, "--keep_every", "1.024K")  # 8 steps
    run = pretrain_here(tmp_path / "run", *rows, "--trunk", "--budgets", 20, 40, *limits)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-30"]
    kinds = {step: record.kind for step, record in read_run(run).records.items()}
    assert kinds == {8: "kept", 15: "fork", 16: "kept", 24: "kept", 30: "fork"}


def test_record_and_history_have_the_losses_of_forks_and_of_the_ends_of_budgets(tmp_path, rows):
    run = read_run(pretrain_here(tmp_path / "run", *rows, "--trunk", "--budgets", 20, 40))
    assert run.records[15].losses["bits_per_byte"] > 0
    assert set(run.losses_at(20)) == {"loss", "perplexity", "bits_per_byte"}  # what the model of 20 is compared with
    assert (run.latest.tokens, run.latest.setup["seed"], run.latest.group) == (30 * 128, 42, "run")


def test_schedule_that_the_loop_cannot_keep_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="unknown schedule 'cosine'"):
        pretrain_here(tmp_path / "run", "--budgets", 20, "--lr_scheduler_type", "cosine")


def test_run_without_a_length_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="Give --budgets, or --max_steps"):
        pretrain_here(tmp_path / "run")


@pytest.mark.slow
def test_two_processes_train_trunk_and_branch_as_a_straight_run(tmp_path, rows):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    flags = (*TINY, *rows, "--per_device_train_batch_size", 2)

    def train_two(run, *more):
        argv = [*torchrun, RECIPE, "--output_dir", run, *flags, *more]
        command(argv, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
        return run

    run = train_two(tmp_path / "run", "--trunk", "--budgets", 40)
    command(["-m", "hf_wsd.cli", "decay", run])
    straight = train_two(tmp_path / "straight", "--budgets", 40)
    branch = read_run(run).branches[0]
    assert (branch.latest.setup["world_size"], branch.latest.calls_per_update) == (2, 1)
    assert lrs(branch) == {step: 5e-3 * branch.latest.schedule(step - 1) for step in range(31, 41)}
    assert same_weights(branch.path / "checkpoint-40", straight / "checkpoint-40")


# --- WSDLoop itself ---


def loop(folder, *, schedule_steps=10, max_steps=10):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = get_scheduler("wsd", optimizer, 0, schedule_steps, {"num_decay_steps": 4})
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    job = accelerator_job(accelerator, batch_size=1, folder=folder, step=scheduler.steps_done, max_steps=max_steps)
    return WSDLoop(accelerator, scheduler, job, model=model, dataset=None), optimizer


def test_what_is_kept_are_the_two_ends_of_the_decay(tmp_path):
    run, optimizer = loop(tmp_path / "run")
    kept = []
    while run.step < run.last_step:
        optimizer.step()
        run.update()
        kept += [run.step] if run.keeps else []
    assert kept == [6, 10]


def test_loop_of_another_length_than_its_schedule_is_refused(tmp_path):
    with pytest.raises(ScheduleError, match="the schedule has 10 steps but the run has 12: give --max_steps 10"):
        loop(tmp_path / "run", max_steps=12)


def test_folder_that_holds_a_run_is_refused(tmp_path):
    run, optimizer = loop(tmp_path / "run")
    optimizer.step()
    run.update()
    run.save()
    with pytest.raises(RunError, match="holds a run already"):
        loop(tmp_path / "run")


def test_evaluation_leaves_the_generators_where_they_were(tmp_path):
    run, _ = loop(tmp_path / "run")
    before = torch.get_rng_state()
    with run.evaluation():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_of_an_evaluation_is_in_the_record_of_its_own_step_alone(tmp_path):
    run, optimizer = loop(tmp_path / "run")
    for step in (1, 2):
        optimizer.step()
        run.update()
        if step == 1:
            run.log({"eval_loss": 3.5})
        run.save()
    records = read_run(tmp_path / "run").records
    assert (records[1].losses, records[2].losses) == ({"loss": 3.5}, {})


def test_several_budgets_without_a_trunk_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="2 budgets need --trunk"):
        pretrain_here(tmp_path / "run", "--budgets", 20, 40)


# --- a decay on demand, and the end of a job ---


def signal_at(monkeypatch, number, step):
    """Have this process receive a signal in the update that `step` counts."""
    update = WSDLoop.update

    def update_and_kill(self):
        if self.step + 1 == step:
            os.kill(os.getpid(), number)
        update(self)

    monkeypatch.setattr(WSDLoop, "update", update_and_kill)


@pytest.mark.slow
def test_running_loop_decays_at_once_and_ends_in_the_bits_of_a_straight_run(tmp_path, rows, monkeypatch):
    straight = pretrain_here(tmp_path / "straight", *rows, "--budgets", 24)
    signal_at(monkeypatch, signal.SIGUSR1, 18)
    run = pretrain_here(tmp_path / "run", *rows, "--trunk", "--max_steps", 40)
    assert {18: "pre-decay", 24: "post-decay"}.items() <= {s: r.kind for s, r in read_run(run).records.items()}.items()
    assert same_weights(run, straight)
    assert lrs(read_run(run)) == lrs(read_run(straight))


@pytest.mark.slow
def test_sigterm_saves_and_the_repeated_command_ends_in_the_same_weights(tmp_path, rows, monkeypatch):
    whole = pretrain_here(tmp_path / "whole", *rows, "--budgets", 24)
    with monkeypatch.context() as patches:
        signal_at(patches, signal.SIGTERM, 20)
        with pytest.raises(SystemExit, match="75"):
            pretrain_here(tmp_path / "run", *rows, "--budgets", 24)
    assert max(read_run(tmp_path / "run").records) == 20
    assert same_weights(pretrain_here(tmp_path / "run", *rows, "--budgets", 24), whole)
