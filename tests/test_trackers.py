"""What trackers are told of a run, in real runs with the real packages; those that are not installed are left out."""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate import Accelerator
from trainer_runs import FAMILY, FLAGS, SCRIPT, command, same_weights, train_here
from transformers import TrainerCallback, integrations, trainer
from transformers.integrations import integration_utils

import hf_wsd
from hf_wsd.builders import wsd
from hf_wsd.lineage import Lineage, Parent
from hf_wsd.trackers import accelerate_trackers, job_type, lineage_config, run_name, survive, tracker_class

TRUNK = Lineage(step=0, kind="periodic", schedule=wsd(100, num_decay_steps=0), group="baby", tokens_per_step=64)
BRANCH = replace(
    TRUNK,
    step=30,
    schedule=wsd(40, num_decay_steps=10),
    intent="branch",
    parent=Parent(checkpoint="../../checkpoint-30", step=30),
    requested="2.5K",
)
FOLDER = Path("RUN/_branches/30-1-sqrt-10")

# --- what is said ---


@pytest.mark.parametrize(
    ("given", "replayed", "name"),
    [
        (None, False, "baby/30-1-sqrt-10"),
        ("baby", False, "baby/30-1-sqrt-10"),
        ("mine", False, "mine"),
        ("the trunk's second name", True, "baby/30-1-sqrt-10"),
    ],
)
def test_branch_has_a_name_of_its_own(given, replayed, name):
    assert run_name(BRANCH, FOLDER, given, replayed=replayed) == name


@pytest.mark.parametrize("given", [None, "baby"])
@pytest.mark.parametrize(
    "record", [TRUNK, replace(BRANCH, intent="extend", parent=Parent(checkpoint="checkpoint-30", step=30))]
)
def test_name_of_a_run_that_goes_on_is_the_users(record, given):
    assert run_name(record, Path("RUN"), given) == given


def test_longer_trunk_in_a_folder_of_its_own_is_a_new_run():
    assert run_name(replace(BRANCH, intent="extend"), Path("LONGER"), "baby") == "baby/LONGER"


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (TRUNK, "trunk"),
        (BRANCH, "branch"),
        (replace(BRANCH, intent="extend"), "extend"),
        (replace(TRUNK, schedule=wsd(100)), "run"),
    ],
)
def test_job_type_says_what_a_run_is(record, word):
    assert job_type(record) == word


def test_config_is_flat_and_has_the_lineage():
    config = lineage_config(BRANCH, FOLDER)
    assert {type(value) for value in config.values()} == {str, int}
    assert (config["wsd/parent"], config["wsd/fork_step"], config["wsd/budget"]) == ("../../checkpoint-30", 30, "2.5K")


@pytest.mark.parametrize(("record", "resume"), [(BRANCH, "never"), (replace(BRANCH, step=35), "allow")])
def test_accelerate_is_told_the_group_and_whether_the_run_goes_on(record, resume):
    told = accelerate_trackers(record, FOLDER)["init_kwargs"]
    assert told["wandb"] == {"group": "baby", "job_type": "branch", "name": "baby/30-1-sqrt-10"}
    assert told["trackio"] == {"group": "baby", "name": "baby/30-1-sqrt-10", "resume": resume}


# --- what never stops training ---


class FailsInMidRun(TrainerCallback):
    """A tracker whose server goes away after the first log."""

    def on_log(self, args, state, control, **kwargs):
        if state.global_step > 5:
            raise ConnectionError(f"lost at step {state.global_step}")

    def on_train_end(self, args, state, control, **kwargs):
        raise ConnectionError("lost at the end")


@pytest.fixture
def failing_tracker(monkeypatch):
    """As `register()` makes it of a name of `--report_to`."""
    callbacks = [*trainer.DEFAULT_CALLBACKS, tracker_class(FailsInMidRun)]
    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", callbacks)


def test_tracker_that_fails_in_mid_run_is_named_once_and_training_goes_on(tmp_path, failing_tracker, caplog):
    run = train_here(tmp_path / "run", "--max_steps", 20)
    assert (run / "checkpoint-20").is_dir()
    errors = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.ERROR]
    assert [error.partition(";")[0] for error in errors] == [
        "hf_wsd: tracking by FailsInMidRun failed (ConnectionError: lost at step 10)"
    ]


def test_raw_loop_survives_its_trackers_too(caplog):
    accelerator = Accelerator(cpu=True)
    for step in (1, 2):
        with survive(accelerator):
            raise ConnectionError(f"lost at step {step}")
    assert caplog.text.count("tracking by Accelerator failed (ConnectionError: lost at step 1)") == 1
    assert "step 2" not in caplog.text


def test_with_another_schedule_a_failing_tracker_fails_as_ever(tmp_path, failing_tracker):
    with pytest.raises(ConnectionError, match="lost at step 10"):
        train_here(tmp_path / "run", "--max_steps", 20, "--lr_scheduler_type", "cosine")


def test_every_name_of_report_to_is_its_own_tracker_made_safe_once():
    before = {name: getattr(integration_utils, made.__name__) for name, made in _registered().items()}
    assert all(issubclass(made, before[name]) and made is not before[name] for name, made in _registered().items())
    assert _registered() == _registered()


def _registered():
    hf_wsd.register()
    return dict(integration_utils.INTEGRATION_TO_CALLBACK)


def test_tracker_is_found_by_the_name_that_scripts_know():
    made = tracker_class(integrations.WandbCallback)
    assert (made.__name__, issubclass(made, integrations.WandbCallback)) == ("WandbCallback", True)


DISK_IS_FULL_FROM_3_TO_5 = """
import resource
from transformers import TrainerCallback

class FullDisk(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        room = 100 if 3 <= state.global_step <= 5 else resource.RLIM_INFINITY  # bytes of a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
"""


@pytest.mark.slow
def test_disk_that_is_full_for_a_while_costs_the_curves_of_that_while(tmp_path):
    pytest.importorskip("tensorboard")
    script = tmp_path / "train.py"
    text = SCRIPT.read_text().replace("    trainer.train(", "    trainer.add_callback(FullDisk)\n    trainer.train(")
    script.write_text(DISK_IS_FULL_FROM_3_TO_5 + text)
    flags = ("--max_steps", 20, "--logging_steps", 1)
    quiet = train_here(tmp_path / "quiet", *flags)
    run = tmp_path / "run"
    said = command(
        ["-m", "hf_wsd", script, "--output_dir", run, *FLAGS, *flags, "--report_to", "tensorboard"],
        TENSORBOARD_LOGGING_DIR=str(tmp_path / "events"),
    ).stderr
    assert same_weights(run / "checkpoint-20", quiet / "checkpoint-20")
    assert said.count("TensorBoardCallback failed (OSError") == 1
    assert "a row of the history" in said
    steps = {step for file in (tmp_path / "events").iterdir() for step, _ in scalars(file, "train/loss")}
    assert {1, 2, 7, 20} <= steps


# --- a family in real trackers ---


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A trunk, a branch of `hf-wsd decay`, and the trunk resumed; the ids of the trunk stay in the environment."""
    folder = tmp_path_factory.mktemp("family")
    present = [name for name in ("tensorboard", "trackio", "wandb") if _installed(name)]
    script = folder / "train.py"
    seeded = "    set_seed(training_args.seed)\n"
    set_up = f"    training_args.report_to, training_args.trackio_space_id = {present}, None\n"  # 5.0 would ask the hub
    script.write_text(SCRIPT.read_text().replace(seeded, f"{seeded}{set_up}"))
    environment = {
        **{"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_RUN_ID": "trunk-id", "WANDB_RESUME": "allow"},
        **{"TRACKIO_DIR": str(folder / "trackio"), "TENSORBOARD_LOGGING_DIR": str(folder / "events")},
    }
    run = folder / "run"
    argv = ["-m", "hf_wsd", *FAMILY, script, "--output_dir", run, *FLAGS, "--run_name", "baby"]
    command([*argv, "--num_train_epochs", 9], **environment)
    command(["-m", "hf_wsd.cli", "decay", run, "--budgets", 40], **environment)
    command([*argv, "--max_steps", 35, "--resume_from_checkpoint", run / "checkpoint-30"], **environment)
    return folder


def _installed(name):
    return find_spec(name) is not None


def scalars(file, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(file)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


@pytest.mark.slow
def test_tensorboard_has_the_branch_in_a_folder_of_its_own(family):
    pytest.importorskip("tensorboard")
    files = sorted((family / "events").rglob("events.*"))
    folders = [str(file.parent.relative_to(family / "events")) for file in files]
    assert sorted(folders) == [".", ".", "baby/30-1-sqrt-10"]


@pytest.mark.slow
def test_tensorboard_has_losses_over_tokens_and_the_lineage(family):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (branch,) = (family / "events" / "baby" / "30-1-sqrt-10").iterdir()
    by_step, by_tokens = scalars(branch, "train/loss"), scalars(branch, "by_tokens/train/loss")
    assert [step for step, _ in by_step] == [35, 40]
    assert by_tokens == [(64 * step, loss) for step, loss in by_step]
    (text,) = EventAccumulator(str(branch)).Reload().Tensors("wsd/text_summary")
    assert b"| wsd/parent | ../../_fork-points/checkpoint-30 |" in text.tensor_proto.string_val[0]


def wandb_records(file, kind):
    """Records of an offline run, out of their leveldb log: the package has no reader."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, part = struct.unpack("<HB", data[position + 4 : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # whole, or the last of its parts
            found = Record.FromString(record)
            record = b""
            if found.WhichOneof("record_type") == kind:
                yield getattr(found, kind)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # protobuf's and wandb's own
def test_wandb_has_the_branch_as_a_new_run_of_the_trunks_group(family):
    pytest.importorskip("wandb")
    runs = [next(wandb_records(file, "run")) for file in sorted(family.rglob("*.wandb"))]
    trunk, branch, resumed = sorted(runs, key=lambda run: run.start_time.ToNanoseconds())
    for run in (trunk, resumed):
        assert (run.run_id, run.run_group, run.job_type, run.display_name) == ("trunk-id", "baby", "trunk", "baby")
    assert (branch.run_group, branch.job_type, branch.display_name) == ("baby", "branch", "baby/30-1-sqrt-10")
    assert branch.run_id != "trunk-id"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_draws_losses_over_tokens_and_has_the_lineage(family):
    pytest.importorskip("wandb")
    (branch,) = (file for file in family.rglob("*.wandb") if "trunk-id" not in file.name)
    axes = {metric.name: metric.step_metric for metric in wandb_records(branch, "metric")}
    assert (axes["train/loss"], axes["eval/loss"]) == ("train/tokens", "train/tokens")
    config = {item.key: item.value_json for change in wandb_records(branch, "config") for item in change.update}
    assert (config["wsd/fork_step"], config["wsd/budget"]) == ("30", '"40"')


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_has_the_branch_as_a_new_run_of_the_trunks_group(family, monkeypatch):
    pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setattr(storage, "TRACKIO_DIR", family / "trackio")
    runs = {run["name"]: run["id"] for run in storage.SQLiteStorage.get_run_records("huggingface")}
    assert set(runs) == {"baby", "baby/30-1-sqrt-10"}
    assert len(storage.SQLiteStorage.get_run_records("huggingface")) == 2
    for name, tokens in {"baby": 35 * 64, "baby/30-1-sqrt-10": 40 * 64}.items():
        config = storage.SQLiteStorage.get_run_config("huggingface", name, run_id=runs[name])
        rows = storage.SQLiteStorage.get_logs("huggingface", name, run_id=runs[name])
        assert config["_Group"] == "baby"
        assert rows[-1]["train/tokens"] == tokens


def in_one_process(tmp_path, tracker, **environment):
    """A trunk, a branch, and another branch in a folder of the same name."""
    trunk, one, two = tmp_path / "run", tmp_path / "1" / "branch", tmp_path / "2" / "branch"
    flags = [*FLAGS, "--report_to", tracker, "--run_name", "baby", "--trackio_space_id", ""]
    branch = [*flags, "--max_steps", 15, "--resume_from_checkpoint", trunk / "checkpoint-10"]
    branch += ["--lr_scheduler_kwargs", '{"num_decay_steps": 5}', "--output_dir"]
    legs = [
        [*flags, "--max_steps", 10, "--lr_scheduler_kwargs", '{"num_decay_steps": 0}', "--output_dir", trunk],
        *([*branch, one], [*branch, two]),
    ]
    code = "import hf_wsd, runpy, sys\nhf_wsd.register()\n" + "".join(
        f"sys.argv = {['train.py', *map(str, leg)]}\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        for leg in legs
    )
    command(["-c", code], **environment)


NAMES = ["baby", "baby/branch", "baby/branch"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trunk_and_branches_in_one_process_are_runs_of_their_own_in_wandb(tmp_path):
    pytest.importorskip("wandb")
    in_one_process(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    runs = [next(wandb_records(file, "run")) for file in tmp_path.rglob("*.wandb")]
    assert sorted(run.display_name for run in runs) == NAMES
    assert {run.run_group for run in runs} == {"baby"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trunk_and_branches_in_one_process_are_runs_of_their_own_in_trackio(tmp_path, monkeypatch):
    storage = pytest.importorskip("trackio.sqlite_storage")
    in_one_process(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    assert sorted(run["name"] for run in storage.SQLiteStorage.get_run_records("huggingface")) == NAMES
