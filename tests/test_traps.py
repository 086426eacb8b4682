"""What goes wrong, mostly without a word, in other implementations: each is refused here, or cannot happen.

They were seen by running the other systems' code. Nothing here is a mock: optimizers of torch, states through files as
Trainer writes them, and short runs of the Trainer.
"""

import pytest
import torch
import transformers
from trainer_runs import FAMILY, train_here

from hf_wsd import WSDScheduler, register
from hf_wsd.baselines import cosine, cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.errors import ResumeError, ScheduleError, ShapeError
from hf_wsd.family import read_run
from hf_wsd.history import read_history
from hf_wsd.shapes import SHAPES

PEAK = 0.5
TRUNK = wsd(num_warmup_steps=10, num_decay_steps=0)
MODEL = wsd(100, num_warmup_steps=10, num_decay_steps=20)
WITH_MINIMUM = wsd(100, num_warmup_steps=10, num_decay_steps=20, min_lr_ratio=0.1)
SHAPES_WITH_A_MINIMUM = [name for name, shape in SHAPES.items() if shape.own_end is None]
SHAPES_WITH_AN_END = {"multi-step": None, "half-life": {"half_life": 5}}


def make_optimizer(peak=PEAK):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=peak)


def make_scheduler(schedule, peak=PEAK):
    return WSDScheduler(make_optimizer(peak), schedule)


def train(scheduler, updates):
    """The lr with which each update is made."""
    seen = []
    for _ in range(updates):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


@pytest.fixture
def resumed(tmp_path):
    """A scheduler that goes on from the state which another one had after some updates."""

    def resume(asked, *, stored, step, peak=PEAK):
        before = make_scheduler(stored)
        train(before, step)
        torch.save(before.optimizer.state_dict(), tmp_path / "optimizer.pt")
        torch.save(before.state_dict(), tmp_path / "scheduler.pt")
        scheduler = make_scheduler(asked, peak)
        scheduler.optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        scheduler.load_state_dict(torch.load(tmp_path / "scheduler.pt", weights_only=True))
        return scheduler

    return resume


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A Trainer's run with fork points at 15 and 30."""
    flags = ("--num_train_epochs", 9, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 1)
    return train_here(tmp_path_factory.mktemp("traps") / "run", *flags, launch=FAMILY)


def lrs(run):
    """The lr of every logged update; row n is update n - 1."""
    return {row["step"]: row["learning_rate"] for row in read_history(run) if "learning_rate" in row}


# --- lengths: transformers, OLMo-core, levanter and Megatron take a run that is too short, and its lr jumps ---


@pytest.mark.parametrize("build", [wsd, wsd_s])
def test_warmup_and_decay_longer_than_the_run_are_refused(build):
    with pytest.raises(ScheduleError, match=r"\(60\) \+ decay \(50\) = 110 steps, longer than .*100"):
        build(100, num_warmup_steps=60, num_decay_steps=50)


def test_warmup_and_decay_longer_than_the_run_are_refused_through_transformers():
    register()
    kwargs = {"num_decay_steps": 50}
    with pytest.raises(ScheduleError, match="110 steps, longer than the run of 100"):
        transformers.get_scheduler("wsd", make_optimizer(), 60, 100, scheduler_specific_kwargs=kwargs)


def test_warmup_and_decay_longer_than_the_run_are_refused_before_trainer_trains(tmp_path):
    with pytest.raises(SystemExit, match=r"warm-up \(19\) \+ decay \(2\) = 21"):
        train_here(tmp_path / "run", "--max_steps", 20, "--warmup_steps", 19)


@pytest.mark.parametrize(
    "schedule",
    [
        *(wsd(100, num_decay_steps=20, decay_type=name, min_lr_ratio=0.1) for name in SHAPES_WITH_A_MINIMUM),
        *(wsd(100, decay_type=name, decay_params=params) for name, params in SHAPES_WITH_AN_END.items()),
        *(wsd(100, num_decay_steps=20), wsd_s(cycle_ends=[50, 100]), cosine(100), multi_step(100)),
        *(cyclic_cosine(cycle_ends=[50, 100]), TRUNK),
    ],
)
def test_lr_past_the_end_stays_where_the_schedule_ends(schedule):
    """OLMo-core and torchtitan: the lr goes below 0."""
    lrs = train(make_scheduler(schedule), 300)[100:]
    assert lrs == [PEAK * schedule.segments[-1].end] * 200


# --- transformers ---


@pytest.mark.parametrize("through", [wsd, wsd_s])
def test_decay_of_a_fraction_of_a_step_is_refused_with_the_setting_that_was_meant(through):
    """transformers: num_decay_steps=0.2 is no decay, silently."""
    with pytest.raises(ScheduleError, match=r"number of steps, not 0\.2: a fraction is written decay_fraction=0\.2"):
        through(100, num_decay_steps=0.2)


def test_decay_of_a_fraction_of_a_step_is_refused_before_trainer_trains(tmp_path):
    kwargs = ("--lr_scheduler_kwargs", '{"num_decay_steps": 0.2}')
    with pytest.raises(SystemExit, match=r"a fraction is written decay_fraction=0\.2"):
        train_here(tmp_path / "run", "--max_steps", 20, *kwargs)


@pytest.mark.parametrize("build", [wsd, wsd_s, cosine, cyclic_cosine])
def test_minimum_above_the_peak_is_refused(build):
    """transformers: a min ratio of 2 warms down."""
    with pytest.raises(ScheduleError, match=r"min_lr_ratio must lie in \[0, 1\], as a part of the peak lr, not 2"):
        build(100, num_warmup_steps=10, min_lr_ratio=2)


def test_new_learning_rate_at_a_resume_is_refused(resumed):
    """transformers: it is ignored."""
    with pytest.raises(ResumeError, match=r"learning_rate 0\.5 -> 0\.1\n.* --allow learning_rate"):
        resumed(MODEL, stored=MODEL, step=50, peak=0.1)


def test_new_learning_rate_at_a_trainers_resume_is_refused(tmp_path, trunk):
    flags = ("--max_steps", 40, "--learning_rate", "5e-3", "--resume_from_checkpoint", trunk / "checkpoint-30")
    with pytest.raises(SystemExit, match=r"learning_rate 0\.01 -> 0\.005\n.* --allow learning_rate"):
        train_here(tmp_path / "run", *flags)


def test_scheduler_state_holds_the_whole_schedule(resumed):
    """transformers: scheduler.pt has no parameters of the schedule."""
    assert resumed(MODEL, stored=MODEL, step=50).state_dict()["schedule"] == MODEL.to_dict()


@pytest.mark.parametrize(
    "other",
    [
        wsd(100, num_warmup_steps=10, num_decay_steps=30),
        wsd(100, num_warmup_steps=10, num_decay_steps=20, decay_type="linear"),
        wsd(100, num_warmup_steps=10, num_decay_steps=20, min_lr_ratio=0.1, warmup_start=0),
        wsd(100, num_warmup_steps=20, num_decay_steps=20),
    ],
)
def test_resume_with_another_schedule_than_the_one_trained_is_refused(resumed, other):
    with pytest.raises(ResumeError, match=r"at step 90 was trained with another schedule .*from step \d+: "):
        resumed(other, stored=MODEL, step=90)


def test_finished_run_is_not_trained_one_update_more(tmp_path, trunk):
    """transformers: with max_steps below the checkpoint's step one update is trained, then the run exits."""
    run = tmp_path / "run"
    flags = ("--max_steps", 20, "--resume_from_checkpoint", trunk / "checkpoint-30")
    with pytest.raises(SystemExit, match=r"at step 30 and the run ends at step 20, .* Give a larger --max_steps"):
        train_here(run, *flags, launch=("--trunk",))
    assert not list(run.glob("checkpoint-*"))


def test_decayed_run_extended_as_if_it_had_not_decayed_is_refused(resumed):
    """transformers: one update at lr 0, then a jump to the peak."""
    with pytest.raises(ResumeError, match=r"from step 10: stable at 1, 70 steps . stable at 1, 90 steps"):
        resumed(wsd(200, num_warmup_steps=10, num_decay_steps=20), stored=MODEL, step=100)


def test_decayed_run_extended_as_wsd_s_makes_its_next_update_at_the_peak(resumed):
    longer = wsd_s(cycle_ends=[100, 200], num_warmup_steps=10, num_decay_steps=20, decay_type="linear", min_lr_ratio=0)
    first = wsd(100, num_warmup_steps=10, num_decay_steps=20, decay_type="linear")
    assert train(resumed(longer, stored=first, step=100), 3) == [PEAK] * 3


# --- branches: Megatron, nanotron, pytorch-accelerated ---


def test_branch_needs_no_flag_but_its_decay(resumed):
    """Megatron: the default flags assert when a branch changes the schedule."""
    assert resumed(MODEL, stored=TRUNK, step=80).intent == "branch"


def test_branch_decays_from_its_first_update_on(resumed):
    """Megatron: with the flag that takes the checkpoint's values it stays at the peak for the whole branch."""
    branch = resumed(MODEL, stored=TRUNK, step=80)
    assert train(branch, 20) == [PEAK * MODEL(u) for u in range(80, 100)]


def test_trainers_branch_decays_from_its_first_update_on(tmp_path, trunk):
    flags = ("--max_steps", 40, "--logging_steps", 1, "--lr_scheduler_kwargs", '{"num_decay_steps": 10}')
    branch = train_here(tmp_path / "branch", *flags, "--resume_from_checkpoint", trunk / "checkpoint-30")
    schedule = wsd(40, num_warmup_steps=5, num_decay_steps=10)
    assert {n: lr for n, lr in lrs(branch).items() if n > 30} == {n: 1e-2 * schedule(n - 1) for n in range(31, 41)}


@pytest.mark.parametrize("step", [81, 85, 90, 99])
@pytest.mark.parametrize("shape", SHAPES_WITH_A_MINIMUM)
def test_run_resumed_in_its_decay_has_the_lrs_of_the_straight_one(resumed, shape, step):
    """nanotron: with a minimum above 0 a resume in the decay gives other lrs."""
    model = wsd(100, num_warmup_steps=10, num_decay_steps=20, decay_type=shape, min_lr_ratio=0.1)
    assert train(resumed(model, stored=model, step=step), 100 - step) == [PEAK * model(u) for u in range(step, 100)]


@pytest.mark.parametrize("step", [10, 50])
def test_continued_run_does_not_warm_up_again(resumed, step):
    """pytorch-accelerated: it does."""
    assert train(resumed(MODEL, stored=MODEL, step=step), 20) == [PEAK] * 20


def test_first_update_has_the_first_lr_of_the_warmup():
    """pytorch-accelerated: its lr lags by one update, so the first is made at the full peak."""
    assert train(make_scheduler(MODEL), 3) == [0.0, PEAK * 0.1, PEAK * 0.2]


# --- checkpoints: torchtitan ---


def test_fork_points_outlive_the_checkpoints_that_a_limit_deletes(trunk):
    """torchtitan: keep_latest_k deletes the checkpoints that branches would leave."""
    assert [path.name for path in trunk.glob("checkpoint-*")] == ["checkpoint-30"]
    assert list(saved_checkpoints(trunk)) == [15, 30]


def test_fork_points_hold_what_a_branch_needs(trunk):
    """torchtitan: checkpoints of the model alone."""
    needed = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "wsd.json"}
    kept = [{file.name for file in path.iterdir()} for path in saved_checkpoints(trunk).values()]
    assert [needed - files for files in kept] == [set(), set()]


def test_trunk_that_would_save_the_model_alone_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no branch could leave this trunk"):
        train_here(tmp_path / "run", "--max_steps", 20, "--save_only_model", "True", launch=("--trunk",))


# --- shapes ---


@pytest.mark.parametrize("steps", [0, 20])
def test_unknown_shape_is_refused_at_once_even_for_a_trunk(steps):
    """torchtitan: it is an error when the decay starts."""
    with pytest.raises(ShapeError, match="unknown decay shape 'linar': did you mean 'linear'"):
        wsd(100, num_decay_steps=steps, decay_type="linar")


def test_unknown_shape_of_a_trunks_later_decays_is_refused_before_trainer_trains(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(SystemExit, match="did you mean 'linear'"):
        train_here(run, "--max_steps", 20, launch=("--trunk", "--decay-type", "linar"))
    assert not list(run.glob("checkpoint-*"))


@pytest.mark.parametrize("minimum", [None, 0])
@pytest.mark.parametrize("shape", ["exponential", "inverse"])
def test_shape_that_cannot_reach_zero_is_refused_there(shape, minimum):
    """epfml: exp with the default final lr of 0 trains the whole decay at lr 0."""
    with pytest.raises(ShapeError, match=rf"the {shape} shape .*cannot run from 1 to 0: give min_lr_ratio > 0"):
        wsd(100, decay_type=shape, min_lr_ratio=minimum)


@pytest.mark.parametrize("shape", SHAPES_WITH_A_MINIMUM)
def test_every_shape_keeps_to_the_minimum(shape):
    """pytorch_optimizer: only the cosine does."""
    steps = 100_000
    model = wsd(steps, num_decay_steps=steps, decay_type=shape, min_lr_ratio=0.1)
    assert min(model.multipliers()) >= 0.1
    assert model(steps - 1) == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(("shape", "params"), SHAPES_WITH_AN_END.items())
def test_shape_that_would_ignore_a_minimum_refuses_it(shape, params):
    with pytest.raises(ShapeError, match=r"ends by itself at .* leave min_lr_ratio out"):
        wsd(100, decay_type=shape, decay_params=params, min_lr_ratio=0.2)


# --- defaults ---


def test_decay_is_a_tenth_of_the_run_if_nothing_is_said():
    """LLaMA-Factory: a third of the run is stable, two thirds decay."""
    model = wsd(1000, num_warmup_steps=100)
    assert [model(u) for u in (100, 500, 899)] == [1.0] * 3
    assert model(901) < 1
    assert model.checkpoint_steps() == {900: "pre-decay", 1000: "post-decay"}


def test_trainers_run_of_which_nothing_is_said_decays_in_its_last_tenth(tmp_path):
    run = train_here(tmp_path / "run", "--max_steps", 20)
    assert read_run(run).latest.schedule == wsd(20, num_warmup_steps=5, decay_fraction=0.1)


def test_settings_that_another_scheduler_would_ignore_are_refused(tmp_path):
    """transformers: keywords that a scheduler does not take are a bare TypeError, or nothing at all."""
    with pytest.raises(SystemExit, match=r"decay_fraction would be ignored: the script's scheduler is linear"):
        train_here(
            tmp_path / "run", "--max_steps", 5, "--lr_scheduler_type", "linear", launch=("--decay-fraction", 0.2)
        )
