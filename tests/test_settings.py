"""What users type: hf_wsd/settings.py."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_wsd.baselines import cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.by_name import BUILDERS, NAMES, build_schedule
from hf_wsd.errors import RecordError, ScheduleError, SettingsError, ShapeError, WSDError
from hf_wsd.lineage import Lineage
from hf_wsd.settings import Settings

NOTHING = Settings()
HUGE = pytest.param(10**400, id="huge")


def build(name="wsd", kwargs=None, settings=NOTHING, *, steps=100, warmup=10):
    return build_schedule(name, num_training_steps=steps, num_warmup_steps=warmup, kwargs=kwargs, settings=settings)


# --- from names and values to a schedule ---


def test_nothing_said_is_the_builders_own_default():
    assert build() == wsd(100, num_warmup_steps=10)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"num_decay_steps": 20}, {"num_decay_steps": 20}),
        ({"num_decay_steps": "20"}, {"num_decay_steps": 20}),
        ({"num_decay_steps": "2e1"}, {"num_decay_steps": 20}),
        ({"num_decay_steps": 20.0}, {"num_decay_steps": 20}),
        ({"decay_fraction": "2e-1"}, {"decay_fraction": 0.2}),
        ({"min_lr_ratio": "1e-1"}, {"min_lr_ratio": 0.1}),
        ({"min_lr_ratio": 0}, {"min_lr_ratio": 0.0}),
        ({"num_decay_steps": 0}, {"num_decay_steps": 0}),
        ({"num_decay_steps": 20, "num_stable_steps": "70"}, {"num_decay_steps": 20}),
        ({"decay_type": "cosine", "warmup_type": "1-sqrt"}, {"decay_type": "cosine", "warmup_type": "1-sqrt"}),
        ({"decay_fraction": None, "decay_type": None}, {}),
        ({"num_min_steps": "5"}, {"num_min_steps": 5}),
        ({"warmup_start": "5e-1"}, {"warmup_start": 0.5}),
        (
            {"decay_type": "power", "decay_params": {"p": "1.5"}},
            {"decay_type": "power", "decay_params": {"p": 1.5}},
        ),
        ({"decay_type": "power", "decay_params": "p=3"}, {"decay_type": "power", "decay_params": {"p": 3}}),
    ],
)
def test_lr_scheduler_kwargs_are_understood_as_numbers_and_as_texts(kwargs, expected):
    assert build(kwargs=kwargs) == wsd(100, num_warmup_steps=10, **expected)


@pytest.mark.parametrize("ends", [[50, 100], ["50", "100"], "50 100", "50,100", "50, 100", (50, 100), [50.0, 100]])
def test_cycle_ends_are_understood_in_every_writing(ends):
    assert build("wsd_s", {"cycle_ends": ends}) == wsd_s(cycle_ends=[50, 100], num_warmup_steps=10)


def test_names_are_those_of_the_builders():
    assert NAMES == ("wsd", "wsd_s", "cyclic_cosine", "multi_step")


OF_CYCLES = {
    "cycle_ends": ("50,100", [50, 100]),
    "cycle_peaks": ("1 0.5", [1, 0.5]),
    "num_rewarmup_steps": ("4", 4),
    "num_min_steps": ("3", 3),
    "min_lr_ratio": ("0.2", 0.2),
    "warmup_start": ("0.1", 0.1),
}
ASKED = {
    "wsd": {
        "decay_fraction": ("0.3", 0.3),
        "decay_type": ("power", "power"),
        "decay_params": ("p=1.5", {"p": 1.5}),
        "num_min_steps": ("3", 3),
        "warmup_start": ("0.1", 0.1),
    },
    "wsd_s": OF_CYCLES | {"num_decay_steps": ("7", 7), "warmup_type": ("cosine", "cosine")},
    "cyclic_cosine": OF_CYCLES,
    "multi_step": {"milestones": ("60 80", [60, 80]), "multipliers": ("0.5, 0.2", [0.5, 0.2])},
}


@pytest.mark.parametrize("door", ["kwargs as typed", "kwargs", "launcher", "environment"])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_setting_comes_through_every_door(name, door, monkeypatch):
    typed, meant = ({key: pair[i] for key, pair in ASKED[name].items()} for i in (0, 1))
    kwargs, settings = {}, NOTHING
    if door.startswith("kwargs"):
        kwargs = meant if door == "kwargs" else typed
    elif door == "launcher":
        settings = Settings.make(**typed)
    else:
        for key, text in typed.items():
            monkeypatch.setenv(f"HF_WSD_{key.upper()}", text)
        settings = Settings.from_env()
    assert build(name, kwargs, settings) == BUILDERS[name](100, num_warmup_steps=10, **meant)


@pytest.mark.parametrize("kwargs", [{"rewarmup_fraction": "0.1"}, {"rewarmup_fraction": 0.1}])
def test_rewarmup_fraction_is_understood(kwargs):
    built = build("wsd_s", kwargs | {"cycle_ends": "50 100"})
    assert built == wsd_s(cycle_ends=[50, 100], num_warmup_steps=10, rewarmup_fraction=0.1)


@pytest.mark.parametrize("fractions", ["0.5 0.75", "0.5,0.75", [0.5, 0.75], ["0.5", "0.75"], (0.5, 0.75)])
def test_milestone_fractions_are_understood_in_every_writing(fractions):
    assert build("multi_step", {"milestone_fractions": fractions}) == multi_step(
        100, num_warmup_steps=10, milestone_fractions=[0.5, 0.75]
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_environment_is_read_if_no_settings_are_given(name, monkeypatch):
    key, (typed, meant) = next(iter(ASKED[name].items()))
    monkeypatch.setenv(f"HF_WSD_{key.upper()}", typed)
    assert build_schedule(name, num_training_steps=100) == BUILDERS[name](100, **{key: meant})


# --- lengths in tokens, samples and parts ---

PER_STEP = Settings(tokens_per_step=1000, samples_per_step=64)


@pytest.mark.parametrize("length", ["20", "20K", "20000tokens", "0.02M", "1280samples", "20%", "20steps"])
@pytest.mark.parametrize("key", ["num_decay_steps", "num_min_steps"])
def test_length_is_understood_in_every_unit(key, length):
    assert build(kwargs={key: length}, settings=PER_STEP) == wsd(100, num_warmup_steps=10, **{key: 20})


@pytest.mark.parametrize("ends", ["50K 100K", ["50K", 100], "50%,100%", ["3200samples", "100K"]])
def test_cycle_ends_are_understood_in_every_unit(ends):
    built = build("wsd_s", {"cycle_ends": ends}, PER_STEP)
    assert built == wsd_s(cycle_ends=[50, 100], num_warmup_steps=10)


def test_rewarmup_and_cycles_in_tokens_are_understood_by_cyclic_cosine():
    built = build("cyclic_cosine", {"cycle_ends": "50K 100K", "num_rewarmup_steps": "5K"}, PER_STEP)
    assert built == cyclic_cosine(cycle_ends=[50, 100], num_warmup_steps=10, num_rewarmup_steps=5)


def test_milestones_in_tokens_are_understood():
    assert build("multi_step", {"milestones": ["60K", "80K"]}, PER_STEP) == multi_step(
        100, num_warmup_steps=10, milestones=[60, 80]
    )


def test_stable_steps_in_tokens_are_checked():
    with pytest.raises(ScheduleError, match=r"num_stable_steps \(50\)"):
        build(kwargs={"num_decay_steps": 20, "num_stable_steps": "50K"}, settings=PER_STEP)


def test_length_in_tokens_by_the_launcher_is_understood():
    settings = Settings.make(num_decay_steps="20K", tokens_per_step="1000")
    assert build(settings=settings) == wsd(100, num_warmup_steps=10, num_decay_steps=20)


def test_length_in_tokens_in_the_environment_is_understood(monkeypatch):
    monkeypatch.setenv("HF_WSD_NUM_DECAY_STEPS", "20K")
    monkeypatch.setenv("HF_WSD_TOKENS_PER_STEP", "1000")
    assert build_schedule("wsd", num_training_steps=100) == wsd(100, num_decay_steps=20)


@pytest.mark.parametrize(
    ("length", "why"),
    [
        ("200K", r"200K is tokens, but the tokens of one step are not known here: .*--tokens-per-step"),
        ("640samples", r"640samples is samples, but the samples of one step are not known here: .*--samples-per-step"),
    ],
)
@pytest.mark.parametrize(("name", "key"), [("wsd", "num_decay_steps"), ("wsd_s", "cycle_ends")])
def test_length_whose_steps_nobody_knows_is_refused_with_the_repair(name, key, length, why):
    with pytest.raises(ScheduleError, match=why):
        build(name, {key: [length] if key == "cycle_ends" else length})


def test_part_of_a_run_without_a_length_is_refused():
    with pytest.raises(
        ScheduleError, match="10% is a part of a whole that has no length here: give the longest in steps or tokens"
    ):
        build("wsd_s", {"cycle_ends": [50, 100], "num_decay_steps": "10%"}, steps=None)


def test_length_below_half_a_step_is_refused_with_the_numbers():
    with pytest.raises(ScheduleError, match="400tokens is less than half a step of 1000 tokens"):
        build(kwargs={"num_decay_steps": "400tokens"}, settings=PER_STEP)


def test_trunk_keeps_a_decay_in_tokens_out_of_its_schedule():
    settings = Settings.make(trunk=True, num_decay_steps="20K")
    assert build(settings=settings) == wsd(num_warmup_steps=10, num_decay_steps=0)


def test_setting_given_twice_alike_is_one_setting():
    assert build(kwargs={"decay_fraction": "0.2"}, settings=Settings(decay_fraction=0.2)) == build(
        kwargs={"decay_fraction": 0.2}
    )


def test_settings_of_both_sources_are_joined():
    built = build(kwargs={"decay_type": "linear"}, settings=Settings(decay_fraction=0.2))
    assert built == wsd(100, num_warmup_steps=10, decay_type="linear", decay_fraction=0.2)


@pytest.mark.parametrize("later_decays", [{"decay_fraction": 0.2}, {"num_decay_steps": 20}])
def test_trunk_keeps_the_length_of_its_later_decays_out_of_its_schedule(later_decays):
    assert build(settings=Settings(trunk=True, **later_decays)) == wsd(num_warmup_steps=10, num_decay_steps=0)


def test_tokens_per_step_and_budgets_are_no_part_of_the_schedule():
    assert build(settings=Settings(budgets=("1M",), tokens_per_step=1000)) == build()


@pytest.mark.parametrize("source", ["kwargs", "launcher", "environment"])
def test_decay_to_zero_is_asked_for_with_zero(source, monkeypatch):
    kwargs, settings = {"decay_type": "linear"}, NOTHING
    if source == "kwargs":
        kwargs["min_lr_ratio"] = 0
    elif source == "launcher":
        settings = Settings.make(min_lr_ratio="0")
    else:
        monkeypatch.setenv("HF_WSD_MIN_LR_RATIO", "0")
        settings = Settings.from_env()
    assert build("wsd_s", kwargs, settings)(100) == 0


def test_no_decay_steps_by_the_launcher_are_a_trunk_as_in_kwargs():
    assert build(settings=Settings.make(num_decay_steps="0")) == build(kwargs={"num_decay_steps": 0})


# --- a branch's process ---


@pytest.fixture
def branch(tmp_path):
    schedule = wsd(num_warmup_steps=10, num_decay_steps=0).fork(80, decay_steps=20)
    Lineage(step=80, kind="planned", schedule=schedule, last_step=100).write(tmp_path)
    return tmp_path


def test_branch_has_the_schedule_of_its_record(branch):
    assert build(settings=Settings(branch=str(branch))) == Lineage.read(branch).schedule


def test_branch_of_a_script_that_ignores_max_steps_is_refused(branch):
    with pytest.raises(
        ScheduleError, match="ends at step 100 but the script trains to 500: does it ignore --max_steps"
    ):
        build(settings=Settings(branch=str(branch)), steps=500)


def test_branch_without_a_record_is_refused(tmp_path):
    with pytest.raises(RecordError, match="no record at"):
        build(settings=Settings(branch=str(tmp_path / "nowhere")))


def test_branch_that_is_a_file_is_refused(branch):
    with pytest.raises(RecordError, match=r"wsd\.json"):
        build(settings=Settings(branch=str(branch / "wsd.json")))


# --- refusals ---


@pytest.mark.parametrize("name", ["wsds", "WSD", "cosine", "", None, 3])
def test_unknown_schedule_is_refused(name):
    with pytest.raises(SettingsError, match=r"unknown schedule .*Known: wsd, wsd_s"):
        build(name)


@pytest.mark.parametrize(
    ("name", "key", "nearest"),
    [
        ("wsd", "decay_fracton", "decay_fraction"),
        ("wsd", "decay_steps", "num_decay_steps"),
        ("wsd", "min_lr", "min_lr_ratio"),
        ("wsd_s", "cycle_end", "cycle_ends"),
    ],
)
def test_unknown_setting_is_answered_with_the_nearest(name, key, nearest):
    with pytest.raises(
        SettingsError, match=f"unknown setting '{key}': did you mean '{nearest}'.*lr_scheduler_type {name}"
    ):
        build(name, {key: 1})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("wsd", "cycle_ends"),
        ("wsd", "cycle_peaks"),
        ("wsd", "num_rewarmup_steps"),
        ("wsd_s", "num_stable_steps"),
        ("wsd_s", "milestones"),
        ("cyclic_cosine", "decay_fraction"),
        ("cyclic_cosine", "decay_type"),
        ("multi_step", "num_decay_steps"),
        ("multi_step", "min_lr_ratio"),
    ],
)
def test_setting_of_the_other_schedule_is_refused(name, key):
    with pytest.raises(SettingsError, match=f"unknown setting '{key}'"):
        build(name, {key: 5})


@pytest.mark.parametrize(
    "key", ["num_warmup_steps", "num_training_steps", "optimizer", "name", "last_epoch", "tokens_per_step"]
)
def test_arguments_that_transformers_gives_itself_are_no_settings(key):
    with pytest.raises(SettingsError, match=f"unknown setting '{key}'"):
        build(kwargs={key: 5})


@pytest.mark.parametrize("name", ["wsd_s", "cyclic_cosine", "multi_step"])
def test_trunk_of_a_schedule_that_has_none_is_refused(name):
    with pytest.raises(SettingsError, match=f"use --trunk with --lr_scheduler_type wsd, not {name}"):
        build(name, settings=Settings(trunk=True))


def test_cycles_by_the_launcher_are_refused_for_wsd():
    with pytest.raises(SettingsError, match="unknown setting 'cycle_ends'"):
        build(settings=Settings(cycle_ends=(50, 100)))


def test_setting_given_twice_differently_is_refused_with_both_sources():
    with pytest.raises(
        SettingsError, match=r"decay_fraction is given twice: 0\.2 in lr_scheduler_kwargs, 0\.3 .*HF_WSD_DECAY"
    ):
        build(kwargs={"decay_fraction": 0.2}, settings=Settings(decay_fraction=0.3))


def test_decay_steps_here_and_a_fraction_there_are_refused():
    with pytest.raises(ScheduleError, match="not both"):
        build(kwargs={"num_decay_steps": 20}, settings=Settings(decay_fraction=0.3))


@pytest.mark.parametrize("kwargs", [{"num_decay_steps": 20}, {"num_decay_steps": "10%"}, {"decay_fraction": 0.2}])
def test_trunk_keeps_a_decay_in_kwargs_for_later(kwargs):
    assert build(kwargs=kwargs, settings=Settings(trunk=True)) == wsd(num_warmup_steps=10, num_decay_steps=0)


@pytest.mark.parametrize("make", [Settings, Settings.make])
def test_trunk_with_cycles_is_refused(make):
    with pytest.raises(SettingsError, match="a trunk has no cycles"):
        make(trunk=True, cycle_ends=(100, 200))


@pytest.mark.parametrize("value", ["many", "", [], {}, [20], "20 30"])
@pytest.mark.parametrize("key", ["num_decay_steps", "decay_fraction", "min_lr_ratio"])
def test_value_that_is_no_number_is_refused_by_name(key, value):
    with pytest.raises(SettingsError, match=f"{key}=.* cannot be read as"):
        build(kwargs={key: value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", float("nan"), float("inf"), "-1", True, False, "0.2", HUGE])
def test_decay_steps_that_are_no_count_are_refused(value):
    with pytest.raises(WSDError, match="num_decay_steps"):
        build(kwargs={"num_decay_steps": value})


@pytest.mark.parametrize("value", ["nan", "inf", "-0.1", "1.5", 2, True, False, HUGE])
def test_minimum_that_is_no_ratio_is_refused(value):
    with pytest.raises(WSDError, match="min_lr_ratio"):
        build(kwargs={"min_lr_ratio": value})


@pytest.mark.parametrize("value", [100, 0.5, "fifty", [[50]], [None], [0.5, 1], ["nan"], [True, 100], [10**400, 1]])
def test_cycle_ends_that_are_no_steps_are_refused(value):
    with pytest.raises(WSDError, match="cycle"):
        build("wsd_s", {"cycle_ends": value})


@pytest.mark.parametrize("key", ["decay_type", "warmup_type"])
@pytest.mark.parametrize("value", ["linaer", 5, ["linear"], {}])
def test_unknown_shape_is_refused(key, value):
    with pytest.raises(ShapeError, match=r"unknown .* shape"):
        build(kwargs={key: value})


# --- settings by name and by variable ---

lengths = st.sampled_from(["200K", "1.5B", "640samples", "10%", "2048tokens"])
given_settings = st.fixed_dictionaries(
    {},
    optional={
        "trunk": st.booleans(),
        "budgets": st.lists(st.sampled_from(["1M", "2.5B", "300"]), max_size=3),
        "num_decay_steps": st.integers(0, 10**9) | lengths,
        "decay_fraction": st.floats(0.001, 0.999),
        "decay_type": st.sampled_from(["linear", "1-sqrt"]),
        "min_lr_ratio": st.floats(0, 1),
        "warmup_type": st.just("cosine"),
        "decay_params": st.dictionaries(st.sampled_from(["p", "half_life", "factor"]), st.floats(1e-300, 1e300)),
        "num_min_steps": st.integers(0, 10**9) | lengths,
        "warmup_start": st.floats(0, 1),
        "cycle_peaks": st.lists(st.floats(0.01, 1), max_size=3),
        "num_rewarmup_steps": st.integers(0, 10**9) | lengths,
        "rewarmup_fraction": st.floats(0.001, 0.999),
        "milestones": st.lists(st.integers(1, 10**9) | lengths, max_size=3),
        "milestone_fractions": st.lists(st.floats(0.001, 0.999), max_size=3),
        "multipliers": st.lists(st.floats(0, 1), max_size=3),
        "samples_per_step": st.integers(1, 10**12),
        "tokens_per_step": st.integers(1, 10**12),
        "branch": st.just("runs/a b/_branches/80-linear-20"),
    },
).filter(lambda given: not {"num_decay_steps", "decay_fraction"} <= given.keys())  # one of the two at most


@given(values=given_settings)
def test_settings_survive_the_environment(values):
    settings = Settings.make(**values)
    assert Settings.from_env(settings.to_env()) == settings


@given(values=given_settings)
def test_given_settings_make_the_same_settings(values):
    settings = Settings.make(**values)
    assert Settings.make(**settings.given()) == settings


def test_cycle_ends_survive_the_environment():
    settings = Settings.make(cycle_ends="100 200 1M 50%")
    assert Settings.from_env(settings.to_env()).cycle_ends == (100, 200, "1M", "50%")


def test_parameters_of_a_shape_are_one_variable():
    assert Settings.make(decay_params={"p": 1.5, "q": 2}).to_env() == {"HF_WSD_DECAY_PARAMS": "p=1.5 q=2"}


@given(values=given_settings)
def test_given_settings_are_json(values):
    given = Settings.make(**values).given()
    assert json.loads(json.dumps(given)) == given


def test_no_variables_are_no_settings():
    assert Settings.from_env({"PATH": "/bin", "HF_HOME": "x"}) == NOTHING


def test_misspelt_variable_is_refused_with_the_nearest():
    with pytest.raises(SettingsError, match="unknown variable 'HF_WSD_BUDGET': did you mean 'HF_WSD_BUDGETS'"):
        Settings.from_env({"HF_WSD_BUDGET": "1M"})


def test_misspelt_setting_is_refused_with_the_nearest():
    with pytest.raises(SettingsError, match="unknown setting 'budget': did you mean 'budgets'"):
        Settings.make(budget="1M")


@pytest.mark.parametrize("text", ["1", "true", "True", "yes"])
def test_trunk_is_switched_on(text):
    assert Settings.from_env({"HF_WSD_TRUNK": text}).trunk


@pytest.mark.parametrize("text", ["", "0", "false", "False", "no"])
def test_trunk_is_switched_off(text):
    assert not Settings.from_env({"HF_WSD_TRUNK": text}).trunk


@pytest.mark.parametrize("text", ["maybe", "2", "of", "1B"])
def test_switch_that_is_neither_on_nor_off_is_refused(text):
    with pytest.raises(SettingsError, match="trunk"):
        Settings.from_env({"HF_WSD_TRUNK": text})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_WSD_DECAY_FRACTION", "a tenth"),
        ("HF_WSD_NUM_DECAY_STEPS", "20 steps"),
        ("HF_WSD_MIN_LR_RATIO", "small"),
        ("HF_WSD_CYCLE_ENDS", "100 two"),
        ("HF_WSD_TOKENS_PER_STEP", "0"),
        ("HF_WSD_TOKENS_PER_STEP", "-5"),
        ("HF_WSD_TOKENS_PER_STEP", "1.5"),
        ("HF_WSD_TOKENS_PER_STEP", "2K"),
        ("HF_WSD_SAMPLES_PER_STEP", "0"),
        ("HF_WSD_CYCLE_ENDS", "50X 100"),
        ("HF_WSD_CYCLE_PEAKS", "1 half"),
        ("HF_WSD_DECAY_PARAMS", "p"),
        ("HF_WSD_DECAY_PARAMS", "p=much"),
        ("HF_WSD_MULTIPLIERS", "a tenth"),
        ("HF_WSD_BUDGETS", "1M 2X"),
        ("HF_WSD_BUDGETS", "1.5"),
    ],
)
def test_variable_that_cannot_be_read_is_refused(name, value):
    with pytest.raises(WSDError):
        Settings.from_env({name: value})


@pytest.mark.parametrize("value", [["1M", "500"], ("1M", 500), "1M 500", "1M,500", "1M, 500"])
def test_budgets_are_understood_in_every_writing(value):
    assert Settings.make(budgets=value).budgets == ("1M", "500")


@pytest.mark.parametrize("value", [500, 1.5, {"1M": 1}, [["1M"]], True])
def test_budgets_that_are_no_list_of_lengths_are_refused(value):
    with pytest.raises(WSDError, match=r"budgets|is no length"):
        Settings.make(budgets=value)


def test_settings_that_were_not_given_are_not_recorded():
    assert Settings.make(trunk=False, budgets=[], decay_fraction=None).given() == {}
