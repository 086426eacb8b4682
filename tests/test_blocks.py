"""Text to blocks: recipes/blocks.py."""

import json
import os
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from blocks import DataArguments, byte_lengths, load_blocks, load_documents, load_tokenizer
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_wsd.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [f"Document {i}: " + "to be, or not to be 🌞 " * (i % 7) for i in range(60)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test, so that none finds what another wrote."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DataArguments())


@pytest.fixture
def files(tmp_path):
    """Arguments for 50 training and 10 validation documents."""
    for split, texts in {"train": TEXTS[:50], "validation": TEXTS[50:]}.items():
        rows = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts))
        (tmp_path / f"{split}.jsonl").write_text(rows)
    return {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}


def flat(tokenizer, texts):
    """The tokens that blocks are cut from, the obvious way."""
    return [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]


def joined(rows, column="input_ids"):
    return list(chain.from_iterable(row[column].tolist() for row in rows))


@pytest.mark.parametrize("block_size", [1, 16, 37])
def test_no_token_is_lost_but_the_last_tail(files, tokenizer, block_size):
    train, validation = load_blocks(DataArguments(**files, block_size=block_size), tokenizer)
    for blocks, texts in ((train, TEXTS[:50]), (validation, TEXTS[50:])):
        expected = flat(tokenizer, texts)
        assert joined(blocks) == expected[: len(expected) // block_size * block_size]


def test_labels_are_the_inputs(files, tokenizer):
    train, _ = load_blocks(DataArguments(**files, block_size=16), tokenizer)
    assert joined(train, "labels") == joined(train)
    assert {row["labels"].dtype for row in train} == {torch.int64}


def test_model_loss_on_a_block_is_the_mean_over_its_next_tokens(files, tokenizer):
    train, _ = load_blocks(DataArguments(**files, block_size=16), tokenizer)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_positions=16, n_embd=8, n_layer=1, n_head=1)).eval()
    batch = default_data_collator([train[i] for i in range(4)])
    with torch.no_grad():
        output = model(**batch)
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
    )
    torch.testing.assert_close(output.loss, expected)


def test_the_embedded_corpus_is_the_default(tokenizer):
    train, validation = load_blocks(DataArguments(), tokenizer)
    facts = json.loads((ROOT / "recipes/corpus/provenance.json").read_text())["splits"]
    for blocks, split in ((train, "train"), (validation, "validation")):
        assert len(blocks) == (facts[split]["tokens"] + facts[split]["documents"]) // 256


@pytest.mark.slow
def test_a_fresh_process_reuses_tokens_and_blocks(files, cache, tmp_path):
    script = f"""
from blocks import *
args = DataArguments(**{files!r}, block_size=16)
print(sum(row["input_ids"].sum().item() for row in load_blocks(args, load_tokenizer(args))[0]))
"""

    def run():
        environment = {"HF_DATASETS_CACHE": str(cache), "PYTHONPATH": f"{ROOT / 'recipes'}:{ROOT}"}
        arguments = [sys.executable, "-c", script]
        return subprocess.run(arguments, env=os.environ | environment, capture_output=True, text=True, check=True)

    def snapshot():
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}

    first, written = run(), snapshot()
    second = run()
    assert second.stdout == first.stdout
    assert snapshot() == written
    assert len([path for path in written if path.parent.name == "hf_wsd"]) == 2


def test_another_block_size_or_text_is_packed_anew(files, tokenizer):
    lengths = {len(load_blocks(DataArguments(**files, block_size=size), tokenizer)[0]) for size in (16, 32)}
    assert len(lengths) == 2
    Path(files["train_file"]).write_text(json.dumps({"text": "another text, longer than a block " * 9}))
    train, _ = load_blocks(DataArguments(**files, block_size=16), tokenizer)
    assert tokenizer.decode(train[0]["input_ids"]).startswith("another text")


def test_an_interrupted_write_leaves_nothing_that_would_be_reused(files, tokenizer, cache, monkeypatch):
    def full_disk(*_):
        raise OSError("no space left on device")

    args = DataArguments(**files, block_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="no space"):
            load_blocks(args, tokenizer)
    train, _ = load_blocks(args, tokenizer)
    assert joined(train) == flat(tokenizer, TEXTS[:50])[: len(train) * 16]


def test_the_main_process_goes_first(files, tokenizer):
    arguments = TrainingArguments(output_dir="unused", report_to=[], use_cpu=True)
    train, _ = load_blocks(DataArguments(**files, block_size=16), tokenizer, arguments.main_process_first)
    assert len(train)


def test_evaluation_blocks_are_spread_over_the_split(files, tokenizer):
    _, every = load_blocks(DataArguments(**files, block_size=16), tokenizer)
    _, some = load_blocks(DataArguments(**files, block_size=16, max_eval_blocks=3), tokenizer)
    assert len(some) == 3
    assert joined(some)[:16] == joined(every)[:16]
    assert joined(some)[-16:] == joined(every)[-16:]


def test_documents_held_out_are_whole_and_in_one_split_only(files, tokenizer):
    args = DataArguments(train_file=files["train_file"], validation_percent=20)
    splits = {split: rows["text"][:] for split, rows in load_documents(args).items()}
    assert sorted(splits["train"] + splits["validation"]) == sorted(TEXTS[:50])
    assert 2 <= len(splits["validation"]) <= 20


def test_a_stream_holds_out_the_same_documents(files, tokenizer):
    chosen = {
        streaming: [
            row["text"]
            for row in load_documents(
                DataArguments(train_file=files["train_file"], validation_percent=20, streaming=streaming)
            )["validation"]
        ]
        for streaming in (False, True)
    }
    assert chosen[True] == chosen[False]


# datasets 4.0 leaves the csv file open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "jsonl"])
def test_a_row_is_a_document(tmp_path, suffix):
    table = datasets.Dataset.from_dict({"text": TEXTS[:5], "id": list(range(5))})
    path = tmp_path / f"rows.{suffix}"
    {"csv": table.to_csv, "parquet": table.to_parquet}.get(suffix, table.to_json)(path)
    args = DataArguments(train_file=str(path), validation_file=str(path))
    assert load_documents(args)["train"]["text"][:] == TEXTS[:5]


def test_a_text_file_is_a_document_and_a_glob_many(tmp_path):
    for name, text in {"a": "one\n\ntwo\n", "b": "three"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    args = DataArguments(train_file=str(tmp_path / "*.txt"), validation_file=str(tmp_path / "b.txt"))
    documents = load_documents(args)
    assert documents["train"]["text"][:] == ["one\n\ntwo\n", "three"]
    assert documents["validation"]["text"][:] == ["three"]


def test_a_stream_gives_the_same_blocks_and_starts_over_without_losing_its_tail(files, tokenizer):
    stream, validation = load_blocks(DataArguments(**files, block_size=16, streaming=True), tokenizer)
    epoch = flat(tokenizer, TEXTS[:50])
    assert len(epoch) % 16, "an epoch that is a whole number of blocks would not test the tail"
    blocks = list(islice(stream, 2 * len(epoch) // 16))
    assert joined(blocks) == (2 * epoch)[: len(blocks) * 16]
    assert joined(blocks, "labels") == joined(blocks)
    assert joined(validation) == flat(tokenizer, TEXTS[50:])[: len(validation) * 16]


def test_a_stream_is_evaluated_on_its_first_blocks(files, tokenizer):
    args = DataArguments(**files, block_size=4, streaming=True, max_eval_blocks=3)
    _, validation = load_blocks(args, tokenizer)
    assert joined(validation) == flat(tokenizer, TEXTS[50:])[:12]


def test_workers_share_out_the_files_of_a_stream(tmp_path, tokenizer):
    for name in "ab":
        pq.write_table(pa.table({"text": [name * 40] * 3}), tmp_path / f"{name}.parquet")
    args = DataArguments(
        train_file=str(tmp_path / "*.parquet"),
        validation_file=str(tmp_path / "a.parquet"),
        block_size=8,
        streaming=True,
    )
    stream, _ = load_blocks(args, tokenizer)
    batches = list(islice(DataLoader(stream, batch_size=2, num_workers=2), 12))
    letters = [set(tokenizer.decode(batch["input_ids"].flatten()).replace("<|endoftext|>", "")) for batch in batches]
    assert letters == [{"a"}, {"b"}] * 6


def test_a_trainer_on_a_stream_resumes_exactly(files, tokenizer, tmp_path):
    def train(folder, steps, resume=None):
        stream, _ = load_blocks(DataArguments(**files, block_size=16, streaming=True), tokenizer)
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_positions=16, n_embd=8, n_layer=1, n_head=1))
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=steps,
            save_steps=40,
            per_device_train_batch_size=4,
            lr_scheduler_type="constant",
            dataloader_pin_memory=False,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=stream, data_collator=default_data_collator).train(resume)
        return model.state_dict()

    straight = train("straight", 60)  # 60 steps are more than one epoch of the stream
    resumed = train("resumed", 60, resume=str(tmp_path / "straight" / "checkpoint-40"))
    for name, weights in straight.items():
        assert torch.equal(weights, resumed[name]), name


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_text_column_names_those_there(files, tokenizer, streaming):
    args = DataArguments(**files, text_column="body", streaming=streaming)
    with pytest.raises(DataError, match=r"no column 'body' in the train split: .* text, id"):
        load_blocks(args, tokenizer)


@pytest.mark.parametrize("streaming", [False, True])
def test_less_text_than_a_block_is_refused(files, tokenizer, streaming):
    args = DataArguments(**files, block_size=5000, streaming=streaming)
    with pytest.raises(DataError, match=r"fewer tokens than one block of 5000: lower --block_size"):
        load_blocks(args, tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_file": "corpus.docx"}, r"ends in '.docx': the known formats are .txt, .json"),
        ({"train_file": "nowhere/corpus.txt"}, "no such file: nowhere/corpus.txt"),
        (
            {"train_file": "corpus.txt", "dataset_name": "wikitext"},
            "--dataset_name wikitext with a --train_file",
        ),
        ({"validation_file": "corpus.txt"}, "without a --train_file"),
    ],
)
def test_contradictory_or_unreadable_files_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        load_documents(DataArguments(**arguments))


@pytest.mark.parametrize("percent", [0, 100, -1])
def test_holding_out_nothing_or_everything_is_refused(files, percent):
    with pytest.raises(DataError, match="between 0 and 100"):
        load_documents(DataArguments(train_file=files["train_file"], validation_percent=percent))


@pytest.mark.parametrize("name", ["block_size", "max_eval_blocks"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(DataError, match=f"--{name} 0: it must be at least 1"):
        DataArguments(**{name: 0})


def test_a_data_set_without_training_split_is_refused(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="no split 'train', only test"):
        load_documents(DataArguments(dataset_name=str(tmp_path)))


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no end-of-text token"):
        load_tokenizer(DataArguments(tokenizer_name=str(tmp_path)))


def test_the_tokenizer_of_the_model_comes_before_the_embedded_one(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(DataArguments(), str(tmp_path)).name_or_path == str(tmp_path)
    assert load_tokenizer(DataArguments(tokenizer_name=tokenizer.name_or_path), "absent").name_or_path != "absent"


def test_arguments_are_flags_of_a_hf_parser():
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(["--block_size", "64", "--streaming"])
    assert (args.block_size, args.streaming, args.dataset_name) == (64, True, None)


@pytest.mark.parametrize(
    "text", [*TEXTS[:3], "naïve 日本語 עברית 👩‍👩‍👧‍👦", "".join(map(chr, range(512))), "\U0010ffff\x00", ""]
)
def test_byte_lengths_add_up_to_the_bytes_of_the_text(tokenizer, text):
    lengths = byte_lengths(tokenizer)
    assert sum(lengths[i] for i in tokenizer(text)["input_ids"]) == len(text.encode())
    assert len(lengths) == len(tokenizer)


def test_byte_lengths_of_special_tokens_are_zero_and_of_added_words_their_bytes(tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    tokenizer.add_tokens(["größe"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    lengths = byte_lengths(tokenizer)
    ids = tokenizer("<|user|>a größe<|endoftext|>")["input_ids"]
    assert sum(lengths[i] for i in ids) == len("a größe".encode())
    assert lengths[tokenizer.eos_token_id] == 0


def test_byte_lengths_of_other_tokenizers_are_unknown():
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    assert byte_lengths(PreTrainedTokenizerFast(tokenizer_object=words)) is None
