"""Scripts that people have, unchanged, through each door: the lr of every update is the schedule's, to the last bit."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
from dataclasses import fields

import pytest
import yaml
from reference import cycle, wsd
from trainer_runs import ROOT, command, train_here
from transformers.optimization import _get_wsd_scheduler_lambda

import hf_wsd
import hf_wsd.__main__ as launcher
from hf_wsd.settings import Settings

DOWNSTREAM = ROOT / "tests" / "downstream"
FROM_FILE, IN_CODE, OWN_SCHEDULER = (
    DOWNSTREAM / f"train_{name}.py" for name in ("from_file", "in_code", "own_scheduler")
)
PEAK = 1e-2
ARGUMENTS = {
    "learning_rate": PEAK,
    "per_device_train_batch_size": 4,
    "max_steps": 20,
    "warmup_steps": 5,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def logged(run):
    """The lr of every update, as Trainer logged it."""
    rows = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [row["learning_rate"] for row in rows if "learning_rate" in row]


# --- ways to name the schedule: each gives the words that follow the script's path ---


def as_flags(arguments, folder):
    texts = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in arguments.items()}
    return [FROM_FILE, *(str(word) for name, value in texts.items() for word in (f"--{name}", value))]


def as_json(arguments, folder):
    (folder / "args.json").write_text(json.dumps(arguments))
    return [FROM_FILE, folder / "args.json"]


def as_json_with_a_text(arguments, folder):
    kwargs = json.dumps(arguments.get("lr_scheduler_kwargs", {}))
    return as_json(arguments | {"lr_scheduler_kwargs": kwargs}, folder)


def as_yaml(arguments, folder):
    (folder / "args.yaml").write_text(yaml.safe_dump(arguments))
    return [FROM_FILE, folder / "args.yaml"]


def set_afterwards(arguments, folder):
    words = ["--output_dir", arguments["output_dir"], "--scheduler", arguments["lr_scheduler_type"]]
    return [IN_CODE, *words, "--afterwards"]


def in_create_scheduler(arguments, folder):
    name = arguments["lr_scheduler_type"]
    return [OWN_SCHEDULER, "--scheduler", name, *as_flags(arguments | {"lr_scheduler_type": "linear"}, folder)[1:]]


def beside_the_optimizer(arguments, folder):
    return [*in_create_scheduler(arguments, folder), "--beside_the_optimizer"]


WAYS = (as_flags, as_json, as_json_with_a_text, as_yaml, set_afterwards, in_create_scheduler, beside_the_optimizer)


def words_of(way, folder, name="wsd", **more):
    given = {"output_dir": str(folder / "run"), "lr_scheduler_type": name} | ARGUMENTS | more
    return [str(word) for word in way(given, folder)]


# --- doors: how the script comes to know our names, and the settings that are none of its own ---


def by_the_launcher(words, settings):
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    start_here(launcher.main, ["hf_wsd", *flags, *words])


def by_an_own_entry(words, settings):
    def entry():
        hf_wsd.register(**settings)
        runpy.run_path(words[0], run_name="__main__")

    start_here(entry, words)


def by_variables(words, settings):
    os.environ.update({f"HF_WSD_{name.upper()}": str(value) for name, value in settings.items()})
    start_here(launcher.main, ["hf_wsd", *words])


DOORS = (by_the_launcher, by_an_own_entry, by_variables)


def start_here(entry, argv):
    before = sys.argv, sys.path[:]
    sys.argv = argv
    sys.path.insert(0, str(DOWNSTREAM))
    try:
        entry()
    finally:
        sys.argv, sys.path[:] = before


# --- the lr of every update ---


def lambda_of_transformers(update):
    return _get_wsd_scheduler_lambda(
        update,
        num_warmup_steps=5,
        num_stable_steps=8,
        num_decay_steps=7,
        warmup_type="linear",
        decay_type="cosine",
        min_lr_ratio=0.1,
        num_cycles=0.5,
    )


def every_pair(first, second):
    """All pairs; those of the diagonal, in which each occurs, are quick enough for every day."""
    pairs = [(a, b, i % len(second) == j) for i, a in enumerate(first) for j, b in enumerate(second)]
    return [pytest.param(a, b, marks=() if daily else pytest.mark.slow) for a, b, daily in pairs]


@pytest.mark.parametrize(("way", "door"), every_pair(WAYS, DOORS))
def test_lr_of_every_update_is_that_of_transformers_own_formula(way, door, tmp_path):
    settings = {"num_decay_steps": 7, "decay_type": "cosine", "min_lr_ratio": 0.1}
    door(words_of(way, tmp_path), settings)
    assert logged(tmp_path / "run") == [PEAK * lambda_of_transformers(update) for update in range(20)]


ASKED = {
    "wsd": {"num_decay_steps": "8", "decay_type": "linear", "warmup_type": "cosine", "min_lr_ratio": "1e-1"},
    "wsd_s": {"cycle_ends": ["10", 20], "num_decay_steps": 3, "decay_type": "linear", "min_lr_ratio": 0.1},
    "cyclic_cosine": {"cycle_ends": "10 20", "min_lr_ratio": "0.0"},
    "multi_step": {"milestones": [15, "18"], "multipliers": [0.5, "0.25"]},
}
EXPECTED = {
    "wsd": wsd(20, num_warmup_steps=5, num_decay_steps=8, decay_type="linear", warmup_type="cosine", min_lr_ratio=0.1),
    "wsd_s": cycle(5, 2, 3, falling="linear", rising="linear", minimum=0.1)
    + cycle(0, 7, 3, falling="linear", rising="linear", minimum=0.1),
    "cyclic_cosine": cycle(5, 0, 5, falling="cosine", rising="linear", minimum=0.0)
    + cycle(0, 0, 10, falling="cosine", rising="linear", minimum=0.0),
    "multi_step": [update / 5 for update in range(5)] + [1.0] * 10 + [0.5] * 3 + [0.25] * 2,
}


@pytest.mark.parametrize(("name", "way"), every_pair(ASKED, [as_flags, as_json, as_json_with_a_text, as_yaml]))
def test_kwargs_of_numbers_texts_and_lists_give_the_schedule_of_their_name(name, way, tmp_path):
    by_the_launcher(words_of(way, tmp_path, name, lr_scheduler_kwargs=ASKED[name]), {})
    assert logged(tmp_path / "run") == [PEAK * multiplier for multiplier in EXPECTED[name]]


@pytest.mark.parametrize("way", [as_flags, as_json])
def test_nested_kwargs_are_read(way, tmp_path):
    kwargs = {"decay_type": "power", "decay_params": {"p": "2"}, "num_decay_steps": 5}
    by_the_launcher(words_of(way, tmp_path, lr_scheduler_kwargs=kwargs), {})
    assert logged(tmp_path / "run")[15:] == [PEAK * (1 - i / 5) ** 2 for i in range(5)]


def test_arguments_in_code_give_the_schedule(tmp_path):
    by_an_own_entry([str(IN_CODE), "--output_dir", str(tmp_path / "run")], {})
    expected = wsd(
        20, num_warmup_steps=5, num_decay_steps=5, decay_type="linear", warmup_type="linear", min_lr_ratio=0.0
    )
    assert logged(tmp_path / "run") == [PEAK * multiplier for multiplier in expected]


def test_model_card_names_the_schedule(tmp_path):
    by_the_launcher(words_of(as_json, tmp_path, "wsd_s"), {"cycle_ends": 20})
    assert "- lr_scheduler_type: wsd_s\n" in (tmp_path / "run" / "README.md").read_text()


# --- real processes ---

OWN_ENTRY = """
import runpy, sys
import hf_wsd
hf_wsd.register(num_decay_steps=7, decay_type="cosine", min_lr_ratio=0.1)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FLAGS = ("--num-decay-steps", 7, "--decay-type", "cosine", "--min-lr-ratio", 0.1)
VARIABLES = {"HF_WSD_NUM_DECAY_STEPS": "7", "HF_WSD_DECAY_TYPE": "cosine", "HF_WSD_MIN_LR_RATIO": "0.1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_machines", 1, "--num_processes", 1)
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no")
PROCESSES = {
    "launcher": (["-m", "hf_wsd", *FLAGS], {}),
    "own entry": (["own_entry.py"], {}),
    "variables": (["-m", "hf_wsd"], VARIABLES),
    "accelerate launch": ([*ACCELERATE, "--module", "hf_wsd", *FLAGS], {}),
    "accelerate launch of an own entry": ([*ACCELERATE, "own_entry.py"], {}),
    "torchrun, 1 process": ([*TORCHRUN, 1, "-m", "hf_wsd", *FLAGS], {}),
    "torchrun, 2 processes": ([*TORCHRUN, 2, "-m", "hf_wsd", *FLAGS], {}),
    "torchrun, 2 processes, variables": ([*TORCHRUN, 2, "-m", "hf_wsd"], VARIABLES),
    "torchrun, 2 processes of an own entry": ([*TORCHRUN, 2, "own_entry.py"], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, as_json) for name in PROCESSES), ("torchrun, 2 processes", in_create_scheduler)],
)
def test_lr_of_every_update_in_processes_of_their_own(name, way, tmp_path):
    start, variables = PROCESSES[name]
    (tmp_path / "own_entry.py").write_text(OWN_ENTRY)
    more = {"PYTHONPATH": str(DOWNSTREAM), "ACCELERATE_USE_CPU": "true"}
    command([*start, *words_of(way, tmp_path)], cwd=tmp_path, **more, **variables)
    assert logged(tmp_path / "run") == [PEAK * lambda_of_transformers(update) for update in range(20)]


@pytest.mark.slow
def test_module_after_m_is_run_as_python_would(tmp_path):
    words = words_of(as_json, tmp_path)
    command(["-m", "hf_wsd", *FLAGS, "-m", "train_from_file", *words[1:]], cwd=DOWNSTREAM)
    assert logged(tmp_path / "run") == [PEAK * lambda_of_transformers(update) for update in range(20)]


# --- refusals: before the first step, in the words that the user typed ---

KWARGS = "--lr_scheduler_kwargs"
MISTAKES = {
    "warm-up longer than the run": (
        (),
        ("--warmup_steps", 900),
        [
            "longer than the run of 800",
            "800 steps (--max_steps",
            "900 (--warmup_steps)",
            "decay_fraction 0.1 (default)",
        ],
    ),
    "decay longer than the run": (("--num-decay-steps", 900), (), ["decay (900)", "--num-decay-steps 900"]),
    "decay longer than the run, in kwargs": (
        (),
        (KWARGS, '{"num_decay_steps": 900}'),
        ['kwargs {"num_decay_steps": 900}'],
    ),
    "fraction above 1": (("--decay-fraction", 1.5), (), ["between 0 and 1, not 1.5", "--decay-fraction 1.5"]),
    "fraction above 1, in kwargs": ((), (KWARGS, '{"decay_fraction": 1.5}'), ['kwargs {"decay_fraction": 1.5}']),
    "fraction that is no number": (("--decay-fraction", "a"), (), ["cannot be read as number", "--decay-fraction a"]),
    "nothing, as a shell's unset variable": (("--decay-fraction", ""), (), ["decay_fraction='' cannot be read"]),
    "shape that does not exist": (("--decay-type", "linaer"), (), ["did you mean 'linear'", "--decay-type linaer"]),
    "ratio above 1": (("--min-lr-ratio", 2), (), ["min_lr_ratio must lie in [0, 1]", "--min-lr-ratio 2"]),
    "budget that is no length": (("--trunk", "--budgets", "1X"), (), ["'1X' is no length", "--budgets 1X"]),
    "cycles of wsd": (("--cycle-ends", 400, 800), (), ["unknown setting 'cycle_ends': it is one of wsd_s"]),
    "setting given twice": (
        ("--decay-fraction", 0.2),
        (KWARGS, '{"decay_fraction": 0.3}'),
        ["given twice: 0.3 in lr_scheduler_kwargs, 0.2", "--decay-fraction 0.2", 'kwargs {"decay_fraction": 0.3}'],
    ),
    "trunk in kwargs": ((), (KWARGS, '{"trunk": 1}'), ["unknown setting 'trunk'", "--trunk (or HF_WSD_TRUNK)"]),
    "warm-up in kwargs": ((), (KWARGS, '{"num_warmup_steps": 10}'), ["give it as --warmup_steps"]),
    "length in kwargs": ((), (KWARGS, '{"max_steps": 10}'), ["give it as --max_steps"]),
    "kwargs that are a list": ((), (KWARGS, "[0.2]"), ["names and values such as", "not '[0.2]'"]),
    "kwargs that are a number": ((), (KWARGS, "0.2"), ["names and values such as", "not '0.2'"]),
    "settings of another scheduler": (
        ("--decay-fraction", 0.2),
        ("--lr_scheduler_type", "cosine"),
        ["decay_fraction would be ignored: the script's scheduler is cosine"],
    ),
}


@pytest.mark.parametrize(("launch", "flags", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_refused_before_the_first_step_in_the_words_typed(launch, flags, said, tmp_path):
    with pytest.raises(SystemExit) as refused:
        train_here(tmp_path / "run", "--max_steps", 800, *flags, launch=launch)
    message = str(refused.value.code)
    assert message.startswith("hf_wsd: ")
    assert [words for words in said if words not in message] == []
    assert list(tmp_path.glob("run/*")) == []  # not even a history: no step was made


def test_mistake_in_a_variable_is_refused_with_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_WSD_DECAY_FRACTION", "1.5")
    with pytest.raises(SystemExit, match=r"not 1\.5: (.|\n)*HF_WSD_DECAY_FRACTION"):
        train_here(tmp_path / "run", "--max_steps", 800)


def test_kwargs_that_are_a_list_in_a_file_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"lr_scheduler_kwargs is names and values .* not \[0\.2\]"):
        by_the_launcher(words_of(as_json, tmp_path, lr_scheduler_kwargs=[0.2]), {})


@pytest.mark.slow
def test_refusal_is_a_message_without_a_traceback_and_an_exit_code(tmp_path):
    words = words_of(as_json, tmp_path, warmup_steps=900)
    result = command(["-m", "hf_wsd", *words], check=False)
    last = result.stderr.strip().splitlines()[-2:]
    assert (result.returncode, "Traceback" in result.stderr, last[0][:8]) == (1, False, "hf_wsd: ")
    assert last[1].startswith("(asked for: 20 steps (--max_steps or epochs); a warm-up of 900 (--warmup_steps); ")


# --- the launcher's own words ---


def test_every_setting_is_a_flag_whose_help_says_what_it_does():
    helps = {action.dest: action.help for action in launcher.flags()._actions}
    names = {field.name for field in fields(Settings)} - {"branch"}
    assert set(helps) == names | {"help"}
    assert [name for name, text in helps.items() if not text or len(text.split()) < 4] == []


WRONG_USAGE = {
    "no script": (["--trunk"], r"no SCRIPT\.py \(or -m MODULE\) to run"),
    "no module": (["-m"], r"no SCRIPT\.py \(or -m MODULE\) to run"),
    "script that is not there": (["--trunk", "nowhere.py"], r"no script at nowhere\.py"),
    "misspelt flag": (
        ["--decay-fractoin", "0.2", "train.py"],
        "no flag of the launcher: did you mean --decay-fraction",
    ),
    "the script's flag": (["--max_steps", "9", "train.py"], r"--max-steps is no flag .* arguments follow SCRIPT\.py"),
    "flag without its value": (["--decay-fraction", "train.py"], "--decay-fraction: expected one argument"),
    "abbreviated flag": (["--decay", "0.2", "train.py"], "--decay is no flag of the launcher"),
}


@pytest.mark.parametrize(("words", "said"), WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_wrong_usage_of_the_launcher_is_answered(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        start_here(launcher.main, ["hf_wsd", *words])
    assert re.search(said, capsys.readouterr().err)
