"""A family read back from its files: hf_wsd/family.py."""

from pathlib import Path

import pytest

from hf_wsd.builders import wsd
from hf_wsd.checkpoint import FORK_POINTS
from hf_wsd.errors import RecordError
from hf_wsd.family import read_run
from hf_wsd.history import append_history
from hf_wsd.lineage import BRANCHES, RECORD, Lineage

TRUNK = wsd(num_warmup_steps=10, num_decay_steps=0)


@pytest.fixture
def family(tmp_path):
    """A trunk with checkpoints at 60 and 90 (and 30, rotated away but kept), and branches of 80 and 100 steps."""
    for folder, step in ((FORK_POINTS, 30), ("", 60), ("", 90)):
        checkpoint = tmp_path / folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        Lineage(step=step, kind="fork", schedule=TRUNK, last_step=90).write(checkpoint)
    for fork, end in ((90, 100), (60, 80)):
        branch = tmp_path / BRANCHES / f"{fork}-1-sqrt-{end - fork}"
        branch.mkdir(parents=True)
        schedule = TRUNK.fork(fork, decay_steps=end - fork)
        Lineage(step=fork, kind="planned", schedule=schedule, last_step=end).write(branch)
    for row in ({"step": 60, "loss": 4.0}, {"step": 60, "eval_loss": 3.9, "eval_runtime": 1.0}):
        append_history(tmp_path, row)
    return tmp_path


def test_run_has_a_record_for_every_checkpoint_kept_ones_too(family):
    assert {step: record.step for step, record in read_run(family).records.items()} == {30: 30, 60: 60, 90: 90}


def test_latest_record_is_that_of_the_last_step(family):
    assert read_run(family).latest.step == 90


def test_checkpoint_without_a_record_is_a_checkpoint_all_the_same(family):
    (family / "checkpoint-95").mkdir()
    assert (list(read_run(family).checkpoints), read_run(family).latest.step) == ([30, 60, 90, 95], 90)


def test_branches_come_shortest_first(family):
    assert [branch.planned.last_step for branch in read_run(family).branches] == [80, 100]


@pytest.mark.parametrize("order", [1, -1])
def test_branches_of_equal_end_come_by_name(family, order, monkeypatch):
    for fork in (40, 50, 70):
        branch = family / BRANCHES / f"{fork}-1-sqrt-{80 - fork}"
        branch.mkdir()
        Lineage(step=fork, kind="planned", schedule=TRUNK.fork(fork, decay_steps=80 - fork)).write(branch)
    as_listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *args: sorted(as_listed(*args))[::order])
    names = [branch.path.name for branch in read_run(family).branches]
    assert names == ["40-1-sqrt-40", "50-1-sqrt-30", "60-1-sqrt-20", "70-1-sqrt-10", "90-1-sqrt-10"]


def test_walk_visits_a_run_before_its_branches(family):
    assert [run.path.name for run in read_run(family).walk()] == [family.name, "60-1-sqrt-20", "90-1-sqrt-10"]


def test_run_is_finished_when_its_last_step_is_saved(family):
    assert [run.finished for run in read_run(family).walk()] == [True, False, False]


def test_losses_are_those_of_the_evaluation_at_that_step(family):
    assert [read_run(family).losses_at(step) for step in (60, 90)] == [{"loss": 3.9}, {}]


def test_losses_of_several_evaluation_sets_are_all_there(family):
    for row in ({"eval_en_loss": 3.5, "eval_en_runtime": 1.0}, {"eval_de_loss": 4.5}, {"loss": 4.0}):
        append_history(family, {"step": 90} | row)
    assert read_run(family).losses_at(90) == {"en_loss": 3.5, "de_loss": 4.5}


def test_losses_are_those_of_the_last_evaluation_at_that_step(family):
    append_history(family, {"step": 60, "eval_loss": 3.8})
    assert read_run(family).losses_at(60) == {"loss": 3.8}


def test_folder_without_records_is_no_run(tmp_path):
    with pytest.raises(RecordError, match=f"{tmp_path} is no run of hf_wsd.*--output_dir"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "a file"])
def test_what_is_no_folder_is_no_run(tmp_path, name):
    (tmp_path / "a file").write_text("")
    with pytest.raises(RecordError, match="is no run of hf_wsd"):
        read_run(tmp_path / name)


def test_branch_that_has_saved_nothing_has_no_latest_record(family):
    with pytest.raises(RecordError, match="has no checkpoint with a record"):
        read_run(family).branches[0].latest  # noqa: B018


def test_damaged_record_in_a_family_is_named(family):
    (family / "checkpoint-60" / RECORD).write_text("{")
    with pytest.raises(RecordError, match=r"checkpoint-60/wsd\.json cannot be read"):
        read_run(family)
