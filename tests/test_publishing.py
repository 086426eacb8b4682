"""`hf-wsd publish` against a hub with real git repositories (tests/hub_server.py): whole revisions, nothing private."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pretrain
import pytest
from hub_server import HubServer
from test_recipe import TINY
from trainer_runs import ROOT, command_line, same_weights

from hf_wsd.bundle import Page, make_bundle, verify
from hf_wsd.errors import PublishError
from hf_wsd.family import read_run
from hf_wsd.history import append_history
from hf_wsd.lineage import Lineage
from hf_wsd.revisions import revisions

REPO = "tester/family"
FAMILY = ("--budgets", "20", "40", "--decay_fraction", "0.25", "--disable_tqdm", "True")
DECAYS = {"decay-step20-tokens2.6K": 20, "decay-step40-tokens5.1K": 40}
STABLE = "stable-step30-tokens3.8K"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A family by the recipe: fork points 15 and 30, decays to 20 and 40."""
    run = tmp_path_factory.mktemp("somebodys-folder") / "run"
    with command_line("pretrain.py", "--output_dir", run, *TINY, *FAMILY):
        pretrain.main()
    return run


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(params=["regular", "lfs"])
def hub(request, tmp_path):
    with HubServer(tmp_path / "hub", request.param) as server:
        yield server


def publish(hub, run, *flags, check=True, **environment):
    argv = [sys.executable, "-m", "hf_wsd.cli", "publish", run, "--repo", REPO, *flags]
    environment = hub.environment(OMP_NUM_THREADS="1", **environment)
    done = subprocess.run([*map(str, argv)], env=environment, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


# --- what arrives ---


LOAD = """
import json, sys
from blocks import DataArguments, load_blocks, load_tokenizer
from safetensors.torch import load_file
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, Trainer, default_data_collator
from pretrain import PretrainingArguments, metrics
import hf_wsd
hf_wsd.register()
repo, revisions, flags = json.loads(sys.argv[1])
parser = HfArgumentParser((DataArguments, PretrainingArguments))
data, args, _ = parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
told = {}
for revision, checkpoint in revisions.items():
    model = AutoModelForCausalLM.from_pretrained(repo, revision=revision)
    tokenizer = AutoTokenizer.from_pretrained(repo, revision=revision)
    there, here = model.state_dict(), AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    blocks = load_blocks(data, tokenizer, args.main_process_first)[1]
    compute, preprocess = metrics(tokenizer)
    measured = {"compute_metrics": compute, "preprocess_logits_for_metrics": preprocess, "eval_dataset": blocks}
    trainer = Trainer(model=model, args=args, data_collator=default_data_collator, **measured)
    loss = trainer.evaluate()["eval_loss"]
    told[revision] = there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there), loss
print(json.dumps(told))
"""


@pytest.mark.slow
def test_every_revision_loads_elsewhere_with_the_weights_and_the_loss_that_it_had_here(run, hub, tmp_path):
    publish(hub, run, "--stable", "all", "--with-optimizer")
    published = {found.name: found for found in revisions(read_run(run), stable=None)}
    wanted = {name: str(found.checkpoint) for name, found in published.items()}
    last = list(DECAYS)[-1]
    wanted["main"] = wanted[last]
    flags = ["--output_dir", str(tmp_path / "evaluation"), *map(str, TINY)]
    environment = hub.environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT / "recipes"))
    argv = [sys.executable, "-c", LOAD, json.dumps([REPO, wanted, flags])]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = {name: [True, found.losses["loss"]] for name, found in published.items()}
    assert json.loads(done.stdout.splitlines()[-1]) == losses | {"main": losses[last]}


@pytest.mark.slow
def test_a_repeated_command_sends_what_changed_and_nothing_else(run, hub):
    publish(hub, run)
    before = hub.refs(REPO)
    assert {*before} == {"main", *DECAYS, *(f"{name}-v1" for name in DECAYS)}
    asked = len(hub.requests)
    assert "unchanged" in publish(hub, run).stderr
    assert [request for request in hub.requests[asked:] if request[1].find("/commit/") > 0] == []
    publish(hub, run, "--license", "apache-2.0")
    after = hub.refs(REPO)
    assert {*after} == {*before, *(f"{name}-v2" for name in DECAYS)}
    assert hub.git(REPO, "diff", "--name-only", before["main"], after["main"]).split() == ["README.md"]


@pytest.mark.slow
def test_dry_run_lists_files_and_commits_and_changes_nothing(run, hub):
    told = json.loads(publish(hub, run, "--dry-run", "--json").stdout)
    assert [(row["revision"], row["commits"]) for row in told["revisions"]] == [*((n, 1) for n in DECAYS), ("main", 1)]
    assert "model.safetensors" in told["revisions"][0]["added"]
    assert {method for method, _ in hub.requests} == {"GET"}
    assert not (run / "_published.json").exists()


@pytest.mark.slow
def test_nothing_that_is_published_names_this_machine_its_user_or_a_secret(run, hub, tmp_path, monkeypatch):
    config = run / "_branches" / "30-1-sqrt-10" / "_fork-points" / "checkpoint-40" / "config.json"
    text = json.loads(config.read_text()) | {"_name_or_path": str(tmp_path / "base"), "note": f"see {tmp_path}/x"}
    config.unlink()  # a hard link
    config.write_text(json.dumps(text))
    for folder in run.glob("**/checkpoint-*"):
        record = Lineage.read(folder)
        told = {"note": "by jdoe of hf_" + "aB1" * 11, "run_name": "jdoe-try"}
        Lineage.from_dict(record.to_dict() | {"settings": {**record.settings, **told}}).write(folder)
    publish(hub, run, "--stable", "all", "--with-optimizer", LOGNAME="jdoe", USER="jdoe")
    private = [str(tmp_path), str(run), str(Path.home()) + "/", "jdoe", "aB1aB1", hub.token, "somebodys-folder"]
    found = [
        (revision, name, word)
        for revision in hub.refs(REPO)
        for name, content in hub.files(REPO, revision).items()
        for word in private
        if word.encode() in content
    ]
    assert found == []


# --- a hub that breaks off ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "fault", "first"), [("regular", "drop", 1), ("lfs", "drop-after", 2), ("lfs", "500", 3)]
)
def test_a_connection_that_breaks_at_any_request_leaves_no_half_revision(run, tmp_path, mode, fault, first):
    """Each request breaks in one way; with BREAK=all in all three, which takes minutes."""
    first, step = (1, 1) if os.environ.get("BREAK") == "all" else (first, 3)
    words = ("broken_connections.py", run, tmp_path / "hub", mode, fault, first, step, STABLE, [*DECAYS][-1])
    argv = [sys.executable, ROOT / "tests" / words[0], *words[1:]]
    paths = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "recipes", ROOT)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, argv)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert int(done.stdout.split()[-2]) >= 8


@pytest.mark.slow
def test_what_somebody_else_has_changed_is_not_overwritten(run, hub):
    publish(hub, run)
    theirs = hub.commit(REPO, "main", {"README.md": b"better words"})
    refused = publish(hub, run, check=False)
    assert (refused.returncode, "which was not published from this run" in refused.stderr) == (1, True)
    assert hub.refs(REPO)["main"] == theirs
    assert "main: failed" in publish(hub, run, "--status").stdout
    publish(hub, run, "--overwrite")
    assert hub.files(REPO, "main") == hub.files(REPO, [*DECAYS][-1])


# --- at the end of a decay ---


PUSH = ("--push_to_hub", "True", "--hub_model_id", REPO, "--learning_rate", "1e-2")


def pretrain_there(hub, run, *flags):
    """A family by the recipe in a process that sees the hub."""
    argv = [sys.executable, ROOT / "recipes" / "pretrain.py", "--output_dir", run, *TINY, *FAMILY, *flags]
    return subprocess.run(
        [*map(str, argv)], env=hub.environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_each_decayed_model_is_pushed_when_its_decay_ends(hub, tmp_path):
    done = pretrain_there(hub, tmp_path / "run", *PUSH)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {*hub.refs(REPO)} == {"main", *DECAYS, *(f"{name}-v1" for name in DECAYS)}
    assert hub.files(REPO, "main") == hub.files(REPO, [*DECAYS][-1])
    assert hub.storage.private(REPO)


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_push_that_fails_leaves_training_alone_and_is_listed_and_made_good(hub, tmp_path):
    hub.storage.create(REPO, private=True)
    theirs = hub.commit(REPO, "main", {"README.md": b"somebody's"})
    plain, pushed = tmp_path / "plain", tmp_path / "pushed"
    assert pretrain_there(hub, plain, *PUSH[-2:]).returncode == 0
    done = pretrain_there(hub, pushed, *PUSH)
    assert (done.returncode, f"a push to {REPO} failed" in done.stderr) == (0, True)
    branch = Path("_branches") / "30-1-sqrt-10" / "checkpoint-40"
    assert same_weights(plain / branch, pushed / branch)
    assert (hub.refs(REPO)["main"], {*DECAYS} <= {*hub.refs(REPO)}) == (theirs, True)
    assert "main: failed" in publish(hub, pushed, "--status").stdout
    publish(hub, pushed, "--overwrite")
    assert "main: published" in publish(hub, pushed, "--status").stdout


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_trainers_own_push_of_every_save_is_refused_until_it_is_allowed(hub, tmp_path):
    done = pretrain_there(hub, tmp_path / "a", *PUSH, "--hub_strategy", "every_save")
    assert (done.returncode, "would push every save to main" in done.stderr) == (1, True)
    assert {*hub.refs(REPO)} == {"main"}
    allowed = ("--hub_strategy", "every_save", "--allow", "push_every_save")
    assert pretrain_there(hub, tmp_path / "b", *PUSH, *allowed).returncode == 0
    assert "model.safetensors" in hub.files(REPO, "main")


# --- what is refused ---


def bundle(run, name, folder, **page):
    family = revisions(read_run(run), stable=None)
    revision = next(found for found in family if found.name == name)
    folder.mkdir()
    return revision, make_bundle(revision, Page(repo=REPO, siblings=family, **page), folder)


@pytest.mark.slow
def test_a_file_of_no_known_kind_is_refused_until_it_is_named(run, tmp_path):
    (run / "_fork-points" / "checkpoint-30" / "notes.txt").write_text("mine")
    with pytest.raises(PublishError, match=r"files of no known kind: notes.txt. --include notes.txt publishes"):
        bundle(run, STABLE, tmp_path / "a")
    assert "notes.txt" not in bundle(run, STABLE, tmp_path / "b", exclude=["notes.txt"])[1]
    assert "notes.txt" in bundle(run, STABLE, tmp_path / "c", include=["notes.txt"])[1]


@pytest.mark.slow
def test_a_run_whose_loss_was_no_number_is_refused(run, tmp_path):
    append_history(run / "_branches" / "15-1-sqrt-5", {"step": 17, "loss": float("nan")})
    with pytest.raises(PublishError, match="has diverged: loss was nan at step 17"):
        bundle(run, next(iter(DECAYS)), tmp_path / "a")


@pytest.mark.slow
def test_other_weights_than_were_trained_are_refused(run, tmp_path):
    revision, _ = bundle(run, STABLE, tmp_path / "a")
    verify(revision, tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    shutil.copy(run / "_fork-points" / "checkpoint-15" / "model.safetensors", tmp_path / "a")
    with pytest.raises(PublishError, match="loads with other weights than were trained"):
        verify(revision, tmp_path / "a")


@pytest.mark.slow
def test_a_family_without_a_finished_decay_is_refused(run):
    shutil.rmtree(run / "_branches")
    with pytest.raises(PublishError, match="has no finished decay"):
        revisions(read_run(run))
