"""A family in one process: the bits and records of separate processes, also after a kill and with a decay on demand."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pretrain
import pytest
from test_recipe import TINY
from trainer_runs import ROOT, command, command_line, same_weights
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_wsd.decision import DECISION, Request, write_request
from hf_wsd.family import read_run

RECIPE = ROOT / "recipes" / "pretrain.py"
FLAGS = (*TINY, "--decay_fraction", "0.25", "--save_steps", "7", "--disable_tqdm", "True")
BUDGETS = ("--budgets", "20", "40")  # fork points 15 and 30
DROPOUT = ("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1")
BRANCHES = {"15-1-sqrt-5": 20, "30-1-sqrt-10": 40}


def train(run, *flags):
    with command_line("pretrain.py", "--output_dir", run, *FLAGS, *DROPOUT, *flags):
        pretrain.main()
    return run


@contextmanager
def at(step, act):
    """A block in which a Trainer that reaches `step` acts."""

    class Event(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step + 1 == step:
                act(args)

    DEFAULT_CALLBACKS.append(Event)
    try:
        yield
    finally:
        DEFAULT_CALLBACKS.remove(Event)


def facts(run):
    """The records of a family, without what a process or a folder is told apart by."""
    own = ("saved_at", "command", "group", "settings")
    return {
        (member.path.name if member.path != run else "trunk", step): {
            name: value for name, value in record.to_dict().items() if name not in own
        }
        for member in read_run(run).walk()
        for step, record in member.records.items()
    }


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    run = train(tmp_path_factory.mktemp("family") / "run", "--trunk", *BUDGETS)
    for branch, end in BRANCHES.items():
        fork = branch.partition("-")[0]
        straight = run.parent / branch
        train(straight, "--budgets", end)
        (run / "_branches").mkdir(exist_ok=True)
        assert (run / f"_fork-points/checkpoint-{fork}").is_dir()
    return run


def same_family(run, separate):
    same = [same_weights(run, separate)]
    same += [same_weights(run / "_branches" / branch, separate.parent / branch) for branch in BRANCHES]
    return all(same)


@pytest.mark.slow
def test_family_has_the_bits_of_separate_runs(separate, tmp_path):
    assert same_family(train(tmp_path / "run", *BUDGETS), separate)


@pytest.mark.slow
def test_family_has_the_records_of_separate_processes(tmp_path):
    here = train(tmp_path / "here", *BUDGETS)
    there = tmp_path / "there"
    command([RECIPE, "--output_dir", there, *FLAGS, *DROPOUT, "--trunk", *BUDGETS])
    command(["-m", "hf_wsd.cli", "decay", there])
    assert facts(here) == facts(there)


@pytest.mark.slow
@pytest.mark.parametrize("step", [12, 19, 25, 37])
def test_family_goes_on_where_it_was_interrupted(separate, tmp_path, step):
    class StopError(Exception):
        pass

    def stop(args):
        raise StopError

    with at(step, stop), pytest.raises(StopError):
        train(tmp_path / "run", *BUDGETS)
    assert same_family(train(tmp_path / "run", *BUDGETS), separate)


@pytest.mark.slow
def test_finished_family_trains_nothing_more(separate, tmp_path, caplog):
    run = train(tmp_path / "run", *BUDGETS)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    train(run, *BUDGETS)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert "is finished" in caplog.text


@pytest.mark.slow
def test_two_processes_train_a_family(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    flags = [a for a in FLAGS if a != "--use_cpu"]
    for name, more in (("here", BUDGETS), ("there", ("--trunk", *BUDGETS))):
        argv = [*torchrun, RECIPE, "--output_dir", tmp_path / name, *flags, *DROPOUT, *more]
        command(argv, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    command(["-m", "hf_wsd.cli", "decay", tmp_path / "there"])
    for folder in (".", *(f"_branches/{branch}" for branch in BRANCHES)):
        assert same_weights(tmp_path / "here" / folder, tmp_path / "there" / folder)


# --- a decay on demand ---


def wish(**fields):
    return lambda args: write_request(pretrain.Path(args.output_dir), Request(by="hf-wsd decay", id="1", **fields))


@pytest.mark.slow
def test_trunk_goes_on_after_a_decay_on_demand(separate, tmp_path):
    with at(12, wish(then="continue", decay_type="linear")):
        run = train(tmp_path / "run", "--trunk", *BUDGETS)
    assert same_weights(run, separate)
    (branch,) = read_run(run).branches
    assert (branch.path.name, branch.finished) == ("12-linear-4", True)
    straight = train(tmp_path / "straight", "--budgets", "16", "--decay_type", "linear")
    assert same_weights(branch.path, straight)
    assert not (run / DECISION).exists()


@pytest.mark.slow
def test_decay_past_the_planned_end_goes_on_by_itself(separate, tmp_path):
    with at(30, wish(extend=True)):
        run = train(tmp_path / "run", "--trunk", *BUDGETS)
    assert json.loads((run / DECISION).read_text())["end"] == 40
    assert same_weights(run, separate.parent / "30-1-sqrt-10")
