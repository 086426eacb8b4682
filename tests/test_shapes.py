"""Decay and warm-up shapes: hf_wsd/shapes.py. A new shape is one row in reference.py."""

import math
import re

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.errors import ShapeError
from hf_wsd.segment import Segment
from hf_wsd.shape_lookup import check_curve, find_shape, read_params
from hf_wsd.shapes import SHAPES, WARMUP_SHAPES, shape_names

STEPS = reference.STEPS
PROGRESS = [i / STEPS for i in range(STEPS)]
SPECIAL = [pytest.param(*row, id=f"{row[0]} {row[1]}") for row in reference.SPECIAL_FALLS]
OWN_ENDS = [row for row in reference.SPECIAL_FALLS if row[2] is not None]
progress = st.floats(0, 1, exclude_max=True)

each_shape = pytest.mark.parametrize("name", SHAPES)
each_fall = pytest.mark.parametrize("name", reference.FALLS)
each_special_fall = pytest.mark.parametrize(("name", "params", "own_end"), SPECIAL)
each_rise = pytest.mark.parametrize("name", WARMUP_SHAPES)


def example(name):
    """Parameters and end of a shape from 1: the end is 0.1 unless the shape has its own."""
    params, own_end = next(((p, e) for n, p, e in reference.SPECIAL_FALLS if n == name), ({}, None))
    return read_params(name, params), 0.1 if own_end is None else own_end


def test_reference_knows_every_shape():
    special = {name for name, _, _ in reference.SPECIAL_FALLS}
    assert (set(SHAPES), set(WARMUP_SHAPES)) == ({*reference.FALLS} | special, set(reference.RISES))


# --- formulas ---


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.1), (0.6, 0.2), (1.0, 1.0)])
@each_fall
def test_decay_is_the_papers_formula(name, start, end):
    curve, params = SHAPES[name].curve, read_params(name, None)
    expected = [reference.fall(name, x, start, end) for x in PROGRESS]
    assert [curve(x, start, end, STEPS, **params) for x in PROGRESS] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.1), (0.6, 0.2), (1.0, 0.0)])
@each_special_fall
def test_decay_with_parameters_or_an_end_of_its_own_is_the_papers_formula(name, params, own_end, start, end):
    curve, known = SHAPES[name].curve, {"steps": STEPS} if name == "half-life" else {}
    expected = [reference.fall(name, x, start, end, **params, **known) for x in PROGRESS]
    given_all = read_params(name, params)
    assert [curve(x, start, end, STEPS, **given_all) for x in PROGRESS] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("start", [1.0, 0.6])
@pytest.mark.parametrize(("name", "params", "part"), OWN_ENDS)
def test_end_of_its_own_is_the_papers_part_of_the_start(name, params, part, start):
    assert SHAPES[name].own_end(start, STEPS, **params) == pytest.approx(part * start)


@pytest.mark.parametrize("start", [0.0, 0.1])
@each_rise
def test_warmup_is_the_reference(name, start):
    curve = find_shape(name, warmup=True).curve
    expected = [reference.rise(name, x, start) for x in PROGRESS]
    assert [curve(x, start, 1.0, STEPS) for x in PROGRESS] == pytest.approx(expected, abs=1e-14)


def test_power_of_1_is_linear():
    power, linear = SHAPES["power"].curve, SHAPES["linear"].curve
    assert [power(x, 1.0, 0.1, STEPS, p=1) for x in PROGRESS] == [linear(x, 1.0, 0.1, STEPS) for x in PROGRESS]


def test_linear_lowered_to_the_peak_itself_is_linear():
    lowered, linear = SHAPES["lowered-linear"].curve, SHAPES["linear"].curve
    expected = [linear(x, 1.0, 0.1, STEPS) for x in PROGRESS]
    assert [lowered(x, 1.0, 0.1, STEPS, factor=1) for x in PROGRESS] == pytest.approx(expected, abs=1e-15)


def test_half_life_halves_the_lr_every_half_life():
    lrs = Segment.decay(40, shape="half-life", params={"half_life": 10}).multipliers(0, 41)
    assert lrs[::10] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]


def test_half_life_is_exponential_to_its_own_end():
    end = SHAPES["half-life"].own_end(1.0, STEPS, half_life=30)
    expected = [SHAPES["exponential"].curve(x, 1.0, end, STEPS) for x in PROGRESS]
    assert [SHAPES["half-life"].curve(x, 1.0, end, STEPS, half_life=30) for x in PROGRESS] == pytest.approx(expected)


def test_cosine_and_its_mirror_lie_on_both_sides_of_the_line_at_equal_distance():
    both = [SHAPES[name].curve for name in ("cosine", "mirror-cosine")]
    means = [sum(curve(x, 1.0, 0.0, STEPS) for curve in both) / 2 for x in PROGRESS]
    assert means == pytest.approx([1 - x for x in PROGRESS], abs=1e-15)


# --- properties ---


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in reference.JUMPS])
@given(end=st.floats(1e-6, 1))
def test_decay_from_the_peak_starts_exactly_there(name, end):
    assert SHAPES[name].curve(0.0, 1.0, end, STEPS, **example(name)[0]) == 1.0


@each_rise
@given(start=st.floats(0, 1))
def test_warmup_starts_exactly_at_its_start(name, start):
    assert WARMUP_SHAPES[name].curve(0.0, start, 1.0, STEPS) == start


@each_shape
@given(x=progress, y=progress, end=st.floats(1e-6, 0.5))
def test_decay_never_rises(name, x, y, end):
    x, y = sorted((x, y))
    params, ulp = example(name)[0], 1e-15  # two neighbours of the same real number may round either way
    curve = SHAPES[name].curve
    assert curve(y, 1.0, end, STEPS, **params) <= curve(x, 1.0, end, STEPS, **params) + ulp


@each_shape
@given(x=progress, start=st.floats(1e-3, 1), part=st.floats(1e-6, 0.5))
def test_decay_stays_between_its_start_and_its_end(name, x, start, part):
    params, ulp = example(name)[0], 1e-15
    own_end = SHAPES[name].own_end
    end = own_end(start, STEPS, **params) if own_end else part * start
    assert end - ulp <= SHAPES[name].curve(x, start, end, STEPS, **params) <= start + ulp


@each_rise
@given(x=progress, y=progress, start=st.floats(0, 1))
def test_warmup_never_falls(name, x, y, start):
    x, y = sorted((x, y))
    curve, ulp = WARMUP_SHAPES[name].curve, 1e-15
    assert curve(x, start, 1.0, STEPS) <= curve(y, start, 1.0, STEPS) + ulp


@each_shape
def test_decay_tends_to_its_end(name):
    params, end = example(name)
    assert SHAPES[name].curve(1 - 1e-12, 1.0, end, STEPS, **params) == pytest.approx(end, abs=1e-9)


@each_rise
def test_warmup_tends_to_the_peak(name):
    assert WARMUP_SHAPES[name].curve(1 - 1e-12, 0.1, 1.0, STEPS) == pytest.approx(1.0, abs=1e-5)


@each_shape
@given(start=st.floats(0.2, 1), minimum=st.floats(0.01, 0.1))
def test_minimum_means_the_same_for_every_shape(name, start, minimum):
    end = None if SHAPES[name].own_end else minimum
    decay = Segment.decay(10**6, shape=name, start=start, end=end, params=example(name)[0])
    assert decay.multiplier(10**6 - 1) == pytest.approx(decay.end, abs=3e-6)


@each_shape
def test_shape_says_whether_it_leaves_the_peak_at_once(name):
    assert SHAPES[name].jumps == (name in reference.JUMPS)


# --- what is printed ---


def as_python(formula):
    """A printed formula as an expression: products written out."""
    text = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula.partition(",")[0])
    return re.sub(r"\b(sqrt|cos) \* ", r"\1", text).replace("^", "**")


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "multi-step"])  # its formula is a sentence
def test_printed_formula_is_the_curve(name):
    (params, end), text = example(name), as_python(SHAPES[name].formula)
    names = {**vars(math), **params, "steps": STEPS, "start": 1.0, "end": end}
    printed = [eval(text, names | {"x": x}) for x in PROGRESS]
    end = end if re.search("end|start", text) else 0.0  # a formula without an end is the fall from 1 to 0
    assert printed == pytest.approx([SHAPES[name].curve(x, 1.0, end, STEPS, **params) for x in PROGRESS], abs=1e-14)


@pytest.mark.parametrize("shape", [*SHAPES.values(), *WARMUP_SHAPES.values()])
def test_shape_names_its_source(shape):
    assert re.search("arXiv|transformers|Megatron|0.7 of the peak", shape.source)


@each_shape
def test_help_names_every_shape(name):
    assert name in re.split("[,;] ", shape_names())


# --- names ---


@pytest.mark.parametrize(("name", "nearest"), [("linaer", "linear"), ("1-sqr", "1-sqrt"), ("invers", "inverse")])
def test_unknown_decay_shape_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ShapeError, match=f"unknown decay shape '{name}': did you mean '{nearest}'"):
        find_shape(name)


def test_decay_shape_is_no_warmup_shape():
    with pytest.raises(ShapeError, match=r"unknown warm-up shape 'square'. Known: linear, cosine, 1-sqrt"):
        find_shape("square", warmup=True)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("name", [None, 3, ["linear"], {}])
def test_name_that_is_no_text_is_refused(name, warmup):
    with pytest.raises(ShapeError, match=r"unknown (decay|warm-up) shape"):
        find_shape(name, warmup=warmup)


# --- parameters ---


@pytest.mark.parametrize(
    ("name", "given_params", "all_params"),
    [
        ("linear", None, {}),
        ("power", None, {"p": 1.5}),
        ("power", {"p": 3}, {"p": 3}),
        ("lowered-linear", {}, {"factor": 0.7}),
        ("half-life", {"half_life": 5000}, {"half_life": 5000}),
        ("my_shapes:bent", {"bend": 3}, {"bend": 3, "lift": 1.0}),
    ],
)
def test_parameters_are_those_given_and_the_defaults(name, given_params, all_params):
    assert read_params(name, given_params) == all_params


def test_unknown_parameter_is_answered_with_the_known():
    with pytest.raises(ShapeError, match=r"unknown parameter of the power shape 'q'\. Known: p"):
        read_params("power", {"q": 2})


def test_parameter_of_a_shape_that_has_none_is_refused():
    with pytest.raises(ShapeError, match="the linear shape has no parameters, so p says nothing: leave it out"):
        read_params("linear", {"p": 2})


def test_missing_parameter_is_answered_with_an_example():
    with pytest.raises(ShapeError, match=r"the half-life shape needs decay_params half_life, for example .* 5000"):
        read_params("half-life", {})


@pytest.mark.parametrize("value", [0, -1, 0.0, math.nan, math.inf, -math.inf, True, "2", None, [2]])
@pytest.mark.parametrize(
    ("name", "key"),
    [("power", "p"), ("half-life", "half_life"), ("lowered-linear", "factor"), ("my_shapes:bent", "bend")],
)
def test_parameter_that_is_no_number_above_0_is_refused(name, key, value):
    with pytest.raises(ShapeError, match=f"{key} of the {name} shape must be a number above 0, not"):
        read_params(name, {key: value})


@pytest.mark.parametrize("params", [5, "p=2", [1], [("p", 1, 2)], True])
def test_parameters_without_names_are_refused(params):
    with pytest.raises(ShapeError, match="parameters of a shape are given by name"):
        read_params("power", params)


@pytest.mark.parametrize("name", ["power", "half-life"])
def test_parameter_too_large_for_a_float_fails_when_made(name):
    with pytest.raises(ShapeError, match="must be a number above 0"):
        read_params(name, {next(iter(SHAPES[name].params)): 10**400})


# --- end points ---


@pytest.mark.parametrize("name", reference.POSITIVE)
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 0.0)])
def test_shape_between_lrs_above_0_is_refused_with_the_repair(name, start, end):
    with pytest.raises(ShapeError, match=rf"cannot run from {start:g} to 0: give min_lr_ratio > 0, for example 0.1"):
        check_curve(name, start=start, end=end, steps=10, params={})


@pytest.mark.parametrize(("name", "params", "part"), OWN_ENDS)
def test_shape_with_an_end_of_its_own_refuses_another(name, params, part):
    with pytest.raises(ShapeError, match=rf"ends by itself at {part:g} \(after 97 steps\), not at 0\.05"):
        check_curve(name, start=1.0, end=0.05, steps=STEPS, params=params)


@pytest.mark.parametrize(("factor", "end", "first"), [(1.2, 0.0, "1.2"), (0.7, 0.8, "0.7")])
def test_linear_lowered_out_of_its_range_is_refused(factor, end, first):
    with pytest.raises(ShapeError, match=f"would start at {first}, not between 1 and its end {end:g}"):
        check_curve("lowered-linear", start=1.0, end=end, steps=10, params={"factor": factor})


# --- a user's own ---


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (1.0, 0.1), (0.6, 0.2)])
def test_own_function_is_scaled_between_the_end_points(start, end):
    decay = Segment.decay(STEPS, shape="my_shapes:cubic", start=start, end=end)
    expected = [end + (start - end) * (1 - x**3) for x in PROGRESS]
    assert decay.multipliers(0, STEPS) == pytest.approx(expected, abs=1e-14)


def test_own_function_gets_its_parameters():
    decay = Segment.decay(STEPS, shape="my_shapes:bent", params={"bend": 3})
    assert decay.multipliers(0, STEPS) == [(1 - x) ** 3 for x in PROGRESS]


def test_order_of_an_own_functions_parameters_makes_no_difference():
    one, other = ({"bend": 3, "lift": 2}, {"lift": 2, "bend": 3})
    decays = [Segment.decay(5, shape="my_shapes:bent", params=params) for params in (one, other)]
    assert decays[0] == decays[1]


@pytest.mark.parametrize(
    "name",
    ["no_such_module:f", "my_shapes:no_such_function", "my_shapes:", ":cubic", ":", "my_shapes.cubic:", ".my_shapes:f"],
)
def test_own_function_that_cannot_be_imported_is_refused_with_the_repair(name):
    with pytest.raises(ShapeError, match=r"cannot be imported .*write pkg\.module:function, and put .* on PYTHONPATH"):
        find_shape(name)


@pytest.mark.parametrize("line", ["1 / 0", "undefined", "def f(:", "raise RuntimeError('no')", "import no_such_module"])
def test_module_that_fails_when_imported_is_refused(line, tmp_path, monkeypatch):
    (tmp_path / "broken_shapes.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ShapeError, match="broken_shapes:f cannot be imported"):
        find_shape("broken_shapes:f")


def test_what_is_no_function_is_refused():
    with pytest.raises(ShapeError, match="the shape my_shapes:NUMBER is no function but 3"):
        find_shape("my_shapes:NUMBER")


def test_function_of_a_script_is_refused_with_the_repair():
    with pytest.raises(ShapeError, match=r"__main__:f: a branch runs in a process of its own.* move it to a module"):
        find_shape("__main__:f")


def test_own_function_is_no_warmup_shape():
    with pytest.raises(ShapeError, match="unknown warm-up shape 'my_shapes:cubic'"):
        find_shape("my_shapes:cubic", warmup=True)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fails", "fails at progress 0.51: ValueError: math domain error"),
        ("nan", "gives nan at progress 0.51"),
        ("text", "fails at progress 0: ValueError"),
        ("nothing", "fails at progress 0: TypeError"),
        ("above", "gives 1.5 at progress 0: a fall lies between 1, where the decay starts, and 0"),
        ("below", "gives -0.01 at progress 0.51"),
    ],
)
def test_own_function_that_is_no_fall_fails_when_made(function, message):
    with pytest.raises(ShapeError, match=f"the shape my_shapes:{function} {message}"):
        Segment.decay(100, shape=f"my_shapes:{function}")


def test_own_function_with_an_unknown_parameter_fails_when_made():
    with pytest.raises(ShapeError, match="the my_shapes:cubic shape has no parameters, so bend says nothing"):
        Segment.decay(100, shape="my_shapes:cubic", params={"bend": 2})


@pytest.mark.parametrize(("function", "missing"), [("two", "y"), ("needs_bend", "bend")])
def test_own_function_without_its_parameter_fails_when_made(function, missing):
    with pytest.raises(ShapeError, match=f"the my_shapes:{function} shape needs decay_params {missing}, for example"):
        Segment.decay(100, shape=f"my_shapes:{function}")


@pytest.mark.parametrize("steps", [10**4, 10**6])
def test_own_function_is_tried_at_the_last_update_too(steps):
    with pytest.raises(ShapeError, match=r"my_shapes:dips gives -0\.000"):
        Segment.decay(steps, shape="my_shapes:dips")
