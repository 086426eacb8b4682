"""What WSDCallback does to real Trainer runs, through the launcher, in this process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from trainer_runs import FAMILY, SCRIPT, same_weights, train_here
from transformers import AutoModelForCausalLM, TrainerCallback, trainer

from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.family import read_run
from hf_wsd.history import read_history
from hf_wsd.lineage import Lineage


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return train_here(tmp_path_factory.mktemp("family") / "run", "--num_train_epochs", 9, launch=FAMILY)


def lrs(run: Path) -> dict[int, float]:
    return {row["step"]: row["learning_rate"] for row in read_history(run) if "learning_rate" in row}


def test_trunk_with_budgets_stops_at_its_last_fork_point(trunk):
    assert max(read_run(trunk).records) == 30
    assert read_run(trunk).finished


def test_fork_points_are_saved_evaluated_and_recorded(trunk):
    records = read_run(trunk).records
    assert {step: record.kind for step, record in records.items()} == {15: "fork", 30: "fork"}
    assert all(record.losses["loss"] > 0 for record in records.values())
    assert records[15].tokens == 15 * 4 * 16


def test_records_count_parameters_with_and_without_embeddings(trunk):
    model = AutoModelForCausalLM.from_pretrained(trunk)
    tables = sum(
        weight.numel() for name, weight in model.named_parameters() if name.endswith(("wte.weight", "wpe.weight"))
    )
    record = read_run(trunk).latest
    assert (record.parameters, record.parameters_without_embeddings) == (
        model.num_parameters(),
        model.num_parameters() - tables,
    )


def test_records_name_the_set_that_their_losses_come_from(trunk):
    rows = [row["evaluation"] for row in read_history(trunk) if "eval_loss" in row]
    names = {record.evaluation for record in read_run(trunk).records.values()} | {*rows}
    assert len(names) == 1
    assert names.isdisjoint({"unknown", read_run(trunk).latest.data})


def test_trunk_is_evaluated_where_a_decayed_model_will_end(trunk):
    assert "loss" in read_run(trunk).losses_at(20)


def test_logged_lr_is_the_schedule_at_every_update(tmp_path):
    flags = ("--max_steps", 20, "--logging_steps", 1, "--lr_scheduler_kwargs", '{"decay_fraction": "0.25"}')
    run = train_here(tmp_path / "run", *flags)
    schedule = read_run(run).latest.schedule
    assert lrs(run) == {step: 1e-2 * schedule(step - 1) for step in range(1, 21)}


def test_logs_have_tokens_and_phase(trunk):
    rows = [row for row in read_history(trunk) if "loss" in row]
    assert [(row["step"], row["tokens"], row["phase"]) for row in rows[:2]] == [(5, 320, "warmup"), (10, 640, "stable")]


def test_wsd_s_saves_before_and_after_every_decay_and_returns_to_the_peak(tmp_path):
    flags = ("--lr_scheduler_type", "wsd_s", "--max_steps", 40, "--logging_steps", 1)
    run = train_here(tmp_path / "run", *flags, launch=("--cycle-ends", 20, 40, "--decay-fraction", 0.25))
    kinds = {step: record.kind for step, record in read_run(run).records.items()}
    assert kinds == {15: "pre-decay", 20: "post-decay", 35: "pre-decay", 40: "post-decay"}
    assert lrs(run)[20] < 1e-2 == lrs(run)[21]  # row n is the lr of update n - 1


def test_wsd_s_resumed_after_a_decay_makes_its_next_update_at_the_peak(tmp_path):
    flags = ("--lr_scheduler_type", "wsd_s", "--max_steps", 40, "--logging_steps", 1)
    launch = ("--cycle-ends", 20, 40, "--decay-fraction", 0.25)
    straight = train_here(tmp_path / "straight", *flags, launch=launch)
    resumed = tmp_path / "resumed"
    shutil.copytree(straight / "checkpoint-20", resumed / "checkpoint-20")
    train_here(resumed, *flags, "--resume_from_checkpoint", resumed / "checkpoint-20", launch=launch)
    assert lrs(resumed)[21] == 1e-2
    assert same_weights(straight / "checkpoint-40", resumed / "checkpoint-40")


def test_fork_points_survive_save_total_limit(tmp_path):
    flags = ("--num_train_epochs", 9, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 1)
    run = train_here(tmp_path / "run", *flags, launch=FAMILY)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-30"]
    assert list(saved_checkpoints(run)) == [15, 30]
    assert Lineage.read(saved_checkpoints(run)[15]).kind == "fork"


@pytest.mark.parametrize("strategy", [("--eval_steps", 3), ("--eval_strategy", "epoch"), ("--eval_on_start", "True")])
def test_evaluation_does_not_change_training_with_dropout(tmp_path, strategy):
    base = ("--max_steps", 20, "--dropout", 0.2)
    never = train_here(tmp_path / "never", *base, "--eval_strategy", "no")
    often = train_here(tmp_path / "often", *base, *strategy)
    assert same_weights(never / "checkpoint-20", often / "checkpoint-20")


def test_resume_equals_an_uninterrupted_run(tmp_path, trunk):
    resumed = tmp_path / "resumed"
    shutil.copytree(trunk / "checkpoint-15", resumed / "checkpoint-15")
    train_here(resumed, "--num_train_epochs", 9, "--resume_from_checkpoint", resumed / "checkpoint-15", launch=FAMILY)
    assert same_weights(trunk / "checkpoint-30", resumed / "checkpoint-30")
    assert Lineage.read(resumed / "checkpoint-30").intent == "start"


def test_resumed_run_does_not_log_a_step_twice(tmp_path, trunk):
    again = tmp_path / "again"
    shutil.copytree(trunk, again)
    train_here(again, "--num_train_epochs", 9, "--resume_from_checkpoint", again / "checkpoint-15", launch=FAMILY)
    steps = [row["step"] for row in read_history(again) if "loss" in row]
    assert steps == sorted(set(steps))


def test_missing_record_is_written_again_at_the_resume(tmp_path, trunk):
    again = tmp_path / "again"
    shutil.copytree(trunk, again)
    (again / "checkpoint-15" / "wsd.json").unlink()
    shutil.rmtree(again / "_fork-points" / "checkpoint-15")
    train_here(again, "--num_train_epochs", 9, "--resume_from_checkpoint", again / "checkpoint-15", launch=FAMILY)
    assert Lineage.read(again / "checkpoint-15").schedule == Lineage.read(trunk / "checkpoint-15").schedule
    assert Lineage.read(again / "_fork-points" / "checkpoint-15").kind == "fork"


def test_branch_by_hand_is_recorded_with_its_parent(tmp_path, trunk):
    branch = train_here(
        tmp_path / "branch",
        *("--max_steps", 40, "--resume_from_checkpoint", trunk / "checkpoint-30"),
        *("--lr_scheduler_kwargs", '{"num_decay_steps": 10}'),
    )
    record = Lineage.read(branch / "checkpoint-40")
    assert (record.intent, record.kind, record.parent.step) == ("branch", "post-decay", 30)
    assert (branch / record.parent.checkpoint).resolve() == (trunk / "checkpoint-30").resolve()


def test_branch_forgets_the_trunks_best_model(tmp_path):
    best = ("--load_best_model_at_end", "True", "--save_total_limit", 1, "--eval_steps", 5)
    best = (*best, "--save_strategy", "steps", "--save_steps", 5)
    trunk = train_here(tmp_path / "trunk", *best, "--num_train_epochs", 9, launch=FAMILY)
    branch = train_here(
        tmp_path / "branch",
        *(*best, "--max_steps", 40, "--resume_from_checkpoint", trunk / "checkpoint-30"),
        *("--lr_scheduler_kwargs", '{"num_decay_steps": 10}'),
    )
    state = json.loads((branch / "checkpoint-40" / "trainer_state.json").read_text())
    assert state["log_history"][0]["step"] > 30
    assert str(trunk) not in str(state["best_model_checkpoint"])


def test_skipped_fp16_update_does_not_shift_the_schedule(tmp_path, monkeypatch):
    overflow = False

    class Overflows(TrainerCallback):
        """Two updates overflow: Trainer then counts the step but leaves the scheduler alone."""

        def on_optimizer_step(self, args, state, control, **kwargs):
            nonlocal overflow
            overflow = state.global_step in (3, 4)

    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: overflow))
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, Overflows])
    run = train_here(tmp_path / "run", "--max_steps", 20, "--logging_steps", 1)
    record = read_run(run).latest
    assert record.skipped_updates == 2
    assert lrs(run)[20] == 1e-2 * record.schedule(19)


def test_full_disk_does_not_stop_training_and_the_next_save_tries_again(tmp_path, monkeypatch, caplog):
    real, calls = Lineage.write, []

    def write(self, folder):
        calls.append(folder)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        real(self, folder)

    monkeypatch.setattr(Lineage, "write", write)
    run = train_here(tmp_path / "run", "--num_train_epochs", 9, launch=FAMILY)
    assert list(read_run(run).records) == [15, 30]
    assert Lineage.read(run / "_fork-points" / "checkpoint-15").step == 15


def test_other_schedules_train_as_if_the_callback_were_not_there(tmp_path):
    run = train_here(tmp_path / "run", "--lr_scheduler_type", "cosine", "--max_steps", 5, "--save_strategy", "steps")
    assert (run / "checkpoint-5").is_dir()
    assert not list(run.rglob("wsd.json*"))


@pytest.mark.parametrize(
    ("flags", "launch", "message"),
    [
        (("--max_steps", 20, "--lr_scheduler_type", "linear"), ("--trunk",), "trunk would be ignored.*linear.*wsd"),
        (("--max_steps", 20), ("--decay-type", "linaer"), "did you mean 'linear'"),
        (("--max_steps", 20, "--lr_scheduler_kwargs", '{"decay_fractoin": 0.2}'), (), "did you mean 'decay_fraction'"),
        (("--max_steps", 20, "--warmup_steps", 19), (), r"warm-up \(19\) \+ decay \(2\) = 21.*run of 20"),
        (("--max_steps", 20), ("--decay-fraction", "1.5"), r"decay_fraction must lie strictly between 0 and 1"),
        (("--max_steps", 20), ("--num-decay-steps", "0.2"), "decay_fraction=0.2"),
        (("--max_steps", 20), ("--num-decay-steps", 2, "--decay-fraction", 0.1), "not both"),
        (("--max_steps", 20, "--lr_scheduler_kwargs", '{"decay_fraction": 0.2}'), ("--decay-fraction", 0.1), "twice"),
        (("--max_steps", 20, "--warmup_steps", 0.1), ("--trunk",), "--warmup_steps as a number of steps"),
        (("--max_steps", 20, "--save_only_model", "True"), ("--trunk",), "save_only_model"),
        (("--max_steps", 20, "--save_strategy", "best", "--metric_for_best_model", "loss"), (), "save_strategy best"),
        (("--max_steps", 20), ("--trunk", "--budgets", "40"), "trunk of 36 steps.*ends at step 20"),
        (
            ("--max_steps", 20),
            ("--trunk", "--budgets", "8", "--decay-fraction", 0.5),
            "update 3 is in the warmup phase",
        ),
        (("--max_steps", 20), ("--trunk", "--budgets", "0.5Q"), "'0.5Q' is no length"),
    ],
)
def test_bad_input_is_refused_before_any_training(tmp_path, flags, launch, message):
    with pytest.raises(SystemExit, match=f"(?s){message}"):
        train_here(tmp_path / "run", *flags, launch=launch)
    assert not read_history(tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_checkpoint_without_its_state_is_refused(tmp_path, trunk, lost):
    run = tmp_path / "run"
    shutil.copytree(trunk / "checkpoint-15", run / "checkpoint-15")
    (run / "checkpoint-15" / lost).unlink()
    with pytest.raises(SystemExit, match=f"(?s)no .* state .*{lost[:9]}"):
        train_here(run, "--num_train_epochs", 9, "--resume_from_checkpoint", run / "checkpoint-15", launch=FAMILY)


def test_changed_past_is_refused_with_a_readable_difference(tmp_path, trunk):
    flags = ("--max_steps", 40, "--warmup_steps", 10, "--resume_from_checkpoint", trunk / "checkpoint-15")
    with pytest.raises(SystemExit, match=r"from step 0: warmup linear 0 -> 1, 5 steps \| warmup linear 0 -> 1, 10"):
        train_here(tmp_path / "run", *flags)


def test_finished_run_is_not_trained_one_update_more(tmp_path, trunk):
    again = tmp_path / "again"
    shutil.copytree(trunk, again)
    with pytest.raises(SystemExit, match="nothing is left to train"):
        train_here(again, "--num_train_epochs", 9, "--resume_from_checkpoint", again / "checkpoint-30", launch=FAMILY)


def test_damaged_record_is_named_before_any_training(tmp_path, trunk):
    again = tmp_path / "again"
    shutil.copytree(trunk, again)
    (again / "checkpoint-15" / "wsd.json").write_text('{"schema": 1, "step": 15')
    with pytest.raises(SystemExit, match=r"(?s)checkpoint-15/wsd\.json cannot be read.*Delete it"):
        train_here(again, "--num_train_epochs", 9, "--resume_from_checkpoint", again / "checkpoint-15", launch=FAMILY)


def test_checkpoints_hold_nothing_that_stock_transformers_cannot_load(trunk):
    state = torch.load(trunk / "checkpoint-15" / "scheduler.pt", weights_only=True)
    assert state["last_epoch"] == 15
    assert state["lr_lambdas"] == [None, None]


# --- what must not happen to a run that is already there ---


def test_script_that_ignores_resume_from_checkpoint_is_caught_on_a_trunk_too(tmp_path, trunk):
    bare = tmp_path / "train_bare.py"
    bare.write_text(SCRIPT.read_text().replace("resume_from_checkpoint=training_args.resume_from_checkpoint", ""))
    flags = ("--num_train_epochs", 9, "--resume_from_checkpoint", trunk / "checkpoint-15")
    with pytest.raises(SystemExit, match=r"starts at step 0, not from .*ignores --resume_from_checkpoint"):
        train_here(tmp_path / "run", *flags, launch=FAMILY, script=bare)


def test_new_run_in_the_folder_of_another_is_refused(tmp_path, trunk):
    again = Path(shutil.copytree(trunk, tmp_path / "run"))
    with pytest.raises(SystemExit, match=r"holds a run already \(checkpoints at 15, 30\).*--resume_from_checkpoint"):
        train_here(again, "--num_train_epochs", 9, launch=FAMILY)
    assert read_history(again) == read_history(trunk)


def test_branch_in_its_trunks_own_folder_is_refused(tmp_path, trunk):
    again = Path(shutil.copytree(trunk, tmp_path / "run"))
    flags = ("--max_steps", 40, "--lr_scheduler_kwargs", '{"num_decay_steps": 10}')
    with pytest.raises(SystemExit, match="give it an --output_dir of its own"):
        train_here(again, *flags, "--resume_from_checkpoint", again / "checkpoint-30")


def test_kill_between_record_and_kept_copy_is_made_good_at_the_resume(tmp_path, trunk):
    again = Path(shutil.copytree(trunk, tmp_path / "run"))
    shutil.rmtree(again / "_fork-points")
    train_here(again, "--num_train_epochs", 9, "--resume_from_checkpoint", again / "checkpoint-15", launch=FAMILY)
    kept, first = (Lineage.read(run / "_fork-points" / "checkpoint-15") for run in (again, trunk))
    assert kept == replace(first, command=kept.command, saved_at=kept.saved_at)


def test_tokens_stay_true_with_another_batch(tmp_path, trunk):
    flags = ("--max_steps", 20, "--per_device_train_batch_size", 8, "--lr_scheduler_kwargs", '{"num_decay_steps": 5}')
    resume = ("--resume_from_checkpoint", trunk / "checkpoint-15")
    branch = train_here(tmp_path / "run", *flags, *resume, launch=("--allow", "tokens_per_step"))
    assert Lineage.read(branch / "checkpoint-20").tokens == 15 * 64 + 5 * 128


def test_decay_settings_in_kwargs_are_kept_for_later_decays(tmp_path):
    kwargs = '{"num_decay_steps": 0, "decay_type": "linear", "min_lr_ratio": 0.1}'
    run = train_here(tmp_path / "run", "--max_steps", 8, "--lr_scheduler_kwargs", kwargs)
    assert read_run(run).latest.settings == {"decay_type": "linear", "min_lr_ratio": 0.1}


def test_evaluation_that_another_callback_asks_for_does_not_change_training(tmp_path, monkeypatch):
    class AsksLate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = True

    flags = ("--max_steps", 20, "--dropout", 0.2)
    never = train_here(tmp_path / "never", *flags, "--eval_strategy", "no")
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, AsksLate])
    often = train_here(tmp_path / "often", *flags)
    assert same_weights(never / "checkpoint-20", often / "checkpoint-20")


def test_fork_point_that_is_past_and_was_not_saved_is_refused(tmp_path, trunk):
    launch = ("--trunk", "--budgets", 12, 40, "--decay-fraction", 0.25)
    flags = ("--num_train_epochs", 9, "--resume_from_checkpoint", trunk / "checkpoint-15")
    with pytest.raises(SystemExit, match=r"budget 12 needs a checkpoint at step 9, which is past \(step 15\)"):
        train_here(tmp_path / "run", *flags, launch=launch)


def test_length_of_a_trunks_later_decays_is_checked_before_it_trains(tmp_path):
    with pytest.raises(SystemExit, match="strictly between 0 and 1"):
        train_here(tmp_path / "run", "--max_steps", 20, launch=("--trunk", "--decay-fraction", 1.5))


def test_precision_of_an_accelerate_config_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # what `accelerate launch` hands to the processes
    assert read_run(train_here(tmp_path / "run", "--max_steps", 10)).latest.setup["precision"] == "bf16"
