"""Budgets to trunk, branches and cost: hf_wsd/plan.py."""

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.builders import wsd
from hf_wsd.errors import ScheduleError
from hf_wsd.plan import Decay, Length, Plan, show_tokens, training_flops

# --- lengths ---


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("400K", 400_000),
        ("2M", 2 * 10**6),
        ("1.5B", 1_500_000_000),
        ("1T", 10**12),
        ("2m", 2 * 10**6),
        ("0.4M", 400_000),
    ],
)
def test_length_with_a_unit_is_tokens(text, tokens):
    assert Length(text).tokens == tokens


def test_bare_number_is_steps_whatever_a_step_has_in_tokens():
    assert (Length("300").tokens, Length("300").steps(2048)) == (None, 300)


@given(thousands=st.integers(1, 10**6), tokens_per_step=st.integers(1, 10**6))
def test_tokens_become_the_nearest_number_of_steps(thousands, tokens_per_step):
    tokens = thousands * 1000
    if 2 * tokens > tokens_per_step:
        steps = Length(f"{thousands}K").steps(tokens_per_step)
        assert abs(steps * tokens_per_step - tokens) <= tokens_per_step / 2


def test_length_is_shown_as_it_was_written():
    assert str(Length("1.50B")) == "1.50B"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1.5",
            "2X",
            "-3",
            "0M",
            "0",
            "",
            "M",
            "1e3",
            " 2M",
            "2 M",
            "2M ",
            "2M\n",
            "2MB",
            "1,5M",
            ".5M",
            "1.M",
            "1_000",
        ),
        *("nan", "inf", "NaNM", "+2M", "0x10", "0.0M", "2MM", "1.5.0M"),
    ],
)
def test_unreadable_length_is_refused_with_what_is_readable(text):
    with pytest.raises(ScheduleError, match=r"is no length: write tokens as 400K, 2M or 1.5B, steps as a whole number"):
        Length(text)


@pytest.mark.parametrize("value", [300, None, ["1M"]])
def test_length_that_is_no_text_is_refused(value):
    with pytest.raises(ScheduleError, match="is no length"):
        Length(value)


def test_tokens_need_the_tokens_of_a_step():
    with pytest.raises(
        ScheduleError, match=r"2M is tokens, but the tokens of one step are not known.*--tokens-per-step"
    ):
        Length("2M").steps()


def test_budget_shorter_than_a_step_is_refused_with_the_numbers():
    with pytest.raises(ScheduleError, match="1K tokens are less than half a step of 4096 tokens"):
        Length("1K").steps(4096)


@pytest.mark.parametrize("tokens_per_step", [0, -2048, 2.5, "2048", True, float("nan")])
def test_step_without_a_count_of_tokens_is_refused(tokens_per_step):
    with pytest.raises(ScheduleError, match="tokens_per_step"):
        Plan.of_budgets(["2M"], tokens_per_step=tokens_per_step)


@pytest.mark.parametrize("digits", [400, 5000])
def test_length_beyond_all_numbers_is_refused(digits):
    with pytest.raises(ScheduleError):
        Length("9" * digits + "B").steps(1)


# --- plans ---

budgets = st.lists(st.integers(20, 5000), min_size=1, max_size=5, unique=True)


def updates_of(plan: Plan) -> tuple[int, int]:
    """Updates of the family and of separate runs, counted one by one."""
    trunk = {("trunk", u) for decay in plan.decays for u in range(decay.fork)}
    branches = {(decay.end, u) for decay in plan.decays for u in range(decay.fork, decay.end)}
    separate = {(decay.end, u) for decay in plan.decays for u in range(decay.end)}
    return len(trunk | branches), len(separate)


@given(ends=budgets)
def test_cost_is_the_number_of_updates_made(ends):
    plan = Plan.of_budgets([str(end) for end in ends])
    assert (plan.family_steps, plan.separate_steps) == updates_of(plan)


def test_five_models_cost_116_percent_and_separately_260():
    plan = Plan.of_budgets(["1000", "3000", "5000", "7000", "10000"])
    assert (plan.family_steps, plan.separate_steps) == (11600, 26000)


@given(ends=budgets)
def test_saving_is_the_part_of_separate_runs_not_made(ends):
    plan = Plan.of_budgets([str(end) for end in ends])
    assert plan.separate_steps * (1 - plan.saving) == pytest.approx(plan.family_steps)


def test_plan_without_decays_costs_and_saves_nothing():
    plan = Plan(decays=())
    assert (plan.trunk_steps, plan.family_steps, plan.saving) == (0, 0, 0.0)


@given(end=st.integers(20, 10**6), percent=st.integers(5, 90))
def test_budget_leaves_the_trunk_where_the_straight_run_would_decay(end, percent):
    (decay,) = Plan.of_budgets([str(end)], decay_fraction=percent / 100).decays
    straight = wsd(end, decay_fraction=percent / 100)
    assert straight.checkpoint_steps() == {decay.fork: "pre-decay", decay.end: "post-decay"}


@given(ends=budgets)
def test_decays_come_shortest_first(ends):
    assert [d.end for d in Plan.of_budgets([str(end) for end in ends]).decays] == sorted(ends)


def test_same_decay_steps_for_every_budget():
    plan = Plan.of_budgets(["100", "300"], num_decay_steps=20)
    assert [(d.fork, d.steps) for d in plan.decays] == [(80, 20), (280, 20)]


def test_plan_remembers_the_budget_as_it_was_written():
    (decay,) = Plan.of_budgets(["1M"], tokens_per_step=1000).decays
    assert (str(decay.requested), decay.end) == ("1M", 1000)


def test_budgets_may_be_lengths():
    assert Plan.of_budgets([Length("500")]) == Plan.of_budgets(["500"])


@given(forks=st.lists(st.integers(20, 5000), min_size=1, max_size=5, unique=True), percent=st.integers(5, 60))
def test_plan_of_forks_has_the_smallest_models_that_leave_there(forks, percent):
    plan = Plan.of_forks(forks, decay_fraction=percent / 100)
    expected = {(fork, reference.smallest_total(fork, percent / 100)) for fork in forks}
    assert {(d.fork, d.end) for d in plan.decays} == expected


def test_plan_of_forks_with_decay_steps_ends_that_much_later():
    assert [d.end for d in Plan.of_forks([50, 70], num_decay_steps=7).decays] == [57, 77]


def test_tokens_are_steps_times_those_of_a_step():
    assert (Plan(decays=(), tokens_per_step=2048).tokens(10), Plan(decays=()).tokens(10)) == (20480, None)


def test_printed_plan_says_where_a_decay_starts_and_where_its_model_ends():
    assert str(Plan.of_budgets(["2M"], tokens_per_step=2000)) == (
        "    2M: decay from step 900 (1.8M tokens), the model ends at step 1000 (2M tokens)"
    )


# --- refusals ---


@pytest.mark.parametrize("budget", ["1", "4"])
def test_budget_too_short_for_its_decay_is_refused(budget):
    with pytest.raises(ScheduleError, match=f"a decay of 0.1 of {budget} steps is no step"):
        Plan.of_budgets([budget])


@pytest.mark.parametrize("steps", [0, 100, 150])
def test_budget_that_is_all_decay_or_none_is_refused(steps):
    with pytest.raises(ScheduleError, match=rf"a model of 100 steps \(100\) cannot have a decay of {steps} steps"):
        Plan.of_budgets(["100"], num_decay_steps=steps)


def test_decay_steps_and_fraction_together_are_refused_for_budgets():
    with pytest.raises(ScheduleError, match="not both"):
        Plan.of_budgets(["100"], num_decay_steps=10, decay_fraction=0.1)


def test_decay_steps_and_fraction_together_are_refused_for_forks():
    with pytest.raises(ScheduleError, match="not both"):
        Plan.of_forks([100], num_decay_steps=10, decay_fraction=0.1)


@pytest.mark.parametrize("fork", [0, -1, 1.5, "50", None, True])
def test_fork_that_is_no_step_is_refused(fork):
    with pytest.raises(ScheduleError, match="fork point"):
        Plan.of_forks([fork])


@pytest.mark.parametrize("arguments", [{"num_decay_steps": 0}, {"num_decay_steps": -5}, {"num_decay_steps": 0.2}])
def test_fork_without_a_decay_is_refused(arguments):
    with pytest.raises(ScheduleError, match="decay"):
        Plan.of_forks([50], **arguments)


def test_fork_too_early_for_a_decay_is_refused():
    with pytest.raises(ScheduleError, match="num_decay_steps"):
        Plan.of_forks([1])


# --- numbers for people ---


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(0, "0"), (999, "999"), (1000, "1K"), (2.5e6, "2.5M"), (1e9, "1B"), (3e12, "3T"), (5e15, "5000T"), (None, "?")],
)
def test_tokens_are_shown_short(tokens, text):
    assert show_tokens(tokens) == text


def test_steps_of_a_decay_are_those_between_fork_and_end():
    assert Decay(fork=80, end=100).steps == 20


def test_training_takes_six_flops_a_parameter_and_token():
    assert training_flops(10**9, 10**10) == 6 * 10**19
