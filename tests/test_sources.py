"""A schedule from what the user points at: hf_wsd/sources.py."""

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_wsd.baselines import constant, cosine, cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import CheckpointError, RecordError, ScheduleError, SettingsError, WSDError
from hf_wsd.lineage import BRANCHES, Lineage, Parent
from hf_wsd.schedule import Schedule
from hf_wsd.scheduler import WSDScheduler
from hf_wsd.sources import CALLS, read_schedule

TRUNK = wsd(num_warmup_steps=5, num_decay_steps=0)
MODEL = TRUNK.fork(30, decay_steps=10)


def write_record(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    Lineage(**{"step": 30, "kind": "fork", "schedule": TRUNK, "last_step": 60} | fields).write(folder)
    return folder


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


# --- calls ---


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("wsd(100)", wsd(100)),
        ("wsd(100, decay_fraction=0.2, decay_type='linear')", wsd(100, decay_fraction=0.2, decay_type="linear")),
        ("wsd(100, decay_type='power', decay_params={'p': 3})", wsd(100, decay_type="power", decay_params={"p": 3})),
        ("wsd_s(cycle_ends=[40, 100])", wsd_s(cycle_ends=[40, 100])),
        ("cosine(100, num_warmup_steps=10)", cosine(100, num_warmup_steps=10)),
        ("cyclic_cosine(cycle_ends=(40, 100))", cyclic_cosine(cycle_ends=[40, 100])),
        ("multi_step(100)", multi_step(100)),
        ("constant()", constant()),
    ],
)
def test_call_of_a_builder_is_its_schedule(text, schedule):
    assert read_schedule(text) == (schedule, None)


def test_long_call_is_no_path():
    ends = list(range(100, 10_000, 100))
    assert read_schedule(f"wsd_s(cycle_ends={ends})")[0] == wsd_s(cycle_ends=ends)


@pytest.mark.parametrize(
    "text",
    [
        "wsd(__import__('os').system('touch {file}'))",
        "wsd(100, decay_type=open('{file}', 'w'))",
        "__import__('os').system('touch {file}')",
        "wsd([open('{file}', 'w') for _ in (1,)])",
        "wsd(100).fork(open('{file}', 'w'))",
        "(lambda: open('{file}', 'w'))()",
        'wsd(f\'{{open("{file}", "w")}}\')',
        "wsd(*open('{file}', 'w'))",
    ],
)
def test_nothing_but_plain_values_is_evaluated(tmp_path, text):
    with pytest.raises(SettingsError):
        read_schedule(text.format(file=tmp_path / "made"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wsd(100", "cannot be read"),
        ("wsd(10**3)", "cannot be read"),
        ("wsd(100)(200)", "not one call"),
        ("wsd({[1]: 2})", "cannot be read"),
        ("wsdd(100)", "unknown schedule 'wsdd': did you mean 'wsd'"),
        ("wsd(100, decay=3)", "unexpected keyword argument 'decay'"),
        ("wsd(100, decay_fraction=0.1, decay_fraction=0.2)", "decay_fraction"),
        ("wsd(100, 200)", "positional argument"),
        ("cosine()", "missing 1 required positional argument"),
    ],
)
def test_call_that_cannot_be_made_is_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        read_schedule(text)


def test_lengths_that_do_not_fit_are_refused_as_by_the_builder():
    with pytest.raises(ScheduleError, match="longer than the run of 100"):
        read_schedule("wsd(100, num_warmup_steps=95)")


WORDS = ("num_warmup_steps", "num_decay_steps", "decay_type", "decay_params", "cycle_ends", "milestones", "multipliers")
PLAIN = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["", "linear", "10%"])
PARAMETERS = st.sampled_from(["p", "factor", "x"])
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PARAMETERS, inner, max_size=2),
    max_leaves=4,
)
NAMED = st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=4)


@given(name=st.sampled_from(sorted(CALLS)), values=st.lists(VALUES, max_size=1), named=NAMED)
def test_call_gives_a_schedule_or_an_error_of_ours(name, values, named):
    arguments = ", ".join([*map(repr, values), *(f"{word}={value!r}" for word, value in named.items())])
    assume(len(arguments) < 200)  # longer ones have a test of their own
    with suppress(WSDError):
        assert isinstance(read_schedule(f"{name}({arguments})")[0], Schedule)


# --- folders ---


def test_checkpoint_has_the_schedule_and_last_step_of_its_record(tmp_path):
    assert read_schedule(str(write_record(tmp_path / "checkpoint-30"))) == (TRUNK, 60)


def test_run_has_the_schedule_of_its_newest_checkpoint(tmp_path):
    write_record(tmp_path / "checkpoint-30")
    write_record(tmp_path / "checkpoint-60", step=60, schedule=wsd(80), last_step=80)
    assert read_schedule(str(tmp_path)) == (wsd(80), 80)


def test_branch_that_has_not_begun_has_the_planned_schedule(tmp_path):
    parent = Parent(checkpoint="../../checkpoint-30", step=30)
    branch = write_record(tmp_path / BRANCHES / "b", kind="planned", schedule=MODEL, last_step=40, parent=parent)
    assert read_schedule(str(branch)) == (MODEL, 40)


def test_folder_whose_name_has_a_parenthesis_is_a_folder(tmp_path):
    assert read_schedule(str(write_record(tmp_path / "wsd(100)")))[0] == TRUNK


def test_checkpoint_whose_record_is_lost_has_the_schedule_of_its_scheduler(tmp_path):
    torch.save(WSDScheduler(optimizer(), MODEL).state_dict(), tmp_path / "scheduler.pt")
    assert read_schedule(str(tmp_path)) == (MODEL, None)


def test_scheduler_that_is_not_ours_is_refused(tmp_path):
    state = torch.optim.lr_scheduler.LambdaLR(optimizer(), lambda _: 1.0).state_dict()
    torch.save(state, tmp_path / "scheduler.pt")
    with pytest.raises(CheckpointError, match="written by another scheduler"):
        read_schedule(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all"])
def test_damaged_scheduler_state_is_refused_by_name(tmp_path, content):
    (tmp_path / "scheduler.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"scheduler\.pt"):
        read_schedule(str(tmp_path))


def test_damaged_record_is_refused_by_name(tmp_path):
    (tmp_path / "wsd.json").write_text("{")
    with pytest.raises(RecordError, match=r"wsd\.json cannot be read"):
        read_schedule(str(tmp_path))


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RecordError, match="is no run of hf_wsd"):
        read_schedule(str(tmp_path))


# --- files ---


def test_record_is_a_file_too(tmp_path):
    assert read_schedule(str(write_record(tmp_path) / "wsd.json"))[0] == TRUNK


def test_dictionary_of_a_schedule_is_a_file(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(MODEL.to_dict()))
    assert read_schedule(str(tmp_path / "mine.json")) == (MODEL, None)


@pytest.mark.parametrize("data", [{}, {"a": 1}, [], [1], 5, None, "text", "schedule", ["schedule"], {"schedule": 1}])
def test_json_that_is_no_schedule_is_refused(tmp_path, data):
    (tmp_path / "other.json").write_text(json.dumps(data))
    with pytest.raises(WSDError, match="schema"):
        read_schedule(str(tmp_path / "other.json"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"PK\x03\x04\xff"])
def test_file_that_is_no_json_is_refused_by_name(tmp_path, content):
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(WSDError, match=r"other\.json"):
        read_schedule(str(tmp_path / "other.json"))


@pytest.mark.parametrize("text", ["nonsense", "wsd", "/nowhere/checkpoint-30", "wsd 100"])
def test_nonsense_is_refused_with_what_is_possible(text):
    with pytest.raises(SettingsError, match="is no run, checkpoint or file, and no call such as 'wsd\\(1000\\)'"):
        read_schedule(text)
