"""The measured times of a run and what they tell about work to come: hf_wsd/pace.py."""

import json
import math
import random
import statistics

import pytest

from hf_wsd.errors import RecordError
from hf_wsd.pace import Pace, Work


def told(*steps, evaluations=(), saves=()):
    """A pace after start-up that was told these times."""
    pace = Pace()
    for seconds in [0.0] * 5 + list(steps):
        pace.step(seconds)
    for seconds in evaluations:
        pace.evaluation(seconds)
    for seconds in saves:
        pace.save(seconds)
    return pace


def stored(pace):
    return Pace.from_dict(json.loads(json.dumps(pace.to_dict())))


def around(mean, n, seed=0):
    return [mean * random.Random(seed + i).uniform(0.7, 1.3) for i in range(n)]


def variance(seconds):
    """Of the values, and of one more that is half the mean away."""
    mean = statistics.fmean(seconds)
    return (sum((one - mean) ** 2 for one in seconds) + mean**2 / 4) / len(seconds)


# --- what the estimates are ---


def test_expected_is_the_sum_of_means():
    pace = told(*[2.0] * 100, evaluations=[10.0, 20.0], saves=[7.0])
    assert pace.expected(Work(steps=50, evaluations=3, saves=2)) == pytest.approx(50 * 2 + 3 * 15 + 2 * 7)


def test_needed_is_the_stated_formula():
    steps, evaluations = around(1.0, 150), around(20.0, 6)
    stalls = [30.0, 50.0]
    pace = told(*steps, *[stall + 1 for stall in stalls], evaluations=evaluations)
    expected = pace.expected(Work(steps=60, evaluations=2))
    length = pace.stalls.mean
    part = 60 / 152
    under_the_root = (
        60 * (1 + 60 / 150) * variance(steps)
        + 2 * (1 + 2 / 6) * variance(evaluations)
        + (2 + 1) * part * (1 + part) * (length**2 + pace.stalls.variance)
    )
    assert pace.needed(Work(steps=60, evaluations=2)) == pytest.approx(
        expected + 3 * math.sqrt(under_the_root) + pace.stalls.longest
    )


def test_stalls_count_by_how_often_they_came():
    pace = told(*[1.0] * 399, 41.0)
    assert pace.expected(Work(steps=200)) == pytest.approx(200 + 40 * 200 / 400)


def test_kind_never_measured_is_taken_for_30_steps():
    pace = told(*[2.0] * 100)
    assert pace.expected(Work(steps=10, evaluations=1, saves=2)) == pytest.approx(10 * 2 + 3 * 60)


def test_one_slow_save_raises_what_is_needed_by_more_than_its_part_of_the_mean():
    usual, slow = (told(*[1.0] * 100, saves=[5.0] * 9 + [last]) for last in (5.0, 50.0))
    assert slow.needed(Work(steps=10, saves=2)) - usual.needed(Work(steps=10, saves=2)) > 40


# --- first steps and stalls do not spoil the mean, a drift moves it ---


def test_first_five_steps_of_a_process_count_as_its_start():
    pace = Pace()
    pace.start(30.0)
    for seconds in [60.0, 20.0, 5.0, 3.0, 2.0] + [1.0] * 50:
        pace.step(seconds)
    assert (pace.starts.mean, pace.steps.mean, pace.steps.longest) == (120.0, 1.0, 1.0)


@pytest.mark.parametrize("at", [0, 7, 60])
def test_stall_is_no_usual_step_wherever_it_comes(at):
    steps = [1.0] * 100
    steps[at] = 40.0
    pace = told(*steps)
    assert (pace.usual, pace.stalls.count, pace.stalls.mean) == (1.0, 1, 39.0)


@pytest.mark.parametrize("slower", [1.3, 8.0])
def test_steps_that_stay_slower_are_the_usual_ones_after_200(slower):
    pace = told(*[1.0] * 3000, *[slower] * 200)
    assert pace.usual == pytest.approx(slower)


def test_every_second_told_is_spent():
    pace = told(*[1.0] * 100, 40.0, evaluations=[10.0], saves=[5.0])
    pace.start(30.0)
    assert pace.spent == 185.0


# --- from one job to the next ---


def test_stored_pace_expects_the_same():
    pace = told(*around(1.0, 700), *around(1.3, 300), 40.0, evaluations=around(20.0, 30), saves=around(5.0, 12))
    work = Work(steps=500, evaluations=5, saves=3, starts=1)
    assert stored(pace).expected(work) == pytest.approx(pace.expected(work))


@pytest.mark.parametrize(("speed", "own_steps"), [(1.5, 200), (0.6, 4000)])
def test_new_job_comes_to_expect_its_own_pace(speed, own_steps):
    pace = stored(told(*[1.0] * 50_000))
    for _ in range(own_steps + 5):
        pace.step(speed)
    assert pace.usual == pytest.approx(speed, rel=0.05)


def test_time_spent_goes_on_from_job_to_job():
    pace = stored(told(*[1.0] * 100))
    pace.start(30.0)
    assert pace.spent == 130.0


@pytest.mark.parametrize(
    "damage",
    [
        {"seen": "many"},
        {"usual": math.nan},
        {"spent": -1.0},
        {"steps": None},
        {"steps": {"count": 3, "median": 1.0}},
        {"saves": {"mean": math.inf}},
    ],
    ids=str,
)
def test_damaged_pace_is_refused(damage):
    with pytest.raises(RecordError, match="no pace of a run"):
        Pace.from_dict(told(1.0).to_dict() | damage)
