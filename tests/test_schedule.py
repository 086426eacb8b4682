"""The schedule as an object: hf_wsd/schedule.py. Its lrs are compared with other code in test_builders.py."""

import copy
import json
import pickle

import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_wsd.builders import cosine, wsd, wsd_s
from hf_wsd.errors import ForkError, ResumeError, ScheduleError, ShapeError
from hf_wsd.schedule import Phase, Schedule, Segment, derive_intent

TRUNK = wsd(num_warmup_steps=10, num_decay_steps=0)
MODEL = wsd(100, num_warmup_steps=10, num_decay_steps=20, decay_type="linear")
CYCLES = wsd_s(cycle_ends=[100, 200], num_warmup_steps=10, num_decay_steps=20)


@st.composite
def schedules(draw):
    """Schedules of every kind that people name: a run, a trunk, a line of cycles, a cosine, a branch."""
    arguments = draw(reference.wsd_arguments())
    warmup, decay, total = (arguments[f"num_{name}_steps"] for name in ("warmup", "decay", "training"))
    return draw(
        st.sampled_from(
            [
                wsd(**arguments),
                wsd(num_warmup_steps=warmup, num_decay_steps=0),
                wsd_s(cycle_ends=[total, total + 70], **{k: v for k, v in arguments.items() if "training" not in k}),
                cosine(total, num_warmup_steps=warmup),
                wsd(num_warmup_steps=warmup, num_decay_steps=0).fork(warmup + 1, decay_steps=decay),
            ]
        )
    )


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


@given(schedule=schedules())
def test_lr_falls_in_a_decay_rises_in_a_warmup_and_else_is_the_peak(schedule):
    for u in range(schedule.total_steps or 100):
        if schedule.phase(u) is Phase.STABLE:
            assert schedule(u) == 1
        elif schedule.phase(u + 1) is schedule.phase(u):
            change = schedule(u + 1) - schedule(u)
            started_anew = (
                schedule.phase(u) is Phase.DECAY and schedule(u + 1) == 1
            )  # the next cycle has no stable phase
            assert started_anew or (change <= 1e-15 if schedule.phase(u) is Phase.DECAY else change >= -1e-15)


@given(schedule=schedules(), beyond=st.integers(0, 10**6))
def test_past_its_end_a_schedule_stays_where_it_ended(schedule, beyond):
    assume(schedule.total_steps is not None)
    assert schedule(schedule.total_steps + beyond) == schedule.segments[-1].end


def test_phases_change_where_transformers_changes_them():
    changes = {u: MODEL.phase(u) for u in (0, 9, 10, 79, 80, 99, 100)}
    warmup, stable, decay = Phase
    assert changes == {0: warmup, 9: warmup, 10: stable, 79: stable, 80: decay, 99: decay, 100: decay}


@pytest.mark.parametrize("schedule", [TRUNK, MODEL, CYCLES])
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
    ],
    ids=["trunk", "model", "cycles", "cosine", "cosine after a warm-up", "branch"],
)
def test_checkpoints_are_kept_where_a_decay_starts_and_ends(schedule, marks):
    assert schedule.checkpoint_steps() == marks


@given(schedule=schedules())
def test_checkpoint_before_a_decay_is_one_to_fork_from_or_the_end_of_a_cycle(schedule):
    forks = stable_steps(schedule, schedule.total_steps or 0)
    before = [step for step, kind in schedule.checkpoint_steps().items() if kind == "pre-decay"]
    assert set(before) <= set(forks)


def test_schedule_as_text_names_phases_and_lengths():
    assert str(MODEL) == "warmup linear 0 -> 1, 10 steps; stable at 1, 70 steps; decay linear 1 -> 0, 20 steps"


def test_open_schedule_says_so():
    assert str(TRUNK).endswith("stable at 1, open-ended")


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


def test_inverse_decay_from_zero_is_refused():
    with pytest.raises((ScheduleError, ShapeError), match=r"inverse|start"):
        Segment(phase=Phase.DECAY, steps=5, start=0.0, end=0.1, shape="inverse")


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


@pytest.mark.parametrize("final", [-0.1, 1.1, float("nan"), "0", None, True])
def test_branch_to_an_lr_outside_0_and_1_is_refused(final):
    with pytest.raises(ScheduleError, match=r"must lie in \[0, 1\]"):
        TRUNK.fork(40, decay_steps=10, final=final)


def test_branch_with_an_unknown_shape_is_refused():
    with pytest.raises(ShapeError, match="did you mean 'cosine'"):
        TRUNK.fork(40, decay_steps=10, shape="cosin")


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


@pytest.mark.parametrize("schedule", [TRUNK, MODEL, CYCLES])
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


@pytest.mark.parametrize("schedule", [TRUNK, MODEL, CYCLES])
def test_schedule_survives_pickle(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("schedule", [TRUNK, MODEL, CYCLES])
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
