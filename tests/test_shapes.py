"""Decay and warm-up shapes: hf_wsd/shapes.py. A new shape is one row in reference.py."""

import math

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.errors import ShapeError
from hf_wsd.shapes import SHAPES, WARMUP_SHAPES, find_shape

PROGRESS = [i / 97 for i in range(97)]
progress = st.floats(0, 1, exclude_max=True)


def test_reference_knows_every_shape():
    assert (set(SHAPES), set(WARMUP_SHAPES)) == (set(reference.FALLS), set(reference.RISES))


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.1), (0.6, 0.2), (1.0, 1.0)])
@pytest.mark.parametrize("name", SHAPES)
def test_decay_is_the_papers_formula(name, start, end):
    curve = find_shape(name, end=end).curve
    expected = [reference.fall(name, x, start, end) for x in PROGRESS]
    assert [curve(x, start, end) for x in PROGRESS] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("start", [0.0, 0.1])
@pytest.mark.parametrize("name", WARMUP_SHAPES)
def test_warmup_is_the_reference(name, start):
    curve = find_shape(name, end=1.0, warmup=True).curve
    expected = [reference.rise(name, x, start) for x in PROGRESS]
    assert [curve(x, start, 1.0) for x in PROGRESS] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", SHAPES)
@given(end=st.floats(1e-6, 1))
def test_decay_starts_exactly_at_its_start(name, end):
    assert SHAPES[name].curve(0.0, 1.0, end) == 1.0


@pytest.mark.parametrize("name", WARMUP_SHAPES)
@given(start=st.floats(0, 1))
def test_warmup_starts_exactly_at_its_start(name, start):
    assert WARMUP_SHAPES[name].curve(0.0, start, 1.0) == start


@pytest.mark.parametrize("name", SHAPES)
@given(x=progress, y=progress, end=st.floats(1e-6, 1))
def test_decay_never_rises(name, x, y, end):
    x, y = sorted((x, y))
    ulp = 1e-15  # two neighbours of the same real number may round either way
    assert SHAPES[name].curve(y, 1.0, end) <= SHAPES[name].curve(x, 1.0, end) + ulp


@pytest.mark.parametrize("name", WARMUP_SHAPES)
@given(x=progress, y=progress, start=st.floats(0, 1))
def test_warmup_never_falls(name, x, y, start):
    x, y = sorted((x, y))
    ulp = 1e-15
    assert WARMUP_SHAPES[name].curve(x, start, 1.0) <= WARMUP_SHAPES[name].curve(y, start, 1.0) + ulp


@pytest.mark.parametrize("name", SHAPES)
def test_decay_tends_to_its_end(name):
    assert SHAPES[name].curve(1 - 1e-12, 1.0, 0.1) == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize("name", WARMUP_SHAPES)
def test_warmup_tends_to_the_peak(name):
    assert WARMUP_SHAPES[name].curve(1 - 1e-12, 0.1, 1.0) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_printed_formula_is_the_curve(name):
    text = SHAPES[name].formula.partition(",")[0].replace("pi x", "pi * x").replace("^", "**")
    printed = [eval(text, {**vars(math), "x": x, "start": 1.0, "end": 0.1}) for x in PROGRESS]
    end = 0.1 if "end" in text else 0.0  # a formula without an end is the fall from 1 to 0
    assert printed == pytest.approx([SHAPES[name].curve(x, 1.0, end) for x in PROGRESS], abs=1e-14)


@pytest.mark.parametrize("shape", [*SHAPES.values(), *WARMUP_SHAPES.values()])
def test_shape_names_its_source(shape):
    assert "arXiv" in shape.source or "transformers" in shape.source


@pytest.mark.parametrize(("name", "nearest"), [("linaer", "linear"), ("1-sqr", "1-sqrt"), ("invers", "inverse")])
def test_unknown_decay_shape_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ShapeError, match=f"unknown decay shape '{name}': did you mean '{nearest}'"):
        find_shape(name, end=0.1)


def test_decay_shape_is_no_warmup_shape():
    with pytest.raises(ShapeError, match=r"unknown warm-up shape 'square'. Known: linear, cosine, 1-sqrt"):
        find_shape("square", end=1.0, warmup=True)


@pytest.mark.parametrize("name", [None, 3, ["linear"], {}])
def test_name_that_is_no_text_is_refused(name):
    with pytest.raises(ShapeError, match="unknown decay shape"):
        find_shape(name, end=0.1)


def test_inverse_to_zero_is_refused_with_the_repair():
    with pytest.raises(ShapeError, match=r"cannot run from 1 to 0: give min_lr_ratio > 0, for example 0.1"):
        find_shape("inverse", end=0.0)
