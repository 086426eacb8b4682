"""A schedule on a torch optimizer: hf_wsd/scheduler.py. Equality with transformers is in test_builders.py."""

import copy

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers.trainer_utils import SchedulerType

from hf_wsd.baselines import cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.errors import ResumeError, SettingsError, WSDError
from hf_wsd.scheduler import WSDScheduler, find_wsd_scheduler, get_scheduler

TRUNK = wsd(num_warmup_steps=10, num_decay_steps=0)
MODEL = wsd(100, num_warmup_steps=10, num_decay_steps=20)
FIRST_CYCLE = wsd_s(cycle_ends=[100], num_warmup_steps=10)
TWO_CYCLES = wsd_s(cycle_ends=[100, 200], num_warmup_steps=10)


def make_optimizer(*peaks):
    return torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in peaks or (0.5,)])


def make_scheduler(schedule, *peaks):
    return WSDScheduler(make_optimizer(*peaks), schedule)


def current_lrs(scheduler):
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def train(scheduler, updates):
    """Make updates; the lrs of each (of the one group, if there is one)."""
    seen = []
    for _ in range(updates):
        lrs = current_lrs(scheduler)
        seen.append(lrs[0] if len(lrs) == 1 else tuple(lrs))
        for group in scheduler.optimizer.param_groups:
            group["params"][0].grad = torch.ones(2)
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def trained(schedule, updates, *peaks):
    scheduler = make_scheduler(schedule, *peaks)
    train(scheduler, updates)
    return scheduler


@pytest.fixture
def saved(tmp_path):
    """The states of a scheduler and its optimizer, through files as Trainer writes and reads them."""

    def save(scheduler):
        states = []
        for part, name in ((scheduler, "scheduler.pt"), (scheduler.optimizer, "optimizer.pt")):
            torch.save(part.state_dict(), tmp_path / name)
            states.append(torch.load(tmp_path / name, weights_only=True))
        return states

    return save


def resume(scheduler, states, order):
    for part in order:
        if part == "scheduler":
            scheduler.load_state_dict(states[0])
        else:
            scheduler.optimizer.load_state_dict(states[1])
    return scheduler


ORDERS = [
    ("optimizer", "scheduler"),
    ("scheduler", "optimizer"),
    ("optimizer", "scheduler", "optimizer"),
    ("scheduler",),
]
orders = pytest.mark.parametrize("order", ORDERS, ids=" ".join)


# --- stepping ---


def test_every_group_has_its_own_peak():
    lrs = train(make_scheduler(MODEL, 0.5, 0.01), 100)
    assert lrs == [(0.5 * MODEL(u), 0.01 * MODEL(u)) for u in range(100)]


def test_new_scheduler_is_a_start_at_step_0():
    scheduler = make_scheduler(MODEL)
    assert (scheduler.intent, scheduler.steps_done) == ("start", 0)


def test_steps_done_counts_the_steps():
    assert trained(MODEL, 7).steps_done == 7


def test_last_lr_is_that_of_the_next_update():
    scheduler = trained(MODEL, 85)
    assert scheduler.get_last_lr() == current_lrs(scheduler) == [0.5 * MODEL(85)]


def test_step_after_the_last_update_is_no_error():
    assert current_lrs(trained(MODEL, 130)) == [0.0]


def test_last_epoch_begins_where_torch_says():
    optimizer = make_optimizer(0.5)
    optimizer.param_groups[0]["initial_lr"] = 0.5
    assert current_lrs(WSDScheduler(optimizer, MODEL, last_epoch=89)) == [0.5 * MODEL(90)]


# --- what other programs look for ---


def test_scheduler_is_an_lr_scheduler():
    assert isinstance(make_scheduler(MODEL), LRScheduler)


def test_scheduler_cannot_be_called():
    assert not callable(make_scheduler(MODEL))  # DeepSpeed takes a callable for a factory


def test_scheduler_has_no_total_steps():
    assert not hasattr(make_scheduler(MODEL), "total_steps")  # accelerate's wrapper would stop stepping there


# --- states ---


def test_state_is_plain_and_complete(saved):
    scheduler = trained(MODEL, 30, 0.5, 0.01)
    assert saved(scheduler)[0] == scheduler.state_dict()


@orders
@pytest.mark.parametrize("step", [1, 5, 10, 50, 80, 90, 99])
def test_resumed_run_has_the_lrs_of_the_uninterrupted_one(saved, order, step):
    resumed = resume(make_scheduler(MODEL, 0.5, 0.01), saved(trained(MODEL, step, 0.5, 0.01)), order)
    assert train(resumed, 100 - step) == [(0.5 * MODEL(u), 0.01 * MODEL(u)) for u in range(step, 100)]


@orders
def test_wsd_s_goes_on_at_the_peak_from_a_decayed_checkpoint(saved, order):
    resumed = resume(make_scheduler(TWO_CYCLES), saved(trained(FIRST_CYCLE, 100)), order)
    assert current_lrs(resumed) == [0.5]


@orders
def test_branch_has_the_lrs_of_the_straight_run(saved, order):
    branch = resume(make_scheduler(MODEL), saved(trained(TRUNK, 80)), order)
    assert train(branch, 21) == [0.5 * MODEL(u) for u in range(80, 101)]


@orders
def test_resumed_state_is_that_of_the_uninterrupted_run(saved, order):
    uninterrupted = trained(MODEL, 90)
    assert resume(make_scheduler(MODEL), saved(uninterrupted), order).state_dict() == uninterrupted.state_dict()


def test_optimizer_that_never_had_a_scheduler_gets_the_lrs_of_this_one():
    scheduler = trained(MODEL, 90)
    scheduler.optimizer.load_state_dict(make_optimizer(0.4).state_dict())
    (group,) = scheduler.optimizer.param_groups
    assert (group["lr"], group["initial_lr"]) == (0.5 * MODEL(90), 0.5)


def test_resume_keeps_the_optimizers_state(saved):
    states = saved(trained(MODEL, 90))
    resumed = resume(make_scheduler(MODEL), states, ORDERS[0])
    moments = resumed.optimizer.state_dict()["state"][0]
    assert all(torch.equal(moments[name], states[1]["state"][0][name]) for name in moments)


@pytest.mark.parametrize(
    ("stored", "asked", "step", "intent"),
    [
        (MODEL, MODEL, 90, "continue"),
        (TRUNK, MODEL, 80, "branch"),
        (FIRST_CYCLE, TWO_CYCLES, 100, "extend"),
    ],
)
def test_resume_knows_what_it_is(saved, stored, asked, step, intent):
    resumed = make_scheduler(asked)
    resumed.load_state_dict(saved(trained(stored, step))[0])
    assert resumed.intent == intent


def test_lr_kept_in_a_tensor_stays_that_tensor(saved):
    """A compiled optimizer reads its lr from the tensor it was compiled with."""
    state, _ = saved(trained(MODEL, 85))
    lr = torch.tensor(0.5)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr)
    WSDScheduler(optimizer, MODEL).load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] is lr


def test_deep_copy_goes_on_by_itself():
    scheduler = trained(MODEL, 82)
    twin = copy.deepcopy(scheduler)
    train(scheduler, 5)
    assert train(twin, 3) == [0.5 * MODEL(u) for u in (82, 83, 84)]


# --- parameter groups ---

TO_A_TENTH = wsd(100, num_warmup_steps=10, num_decay_steps=20, num_min_steps=5, min_lr_ratio=0.1)
PEAKS = (0.5, 0.01, 3e-4)


def test_groups_with_peaks_of_their_own_follow_one_schedule():
    lrs = train(make_scheduler(TO_A_TENTH, *PEAKS), 100)
    assert lrs == [tuple(peak * TO_A_TENTH(u) for peak in PEAKS) for u in range(100)]


def test_minimum_is_a_part_of_each_groups_own_peak():
    assert current_lrs(trained(TO_A_TENTH, 97, *PEAKS)) == [0.1 * peak for peak in PEAKS]


def test_last_lrs_are_one_a_group():
    scheduler = trained(TO_A_TENTH, 85, *PEAKS)
    assert scheduler.get_last_lr() == current_lrs(scheduler) == [peak * TO_A_TENTH(85) for peak in PEAKS]


@orders
@pytest.mark.parametrize("step", [5, 50, 85, 97])
def test_resumed_groups_have_their_own_lrs(saved, order, step):
    resumed = resume(make_scheduler(TO_A_TENTH, *PEAKS), saved(trained(TO_A_TENTH, step, *PEAKS)), order)
    assert train(resumed, 100 - step) == [tuple(peak * TO_A_TENTH(u) for peak in PEAKS) for u in range(step, 100)]


@orders
def test_branch_decays_every_group_from_its_own_peak(saved, order):
    branch = resume(make_scheduler(MODEL, *PEAKS), saved(trained(TRUNK, 80, *PEAKS)), order)
    assert train(branch, 20) == [tuple(peak * MODEL(u) for peak in PEAKS) for u in range(80, 100)]


def test_peak_changed_in_one_group_is_refused(saved):
    states = saved(trained(MODEL, 50, *PEAKS))
    with pytest.raises(ResumeError, match=r"learning_rate 0\.01 -> 0\.02\n.*--allow learning_rate"):
        make_scheduler(MODEL, 0.5, 0.02, 3e-4).load_state_dict(states[0])


@pytest.mark.parametrize("peaks", [(0.5,), (0.5, 0.01), (0.5, 0.01, 3e-4, 3e-4)])
def test_another_number_of_groups_is_refused_with_their_peaks(saved, peaks):
    states = saved(trained(MODEL, 50, *PEAKS))
    with pytest.raises(
        ResumeError, match=rf"3 parameter groups \(peak lr 0\.5, .*this run has {len(peaks)} \(peak lr 0\.5"
    ):
        make_scheduler(MODEL, *peaks).load_state_dict(states[0])


def test_optimizer_of_another_number_of_groups_is_refused(saved):
    states = saved(trained(MODEL, 50, *PEAKS))
    with pytest.raises(ValueError, match="different number of parameter groups"):  # torch's own refusal
        make_scheduler(MODEL, 0.5, 0.01).optimizer.load_state_dict(states[1])


def test_group_added_after_the_scheduler_is_refused():
    scheduler = trained(MODEL, 5, 0.5)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1})
    with pytest.raises(WSDError, match="group"):
        scheduler.step()


def test_state_loaded_after_a_group_was_added_is_refused(saved):
    states = saved(trained(MODEL, 50, 0.5))
    scheduler = make_scheduler(MODEL, 0.5)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1})
    with pytest.raises(WSDError, match="group"):
        scheduler.load_state_dict(states[0])


def test_state_refused_for_an_added_group_changes_nothing(saved):
    states = saved(trained(MODEL, 50, 0.5))
    scheduler = make_scheduler(MODEL, 0.5)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1})
    with pytest.raises(ValueError):  # noqa: PT011 - which error is another test's matter
        scheduler.load_state_dict(states[0])
    assert (scheduler.steps_done, scheduler.intent) == (0, "start")


# --- stock transformers reads our checkpoints ---


def test_stock_lambda_lr_goes_on_from_our_state(saved):
    kwargs = {"num_warmup_steps": 10, "num_training_steps": 100, "num_decay_steps": 20, "decay_type": "1-sqrt"}
    stock = transformers.get_wsd_schedule(make_optimizer(0.5), **kwargs)
    states = saved(trained(MODEL, 85))
    stock.optimizer.load_state_dict(states[1])
    stock.load_state_dict(states[0])
    assert train(stock, 15) == [0.5 * MODEL(u) for u in range(85, 100)]


# --- refusals ---


@pytest.mark.parametrize(
    ("stored", "asked", "step", "where"),
    [
        (TRUNK, MODEL, 90, "from step 10: stable at 1, 80 steps . stable at 1, 70 steps"),
        (MODEL, wsd(100, num_warmup_steps=20, num_decay_steps=20), 50, "from step 0: warmup linear 0 -> 1, 10 steps"),
    ],
)
def test_another_past_is_refused_with_the_difference(saved, stored, asked, step, where):
    states = saved(trained(stored, step))
    with pytest.raises(ResumeError, match=f"checkpoint at step {step} was trained with another schedule.*{where}"):
        make_scheduler(asked).load_state_dict(states[0])


def test_changed_learning_rate_is_refused_with_the_repair(saved):
    states = saved(trained(MODEL, 50, 0.5))
    with pytest.raises(
        ResumeError, match=r"\(checkpoint -> now\):\n  learning_rate 0\.5 -> 0\.4\n.*--allow learning_rate"
    ):
        make_scheduler(MODEL, 0.4).load_state_dict(states[0])


@pytest.mark.parametrize("peaks", [(0.5, 0.5), (0.01, 0.5)])
def test_other_peaks_of_parameter_groups_are_refused(saved, peaks):
    states = saved(trained(MODEL, 50, 0.5, 0.01))
    with pytest.raises(ResumeError, match=r"learning_rate .*0\.01 -> 0\.5"):
        make_scheduler(MODEL, *peaks).load_state_dict(states[0])


def test_state_of_another_scheduler_is_refused_with_the_repair():
    stock = transformers.get_constant_schedule(make_optimizer(0.5))
    with pytest.raises(ResumeError, match=r"another scheduler wrote it.*Resume it with the scheduler that trained it"):
        make_scheduler(MODEL).load_state_dict(stock.state_dict())


def test_refused_state_changes_nothing(saved):
    states = saved(trained(MODEL, 50, 0.5))
    scheduler = trained(MODEL, 3, 0.4)
    before = copy.deepcopy(scheduler.state_dict())
    with pytest.raises(ResumeError):
        scheduler.load_state_dict(states[0])
    assert (scheduler.state_dict(), scheduler.intent) == (before, "start")


@pytest.mark.parametrize("name", ["last_epoch", "base_lrs", "schedule"])
def test_state_without_a_part_is_refused(name):
    state = make_scheduler(MODEL).state_dict()
    del state[name]
    with pytest.raises(WSDError):
        make_scheduler(MODEL).load_state_dict(state)


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 1.5])
@pytest.mark.parametrize("name", ["last_epoch", "base_lrs", "schedule"])
def test_state_with_a_damaged_part_is_refused(name, value):
    state = make_scheduler(MODEL).state_dict() | {name: value}
    with pytest.raises(WSDError):
        make_scheduler(MODEL).load_state_dict(state)


@pytest.mark.parametrize("state", [None, [], 5, {}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ResumeError):
        make_scheduler(MODEL).load_state_dict(state)


# --- accelerate ---


@pytest.fixture
def accelerator():
    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()

    forget()
    yield Accelerator(cpu=True)
    forget()


def test_prepared_scheduler_steps_with_its_optimizer(accelerator):
    scheduler = make_scheduler(MODEL)
    optimizer, prepared = accelerator.prepare(scheduler.optimizer, scheduler)
    seen = []
    for _ in range(100):
        seen.append(scheduler.optimizer.param_groups[0]["lr"])
        optimizer.step()
        prepared.step()
    assert seen == [0.5 * MODEL(u) for u in range(100)]


def test_prepared_scheduler_is_found_inside_its_wrapper(accelerator):
    scheduler = make_scheduler(MODEL)
    _, prepared = accelerator.prepare(scheduler.optimizer, scheduler)
    assert find_wsd_scheduler(prepared) is scheduler


@pytest.mark.parametrize("order", ORDERS[:3], ids=" ".join)
def test_prepared_run_resumes_at_the_peak(accelerator, saved, order):
    states = saved(trained(FIRST_CYCLE, 100))
    scheduler = make_scheduler(TWO_CYCLES)
    optimizer, prepared = accelerator.prepare(scheduler.optimizer, scheduler)
    for part in order:
        if part == "scheduler":
            prepared.load_state_dict(states[0])
        else:
            optimizer.load_state_dict(states[1])
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_scheduler_made_on_a_prepared_optimizer_resumes_at_the_peak(accelerator, saved):
    states = saved(trained(FIRST_CYCLE, 100))
    optimizer = accelerator.prepare(make_optimizer(0.5))
    scheduler = WSDScheduler(optimizer, TWO_CYCLES)
    scheduler.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    assert optimizer.param_groups[0]["lr"] == 0.5


# --- find_wsd_scheduler ---


class Wrapper:
    def __init__(self, scheduler):
        self.scheduler = scheduler


def test_scheduler_is_found_inside_wrappers():
    scheduler = make_scheduler(MODEL)
    assert find_wsd_scheduler(Wrapper(Wrapper(scheduler))) is scheduler


@pytest.mark.parametrize("other", [None, object(), Wrapper(None)])
def test_where_there_is_no_scheduler_of_ours_none_is_found(other):
    assert find_wsd_scheduler(other) is None


def test_stock_scheduler_is_not_ours():
    assert find_wsd_scheduler(Wrapper(LambdaLR(make_optimizer(0.5), lambda u: 1.0))) is None


def test_wrapper_of_itself_is_refused():
    endless = Wrapper(None)
    endless.scheduler = endless
    with pytest.raises(SettingsError, match="wrapped more than eight times"):
        find_wsd_scheduler(endless)


# --- get_scheduler ---


def test_get_scheduler_makes_ours_by_name():
    made = get_scheduler("wsd", make_optimizer(0.5), 10, 100, {"num_decay_steps": "20"})
    assert made.schedule == MODEL


def test_get_scheduler_makes_wsd_s_by_name():
    made = get_scheduler("wsd_s", make_optimizer(0.5), 10, 200, {"cycle_ends": ["100", 200]})
    assert made.schedule == TWO_CYCLES


def test_get_scheduler_makes_cyclic_cosine_by_name():
    made = get_scheduler("cyclic_cosine", make_optimizer(0.5), 10, 200, {"cycle_ends": ["100", 200]})
    assert made.schedule == cyclic_cosine(cycle_ends=[100, 200], num_warmup_steps=10)


def test_get_scheduler_makes_multi_step_by_name():
    made = get_scheduler("multi_step", make_optimizer(0.5), 10, 200, {"multipliers": "0.5 0.25"})
    assert made.schedule == multi_step(200, num_warmup_steps=10, multipliers=[0.5, 0.25])


def test_get_scheduler_makes_a_trunk_without_a_length():
    made = get_scheduler("wsd", make_optimizer(0.5), 10, scheduler_specific_kwargs={"num_decay_steps": 0})
    assert made.schedule == TRUNK


def test_get_scheduler_needs_no_warmup():
    assert get_scheduler("wsd", make_optimizer(0.5), num_training_steps=100).schedule == wsd(100)


@pytest.mark.parametrize("name", ["cosine", SchedulerType.COSINE])
def test_any_other_name_is_transformers_own(name):
    ours = get_scheduler(name, make_optimizer(0.5), 10, 100)
    theirs = transformers.get_scheduler("cosine", make_optimizer(0.5), 10, 100)
    assert train(ours, 100) == train(theirs, 100)


@pytest.mark.parametrize("name", ["num_warmup_steps", "num_training_steps", "name", "optimizer", "last_epoch"])
def test_argument_given_again_in_the_kwargs_is_refused(name):
    with pytest.raises(SettingsError, match=name):
        get_scheduler("wsd", make_optimizer(0.5), 10, 100, {name: 5})


def test_unknown_setting_is_answered_with_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'decay_fraction'"):
        get_scheduler("wsd", make_optimizer(0.5), 10, 100, {"decay_fractoin": 0.2})


@pytest.mark.parametrize("steps", ["10", 0.1, -1, float("nan")])
def test_warmup_that_is_no_count_is_refused(steps):
    with pytest.raises(WSDError, match="num_warmup_steps"):
        get_scheduler("wsd", make_optimizer(0.5), steps, 100)
