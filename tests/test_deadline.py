"""The start of a decay that ends before a deadline, against simulated machines: hf_wsd/deadline.py, hf_wsd/pace.py."""

import json
import random
from math import exp, inf, log, sqrt

import pytest

from hf_wsd.deadline import Deadline
from hf_wsd.lengths import total_for_fork
from hf_wsd.pace import Pace, Work

EVAL_EVERY, SAVE_EVERY = 250, 500
SEEDS = range(20)


class Machine:
    """A clock that moves on by random times: steps of 1 s that vary by 30 %, of which 1 in 500 stalls for 20-60 s."""

    def __init__(self, seed, drift=lambda step: 1.0):
        self.random, self.drift, self.now = random.Random(seed), drift, 0.0
        self.sigma = sqrt(log(1 + 0.3**2))

    def passes(self, mean):
        seconds = mean * exp(self.random.gauss(-(self.sigma**2) / 2, self.sigma))
        self.now += seconds
        return seconds

    def step(self, step, first):
        seconds = self.passes(self.drift(step) * (1 if first >= 3 else 20 / (1 + first)))
        stall = self.random.uniform(19, 59) if self.random.random() < 1 / 500 else 0.0
        self.now += stall
        return seconds + stall


def train(machine, seconds, decay_steps, job_seconds=inf):
    """Train until the decayed model is saved, in jobs that save and stop before their end; return its fork point."""
    step, fork, end, pace = 0, None, inf, Pace()

    def due(every, until):
        return until // every - (step - 1) // every + (until % every > 0)

    def ahead(fork):
        end = fork + decay_steps(fork)
        return Work(
            steps=end - step,
            evaluations=due(EVAL_EVERY, end),
            saves=due(SAVE_EVERY, end) + (fork % SAVE_EVERY > 0),
        )

    while step < end:
        deadline = Deadline(seconds, machine.now + job_seconds, job_seconds)
        pace = Pace.from_dict(json.loads(json.dumps(pace.to_dict())))
        pace.start(machine.passes(60))
        first = step
        while step < end and machine.now + pace.needed(Work(steps=1, evaluations=1, saves=2)) <= deadline.job_end:
            pace.step(machine.step(step, step - first))
            step += 1
            if fork is None and deadline.decide(step, machine.now, pace, ahead):
                fork, end = step, step + decay_steps(step)
            if step % EVAL_EVERY == 0 or step == end:
                pace.evaluation(machine.passes(15))
            if step % SAVE_EVERY == 0 or step in (fork, end):
                pace.save(machine.passes(8))
        if step < end:
            pace.save(machine.passes(8))
    return fork


def tenth(fork):
    """Steps of a decay of 10 % of the decayed model."""
    return total_for_fork(fork, 0.1) - fork


def use_of(seconds, machine, decay_steps=tenth, job_seconds=inf):
    """The part of the time that was used, up to the saved decayed model."""
    train(machine, seconds, decay_steps, job_seconds)
    return machine.now / seconds


def after(n):
    return [pytest.param(seed, marks=pytest.mark.slow if seed >= n else ()) for seed in SEEDS]


# --- on a clock of random times all ends in time, and 95 % of the time are used ---


@pytest.mark.parametrize("seed", after(2))
def test_decay_ends_in_time_and_uses_95_percent(seed):
    assert 0.95 <= use_of(8000, Machine(seed)) <= 1


@pytest.mark.parametrize("seed", after(1))
def test_decay_of_a_run_in_jobs_ends_in_time_and_uses_95_percent(seed):
    assert 0.95 <= use_of(8000, Machine(seed), job_seconds=3000) <= 1


@pytest.mark.parametrize("seed", after(0))
def test_decay_ends_in_time_where_steps_get_30_percent_slower_halfway(seed):
    assert 0.95 <= use_of(8000, Machine(seed, lambda step: 1.3 if step >= 3500 else 1.0)) <= 1


@pytest.mark.parametrize("seed", after(0))
def test_decay_ends_in_time_where_steps_get_slower_all_the_time(seed):
    assert 0.95 <= use_of(8000, Machine(seed, lambda step: 1 + 0.3 * step / 7000)) <= 1


@pytest.mark.parametrize("seed", after(0))
def test_decay_of_fixed_length_ends_in_time_and_uses_95_percent(seed):
    assert 0.95 <= use_of(12000, Machine(seed), decay_steps=lambda fork: 800) <= 1


# --- one decision ---


def steady(steps=1000, seconds=1.0):
    """The pace of a machine on which every step takes as long."""
    pace = Pace()
    for _ in range(steps):
        pace.step(seconds)
    return pace


def fixed(decay_steps, step=1000):
    return lambda fork: Work(steps=fork - step + decay_steps)


def test_decay_starts_at_the_first_step_after_which_it_would_not_fit():
    pace, deadline = steady(), Deadline(5000.0)
    clock = range(4000, 5000)
    first = next(now for now in clock if deadline.decide(1000, now, pace, fixed(300)))
    needed = pace.needed(Work(steps=301))
    assert first - 1 + needed <= 5000 < first + needed


def test_decay_that_grows_with_its_fork_starts_earlier_than_a_fixed_one():
    def grows(fork):
        return Work(steps=fork - 1000 + fork)  # a decay of half the model

    deadline = Deadline(1000 + steady().needed(grows(1001)) - 0.01)
    decisions = [deadline.decide(1000, 1000.0, steady(), ahead) for ahead in (grows, fixed(1000))]
    assert [decision is not None for decision in decisions] == [True, False]


def test_decay_that_cannot_fit_starts_at_once_and_says_by_how_much():
    start = Deadline(1200.0).decide(1000, 1000.0, steady(), fixed(300))
    assert (start.left, start.expected, start.late) == pytest.approx((200, 300, 100))


def test_decay_in_time_is_not_late():
    assert Deadline(1301.0).decide(1000, 1000.0, steady(), fixed(300)).late == 0


def test_nothing_is_decided_before_steps_were_measured():
    assert Deadline(1.0).decide(3, 1000.0, steady(steps=3), fixed(300, step=3)) is None


def test_steps_that_fit_are_the_most_that_do():
    pace, deadline = steady(), Deadline(1200.0)
    fit = deadline.steps_that_fit(1000.0, pace, Work(steps=300, saves=2))
    needed = [pace.needed(Work(steps=steps, saves=2)) for steps in (fit, fit + 1)]
    assert needed[0] <= 200 < needed[1]


def test_no_step_fits_after_the_deadline():
    assert Deadline(1000.0).steps_that_fit(1001.0, steady(), Work(steps=300)) == 0


@pytest.mark.parametrize(("job_end", "ends"), [(1200.0, 1), (1090.0, 2), (1900.0, 0)])
def test_every_job_end_in_the_decay_costs_a_save_and_a_start(job_end, ends):
    pace = steady()
    pace.save(5.0)
    start = Deadline(1300.0, job_end, 200.0).decide(1000, 1000.0, pace, fixed(300))
    assert start.expected == pytest.approx(300 + ends * (5 + 5))


def test_jobs_shorter_than_their_start_never_end_in_time():
    pace = steady()
    pace.start(100.0)
    assert Deadline(2000.0, 1010.0, 1.0).decide(1000, 1000.0, pace, fixed(300)).late > 0
