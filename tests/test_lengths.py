"""Lengths as people write them, and how they become steps: hf_wsd/lengths.py."""

import math
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hf_wsd.errors import ScheduleError
from hf_wsd.lengths import Length, decay_length, is_length, nearest, show_tokens, to_steps

UNITS = {"K": 3, "M": 6, "B": 9, "T": 12}
per_step = st.integers(1, 10**7)

# --- what a text means ---


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("400K", 400_000),
        ("2M", 2 * 10**6),
        ("1.5B", 1_500_000_000),
        ("1T", 10**12),
        ("2m", 2 * 10**6),
        ("0.4M", 400_000),
        ("2048tokens", 2048),
        ("2Mtokens", 2 * 10**6),
        ("2mTokens", 2 * 10**6),
        ("0.29K", 290),
    ],
)
def test_length_with_a_unit_is_tokens(text, tokens):
    assert (Length(text).kind, Length(text).tokens) == ("tokens", tokens)


@pytest.mark.parametrize(
    ("text", "steps"), [("300", 300), ("300steps", 300), ("10Ksteps", 10_000), ("1.5Ksteps", 1500), ("300STEPS", 300)]
)
def test_bare_number_is_steps_whatever_a_step_has_in_tokens(text, steps):
    assert (Length(text).kind, Length(text).tokens, Length(text).steps(2048)) == ("steps", None, steps)


@pytest.mark.parametrize(("text", "steps"), [("640samples", 10), ("6.4Ksamples", 100), ("1.5Msamples", 23438)])
def test_samples_become_steps(text, steps):
    assert (Length(text).kind, Length(text).steps(samples_per_step=64)) == ("samples", steps)


@pytest.mark.parametrize(
    ("text", "whole", "steps"), [("10%", 2990, 299), ("29%", 100, 29), ("0.5%", 1000, 5), ("100%", 77, 77)]
)
def test_percentage_is_a_part_of_the_whole(text, whole, steps):
    assert (Length(text).kind, Length(text).steps(of=whole)) == ("part", steps)


def test_length_is_shown_as_it_was_written():
    assert str(Length("1.50B")) == "1.50B"


@pytest.mark.parametrize("length", ["2M", Length("2M"), 1000])
def test_text_and_length_and_number_are_steps(length):
    assert to_steps(length, tokens_per_step=2000) == 1000


@pytest.mark.parametrize("value", [None, 0.5, [], 0])
def test_what_is_no_length_stays_as_it_is(value):
    assert to_steps(value) == value


# --- rounding ---


@given(thousands=st.integers(1, 10**6), tokens_per_step=st.integers(1, 10**6))
def test_tokens_become_the_nearest_number_of_steps(thousands, tokens_per_step):
    tokens = thousands * 1000
    assume(2 * tokens > tokens_per_step)
    steps = Length(f"{thousands}K").steps(tokens_per_step)
    assert abs(steps * tokens_per_step - tokens) <= tokens_per_step / 2


@given(steps=st.integers(1, 10**9), tokens_per_step=per_step)
def test_steps_to_tokens_and_back_are_the_same_steps(steps, tokens_per_step):
    assert Length(f"{steps * tokens_per_step}tokens").steps(tokens_per_step) == steps


@given(steps=st.integers(1, 10**9), samples_per_step=per_step)
def test_steps_to_samples_and_back_are_the_same_steps(steps, samples_per_step):
    assert Length(f"{steps * samples_per_step}samples").steps(samples_per_step=samples_per_step) == steps


@given(thousandths=st.integers(1, 10**6), unit=st.sampled_from("KMBT"))
@example(thousandths=17_104_900, unit="T")  # beyond 2^53, where floats skip whole numbers
def test_decimals_of_tokens_are_exact(thousandths, unit):
    text = f"{thousandths // 1000}.{thousandths % 1000:03}{unit}"
    assert Length(text).tokens == thousandths * 10 ** (UNITS[unit] - 3)


@given(steps=st.integers(1, 10**6))
@example(steps=1001)  # 1.001 * 1000 is 1000.9999999999999
def test_decimals_of_steps_are_exact(steps):
    assert Length(f"{steps // 1000}.{steps % 1000:03}Ksteps").steps() == steps


@given(percent=st.integers(1, 100), whole=st.integers(100, 10**6))
def test_part_is_rounded_to_the_nearest_step(percent, whole):
    assert abs(100 * Length(f"{percent}%").steps(of=whole) - percent * whole) <= 50


@given(percent=st.integers(1, 99), whole=st.integers(100, 10**6))
def test_part_and_rest_are_the_whole(percent, whole):
    rest = Length(f"{100 - percent}%").steps(of=whole)
    assert abs(Length(f"{percent}%").steps(of=whole) + rest - whole) <= (Fraction(percent * whole, 100) % 1 == 0.5)


@given(steps=st.floats(0, 1e15))
def test_nearest_is_at_most_half_a_step_away(steps):
    assert abs(nearest(steps) - steps) <= 0.5


# --- refusals ---

UNREADABLE = ["1.5", "2X", "-3", "0M", "0", "", "M", "1e3", " 2M", "2 M", "2M ", "2M\n", "2MB", "1,5M", ".5M", "1.M"]
UNREADABLE += ["1_000", "nan", "inf", "NaNM", "+2M", "0x10", "0.0M", "2MM", "1.5.0M", "run.py", "steps", "%", "0%"]
UNREADABLE += ["0.0%", "10 %", "-10%", "10K%", "10%steps", "10step", "1.5steps", "1.0005Ksteps", "0steps"]
UNREADABLE += ["2\u212a", "3\u017fteps", "\u0663"]  # a Kelvin sign, a long s, an Arabic three


@pytest.mark.parametrize("text", UNREADABLE)
def test_unreadable_length_is_refused_with_what_is_readable(text):
    with pytest.raises(ScheduleError, match=r"is no length: write tokens as 400K, 2M or 1.5B, steps as a whole number"):
        Length(text)


@given(text=st.text(max_size=6) | st.from_regex(r"[0-9.]{1,4}[KMBT%]?(steps|tokens|samples)?", fullmatch=True))
def test_every_text_is_a_length_of_at_least_one_step_or_refused(text):
    if is_length(text):
        assert Length(text).steps(1, samples_per_step=1, of=10**6) >= 1
    else:
        with pytest.raises(ScheduleError, match="is no length"):
            Length(text)


@pytest.mark.parametrize("value", [300, None, ["1M"], 1.5, True, b"2M"])
def test_length_that_is_no_text_is_refused(value):
    with pytest.raises(ScheduleError, match="is no length"):
        Length(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2M", "2M is tokens, but the tokens of one step are not known.*--tokens-per-step"),
        ("640samples", "640samples is samples, but the samples of one step are not known.*--samples-per-step"),
        ("10%", "10% is a part of a whole that has no length here: give the longest in steps or tokens"),
    ],
)
def test_length_needs_to_know_what_a_step_has(text, message):
    with pytest.raises(ScheduleError, match=message):
        Length(text).steps()


@pytest.mark.parametrize(
    ("text", "known", "message"),
    [
        ("1K", {"tokens_per_step": 4096}, "1K is less than half a step of 4096 tokens"),
        ("10samples", {"samples_per_step": 64}, "10samples is less than half a step of 64 samples"),
        ("1%", {"of": 10}, "1% of 10 steps is less than half a step"),
    ],
)
def test_length_shorter_than_a_step_is_refused_with_the_numbers(text, known, message):
    with pytest.raises(ScheduleError, match=message):
        Length(text).steps(**known)


@pytest.mark.parametrize("size", [0, -2048, 2.5, "2048", True, math.nan])
@pytest.mark.parametrize(
    ("text", "name"), [("2M", "tokens_per_step"), ("640samples", "samples_per_step"), ("10%", "of")]
)
def test_step_or_whole_without_a_count_is_refused(text, name, size):
    with pytest.raises(ScheduleError, match=name):
        Length(text).steps(**{name: size})


@pytest.mark.parametrize("digits", [400, 5000])
def test_length_beyond_all_numbers_is_refused(digits):
    with pytest.raises(ScheduleError):
        Length("9" * digits + "B").steps(1)


def test_decay_in_steps_and_as_a_fraction_is_refused():
    with pytest.raises(ScheduleError, match=r"give num_decay_steps \(5\) or decay_fraction \(0\.1\), not both"):
        decay_length(100, num_decay_steps=5, decay_fraction=0.1)


# --- numbers for people ---


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(0, "0"), (999, "999"), (1000, "1K"), (2.5e6, "2.5M"), (1e9, "1B"), (3e12, "3T"), (5e15, "5000T"), (None, "?")],
)
def test_tokens_are_shown_short(tokens, text):
    assert show_tokens(tokens) == text


@given(number=st.integers(1, 9999), unit=st.sampled_from(list(UNITS)))
def test_tokens_as_shown_can_be_read_back(number, unit):
    tokens = number * 10 ** (UNITS[unit] - 1)
    assert Length(show_tokens(tokens) + "tokens").tokens == tokens
