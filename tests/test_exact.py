"""A trunk and its branch are a straight run, bit for bit on CPU."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from dataclasses import dataclass, field
from pathlib import Path

import pretrain
import pretrain_no_trainer
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from blocks import DataArguments, load_blocks, load_tokenizer
from trainer_runs import FLAGS, ROOT, SCRIPT, command, command_line, same_weights

import hf_wsd.__main__ as launcher
from hf_wsd.history import read_history

STREAM = ROOT / "tests" / "downstream" / "train_stream.py"
TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1", "--block_size", 32),
    *("--max_eval_blocks", 8, "--per_device_train_batch_size", 4, "--warmup_steps", 5, "--use_cpu"),
    *("--learning_rate", "1e-2", "--eval_steps", 1000, "--save_steps", 1000),
)

@dataclass(frozen=True, kw_only=True)
class Row:
    fork: int = 13
    end: int = 18
    blocks: int = 30
    flags: tuple = ()
    evals: tuple = (1000, 1000, 1000)
    environment: dict = field(default_factory=dict)
    script: Path = SCRIPT


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of documents of one block each, by their number."""
    folder, tokenizer = tmp_path_factory.mktemp("files"), load_tokenizer(DataArguments())
    words = [" " + word[1:] for word in sorted(tokenizer.get_vocab()) if word[1:].isalpha()]
    words = [word for word in words if len(tokenizer(word)["input_ids"]) == 1]

    @cache
    def write(count: int) -> tuple:
        draw = random.Random(1)
        paths = [folder / f"{name}-{count}.jsonl" for name in ("train", "validation")]
        for path, number in zip(paths, (count, 8), strict=True):
            rows = [{"text": "".join(draw.choices(words, k=31))} for _ in range(number)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = DataArguments(train_file=str(paths[0]), validation_file=str(paths[1]), block_size=32)
        assert len(load_blocks(arguments, tokenizer)[0]) == count
        return ("--train_file", paths[0], "--validation_file", paths[1])
    return write

def reset():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    torch._dynamo.reset()

@pytest.fixture
def train(files):
    def go(door, row, run, *flags, evals=1000, **settings):
        reset()
        flags = (*row.flags, *flags, "--eval_steps", evals)
        if door == "script":
            more = ("--blocks", row.blocks) if row.script == SCRIPT else ()
            argv, main = ("hf_wsd", row.script, "--output_dir", run, *FLAGS, *more, *flags), launcher.main
        else:
            module = pretrain if door == "recipe" else pretrain_no_trainer
            argv, main = (door, "--output_dir", run, *TINY, *files(row.blocks), *flags), module.main
        with command_line(*argv):
            os.environ.update(row.environment)
            os.environ.update({f"HF_WSD_{n.upper()}": str(v) for n, v in settings.items()})
            main()
        return run
    yield go
    reset()

E8=(3,4,1)
ROWS={
 "plain": ("script recipe loop", Row()),
 "evaluations": ("script recipe loop", Row(evals=E8)),
 "accumulation": ("script recipe loop", Row(flags=("--gradient_accumulation_steps",2),blocks=32, fork=7,end=11)),
 "remainder": ("script recipe loop", Row(flags=("--gradient_accumulation_steps",3),blocks=30, fork=7,end=11)),
 "workers": ("script recipe", Row(flags=("--dataloader_num_workers",2))),
 "persistent": ("script recipe", Row(flags=("--dataloader_num_workers",2,"--dataloader_persistent_workers","True"))),
 "mid first": ("script recipe loop", Row(fork=6,end=10)),
 "boundary": ("script recipe loop", Row(fork=16,end=20,blocks=32)),
 "first boundary": ("script recipe loop", Row(fork=8,end=12,blocks=32)),
 "stream": ("script", Row(script=STREAM)),
 "stream workers": ("script", Row(script=STREAM,flags=("--dataloader_num_workers",2))),
 "bf16": ("script recipe", Row(flags=("--bf16",))),
 "bf16l": ("loop", Row(environment={"ACCELERATE_MIXED_PRECISION":"bf16"})),
 "checkpointing": ("script recipe", Row(flags=("--activation_checkpointing",))),
 "compile": ("script recipe", Row(flags=("--torch_compile",),blocks=32)),
 "compilel": ("loop", Row(environment={"ACCELERATE_DYNAMO_BACKEND":"inductor"},blocks=32)),
 "compile short": ("script recipe", Row(flags=("--torch_compile",),blocks=30)),
 "compile evals": ("script recipe", Row(flags=("--torch_compile",),blocks=32,evals=E8)),
}
CELLS=[pytest.param(d,r,id=f"{n}-{d}") for n,(ds,r) in ROWS.items() for d in ds.split()]

@pytest.mark.parametrize(("door", "row"), CELLS)
def test_trunk_and_branch_are_the_straight_run(door,row,train,tmp_path):
    decay = row.end - row.fork
    trunk = train(door,row,tmp_path / "trunk","--max_steps", row.fork, evals=row.evals[0], trunk=1)
    straight = train(door,row,tmp_path / "straight","--max_steps", row.end, evals=row.evals[1], num_decay_steps=decay)
    point = trunk / f"checkpoint-{row.fork}"
    branch = train(door,row,tmp_path / "branch","--max_steps", row.end, "--resume_from_checkpoint", point, evals=row.evals[2], num_decay_steps=decay)
    assert same_weights(branch / f"checkpoint-{row.end}", straight / f"checkpoint-{row.end}")
