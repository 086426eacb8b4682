"""From a published revision to a run that goes on from it: a hub on loopback, and the recipe as its user runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from datasets.config import HF_DATASETS_CACHE
from hub_server import HubServer
from test_recipe import TINY, pretrain_here
from trainer_runs import ROOT, same_weights

from hf_wsd.errors import RunError, SettingsError
from hf_wsd.family import read_run
from hf_wsd.fetching import read_spec
from hf_wsd.lineage import RECORD, Lineage

REPO, STABLE, BARE, DECAY = "tester/small", "stable-step30-tokens3.8K", "stable-step15-tokens1.9K", "decay-step40"
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
PEAK = 5e-3
PRETRAIN = ROOT / "recipes" / "pretrain.py"
FETCH = """
import sys
from pathlib import Path
from hf_wsd.errors import WSDError
from hf_wsd.fetching import fetch
for spec in sys.argv[3:]:
    try:
        print(fetch(spec, Path(sys.argv[1]), anew=sys.argv[2] == "anew"))
    except WSDError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A trunk of 45 steps with fork points at 15, 30 and 45, every loss logged, and its decay from 30 to 40."""
    folder = tmp_path_factory.mktemp("local")
    flags = ("--logging_steps", 1)
    trunk = pretrain_here(folder / "trunk", "--trunk", "--budgets", "2.56K", "5.12K", "7.68K", *flags)
    resume = ("--resume_from_checkpoint", trunk / "_fork-points" / "checkpoint-30")
    pretrain_here(folder / "branch", "--budgets", "5.12K", *resume, *flags)
    return folder


@pytest.fixture
def hub(tmp_path, local):
    """A hub with a fork point that has its optimizer state, one that has none, and a decayed model."""
    with HubServer(tmp_path / "server") as server:
        server.storage.create(REPO, True)
        publish(server, STABLE, local / "trunk" / "_fork-points" / "checkpoint-30")
        publish(server, BARE, local / "trunk" / "_fork-points" / "checkpoint-15", leave_out=STATE)
        publish(server, DECAY, local / "branch" / "checkpoint-40", leave_out=STATE)
        server.git(REPO, "branch", "other", "main")
        yield server


def publish(server, revision, checkpoint, leave_out=()):
    """Commit what others need of a checkpoint; its record says neither how nor where it was trained."""
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.name != "training_args.bin"}
    record = Lineage.read(checkpoint)
    public = checkpoint.parent / f"public-{revision}"
    public.mkdir(exist_ok=True)
    replace(record, command=None, parent=None).write(public)
    files |= {RECORD: (public / RECORD).read_bytes(), "README.md": b"# small"}
    server.git(REPO, "branch", revision, "main")
    server.commit(REPO, revision, {name: content for name, content in files.items() if name not in leave_out})


def run(server, *argv):
    """Python with these arguments, as a client of the hub."""
    env = server.environment(OMP_NUM_THREADS="1", HF_DATASETS_CACHE=str(HF_DATASETS_CACHE))
    return subprocess.run([sys.executable, *map(str, argv)], env=env, capture_output=True, text=True, check=False)


def pretrain(server, folder, *flags, revision=STABLE, start=()):
    """The recipe, from a published fork point; what it printed."""
    flags = (*TINY, "--decay_fraction", "0.25", "--logging_steps", "1", *flags)
    ran = run(server, *start, PRETRAIN, "--output_dir", folder, "--fork_from", f"{REPO}@{revision}", *flags)
    return ran.returncode, ran.stdout + ran.stderr


def fetch(server, folder, *revisions, anew=False):
    """What `fetch` gives for revisions of the repository, one after the other: a path or an error."""
    specs = [f"{REPO}@{revision}" for revision in revisions]
    return run(server, "-c", FETCH, folder, "anew" if anew else "exactly", *specs).stdout.splitlines()


def losses(folder):
    return {row["step"]: row["loss"] for row in read_run(folder).history if "loss" in row}


# --- the spec ---


@pytest.mark.parametrize("spec", ["me/small", "small@main", "me/small@", "https://hub/me/small@main"])
def test_spec_that_is_none_is_refused_with_an_example(spec):
    with pytest.raises(SettingsError, match="write USER/NAME@REVISION, such as me/small@stable-step800"):
        read_spec(spec)


def test_two_places_to_start_from_are_refused(tmp_path):
    flags = ("--fork_from", "me/small@main", "--resume_from_checkpoint", "elsewhere", "--budgets", "20")
    with pytest.raises(SettingsError, match="are two places to start from: keep one"):
        pretrain_here(tmp_path / "mine", *flags)


# --- from a revision with its optimizer state ---


@pytest.mark.slow
def test_branch_of_a_published_fork_point_has_the_bits_of_a_local_one(tmp_path, hub, local):
    status, told = pretrain(hub, tmp_path / "mine", "--budgets", "5.12K")
    assert status == 0, told
    mine, branch = read_run(tmp_path / "mine").latest, read_run(local / "branch").latest
    assert same_weights(tmp_path / "mine" / "checkpoint-40", local / "branch" / "checkpoint-40")
    assert (mine.losses, mine.intent, mine.sameness) == (branch.losses, "branch", branch.sameness)
    assert losses(tmp_path / "mine") == losses(local / "branch")
    assert mine.parent.checkpoint == f"{REPO}@{hub.refs(REPO)[STABLE]}"


@pytest.mark.slow
def test_longer_trunk_and_its_branches_have_the_bits_of_those_at_home(tmp_path, hub, local):
    mine = tmp_path / "mine"
    fetch(hub, mine / "_fetched", STABLE)
    pretrain_here(mine, "--fork_from", f"{REPO}@{STABLE}", "--budgets", "5.12K", "7.68K")  # forks at 30 and 45
    branch = mine / "_branches" / "30-1-sqrt-10" / "checkpoint-40"
    assert read_run(mine).latest.intent == "extend"
    assert same_weights(mine / "checkpoint-45", local / "trunk" / "checkpoint-45")
    assert same_weights(branch, local / "branch" / "checkpoint-40")


@pytest.mark.slow
def test_trunk_from_a_fork_point_can_be_decayed_there(tmp_path, hub, local):
    mine = tmp_path / "mine"
    fetch(hub, mine / "_fetched", STABLE)
    ran = pretrain(hub, mine, "--trunk", "--budgets", "5.12K", "7.68K")
    decayed = run(hub, "-m", "hf_wsd.cli", "decay", mine, "--at", 30, "--decay-steps", 10)
    assert (ran[0], decayed.returncode) == (0, 0), ran[1] + decayed.stderr
    assert same_weights(mine / "_branches" / "30-1-sqrt-10" / "checkpoint-40", local / "branch" / "checkpoint-40")


@pytest.mark.slow
def test_second_process_asks_the_hub_for_nothing(tmp_path, hub):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    half = ("--per_device_train_batch_size", "2", "--allow", "world_size", "per_device_train_batch_size", "threads")
    status, told = pretrain(hub, tmp_path / "mine", "--budgets", "5.12K", *half, start=torchrun)
    assert status == 0, told
    assert len(hub.requests) == len(set(hub.requests))
    assert read_run(tmp_path / "mine").latest.sameness["level"] == "same samples"


@pytest.mark.slow
def test_run_that_left_another_fork_point_is_not_gone_on_with(tmp_path, hub):
    fetch(hub, tmp_path / "mine" / "_fetched", STABLE)
    fetch(hub, tmp_path / "mine" / "_fetched", BARE, anew=True)
    flags = ("--budgets", "5.12K")
    pretrain_here(tmp_path / "mine", "--fork_from", f"{REPO}@{STABLE}", *flags)
    with pytest.raises(RunError, match=f"was begun from {REPO}@[0-9a-f]+, not from {REPO}@{BARE}"):
        pretrain_here(tmp_path / "mine", "--fork_from", f"{REPO}@{BARE}", *flags, "--rewarmup_steps", "0")


# --- without ---


@pytest.mark.slow
def test_revision_without_optimizer_state_says_what_is_lost_before_its_weights_come(tmp_path, hub):
    status, told = pretrain(hub, tmp_path / "mine", "--budgets", "5.12K", revision=BARE)
    assert (status, "moments and the random generators are lost" in told) == (1, True)
    assert not [path for _, path in hub.requests if "safetensors" in path]


@pytest.mark.slow
def test_new_optimizer_has_the_data_of_the_trunk_and_the_lrs_asked_for(tmp_path, hub, local):
    flags = ("--budgets", "5.12K", "--rewarmup_steps", "5")
    status, told = pretrain(hub, tmp_path / "mine", *flags, revision=BARE)
    assert status == 0, told
    mine = read_run(tmp_path / "mine")
    lrs = {row["step"]: row["learning_rate"] for row in mine.history if "learning_rate" in row}
    assert [lrs[step] for step in range(16, 23)] == pytest.approx(
        [PEAK * part for part in (0, 0.2, 0.4, 0.6, 0.8, 1, 1)]
    )
    assert losses(tmp_path / "mine")[16] == losses(local / "trunk")[16]  # the same weights, the same batch
    assert mine.latest.sameness["changes"] == {"optimizer_state": "trained -> new at step 15"}
    assert (mine.latest.schedule.total_steps, mine.latest.tokens) == (40, 40 * 128)


@pytest.mark.slow
def test_repeated_command_does_not_climb_again(tmp_path, hub):
    flags = ("--fork_from", f"{REPO}@{BARE}", "--rewarmup_steps", "5", "--trunk")
    fetch(hub, tmp_path / "whole" / "_fetched", BARE, anew=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "begun")
    whole = pretrain_here(tmp_path / "whole", *flags, "--budgets", "5.12K", "7.68K")
    begun = pretrain_here(tmp_path / "begun", *flags, "--budgets", "5.12K")
    pretrain_here(begun, *flags, "--budgets", "5.12K", "7.68K")
    assert same_weights(begun / "checkpoint-45", whole / "checkpoint-45")
    latest = read_run(begun).latest
    assert (latest.intent, latest.sameness["changes"]) == (
        "extend",
        {"optimizer_state": "trained -> new at step 15"},
    )


# --- fetching ---


@pytest.mark.slow
def test_download_that_broke_off_leaves_no_checkpoint_and_goes_on(tmp_path, hub):
    hub.fault(20, "drop", lasting=True)
    (told,) = fetch(hub, tmp_path, STABLE)
    came = {path for method, path in hub.requests[:19] if method == "GET" and "/resolve/" in path}
    assert ("could not be fetched" in told, list(tmp_path.glob("*/checkpoint-*"))) == (True, [])
    hub.heal()
    begin = len(hub.requests)
    (path,) = fetch(hub, tmp_path, STABLE)
    again = came & {path for method, path in hub.requests[begin:] if method == "GET"}
    assert (len(came) > 1, again) == (True, set())
    there = {file.name: file.read_bytes() for file in Path(path).iterdir() if file.name != RECORD}
    assert there == {name: content for name, content in hub.files(REPO, STABLE).items() if name in there}
    assert {*STATE, "model.safetensors"} <= there.keys()


@pytest.mark.slow
def test_what_was_fetched_once_is_not_asked_for_again(tmp_path, hub):
    first = fetch(hub, tmp_path, STABLE)
    begin = len(hub.requests)
    assert (fetch(hub, tmp_path, STABLE), hub.requests[begin:]) == (first, [])


@pytest.mark.slow
def test_revision_that_cannot_be_gone_on_from_says_why(tmp_path, hub):
    told = fetch(hub, tmp_path, "stable-step31", "other", DECAY)
    assert told[0].startswith(f"{REPO} has no revision stable-step31: did you mean '{STABLE}'? Fork points: ")
    assert told[1] == f"{REPO}@other has no wsd.json: it is no revision that `hf-wsd publish` has made"
    assert "at step 40: fork from a stable- revision" in told[2]
    (told,) = fetch(hub, tmp_path, STABLE, anew=True)
    assert "has its optimizer state, so the run goes on from it exactly: leave --rewarmup_steps out" in told
