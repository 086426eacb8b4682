"""What `register()` changes inside transformers, and that nothing else does: hf_wsd/registration.py."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
import transformers
from transformers import HfArgumentParser, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.trainer_utils import SchedulerType

from hf_wsd import WSDCallback, WSDScheduler, register, wsd, wsd_s
from hf_wsd.baselines import cyclic_cosine, multi_step
from hf_wsd.by_name import BUILDERS, NAMES
from hf_wsd.errors import ScheduleError, SettingsError, WSDError
from hf_wsd.settings import Settings

names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def registered():
    register()


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)


def arguments(folder, name, **kwargs):
    return TrainingArguments(output_dir=str(folder), lr_scheduler_type=name, use_cpu=True, **kwargs)


def python(script, *argv):
    """What a script prints, as JSON, in a process of its own; it fails with what the process said."""
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the names ---


@names
def test_name_is_a_member(name):
    assert (SchedulerType(name).value, SchedulerType(name).name) == (name, name.upper())


@names
def test_member_is_one_of_those_listed(name):
    assert SchedulerType(name) in list(SchedulerType)


@names
def test_member_equals_its_text(name):
    assert SchedulerType[name.upper()] == getattr(SchedulerType, name.upper()) == name


@names
def test_member_is_an_attribute_of_the_enum_itself(name):
    assert vars(SchedulerType)[name.upper()] is SchedulerType(name)  # Python 3.12 looks nowhere else


@names
def test_name_is_a_choice_on_the_command_line(name, tmp_path):
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "--lr_scheduler_type", name]
    (parsed,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(argv)
    assert parsed.lr_scheduler_type is SchedulerType(name)


def test_misspelt_name_is_answered_with_the_names(tmp_path, capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--lr_scheduler_type", "wsdd"])
    error = capsys.readouterr().err
    assert all(name in error for name in NAMES)


@names
def test_training_arguments_are_written_with_the_name(name, tmp_path):
    assert arguments(tmp_path, name).to_dict()["lr_scheduler_type"] == name


@names
def test_training_arguments_are_json_with_the_name(name, tmp_path):
    assert json.loads(arguments(tmp_path, name).to_json_string())["lr_scheduler_type"] == name


@names
def test_training_arguments_survive_deepcopy(name, tmp_path):
    assert copy.deepcopy(arguments(tmp_path, name)).lr_scheduler_type == name


@names
def test_training_arguments_survive_pickle(name, tmp_path):
    read = pickle.loads(pickle.dumps(arguments(tmp_path, name)))
    assert SchedulerType(read.lr_scheduler_type) is SchedulerType(name)


def test_other_names_are_still_refused():
    with pytest.raises(ValueError, match="wsdd is not a valid SchedulerType"):
        SchedulerType("wsdd")


# --- the factories ---


def test_transformers_get_scheduler_makes_ours(optimizer):
    made = transformers.get_scheduler(
        "wsd", optimizer, 10, 100, scheduler_specific_kwargs={"decay_fraction": "0.2", "decay_type": "linear"}
    )
    assert (isinstance(made, WSDScheduler), made.schedule) == (
        True,
        wsd(100, num_warmup_steps=10, decay_fraction=0.2, decay_type="linear"),
    )


def test_transformers_get_scheduler_makes_wsd_s(optimizer):
    made = transformers.get_scheduler(
        "wsd_s", optimizer, 10, 200, scheduler_specific_kwargs={"cycle_ends": ["100", "200"], "min_lr_ratio": "1e-1"}
    )
    assert made.schedule == wsd_s(cycle_ends=[100, 200], num_warmup_steps=10)


def test_transformers_get_scheduler_makes_cyclic_cosine(optimizer):
    made = transformers.get_scheduler(
        "cyclic_cosine", optimizer, 10, 200, scheduler_specific_kwargs={"cycle_ends": "100 200", "min_lr_ratio": "0.1"}
    )
    assert made.schedule == cyclic_cosine(cycle_ends=[100, 200], num_warmup_steps=10, min_lr_ratio=0.1)


def test_transformers_get_scheduler_makes_multi_step(optimizer):
    made = transformers.get_scheduler(
        "multi_step", optimizer, 10, 200, scheduler_specific_kwargs={"milestones": ["100", 150]}
    )
    assert made.schedule == multi_step(200, num_warmup_steps=10, milestones=[100, 150])


@names
def test_schedule_of_every_name_needs_no_settings(name, optimizer):
    made = transformers.get_scheduler(name, optimizer, 10, 200)
    assert (isinstance(made, WSDScheduler), made.schedule) == (True, BUILDERS[name](200, num_warmup_steps=10))


def test_transformers_get_scheduler_reads_lengths_in_tokens(optimizer):
    register(tokens_per_step=1000)
    made = transformers.get_scheduler(
        "wsd", optimizer, 10, 100, scheduler_specific_kwargs={"num_decay_steps": "20K", "decay_params": {}}
    )
    assert made.schedule == wsd(100, num_warmup_steps=10, num_decay_steps=20)


def test_length_in_tokens_of_unknown_steps_is_refused_through_transformers(optimizer):
    with pytest.raises(ScheduleError, match="20K is tokens, but the tokens of one step are not known here"):
        transformers.get_scheduler("wsd", optimizer, 10, 100, scheduler_specific_kwargs={"num_decay_steps": "20K"})


def test_transformers_get_scheduler_reads_the_settings(optimizer):
    register(trunk=True)
    made = transformers.get_scheduler("wsd", optimizer, 10, 100)
    assert made.schedule == wsd(num_warmup_steps=10, num_decay_steps=0)


def test_refusal_comes_through_transformers_unchanged(optimizer):
    with pytest.raises(SettingsError, match="did you mean 'decay_fraction'"):
        transformers.get_scheduler("wsd", optimizer, 10, 100, scheduler_specific_kwargs={"decay_fractoin": 0.1})


# --- once ---


def test_registering_again_adds_nothing():
    before = (list(SchedulerType), set(TYPE_TO_SCHEDULER_FUNCTION), list(DEFAULT_CALLBACKS))
    register()
    assert (list(SchedulerType), set(TYPE_TO_SCHEDULER_FUNCTION), list(DEFAULT_CALLBACKS)) == before


def test_trainer_gets_one_callback():
    assert DEFAULT_CALLBACKS.count(WSDCallback) == 1


# --- the settings ---


WORKER = "import json; from hf_wsd.settings import Settings; print(json.dumps(Settings.from_env().given()))"


def test_worker_processes_have_the_settings():
    register(trunk=True, budgets=["1B", 500], decay_fraction=0.2)
    assert python(WORKER) == {"trunk": True, "budgets": ["1B", "500"], "decay_fraction": 0.2}


def test_worker_processes_have_the_shapes_parameters():
    register(decay_type="power", decay_params={"p": 1.5}, cycle_peaks=[1, 0.5])
    assert python(WORKER) == {"decay_type": "power", "decay_params": {"p": 1.5}, "cycle_peaks": [1, 0.5]}


@pytest.mark.parametrize(("name", "nothing"), [("decay_params", {}), ("cycle_peaks", ()), ("cycle_ends", [])])
def test_setting_given_as_nothing_is_taken_away_again(name, nothing):
    register(**{name: {"p": 1.5} if name == "decay_params" else [1]})
    register(**{name: nothing})
    assert Settings.from_env() == Settings()


def test_registering_again_changes_the_settings_it_names_alone():
    register(trunk=True, budgets=["1B"])
    register(budgets=["2B"])
    assert Settings.from_env() == Settings(trunk=True, budgets=("2B",))


@pytest.mark.parametrize("settings", [{"budget": "1B"}, {"budgets": ["1X"]}, {"decay_fraction": "a tenth"}])
def test_unreadable_settings_are_refused_and_not_kept(settings):
    with pytest.raises(WSDError):
        register(trunk=True, **settings)
    assert Settings.from_env() == Settings()


# --- in other processes ---

LIGHT_IMPORTS = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps([name for name in ("torch", "transformers", "numpy", "accelerate") if name in sys.modules]))
"""


@pytest.mark.parametrize("module", ["hf_wsd", "hf_wsd.plan", "hf_wsd.settings", "hf_wsd.forking", "hf_wsd.demo"])
def test_import_is_light(module):
    assert python(LIGHT_IMPORTS, module) == []


UNREGISTERED = """
import json, sys
import torch, transformers, transformers.optimization, transformers.trainer
from transformers.trainer_utils import SchedulerType

facts = {}
read = torch.load(sys.argv[1], weights_only=False)
facts["loaded"] = str(read.lr_scheduler_type)
facts["loaded with"] = [name for name in sys.modules if name.startswith("hf_wsd")]

def state():
    factories = {k.value: f.__qualname__ for k, f in transformers.optimization.TYPE_TO_SCHEDULER_FUNCTION.items()}
    return [[m.value for m in SchedulerType], factories, [c.__name__ for c in transformers.trainer.DEFAULT_CALLBACKS]]

facts["before"] = state()
import hf_wsd
facts["names"] = [getattr(hf_wsd, name) is not None for name in hf_wsd.__all__]
import hf_wsd.start, hf_wsd.registration, hf_wsd.report, hf_wsd.cli
facts["after"] = state()
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def unregistered(tmp_path_factory):
    """Facts about a process that never calls `register()`."""
    register()
    file = tmp_path_factory.mktemp("arguments") / "training_args.bin"
    torch.save(arguments(file.parent, "wsd"), file)
    return python(UNREGISTERED, str(file))


@pytest.mark.slow
def test_saved_training_arguments_load_where_hf_wsd_is_never_imported(unregistered):
    assert (unregistered["loaded"], unregistered["loaded with"]) == ("wsd", [])


def test_imports_alone_change_nothing_in_transformers(unregistered):
    assert unregistered["after"] == unregistered["before"]


def test_registering_leaves_every_other_name_as_it_was(unregistered):
    members, factories, _ = unregistered["before"]
    now = {k.value: f.__qualname__ for k, f in TYPE_TO_SCHEDULER_FUNCTION.items() if k.value not in NAMES}
    assert ([m.value for m in SchedulerType if m.value not in NAMES], now) == (members, factories)


def test_registering_leaves_the_other_callbacks_as_they_were(unregistered):
    assert [c.__name__ for c in DEFAULT_CALLBACKS if c is not WSDCallback] == unregistered["before"][2]
