"""Planning a branch: what is refused, what is written, what would run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from trainer_runs import FAMILY, record_command, train_here

from hf_wsd.errors import CheckpointError, ForkError, RecordError, RunError
from hf_wsd.family import read_run
from hf_wsd.forking import fork, fork_all, plan_decays, prepare
from hf_wsd.lineage import Command
from hf_wsd.lock import locked
from hf_wsd.plan import Decay
from hf_wsd.running import branch_command, read_arguments, run_branches


@pytest.fixture(scope="module")
def saved_trunk(tmp_path_factory):
    return train_here(tmp_path_factory.mktemp("family") / "run", "--num_train_epochs", 9, launch=FAMILY)


@pytest.fixture
def trunk(saved_trunk, tmp_path):
    return Path(shutil.copytree(saved_trunk, tmp_path / "run"))


def test_branch_schedule_is_the_trunks_until_the_fork_and_ends_at_zero(trunk):
    branch = fork(trunk, Decay(fork=30, end=40))
    trunk_schedule = read_run(trunk).latest.schedule
    assert branch.record.schedule.agrees_with(trunk_schedule, until=30)
    assert (branch.record.schedule.total_steps, branch.record.schedule(40), branch.end) == (40, 0.0, 40)


def test_planned_decays_are_by_default_those_the_trunk_was_started_with(trunk):
    plan = plan_decays(read_run(trunk))
    assert [(decay.fork, decay.end) for decay in plan.decays] == [(15, 20), (30, 40)]


def test_length_of_a_decay_can_be_changed_later(trunk):
    plan = plan_decays(read_run(trunk), at=[15], num_decay_steps=7)
    assert [(decay.fork, decay.end) for decay in plan.decays] == [(15, 22)]


def test_budget_in_tokens_is_the_whole_decayed_model(trunk):
    plan = plan_decays(read_run(trunk), budgets=["1.28K"])  # 64 tokens a step
    assert [(decay.fork, decay.end) for decay in plan.decays] == [(15, 20)]


def test_budget_without_its_checkpoint_names_the_nearest(trunk):
    with pytest.raises(ForkError, match=r"budget 36 \(36 steps\).*step 27, which was not saved.*15, 30.*--at 30"):
        fork(trunk, plan_decays(read_run(trunk), budgets=["36"]).decays[0])


@pytest.mark.parametrize(
    ("step", "message"),
    [(3, r"update 2 is in the warmup phase \(0-4\).*: 5"), (7, "step 7, which was not saved"), (99, "99.*not saved")],
)
def test_fork_point_that_cannot_be_is_refused(trunk, step, message):
    with pytest.raises(ForkError, match=message):
        fork(trunk, Decay(fork=step, end=step + 5))


def test_fork_inside_a_decay_is_refused(tmp_path):
    flags = ("--max_steps", 20, "--save_strategy", "steps", "--save_steps", 18)
    run = train_here(tmp_path / "run", *flags, launch=("--decay-fraction", 0.25))
    with pytest.raises(ForkError, match=r"cannot fork at step 18: update 17 is in the decay phase \(15-19\).*: 15"):
        fork(run, Decay(fork=18, end=22))
    with pytest.raises(ForkError, match="the trunk ends at step 20"):
        fork(run, Decay(fork=21, end=22))


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_checkpoint_that_lacks_a_state_is_refused_by_name(trunk, lost):
    for folder in trunk.glob("**/checkpoint-30"):
        (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=lost.split(".")[0].replace("model", "weights")):
        fork(trunk, Decay(fork=30, end=40))


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "trainer_state.json"])
def test_truncated_file_of_a_checkpoint_is_refused_by_name(trunk, name):
    for file in trunk.glob(f"**/checkpoint-30/{name}"):
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        fork(trunk, Decay(fork=30, end=40))


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RecordError, match="is no run of hf_wsd"):
        read_run(tmp_path)


def test_second_branch_from_a_fork_point_needs_a_name_or_another_shape(trunk):
    prepare(fork(trunk, Decay(fork=30, end=40)))
    assert fork(trunk, Decay(fork=30, end=40), decay_type="linear").folder.name == "30-linear-10"
    prepare(fork(trunk, Decay(fork=30, end=40), decay_type="linear", name="mine"))
    with pytest.raises(RunError, match=r"another branch already.*--name"):
        fork(trunk, Decay(fork=30, end=40), name="mine")


def test_planning_writes_nothing(trunk):
    before = sorted(trunk.rglob("*"))
    fork(trunk, Decay(fork=30, end=40))
    assert sorted(trunk.rglob("*")) == before


def test_moved_family_still_knows_its_parents(trunk, tmp_path):
    prepare(fork(trunk, Decay(fork=30, end=40)))
    moved = Path(shutil.move(trunk, tmp_path / "elsewhere"))
    branch = read_run(moved).branches[0]
    assert (branch.path / branch.planned.parent.checkpoint).resolve() == (
        moved / "_fork-points" / "checkpoint-30"
    ).resolve()


def test_command_of_a_branch_is_the_trunks_with_three_more_flags(trunk):
    record_command(trunk, Command(argv=("-m", "hf_wsd", "--trunk", "t.py", "--seed", "7"), cwd="."))
    argv, environment = branch_command(branch := fork(trunk, Decay(fork=30, end=40)))
    assert argv[1:7] == ["-m", "hf_wsd", "--trunk", "t.py", "--seed", "7"]
    flags = dict(zip(argv[7::2], argv[8::2], strict=True))
    assert flags == {
        "--output_dir": str(branch.folder),
        "--max_steps": "40",
        "--resume_from_checkpoint": str(branch.checkpoint),
    }
    assert environment["HF_WSD_BRANCH"] == str(branch.folder)


@pytest.mark.parametrize(
    ("file", "text"), [("a.json", '{"output_dir": "out", "seed": 7}'), ("a.yaml", "output_dir: out\nseed: 7\n")]
)
def test_script_with_an_argument_file_gets_a_changed_copy(trunk, tmp_path, file, text):
    script = tmp_path / "train.py"
    script.write_text("import sys; print(open(sys.argv[1]).read())")
    record_command(trunk, Command(argv=(str(script), file), cwd=".", files={file: text}))
    branch = fork(trunk, Decay(fork=30, end=40))
    list(run_branches([branch]))
    content = yaml.safe_load((branch.folder / "run.log").read_text())
    assert content == {
        "output_dir": str(branch.folder),
        "seed": 7,
        "max_steps": 40,
        "resume_from_checkpoint": str(branch.checkpoint),
    }


def test_file_that_is_a_flags_value_is_no_argument_file(trunk):
    argv = ("train.py", "--deepspeed", "zero2.json")
    record_command(trunk, Command(argv=argv, cwd=".", files={"zero2.json": "{}"}))
    replayed, _ = branch_command(fork(trunk, Decay(fork=30, end=40)))
    assert replayed[1:4] == list(argv)
    assert replayed[4] == "--output_dir"


def test_command_of_several_processes_starts_as_many(trunk):
    record_command(
        trunk, Command(argv=("train.py",), cwd=".", world_size=4, environment={"ACCELERATE_USE_CPU": "true"})
    )
    argv, environment = branch_command(fork(trunk, Decay(fork=30, end=40)))
    assert argv[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    assert environment["ACCELERATE_USE_CPU"] == "true"


def test_run_whose_start_is_unknown_says_how_to_start_a_branch_by_hand(trunk):
    record_command(trunk, None)
    with pytest.raises(RunError, match=r"does not say how.*HF_WSD_BRANCH=.*--max_steps 40"):
        branch_command(fork(trunk, Decay(fork=30, end=40)))


def test_branch_leaves_the_kept_copy_that_no_rotation_deletes(trunk):
    assert fork(trunk, Decay(fork=30, end=40)).checkpoint == trunk / "_fork-points" / "checkpoint-30"


def test_checkpoint_stands_in_for_a_damaged_kept_copy(trunk):
    (trunk / "_fork-points" / "checkpoint-30" / "optimizer.pt").unlink()
    assert fork(trunk, Decay(fork=30, end=40)).checkpoint == trunk / "checkpoint-30"


def test_folder_in_which_a_process_trains_is_locked(trunk):
    record_command(trunk, Command(argv=("train.py",), cwd="."))
    branch = fork(trunk, Decay(fork=30, end=40))
    prepare(branch)
    with locked(branch.folder):
        ((_, event),) = run_branches([branch])
    assert "already training in" in event


def test_branch_whose_process_fails_is_reported_with_the_end_of_its_log(trunk, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit('no GPU today')")
    record_command(trunk, Command(argv=(str(script),), cwd="."))
    events = [event for _, event in run_branches([fork(trunk, Decay(fork=30, end=40))])]
    assert events[0] == "started"
    assert "failed (exit 1)" in events[1]
    assert "no GPU today" in events[1]


# --- shapes ---


def test_branches_have_the_shape_that_was_asked_for(trunk):
    run = read_run(trunk)
    (branch,) = fork_all(run, plan_decays(run, at=[30]), decay_type="power", decay_params={"p": 3})
    assert branch.folder.name == "30-power-p3-10"
    assert branch.record.schedule == run.latest.schedule.fork(30, decay_steps=10, shape="power", params={"p": 3})


def test_minimum_of_the_trunk_is_not_asked_of_a_shape_with_an_end_of_its_own(trunk):
    run = read_run(trunk)
    run = replace(run, records={s: replace(r, settings={"min_lr_ratio": 0.1}) for s, r in run.records.items()})
    half_life = {"decay_type": "half-life", "decay_params": {"half_life": 2}}
    (branch,) = fork_all(run, plan_decays(run, at=["30"], num_decay_steps=4), **half_life)
    assert branch.record.schedule(branch.end) == 0.25


def test_fork_point_may_be_given_in_tokens(trunk):
    run = read_run(trunk)
    assert [decay.fork for decay in plan_decays(run, at=["960tokens", "120samples"]).decays] == [15, 30]


# --- what a decay changes beside the lr ---

CODE = ("--decay_dataset", "/data/code.jsonl=0.7", "trunk=0.3")


def test_branch_with_arguments_has_a_name_of_its_own_and_hands_them_to_the_script(trunk):
    record_command(trunk, Command(argv=("-m", "hf_wsd", "--trunk", "t.py", "--seed", "7"), cwd="."))
    branch = fork(trunk, Decay(fork=30, end=40), arguments=CODE, optimizer={"beta2": 0.99})
    assert branch.folder.name == "30-1-sqrt-10-code.jsonl-0.7-trunk-0.3-beta2-0.99"
    argv, _ = branch_command(branch)
    assert argv[5:10] == ["--seed", "7", *CODE]
    assert argv[10] == "--output_dir"


def test_begun_branch_goes_on_with_its_own_arguments_alone(trunk):
    prepare(fork(trunk, Decay(fork=30, end=40), arguments=CODE, name="mine"))
    assert fork(trunk, Decay(fork=30, end=40), arguments=CODE, name="mine").record.arguments == CODE
    with pytest.raises(RunError, match=r"another branch already \(--decay_dataset .*asked: nothing changed.*--name"):
        fork(trunk, Decay(fork=30, end=40), name="mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "x"], "--output_dir after --: a branch has its own"),
        (["--max-steps=9"], "--max-steps=9 after --: a branch has its own"),
        (["--hub_token", "abc"], "a secret after -- would be written"),
        (["code.jsonl"], "code.jsonl: no flag. Arguments of the script follow --"),
    ],
)
def test_arguments_that_a_branch_cannot_have_are_refused(trunk, arguments, message):
    with pytest.raises(RunError, match=message):
        fork(trunk, Decay(fork=30, end=40), arguments=arguments)


def test_control_is_the_same_decay_without_what_is_changed(trunk):
    run = read_run(trunk)
    plan = plan_decays(run, at=[30])
    branches = fork_all(run, plan, arguments=CODE, optimizer={"beta2": 0.99}, control=True, name="mine")
    assert [(branch.folder.name, branch.record.changed != "") for branch in branches] == [
        ("mine", True),
        ("mine-control", False),
    ]
    with pytest.raises(RunError, match="--control trains the same decay without what is changed in it, but nothing is"):
        fork_all(run, plan, control=True)


def test_branches_have_the_optimizer_that_the_trunk_was_started_with(trunk):
    run = read_run(trunk)
    asked = {"decay_optimizer": {"beta2": 0.99}}
    run = replace(run, records={s: replace(r, settings=r.settings | asked) for s, r in run.records.items()})
    (branch,) = fork_all(run, plan_decays(run, at=[30]))
    assert branch.record.optimizer == {"beta2": 0.99}


def test_arguments_of_a_script_with_an_argument_file_are_written_into_its_copy(trunk, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("import sys; print(open(sys.argv[1]).read())")
    record_command(trunk, Command(argv=(str(script), "a.json"), cwd=".", files={"a.json": '{"seed": 7}'}))
    branch = fork(trunk, Decay(fork=30, end=40), arguments=[*CODE, "--seed", "8", "--bf16"])
    list(run_branches([branch]))
    content = yaml.safe_load((branch.folder / "run.log").read_text())
    assert (content["decay_dataset"], content["seed"], content["bf16"]) == ([*CODE[1:]], 8, True)


def test_files_after_two_dashes_are_found_from_wherever_the_branch_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        (tmp_path / name).touch()
    words = read_arguments(["--decay_dataset", "a.jsonl=0.5", "*.jsonl", "c.txt", "trunk=0.5", "no.txt=1"])
    assert words == [
        *("--decay_dataset", f"{tmp_path}/a.jsonl=0.5", f"{tmp_path}/*.jsonl", f"{tmp_path}/c.txt"),
        *("trunk=0.5", "no.txt=1"),
    ]
