"""What a family will take: hf_wsd/preview.py, against updates counted one by one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.baselines import constant, cosine, cyclic_cosine
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import ForkError, ScheduleError, SettingsError
from hf_wsd.legs import METHODS, Leg
from hf_wsd.plan import Plan
from hf_wsd.preview import Preview

GROWING = ["10%", "30%", "50%", "70%", "100%"]
EVEN = ["20%", "40%", "60%", "80%", "100%"]
ENDS = st.sets(st.integers(20, 300), min_size=1, max_size=5)


def texts(ends):
    return [str(end) for end in ends]


def updates_made(preview):
    """Every update of every run, one by one."""
    return [(leg.name, step) for leg in preview.legs for step in range(leg.start, leg.end)]


def kept_steps(preview):
    return [(kept.run, kept.step) for kept in preview.kept()]


# --- updates ---


@given(ends=ENDS, decay=st.integers(1, 19))
def test_wsd_makes_the_stable_updates_once_and_each_decay_by_itself(ends, decay):
    stable, decayed = set(), []
    for end in ends:
        stable |= set(range(end - decay))
        decayed += range(end - decay, end)
    made = updates_made(Preview.make("wsd", texts(ends), num_decay_steps=decay))
    assert sorted(step for name, step in made if name == "trunk") == sorted(stable)
    assert sorted(step for name, step in made if name != "trunk") == sorted(decayed)


@pytest.mark.parametrize("method", ["wsd_s", "cyclic_cosine"])
@given(ends=ENDS)
def test_one_line_makes_each_update_of_the_longest_model_once(method, ends):
    cycles = [end * 20 for end in sorted(ends)]  # each long enough for a decay
    made = updates_made(Preview.make(method, texts(cycles)))
    assert made == [("line", step) for step in range(max(cycles))]


@given(ends=ENDS)
def test_separate_cosines_make_each_update_of_each_model(ends):
    made = updates_made(Preview.make("cosine", texts(ends)))
    assert sorted(step for _, step in made) == sorted(step for end in ends for step in range(end))


@pytest.mark.parametrize("method", METHODS)
@given(ends=ENDS, decay=st.integers(1, 19))
def test_steps_are_the_updates_made(method, ends, decay):
    cycles = [end * 20 for end in ends]
    length = {} if method.endswith("cosine") else {"num_decay_steps": decay}
    preview = Preview.make(method, texts(cycles), **length)
    assert preview.steps == len(updates_made(preview))


@given(ends=ENDS)
def test_separate_steps_are_those_of_the_cosines(ends):
    assert Preview.make("wsd", texts(ends)).separate_steps == Preview.make("cosine", texts(ends)).steps


@pytest.mark.parametrize(
    ("method", "part"),
    [("wsd", 1.16), ("wsd_s", 1.0), ("cosine", 2.6), ("cyclic_cosine", 1.0)],
)
def test_part_of_the_longest_model_for_decays_of_a_tenth_of_each_budget(method, part):
    assert Preview.make(method, GROWING, lengths={"of": "10000"}).part_of_longest == pytest.approx(part)


@pytest.mark.parametrize(("method", "part"), [("wsd", 1.4), ("cosine", 3.0)])
def test_part_of_the_longest_model_for_decays_of_a_tenth_of_the_whole(method, part):
    length = {"num_decay_steps": "10%"} if method == "wsd" else {}
    assert Preview.make(method, EVEN, lengths={"of": "10000"}, **length).part_of_longest == pytest.approx(part)


@pytest.mark.parametrize(("method", "saving"), [("wsd", 1 - 116 / 260), ("wsd_s", 1 - 100 / 260), ("cosine", 0.0)])
def test_saving_is_the_part_of_the_separate_runs_that_is_not_made(method, saving):
    assert Preview.make(method, GROWING, lengths={"of": "10000"}).saving == pytest.approx(saving)


@pytest.mark.parametrize("method", METHODS)
def test_one_length_in_two_units_is_one_model(method):
    preview = Preview.make(method, ["1M", "1000"], lengths={"tokens_per_step": 1000})
    assert preview.steps == preview.separate_steps == 1000


@pytest.mark.parametrize("method", METHODS)
def test_one_length_in_two_units_keeps_each_checkpoint_once(method):
    preview = Preview.make(method, ["1M", "1000"], lengths={"tokens_per_step": 1000})
    assert len(kept_steps(preview)) == len(set(kept_steps(preview)))


@pytest.mark.parametrize("method", ["cosine", "cyclic_cosine"])
def test_run_too_short_for_a_tenth_of_decay_is_long_enough_for_a_cosine(method):
    assert Preview.make(method, ["4", "100"]).legs[-1].end == 100


@pytest.mark.parametrize("method", ["wsd", "wsd_s"])
def test_run_too_short_for_a_tenth_of_decay_can_have_one_of_a_given_length(method):
    assert Preview.make(method, ["4", "100"], num_decay_steps=2).models[0].decay_from == 2


# --- schedules ---

DECAYS = [
    {},
    {"decay_fraction": 0.2},
    {"num_decay_steps": 7},
    {"decay_type": "linear"},
    {"decay_type": "power", "decay_params": {"p": 3.0}},
    {"min_lr_ratio": 0.1},
    {"decay_type": "inverse", "min_lr_ratio": 0.05},
]


@pytest.mark.parametrize("decay", DECAYS, ids=str)
def test_each_branch_is_the_straight_run_of_its_length(decay):
    preview = Preview.make("wsd", ["100", "300", "700"], num_warmup_steps=10, **decay)
    straight = [wsd(end, num_warmup_steps=10, **decay) for end in (100, 300, 700)]
    assert [leg.schedule for leg in preview.legs[1:]] == straight


@pytest.mark.parametrize("decay", DECAYS, ids=str)
def test_trunk_is_the_schedule_that_its_command_trains(decay):
    preview = Preview.make("wsd", ["100", "300"], num_warmup_steps=10, **decay)
    shape = {name: value for name, value in decay.items() if name not in ("num_decay_steps", "decay_fraction")}
    assert preview.legs[0].schedule == wsd(num_warmup_steps=10, num_decay_steps=0, **shape)


def test_a_branch_agrees_with_the_trunk_up_to_its_fork_point():
    trunk, *branches = Preview.make("wsd", ["100", "300"], num_warmup_steps=10).legs
    assert all(trunk.schedule.agrees_with(branch.schedule, until=branch.start) for branch in branches)


@pytest.mark.parametrize("decay", DECAYS, ids=str)
def test_wsd_s_line_is_wsd_s(decay):
    (line,) = Preview.make("wsd_s", ["100", "300", "700"], num_warmup_steps=10, **decay).legs
    assert line.schedule == wsd_s(cycle_ends=[100, 300, 700], num_warmup_steps=10, **decay)


@pytest.mark.parametrize("decay", [{}, {"min_lr_ratio": 0.1}], ids=str)
def test_cyclic_cosine_line_is_cyclic_cosine(decay):
    (line,) = Preview.make("cyclic_cosine", ["100", "300"], num_warmup_steps=10, **decay).legs
    assert line.schedule == cyclic_cosine(cycle_ends=[100, 300], num_warmup_steps=10, **decay)


@pytest.mark.parametrize("decay", [{}, {"min_lr_ratio": 0.1}], ids=str)
def test_separate_runs_are_cosines(decay):
    legs = Preview.make("cosine", ["300", "100"], num_warmup_steps=10, **decay).legs
    assert [leg.schedule for leg in legs] == [cosine(end, num_warmup_steps=10, **decay) for end in (100, 300)]


@pytest.mark.parametrize("method", METHODS)
def test_runs_start_where_the_checkpoint_that_they_leave_is_kept(method):
    preview = Preview.make(method, ["100", "300", "700"])
    assert {leg.start for leg in preview.legs} <= {0, *(step for run, step in kept_steps(preview) if run == "trunk")}


@pytest.mark.parametrize(
    ("method", "starts"),
    [("wsd", [90, 270]), ("wsd_s", [90, 280]), ("cosine", [10, 10]), ("cyclic_cosine", [10, 100])],
)
def test_lr_falls_for_the_last_time_from(method, starts):
    assert [m.decay_from for m in Preview.make(method, ["100", "300"], num_warmup_steps=10).models] == starts


@given(ends=ENDS, decay=st.integers(1, 9))
def test_lr_of_a_model_falls_from_the_named_step_on(ends, decay):
    preview = Preview.make("wsd", texts(ends), num_warmup_steps=5, num_decay_steps=decay, decay_type="linear")
    for leg, start in zip(preview.legs[1:], [m.decay_from for m in preview.models], strict=True):
        falling = [leg.schedule(step) > leg.schedule(step + 1) for step in range(5, leg.end)]
        assert 5 + falling.index(True) == start


# --- checkpoints ---


@given(ends=ENDS)
def test_fork_points_of_the_trunk_are_those_of_the_plan(ends):
    preview = Preview.make("wsd", texts(ends))
    forks = {decay.fork for decay in Plan.of_budgets(texts(ends)).decays}
    assert {step for run, step in kept_steps(preview) if run == "trunk"} == forks


@given(ends=ENDS)
def test_each_branch_keeps_its_end(ends):
    preview = Preview.make("wsd", texts(ends))
    assert [step for run, step in kept_steps(preview) if run != "trunk"] == sorted(ends)


def test_a_wsd_s_line_keeps_the_checkpoints_that_its_schedule_names():
    preview = Preview.make("wsd_s", ["100", "300"], num_warmup_steps=10)
    marks = wsd_s(cycle_ends=[100, 300], num_warmup_steps=10).checkpoint_steps()
    assert {kept.step: kept.why for kept in preview.kept()} == marks


@pytest.mark.parametrize("method", ["cosine", "cyclic_cosine"])
def test_of_a_cosine_only_the_ends_are_kept(method):
    assert [kept.step for kept in Preview.make(method, ["100", "300"], num_warmup_steps=10).kept()] == [100, 300]


@pytest.mark.parametrize(
    ("method", "paths"),
    [
        (
            "wsd",
            [
                *("OUT/checkpoint-90", "OUT/checkpoint-270"),
                *("OUT/_branches/90-1-sqrt-10/checkpoint-100", "OUT/_branches/270-1-sqrt-30/checkpoint-300"),
            ],
        ),
        ("wsd_s", [f"OUT/checkpoint-{step}" for step in (90, 100, 280, 300)]),
        ("cosine", ["OUT-100/checkpoint-100", "OUT-300/checkpoint-300"]),
        ("cyclic_cosine", ["OUT/checkpoint-100", "OUT/checkpoint-300"]),
    ],
)
def test_path_of_a_kept_checkpoint(method, paths):
    assert [kept.path("OUT") for kept in Preview.make(method, ["100", "300"]).kept()] == paths


def test_reason_of_a_fork_point_is_the_budget_as_it_was_written():
    kept = next(Preview.make("wsd", ["1M"], lengths={"tokens_per_step": 1000}).kept())
    assert kept.why == "fork point of 1M"


def test_budgets_that_share_a_fork_point_are_both_named():
    shared = next(Preview.make("wsd", ["14", "15"]).kept())  # decays of 1 and 2 steps
    assert shared.step == 13
    assert all(budget in shared.why for budget in ("14", "15"))


# --- costs ---

SIZES = {"parameters": 124_000_000, "tokens_per_second": 50_000, "lengths": {"tokens_per_step": 1000}}


@pytest.mark.parametrize("method", METHODS)
def test_flops_are_six_n_d(method):
    preview = Preview.make(method, ["1M", "3M"], **SIZES)
    assert preview.costs(preview.steps)["flops"] == 6 * 124_000_000 * 1000 * len(updates_made(preview))


def test_gpu_hours_are_tokens_over_the_throughput():
    assert Preview.make("cosine", ["1M"], **SIZES).costs(180_000)["gpu_hours"] == 1.0


@pytest.mark.parametrize(("method", "checkpoints"), [("wsd", 4), ("wsd_s", 4), ("cosine", 2), ("cyclic_cosine", 2)])
def test_disk_is_twelve_bytes_a_parameter_and_kept_checkpoint(method, checkpoints):
    assert Preview.make(method, ["1M", "3M"], **SIZES).disk_bytes == 12 * 124_000_000 * checkpoints


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        ({}, {"tokens", "flops", "gpu_hours"}),
        ({"lengths": {"tokens_per_step": 1000}}, {"flops", "gpu_hours"}),
        ({"lengths": {"tokens_per_step": 1000}, "parameters": 10}, {"gpu_hours"}),
        ({"lengths": {"tokens_per_step": 1000}, "tokens_per_second": 10}, {"flops"}),
        ({"parameters": 10, "tokens_per_second": 10}, {"tokens", "flops", "gpu_hours"}),
    ],
)
def test_what_lacks_a_number_is_none(known, unknown):
    costs = Preview.make("wsd", ["1000"], **known).costs(100)
    assert {name for name, value in costs.items() if value is None} == unknown


def test_disk_of_a_model_without_a_size_is_none():
    assert Preview.make("wsd", ["1000"]).disk_bytes is None


# --- the dictionary ---


@pytest.mark.parametrize("method", METHODS)
def test_dictionary_is_json(method):
    data = Preview.make(method, ["1M", "3M"], **SIZES).to_dict()
    assert json.loads(json.dumps(data)) == data


def test_dictionary_names_each_model_with_its_fall():
    data = Preview.make("wsd", ["1M", "3000"], lengths={"tokens_per_step": 1000}).to_dict()
    assert data["models"] == [
        {"budget": "1M", "end": 1000, "tokens": 10**6, "decay_from": 900},
        {"budget": "3000", "end": 3000, "tokens": 3 * 10**6, "decay_from": 2700},
    ]


def test_dictionary_holds_the_total_and_the_separate_runs():
    data = Preview.make("wsd", ["1000", "3000"]).to_dict()
    assert (data["total"]["steps"], data["separate"]["steps"]) == (2700 + 100 + 300, 4000)


def test_dictionary_states_the_formulas():
    formulas = Preview.make("wsd", ["1000"]).to_dict()["formulas"]
    assert formulas == {"flops": "6 N D", "disk": "12 bytes a parameter and checkpoint"}


# --- commands ---


def test_part_of_a_whole_is_steps_in_the_commands():
    train, _ = Preview.make("wsd", ["10%", "100%"], lengths={"of": "1000"}).commands("RUN", script="s.py", launcher="l")
    assert "--budgets 100 1000 " in train


def test_decay_settings_are_flags_of_the_launcher():
    decay = {"num_decay_steps": 5, "decay_type": "power", "decay_params": {"p": 3.0}, "min_lr_ratio": 0.1}
    train, _ = Preview.make("wsd", ["100"], **decay).commands("RUN", script="s.py", launcher="l")
    ours = train.split(" s.py ")[0]
    for flag in ("--num-decay-steps 5", "--decay-type power", "--decay-params p=3.0", "--min-lr-ratio 0.1"):
        assert flag in ours


def test_minimum_of_a_separate_cosine_is_transformers_own():
    (run,) = Preview.make("cosine", ["100"], min_lr_ratio=0.1).commands("RUN", script="s.py", launcher="l")
    assert "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{\"min_lr_rate\": 0.1}'" in run


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("wsds", ["100"]), SettingsError, "unknown method 'wsds': did you mean 'wsd_s'"),
        (("wsd", []), ScheduleError, "no budgets"),
        (("wsd", ["1X"]), ScheduleError, "'1X' is no length"),
        (("wsd", ["1M"]), ScheduleError, "--tokens-per-step"),
        (("wsd", ["64samples"]), ScheduleError, "--samples-per-step"),
        (("wsd", ["10%"]), ScheduleError, "--of"),
    ],
)
def test_budgets_that_cannot_be_planned_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Preview.make(*arguments)


@pytest.mark.parametrize("method", ["cosine", "cyclic_cosine"])
@pytest.mark.parametrize(
    "setting", [{"decay_fraction": 0.2}, {"num_decay_steps": 5}, {"decay_type": "linear"}], ids=str
)
def test_decay_of_a_cosine_is_refused(method, setting):
    with pytest.raises(SettingsError, match=f"{next(iter(setting))} say nothing about {method}"):
        Preview.make(method, ["100"], **setting)


def test_two_lengths_of_a_decay_are_refused():
    with pytest.raises(ScheduleError, match="not both"):
        Preview.make("wsd", ["100"], num_decay_steps=5, decay_fraction=0.2)


def test_fork_point_in_the_warmup_is_refused():
    with pytest.raises(ForkError, match="warmup phase"):
        Preview.make("wsd", ["100", "300"], num_warmup_steps=95)


def test_steps_of_a_leg_are_its_own_updates():
    assert Leg(name="branch", schedule=constant(), start=900, end=1000).steps == 100
