"""The schedule as an object: hf_wsd/schedule.py. Its lrs are compared with other code in test_builders.py."""

import copy
import json
import pickle
import time
from itertools import accumulate, pairwise

import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_wsd.baselines import constant, cosine, cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import ForkError, ResumeError, ScheduleError, ShapeError
from hf_wsd.schedule import Schedule, derive_intent
from hf_wsd.segment import Phase, Segment

TRUNK = wsd(num_warmup_steps=10, num_decay_steps=0)
MODEL = wsd(100, num_warmup_steps=10, num_decay_steps=20, decay_type="linear")
CYCLES = wsd_s(cycle_ends=[100, 200], num_warmup_steps=10, num_decay_steps=20)
OWN = wsd(100, num_decay_steps=20, decay_type="my_shapes:bent", decay_params={"bend": 1.5, "lift": 2})
LINES = [TRUNK, MODEL, CYCLES, OWN]

each_line = pytest.mark.parametrize("schedule", LINES, ids=["trunk", "model", "cycles", "own shape"])
minimum = st.sampled_from([1e-6, 0.1]) | st.floats(1e-6, 0.3)
few = st.integers(0, 9)


@st.composite
def cycle_arguments(draw, climbs=few):
    """Arguments that `wsd_s` and `cyclic_cosine` share: cycles with peaks, climbs and a rest at the minimum."""
    lengths = draw(st.lists(st.integers(40, 60), min_size=1, max_size=3))
    return {
        "cycle_ends": list(accumulate(lengths)),
        "cycle_peaks": draw(st.lists(st.floats(0.31, 1), min_size=len(lengths), max_size=len(lengths))),
        "num_warmup_steps": draw(few),
        "num_rewarmup_steps": draw(climbs),
        "num_min_steps": draw(few),
        "min_lr_ratio": draw(minimum),
    }


@st.composite
def cycle_lines(draw, falls=reference.FALLS, climbs=few):
    """Lines of cycles, of WSD-S or of cosines; a decay of 22 steps may leave no stable phase."""
    arguments = draw(cycle_arguments(climbs=climbs))
    if draw(st.booleans()):
        return cyclic_cosine(**arguments, warmup_start=arguments["min_lr_ratio"])
    return wsd_s(**arguments, num_decay_steps=draw(st.integers(1, 22)), decay_type=draw(st.sampled_from(falls)))


@st.composite
def special_runs(draw):
    """Runs whose shape has parameters, an end of its own or a user's function."""
    name, params, _ = draw(st.sampled_from([*reference.SPECIAL_FALLS, ("my_shapes:bent", {"bend": 3}, None)]))
    warmup, stable, decay = draw(few), draw(few), draw(st.integers(1, 40))
    lengths = {"num_warmup_steps": warmup, "num_decay_steps": decay}
    return wsd(warmup + stable + decay, decay_type=name, decay_params=params, **lengths)


@st.composite
def baselines(draw):
    """Schedules to compare with: a cosine, a staircase, a constant."""
    warmup, total = draw(few), draw(st.integers(20, 90))
    levels = sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=3)), reverse=True)
    milestones = [warmup + 1 + 3 * i for i in range(len(levels))]
    build = draw(st.sampled_from(["cosine", "multi_step", "constant", "open"]))
    if build == "multi_step":
        return multi_step(total, num_warmup_steps=warmup, milestones=milestones, multipliers=levels)
    if build == "cosine":
        return cosine(total, num_warmup_steps=warmup, num_min_steps=draw(few), min_lr_ratio=draw(minimum))
    return constant(None if build == "open" else total, num_warmup_steps=warmup)


@st.composite
def runs(draw):
    """A WSD run, its trunk, or a branch of it."""
    arguments = draw(reference.wsd_arguments())
    warmup, decay = arguments["num_warmup_steps"], arguments["num_decay_steps"]
    trunk = wsd(num_warmup_steps=warmup, num_decay_steps=0)
    branch = trunk.fork(warmup + 1, decay_steps=decay)
    return draw(st.sampled_from([wsd(**arguments), trunk, branch]))


def schedules():
    """Schedules of every kind that people name."""
    return runs() | special_runs() | cycle_lines() | baselines()


def stable_steps(schedule, until):
    """The steps of checkpoints from which a branch may leave, one by one."""
    phases = [schedule.phase(u) for u in range(until + 1)]
    after_stable = [k for k in range(1, until + 1) if phases[k - 1] is Phase.STABLE]
    after_warmup = [k for k in range(1, until + 1) if phases[k - 1] is Phase.WARMUP and phases[k] is not Phase.WARMUP]
    return sorted(after_stable + after_warmup)


# --- as a function of the step ---


@given(schedule=schedules(), step=st.integers(0, 300))
def test_multiplier_lies_between_0_and_1(schedule, step):
    assert 0 <= schedule(step) <= 1


def changes_within(schedule, phase):
    """The change of the multiplier from one update to the next, both in the same segment of that phase."""
    for start, end, segment in schedule.spans():
        if segment.phase is phase:
            yield from (schedule(u + 1) - schedule(u) for u in range(start, (end or start + 50) - 1))


@given(schedule=schedules())
def test_lr_never_rises_in_a_decay(schedule):
    assert max(changes_within(schedule, Phase.DECAY), default=0) <= 1e-15


@given(schedule=schedules())
def test_lr_never_falls_in_a_warmup(schedule):
    assert min(changes_within(schedule, Phase.WARMUP), default=0) >= -1e-15


@given(schedule=schedules())
def test_lr_stays_the_same_in_a_stable_phase(schedule):
    assert set(changes_within(schedule, Phase.STABLE)) <= {0}


@given(schedule=runs())
def test_stable_lr_of_a_run_is_the_peak(schedule):
    assert {segment.start for segment in schedule.segments if segment.phase is Phase.STABLE} <= {1}


def jumps(schedule):
    """The updates at which a segment does not start where the one before tends to."""
    spans = list(schedule.spans())
    return [start for (_, _, a), (start, _, _) in pairwise(spans) if abs(schedule(start) - a.end) > 1e-14]


@given(schedule=runs() | cycle_lines(climbs=st.integers(1, 9)))
def test_lr_is_continuous_where_no_jump_is_asked_for(schedule):
    assert jumps(schedule) == []


@given(arguments=cycle_arguments(climbs=st.just(0)))
def test_cycles_without_a_climb_jump_at_their_ends_alone(arguments):
    ends = arguments["cycle_ends"]
    schedules = wsd_s(**arguments, num_decay_steps=9), cyclic_cosine(**arguments, warmup_start=1e-6)
    assert all(set(jumps(schedule)) <= set(ends[:-1]) for schedule in schedules)


@pytest.mark.parametrize(
    ("schedule", "where"),
    [
        (wsd(100, decay_fraction=0.2, decay_type="multi-step"), [80]),
        (wsd(100, decay_fraction=0.2, decay_type="lowered-linear"), [80]),
        (wsd(100, decay_fraction=0.2, decay_type="lowered-linear", decay_params={"factor": 1}), []),
        (multi_step(100), [80, 90]),
    ],
    ids=["multi-step shape", "lowered linear", "lowered by nothing", "multi-step baseline"],
)
def test_lr_jumps_where_that_is_asked_for(schedule, where):
    assert jumps(schedule) == where


def test_deepseeks_staircase_is_a_decay_of_the_last_fifth():
    assert wsd(1000, decay_fraction=0.2, decay_type="multi-step").multipliers() == multi_step(1000).multipliers()


@given(arguments=cycle_arguments())
def test_lengths_of_cycles_add_up(arguments):
    ends = arguments["cycle_ends"]
    borders = {start for start, _, _ in wsd_s(**arguments, num_decay_steps=9).spans()} | {ends[-1]}
    assert (set(ends) <= borders, max(borders)) == (True, ends[-1])


@given(arguments=reference.wsd_arguments())
def test_lengths_of_a_run_add_up(arguments):
    steps = {segment.phase: segment.steps for segment in wsd(**arguments).segments}
    asked = {Phase.WARMUP: arguments["num_warmup_steps"], Phase.DECAY: arguments["num_decay_steps"]}
    asked |= {Phase.STABLE: arguments["num_training_steps"] - sum(asked.values())}
    assert steps == {phase: number for phase, number in asked.items() if number}


@given(schedule=special_runs(), warmup=few)
def test_wsd_s_of_one_cycle_is_wsd_for_every_shape(schedule, warmup):
    decay, total = schedule.segments[-1], schedule.total_steps + warmup
    arguments = {"num_decay_steps": decay.steps, "decay_type": decay.shape, "decay_params": dict(decay.shape_params)}
    arguments["min_lr_ratio"] = None if decay.end else 0.0
    assert wsd_s(total, **arguments, num_warmup_steps=warmup) == wsd(total, **arguments, num_warmup_steps=warmup)


@given(schedule=schedules(), start=st.integers(0, 250), count=st.integers(0, 120))
def test_multipliers_are_those_of_one_update_after_another(schedule, start, count):
    assert schedule.multipliers(start, start + count) == [schedule(u) for u in range(start, start + count)]


@given(schedule=schedules())
def test_multipliers_go_to_the_end_if_nothing_is_said(schedule):
    assume(schedule.total_steps is not None)
    assert schedule.multipliers() == [schedule(u) for u in range(schedule.total_steps)]


def test_multipliers_of_an_open_schedule_need_an_end():
    with pytest.raises(ScheduleError, match="an open-ended schedule has no last update: say where to stop"):
        TRUNK.multipliers(5)


@each_line
def test_multipliers_before_the_start_are_refused(schedule):
    with pytest.raises(ScheduleError, match="a schedule starts at step 0, not -1"):
        schedule.multipliers(-1, 5)


@given(schedule=schedules(), beyond=st.integers(0, 10**6))
def test_past_its_end_a_schedule_stays_where_it_ended(schedule, beyond):
    assume(schedule.total_steps is not None)
    assert schedule(schedule.total_steps + beyond) == schedule.segments[-1].end


def test_phases_change_where_transformers_changes_them():
    changes = {u: MODEL.phase(u) for u in (0, 9, 10, 79, 80, 99, 100)}
    warmup, stable, decay = Phase
    assert changes == {0: warmup, 9: warmup, 10: stable, 79: stable, 80: decay, 99: decay, 100: decay}


@each_line
@pytest.mark.parametrize("ask", [Schedule.__call__, Schedule.phase])
def test_step_before_the_start_is_refused(schedule, ask):
    with pytest.raises(ScheduleError, match="a schedule starts at step 0, not -1"):
        ask(schedule, -1)


@given(schedule=schedules())
def test_spans_cover_every_update_once(schedule):
    begins, ends, segments = zip(*schedule.spans(), strict=True)
    assert (begins[0], begins[1:], segments) == (0, ends[:-1], schedule.segments)


@pytest.mark.parametrize(("schedule", "total"), [(TRUNK, None), (MODEL, 100), (CYCLES, 200), (cosine(50), 50)])
def test_total_steps_is_the_number_of_updates(schedule, total):
    assert schedule.total_steps == total


@pytest.mark.parametrize(
    ("schedule", "marks"),
    [
        (TRUNK, {}),
        (MODEL, {80: "pre-decay", 100: "post-decay"}),
        (CYCLES, {80: "pre-decay", 100: "post-decay", 180: "pre-decay", 200: "post-decay"}),
        (cosine(50), {50: "post-decay"}),  # step 0 is no checkpoint
        (cosine(50, num_warmup_steps=5), {5: "pre-decay", 50: "post-decay"}),
        (TRUNK.fork(40, decay_steps=8), {40: "pre-decay", 48: "post-decay"}),
        (cyclic_cosine(cycle_ends=[50, 100]), {50: "post-decay", 100: "post-decay"}),
        (
            cyclic_cosine(cycle_ends=[50, 100], num_warmup_steps=5, num_rewarmup_steps=10),
            {5: "pre-decay", 50: "post-decay", 60: "pre-decay", 100: "post-decay"},
        ),
        (
            wsd_s(cycle_ends=[20, 40], num_warmup_steps=5, num_decay_steps=15, num_min_steps=0, num_rewarmup_steps=5),
            {5: "pre-decay", 20: "post-decay", 25: "pre-decay", 40: "post-decay"},
        ),
        (wsd_s(cycle_ends=[30, 50], num_decay_steps=20), {10: "pre-decay", 30: "post-decay", 50: "post-decay"}),
        (wsd_s(cycle_ends=[50], num_decay_steps=10, num_min_steps=5), {35: "pre-decay", 50: "post-decay"}),
        (multi_step(100), {80: "pre-decay", 100: "post-decay"}),
        (constant(100, num_warmup_steps=5), {}),
    ],
    ids=[
        *("trunk", "model", "cycles", "cosine", "cosine after a warm-up", "branch", "cosines", "cosines with climbs"),
        *("climb and decay alone", "second cycle all decay", "rest at the minimum", "staircase", "constant"),
    ],
)
def test_checkpoints_are_kept_where_a_decay_starts_and_ends(schedule, marks):
    assert schedule.checkpoint_steps() == marks


@given(arguments=cycle_arguments())
@pytest.mark.parametrize("build", [wsd_s, cyclic_cosine])
def test_every_end_of_a_cycle_is_kept(build, arguments):
    arguments["min_lr_ratio"] /= 2  # below every peak, so that each cycle has a decay
    start = {} if build is wsd_s else {"warmup_start": 0.0}
    marks = build(**arguments, **start).checkpoint_steps()
    assert [step for step, kind in marks.items() if kind == "post-decay"] == arguments["cycle_ends"]


@given(schedule=schedules())
def test_checkpoint_before_a_decay_is_one_to_fork_from(schedule):
    forks = stable_steps(schedule, schedule.total_steps or 0)
    before = [step for step, kind in schedule.checkpoint_steps().items() if kind == "pre-decay"]
    assert set(before) <= set(forks)


def test_schedule_as_text_names_phases_and_lengths():
    assert str(MODEL) == "warmup linear 0 -> 1, 10 steps; stable at 1, 70 steps; decay linear 1 -> 0, 20 steps"


def test_open_schedule_says_so():
    assert str(TRUNK).endswith("stable at 1, open-ended")


# --- segments that make no line ---


def test_empty_schedule_is_refused():
    with pytest.raises(ScheduleError, match="at least one segment"):
        Schedule(())


def test_open_segment_before_the_last_is_refused():
    with pytest.raises(ScheduleError, match="only the last segment may be open-ended, not 'stable at 1, open-ended'"):
        Schedule((Segment(phase=Phase.STABLE, steps=None), Segment(phase=Phase.STABLE, steps=5)))


# --- forks ---


@given(arguments=reference.wsd_arguments())
def test_fork_and_decay_is_the_straight_run(arguments):
    straight = wsd(**arguments)
    trunk = wsd(**{**arguments, "num_decay_steps": 0})
    at = arguments["num_training_steps"] - arguments["num_decay_steps"]
    assume(at > 0)
    final = arguments["min_lr_ratio"]
    assert trunk.fork(at, decay_steps=straight.total_steps - at, shape=arguments["decay_type"], final=final) == straight


@given(schedule=schedules(), data=st.data())
def test_branch_equals_trunk_before_the_fork(schedule, data):
    forks = stable_steps(schedule, schedule.total_steps or 100)
    assume(forks)
    at = data.draw(st.sampled_from(forks))
    branch = schedule.fork(at, decay_steps=5)
    assert [(branch(u), branch.phase(u)) for u in range(at)] == [(schedule(u), schedule.phase(u)) for u in range(at)]


@given(schedule=schedules(), data=st.data())
def test_branch_ends_where_its_decay_does(schedule, data):
    forks = stable_steps(schedule, schedule.total_steps or 100)
    assume(forks)
    at, steps = data.draw(st.sampled_from(forks)), data.draw(st.integers(1, 50))
    branch = schedule.fork(at, decay_steps=steps, shape="linear", final=0.1)
    assert (branch.total_steps, branch(at + steps), branch.phase(at)) == (at + steps, 0.1, Phase.DECAY)


@given(schedule=schedules(), at=st.integers(1, 250))
def test_fork_is_allowed_from_stable_steps_alone(schedule, at):
    allowed = at in stable_steps(schedule, min(at, schedule.total_steps or at))
    try:
        schedule.fork(at, decay_steps=5)
    except ForkError:
        assert not allowed
    else:
        assert allowed


@given(schedule=schedules(), at=st.integers(1, 250))
def test_checkpoint_that_a_refusal_names_can_be_forked(schedule, at):
    try:
        schedule.fork(at, decay_steps=5)
    except ForkError as error:
        _, named, nearest = str(error).partition("Nearest stable checkpoint: ")
        if named:
            schedule.fork(int(nearest.rstrip(".")), decay_steps=5)


def test_fork_in_the_second_cycle_keeps_the_first():
    branch = CYCLES.fork(150, decay_steps=10)
    assert branch.checkpoint_steps() == {80: "pre-decay", 100: "post-decay", 150: "pre-decay", 160: "post-decay"}


def test_branch_starts_where_the_stable_phase_is():
    half = Schedule((Segment(phase=Phase.STABLE, steps=None, start=0.5, end=0.5),))
    branch = half.fork(10, decay_steps=4, shape="linear")
    assert [branch(9), branch(10), branch(12)] == [0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("schedule", "at", "message"),
    [
        (TRUNK, 5, r"step 5: update 4 is in the warmup phase \(0-9\)\. Nearest stable checkpoint: 10\."),
        (MODEL, 90, r"step 90: update 89 is in the decay phase \(80-99\)\. Nearest stable checkpoint: 80\."),
        (CYCLES, 100, r"step 100: update 99 is in the decay phase \(80-99\)\. Nearest stable checkpoint: 80\."),
        (MODEL, 101, "step 101: the trunk ends at step 100"),
        (Schedule(MODEL.segments[:2]), 81, "step 81: the trunk ends at step 80"),
    ],
    ids=["in the warm-up", "in a decay", "at the end of a decay", "past the end", "past the end of a stable phase"],
)
def test_fork_where_no_branch_can_leave_is_refused_with_the_numbers(schedule, at, message):
    with pytest.raises(ForkError, match=f"cannot fork at {message}"):
        schedule.fork(at, decay_steps=10)


@pytest.mark.parametrize("at", [0, -1, 1.5, "40", None, float("nan"), True])
def test_fork_at_what_is_no_step_is_refused(at):
    with pytest.raises(ScheduleError, match="fork point"):
        TRUNK.fork(at, decay_steps=10)


@pytest.mark.parametrize("steps", [0, -1, 0.2, "10", None, float("nan"), True])
def test_branch_of_no_length_is_refused(steps):
    with pytest.raises(ScheduleError, match="decay_steps"):
        TRUNK.fork(40, decay_steps=steps)


@pytest.mark.parametrize("final", [-0.1, 1.1, float("nan"), "0", True])
def test_branch_to_an_lr_outside_0_and_1_is_refused(final):
    with pytest.raises(ScheduleError, match=r"must lie in \[0, 1\]"):
        TRUNK.fork(40, decay_steps=10, final=final)


def test_branch_with_an_unknown_shape_is_refused():
    with pytest.raises(ShapeError, match="did you mean 'cosine'"):
        TRUNK.fork(40, decay_steps=10, shape="cosin")


@pytest.mark.parametrize(
    ("shape", "params", "end"),
    [("1-sqrt", None, 0.0), ("multi-step", None, 0.1), ("half-life", {"half_life": 5}, 0.25), ("power", {"p": 3}, 0.0)],
)
def test_branch_ends_where_its_shape_does_by_itself(shape, params, end):
    assert TRUNK.fork(40, decay_steps=10, shape=shape, params=params)(50) == end


@pytest.mark.parametrize(("shape", "params"), [("power", {"p": 3}), ("my_shapes:bent", {"bend": 3})])
def test_branch_with_parameters_is_the_straight_run(shape, params):
    straight = wsd(50, num_warmup_steps=10, num_decay_steps=10, decay_type=shape, decay_params=params)
    assert TRUNK.fork(40, decay_steps=10, shape=shape, params=params) == straight


@pytest.mark.parametrize(
    ("shape", "params"),
    [("power", {"q": 1}), ("linear", {"p": 1}), ("half-life", None), ("my_shapes:fails", None), ("my_shapes:no", None)],
)
def test_branch_with_a_bad_shape_fails_when_made(shape, params):
    with pytest.raises(ShapeError):
        TRUNK.fork(40, decay_steps=10, shape=shape, params=params)


@pytest.mark.parametrize("shape", ["my_shapes:fails", "my_shapes:nan", "my_shapes:below", "my_shapes:dips"])
@pytest.mark.parametrize("decay_steps", [0, 5000])
def test_run_with_a_bad_shape_fails_when_made_even_if_its_decay_comes_later(shape, decay_steps):
    with pytest.raises(ShapeError, match=shape):
        wsd(10**4, num_decay_steps=decay_steps, decay_type=shape)


def test_run_that_names_the_end_its_shape_has_by_itself_is_the_run():
    arguments = {"num_decay_steps": 20, "decay_type": "half-life", "decay_params": {"half_life": 5}}
    assert wsd(100, **arguments, min_lr_ratio=0.0625).segments[-1] == wsd(100, **arguments).segments[-1]


# --- comparing ---


def cut_in_two(schedule, index, steps):
    """The same schedule with the constant segment `index` written as two."""
    segment = schedule.segments[index]
    rest = None if segment.steps is None else segment.steps - steps
    halves = (
        Segment(phase=segment.phase, steps=steps, start=segment.start, end=segment.end),
        Segment(phase=segment.phase, steps=rest, start=segment.start, end=segment.end),
    )
    return Schedule((*schedule.segments[:index], *halves, *schedule.segments[index + 1 :]))


@pytest.mark.parametrize("schedule", [TRUNK, MODEL, CYCLES])  # each with a stable phase after its warm-up
@given(until=st.integers(0, 250), steps=st.integers(1, 69))
def test_where_constants_are_cut_makes_no_difference(schedule, until, steps):
    assert cut_in_two(schedule, 1, steps).agrees_with(schedule, until=until)


@pytest.mark.parametrize("schedule", [TRUNK, MODEL, CYCLES])
@given(steps=st.integers(1, 69))
def test_cut_schedule_is_no_difference_in_whole(schedule, steps):
    assert cut_in_two(schedule, 1, steps).difference(schedule) is None


@given(one=schedules(), other=schedules(), until=st.integers(0, 200))
def test_agreement_means_equal_lrs_and_phases(one, other, until):
    if one.agrees_with(other, until=until):
        assert [(one(u), one.phase(u)) for u in range(until)] == [(other(u), other.phase(u)) for u in range(until)]


@given(one=schedules(), other=schedules(), until=st.integers(0, 200))
def test_agreement_goes_both_ways(one, other, until):
    assert one.agrees_with(other, until=until) == other.agrees_with(one, until=until)


@given(one=schedules(), other=schedules(), until=st.integers(1, 200))
def test_agreement_holds_for_every_shorter_past(one, other, until):
    if one.agrees_with(other, until=until):
        assert one.agrees_with(other, until=until - 1)


def test_difference_says_where_and_what():
    longer = wsd(100, num_warmup_steps=20, num_decay_steps=20, decay_type="linear")
    assert MODEL.difference(longer) == "from step 0: warmup linear 0 -> 1, 10 steps | warmup linear 0 -> 1, 20 steps"


def test_difference_in_the_decay_is_placed_there():
    assert MODEL.difference(wsd(100, num_warmup_steps=10, num_decay_steps=20)).startswith("from step 80: decay linear")


def test_schedule_that_goes_on_differs_from_one_that_ends():
    ended = Schedule(MODEL.segments[:2])
    assert ended.difference(MODEL) == "from step 80: the end | decay linear 1 -> 0, 20 steps"


def first_difference_one_by_one(one, other):
    """The slow way: every update of the longer schedule, or 300 of open ones."""
    ends = [schedule.total_steps or 300 for schedule in (one, other)]
    for u in range(max(ends)):
        if u >= min(ends) or one(u) != other(u):
            return u
    return None


@given(one=schedules(), data=st.data())
def test_first_difference_of_a_branch_is_that_of_every_update(one, data):
    forks = stable_steps(one, one.total_steps or 100)
    assume(forks)
    branch = one.fork(data.draw(st.sampled_from(forks)), decay_steps=5)
    assert one.first_difference(branch) == first_difference_one_by_one(one, branch)


@given(one=schedules(), other=schedules())
def test_first_difference_is_that_of_every_update(one, other):
    assert one.first_difference(other) == first_difference_one_by_one(one, other)


@given(schedule=schedules(), data=st.data())
def test_first_difference_of_a_branch_is_after_its_fork(schedule, data):
    forks = stable_steps(schedule, schedule.total_steps or 100)
    assume(forks)
    at = data.draw(st.sampled_from(forks))
    first = schedule.first_difference(schedule.fork(at, decay_steps=5))
    assert first is None or first >= at


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        (MODEL, MODEL, None),
        (TRUNK, TRUNK, None),
        (MODEL, TRUNK.fork(80, decay_steps=20, shape="square"), 81),  # update 80 is at the peak in both
        (TRUNK, MODEL, 81),  # update 80 is decay in one of them, at the same lr
        (TRUNK, constant(100, num_warmup_steps=10), 100),
        (wsd(num_decay_steps=0), TRUNK, 0),
        (wsd(100, decay_type="linear", min_lr_ratio=1), wsd(100, decay_type="square", min_lr_ratio=1), None),
    ],
    ids=["same", "same trunk", "shape", "phase", "end", "warm-up", "shapes that stay at the peak"],
)
def test_first_difference_goes_both_ways(one, other, where):
    assert (one.first_difference(other), other.first_difference(one)) == (where, where)


@each_line
def test_cut_schedule_has_no_first_difference(schedule):
    index = next(i for i, segment in enumerate(schedule.segments) if segment.phase is Phase.STABLE)
    assert cut_in_two(schedule, index, 30).first_difference(schedule) is None


@given(schedule=schedules())
def test_equal_schedules_are_one_key(schedule):
    assert len({schedule, Schedule.from_dict(schedule.to_dict())}) == 1


# --- what a resume is ---

LONGER = wsd(200, num_warmup_steps=10, num_decay_steps=20, decay_type="linear")
OTHER_WARMUP = wsd(100, num_warmup_steps=20, num_decay_steps=20, decay_type="linear")
FIRST_CYCLE = wsd_s(cycle_ends=[100], num_warmup_steps=10, num_decay_steps=20)


@pytest.mark.parametrize(
    ("stored", "asked", "step", "intent"),
    [
        (TRUNK, TRUNK, 50, "continue"),
        (MODEL, MODEL, 50, "continue"),
        (MODEL, MODEL, 90, "continue"),  # in the decay
        (MODEL, MODEL, 100, "continue"),  # at its end
        (TRUNK, cut_in_two(TRUNK, 1, 30), 50, "continue"),
        (TRUNK, MODEL, 80, "branch"),
        (TRUNK, MODEL, 50, "branch"),  # the decay is still to come
        (TRUNK, TRUNK.fork(80, decay_steps=20), 80, "branch"),
        (LONGER, MODEL, 80, "branch"),
        (LONGER, MODEL, 50, "branch"),
        (MODEL, wsd(100, num_warmup_steps=10, num_decay_steps=20), 80, "branch"),  # another shape
        (CYCLES, CYCLES.fork(150, decay_steps=5), 150, "branch"),
        (TRUNK, MODEL, 0, "branch"),
        (MODEL, LONGER, 80, "extend"),
        (MODEL, LONGER, 50, "extend"),
        (MODEL, TRUNK, 80, "extend"),
        (FIRST_CYCLE, CYCLES, 100, "extend"),  # WSD-S goes on from the decayed checkpoint
        (FIRST_CYCLE, CYCLES, 90, "extend"),
    ],
)
def test_intent_follows_from_the_two_schedules(stored, asked, step, intent):
    assert derive_intent(stored, asked, step=step) == intent


@pytest.mark.parametrize(
    ("stored", "asked", "step", "where"),
    [
        (MODEL, OTHER_WARMUP, 50, "from step 0: warmup"),
        (TRUNK, MODEL, 90, "from step 10: stable"),  # forked too late: the asked decay began at 80
        (MODEL, TRUNK, 90, "from step 10: stable"),  # the decay has begun
        (MODEL, LONGER, 100, "from step 10: stable"),
        (wsd(num_decay_steps=0), MODEL, 50, "from step 0: stable"),
        (CYCLES, FIRST_CYCLE, 150, r"from step 100: stable at 1, 50 steps \| the end"),
    ],
)
def test_another_past_is_refused_with_the_difference(stored, asked, step, where):
    with pytest.raises(ResumeError, match=f"checkpoint at step {step} was trained with another schedule.*{where}"):
        derive_intent(stored, asked, step=step)


# --- written and read ---


@given(schedule=schedules())
def test_schedule_survives_json(schedule):
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule


@given(schedule=schedules())
def test_lrs_survive_json_to_the_last_bit(schedule):
    read = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert [read(u) for u in range(150)] == [schedule(u) for u in range(150)]


@each_line
def test_schedule_survives_pickle(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@each_line
def test_schedule_survives_deepcopy(schedule):
    assert copy.deepcopy(schedule) == schedule


@pytest.mark.parametrize("segment", range(3))
@pytest.mark.parametrize("field", ["phase", "steps", "start", "end", "shape"])
def test_written_schedule_without_a_field_is_refused(segment, field):
    data = MODEL.to_dict()
    del data["segments"][segment][field]
    with pytest.raises(ScheduleError, match=field):
        Schedule.from_dict(data)


WRONG = {
    "phase": [None, "x", 1, [], {}, True, "DECAY"],
    "steps": ["20", 1.5, -1, 0, [], {}, float("nan"), True],
    "start": [None, "1", -1, 2, [], {}, float("nan"), True],
    "end": [None, "1", -1, 2, [], {}, float("nan"), True],
    "shape": [None, "linaer", 1, [], {}, True, "constant"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_written_schedule_with_a_wrong_value_is_refused(field, value):
    data = MODEL.to_dict()
    data["segments"][-1][field] = value
    with pytest.raises((ScheduleError, ShapeError)):
        Schedule.from_dict(data)


def test_written_schedule_with_an_unknown_field_is_refused():
    data = MODEL.to_dict()
    data["segments"][0]["speed"] = 1
    with pytest.raises(ScheduleError, match=r"damaged schedule: .*speed"):
        Schedule.from_dict(data)


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, {"p": 1.5}, "p"])
@pytest.mark.parametrize("segment", range(3))
def test_written_schedule_with_parameters_where_there_are_none_is_refused(segment, value):
    data = MODEL.to_dict()
    data["segments"][segment]["shape_params"] = value
    with pytest.raises((ScheduleError, ShapeError)):
        Schedule.from_dict(data)


PARAMETERS = [
    ("power", {"p": 1.5}),
    ("half-life", {"half_life": 50}),
    ("lowered-linear", {"factor": 0.7}),
    ("my_shapes:bent", {"bend": 3}),
    ("my_shapes:needs_bend", {"bend": 3}),
]


def written_with_parameters(shape, params):
    return wsd(100, decay_type=shape, decay_params=params).to_dict()


@pytest.mark.parametrize(("shape", "params"), PARAMETERS)
def test_written_schedule_without_its_parameters_is_refused(shape, params):
    data = written_with_parameters(shape, params)
    del data["segments"][-1]["shape_params"]
    with pytest.raises((ScheduleError, ShapeError)):
        Schedule.from_dict(data)


@pytest.mark.parametrize("value", [None, 0, "", [], {}, {"q": 1}, {"p": None}, {"p": -1}, {"p": "1.5"}, {"p": True}])
def test_written_schedule_with_wrong_parameters_is_refused(value):
    data = written_with_parameters("power", {"p": 1.5})
    data["segments"][-1]["shape_params"] = value
    with pytest.raises((ScheduleError, ShapeError)):
        Schedule.from_dict(data)


@pytest.mark.parametrize("order", [("bend", "lift"), ("lift", "bend")])
def test_schedule_survives_json_with_sorted_keys(order):
    params = dict.fromkeys(order, 2)
    schedule = wsd(100, decay_type="my_shapes:bent", decay_params=params)
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict(), sort_keys=True))) == schedule


@pytest.mark.parametrize("shape", ["my_shapes:no_such_function", "no_such_module:f", "__main__:f", "my_shapes:NUMBER"])
def test_written_schedule_with_a_function_that_is_gone_is_refused(shape):
    data = OWN.to_dict()
    data["segments"][-1]["shape"] = shape
    with pytest.raises(ShapeError, match=shape):
        Schedule.from_dict(data)


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_schedule_of_another_schema_is_refused(schema):
    with pytest.raises(ScheduleError, match=f"schema {schema!r}: this version of hf_wsd reads 1"):
        Schedule.from_dict(MODEL.to_dict() | {"schema": schema})


@pytest.mark.parametrize("segments", [None, 5, [], {}, "", ["x"], [None], [5], [[]]])
def test_written_schedule_without_segments_is_refused(segments):
    with pytest.raises(ScheduleError):
        Schedule.from_dict({"schema": 1, "segments": segments})


@pytest.mark.parametrize("data", [None, [], 5, "schedule", {}, {"schema": 1}])
def test_what_is_no_written_schedule_is_refused(data):
    with pytest.raises(ScheduleError):
        Schedule.from_dict(data)


# --- cost ---


def seconds(function, repeats=5):
    """The shortest of several measurements: a busy machine only ever adds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def line_of(cycles, steps=10**6):
    return wsd_s(cycle_ends=[steps * (i + 1) // cycles for i in range(cycles)])


@pytest.mark.parametrize("line", [wsd(10**6, decay_fraction=0.9), cosine(10**6), OWN, CYCLES])
def test_step_costs_microseconds(line):
    steps = [line.total_steps * i // 5000 for i in range(5000)]
    assert seconds(lambda: [line(u) for u in steps]) / len(steps) < 6e-6  # 1.2 measured; allowed for a busy machine: x5


def test_step_of_a_thousand_cycles_costs_little_more_than_of_one():
    steps = range(0, 10**6, 100)
    one, many = (seconds(lambda line=line: [line(u) for u in steps], 9) for line in (line_of(1), line_of(1000)))
    assert many < 4 * one  # 1.4 measured; a search one by one is 100 times as slow


@pytest.mark.parametrize(
    "schedule",
    [line_of(1000), cosine(10**6), wsd(10**6, decay_fraction=0.9, decay_type="power")],
    ids=["cycles", "cosine", "power"],
)
def test_curve_of_a_million_steps_takes_less_than_a_second(schedule):
    assert seconds(schedule.multipliers) < 1
