"""Schedules and previews as text: hf_wsd/show.py."""

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.baselines import constant, cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.legs import METHODS
from hf_wsd.preview import Preview
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase, Segment
from hf_wsd.show import (
    BLOCKS,
    columns,
    first_difference_text,
    last_shown,
    preview_text,
    schedule_text,
    side_by_side,
    sparkline,
)

# --- sparkline ---


@given(total=st.integers(1, 300), width=st.integers(1, 80))
def test_sparkline_has_as_many_blocks_as_its_width(total, width):
    assert len(sparkline(cosine(total), stop=total, width=width)) == width


@given(arguments=reference.wsd_arguments(falls=("linear", "cosine", "1-sqrt")), width=st.integers(1, 80))
def test_sparkline_rises_and_then_falls(arguments, width):
    schedule = wsd(**arguments)
    blocks = [BLOCKS.index(c) for c in sparkline(schedule, stop=schedule.total_steps, width=width)]
    top = blocks.index(max(blocks))
    assert blocks == sorted(blocks[:top]) + sorted(blocks[top:], reverse=True)


def test_sparkline_of_the_peak_is_full():
    assert sparkline(constant(), stop=50, width=5) == "█████"


def test_sparkline_of_nothing_is_empty_blocks():
    zero = Schedule((Segment(phase=Phase.STABLE, steps=50, start=0.0, end=0.0),))
    assert sparkline(zero, stop=50, width=5) == "▁▁▁▁▁"


def test_a_block_shows_the_mean_of_its_updates():
    step = multi_step(100, milestones=[50], multipliers=[0.5])
    assert sparkline(step, stop=100, width=4) == "██▅▅"


# --- one schedule ---


@pytest.mark.parametrize(
    ("schedule", "stop", "end"),
    [
        (wsd(100), None, 100),
        (wsd(100), 700, 100),
        (constant(), None, 10),
        (constant(), 700, 700),
        (constant(num_warmup_steps=50), None, 500),
        (constant(num_warmup_steps=50), 700, 700),
    ],
)
def test_drawing_ends_at(schedule, stop, end):
    assert last_shown(schedule, stop) == end


def test_columns_are_aligned_without_spaces_at_the_end():
    assert columns([("name", "x", ""), ("a", "100", "b")]) == "name    x\na     100  b"


def test_text_of_a_schedule_names_each_phase_with_its_steps():
    rows = [line.split() for line in schedule_text(wsd(100, num_warmup_steps=10)).splitlines()[2:5]]
    assert rows == [
        ["warmup", "0", "10", "0", "->", "1", "linear"],
        ["stable", "10", "90", "1", "constant"],
        ["decay", "90", "100", "1", "->", "0", "1-sqrt"],
    ]


def test_text_of_a_schedule_names_the_parameters_of_its_shape():
    assert "power p=3" in schedule_text(wsd(100, decay_type="power", decay_params={"p": 3.0}))


def test_text_of_a_trunk_is_open():
    assert schedule_text(constant()).splitlines()[-2].split() == ["stable", "0", "open", "1", "constant"]


def test_text_of_a_schedule_ends_with_its_checkpoints():
    schedule = wsd_s(cycle_ends=[100, 200])
    marks = ", ".join(f"{step} {kind}" for step, kind in schedule.checkpoint_steps().items())
    assert schedule_text(schedule).splitlines()[-1] == f"checkpoints: {marks}"


def test_text_of_a_trunk_has_no_checkpoints():
    assert schedule_text(constant()).splitlines()[-1] == "checkpoints: none"


def test_table_has_the_lr_of_every_so_many_updates_and_of_the_last():
    schedule = wsd(100, num_decay_steps=30, decay_type="linear")
    lines = schedule_text(schedule, every=40).splitlines()
    rows = lines[next(i for i, line in enumerate(lines) if line.startswith("step")) + 1 : -1]
    assert [row.split() for row in rows] == [
        [str(step), f"{schedule(step):.6g}", schedule.phase(step).value] for step in (0, 40, 80, 99)
    ]


def test_table_of_longer_strides_than_the_schedule_has_the_first_and_the_last_update():
    lines = schedule_text(wsd(100), every=1000).splitlines()
    assert [line.split()[0] for line in lines[-3:-1]] == ["0", "99"]


# --- two schedules ---


LENGTHS = st.integers(20, 80)
DECAYS = st.integers(1, 9)


@given(totals=st.tuples(LENGTHS, LENGTHS), decays=st.tuples(DECAYS, DECAYS), warmup=st.integers(0, 5))
def test_named_step_is_the_first_that_differs(totals, decays, warmup):
    one = wsd(totals[0], num_warmup_steps=warmup, num_decay_steps=decays[0])
    two = wsd(totals[1], num_warmup_steps=5, num_decay_steps=decays[1])
    lrs = [[*s.multipliers(), *[None] * (100 - s.total_steps)] for s in (one, two)]
    first = next((step for step in range(100) if lrs[0][step] != lrs[1][step]), None)
    text = first_difference_text(one, two)
    assert text.split(",")[0] == ("no difference" if first is None else f"first differing step: {first}")


def test_both_lrs_of_the_first_differing_step_are_named():
    text = first_difference_text(wsd(100, decay_type="linear"), wsd(100, num_decay_steps=20, decay_type="linear"))
    assert text == "first differing step: 81, lr / peak 1 | 0.95"


def test_schedule_that_has_ended_has_no_lr_there():
    longer = wsd(200, num_decay_steps=10)
    assert first_difference_text(constant(100), longer) == "first differing step: 100, lr / peak ended | 1"


def test_equal_lrs_in_other_phases_are_told_apart():
    calm, fallen = (Schedule((Segment(phase=phase, steps=10),)) for phase in (Phase.STABLE, Phase.DECAY))
    assert first_difference_text(calm, fallen).startswith("equal lrs, other phases: from step 0")


def test_side_by_side_has_both_texts_line_by_line():
    one, other = wsd(100), wsd(100, num_warmup_steps=10, decay_type="linear")
    lines = [line.split("  |  ") for line in side_by_side(one, other, names=("a", "b")).splitlines()[:-1]]
    left, right = ([cells[i].rstrip() for cells in lines if len(cells) > i and cells[i].strip()] for i in (0, 1))
    assert left == ["a", *schedule_text(one).splitlines()]
    assert right == ["b", *schedule_text(other).splitlines()]


def test_side_by_side_ends_with_the_first_difference():
    one, other = wsd(100), wsd(200)
    assert side_by_side(one, other, names=("a", "b")).splitlines()[-1] == first_difference_text(one, other)


# --- a preview ---

SIZES = {"parameters": 124_000_000, "tokens_per_second": 50_000, "lengths": {"tokens_per_step": 1000}}


@pytest.mark.parametrize("method", METHODS)
def test_text_of_a_preview_names_every_kept_checkpoint(method):
    preview = Preview.make(method, ["100", "300"])
    text = preview_text(preview)
    assert all(kept.path("RUN") in text for kept in preview.kept())


@pytest.mark.parametrize("method", METHODS)
def test_text_of_a_preview_names_every_run_with_its_updates(method):
    preview = Preview.make(method, ["100", "300"])
    rows = [line.split()[:4] for line in preview_text(preview).splitlines()]
    assert all([leg.name, str(leg.start), str(leg.end), str(leg.steps)] in rows for leg in preview.legs)


def test_text_of_a_preview_states_the_formulas_and_all_costs():
    text = preview_text(Preview.make("wsd", ["1M", "3M"], **SIZES))
    assert "wsd: 3,100 updates, 3.1M tokens, 2.31e+15 FLOPs (6 N D), 0.0 GPU-hours = 103 % of the longest model" in text
    assert "separate runs: 4,000 updates, 4M tokens, 2.98e+15 FLOPs (6 N D), 0.0 GPU-hours = 133 %" in text
    assert "disk: 4 checkpoints, 5.95 GB (12 bytes a parameter" in text


def test_text_of_a_preview_ends_with_the_saving():
    text = preview_text(Preview.make("wsd", ["10%", "30%", "50%", "70%", "100%"], lengths={"of": "10000"}))
    assert text.splitlines()[-1] == "saving: 55.4 % of the separate runs"


def test_text_of_a_preview_leaves_out_what_is_not_known():
    text = preview_text(Preview.make("wsd", ["100", "300"]))
    assert not any(word in text for word in ("FLOPs", "GPU-hours", "disk", "None"))
