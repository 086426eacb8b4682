"""A job's clock, with an injected one: hf_wsd/job_clock.py."""

from __future__ import annotations

import pytest

from hf_wsd.errors import SettingsError
from hf_wsd.job_clock import JobClock
from hf_wsd.settings import Settings


class Clock:
    def __init__(self, now=1_796_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    monkeypatch.setattr(JobClock, "counted_until", 0.0)


def train(job, clock, updates, *, seconds=2.0):
    for _ in range(updates):
        clock.now += seconds
        job.updated()
    clock.now += 1
    job.saved()


def starts_after(job, clock, decay_steps):
    """Updates until the decay has to start."""
    step = 0
    while job.decay_must_start(step, lambda fork: decay_steps) is None:
        train(job, clock, 1)
        step += 1
    return step


def test_decay_starts_so_that_it_ends_before_the_time_budget(tmp_path):
    clock = Clock()
    begun = clock.now
    job = JobClock(tmp_path, Settings(time_budget="30m"), fresh=True, env={}, clock=clock)
    starts_after(job, clock, decay_steps=50)
    train(job, clock, 50)
    assert 0.95 * 1800 < clock.now - begun < 1800


def test_time_budget_counts_the_jobs_before_but_not_the_time_between_them(tmp_path):
    clock, settings = Clock(), Settings(time_budget="30m")
    train(JobClock(tmp_path, settings, fresh=True, env={}, clock=clock), clock, 300)
    clock.now += 10_000  # in a queue
    JobClock.counted_until, begun = 0.0, clock.now
    starts_after(JobClock(tmp_path, settings, env={}, clock=clock), clock, decay_steps=50)
    assert 900 < clock.now - begun < 1200 - 100


def test_date_that_is_past_is_refused_for_a_run_that_has_not_begun(tmp_path):
    settings = Settings(finish_by="2026-01-01T08:00")
    with pytest.raises(SettingsError, match="2026-01-01T08:00 is past"):
        JobClock(tmp_path, settings, fresh=True, env={}, clock=Clock())
    job, clock = JobClock(tmp_path, settings, env={}, clock=(clock := Clock())), clock
    train(job, clock, 30)
    assert job.decay_must_start(30, lambda fork: 10).late > 0


@pytest.mark.parametrize(
    ("limit", "env"), [("10m", {}), (None, {"SLURM_JOB_END_TIME": "1796000600"})], ids=["limit", "Slurm"]
)
def test_job_ends_while_there_is_time_to_save(tmp_path, limit, env):
    clock = Clock()
    job = JobClock(tmp_path, Settings(job_time_limit=limit), fresh=True, env=env, clock=clock)
    while not job.job_must_end():
        train(job, clock, 1)
    assert 540 < clock.now - 1_796_000_000 < 600 - 5


def test_job_without_an_end_never_ends(tmp_path):
    assert not JobClock(tmp_path, Settings(), fresh=True, env={}, clock=Clock()).job_must_end()


@pytest.mark.parametrize("text", ["", "{", '{"counts": {}, "pace": {}}'])
def test_damaged_times_are_begun_anew(tmp_path, text, caplog):
    (tmp_path / "_pace.json").write_text(text)
    job = JobClock(tmp_path, Settings(), env={}, clock=Clock())
    assert (job.pace.steps.count, "cannot be read" in caplog.text) == (0, True)


def test_decay_fits_the_grace_of_a_signal_only_if_the_measured_times_say_so(tmp_path):
    clock = Clock()
    job = JobClock(tmp_path, Settings(on_job_end="decay"), fresh=True, env={}, clock=clock)
    assert not job.fits_grace(1)
    train(job, clock, 100, seconds=0.1)
    assert [job.fits_grace(steps) for steps in (10, 300)] == [True, False]
