"""The page of a revision: what the hub reads of it, what a reader sees, and that nothing in it is invented."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys

import pytest
from datasets.config import HF_DATASETS_CACHE
from hub_server import HubServer
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from test_report import evaluate, finish_branch, save
from trainer_runs import FAMILY, ROOT, SCRIPT, command, record_command, same_weights, train_here

import hf_wsd
from hf_wsd.bundle import Page, make_bundle
from hf_wsd.card import make_card
from hf_wsd.curves import schedule_picture, training_curve
from hf_wsd.demo import recipes_folder
from hf_wsd.errors import PublishError
from hf_wsd.family import read_run
from hf_wsd.history import append_history
from hf_wsd.lineage import Command
from hf_wsd.revisions import revisions

REPO = "alice/tiny"
CONFIG = {"architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 100}
BATCH = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "world_size": 1}
METRICS = {"eval_loss": 1.75, "eval_bits_per_byte": 0.5, "eval_perplexity": 5.75}
HOSTILE = 'a|b `c` {{ 7 * 7 }} "d": *e*\n---\n# f $g$ <h>'


def recipe(*flags, cwd="/"):
    return Command(argv=(str(recipes_folder() / "pretrain.py"), *flags), cwd=str(cwd))


def publish(run, name, **options):
    found = revisions(read_run(run), stable=None)
    return make_card(next(one for one in found if one.name.startswith(name)), found, repo=REPO, **options)


def tables(card):
    """The rows of a card's tables, as a renderer sees them."""
    rows = []
    for token in MarkdownIt("commonmark").enable("table").parse(card.text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level > 3:
            rows[-1].append("".join(part.content for part in token.children))
    return rows


def commands(card):
    blocks = card.text.split("```bash\n")[1:]
    return [shlex.split(line) for block in blocks for line in block.split("\n```")[0].replace("\\\n", "").splitlines()]


@pytest.fixture
def trunk(tmp_path):
    """80 steps of 64 tokens with a fork point at 60, from which a decay goes to step 75."""
    run = tmp_path / "small"
    told = {"command": recipe(), "setup": BATCH, "peak_lrs": (0.01, 0.01), "data": "64-abc"}
    save(run, 60, kind="fork", **told)
    save(run, 80, kind="end", **told)
    evaluate(run, _30=3.0, _60=2.25)
    finish_branch(run, 60, 75, METRICS)
    for checkpoint in run.rglob("checkpoint-*"):
        (checkpoint / "config.json").write_text(json.dumps(CONFIG))
    return run


# --- what the hub reads ---


def test_hub_reads_the_metadata_that_were_written(trunk):
    metadata = ModelCard(str(publish(trunk, "decay-", license="mit")), ignore_metadata_errors=False).data.to_dict()
    found = {metric["type"]: metric["value"] for metric in metadata.pop("model-index")[0]["results"][0]["metrics"]}
    assert found == {"loss": 1.75, "bits_per_byte": 0.5, "perplexity": 5.75}
    assert metadata == {
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["hf_wsd", "warmup-stable-decay", "wsd", "decayed"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [("me/texts", None, ["me/texts"]), ("me/texts", "me/texts", None), ("/srv/me/texts", None, None)],
    ids=["of the hub", "a folder", "a path"],
)
def test_only_a_data_set_of_the_hub_is_named_in_the_metadata(trunk, tmp_path, name, folder, expected):
    if folder:
        (tmp_path / folder).mkdir(parents=True)
    record_command(trunk, recipe("--dataset_name", name, cwd=tmp_path))
    card = publish(trunk, "decay-")
    assert (card.data.datasets, "/srv" in str(card)) == (expected, False)


@pytest.mark.slow
def test_licence_that_is_no_identifier_is_refused(trunk):
    with pytest.raises(PublishError, match="'MIT License' is no identifier of a licence"):
        publish(trunk, "decay-", license="MIT License")


# --- what a reader sees ---


def test_what_nobody_has_recorded_is_left_out(tmp_path):
    run = tmp_path / "bare"
    save(run, 60, kind="fork", tokens_per_step=None, tokens=None, parameters=None)
    card = publish(run, "stable-step60")
    heads = [line for line in card.text.splitlines() if line.startswith("## ")]
    assert heads == ["## Schedule", "## The family", "## Limits"]
    assert card.data.to_dict() == {"tags": ["hf_wsd", "warmup-stable-decay", "wsd", "stable-phase"]}
    assert not {"None", "nan", "?"} & {cell for row in tables(card) for cell in row}


def test_any_text_stays_in_its_cell(trunk):
    append_history(trunk / "_branches" / "60-1-sqrt-15", {"step": 75, f"eval_{HOSTILE}_loss": 2.5})
    card = publish(trunk, "decay-")
    metric = [" ".join(f"{HOSTILE}_loss".split()), "2.5"]
    assert metric in tables(card)
    assert card.data.eval_results[-1].metric_name == metric[0]


def test_card_of_the_same_family_is_the_same(trunk):
    assert str(publish(trunk, "decay-")) == str(publish(trunk, "decay-"))


@pytest.mark.slow
def test_row_of_the_revision_is_marked_and_names_what_it_left(trunk):
    rows = {row[0]: row[1:] for row in tables(publish(trunk, "decay-")) if len(row) > 5}
    marked = ["finished", "75", "4.8K", "1.7500", "0.5000", "stable-step60-tokens3.8K"]
    assert rows["decay-step75-tokens4.8K (this one)"] == marked


# --- curve and picture ---


def test_curve_of_a_branch_of_a_branch_has_the_steps_of_each(trunk):
    branch = trunk / "_branches" / "60-1-sqrt-15"
    finish_branch(branch, 70, 90, {"eval_loss": float("nan"), "eval_runtime": 1.0})
    for run, loss in ((trunk, 9.0), (branch, 8.0), (branch / "_branches" / "70-1-sqrt-20", 7.0)):
        for step in (50, 65, 80):
            append_history(run, {"step": step, "loss": loss})
    longest = revisions(read_run(trunk))[-1]
    rows = {row["step"]: [row[key] for key in row if key != "step"] for row in training_curve(longest)["rows"]}
    assert rows == {30: [3.0], 50: [9.0], 60: [2.25], 65: [8.0], 80: [7.0], 90: [None]}


@pytest.mark.slow
def test_picture_of_the_same_family_has_the_same_bytes(trunk, tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    for file in (one, two):
        schedule_picture(revisions(read_run(trunk))[0], file)
    assert one.read_bytes() == two.read_bytes()


# --- the commands ---


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "without the optimizer's state"])
def test_recipe_takes_the_commands_of_the_card(trunk, exact):
    from family_arguments import FamilyArguments, ForkArguments
    from pretrain import DataArguments, PretrainingArguments
    from transformers import HfArgumentParser

    hf_wsd.register()
    record_command(trunk, recipe("--train_file", "/srv/alice/my text.txt", "--bf16"))
    stable = "stable-step60-tokens3.8K"
    found = commands(publish(trunk, "decay-", with_optimizer=[stable] if exact else []))
    parser = HfArgumentParser((DataArguments, FamilyArguments, ForkArguments, PretrainingArguments))
    read = [parser.parse_args_into_dataclasses([*words[3:], "--use_cpu"]) for words in found]
    asked = [(args.lr_scheduler_type, family.budgets, data.train_file) for data, family, _, args in read]
    file = "my text.txt"
    if exact:
        assert asked == [("wsd", ["67"], file), ("wsd", ["127"], file), ("wsd_s", ["67", "134"], file)]
    else:
        assert asked == [("wsd", ["127"], file), ("wsd_s", ["127", "254"], file)]


@pytest.mark.slow
def test_command_with_the_recipe_makes_the_published_model_again(tmp_path):
    from test_recipe import TINY, pretrain_here

    family = pretrain_here(tmp_path / "family", "--budgets", "20", "40")
    record_command(family, recipe(*TINY))
    *_, stable, model = found = revisions(read_run(family), stable=[30])
    bundle, page = tmp_path / "bundle", Page(repo=REPO, siblings=found, with_optimizer=[stable.name])
    bundle.mkdir()
    make_bundle(stable, page, bundle)
    first = commands(ModelCard.load(bundle / "README.md"))[0]
    with HubServer(tmp_path / "server") as hub:
        hub.storage.create(REPO, True)
        hub.git(REPO, "branch", stable.name, "main")
        hub.commit(REPO, stable.name, {file.name: file.read_bytes() for file in bundle.iterdir()})
        words = [tmp_path / word if word == "runs/mine" else word for word in first[2:]]
        env = hub.environment(OMP_NUM_THREADS="1", HF_DATASETS_CACHE=str(HF_DATASETS_CACHE))
        subprocess.run([sys.executable, *words, "--use_cpu"], env=env, cwd=ROOT, check=True, capture_output=True)
    assert same_weights(tmp_path / "runs/mine/checkpoint-40", model.checkpoint)


@pytest.mark.slow
def test_command_with_a_script_of_ones_own_makes_the_model_of_a_straight_run(tmp_path, monkeypatch):
    run = train_here(tmp_path / "run", "--max_steps", 30, launch=FAMILY)
    record_command(run, Command(argv=(str(SCRIPT),), cwd="/"))
    found = revisions(read_run(run), stable=None)
    card = make_card(found[0], found, repo=REPO, with_optimizer=[one.name for one in found])
    download, start = commands(card)[:2]
    folder = tmp_path / download[-1]
    shutil.copytree(found[0].checkpoint, folder)
    command([*start[2:4], SCRIPT, *start[5:]], cwd=tmp_path)
    end = int(start[start.index("--max_steps") + 1])
    whole = train_here(
        tmp_path / "whole", "--max_steps", end, "--lr_scheduler_kwargs", json.dumps({"decay_fraction": 0.25})
    )
    assert same_weights(tmp_path / "runs/mine" / f"checkpoint-{end}", whole / f"checkpoint-{end}")
