"""What of a family is published, and under which names: hf_wsd/revisions.py."""

import re

import pytest

from hf_wsd.builders import wsd
from hf_wsd.errors import PublishError
from hf_wsd.family import read_run
from hf_wsd.lineage import BRANCHES, Lineage
from hf_wsd.revisions import revisions

TRUNK = wsd(num_warmup_steps=10, num_decay_steps=0)


def save(run, step, saved_at, **told):
    checkpoint = run / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    record = Lineage(step=step, tokens_per_step=1000, tokens=step * 1000, saved_at=saved_at, **told)
    record.write(checkpoint)
    (checkpoint / "model.safetensors").touch()


@pytest.fixture
def family(tmp_path):
    """A trunk with a fork point at 60; two branches that end at 80, `a` after `b`."""
    save(tmp_path, 60, "2026-01-01T00:00:00+00:00", kind="fork", schedule=TRUNK)
    for name, day in (("a", 3), ("b", 2)):
        schedule = TRUNK.fork(60, decay_steps=20)
        told = {"schedule": schedule, "last_step": 80, "intent": "branch"}
        branch = tmp_path / BRANCHES / name
        save(branch, 80, f"2026-01-0{day}T00:00:00+00:00", kind="post-decay", **told)
        Lineage(step=60, kind="planned", tokens_per_step=1000, **told).write(branch)
    return tmp_path


def test_of_two_models_of_one_step_the_first_finished_has_the_short_name(family):
    names = {one.name: one.run.path.name for one in revisions(read_run(family))}
    assert names == {"decay-step80-tokens80K": "b", "decay-step80-tokens80K-a": "a"}


def test_fork_points_come_when_they_are_asked_for_and_before_what_left_them(family):
    names = [one.name for one in revisions(read_run(family), stable={60})]
    assert names == ["stable-step60-tokens60K", "decay-step80-tokens80K", "decay-step80-tokens80K-a"]


def test_a_step_without_a_fork_point_is_refused_with_those_that_there_are(family):
    with pytest.raises(PublishError, match=re.escape("at step 61 in") + ".*" + re.escape("those of step 60")):
        revisions(read_run(family), stable={61})
