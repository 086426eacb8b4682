"""Settings of the optimizer that change with the decay: `hf-wsd decay --optimizer`, `--decay-optimizer`."""

from __future__ import annotations

import shutil

import pytest
import torch
from trainer_runs import FAMILY, command, same_weights, train, train_here

from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import ResumeError, SettingsError
from hf_wsd.family import read_run
from hf_wsd.lineage import Lineage
from hf_wsd.overrides import use_in_decay
from hf_wsd.scheduler import WSDScheduler

ASKED = {"beta2": 0.9, "weight_decay": 0.5}


def adamw():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    return torch.optim.AdamW([{"params": [matrix]}, {"params": [vector], "weight_decay": 0.0}], weight_decay=0.1)


def in_use(optimizer):
    return [(group["betas"], group["weight_decay"]) for group in optimizer.param_groups]


def test_first_update_of_the_decay_is_the_first_that_has_them_and_vectors_keep_no_weight_decay():
    optimizer = adamw()
    scheduler = WSDScheduler(optimizer, wsd(10, num_decay_steps=4))
    use_in_decay(scheduler, ASKED, None)
    after = []
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        after.append(in_use(optimizer))
    assert after[:6] == 6 * [[((0.9, 0.999), 0.1), ((0.9, 0.999), 0.0)]]  # the sixth is what the fork point saves
    assert after[6:] == 4 * [[((0.9, 0.9), 0.5), ((0.9, 0.9), 0.0)]]


def test_decay_that_a_running_job_is_asked_for_has_them_too():
    optimizer, trunk = adamw(), wsd(None, num_decay_steps=0)
    scheduler = WSDScheduler(optimizer, trunk)
    use_in_decay(scheduler, ASKED, None)
    after = []
    for step in range(1, 5):
        optimizer.step()
        scheduler.step()
        after.append(in_use(optimizer)[0])
        if step == 2:
            scheduler.decide(trunk.fork(2, decay_steps=2), 2)
    assert after == 2 * [((0.9, 0.999), 0.1)] + 2 * [((0.9, 0.9), 0.5)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"beta3": 0.9}, "unknown setting of the optimizer 'beta3': did you mean .* Known: beta1, beta2, eps, weight_"),
        ({"lr": 0.1}, "lr=0.1: the lr is the schedule's"),
        ({"beta2": 1.0}, "beta2=1.0: it must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1: it must be at least 0"),
        ({"eps": float("nan")}, "eps=nan"),
    ],
)
def test_what_the_optimizer_cannot_have_is_refused(asked, message):
    scheduler = WSDScheduler(adamw(), wsd(10, num_decay_steps=4))
    with pytest.raises(SettingsError, match=message):
        use_in_decay(scheduler, asked, None)


def test_weight_decay_that_no_group_would_get_is_refused():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], weight_decay=0.0)
    with pytest.raises(SettingsError, match="no parameter group has a weight decay"):
        use_in_decay(WSDScheduler(optimizer, wsd(10, num_decay_steps=4)), {"weight_decay": 0.1}, None)


def test_line_of_several_decays_is_refused():
    scheduler = WSDScheduler(adamw(), wsd_s(cycle_ends=[10, 20], num_decay_steps=4))
    with pytest.raises(SettingsError, match="the line has 2 decays"):
        use_in_decay(scheduler, ASKED, None)


@pytest.mark.parametrize(("step", "refused"), [(6, False), (7, True)])
def test_decay_that_was_begun_with_others_is_refused(step, refused):
    schedule = wsd(10, num_decay_steps=4)
    before = Lineage(step=step, kind="periodic", schedule=schedule, optimizer=ASKED)
    scheduler = WSDScheduler(adamw(), schedule)
    if refused:
        with pytest.raises(ResumeError, match=r"begun with beta2=0.9 weight_decay=0.5, this run asks for nothing"):
            use_in_decay(scheduler, {}, before)
    else:
        assert use_in_decay(scheduler, {}, before) == {}


# --- real runs ---

FLAGS = ("--weight_decay", 0.1, "--save_strategy", "steps", "--save_steps", 6)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    return train(tmp_path_factory.mktemp("family") / "run", "--num_train_epochs", 9, *FLAGS, launch=FAMILY)


@pytest.mark.slow
def test_branch_equals_the_straight_run_also_after_a_kill_and_stands_beside_its_control(trunk, tmp_path):
    launch = ("--decay-fraction", 0.25, "--decay-optimizer", "beta2=0.9", "weight_decay=0.5")
    straight = train_here(tmp_path / "straight", "--max_steps", 40, *FLAGS, launch=launch)
    decay = ("-m", "hf_wsd.cli", "decay", trunk, "--budgets", 40, "--control", "--optimizer", *launch[-2:])
    command([*decay])
    control, branch = (one.path for one in read_run(trunk).branches)
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")
    assert not same_weights(control / "checkpoint-40", straight / "checkpoint-40")
    for folder in (branch, branch / "_fork-points"):
        shutil.rmtree(folder / "checkpoint-40")
    command([*decay])
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")
    records = [one.latest for one in read_run(trunk).branches]
    assert [(record.optimizer, record.sameness["level"]) for record in records] == [({}, "bitwise"), (ASKED, "bitwise")]
