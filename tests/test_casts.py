"""What people type, read in the type that a setting has: hf_wsd/casts.py."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.by_name import BUILDERS
from hf_wsd.casts import CASTS, cast
from hf_wsd.errors import SettingsError
from hf_wsd.settings import COUNTS, OF_RUN

LENGTHS = ["num_decay_steps", "num_min_steps", "num_stable_steps", "num_rewarmup_steps"]
NUMBERS = ["decay_fraction", "min_lr_ratio", "warmup_start", "rewarmup_fraction"]
LISTS_OF_LENGTHS = ["cycle_ends", "milestones"]
LISTS_OF_NUMBERS = ["cycle_peaks", "milestone_fractions", "multipliers"]


def test_every_argument_of_the_builders_can_be_cast():
    arguments = {name for build in BUILDERS.values() for name in inspect.signature(build).parameters}
    assert set(CASTS) == arguments - {"num_training_steps", "num_warmup_steps"} | {*COUNTS, *OF_RUN}


@pytest.mark.parametrize("name", CASTS)
def test_nothing_stays_nothing(name):
    assert cast(name, None) is None


@pytest.mark.parametrize("value", [20, "20", "2e1", 20.0, "20.0", "20steps", "0.02Ksteps"])
@pytest.mark.parametrize("name", LENGTHS)
def test_steps_are_read_in_every_writing(name, value):
    assert (cast(name, value), type(cast(name, value))) == (20, int)


@pytest.mark.parametrize("text", ["200K", "1.5B", "2048tokens", "640samples", "10%", "0.5%"])
@pytest.mark.parametrize("name", LENGTHS)
def test_length_in_another_unit_stays_as_it_was_written(name, text):
    assert cast(name, text) == text


@pytest.mark.parametrize("value", ["many", "", "20 30", "20X", "-5K", "0K", "0%", "K", [], [20], {}, True])
@pytest.mark.parametrize("name", LENGTHS)
def test_what_is_no_length_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name}=.* cannot be read as length"):
        cast(name, value)


@pytest.mark.parametrize("value", [0.1, "0.1", "1e-1", ".1"])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_read_in_every_writing(name, value):
    assert cast(name, value) == 0.1


@pytest.mark.parametrize("value", ["a tenth", "", "10%", "10K", [0.1], {}, False])
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name}=.* cannot be read as number"):
        cast(name, value)


@pytest.mark.parametrize("value", ["50 1M 50%", "50,1M,50%", "50, 1M, 50%", [50, "1M", "50%"], ("50", "1M", "50%")])
@pytest.mark.parametrize("name", LISTS_OF_LENGTHS)
def test_lists_of_lengths_are_read_in_every_writing(name, value):
    assert cast(name, value) == [50, "1M", "50%"]


@pytest.mark.parametrize("value", ["1 0.5", "1,0.5", "1, 5e-1", [1, 0.5], ["1", "0.5"], (1, 0.5)])
@pytest.mark.parametrize("name", LISTS_OF_NUMBERS)
def test_lists_of_numbers_are_read_in_every_writing(name, value):
    assert cast(name, value) == [1.0, 0.5]


@pytest.mark.parametrize("value", [5, 0.5, "one", [[1]], [None], [True], ["x"], {"50": 1}])
@pytest.mark.parametrize("name", LISTS_OF_LENGTHS + LISTS_OF_NUMBERS)
def test_what_is_no_list_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name}=.* cannot be read as (lengths|numbers)"):
        cast(name, value)


@pytest.mark.parametrize("value", ["p=1.5 q=2", "p=1.5,q=2", "p=1.5, q=2", {"p": 1.5, "q": 2}, {"p": "1.5", "q": "2"}])
def test_parameters_are_read_in_every_writing(value):
    assert cast("decay_params", value) == {"p": 1.5, "q": 2}


@pytest.mark.parametrize("value", ["p", "p=", "p=much", "p=1=2", "1.5", 5, 1.5, [1.5], [("p", 1.5)], {"p": [1]}, True])
def test_what_names_no_numbers_is_refused_by_name(value):
    with pytest.raises(SettingsError, match=r"decay_params=.* cannot be read as named numbers"):
        cast("decay_params", value)


@given(steps=st.integers(0, 2**53))
def test_whole_numbers_are_read_exactly(steps):
    assert (cast("num_decay_steps", str(steps)), cast("num_decay_steps", steps)) == (steps, steps)


@given(number=st.floats(allow_nan=False))
def test_numbers_survive_being_written(number):
    assert cast("min_lr_ratio", str(number)) == number
