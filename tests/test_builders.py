"""`wsd`, `wsd_s`, `cosine`: every lr against transformers' own, against reference.py and against other systems."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

from hf_wsd.builders import cosine, decay_length, total_for_fork, wsd, wsd_s
from hf_wsd.errors import ScheduleError, ShapeError, WSDError
from hf_wsd.scheduler import WSDScheduler

REFERENCE_LRS = Path(__file__).parents[2] / "shared" / "data" / "reference_lrs.json"
TRANSFORMERS_SHAPES = ("linear", "cosine", "1-sqrt")


def lrs(schedule, steps):
    return [schedule(u) for u in range(steps)]


def lrs_in_an_optimizer(make_scheduler, *, steps, peak):
    """The lr with which each update is made, and the one after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = make_scheduler(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


# --- wsd: transformers' own, to the last bit ---


@settings(max_examples=250)
@given(arguments=reference.wsd_arguments(falls=TRANSFORMERS_SHAPES, longest=25), peak=st.floats(1e-6, 10))
def test_wsd_in_an_optimizer_is_transformers_to_the_last_bit(arguments, peak):
    steps = arguments["num_training_steps"]
    ours = lrs_in_an_optimizer(lambda o: WSDScheduler(o, wsd(**arguments)), steps=steps, peak=peak)
    theirs = lrs_in_an_optimizer(lambda o: get_wsd_schedule(o, **arguments), steps=steps, peak=peak)
    assert ours == theirs


@pytest.mark.parametrize("decay_type", TRANSFORMERS_SHAPES)
@pytest.mark.parametrize("warmup_type", TRANSFORMERS_SHAPES)
@pytest.mark.parametrize("min_lr_ratio", [0, 0.0, 0.1, 1 / 3])
def test_wsd_given_num_stable_steps_is_transformers_to_the_last_bit(decay_type, warmup_type, min_lr_ratio):
    arguments = {"num_warmup_steps": 13, "num_stable_steps": 31, "num_decay_steps": 17, "min_lr_ratio": min_lr_ratio}
    arguments |= {"decay_type": decay_type, "warmup_type": warmup_type}
    ours = lrs_in_an_optimizer(lambda o: WSDScheduler(o, wsd(61, **arguments)), steps=61, peak=3e-4)
    theirs = lrs_in_an_optimizer(lambda o: get_wsd_schedule(o, **arguments), steps=61, peak=3e-4)
    assert ours == theirs


@given(arguments=reference.wsd_arguments())
def test_wsd_is_the_reference(arguments):
    ours = lrs(wsd(**arguments), arguments["num_training_steps"])
    assert ours == pytest.approx(reference.wsd(**arguments), abs=1e-13)


@given(warmup=st.integers(0, 30), decay=st.integers(1, 40))
def test_cosine_is_transformers_to_the_last_bit(warmup, decay):
    total = warmup + decay
    ours = lrs_in_an_optimizer(lambda o: WSDScheduler(o, cosine(total, num_warmup_steps=warmup)), steps=total, peak=0.1)
    theirs = lrs_in_an_optimizer(lambda o: get_cosine_schedule_with_warmup(o, warmup, total), steps=total, peak=0.1)
    assert ours == theirs


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


# --- other systems, as their own code computed them ---

# id -> our schedule, updates compared, how many updates ahead of ours it is, tolerance. Where warm-ups start elsewhere
# (epfml at 1/100, levanter at 0 even with a minimum, torchtitan and nanochat at 1/W) they are left out.
SHORT = {"num_warmup_steps": 10, "num_decay_steps": 20}
DOUBLE, SINGLE = 4e-16, 2e-7
OTHER_SYSTEMS = {
    "megatron/wsd-linear-min0": (wsd(100, **SHORT, decay_type="linear"), range(100), 0, DOUBLE),
    "megatron/wsd-minus_sqrt-min0": (wsd(100, **SHORT, decay_type="1-sqrt"), range(100), 0, DOUBLE),
    "epfml/linear": (wsd(100, **SHORT, decay_type="linear"), range(10, 100), 0, DOUBLE),
    "epfml/square": (wsd(100, **SHORT, decay_type="square"), range(10, 100), 0, DOUBLE),
    "epfml/sqrt": (wsd(100, **SHORT, decay_type="1-sqrt"), range(10, 100), 0, DOUBLE),
    "torchtitan/wsd-linear": (wsd(100, **SHORT, decay_type="linear"), range(10, 100), 0, DOUBLE),
    "torchtitan/wsd-sqrt": (wsd(100, **SHORT, decay_type="1-sqrt"), range(10, 100), 0, DOUBLE),
    "torchtitan/wsd-linear-min0.1": (
        wsd(100, **SHORT, decay_type="linear", min_lr_ratio=0.1),
        range(10, 100),
        0,
        DOUBLE,
    ),
    "nanochat/warmdown0.2": (
        wsd(100, **SHORT, decay_type="linear", min_lr_ratio=0.05),
        range(10, 100),
        0,
        DOUBLE,
    ),
    "olmo-core/wsd-linear-min0": (wsd(100, **SHORT, decay_type="linear"), range(100), 1, DOUBLE),
    "olmo-core/wsd-linear-min0.1": (
        wsd(100, **SHORT, decay_type="linear", min_lr_ratio=0.1),
        range(10, 100),
        1,
        DOUBLE,
    ),
    "olmo-core/wsds-3periods": (
        wsd_s(cycle_ends=[100, 200, 400], num_warmup_steps=20, decay_fraction=0.2, decay_type="linear", min_lr_ratio=0),
        [u for u in range(400) if u not in (99, 199)],  # one ahead: it trains the minimum itself, then jumps
        1,
        DOUBLE,
    ),
    "levanter/wsd-linear": (wsd(100, **SHORT, decay_type="linear", min_lr_ratio=0.1), range(10, 100), 0, SINGLE),
    "levanter/wsds-linear-rewarmup": (
        wsd_s(cycle_ends=[100, 200, 400], num_warmup_steps=20, decay_fraction=0.2, decay_type="linear", min_lr_ratio=0),
        [u for u in range(400) if u not in range(100, 105) and u not in range(200, 210)],  # its re-warm-ups
        0,
        SINGLE,
    ),
}
WITHOUT_COUNTERPART = {
    "transformers/short-stable-runs-on-at-min",  # trains on at the minimum: ours refuses lengths that do not add up
    "megatron/wsd-exponential-min0",  # shapes that hf_wsd does not have
    "minicpm/warmupstableexp",
}


@pytest.fixture(scope="module")
def entries():
    if not REFERENCE_LRS.exists():
        pytest.skip("the reference data are not beside this checkout")
    return {entry["id"]: entry for entry in json.loads(REFERENCE_LRS.read_text())["entries"]}


def test_recorded_transformers_lrs_are_met_to_the_last_bit(entries):
    recorded = {i: e for i, e in entries.items() if i.startswith("transformers/") and i not in WITHOUT_COUNTERPART}
    ours = {name: lrs(wsd(**e["config"]), e["total_steps"]) for name, e in recorded.items()}
    assert ours == {name: e["lrs"] for name, e in recorded.items()}


@pytest.mark.parametrize("name", OTHER_SYSTEMS)
def test_other_systems_lrs_are_met_where_conventions_agree(entries, name):
    schedule, updates, ahead, tolerance = OTHER_SYSTEMS[name]
    theirs = [entries[name]["lrs"][u] for u in updates]
    assert [schedule(u + ahead) for u in updates] == pytest.approx(theirs, rel=0, abs=tolerance)


def test_every_recorded_system_is_compared_or_excused(entries):
    transformers_own = {name for name in entries if name.startswith("transformers/")}
    assert set(OTHER_SYSTEMS) | WITHOUT_COUNTERPART | transformers_own == set(entries)


# --- refusals ---

NO_LENGTHS = [True, 1.5, 100.0, "100", float("nan"), float("inf"), -1, [100], {}]
NO_RATIOS = [True, "0.1", float("nan"), float("inf"), -0.1, 1.1, [0.1], None]


@pytest.mark.parametrize("length", [*NO_LENGTHS, 0, None])
def test_run_of_a_length_that_is_no_count_is_refused(length):
    with pytest.raises(ScheduleError, match="num_training_steps"):
        wsd(length, num_decay_steps=1)


@pytest.mark.parametrize("length", [*NO_LENGTHS, None])
@pytest.mark.parametrize("build", [wsd, wsd_s, cosine])
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


@pytest.mark.parametrize("value", NO_RATIOS)
def test_cosine_to_a_minimum_outside_0_and_1_is_refused(value):
    with pytest.raises(ScheduleError, match=r"must lie in \[0, 1\]"):
        cosine(100, min_lr_ratio=value)


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


def test_cosine_whose_warmup_is_the_whole_run_is_refused():
    with pytest.raises(ScheduleError, match="a warm-up of 100 steps leaves nothing of a run of 100"):
        cosine(100, num_warmup_steps=100)


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
    with pytest.raises(ScheduleError, match="the cycle 0-100 has 100 steps but needs 95 of warm-up and 10 of decay"):
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
        cosine(np.int64(100)),
        wsd(num_decay_steps=0).fork(np.int64(80), decay_steps=np.int64(20)),
    ],
    ids=["wsd", "wsd_s", "cosine", "fork"],
)
def test_schedule_of_numpy_integers_can_be_written_as_json(schedule):
    assert json.loads(json.dumps(schedule.to_dict())) == schedule.to_dict()
