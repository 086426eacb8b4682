"""Going back before a loss spike and on without some batches: hf_wsd/rewinding.py and hf_wsd/moved.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers
from packaging.version import Version
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from trainer_runs import ROOT, command, same_weights, train, train_here
from transformers import TrainingArguments

from hf_wsd.builders import wsd
from hf_wsd.errors import DataError, ForkError, RunError
from hf_wsd.family import read_run
from hf_wsd.forking import prepare
from hf_wsd.lineage import Lineage
from hf_wsd.moved import MovedSampler, move_data, move_to_end, refuse_moved_data
from hf_wsd.rewinding import rewound

SCRIPT = ROOT / "tests" / "downstream" / "train_and_list.py"  # 40 blocks
CLI = ("-m", "hf_wsd.cli")
SAVES = ("--warmup_steps", 2, "--save_strategy", "steps", "--save_steps", 4)
TRUNK = ("--trunk", "--budgets", 8, 30, "--decay-fraction", 0.2)  # forks at 6 and 24


def seen(run: Path) -> dict[int, list[int]]:
    """The blocks of each update, of all processes in their order."""
    updates: dict[int, list[int]] = {}
    parts = [list(map(json.loads, file.read_text().splitlines())) for file in sorted(run.glob("seen-*.jsonl"))]
    for micro_batches in zip(*parts, strict=True):  # the processes take turns
        for update, blocks in micro_batches:
            updates.setdefault(update, []).extend(blocks)
    return updates


def moved(updates: dict[int, list[int]], *spans: tuple[int, int], per_epoch: int) -> dict[int, list[int]]:
    """The slow, obvious version: the same with the updates of each span at the end of their epoch."""
    batches = [updates[update] for update in sorted(updates)]
    for start, stop in spans:
        end = (start // per_epoch + 1) * per_epoch
        batches[start:end] = batches[stop:end] + batches[start:stop]
    return dict(enumerate(batches))


def train_rewound(branch, *flags):
    """The rewound run as its user may start it by hand, in this process."""
    prepare(branch)
    resume = ("--max_steps", branch.end, "--resume_from_checkpoint", branch.checkpoint)
    return train_here(branch.folder, *SAVES, *flags, *resume, launch=TRUNK, script=SCRIPT)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A trunk of 30 updates: three epochs of ten."""
    run = tmp_path_factory.mktemp("trunk") / "run"
    return train_here(run, *SAVES, "--max_steps", 30, launch=TRUNK, script=SCRIPT)


@pytest.fixture
def copy(trunk, tmp_path):
    return Path(shutil.copytree(trunk, tmp_path / "run"))


# --- which batches ---


def test_batches_of_the_updates_that_are_skipped_come_at_the_end_of_their_epoch(copy):
    run = train_rewound(rewound(read_run(copy), to="12", skip="3"))
    expected = moved(seen(copy), (12, 15), per_epoch=10)
    assert seen(run) == {update: blocks for update, blocks in expected.items() if update >= 12}
    record = read_run(run).latest
    assert (record.intent, record.moved_data, record.parent.step) == ("rewind", ((12, 15),), 12)


@pytest.mark.slow
def test_run_rewound_twice_passes_over_both(copy):
    once = train_rewound(rewound(read_run(copy), to="12", skip="3"))
    twice = train_rewound(rewound(read_run(once), to="16", skip="2"))
    assert read_run(twice).latest.moved_data == ((12, 15), (16, 18))
    expected = moved(seen(copy), (12, 15), (16, 18), per_epoch=10)
    assert seen(twice) == {update: blocks for update, blocks in expected.items() if update >= 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "per_epoch"),
    [
        pytest.param(("--gradient_accumulation_steps", 3, "--per_device_train_batch_size", 2), 7, id="accumulation"),
        pytest.param(("--dataloader_num_workers", 2, "--dataloader_persistent_workers", "True"), 10, id="workers"),
    ],
)
def test_batches_are_those_of_the_updates_however_the_loader_deals_them(tmp_path, flags, per_epoch):
    whole = train_here(tmp_path / "run", *SAVES, *flags, "--max_steps", 30, launch=TRUNK, script=SCRIPT)
    run = train_rewound(rewound(read_run(whole), to="4", skip="2"), *flags)
    before, after = seen(whole), {update: seen(whole)[update] for update in range(4)} | seen(run)
    samples, end = len(before[0]), 40  # the last update of an epoch may have fewer
    orders = [[block for update in sorted(updates) for block in updates[update]] for updates in (before, after)]
    assert len([block for update in range(per_epoch) for block in before[update]]) == end
    assert orders[1][:end] == list(move_to_end(orders[0][:end], (4 * samples, 6 * samples)))
    assert orders[1][end:] == orders[0][end:]


@pytest.mark.slow
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="before 5.18 transformers resumes no run of several processes on CPU: it loads the optimizer to cpu:0",
)
def test_batches_of_two_processes_are_moved_together(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "hf_wsd")
    flags = ("--lr_scheduler_type", "wsd", "--per_device_train_batch_size", 2, "--use_cpu", "--report_to", "none")
    run = tmp_path / "run"
    argv = [*torchrun, *TRUNK, SCRIPT, "--output_dir", run, *flags, *SAVES, "--max_steps", 24]
    command(argv, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    command([*CLI, "rewind", run, "--to", 12, "--skip", 3])
    expected = moved(seen(run), (12, 15), per_epoch=10)
    again = seen(run / "_branches" / "rewind-12-skip-3")
    assert again == {update: blocks for update, blocks in expected.items() if update >= 12}


# --- exactly ---


@pytest.mark.slow
def test_rewound_run_its_resume_and_its_branch_are_the_straight_run_in_that_order(tmp_path):
    run = train(tmp_path / "run", *SAVES, "--max_steps", 24, launch=TRUNK, script=SCRIPT)
    command([*CLI, "rewind", run, "--to", 12, "--skip", 3])
    again = run / "_branches" / "rewind-12-skip-3"
    whole = Path(shutil.copytree(again, tmp_path / "whole"))
    for folder in again.glob("**/checkpoint-2*"):  # as a kill at step 17 leaves it
        shutil.rmtree(folder)
    command([*CLI, "rewind", run, "--to", 12, "--skip", 3])
    assert same_weights(again / "checkpoint-24", whole / "checkpoint-24")
    command([*CLI, "decay", again])
    (branch,) = read_run(again).branches
    assert (branch.path.name, branch.latest.moved_data) == ("24-1-sqrt-6", ((12, 15),))

    order = tmp_path / "order.json"
    batches = {update: seen(run)[update] for update in range(12)} | seen(whole) | seen(branch.path)
    order.write_text(json.dumps([block for update in sorted(batches) for block in batches[update]]))
    flags = ("--order", order, *SAVES, "--max_steps", 30)
    straight = train_here(tmp_path / "straight", *flags, launch=TRUNK[-2:], script=SCRIPT)
    assert same_weights(again / "checkpoint-24", straight / "checkpoint-24")
    assert same_weights(branch.path / "checkpoint-30", straight / "checkpoint-30")


def test_rewound_run_is_a_family_of_its_own_and_says_what_it_passes_over(copy):
    prepare(rewound(read_run(copy), to="12", skip="3"))
    run = read_run(copy)
    assert [member.path.name for member in run.walk()] == ["run", "rewind-12-skip-3"]
    assert [member.path.name for member in run.walk(rewound=False)] == ["run"]
    assert run.branches[0].changed == "without the batches of updates 12-14"


# --- refused ---


def test_step_without_a_checkpoint_is_refused_with_those_that_are_there(trunk):
    with pytest.raises(ForkError, match=r"no checkpoint at step 13. Saved: 4, 6, 8, 12, 16, 20, 24, 28, 30"):
        rewound(read_run(trunk), to="13", skip="3")


def test_last_batches_of_an_epoch_are_refused(trunk):
    with pytest.raises(ForkError, match=r"updates 16-19 are the last of their epoch \(of 10 updates\).*fewer than 4"):
        rewound(read_run(trunk), to="16", skip="4")


@pytest.mark.slow
def test_script_that_starts_before_the_point_is_refused(copy):
    branch = rewound(read_run(copy), to="12", skip="3")
    prepare(branch)
    earlier = ("--max_steps", 30, "--resume_from_checkpoint", copy / "checkpoint-8")
    with pytest.raises(SystemExit, match=r"rewound to step 12, but the script starts at step 8: give .*checkpoint-12"):
        train_here(branch.folder, *SAVES, *earlier, launch=TRUNK, script=SCRIPT)


def test_stream_is_refused(tmp_path):
    loader = DataLoader((block for block in range(40)), batch_size=4)
    with pytest.raises(DataError, match="updates 12-14 cannot be passed over: a stream has no order"):
        move_data(loader, [(12, 15)], TrainingArguments(str(tmp_path), use_cpu=True), step=12)


def test_loop_of_ones_own_is_refused():
    with pytest.raises(RunError, match="only a run with a Trainer can"):
        refuse_moved_data(Lineage(step=12, kind="periodic", schedule=wsd(100), moved_data=((12, 15),)))


# --- the sampler ---


def test_moved_sampler_moves_in_the_epochs_that_are_asked_for_alone():
    sampler = MovedSampler(SequentialSampler(range(6)), {1: [(0, 2), (1, 2)]}, epoch=0)
    assert [list(sampler) for _ in range(3)] == [[*range(6)], [2, 4, 5, 0, 1, 3], [*range(6)]]


def test_moved_sampler_is_the_sampler_inside_for_the_rest():
    inner = BatchSampler(SequentialSampler(range(6)), 2, drop_last=False)
    sampler = MovedSampler(inner, {}, epoch=0)
    assert (len(sampler), sampler.batch_size, hasattr(sampler, "set_epoch")) == (3, 2, False)
