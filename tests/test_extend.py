"""A run that gets a larger budget goes on to it exactly: the same bits as if it had been planned from the start."""

from __future__ import annotations

import json

import pretrain
import pretrain_no_trainer
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from trainer_runs import command, command_line, same_weights, train, train_here

from hf_wsd.builders import wsd, wsd_s
from hf_wsd.extending import point_to_extend, set_former_end_aside
from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage

TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1", "--block_size", 32, "--max_eval_blocks", 8),
    *("--per_device_train_batch_size", 4, "--warmup_steps", 2, "--use_cpu", "--save_steps", 1000, "--eval_steps", 1000),
    *("--decay_fraction", 0.25),
)
RECIPES = {"recipe": pretrain, "loop": pretrain_no_trainer}
SCRIPT = ("--warmup_steps", 2, "--blocks", 20)  # five updates an epoch, as the rows below
FRACTION = ("--decay-fraction", 0.25)  # of 8 steps: from 6; of 16: from 12
LINE = ("--lr_scheduler_type", "wsd_s")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    def reset():
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    reset()
    yield
    reset()


@pytest.fixture
def recipe(request, tmp_path):
    """A recipe as its user runs it, on a small corpus."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{n} and {n * n}. " * 9}) + "\n" for n in range(25)))
    data = ("--train_file", rows, "--validation_percent", 20)
    module = RECIPES[request.param]

    def pretrain_here(run, *flags):
        with command_line(f"{request.param}.py", "--output_dir", run, *TINY, *data, *flags):
            module.main()
        return run

    return pretrain_here


both_recipes = pytest.mark.parametrize("recipe", ["recipe", "loop"], indirect=True)


# --- the same command with larger budgets ---


@pytest.mark.slow
@both_recipes
@pytest.mark.parametrize(
    ("kind", "end"),
    [
        pytest.param(("--trunk",), 12, id="trunk"),
        pytest.param(("--trunk", "--streaming"), 12, id="stream"),
        pytest.param(LINE, 16, id="line of cycles"),
    ],
)
def test_recipe_with_one_budget_more_equals_the_run_that_had_it_from_the_start(recipe, tmp_path, kind, end):
    run = recipe(tmp_path / "run", *kind, "--budgets", 8)
    recipe(run, *kind, "--budgets", 8, 16)
    straight = recipe(tmp_path / "straight", *kind, "--budgets", 8, 16)
    assert same_weights(run / f"checkpoint-{end}", straight / f"checkpoint-{end}")


@pytest.mark.slow
@both_recipes
def test_finished_model_of_a_recipe_goes_on_from_before_its_decay_and_stays_as_a_branch(recipe, tmp_path, caplog):
    run = recipe(tmp_path / "run", "--budgets", 8)
    first = read_run(run)
    recipe(run, "--budgets", 16)
    assert "goes on from the newest checkpoint that agrees" in caplog.text
    straight = recipe(tmp_path / "straight", "--budgets", 16)
    assert same_weights(run / "checkpoint-16", straight / "checkpoint-16")
    grown = read_run(run)
    (branch,) = grown.branches
    assert (branch.path.name, branch.finished, list(branch.decays())) == ("6-1-sqrt-2", True, [(6, 8)])
    assert branch.losses_at(8) == first.losses_at(8)
    assert (branch.identity.parent.step, grown.latest.intent, grown.finished) == (6, "extend", True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["recipe"], indirect=True)
def test_finished_model_grows_into_a_family_of_which_it_is_the_first_branch(recipe, tmp_path):
    run = recipe(tmp_path / "run", "--budgets", 8)
    written = (run / "checkpoint-8" / "model.safetensors").stat().st_mtime_ns
    recipe(run, "--budgets", 8, 16)
    first, second = read_run(run).branches
    assert (first.path.name, second.path.name) == ("6-1-sqrt-2", "12-1-sqrt-4")
    assert (first.path / "checkpoint-8" / "model.safetensors").stat().st_mtime_ns == written
    straight = recipe(tmp_path / "straight", "--budgets", 16)
    assert same_weights(second.path / "checkpoint-16", straight / "checkpoint-16")


@pytest.mark.slow
def test_finished_family_gets_new_branches_and_keeps_its_old_ones(tmp_path):
    def family(*budgets):
        launch = ("--trunk", "--budgets", *budgets, *FRACTION)
        saved = read_run(run).checkpoints if run.exists() else {}
        resume = ("--resume_from_checkpoint", saved[max(saved)]) if saved else ()
        train(run, *SCRIPT, "--num_train_epochs", 9, *resume, launch=launch)
        command(["-m", "hf_wsd.cli", "decay", run])

    run = tmp_path / "run"
    family(8)
    old = {path: path.stat().st_mtime_ns for path in run.glob("_branches/*/**/*") if path.is_file()}
    family(8, 16)
    assert old == {path: path.stat().st_mtime_ns for path in old}
    straight = train(tmp_path / "straight", *SCRIPT, "--max_steps", 16, launch=FRACTION)
    assert same_weights(run / "_branches" / "12-1-sqrt-4" / "checkpoint-16", straight / "checkpoint-16")


# --- a script that nobody edited ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "end"),
    [
        pytest.param(("--trunk", "--budgets", 8), ("--trunk", "--budgets", 8, 16), 12, id="trunk"),
        pytest.param(("--cycle-ends", 8), ("--cycle-ends", 8, 16), 16, id="line of cycles"),
    ],
)
def test_script_resumed_with_one_budget_more_equals_the_run_that_had_it_from_the_start(tmp_path, first, then, end):
    def go(run, launch, *flags):
        line = LINE if "--cycle-ends" in launch else ()
        steps = max(word for word in launch if isinstance(word, int))
        return train_here(run, *SCRIPT, *line, "--max_steps", steps, *flags, launch=(*launch, *FRACTION))

    run = go(tmp_path / "run", first)
    go(run, then, "--resume_from_checkpoint", max(run.glob("checkpoint-*"), key=lambda path: int(path.name[11:])))
    straight = go(tmp_path / "straight", then)
    assert same_weights(run / f"checkpoint-{end}", straight / f"checkpoint-{end}")


@pytest.mark.slow
def test_script_that_resumes_from_the_decayed_end_is_told_where_to_go_on(tmp_path):
    run = train_here(tmp_path / "run", *SCRIPT, "--max_steps", 8, launch=FRACTION)
    longer, point = ("--max_steps", 16, "--resume_from_checkpoint"), run / "_fork-points" / "checkpoint-6"
    with pytest.raises(SystemExit, match="another schedule") as refused:
        train_here(run, *SCRIPT, *longer, run / "checkpoint-8", launch=FRACTION)
    assert str(refused.value).endswith(f"The newest checkpoint that agrees: --resume_from_checkpoint {point}")
    train_here(run, *SCRIPT, *longer, point, launch=FRACTION)
    straight = train_here(tmp_path / "straight", *SCRIPT, "--max_steps", 16, launch=FRACTION)
    assert same_weights(run / "checkpoint-16", straight / "checkpoint-16")


@pytest.mark.slow
def test_another_past_is_refused_where_no_checkpoint_agrees(tmp_path):
    run = train_here(tmp_path / "run", *SCRIPT, "--max_steps", 8, launch=FRACTION)
    flags = ("--warmup_steps", 4, "--max_steps", 16, "--resume_from_checkpoint", run / "checkpoint-8")
    with pytest.raises(SystemExit, match="The past of a run cannot change") as refused:
        train_here(run, *SCRIPT, *flags, launch=FRACTION)
    assert "newest checkpoint that agrees" not in str(refused.value)


# --- files ---


def checkpoint(run, step, schedule, **fields):
    """A folder with a record: all that these functions look at."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    Lineage(step=step, kind="periodic", schedule=schedule, last_step=schedule.total_steps, **fields).write(folder)
    return folder


def test_run_whose_newest_checkpoint_agrees_goes_on_from_it(tmp_path):
    newest = checkpoint(tmp_path, 20, wsd_s(cycle_ends=[20]))
    assert point_to_extend(tmp_path, newest, wsd_s(cycle_ends=[20, 40])) == (newest, "")


def test_former_end_takes_its_rows_with_it(tmp_path):
    checkpoint(tmp_path, 90, wsd(100), tokens=900)
    checkpoint(tmp_path, 100, wsd(100), settings={"budgets": ["1K"]})
    (tmp_path / "wsd.jsonl").write_text('{"step": 90, "loss": 2}\n{"step": 100, "loss": 1}\n')
    branch = read_run(set_former_end_aside(tmp_path, wsd(200), step=90))
    assert [row["step"] for row in branch.history] == [100]
    assert (branch.planned.requested, branch.planned.tokens, branch.planned.step) == ("1K", 900, 90)
    assert branch.planned.parent.checkpoint == "../../checkpoint-90"


def test_former_end_that_a_crash_left_half_moved_is_moved_to_its_end(tmp_path):
    for step in (90, 95, 100):
        checkpoint(tmp_path, step, wsd(100))
    branch = set_former_end_aside(tmp_path, wsd(200), step=90)
    (branch / "checkpoint-100").rename(tmp_path / "checkpoint-100")
    assert set_former_end_aside(tmp_path, wsd(200), step=90) == branch
    assert sorted(read_run(branch).records) == [95, 100]


def test_former_end_goes_beside_a_branch_of_the_same_name(tmp_path):
    (tmp_path / "_branches" / "90-1-sqrt-10").mkdir(parents=True)
    Lineage(step=90, kind="planned", schedule=wsd(100)).write(tmp_path / "_branches" / "90-1-sqrt-10")
    checkpoint(tmp_path, 100, wsd(100))
    assert set_former_end_aside(tmp_path, wsd(200), step=90).name == "90-1-sqrt-10-2"


def test_checkpoints_that_agree_stay_where_they_are(tmp_path):
    checkpoint(tmp_path, 100, wsd(200))
    assert set_former_end_aside(tmp_path, wsd(200), step=90) is None
