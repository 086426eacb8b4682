"""Budgets to trunk, branches and cost: hf_wsd/plan.py."""

import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.builders import wsd
from hf_wsd.errors import ForkError, ScheduleError
from hf_wsd.lengths import Length
from hf_wsd.plan import Decay, Plan, training_flops

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


@pytest.mark.parametrize(
    ("budgets", "known", "ends"),
    [
        (["2M", "500"], {"tokens_per_step": 2000}, [500, 1000]),
        (["6400samples", "500"], {"samples_per_step": 64}, [100, 500]),
        (["6400samples", "2M"], {"samples_per_step": 64, "tokens_per_step": 2000}, [100, 1000]),
        (["20%", "100%"], {"of": "1000"}, [200, 1000]),
        (["20%", "29%"], {"of": "2M", "tokens_per_step": 20000}, [20, 29]),
        (["20%", "1000"], {}, [200, 1000]),  # of the longest budget
    ],
    ids=["tokens", "samples", "both", "parts of steps", "parts of tokens", "part of the longest"],
)
def test_budgets_may_be_counted_in_anything(budgets, known, ends):
    assert [decay.end for decay in Plan.of_budgets(budgets, **known).decays] == ends


@pytest.mark.parametrize(
    ("decay", "known", "steps"),
    [
        ("40K", {"tokens_per_step": 2000}, 20),
        ("640samples", {"samples_per_step": 64}, 10),
        ("15", {}, 15),
        ("10%", {"of": "500"}, 50),
        ("10%", {}, 30),  # of the longest budget
        (Length("15"), {}, 15),
    ],
)
def test_decay_may_be_counted_in_anything(decay, known, steps):
    plan = Plan.of_budgets(["100", "300"], num_decay_steps=decay, **known)
    assert [d.steps for d in plan.decays] == [steps, steps]


@pytest.mark.parametrize(
    ("fork", "known"),
    [(90, {}), ("90", {}), ("180K", {"tokens_per_step": 2000}), ("5760samples", {"samples_per_step": 64})],
)
def test_forks_may_be_counted_in_anything(fork, known):
    assert [(d.fork, d.end) for d in Plan.of_forks([fork], **known).decays] == [(90, 100)]


@given(ends=budgets, tokens_per_step=st.integers(1, 10**6))
def test_plan_in_tokens_is_the_plan_in_steps(ends, tokens_per_step):
    in_steps = Plan.of_budgets([str(end) for end in ends])
    in_tokens = Plan.of_budgets([f"{end * tokens_per_step}tokens" for end in ends], tokens_per_step=tokens_per_step)
    assert [(d.fork, d.end) for d in in_tokens.decays] == [(d.fork, d.end) for d in in_steps.decays]


@given(ends=budgets)
def test_trunk_and_branches_add_up_to_the_family(ends):
    plan = Plan.of_budgets([str(end) for end in ends])
    assert plan.family_steps == max(d.fork for d in plan.decays) + sum(d.end - d.fork for d in plan.decays)


@pytest.mark.parametrize("again", ["1000", "1Ksteps"])
def test_budget_given_twice_is_one_model(again):
    assert [d.end for d in Plan.of_budgets(["1000", again]).decays] == [1000]


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


@pytest.mark.parametrize("fork", [0, -1, 1.5, None, True])
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


@pytest.mark.parametrize("tokens_per_step", [0, -2048, 2.5, "2048", True, float("nan")])
def test_step_without_a_count_of_tokens_is_refused(tokens_per_step):
    with pytest.raises(ScheduleError, match="tokens_per_step"):
        Plan.of_budgets(["2M"], tokens_per_step=tokens_per_step)


@pytest.mark.parametrize(("budget", "repair"), [("2M", "--tokens-per-step"), ("640samples", "--samples-per-step")])
def test_budget_in_what_a_step_has_an_unknown_number_of_is_refused_with_the_repair(budget, repair):
    with pytest.raises(ScheduleError, match=f"{budget} is .* not known here.*{repair}"):
        Plan.of_budgets([budget])


@pytest.mark.parametrize("budget", [1.5, None, True, [300], -100, "100 steps", "1e3"])
def test_budget_that_is_no_length_is_refused(budget):
    with pytest.raises(ScheduleError, match="is no length"):
        Plan.of_budgets([budget])


@pytest.mark.parametrize("whole", ["10%", "x", "2M", "0"])
def test_whole_of_no_known_length_is_refused(whole):
    with pytest.raises(ScheduleError):
        Plan.of_budgets(["10%"], of=whole)


def test_decay_as_a_part_needs_a_whole():
    with pytest.raises(ScheduleError, match="10% is a part of a whole that has no length here"):
        Plan.of_forks([50], num_decay_steps="10%")


@pytest.mark.parametrize(("fork", "end"), [(0, 10), (10, 10), (20, 10), (-5, 10)])
def test_model_without_a_trunk_or_without_a_decay_is_refused(fork, end):
    with pytest.raises(ForkError, match=f"a model of {end} steps cannot have a decay of {end - fork} steps"):
        Decay(fork=fork, end=end)


# --- numbers for people ---


def test_steps_of_a_decay_are_those_between_fork_and_end():
    assert Decay(fork=80, end=100).steps == 20


def test_training_takes_six_flops_a_parameter_and_token():
    assert training_flops(10**9, 10**10) == 6 * 10**19
