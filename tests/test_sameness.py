"""What may differ between a checkpoint's run and the one that goes on from it: sameness.py, optimizers.py, refusals."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from trainer_runs import FAMILY, FLAGS, SCRIPT, command, train, train_here

from hf_wsd import WSDScheduler, register
from hf_wsd.builders import wsd
from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.errors import ResumeError, RunError, SettingsError
from hf_wsd.family import read_run
from hf_wsd.history import read_history
from hf_wsd.job import Job
from hf_wsd.lineage import Lineage
from hf_wsd.optimizers import compare_optimizers
from hf_wsd.refusals import refuse_intent
from hf_wsd.sameness import SHARING, Sameness, compare, describe
from hf_wsd.samples import take_samples
from hf_wsd.settings import Settings

TRUNK = wsd(num_warmup_steps=10, num_decay_steps=0)
MODEL = wsd(100, num_warmup_steps=10, num_decay_steps=20)
RUN = Lineage(
    step=80,
    kind="fork",
    schedule=TRUNK,
    peak_lrs=(0.1, 0.1),
    parameters=1000,
    tokens_per_step=64,
    data="100-ab",
    setup={"seed": 1, "data_seed": None, "precision": "bf16", "device": "cuda H100"} | dict.fromkeys(SHARING, 2),
    versions={"torch": "2.12.0", "hf-wsd": "0.1"},
)


def with_setup(**changes):
    return replace(RUN, setup={**RUN.setup, **changes})


# --- what differs ---


def test_same_run_is_bitwise():
    assert compare(RUN, replace(RUN, step=90, kind="periodic", losses={"loss": 1.0})).level == "bitwise"


@pytest.mark.parametrize(
    ("now", "difference", "level"),
    [
        (replace(RUN, peak_lrs=(0.1, 0.2)), "learning_rate 0.1 -> 0.2", "changed"),
        (replace(RUN, data="120-cd"), "data 100-ab -> 120-cd", "changed"),
        (replace(RUN, decay_data={"code.jsonl": {}}, data="9-e"), "decay_data the trunk's -> code.jsonl", "changed"),
        (replace(RUN, parameters=2000), "model 1000 -> 2000", "changed"),
        (replace(RUN, tokens_per_step=128), "tokens_per_step 64 -> 128", "changed"),
        (with_setup(seed=2), "seed 1 -> 2", "changed"),
        (with_setup(data_seed=2), "data_seed None -> 2", "changed"),
        (with_setup(precision="fp32"), "precision bf16 -> fp32", "changed"),
        (with_setup(device="cuda H200"), "device cuda H100 -> cuda H200", "same samples"),
        (replace(RUN, versions={"torch": "2.13.0"}), "torch 2.12.0 -> 2.13.0", "same samples"),
        (
            with_setup(world_size=4, gradient_accumulation_steps=1),
            "gradient_accumulation_steps 2 -> 1, world_size 2 -> 4",
            "same samples",
        ),
        (with_setup(world_size=4), "tokens_per_step 8 -> 16 samples (world_size 2 -> 4)", "changed"),
    ],
)
def test_difference_is_named_with_its_level(now, difference, level):
    sameness = compare(RUN, now)
    assert (str(sameness), sameness.level) == (difference, level)


def test_what_only_one_record_tells_is_not_compared():
    old = replace(
        RUN, peak_lrs=(), parameters=None, tokens_per_step=None, data="unknown", setup={"seed": 1}, versions={}
    )
    assert [compare(old, RUN).changes, compare(RUN, old).changes] == [{}, {}]


def test_number_of_workers_matters_to_a_stream_alone():
    one, two = (with_setup(dataloader_num_workers=n) for n in (1, 2))
    assert compare(one, two).level == "bitwise"
    assert str(compare(replace(one, data="unknown"), replace(two, data="unknown"))) == "dataloader_num_workers 1 -> 2"


def test_sharded_parameters_of_other_processes_are_no_other_model():
    now = with_setup(world_size=4, gradient_accumulation_steps=1)
    assert "model" not in compare(RUN, replace(now, parameters=500)).changes


def test_settings_of_the_optimizer_are_compared_group_by_group():
    old = [{"class": "AdamW", "weight_decay": decay, "betas": [0.9, 0.95]} for decay in (0.1, 0.0)]
    new = [group | {"betas": [0.9, 0.99]} for group in old]
    new[0]["weight_decay"] = 0.2
    differences = "weight_decay 0.1 -> 0.2, betas [0.9, 0.95] -> [0.9, 0.99]"
    assert str(compare_optimizers([1, 1], old, [1, 1], new)) == differences


def test_another_optimizer_is_named():
    old, new = [{"class": "AdamW", "eps": 1e-8}], [{"class": "SGD", "momentum": 0.9}]
    assert compare_optimizers([1], old, [1], new).changes == {"optimizer": "class AdamW -> SGD"}


def test_samples_made_anew_every_time_have_no_fingerprint():
    draw = np.random.default_rng(1)

    class Noisy:
        def __len__(self):
            return 100

        def __getitem__(self, i):
            return {"input_ids": draw.integers(9, size=4)}

    assert (take_samples(Noisy()).fingerprint, take_samples(Noisy()).tokens_per_sample) == ("unknown", 4)


def test_fingerprint_holds_no_address():
    one, two = ([{"input_ids": [1], "image": object()} for _ in range(20)] for _ in range(2))
    assert take_samples(one) == take_samples(two)


# --- what has to be allowed ---


@pytest.mark.parametrize(
    ("intent", "names"), [("continue", ["seed"]), ("extend", ["seed"]), ("branch", ["seed", "world_size"])]
)
def test_branch_has_to_be_allowed_what_a_continued_run_is_only_told(intent, names):
    sameness = Sameness(changes={"seed": "1 -> 2", "world_size": "2 -> 1"})
    assert sameness.to_allow(intent) == names
    with pytest.raises(
        ResumeError, match=rf"at step 80 .*\n  seed 1 -> 2\n  world_size 2 -> 1\n.*--allow {' '.join(names)} "
    ):
        sameness.check(intent, step=80, allow=names[:-1])
    sameness.check(intent, step=80, allow=[*names, "data"])  # what does not differ may be allowed too


def test_data_of_the_decay_need_not_be_allowed_a_second_time():
    Sameness(changes={"decay_data": "the trunk's -> code.jsonl"}).check("branch", step=80, allow=())


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'learning_rate'"):
        Settings.make(allow="lerning_rate")


def test_script_that_orders_its_data_itself_is_not_called_bitwise():
    record = replace(RUN, sameness=Sameness().record({}, step=80, allow=(), known=False))
    assert describe(record) == "sameness unknown"


# --- learning rate and settings of the optimizer, through files as Trainer writes them ---


def make_scheduler(*lrs, schedule=MODEL, allow=(), **settings):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    return WSDScheduler(torch.optim.AdamW(groups, **settings), schedule, allow=allow)


def save(scheduler, step):
    for group in scheduler.optimizer.param_groups:
        group["params"][0].grad = torch.ones(2)
    for _ in range(step):
        scheduler.optimizer.step()
        scheduler.step()
    return {"scheduler": scheduler.state_dict(), "optimizer": scheduler.optimizer.state_dict()}


def resume(scheduler, states, order):
    for part in order:
        (scheduler if part == "scheduler" else scheduler.optimizer).load_state_dict(states[part])
    return scheduler.optimizer.param_groups


orders = pytest.mark.parametrize(
    "order",
    [("optimizer", "scheduler"), ("scheduler", "optimizer"), ("optimizer", "scheduler", "optimizer")],
    ids=" ".join,
)


@orders
@pytest.mark.parametrize("step", [50, 90])
def test_allowed_learning_rate_is_that_of_the_very_next_update(order, step):
    states = save(make_scheduler(0.5, 0.01), step)
    groups = resume(make_scheduler(0.4, 0.02, allow=["learning_rate"]), states, order)
    assert [group["lr"] for group in groups] == [0.4 * MODEL(step), 0.02 * MODEL(step)]
    assert [group["initial_lr"] for group in groups] == [0.4, 0.02]


@orders
def test_allowed_settings_of_the_optimizer_take_effect_and_no_others(order):
    states = save(make_scheduler(0.5, weight_decay=0.1, betas=(0.9, 0.95)), 50)
    states["optimizer"]["param_groups"][0]["eps"] = 1e-6  # as a callback of the script may have set it
    asked = make_scheduler(0.5, weight_decay=0.2, betas=(0.9, 0.99), allow=["weight_decay", "betas"])
    (group,) = resume(asked, states, order)
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.2, (0.9, 0.99), 1e-6)


def test_settings_that_torch_would_ignore_are_refused_together():
    states = save(make_scheduler(0.5, weight_decay=0.1), 50)
    with pytest.raises(
        ResumeError, match=r"learning_rate 0\.5 -> 0\.4\n  weight_decay 0\.1 -> 0\.2\n  eps 1e-08 -> 1e-06\n"
    ):
        resume(make_scheduler(0.4, weight_decay=0.2, eps=1e-6, allow=["eps"]), states, ("scheduler",))


def test_state_of_an_older_version_has_no_settings_to_compare():
    states = save(make_scheduler(0.5, weight_decay=0.1), 50)
    del states["scheduler"]["optimizer_settings"]
    resumed = make_scheduler(0.5, weight_decay=0.2)
    assert resume(resumed, states, ("scheduler",)) is resumed.optimizer.param_groups


def test_scheduler_that_nobody_looks_after_refuses_at_the_first_update():
    """A Trainer whose WSDCallback was taken out; else all differences are refused together, before."""
    register()
    asked = transformers.get_scheduler("wsd", torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.4), 10, 100)
    asked.load_state_dict(save(make_scheduler(0.5, schedule=asked.schedule), 50)["scheduler"])
    with pytest.raises(ResumeError, match=r"learning_rate 0\.5 -> 0\.4"):
        asked.optimizer.step()


# --- what a run was expected to be ---


@pytest.mark.parametrize(
    ("stored", "began", "expected", "derived"),
    [
        (TRUNK, "branch", "continue", r"'branch': .* up to there, then a decay of its own \(warmup linear"),
        (MODEL, "start", "branch", r"'continue': the schedule asked for is that of the checkpoint at step 50 \("),
        (wsd(90, num_warmup_steps=10, num_decay_steps=20), "extend", "branch", "'extend': .* up to there, and longer"),
        (None, "start", "branch", "'start': no checkpoint was loaded"),
    ],
)
def test_run_that_is_not_what_was_expected_is_refused_with_the_reason(stored, began, expected, derived):
    scheduler = make_scheduler(0.5)
    if stored is not None:
        scheduler.load_state_dict(save(make_scheduler(0.5, schedule=stored), 50)["scheduler"])
    job = Job(folder=Path("RUN"), step=50, max_steps=100)
    with pytest.raises(RunError, match=f"--expect {expected} .* this is {derived}"):
        refuse_intent(scheduler, began, Settings(expect=expected), job)


@pytest.mark.parametrize(("began", "expected"), [("branch", "branch"), ("branch", "continue"), ("start", "continue")])
def test_what_goes_on_with_a_branch_is_one_too(began, expected):
    scheduler = make_scheduler(0.5)
    scheduler.load_state_dict(save(make_scheduler(0.5), 90)["scheduler"])
    refuse_intent(scheduler, began, Settings(expect=expected), Job(folder=Path("RUN"), step=90, max_steps=100))


# --- real runs ---

DECAY = ("--max_steps", 20, "--lr_scheduler_kwargs", '{"num_decay_steps": 5}')


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return train_here(tmp_path_factory.mktemp("sameness") / "run", "--num_train_epochs", 9, launch=FAMILY)


@pytest.fixture
def resumed(trunk, tmp_path):
    """A run that goes on from the trunk's checkpoint at step 15."""

    def go(*flags, **more):
        return train_here(tmp_path / "run", *flags, "--resume_from_checkpoint", trunk / "checkpoint-15", **more)

    return go


def test_all_that_differs_is_refused_at_once_before_the_first_step(resumed, tmp_path):
    changes = ("--learning_rate", "5e-3", "--weight_decay", 0.1, "--seed", 7, "--blocks", 128)
    names = "learning_rate weight_decay tokens_per_step data seed"
    with pytest.raises(SystemExit, match=rf"0\.01 -> 0\.005\n(?s:.*)batch_size 4 -> 8(?s:.*) --allow {names} "):
        resumed(*DECAY, *changes, "--per_device_train_batch_size", 8)
    assert not saved_checkpoints(tmp_path / "run")


def test_allowed_learning_rate_is_trained_with_at_once_and_recorded(resumed):
    run = resumed(*DECAY, "--learning_rate", "5e-3", "--logging_steps", 1, launch=("--allow", "learning_rate"))
    lrs = [row["learning_rate"] for row in read_history(run) if "learning_rate" in row]
    record = read_run(run).latest
    assert lrs == [5e-3 * record.schedule(update) for update in range(15, 20)]
    change = {"learning_rate": "0.01 -> 0.005 at step 15"}
    assert record.sameness == {"level": "changed", "changes": change, "allowed": ["learning_rate"]}


@pytest.mark.slow
def test_what_was_allowed_stays_in_the_records_of_the_run_that_goes_on(resumed):
    flags = ("--save_strategy", "steps", "--save_steps", 2, "--weight_decay", 0.2)
    run = resumed(*DECAY, *flags, launch=("--allow", "weight_decay"))
    for folder in (run, run / "_fork-points"):
        shutil.rmtree(folder / "checkpoint-20")
    train_here(run, *DECAY, *flags, "--resume_from_checkpoint", run / "checkpoint-18")
    assert read_run(run).latest.sameness["changes"] == {"weight_decay": "0.0 -> 0.2 at step 15"}


@pytest.mark.slow
def test_allowed_weight_decay_is_what_trainer_trains_with(resumed):
    run = resumed(*DECAY, "--weight_decay", 0.2, launch=("--allow", "weight_decay"))
    groups = torch.load(run / "checkpoint-20" / "optimizer.pt", weights_only=True)["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]


SHARED_OTHERWISE = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2)


def test_branch_with_another_accumulation_is_refused_though_it_has_the_same_samples(resumed):
    names = "per_device_train_batch_size gradient_accumulation_steps"
    with pytest.raises(SystemExit, match=f"--allow {names} "):
        resumed(*DECAY, *SHARED_OTHERWISE)


@pytest.mark.slow
def test_trunk_goes_on_with_another_accumulation_and_is_told(resumed, caplog):
    run = resumed("--max_steps", 20, *SHARED_OTHERWISE, launch=("--trunk",))
    assert "gradient_accumulation_steps 1 -> 2" in caplog.text
    assert describe(read_run(run).latest) == "same samples: per_device_train_batch_size, gradient_accumulation_steps"


def test_branch_in_which_nothing_differs_is_recorded_as_bitwise(resumed):
    assert read_run(resumed(*DECAY, launch=("--expect", "branch"))).latest.sameness["level"] == "bitwise"


@pytest.mark.slow
def test_callback_of_the_script_allows_too(resumed, tmp_path):
    script = tmp_path / "train_with_callback.py"
    text = SCRIPT.read_text().replace(
        "        train_dataset=", '        callbacks=[WSDCallback(allow=["seed"])],\n        train_dataset='
    )
    script.write_text("from hf_wsd import WSDCallback\n" + text)
    assert read_run(resumed(*DECAY, "--seed", 7, script=script)).latest.sameness["allowed"] == ["seed"]


@pytest.mark.slow
def test_branch_of_hf_wsd_decay_is_told_what_to_allow_and_remembers_it(tmp_path):
    run = train(tmp_path / "run", "--num_train_epochs", 9, launch=(*FAMILY, "--allow", "seed"))
    decay = ["-m", "hf_wsd.cli", "decay", run, "--budgets", 20, "--name", "other"]
    other = ["--", "--seed", 7]
    refused = command([*decay, *other], check=False)
    assert "--allow seed " in refused.stdout + refused.stderr  # what the trunk allows is not meant for its branches
    command([*decay, "--allow", "seed", *other])
    shutil.rmtree(run / "_branches" / "other" / "checkpoint-20")
    shutil.rmtree(run / "_branches" / "other" / "_fork-points")
    command([*decay, *other])
    assert Lineage.read(run / "_branches" / "other" / "checkpoint-20").sameness["allowed"] == ["seed"]
    assert "changed: seed" in command(["-m", "hf_wsd.cli", "tree", run]).stdout


@pytest.mark.slow
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="before 5.18 transformers resumes no run of several processes on CPU: it loads the optimizer to cpu:0",
)
def test_trunk_that_goes_on_with_two_processes_has_the_same_samples_in_every_update(trunk, tmp_path):
    script = tmp_path / "train_with_samples.py"
    script.write_text(SCRIPT.read_text().replace("    trainer.train(", f"{NOTE_SAMPLES}    trainer.train("))
    flags = (*FLAGS, "--max_steps", 24, "--resume_from_checkpoint", trunk / "checkpoint-15")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    ours = ("-m", "hf_wsd", "--trunk", script, "--output_dir")
    command([*ours, tmp_path / "one", *flags])
    two = (*torchrun, *ours, tmp_path / "two", *flags, "--per_device_train_batch_size", 2)
    command(list(two), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")

    parts = [(tmp_path / "two" / f"samples-{rank}").read_text().splitlines() for rank in (0, 1)]
    one = (tmp_path / "one" / "samples-0").read_text().splitlines()
    shared = [sorted(f"{a} {b}".split()) for a, b in zip(*parts, strict=True)]
    assert (len(one), [sorted(update.split()) for update in one]) == (9, shared)
    assert describe(read_run(tmp_path / "two").latest) == "same samples: per_device_train_batch_size, world_size"


NOTE_SAMPLES = """
    def note(model, args, kwargs):
        if model.training:
            with open(f"{training_args.output_dir}/samples-{training_args.process_index}", "a") as file:
                print(*("".join(map(str, ids)) for ids in kwargs["input_ids"].tolist()), file=file)

    trainer.model.register_forward_pre_hook(note, with_kwargs=True)
"""
