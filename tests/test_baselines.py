"""Schedules to compare WSD with: hf_wsd/baselines.py, against transformers' own to the last bit."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainer_runs import lrs_in_an_optimizer
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
)

from hf_wsd.baselines import constant, cosine, cyclic_cosine, multi_step
from hf_wsd.builders import wsd
from hf_wsd.errors import ScheduleError, ShapeError
from hf_wsd.schedule import Schedule
from hf_wsd.scheduler import WSDScheduler

NO_LENGTHS = [True, 1.5, 100.0, "100", float("nan"), float("inf"), -1, [100], {}, None]
NO_RATIOS = [True, "0.1", float("nan"), float("inf"), -0.1, 1.1, [0.1]]
BUILDERS = [cosine, cyclic_cosine, multi_step, constant]
COSINES = [cosine, cyclic_cosine]


# --- cosine ---


@given(warmup=st.integers(0, 30), decay=st.integers(1, 40), peak=st.floats(1e-6, 10))
def test_cosine_is_transformers_to_the_last_bit(warmup, decay, peak):
    total = warmup + decay
    ours = cosine(total, num_warmup_steps=warmup)
    mine = lrs_in_an_optimizer(lambda o: WSDScheduler(o, ours), steps=total + 1, peak=peak)
    assert mine == lrs_in_an_optimizer(
        lambda o: get_cosine_schedule_with_warmup(o, warmup, total), steps=total + 1, peak=peak
    )


@given(warmup=st.integers(0, 30), decay=st.integers(1, 40), rest=st.integers(0, 9), minimum=st.floats(0, 1))
def test_cosine_to_a_minimum_is_transformers_to_the_last_bit(warmup, decay, rest, minimum):
    end = warmup + decay
    ours = cosine(end, num_warmup_steps=warmup, min_lr_ratio=minimum)
    mine = lrs_in_an_optimizer(lambda o: WSDScheduler(o, ours), steps=end)
    theirs = lrs_in_an_optimizer(
        lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, warmup, end, min_lr_rate=minimum), steps=end
    )
    assert mine == theirs


def test_cosine_stays_at_its_minimum_for_the_updates_it_is_given():
    schedule = cosine(100, num_warmup_steps=10, num_min_steps=30, min_lr_ratio=0.1)
    assert schedule.multipliers(0, 70) == cosine(70, num_warmup_steps=10, min_lr_ratio=0.1).multipliers()
    assert schedule.multipliers(70) == [0.1] * 30


def test_cosine_warms_up_from_where_it_is_told_to():
    schedule = cosine(100, num_warmup_steps=10, warmup_start=0.5, min_lr_ratio=0.1)
    assert schedule.multipliers(0, 11) == pytest.approx([0.5 + 0.05 * u for u in range(11)])


# --- cyclic cosine ---


@given(warmup=st.integers(0, 10), period=st.integers(1, 30), cycles=st.integers(1, 5))
def test_cyclic_cosine_of_equal_cycles_is_transformers_hard_restarts(warmup, period, cycles):
    total = warmup + cycles * period
    ends = [warmup + (i + 1) * period for i in range(cycles)]
    ours = cyclic_cosine(cycle_ends=ends, num_warmup_steps=warmup)
    theirs = lrs_in_an_optimizer(
        lambda o: get_cosine_with_hard_restarts_schedule_with_warmup(o, warmup, total, cycles), steps=total, peak=1.0
    )
    # Theirs divides by the whole run and takes the remainder: at a restart that can round to the end of the cycle.
    close = [abs(a - b) < 1e-12 for a, b in zip(ours.multipliers(), theirs, strict=True)]
    wrapped = [u in ends and b < 1e-12 for u, b in enumerate(theirs)]
    assert [c or w for c, w in zip(close, wrapped, strict=True)] == [True] * total


@pytest.mark.parametrize("cycles", [1, 2, 4, 8])
def test_cyclic_cosine_of_two_to_the_n_cycles_is_transformers_to_the_last_bit(cycles):
    ours = cyclic_cosine(cycle_ends=[10 + 64 * (i + 1) for i in range(cycles)], num_warmup_steps=10)
    total = 10 + 64 * cycles
    theirs = lrs_in_an_optimizer(
        lambda o: get_cosine_with_hard_restarts_schedule_with_warmup(o, 10, total, cycles), steps=total
    )
    assert lrs_in_an_optimizer(lambda o: WSDScheduler(o, ours), steps=total) == theirs


def test_cyclic_cosine_of_one_cycle_is_cosine():
    asked = {"num_warmup_steps": 10, "num_min_steps": 5, "min_lr_ratio": 0.1, "warmup_start": 0.2}
    assert cyclic_cosine(100, **asked) == cosine(100, **asked)


def test_later_cycles_climb_from_the_minimum_to_their_peak():
    schedule = cyclic_cosine(cycle_ends=[100, 200], cycle_peaks=[1, 0.5], num_rewarmup_steps=4, min_lr_ratio=0.1)
    assert schedule.multipliers(100, 105) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_every_cycle_has_its_updates_at_the_minimum():
    schedule = cyclic_cosine(cycle_ends=[100, 200], num_min_steps=3, min_lr_ratio=0.1)
    assert schedule.multipliers(97, 101) == [0.1, 0.1, 0.1, 1.0]


def test_model_at_the_end_of_each_cycle_is_kept():
    kept = cyclic_cosine(cycle_ends=[100, 200], num_warmup_steps=10).checkpoint_steps()
    assert [step for step, kind in kept.items() if kind == "post-decay"] == [100, 200]


# --- multi-step ---


@pytest.mark.parametrize("total", [100, 1000, 2000, 10_000])
def test_multi_step_is_deepseeks_if_nothing_is_said(total):
    levels = [1.0] * round(0.8 * total) + [0.316] * round(0.1 * total) + [0.1] * round(0.1 * total)
    assert multi_step(total).multipliers() == levels


@given(tens=st.integers(1, 200), warmup=st.integers(0, 7))
def test_multi_step_is_wsd_with_the_multi_step_shape_where_tenths_are_whole(tens, warmup):
    total = 10 * tens
    other = wsd(total, num_warmup_steps=warmup, decay_fraction=0.2, decay_type="multi-step")
    assert multi_step(total, num_warmup_steps=warmup).multipliers() == other.multipliers()


def test_milestones_are_the_first_steps_at_each_multiplier():
    schedule = multi_step(100, milestones=[50, 75, 90], multipliers=[0.5, 0.25, 0])
    assert [schedule(u) for u in (49, 50, 74, 75, 89, 90, 99)] == [1.0, 0.5, 0.5, 0.25, 0.25, 0, 0]


def test_milestone_fractions_are_of_the_run():
    asked = {"multipliers": [0.5, 0.1]}
    assert multi_step(200, milestone_fractions=[0.5, 0.75], **asked) == multi_step(200, milestones=[100, 150], **asked)


def test_multi_step_may_drop_right_after_the_warmup():
    schedule = multi_step(100, num_warmup_steps=50, milestones=[50], multipliers=[0.5])
    assert (schedule(49), schedule(50)) == (0.98, 0.5)


# --- constant ---


@given(warmup=st.integers(0, 30), rest=st.integers(0, 30))
def test_constant_is_transformers_to_the_last_bit(warmup, rest):
    total = max(warmup + rest, 1)
    ours = constant(total, num_warmup_steps=warmup)
    mine = lrs_in_an_optimizer(lambda o: WSDScheduler(o, ours), steps=total)
    assert mine == lrs_in_an_optimizer(lambda o: get_constant_schedule_with_warmup(o, warmup), steps=total)


def test_constant_without_a_length_is_a_trunk():
    asked = {"num_warmup_steps": 10, "warmup_type": "cosine", "warmup_start": 0.2}
    assert constant(**asked) == wsd(num_decay_steps=0, **asked)


def test_constant_that_is_all_warmup_ends_at_the_peak():
    schedule = constant(10, num_warmup_steps=10)
    assert (schedule.total_steps, schedule(9), schedule(10)) == (10, 0.9, 1.0)


# --- refusals ---


@pytest.mark.parametrize("length", [*NO_LENGTHS[:-1], 0])
@pytest.mark.parametrize("build", [cosine, multi_step, constant])
def test_run_of_a_length_that_is_no_count_is_refused(build, length):
    with pytest.raises(ScheduleError, match="num_training_steps"):
        build(length)


@pytest.mark.parametrize("length", NO_LENGTHS)
@pytest.mark.parametrize("build", BUILDERS)
def test_warmup_of_a_length_that_is_no_count_is_refused(build, length):
    with pytest.raises(ScheduleError, match="num_warmup_steps"):
        build(100, num_warmup_steps=length)


@pytest.mark.parametrize("length", NO_LENGTHS)
@pytest.mark.parametrize("build", COSINES)
def test_number_of_updates_at_the_minimum_that_is_no_count_is_refused(build, length):
    with pytest.raises(ScheduleError, match="num_min_steps"):
        build(100, num_min_steps=length)


@pytest.mark.parametrize("value", [*NO_RATIOS, None])
@pytest.mark.parametrize("build", COSINES)
def test_minimum_outside_0_and_1_is_refused(build, value):
    with pytest.raises(ScheduleError, match=r"min_lr_ratio must lie in \[0, 1\]"):
        build(100, min_lr_ratio=value)


@pytest.mark.parametrize("value", [*NO_RATIOS, None])
@pytest.mark.parametrize("build", [cosine, cyclic_cosine, constant])
def test_warmup_start_outside_0_and_1_is_refused(build, value):
    with pytest.raises(ScheduleError, match=r"warmup_start must lie in \[0, 1\]"):
        build(100, num_warmup_steps=10, warmup_start=value)


@pytest.mark.parametrize("build", COSINES)
def test_cosine_whose_warmup_is_the_whole_run_is_refused(build):
    with pytest.raises(ScheduleError, match="a warm-up of 100 steps leaves nothing of a run of 100"):
        build(100, num_warmup_steps=100)


@pytest.mark.parametrize("build", COSINES)
def test_cosine_without_an_update_beside_warmup_and_minimum_is_refused_with_the_numbers(build):
    with pytest.raises(
        ScheduleError, match="a warm-up of 60 steps leaves nothing of a run of 100 with 40 steps at the minimum"
    ):
        build(100, num_warmup_steps=60, num_min_steps=40)


def test_cycles_that_end_before_the_run_are_refused_with_the_repair():
    with pytest.raises(ScheduleError, match=r"the run has 300 steps but cycle_ends is .100, 200.*--max_steps 200"):
        cyclic_cosine(300, cycle_ends=[100, 200])


def test_cyclic_cosine_without_a_length_is_refused_with_an_example():
    with pytest.raises(ScheduleError, match="give cycle_ends, for example"):
        cyclic_cosine()


def test_another_number_of_peaks_than_cycles_is_refused():
    with pytest.raises(ScheduleError, match=r"each of the 2 cycles, not \[1\]"):
        cyclic_cosine(cycle_ends=[100, 200], cycle_peaks=[1])


@pytest.mark.parametrize("ends", [[100], [100, 200]])
def test_rewarmup_steps_and_fraction_together_are_refused(ends):
    with pytest.raises(ScheduleError, match=r"num_rewarmup_steps \(5\) or rewarmup_fraction \(0\.1\), not both"):
        cyclic_cosine(cycle_ends=ends, num_rewarmup_steps=5, rewarmup_fraction=0.1)


def test_milestones_and_fractions_together_are_refused():
    with pytest.raises(
        ScheduleError, match=r"give milestones \(\[80\]\) or milestone_fractions \(\[0\.8\]\), not both"
    ):
        multi_step(100, milestones=[80], milestone_fractions=[0.8], multipliers=[0.1])


@pytest.mark.parametrize("milestones", [[90, 80], [80, 80], [5, 80], [80, 100], [80, 200]])
def test_milestones_that_do_not_rise_within_the_run_are_refused(milestones):
    with pytest.raises(
        ScheduleError, match=r"milestones rise from the warm-up's end \(10\) to the run's \(100\), not as"
    ):
        multi_step(100, num_warmup_steps=10, milestones=milestones)


@pytest.mark.parametrize("milestones", [[0, 80], [-5, 80], [1.5, 80], ["80", 90], [None, 90], [True, 90], 80, "80 90"])
def test_milestones_that_are_no_counts_are_refused(milestones):
    with pytest.raises(ScheduleError, match="milestone"):
        multi_step(100, milestones=milestones)


@pytest.mark.parametrize("fractions", [[0, 0.9], [0.8, 1], [80, 90], ["0.8", 0.9], [None, 0.9], 0.8, "0.8 0.9"])
def test_milestone_fractions_outside_0_and_1_are_refused(fractions):
    with pytest.raises(ScheduleError, match="milestone"):
        multi_step(100, milestone_fractions=fractions)


@pytest.mark.parametrize(("milestones", "multipliers"), [([80], [0.3, 0.1]), ([80, 90], [0.3]), ([], []), ([80], [])])
def test_another_number_of_multipliers_than_milestones_is_refused(milestones, multipliers):
    asked = f"{len(milestones)} milestones need as many multipliers, not {len(multipliers)}"
    with pytest.raises(ScheduleError, match=asked):
        multi_step(100, milestones=milestones, multipliers=multipliers)


@pytest.mark.parametrize("multipliers", [[0.1, 0.3], [0.5, 0.6]])
def test_multipliers_that_rise_are_refused(multipliers):
    with pytest.raises(ScheduleError, match="multipliers fall from the peak on, not as"):
        multi_step(100, multipliers=multipliers)


@pytest.mark.parametrize("multipliers", [[1.5, 0.1], [0.5, -0.1], ["0.3", 0.1], [None, 0.1], [float("nan"), 0.1], 0.5])
def test_multipliers_that_are_no_parts_of_the_peak_are_refused(multipliers):
    with pytest.raises(ScheduleError, match="multiplier"):
        multi_step(100, multipliers=multipliers)


def test_constant_whose_warmup_is_longer_than_the_run_is_refused():
    with pytest.raises(ScheduleError, match="a warm-up of 11 steps is longer than the run of 10"):
        constant(10, num_warmup_steps=11)


def test_multi_step_whose_warmup_is_longer_than_its_first_milestone_is_refused():
    with pytest.raises(ScheduleError, match=r"warm-up's end \(90\)"):
        multi_step(100, num_warmup_steps=90)


def test_unknown_warmup_type_is_answered_with_the_nearest():
    with pytest.raises(ShapeError, match="did you mean 'cosine'"):
        constant(100, warmup_type="cosin")


# --- as JSON ---


@pytest.mark.parametrize(
    "schedule",
    [
        cosine(np.int64(100)),
        cyclic_cosine(cycle_ends=np.array([100, 200])),
        multi_step(np.int64(100), milestones=np.array([80, 90])),
        constant(np.int64(100), num_warmup_steps=np.int64(10)),
    ],
    ids=["cosine", "cyclic_cosine", "multi_step", "constant"],
)
def test_baseline_of_numpy_integers_survives_json(schedule):
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
