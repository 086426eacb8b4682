"""Text to fixed-length blocks of tokens: the data of every recipe.

Documents are tokenized once, each followed by the end-of-text token, laid end to end, and cut every
`block_size` tokens. Only the last, shorter piece of a split is dropped. Both steps are cached on disk.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, List, Value
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_wsd.errors import DataError

CORPUS = Path(__file__).resolve().parent / "corpus"
LOADERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
STREAM_EVAL_BLOCKS = 256
TOO_SHORT = (
    "the {split} split has fewer tokens than one block of {block_size}:"
    " lower --block_size or give more text (--validation_file, --validation_percent)."
)
logger = logging.getLogger(__name__)


def option(default: Any, help: str) -> Any:
    """A field that HfArgumentParser turns into a flag."""
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """Where the text comes from and how it is cut; with nothing given, the embedded corpus."""

    dataset_name: str | None = option(None, "A data set of the hub, or a local folder.")
    dataset_config_name: str | None = option(None, "The configuration of that data set.")
    train_file: str | None = option(
        None, "txt (a document a file), json, jsonl, csv, parquet (a document a row); a glob too."
    )
    validation_file: str | None = option(None, "The same, for validation.")
    streaming: bool = option(False, "Read and tokenize while training, over and over.")
    text_column: str = option("text", "The column that holds the text.")
    tokenizer_name: str | None = option(None, "Default: that of the model, or else the embedded one.")
    block_size: int = option(256, "Tokens in a block, the length of a training sequence.")
    validation_percent: float = option(1.0, "Documents to hold out where there is no validation split, about.")
    preprocessing_num_workers: int | None = option(None, "Processes that tokenize.")
    max_eval_blocks: int | None = option(None, f"Default: all; of a stream the first {STREAM_EVAL_BLOCKS}.")
    decay_dataset: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Data of the decay: files, globs or data sets, with weights as a mixture: code.jsonl=0.7 trunk=0.3 "
            "('trunk' goes on with the trunk's own)."
        },
    )

    def __post_init__(self) -> None:
        for name in ("block_size", "max_eval_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"--{name} {value}: it must be at least 1")


def load_tokenizer(args: DataArguments, model_name_or_path: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer named, else that of the model, else the embedded one."""
    name = args.tokenizer_name or model_name_or_path or str(CORPUS / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {name!r} has no end-of-text token to put between documents: choose another")
    return tokenizer


def load_blocks(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    main_process_first: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Dataset | PackedStream, Dataset]:
    """Training and validation blocks, rows of equal `input_ids` and `labels` (the model shifts the labels).

    Args:
        args: the data and the block size.
        tokenizer: any with an end-of-text token.
        main_process_first: `training_args.main_process_first`, so that one process fills the cache for all.

    Raises:
        DataError: unreadable or contradictory files, no text column, or fewer tokens than one block.
    """
    with main_process_first():
        tokenized = {split: tokenize(documents, args, tokenizer) for split, documents in load_documents(args).items()}
        if args.streaming:
            validation = first_blocks(tokenized["validation"], args)
            return PackedStream(tokenized["train"], args.block_size), validation
        train, validation = (pack(tokenized[split], split, args.block_size) for split in ("train", "validation"))
    if args.max_eval_blocks and args.max_eval_blocks < len(validation):
        # Evenly spaced: the first ones would all come from one or two documents.
        validation = validation.select(np.linspace(0, len(validation) - 1, args.max_eval_blocks, dtype=int))
    return train, validation


def load_documents(args: DataArguments) -> dict[str, Any]:
    """Documents by split, "train" and "validation"; without the second, some of the first are held out."""
    files = {"train": args.train_file, "validation": args.validation_file}
    if args.dataset_name and any(files.values()):
        raise DataError(f"--dataset_name {args.dataset_name} with a --train_file or --validation_file: choose one")
    if args.validation_file and not args.train_file:
        raise DataError(f"--validation_file {args.validation_file} without a --train_file: give both")
    if args.train_file:
        found = {split: _load_file(path, args.streaming) for split, path in files.items() if path}
    else:
        name = args.dataset_name or str(CORPUS)
        found = datasets.load_dataset(name, args.dataset_config_name, streaming=args.streaming)
    if "train" not in found:
        raise DataError(f"{args.dataset_name} has no split 'train', only {', '.join(found)}")
    splits = {split: _text_of(found[split], split, args.text_column) for split in files if split in found}
    if "validation" in splits:
        return splits
    if not 0 < args.validation_percent < 100:
        raise DataError(f"--validation_percent {args.validation_percent}: it must lie between 0 and 100")
    logger.info("no validation split: %g %% of the documents are held out, whole", args.validation_percent)
    side = {"text_column": args.text_column, "percent": args.validation_percent}
    return {s: splits["train"].filter(_is_in, fn_kwargs={**side, "split": s}) for s in files}


def _load_file(path: str, streaming: bool) -> Any:
    """The documents of a file or a glob."""
    suffix = Path(path).suffix
    if suffix not in LOADERS:
        raise DataError(f"{path!r} ends in {suffix!r}: the known formats are {', '.join(LOADERS)}")
    if "://" not in path and not glob.glob(path, recursive=True):
        raise DataError(f"no such file: {path}")
    # By line, the default for txt, every line would be a document and lose its newline.
    options = {"sample_by": "document"} if suffix == ".txt" else {}
    return datasets.load_dataset(LOADERS[suffix], data_files=path, split="train", streaming=streaming, **options)


def _text_of(documents: Any, split: str, column: str) -> Any:
    """The documents without their other columns."""
    columns = documents.column_names or list(next(iter(documents), {}))  # some streams know them only by row
    if column not in columns:
        raise DataError(f"no column {column!r} in the {split} split: choose --text_column from {', '.join(columns)}")
    return documents.select_columns([column])


def load_training_documents(name: str, args: DataArguments) -> Dataset:
    """The documents of a file, a glob or a data set's training split, without those that are held out of the trunk's.

    So that a document of the trunk's validation data is not trained on because another file has it too.
    """
    if Path(name).suffix in LOADERS:
        documents = _load_file(name, streaming=False)
    else:
        documents = datasets.load_dataset(name, split="train")
    documents = _text_of(documents, "train", args.text_column)
    if args.train_file:
        held_out = args.validation_file is None
    else:
        known = datasets.get_dataset_split_names(args.dataset_name or str(CORPUS), args.dataset_config_name)
        held_out = "validation" not in known
    side = {"text_column": args.text_column, "percent": args.validation_percent, "split": "train"}
    return documents.filter(_is_in, fn_kwargs=side) if held_out else documents


def _is_in(row: dict[str, str], text_column: str, percent: float, split: str) -> bool:
    """Whether a document belongs to the split, by its content.

    So the same on every rank, worker and shard of a stream, for two copies, and when documents are added.
    """
    held_out = zlib.crc32(row[text_column].encode()) % 10_000 < percent * 100
    return held_out == (split == "validation")


def tokenize(documents: Any, args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The documents as ids, each with the end-of-text token; of a stream while it is read."""
    # A stream is tokenized a few documents at a time: the first step need not wait for a thousand.
    stream = not isinstance(documents, Dataset)
    options = {"batch_size": 16} if stream else {"num_proc": args.preprocessing_num_workers}
    options |= {"batched": True, "features": Features({"input_ids": List(Value("int32"))})}
    options |= {"fn_kwargs": {"tokenizer": tokenizer, "text_column": args.text_column}}
    return documents.map(_tokenize, remove_columns=[args.text_column], **options)


def _tokenize(batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, text_column: str) -> dict[str, Any]:
    """The ids of each document, the end-of-text token last."""
    # verbose=False: a document longer than the model is no mistake here, it is cut later.
    encoded = tokenizer(batch[text_column], add_special_tokens=False, return_attention_mask=False, verbose=False)
    return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]}


def pack(tokenized: Dataset, split: str, block_size: int) -> Dataset:
    """The blocks of a tokenized split, memory-mapped from a file that is written on the first call."""
    # Not in `map`, which would drop the tail of each of its batches.
    path = Path(datasets.config.HF_DATASETS_CACHE) / "hf_wsd" / f"{tokenized._fingerprint}-{block_size}.arrow"
    if not path.is_file():
        tokens = pc.list_flatten(tokenized.with_format("arrow")[:]["input_ids"]).to_numpy()
        if len(tokens) < block_size:
            raise DataError(TOO_SHORT.format(split=split, block_size=block_size) + f" It has {len(tokens)}.")
        whole = tokens[: len(tokens) - len(tokens) % block_size]
        table = pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(whole, block_size)})
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may write at once: each under a name of its own, and the renaming is atomic.
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
        os.replace(unfinished, path)
    blocks = Dataset.from_file(str(path))
    # Labels are the same memory under another name: no copy on disk, 14 million tokens a second into batches.
    labels = blocks.rename_column("input_ids", "labels")
    return datasets.concatenate_datasets([blocks, labels], axis=1).with_format("torch")


def cut(documents: Iterable[dict[str, Any]], block_size: int) -> Iterator[list[int]]:
    """Blocks of the documents laid end to end."""
    tail: list[int] = []
    for document in documents:
        tail.extend(document["input_ids"])
        whole = len(tail) - len(tail) % block_size
        yield from (tail[start : start + block_size] for start in range(0, whole, block_size))
        del tail[:whole]


def first_blocks(tokenized: datasets.IterableDataset, args: DataArguments) -> Dataset:
    """The first blocks of a streamed split, in memory."""
    rows = list(islice(cut(tokenized, args.block_size), args.max_eval_blocks or STREAM_EVAL_BLOCKS))
    if not rows:
        raise DataError(TOO_SHORT.format(split="validation", block_size=args.block_size))
    return Dataset.from_dict({"input_ids": rows, "labels": rows}).with_format("torch")


class PackedStream(torch.utils.data.IterableDataset):
    """Blocks without end: the documents in their order, from the first again after the last.

    Endless, because a run that resumes past the end of a finite stream does not see the same batches again.
    Not shuffled, for the same reason. A DataLoader's workers share out the files of the stream, and each
    carries its own tail; ranks are Accelerate's business (one reads for all, or each keeps its batches).
    """

    def __init__(self, documents: datasets.IterableDataset, block_size: int):
        self.documents = documents
        self.block_size = block_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for block in cut(self.documents.repeat(None), self.block_size):
            ids = torch.tensor(block)
            yield {"input_ids": ids, "labels": ids}


def byte_lengths(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """UTF-8 bytes that each token id stands for, 0 if special; None where the tokenizer is not byte-level.

    Byte-level BPE (GPT-2 and most since) writes each byte as one character of an alphabet of 256, so the
    length is that of the token as written. Decoding a lone token would not do: half a character
    decodes to a replacement character of three bytes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or (json.loads(backend.to_str())["decoder"] or {}).get("type") != "ByteLevel":
        return None
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    lengths = [0] * (1 + max(vocabulary.values()))
    for token, index in vocabulary.items():
        lengths[index] = len(token)
    for index, added in tokenizer.added_tokens_decoder.items():  # these are written as they are
        lengths[index] = 0 if added.special or index in special else len(added.content.encode())
    return lengths
