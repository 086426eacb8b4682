"""The start of a decay that ends before a deadline, against simulated machines: hf_wsd/deadline.py, hf_wsd/pace.py."""

import json
import random
from math import exp, inf, log, sqrt

import pytest

from hf_wsd.deadline import Deadline
from hf_wsd.errors import RecordError
from hf_wsd.lengths import total_for_fork
from hf_wsd.pace import Pace, Work

EVAL_EVERY, SAVE_EVERY = 250, 500
SEEDS = range(20)


class Machine:
    """A clock that moves on by random times: a step takes 1 s on average and varies by 30 %, 1 in 500 stalls for 20-60 s."""

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
