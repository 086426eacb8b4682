"""`wsd` and `wsd_s`: every lr against transformers' own and reference.py, and what they refuse: hf_wsd/builders.py."""

import json
import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_runs import lrs_in_an_optimizer
from transformers import get_wsd_schedule

from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import ScheduleError, ShapeError, WSDError
from hf_wsd.lengths import decay_length, total_for_fork
from hf_wsd.scheduler import WSDScheduler

TRANSFORMERS_SHAPES = ("linear", "cosine", "1-sqrt")


def lrs(schedule, steps):
    return [schedule(u) for u in range(steps)]


# --- wsd: transformers' own, to the last bit ---


@settings(max_examples=250)
@given(arguments=reference.wsd_arguments(falls=TRANSFORMERS_SHAPES, longest=25), peak=st.floats(1e-6, 10))
def test_wsd_in_an_optimizer_is_transformers_to_the_last_bit(arguments, peak):
    steps = arguments["num_training_steps"]
    ours = lrs_in_an_optimizer(lambda o: WSDScheduler(o, wsd(**arguments)), steps=steps + 1, peak=peak)
    theirs = lrs_in_an_optimizer(lambda o: get_wsd_schedule(o, **arguments), steps=steps + 1, peak=peak)
    assert ours == theirs


@pytest.mark.parametrize("decay_type", TRANSFORMERS_SHAPES)
@pytest.mark.parametrize("warmup_type", TRANSFORMERS_SHAPES)
@pytest.mark.parametrize("min_lr_ratio", [0, 0.0, 0.1, 1 / 3])
def test_wsd_given_num_stable_steps_is_transformers_to_the_last_bit(decay_type, warmup_type, min_lr_ratio):
    arguments = {"num_warmup_steps": 13, "num_stable_steps": 31, "num_decay_steps": 17, "min_lr_ratio": min_lr_ratio}
    arguments |= {"decay_type": decay_type, "warmup_type": warmup_type}
    ours = lrs_in_an_optimizer(lambda o: WSDScheduler(o, wsd(61, **arguments)), steps=62, peak=3e-4)
    theirs = lrs_in_an_optimizer(lambda o: get_wsd_schedule(o, **arguments), steps=62, peak=3e-4)
    assert ours == theirs


@given(arguments=reference.wsd_arguments())
def test_wsd_is_the_reference(arguments):
    ours = lrs(wsd(**arguments), arguments["num_training_steps"])
    assert ours == pytest.approx(reference.wsd(**arguments), abs=1e-13)


# --- wsd: lengths ---


def test_wsd_decays_the_last_tenth_if_nothing_is_said():
    assert wsd(1000).checkpoint_steps() == {900: "pre-decay", 1000: "post-decay"}


def test_wsd_without_a_stable_phase_goes_from_warmup_to_decay():
    schedule = wsd(30, num_warmup_steps=10, num_decay_steps=20, decay_type="linear")
    assert [schedule(10), schedule(20)] == [1.0, 0.5]


@given(length=st.integers(10, 10**6), part=st.integers(6, 94))
def test_decay_fraction_is_rounded_to_the_nearest_step(length, part):
    steps = decay_length(length, decay_fraction=part / 100)
    assert abs(100 * steps - part * length) <= 50  # int(0.29 * 100) is 28


def test_trunk_stays_at_the_peak_forever():
    trunk = wsd(num_warmup_steps=10, num_decay_steps=0)
    assert (trunk.total_steps, trunk(10), trunk(10**12)) == (None, 1.0, 1.0)


def test_trunk_is_the_same_whatever_the_length_of_the_run():
    assert wsd(100, num_warmup_steps=10, num_decay_steps=0) == wsd(5000, num_warmup_steps=10, num_decay_steps=0)


@pytest.mark.parametrize("fraction", [0.025, 0.1, 0.2, 1 / 3, 0.5, 0.8, 0.9, 0.97])
def test_total_for_fork_is_the_smallest_run_whose_decay_starts_there(fraction):
    forks = [fork for fork in range(1, 80) if round(fraction * (fork + 1)) > 0]
    totals = {fork: total_for_fork(fork, fraction) for fork in forks}
    assert totals == {fork: reference.smallest_total(fork, fraction) for fork in forks}


@pytest.mark.parametrize(("fork", "fraction"), [(1, 0.1), (4, 0.1), (19, 0.025)])
def test_fork_too_early_for_a_decay_of_that_fraction_is_refused(fork, fraction):
    with pytest.raises(ScheduleError, match="num_decay_steps"):
        total_for_fork(fork, fraction)


@given(fork=st.integers(100, 10**7), percent=st.integers(1, 60))
def test_run_for_a_fork_has_its_decay_start_there(fork, percent):
    total = total_for_fork(fork, percent / 100)
    assert total - round(percent / 100 * total) == fork


# --- wsd_s ---


@st.composite
def wsd_s_arguments(draw):
    lengths = draw(st.lists(st.integers(30, 60), min_size=1, max_size=4))
    decay_type = draw(st.sampled_from(reference.FALLS))
    return {
        "ends": [sum(lengths[: i + 1]) for i in range(len(lengths))],
        "num_warmup_steps": draw(st.integers(0, 15)),
        "num_decay_steps": draw(st.integers(1, 15)),
        "decay_type": decay_type,
        "min_lr_ratio": draw(st.floats(1e-6, 1)),
    }


@given(arguments=wsd_s_arguments())
def test_wsd_s_is_the_reference(arguments):
    expected = reference.wsd_s(**arguments)
    ends = arguments.pop("ends")
    assert lrs(wsd_s(cycle_ends=ends, **arguments), ends[-1]) == pytest.approx(expected, abs=1e-13)


@given(arguments=reference.wsd_arguments())
def test_wsd_s_of_one_cycle_is_wsd(arguments):
    assert wsd_s(**arguments) == wsd(**arguments)


def test_wsd_s_decays_to_a_tenth_by_the_papers_shape():
    schedule = wsd_s(cycle_ends=[100, 200])
    assert [schedule(95), schedule(100), schedule(195)] == [pytest.approx(1 / 5.5), 1.0, pytest.approx(1 / 5.5)]


def test_wsd_s_fraction_is_of_the_cycle():
    schedule = wsd_s(cycle_ends=[100, 300, 700], decay_fraction=0.2)
    assert [step for step, kind in schedule.checkpoint_steps().items() if kind == "pre-decay"] == [80, 260, 620]


def test_wsd_s_is_as_long_as_its_last_cycle_says():
    assert wsd_s(200, cycle_ends=[100, 200]) == wsd_s(cycle_ends=[100, 200])


# --- minimum, its updates, and the warm-up's start ---


@given(data=st.data(), peak=st.floats(1e-6, 10))
def test_wsd_with_updates_at_the_minimum_is_transformers_given_fewer_stable_steps(data, peak):
    arguments = data.draw(reference.wsd_arguments(falls=TRANSFORMERS_SHAPES, longest=25))
    rest, steps = data.draw(st.integers(0, 20)), arguments.pop("num_training_steps")
    stable = steps - arguments["num_warmup_steps"] - arguments["num_decay_steps"]
    ours = wsd(steps + rest, num_min_steps=rest, **arguments)
    ours = lrs_in_an_optimizer(lambda o: WSDScheduler(o, ours), steps=steps + rest + 1, peak=peak)
    theirs = lrs_in_an_optimizer(
        lambda o: get_wsd_schedule(o, num_stable_steps=stable, **arguments), steps=steps + rest + 1, peak=peak
    )
    assert ours == theirs


def test_updates_at_the_minimum_end_with_the_run():
    schedule = wsd(100, num_warmup_steps=10, num_decay_steps=20, num_min_steps=15, min_lr_ratio=0.1)
    assert (schedule.multipliers(64, 66), schedule.multipliers(85)) == ([1.0, 1.0], [0.1] * 15)
    assert schedule(84) > 0.1


def test_decay_and_its_updates_at_the_minimum_are_one_decay():
    schedule = wsd(100, num_decay_steps=20, num_min_steps=15)
    assert schedule.checkpoint_steps() == {65: "pre-decay", 100: "post-decay"}


def test_fraction_is_of_the_run_with_its_updates_at_the_minimum():
    assert wsd(100, decay_fraction=0.2, num_min_steps=5) == wsd(100, num_decay_steps=20, num_min_steps=5)


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_warmup_starts_where_it_is_told_to(build):
    schedule = build(100, num_warmup_steps=10, warmup_start=0.3, min_lr_ratio=0.1)
    assert schedule.multipliers(0, 11) == pytest.approx([0.3 + 0.07 * u for u in range(11)])


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_warmup_starts_at_the_minimum_if_nothing_is_said(build):
    assert build(100, num_warmup_steps=10, min_lr_ratio=0.25)(0) == 0.25


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_warmup_start_of_zero_is_not_the_minimum(build):
    assert build(100, num_warmup_steps=10, warmup_start=0, min_lr_ratio=0.25)(0) == 0


def test_trunk_has_the_warmup_start_of_its_run():
    trunk = wsd(num_warmup_steps=10, warmup_start=0.5, num_decay_steps=0)
    assert trunk.fork(80, decay_steps=20) == wsd(100, num_warmup_steps=10, warmup_start=0.5, num_decay_steps=20)


# --- parameters of shapes ---


def test_parameters_reach_the_shape():
    schedule = wsd(100, num_decay_steps=20, decay_type="power", decay_params={"p": 3})
    assert schedule.multipliers(80) == pytest.approx([(1 - i / 20) ** 3 for i in range(20)], abs=1e-15)


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_half_life_ends_where_it_is_after_its_steps(build):
    schedule = build(100, num_decay_steps=20, decay_type="half-life", decay_params={"half_life": 5})
    assert (schedule(85), schedule(90), schedule(100)) == (0.5, 0.25, 0.0625)


def test_wsd_s_of_multi_step_decays_ends_at_the_shapes_own_tenth():
    assert set(wsd_s(cycle_ends=[100, 200], decay_type="multi-step").multipliers()) == {1.0, 0.316, 0.1}


@pytest.mark.parametrize(("build", "minimum"), [(wsd, 0), (wsd_s, 0.1)])
def test_minimum_if_nothing_is_said(build, minimum):
    assert build(100) == build(100, min_lr_ratio=None) == build(100, min_lr_ratio=minimum)


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_minimum_that_is_the_shapes_own_end_is_taken(build):
    fall = {"num_decay_steps": 20, "decay_type": "half-life", "decay_params": {"half_life": 5}, "warmup_start": 0}
    assert build(100, min_lr_ratio=0.0625, **fall) == build(100, **fall)


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_other_minimum_than_a_half_lifes_own_end_is_refused_with_its_steps(build):
    fall = {"num_decay_steps": 20, "decay_type": "half-life", "decay_params": {"half_life": 5}}
    with pytest.raises(ShapeError, match=r"ends by itself at 0\.0625 \(after 20 steps\), not at 0\.2"):
        build(100, min_lr_ratio=0.2, **fall)


def test_updates_at_the_minimum_of_a_half_life_are_at_its_end():
    fall = {"decay_type": "half-life", "decay_params": {"half_life": 10}}
    assert wsd(100, num_decay_steps=20, num_min_steps=5, **fall).multipliers(95) == [0.25] * 5


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_minimum_of_a_shape_with_an_end_of_its_own_is_refused(build):
    with pytest.raises(
        ShapeError, match=r"multi-step shape ends by itself at 0\.1 .*not at 0\.2: leave min_lr_ratio out"
    ):
        build(100, decay_type="multi-step", min_lr_ratio=0.2)


@pytest.mark.parametrize("steps", [0, 20])
def test_parameter_that_the_shape_does_not_have_is_refused_even_for_a_trunk(steps):
    with pytest.raises(ShapeError, match="unknown parameter of the power shape 'pp': did you mean 'p'"):
        wsd(100, num_decay_steps=steps, decay_type="power", decay_params={"pp": 2})


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_parameter_of_a_shape_without_any_is_refused(build):
    with pytest.raises(ShapeError, match="the linear shape has no parameters, so p says nothing"):
        build(100, decay_type="linear", min_lr_ratio=0.1, decay_params={"p": 2})


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_shape_whose_parameter_is_missing_is_refused_with_an_example(build):
    with pytest.raises(
        ShapeError, match=r"half-life shape needs decay_params half_life, for example .'half_life': 5000"
    ):
        build(100, decay_type="half-life")


@pytest.mark.parametrize("p", [0, -1, float("nan"), float("inf"), "2", True, None])
def test_parameter_that_is_no_number_above_0_is_refused(p):
    with pytest.raises(ShapeError, match="p of the power shape must be a number above 0, not"):
        wsd(100, decay_type="power", decay_params={"p": p})


def test_function_that_rises_is_refused_as_a_decay():
    with pytest.raises(ShapeError, match="the shape math:sqrt"):
        wsd(100, num_decay_steps=10, decay_type="math:sqrt")


@pytest.mark.parametrize("name", ["os:nope", "no_such_module:f", ":", "math:", "math:pi", ".shapes:f", "..:f", "a b:c"])
def test_function_that_cannot_be_imported_is_refused(name):
    with pytest.raises(ShapeError, match="the shape "):
        wsd(100, num_decay_steps=10, decay_type=name)


@pytest.mark.parametrize("params", [5, "p", [1.5], [("p",)]])
def test_parameters_without_names_are_refused(params):
    with pytest.raises(ShapeError, match=r"parameters of a shape are given by name, such as .'p': 1\.5"):
        wsd(100, decay_type="power", decay_params=params)


# --- wsd_s: peaks, re-warm-ups, updates at the minimum ---


def test_cycles_have_the_peaks_they_are_given():
    schedule = wsd_s(cycle_ends=[100, 200, 300], cycle_peaks=[1, 0.5, 0.25])
    assert [schedule(u) for u in (50, 150, 250)] == [1.0, 0.5, 0.25]


def test_every_cycle_decays_from_its_own_peak_to_the_same_minimum():
    schedule = wsd_s(cycle_ends=[100, 200], cycle_peaks=[1, 0.5], decay_type="linear", min_lr_ratio=0.1)
    assert [schedule(95), schedule(195)] == pytest.approx([0.55, 0.3])


def test_first_warmup_climbs_to_the_first_cycles_peak():
    schedule = wsd_s(cycle_ends=[100], cycle_peaks=[0.5], num_warmup_steps=10, warmup_start=0)
    assert schedule.multipliers(0, 11) == pytest.approx([0.05 * u for u in range(11)])


def test_later_cycles_climb_from_the_minimum_to_their_peak():
    schedule = wsd_s(cycle_ends=[100, 200], cycle_peaks=[1, 0.5], num_rewarmup_steps=4, min_lr_ratio=0.1)
    assert schedule.multipliers(100, 105) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_climbs_of_later_cycles_start_at_the_minimum_wherever_the_warmup_started():
    schedule = wsd_s(cycle_ends=[100, 200], num_warmup_steps=10, warmup_start=0, num_rewarmup_steps=3, min_lr_ratio=0.4)
    assert schedule.multipliers(100, 104) == pytest.approx([0.4, 0.6, 0.8, 1.0])


def test_climbs_have_the_warmups_shape():
    schedule = wsd_s(cycle_ends=[100, 200], num_rewarmup_steps=8, warmup_type="cosine", min_lr_ratio=0.2)
    climb = [0.2 + 0.8 * (1 - math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert schedule.multipliers(100, 108) == pytest.approx(climb)


def test_rewarmup_fraction_is_of_the_cycle():
    schedule = wsd_s(cycle_ends=[100, 200, 400], rewarmup_fraction=0.05)
    climbs = [(start, end) for start, end, segment in schedule.spans() if segment.phase.value == "warmup"]
    assert climbs == [(100, 105), (200, 210)]


def test_every_cycle_has_its_updates_at_the_minimum():
    schedule = wsd_s(cycle_ends=[100, 200], num_min_steps=3)
    assert schedule.multipliers(96, 101)[1:] == [0.1, 0.1, 0.1, 1.0]
    assert schedule.multipliers(197) == [0.1, 0.1, 0.1]


def test_cycle_with_updates_at_the_minimum_is_kept_at_its_end():
    kept = wsd_s(cycle_ends=[100, 200], num_min_steps=3).checkpoint_steps()
    assert kept == {87: "pre-decay", 100: "post-decay", 187: "pre-decay", 200: "post-decay"}


@pytest.mark.parametrize("peaks", [[1], [1, 0.5, 0.25], [], 1, 0.5, "1 0.5"])
def test_another_number_of_peaks_than_cycles_is_refused(peaks):
    with pytest.raises(
        ScheduleError, match=r"cycle_peaks (has a multiplier for each of the 2 cycles|is a list of numbers), not"
    ):
        wsd_s(cycle_ends=[100, 200], cycle_peaks=peaks)


@pytest.mark.parametrize("peak", [1.5, -0.1, float("nan"), "0.5", None, True])
def test_peak_that_is_no_part_of_the_peak_lr_is_refused(peak):
    with pytest.raises(ScheduleError, match=r"a multiplier of cycle_peaks must lie in \[0, 1\]"):
        wsd_s(cycle_ends=[100, 200], cycle_peaks=[1, peak])


def test_peak_of_zero_is_refused():
    with pytest.raises(ScheduleError, match="a multiplier of cycle_peaks must be above 0"):
        wsd_s(cycle_ends=[100, 200], cycle_peaks=[1, 0])


def test_peak_below_the_minimum_is_refused_with_both():
    with pytest.raises(ScheduleError, match=r"a peak of 0\.05 leaves nothing to decay to min_lr_ratio 0\.1"):
        wsd_s(cycle_ends=[100, 200], cycle_peaks=[1, 0.05], decay_type="linear", min_lr_ratio=0.1)


@pytest.mark.parametrize("ends", [[100], [100, 200]])
def test_rewarmup_steps_and_fraction_together_are_refused(ends):
    with pytest.raises(ScheduleError, match=r"num_rewarmup_steps \(5\) or rewarmup_fraction \(0\.1\), not both"):
        wsd_s(cycle_ends=ends, num_rewarmup_steps=5, rewarmup_fraction=0.1)


@pytest.mark.parametrize("ends", [[100], [100, 200]])
@pytest.mark.parametrize("value", [0, 1, -0.1, 20, True, "0.1", float("nan")])
def test_rewarmup_fraction_outside_0_and_1_is_refused(value, ends):
    with pytest.raises(ScheduleError, match="rewarmup_fraction must lie strictly between 0 and 1"):
        wsd_s(cycle_ends=ends, rewarmup_fraction=value)


@pytest.mark.parametrize("ends", [[100], [100, 200]])
@pytest.mark.parametrize("value", [-1, 1.5, "5", True, float("nan")])
def test_rewarmup_of_a_length_that_is_no_count_is_refused(value, ends):
    with pytest.raises(ScheduleError, match="num_rewarmup_steps"):
        wsd_s(cycle_ends=ends, num_rewarmup_steps=value)


def test_rewarmup_that_rounds_to_no_step_is_refused():
    with pytest.raises(ScheduleError, match="rewarmup"):
        wsd_s(cycle_ends=[20, 40], rewarmup_fraction=0.01)


def test_rewarmup_and_decay_longer_than_a_cycle_are_refused_with_the_numbers():
    asked = r"warm-up \(95\) \+ decay \(10\) \+ num_min_steps \(2\) = 107 steps, longer than the cycle 100-200 of 100"
    with pytest.raises(ScheduleError, match=asked):
        wsd_s(cycle_ends=[100, 200], num_rewarmup_steps=95, num_decay_steps=10, num_min_steps=2)


# --- refusals ---

NO_LENGTHS = [True, 1.5, 100.0, "100", float("nan"), float("inf"), -1, [100], {}]
NO_RATIOS = [True, "0.1", float("nan"), float("inf"), -0.1, 1.1, [0.1]]


@pytest.mark.parametrize("length", [*NO_LENGTHS, 0, None])
def test_run_of_a_length_that_is_no_count_is_refused(length):
    with pytest.raises(ScheduleError, match="num_training_steps"):
        wsd(length, num_decay_steps=1)


@pytest.mark.parametrize("length", [*NO_LENGTHS, None])
@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_warmup_of_a_length_that_is_no_count_is_refused(build, length):
    with pytest.raises(ScheduleError, match="num_warmup_steps"):
        build(100, num_warmup_steps=length)


@pytest.mark.parametrize("length", [*NO_LENGTHS, False, 0.0])
@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_decay_of_a_length_that_is_no_count_is_refused(build, length):
    with pytest.raises(ScheduleError, match="num_decay_steps"):
        build(100, num_decay_steps=length)


def test_decay_steps_given_as_a_fraction_are_answered_with_decay_fraction():
    with pytest.raises(ScheduleError, match=r"number of steps, not 0\.2: a fraction is written decay_fraction=0\.2"):
        wsd(100, num_decay_steps=0.2)


@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.1, 1.5, 20, True, "0.1", float("nan"), float("inf"), [0.1]])
@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_fraction_outside_0_and_1_is_refused(build, value):
    with pytest.raises(ScheduleError, match="decay_fraction must lie strictly between 0 and 1, not"):
        build(100, decay_fraction=value)


def test_percentage_is_answered_with_its_fraction():
    with pytest.raises(ScheduleError, match=r"not 20: 20 % is 0\.2"):
        wsd(100, decay_fraction=20)


@pytest.mark.parametrize("value", NO_RATIOS)
@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_minimum_outside_0_and_1_is_refused(build, value):
    with pytest.raises(ScheduleError, match=r"min_lr_ratio must lie in \[0, 1\]"):
        build(100, min_lr_ratio=value)


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_decay_steps_and_fraction_together_are_refused(build):
    with pytest.raises(ScheduleError, match=r"give num_decay_steps \(20\) or decay_fraction \(0\.2\), not both"):
        build(100, num_decay_steps=20, decay_fraction=0.2)


def test_trunk_with_a_decay_fraction_is_refused():
    with pytest.raises(ScheduleError, match="not both"):
        wsd(100, num_decay_steps=0, decay_fraction=0.2)


def test_warmup_and_decay_longer_than_the_run_are_refused_with_the_numbers():
    with pytest.raises(
        ScheduleError, match=r"\(60\) \+ decay \(50\) = 110 steps, longer than the run of 100.*least 110"
    ):
        wsd(100, num_warmup_steps=60, num_decay_steps=50)


def test_stable_steps_that_do_not_fit_are_refused_with_those_that_would():
    with pytest.raises(ScheduleError, match=r"num_stable_steps \(50\).* run of 100 steps.* make it 70"):
        wsd(100, num_warmup_steps=10, num_decay_steps=20, num_stable_steps=50)


def test_stable_steps_that_do_not_fit_are_answered_with_those_that_do_beside_the_minimum():
    with pytest.raises(ScheduleError, match=r"make it 65; num_min_steps are updates after the decay"):
        wsd(100, num_warmup_steps=10, num_decay_steps=20, num_stable_steps=70, num_min_steps=5)


def test_updates_at_the_minimum_that_do_not_fit_are_refused_with_the_numbers():
    asked = (
        r"warm-up \(10\) \+ decay \(20\) \+ num_min_steps \(71\) = 101 steps, longer than the run of 100: .* 101 steps"
    )
    with pytest.raises(ScheduleError, match=asked):
        wsd(100, num_warmup_steps=10, num_decay_steps=20, num_min_steps=71)


@pytest.mark.parametrize("length", [*NO_LENGTHS, None])
@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_number_of_updates_at_the_minimum_that_is_no_count_is_refused(build, length):
    with pytest.raises(ScheduleError, match="num_min_steps"):
        build(100, num_min_steps=length)


@pytest.mark.parametrize("value", NO_RATIOS)
@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_warmup_start_outside_0_and_1_is_refused_even_without_a_warmup(build, warmup, value):
    with pytest.raises(ScheduleError, match=r"warmup_start must lie in \[0, 1\]"):
        build(100, num_warmup_steps=warmup, warmup_start=value)


def test_trunk_with_updates_at_a_minimum_is_refused():
    with pytest.raises(ScheduleError, match=r"a trunk .* has no end: leave out num_min_steps=5"):
        wsd(100, num_decay_steps=0, num_min_steps=5)


def test_trunk_with_stable_steps_is_refused():
    with pytest.raises(ScheduleError, match=r"a trunk .* has no end: leave out num_stable_steps=50"):
        wsd(100, num_decay_steps=0, num_stable_steps=50)


def test_decay_that_rounds_to_no_step_is_refused():
    with pytest.raises(ScheduleError, match=r"a decay of 0\.1 of 4 steps is no step: give num_decay_steps"):
        wsd(4)


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_unknown_decay_type_is_answered_with_the_nearest(build):
    with pytest.raises(ShapeError, match="unknown decay shape 'linar': did you mean 'linear'"):
        build(100, decay_type="linar")


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_unknown_warmup_type_is_refused_even_without_a_warmup(build):
    with pytest.raises(ShapeError, match="unknown warm-up shape 'cosin': did you mean 'cosine'"):
        build(100, warmup_type="cosin")


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_inverse_decay_to_zero_is_refused_with_the_repair(build):
    with pytest.raises(ShapeError, match="give min_lr_ratio > 0"):
        build(100, decay_type="inverse", min_lr_ratio=0)


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("total", [None, 100])
def test_no_cycles_at_all_are_refused(total, warmup):
    with pytest.raises(ScheduleError, match="cycle_ends"):
        wsd_s(total, cycle_ends=[], num_warmup_steps=warmup)


@pytest.mark.parametrize("ends", [[200, 100], [100, 100], [0, 100], [-5, 100]])
def test_cycle_ends_that_do_not_rise_are_refused(ends):
    with pytest.raises(ScheduleError, match=rf"(must rise, but|at least 1, not) {min(ends)}"):
        wsd_s(cycle_ends=ends)


@pytest.mark.parametrize("ends", [100, 100.0, True, float("nan"), [50.0, 100], ["50", 100], [None], [[50]], [True, 30]])
def test_cycle_ends_that_are_no_counts_are_refused(ends):
    with pytest.raises(WSDError, match="cycle"):
        wsd_s(cycle_ends=ends)


def test_cycles_that_end_before_the_run_are_refused_with_the_repair():
    with pytest.raises(ScheduleError, match=r"the run has 300 steps but cycle_ends is .100, 200.*--max_steps 200"):
        wsd_s(300, cycle_ends=[100, 200])


def test_cycle_shorter_than_its_phases_is_refused_with_the_numbers():
    asked = r"warm-up \(95\) \+ decay \(10\) = 105 steps, longer than the cycle 0-100 of 100: .* at least 105 steps"
    with pytest.raises(ScheduleError, match=asked):
        wsd_s(cycle_ends=[100, 200], num_warmup_steps=95, num_decay_steps=10)


def test_wsd_s_without_a_decay_is_refused():
    with pytest.raises(ScheduleError, match="num_decay_steps of wsd_s must be at least 1, not 0"):
        wsd_s(100, num_decay_steps=0)


@pytest.mark.parametrize("fork", [0, -1, 1.5, "10", None])
def test_fork_point_that_is_no_count_is_refused(fork):
    with pytest.raises(ScheduleError, match="fork point"):
        total_for_fork(fork, 0.1)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan"), "0.1", True])
def test_fork_with_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ScheduleError, match="decay_fraction"):
        total_for_fork(100, fraction)


# --- numbers of numpy ---


def test_numpy_integers_are_lengths():
    one, ten, hundred = np.int64(1), np.int64(10), np.int64(100)
    given_by_numpy = wsd(hundred, num_warmup_steps=ten, num_decay_steps=ten + ten, num_stable_steps=ten * 7 * one)
    assert given_by_numpy == wsd(100, num_warmup_steps=10, num_decay_steps=20)


@pytest.mark.parametrize(
    "schedule",
    [
        wsd(np.int64(100), num_warmup_steps=np.int64(10)),
        wsd_s(cycle_ends=np.array([100, 200])),
        wsd(num_decay_steps=0).fork(np.int64(80), decay_steps=np.int64(20)),
    ],
    ids=["wsd", "wsd_s", "fork"],
)
def test_schedule_of_numpy_integers_can_be_written_as_json(schedule):
    assert json.loads(json.dumps(schedule.to_dict())) == schedule.to_dict()
