"""Records, histories and the tree that they make: hf_wsd/lineage.py."""

import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.builders import wsd
from hf_wsd.checkpoint import FORK_POINTS
from hf_wsd.errors import RecordError
from hf_wsd.family import read_run
from hf_wsd.history import HISTORY, append_history, cut_history, losses_of, read_history, write_atomically
from hf_wsd.lineage import BRANCHES, RECORD, Command, Lineage, Parent

TRUNK = wsd(num_warmup_steps=10, num_decay_steps=0)
FULL = Lineage(
    step=80,
    kind="post-decay",
    schedule=TRUNK.fork(60, decay_steps=20),
    last_step=80,
    intent="branch",
    parent=Parent(checkpoint="../../checkpoint-60", step=60),
    requested="0.4M",
    tokens_per_step=2048,
    tokens=163840,
    parameters=500_000,
    peak_lrs=(0.005, 1 / 3),
    losses={"loss": 3.5, "bits_per_byte": 1.25},
    setup={"seed": 42, "data_seed": None, "precision": "fp32"},
    settings={"trunk": True, "budgets": ["0.4M"], "decay_fraction": 0.2},
    data="1000-abcdef",
    skipped_updates=2,
    command=Command(
        argv=("run.py", "--lr", "1"),
        cwd="work",
        world_size=2,
        environment={"ACCELERATE_X": "1"},
        files={"a.json": "{}"},
    ),
    versions={"torch": "2.13.0"},
    saved_at="2026-01-01T00:00:00+00:00",
)
BARE = Lineage(step=10, kind="periodic", schedule=TRUNK)


def as_read_from_json(record: Lineage) -> dict:
    return json.loads(json.dumps(record.to_dict()))


# --- one record ---


@pytest.mark.parametrize("record", [FULL, BARE], ids=["full", "bare"])
def test_record_survives_json(record):
    assert Lineage.from_dict(as_read_from_json(record)) == record


@given(
    step=st.integers(0, 10**12),
    peak_lrs=st.lists(st.floats(1e-9, 10), max_size=3).map(tuple),
    losses=st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False), max_size=3),
    requested=st.none() | st.text(max_size=10),
)
def test_record_of_any_numbers_and_texts_survives_json(step, peak_lrs, losses, requested):
    record = Lineage(step=step, kind="end", schedule=TRUNK, peak_lrs=peak_lrs, losses=losses, requested=requested)
    assert Lineage.from_dict(as_read_from_json(record)) == record


def test_record_survives_its_file(tmp_path):
    FULL.write(tmp_path)
    assert Lineage.read(tmp_path) == FULL


def test_record_is_written_over_the_old_one(tmp_path):
    BARE.write(tmp_path)
    FULL.write(tmp_path)
    assert Lineage.read(tmp_path) == FULL


@pytest.mark.parametrize("field", ["schema", "step", "kind", "schedule"])
def test_record_without_what_it_cannot_do_without_is_refused(field):
    data = as_read_from_json(FULL)
    del data[field]
    with pytest.raises(RecordError, match=field):
        Lineage.from_dict(data)


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_record_of_another_schema_is_refused(schema):
    with pytest.raises(RecordError, match=f"schema {schema!r}: this version of hf_wsd reads 1"):
        Lineage.from_dict(as_read_from_json(FULL) | {"schema": schema})


def test_record_with_an_unknown_field_is_refused():
    with pytest.raises(RecordError, match=r"damaged record: .*mood"):
        Lineage.from_dict(as_read_from_json(FULL) | {"mood": "good"})


TEXT, NUMBER, LIST, NO_TABLE = "x", 1.5, [1], [5, "x", [1]]
WRONG = {
    "step": [TEXT, NUMBER, LIST, None, -1, {}],
    "kind": [5, LIST, None],
    "schedule": [TEXT, NUMBER, LIST, None, {}, {"schema": 1, "segments": [{"phase": "x", "steps": 5}]}],
    "last_step": [TEXT, NUMBER, LIST],
    "intent": [5, LIST, None],
    "parent": [TEXT, 5, LIST, {"step": 5}, {"checkpoint": "a", "step": 5, "more": 1}],
    "tokens_per_step": [TEXT, LIST],
    "tokens": [TEXT, LIST],
    "peak_lrs": [TEXT, 5, None, ["x"]],
    "losses": [*NO_TABLE, None],
    "setup": [*NO_TABLE, None],
    "settings": [*NO_TABLE, None],
    "skipped_updates": [TEXT, LIST, None],
    "command": [TEXT, 5, LIST, {"argv": ["a"]}, {"cwd": "b"}, {"argv": 5, "cwd": "b"}],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_record_with_a_wrong_value_is_refused(field, value):
    with pytest.raises(RecordError):
        Lineage.from_dict(as_read_from_json(FULL) | {field: value})


@pytest.mark.parametrize("data", [None, [], 5, "record", {}])
def test_what_is_no_record_is_refused(data):
    with pytest.raises(RecordError):
        Lineage.from_dict(data)


def test_missing_record_is_answered_with_the_repair(tmp_path):
    with pytest.raises(RecordError, match=r"no record at .*wsd\.json: .* resume the run from it once"):
        Lineage.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"5", b'"x"', b"{}", b"\xff\xfe", b'{"schema": 1}'])
def test_damaged_file_is_named_with_the_repair(tmp_path, content):
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(RecordError, match=r"wsd\.json cannot be read .*Delete it and resume the run"):
        Lineage.read(tmp_path)


def test_record_where_a_folder_is_is_refused(tmp_path):
    (tmp_path / RECORD).mkdir()
    with pytest.raises(RecordError, match=r"wsd\.json"):
        Lineage.read(tmp_path)


# --- writing ---


def test_reader_never_sees_half_a_file(tmp_path):
    file, texts = tmp_path / "file", ["a" * 200_000, "b" * 100_000]
    write_atomically(file, texts[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(60):
        write_atomically(file, texts[i % 2])
    stop.set()
    reader.join()
    assert seen <= set(texts)


def test_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "new \ud800")  # no UTF-8
    assert file.read_text() == "old"


def test_write_leaves_nothing_but_the_file(tmp_path):
    write_atomically(tmp_path / "file", "text")
    assert os.listdir(tmp_path) == ["file"]


# --- history ---


def rows(*steps):
    return [{"step": step, "loss": step / 10} for step in steps]


@pytest.fixture
def history(tmp_path):
    for row in rows(10, 20, 30):
        append_history(tmp_path, row)
    return tmp_path


def test_history_is_read_in_the_order_written(history):
    assert read_history(history) == rows(10, 20, 30)


def test_run_without_a_history_has_no_rows(tmp_path):
    assert read_history(tmp_path) == []


def test_last_row_torn_by_a_crash_is_left_out(history):
    with (history / HISTORY).open("a") as file:
        file.write('{"step": 40, "lo')
    assert read_history(history) == rows(10, 20, 30)


def test_row_after_a_torn_one_is_kept(history):
    with (history / HISTORY).open("a") as file:
        file.write('{"step": 40, "lo')
    append_history(history, rows(50)[0])
    assert read_history(history) == rows(10, 20, 30, 50)


@pytest.mark.parametrize(("after", "left"), [(0, ()), (19, (10,)), (20, (10, 20)), (99, (10, 20, 30))])
def test_resume_drops_the_rows_that_it_will_log_again(history, after, left):
    cut_history(history, after=after)
    assert read_history(history) == rows(*left)


def test_run_without_a_history_has_none_after_a_cut(tmp_path):
    cut_history(tmp_path, after=0)
    assert not (tmp_path / HISTORY).exists()


@pytest.mark.parametrize("line", ["null", "5", "[]", "{}"])
def test_line_that_is_no_row_is_left_out(history, line):
    with (history / HISTORY).open("a") as file:
        file.write(line + "\n")
    cut_history(history, after=99)
    assert read_history(history) == rows(10, 20, 30)


# --- losses ---


def test_losses_are_numbers_without_prefix_and_timings():
    metrics = {"eval_loss": 3, "eval_bits_per_byte": 1.5, "eval_runtime": 9.0, "eval_note": "x", "loss": 4.0}
    assert losses_of(metrics) == {"loss": 3.0, "bits_per_byte": 1.5}


def test_timings_of_several_evaluation_sets_are_no_losses():
    metrics = {"eval_web_loss": 3.0, "eval_web_runtime": 9.0, "eval_web_samples_per_second": 5.0}
    assert losses_of(metrics) == {"web_loss": 3.0}


# --- the tree ---


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


def test_walk_visits_a_run_before_its_branches(family):
    assert [run.path.name for run in read_run(family).walk()] == [family.name, "60-1-sqrt-20", "90-1-sqrt-10"]


def test_run_is_finished_when_its_last_step_is_saved(family):
    assert [run.finished for run in read_run(family).walk()] == [True, False, False]


def test_losses_are_those_of_the_evaluation_at_that_step(family):
    assert [read_run(family).losses_at(step) for step in (60, 90)] == [{"loss": 3.9}, {}]


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
