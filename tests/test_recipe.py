"""The recipe as its user runs it, on the embedded corpus with a model of a few thousand parameters."""

from __future__ import annotations

import json
import math

import pretrain
import pytest
import torch
from blocks import DataArguments, byte_lengths, load_tokenizer
from trainer_runs import command_line, same_weights

from hf_wsd.errors import SettingsError
from hf_wsd.family import read_run

TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1", "--block_size", "32", "--max_eval_blocks", "8"),
    *("--per_device_train_batch_size", "4", "--warmup_steps", "4", "--use_cpu"),
)  # 128 tokens a step


def pretrain_here(run, *flags, decay=("--decay_fraction", "0.25")):
    """Run recipes/pretrain.py in this process."""
    with command_line("pretrain.py", "--output_dir", run, *TINY, *decay, *flags):
        pretrain.main()
    return run


def test_trunk_saves_the_fork_points_of_its_budgets_and_stops_at_the_last(tmp_path):
    run = pretrain_here(tmp_path / "run", "--trunk", "--budgets", "2.56K", "5.12K")
    assert {step: record.kind for step, record in read_run(run).records.items()} == {15: "fork", 30: "fork"}


def test_evaluation_gives_token_weighted_loss_perplexity_and_bits_per_byte(tmp_path):
    run = pretrain_here(tmp_path / "run", "--budgets", "20")
    losses = read_run(run).latest.losses
    assert losses["perplexity"] == pytest.approx(math.exp(losses["loss"]))
    assert 0 < losses["bits_per_byte"] < losses["loss"] / math.log(2)


@pytest.mark.parametrize(
    "streaming", [pytest.param(False, id="map-style"), pytest.param(True, id="stream", marks=pytest.mark.slow)]
)
def test_branch_by_hand_equals_the_straight_run(tmp_path, streaming):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n} and {n * n}. " * 9}) + "\n" for n in range(300)))
    data = ("--train_file", file, "--validation_percent", 10, "--streaming", streaming)
    trunk = pretrain_here(tmp_path / "trunk", *data, "--trunk", "--budgets", "5.12K")
    straight = pretrain_here(tmp_path / "straight", *data, "--budgets", "5.12K")
    resume = ("--resume_from_checkpoint", trunk / "checkpoint-30")
    branch = pretrain_here(tmp_path / "branch", *data, "--budgets", "5.12K", *resume)
    assert read_run(branch).latest.intent == "branch"
    assert same_weights(branch / "checkpoint-40", straight / "checkpoint-40")


@pytest.mark.slow
def test_repeated_command_goes_on_from_the_newest_whole_checkpoint(tmp_path, caplog):
    flags = ("--budgets", "40", "--save_steps", "10", "--save_total_limit", "9")
    whole = pretrain_here(tmp_path / "whole", *flags)
    begun = pretrain_here(tmp_path / "begun", *flags)
    for step in (30, 40):  # as a kill in the middle of a save leaves it
        for folder in begun.glob(f"**/checkpoint-{step}"):
            (folder / "optimizer.pt").write_bytes(b"PK")
    pretrain_here(begun, *flags)
    assert "passed over" in caplog.text
    assert same_weights(whole / "checkpoint-40", begun / "checkpoint-40")


def test_finished_run_is_left_alone(tmp_path, caplog):
    run = pretrain_here(tmp_path / "run", "--budgets", "20")
    before = (run / "checkpoint-20" / "model.safetensors").stat().st_mtime_ns
    pretrain_here(run, "--budgets", "20")
    assert "nothing is left to train" in caplog.text
    assert (run / "checkpoint-20" / "model.safetensors").stat().st_mtime_ns == before


def test_baseline_of_another_schedule_takes_its_length_from_the_budget(tmp_path):
    flags = ("--budgets", "2.56K", "--lr_scheduler_type", "cosine")
    run = pretrain_here(tmp_path / "run", *flags, "--save_steps", 20, decay=())
    assert (run / "checkpoint-20").is_dir()
    assert not list(run.rglob("wsd.json*"))
    with pytest.raises(SettingsError, match="decay_fraction would be ignored: the script's scheduler is cosine"):
        pretrain_here(tmp_path / "other", *flags)


def test_unknown_preset_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(SettingsError, match="did you mean '124M'"):
        pretrain_here(tmp_path / "run", "--budgets", "20", "--preset", "125M")


@pytest.mark.slow
def test_model_can_be_continued_from_a_saved_one(tmp_path):
    first = pretrain_here(tmp_path / "first", "--budgets", "20")
    second = pretrain_here(tmp_path / "second", "--budgets", "20", "--model_name_or_path", first)
    assert read_run(second).latest.losses["loss"] < read_run(first).latest.losses["loss"]


@pytest.mark.parametrize(
    ("preset", "vocabulary", "block_size", "millions"),
    [
        *(("0.1M", 2048, 256, 0.1), ("0.25M", 2048, 256, 0.25)),
        *(("0.5M", 2048, 256, 0.5), ("2M", 2048, 256, 2), ("10M", 2048, 256, 10), ("30M", 2048, 256, 30)),
        *(("124M", 50257, 1024, 124), ("350M", 50257, 1024, 350)),
    ],
)
def test_preset_has_about_the_parameters_that_its_name_says(preset, vocabulary, block_size, millions):
    with torch.device("meta"):
        model = pretrain.new_model(pretrain.ModelArguments(preset=preset), vocabulary, block_size, 0)
    model.tie_weights()  # transformers 5.0 does not on this device
    assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.15)


def test_loss_of_a_block_counts_each_predicted_token_and_its_bytes():
    tokenizer = load_tokenizer(DataArguments())
    text = "In the beginning"
    labels = torch.tensor([tokenizer(text)["input_ids"]])
    logits = torch.zeros(1, labels.shape[1], len(tokenizer))
    nll, tokens, n_bytes = pretrain.per_block(logits, labels, torch.tensor(byte_lengths(tokenizer)))[0].tolist()
    assert tokens == labels.shape[1] - 1
    assert nll == pytest.approx(tokens * math.log(len(tokenizer)))
    assert n_bytes == len(text.encode()) - len(tokenizer.decode(labels[0, :1]).encode())


def test_masked_labels_count_for_nothing():
    labels = torch.tensor([[5, -100, 7, -100]])
    nll, tokens, n_bytes = pretrain.per_block(torch.zeros(1, 4, 10), labels, torch.full((10,), 3))[0].tolist()
    assert (tokens, n_bytes) == (1, 3)
    assert nll == pytest.approx(math.log(10))


@pytest.mark.parametrize(
    ("kind", "saved"),
    [
        ("wsd_s", {15: "pre-decay", 20: "post-decay", 35: "pre-decay", 40: "post-decay"}),
        ("cyclic_cosine", {20: "post-decay", 40: "post-decay"}),
    ],
)
def test_line_of_cycles_has_a_finished_model_at_every_budget(tmp_path, kind, saved):
    decay = ("--decay_fraction", "0.25") if kind == "wsd_s" else ()
    flags = ("--lr_scheduler_type", kind, "--budgets", "2.56K", "5.12K", "--save_strategy", "no")
    run = read_run(pretrain_here(tmp_path / "run", *flags, decay=decay))
    records = {
        step: record.kind for step, record in run.records.items() if record.kind != "pre-decay" or kind == "wsd_s"
    }
    assert (records, run.steps_done) == (saved, 40)


@pytest.mark.slow
def test_multi_step_baseline_is_as_long_as_its_budget(tmp_path):
    flags = ("--lr_scheduler_type", "multi_step", "--budgets", "2.56K")
    run = read_run(pretrain_here(tmp_path / "run", *flags, decay=()))
    lrs = {row["step"]: row["learning_rate"] for row in run.history if "learning_rate" in row}
    assert (run.steps_done, lrs[20]) == (20, pytest.approx(0.1 * 5e-3))
