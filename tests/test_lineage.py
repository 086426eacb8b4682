"""The record beside a checkpoint: hf_wsd/lineage.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.builders import wsd
from hf_wsd.errors import RecordError
from hf_wsd.lineage import RECORD, Command, Lineage, Parent

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
    "parent": [TEXT, 5, LIST, {"step": 5}, {"checkpoint": "a", "step": 5, "more": 1}, {}, False, 0],
    "tokens_per_step": [TEXT, LIST],
    "tokens": [TEXT, LIST],
    "peak_lrs": [TEXT, "", {}, 5, None, ["x"]],
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


@pytest.mark.parametrize(
    ("field", "key", "value"),
    [
        ("parent", "checkpoint", 7),
        ("parent", "checkpoint", None),
        ("parent", "step", "x"),
        ("parent", "step", 1.5),
        ("parent", "step", True),
        ("command", "argv", "abc"),
        ("command", "argv", {"a": 1}),
        ("command", "argv", ["a", 5]),
        ("command", "cwd", 5),
        ("command", "world_size", "2"),
        ("command", "environment", None),
        ("command", "environment", {"A": 1}),
        ("command", "files", []),
    ],
)
def test_wrong_value_in_a_part_of_a_record_is_named(field, key, value):
    data = as_read_from_json(FULL)
    data[field][key] = value
    with pytest.raises(RecordError, match=rf"damaged record: {field}\.{key} cannot be "):
        Lineage.from_dict(data)


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
