"""The stretches of which a schedule is made: hf_wsd/segment.py. The shapes' own rules are in test_shapes.py."""

import math
import pickle

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.errors import ScheduleError, ShapeError
from hf_wsd.segment import Phase, Segment

PEAK = Segment(phase=Phase.STABLE, steps=10)
RISE = Segment(phase=Phase.WARMUP, steps=10, start=0.0, shape="linear")
FALL = Segment.decay(10, shape="linear", end=0.1)
BENT = Segment.decay(10, shape="power", params={"p": 3})

# --- as a function of the update ---


@pytest.mark.parametrize("segment", [PEAK, RISE, FALL, BENT], ids=str)
@given(first=st.integers(0, 15), count=st.integers(0, 15))
def test_multipliers_are_those_of_one_update_after_another(segment, first, count):
    assert segment.multipliers(first, first + count) == [segment.multiplier(i) for i in range(first, first + count)]


def test_multipliers_of_an_open_segment_never_end():
    assert Segment(phase=Phase.STABLE, steps=None, start=0.5, end=0.5).multipliers(10**9, 10**9 + 3) == [0.5] * 3


@pytest.mark.parametrize("segment", [PEAK, RISE, FALL, BENT], ids=str)
@given(beyond=st.integers(0, 10**6))
def test_past_its_end_a_segment_stays_there(segment, beyond):
    assert segment.multiplier(segment.steps + beyond) == segment.end


@pytest.mark.parametrize(
    ("segment", "text"),
    [
        (PEAK, "stable at 1, 10 steps"),
        (RISE, "warmup linear 0 -> 1, 10 steps"),
        (FALL, "decay linear 1 -> 0.1, 10 steps"),
        (BENT, "decay power(p=3) 1 -> 0, 10 steps"),
    ],
)
def test_segment_as_text_names_all_it_is_made_of(segment, text):
    assert str(segment) == text


# --- a decay ---


@pytest.mark.parametrize("shape", [shape for shape in reference.FALLS if shape not in reference.POSITIVE])
def test_decay_goes_to_0_if_nothing_is_said(shape):
    assert Segment.decay(10, shape=shape).end == 0.0


@pytest.mark.parametrize("start", [1.0, 0.5])
def test_decay_goes_where_its_shape_ends_by_itself(start):
    assert Segment.decay(10, shape="half-life", start=start, params={"half_life": 5}).end == start / 4


def test_end_that_the_shape_has_by_itself_may_be_named():
    params = {"half_life": 5}
    named = Segment.decay(10, shape="half-life", end=0.25, params=params)
    assert named == Segment.decay(10, shape="half-life", params=params)


def test_defaults_of_parameters_are_filled_in():
    assert Segment.decay(10, shape="power").shape_params == (("p", 1.5),)


def test_default_and_the_same_parameter_given_are_one_segment():
    assert Segment.decay(10, shape="power") == Segment.decay(10, shape="power", params={"p": 1.5})


def test_decay_is_the_segment_written_out():
    written = Segment(phase="decay", steps=10, start=1.0, end=0.0, shape="power", shape_params={"p": 3})
    assert written == BENT


@pytest.mark.parametrize("segment", [PEAK, RISE, FALL, BENT], ids=str)
def test_segment_survives_pickle(segment):
    assert pickle.loads(pickle.dumps(segment)) == segment


def test_parameters_are_written_only_where_there_are_some():
    assert ("shape_params" in FALL.to_dict(), BENT.to_dict()["shape_params"]) == (False, {"p": 3})


# --- segments that make no sense ---


@pytest.mark.parametrize("steps", [0, -1, 1.5, 10.0, "10", True, float("nan"), [1]])
def test_segment_of_no_length_is_refused(steps):
    with pytest.raises(ScheduleError, match="steps of a segment"):
        Segment(phase=Phase.STABLE, steps=steps)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), True, "1", None, [1]])
@pytest.mark.parametrize("name", ["start", "end"])
def test_segment_outside_0_and_1_is_refused(name, value):
    with pytest.raises(ScheduleError, match=rf"{name} of a segment must lie in \[0, 1\]"):
        Segment(phase=Phase.STABLE, steps=1, **{name: value})


def test_constant_segment_that_changes_is_refused():
    with pytest.raises(ScheduleError, match=r"a constant segment cannot go from 1 to 0\.1: name a shape"):
        Segment(phase=Phase.DECAY, steps=5, end=0.1)


def test_open_decay_is_refused():
    with pytest.raises(ScheduleError, match="a linear decay needs a number of steps"):
        Segment(phase=Phase.DECAY, steps=None, end=0.0, shape="linear")


def test_unknown_shape_fails_when_made_and_not_when_the_decay_starts():
    with pytest.raises(ShapeError, match="did you mean 'linear'"):
        Segment(phase=Phase.DECAY, steps=5, end=0.0, shape="lineer")


def test_decay_shape_in_a_warmup_is_refused():
    with pytest.raises(ShapeError, match="unknown warm-up shape 'square'"):
        Segment(phase=Phase.WARMUP, steps=5, start=0.0, shape="square")


@pytest.mark.parametrize("phase", ["stabel", None, 1])
def test_unknown_phase_is_refused(phase):
    with pytest.raises(ScheduleError, match="phase"):
        Segment(phase=phase, steps=5)


def test_phase_by_its_name_is_the_phase():
    assert Segment(phase="warmup", steps=5, start=0.0, shape="1-sqrt").phase is Phase.WARMUP


@pytest.mark.parametrize("shape", [None, 3, ["linear"], {}, "", ":", "constan"])
@pytest.mark.parametrize("phase", ["warmup", "decay"])
def test_shape_that_is_none_is_refused(phase, shape):
    with pytest.raises(ShapeError, match="shape"):
        Segment(phase=phase, steps=5, start=0.5, end=0.5, shape=shape)


@pytest.mark.parametrize("shape", ["linear", "inverse", "power", "my_shapes:cubic"])
def test_decay_that_rises_is_refused(shape):
    with pytest.raises(ScheduleError, match=r"a decay cannot rise from 0\.1 to 0\.5: give a smaller min_lr_ratio"):
        Segment.decay(5, shape=shape, start=0.1, end=0.5)


@pytest.mark.parametrize("shape", reference.RISES)
def test_warmup_that_falls_is_refused(shape):
    with pytest.raises(ScheduleError, match=r"a warm-up cannot fall from 1 to 0\.5"):
        Segment(phase=Phase.WARMUP, steps=5, start=1.0, end=0.5, shape=shape)


@pytest.mark.parametrize("shape", ["linear", "my_shapes:cubic", "no such shape"])
def test_stable_segment_with_a_shape_is_refused(shape):
    with pytest.raises(ScheduleError, match=f"a stable segment is constant, not {shape}"):
        Segment(phase=Phase.STABLE, steps=5, shape=shape)


def test_stable_segment_that_changes_is_refused():
    with pytest.raises(ScheduleError, match="a stable segment is constant, not linear"):
        Segment(phase=Phase.STABLE, steps=5, start=1.0, end=0.5, shape="linear")


def test_open_warmup_is_refused():
    with pytest.raises(ScheduleError, match="a linear warmup needs a number of steps: only a constant is open"):
        Segment(phase=Phase.WARMUP, steps=None, start=0.0, shape="linear")


def test_own_function_in_a_warmup_is_refused():
    with pytest.raises(ShapeError, match="unknown warm-up shape 'my_shapes:cubic'"):
        Segment(phase=Phase.WARMUP, steps=5, start=0.0, shape="my_shapes:cubic")


@pytest.mark.parametrize("steps", [0, -1, 0.2, 10.0, "10", None, True, math.nan])
def test_decay_of_no_length_is_refused(steps):
    with pytest.raises(ScheduleError, match="decay_steps"):
        Segment.decay(steps)


@pytest.mark.parametrize("start", [-0.1, 1.1, math.nan, "1", None, True])
@pytest.mark.parametrize(("shape", "params"), [("linear", None), ("half-life", {"half_life": 5}), ("multi-step", None)])
def test_decay_from_outside_0_and_1_is_refused(shape, params, start):
    with pytest.raises(ScheduleError, match=r"must lie in \[0, 1\]"):
        Segment.decay(5, shape=shape, start=start, params=params)


@pytest.mark.parametrize("end", [0.0, 0.2])
@pytest.mark.parametrize(("shape", "params"), [("half-life", {"half_life": 5}), ("multi-step", None)])
def test_another_end_than_the_shapes_own_is_refused_with_the_numbers(shape, params, end):
    with pytest.raises(ShapeError, match=rf"ends by itself at 0\.\d+ \(after 10 steps\), not at {end:g}: leave min_lr"):
        Segment.decay(10, shape=shape, end=end, params=params)


@pytest.mark.parametrize("shape", reference.POSITIVE)
def test_decay_to_zero_that_the_shape_cannot_reach_is_refused_with_the_repair(shape):
    with pytest.raises(ShapeError, match=r"cannot run from 1 to 0: give min_lr_ratio > 0"):
        Segment.decay(10, shape=shape)


# --- parameters ---


@pytest.mark.parametrize(
    ("shape", "params", "message"),
    [
        ("power", {"q": 2}, "unknown parameter of the power shape 'q'"),
        ("power", {"p": 2, "half_life": 5}, "unknown parameter of the power shape 'half_life'"),
        ("linear", {"p": 2}, "the linear shape has no parameters"),
        ("half-life", {}, "the half-life shape needs decay_params half_life"),
        ("power", {"p": 0}, "p of the power shape must be a number above 0, not 0"),
        ("half-life", {"half_life": -5}, "half_life of the half-life shape must be a number above 0, not -5"),
        ("lowered-linear", {"factor": math.nan}, "factor of the lowered-linear shape must be a number above 0"),
        ("lowered-linear", {"factor": 1.5}, "would start at 1.5, not between 1 and its end 0"),
        ("power", "p=2", "parameters of a shape are given by name"),
    ],
)
def test_bad_parameter_fails_when_made(shape, params, message):
    with pytest.raises(ShapeError, match=message):
        Segment.decay(10, shape=shape, params=params)


def test_parameters_of_a_warmup_are_refused():
    with pytest.raises(ShapeError, match="only the shape of a decay has parameters: leave out"):
        Segment(phase=Phase.WARMUP, steps=5, start=0.0, shape="linear", shape_params={"p": 2})


@pytest.mark.parametrize("phase", Phase)
def test_parameters_of_a_constant_are_refused(phase):
    with pytest.raises(ShapeError, match="only the shape of a decay has parameters: leave out"):
        Segment(phase=phase, steps=5, shape_params={"p": 2})


@pytest.mark.parametrize("params", [None, {}, []])
@pytest.mark.parametrize("phase", Phase)
def test_no_parameters_in_any_form_are_no_parameters(phase, params):
    assert Segment(phase=phase, steps=5, shape_params=params).shape_params == ()
