"""A trunk and its branch are a straight run, bit for bit on CPU: the matrix, and which test holds each of its cells.

"exact" is the grid below, by its row's name; `e2e` is test_end_to_end.py. A script has never heard of hf_wsd, the loop
is recipes/pretrain_no_trainer.py; "-" where the loop has no such flag.

| row | script | recipe | loop |
|---|---|---|---|
| shuffled, with dropout | e2e: branch_equals_the_straight_run | exact | test_loop: branch_by_hand |
| evaluations at different steps | exact | exact | exact |
| gradient accumulation | exact | exact | exact |
| accumulation with a remainder | exact | exact | test_loop: branch_by_hand[map-style] |
| dataloader workers, also persistent | exact | exact | - |
| fork in the first epoch | e2e, at 15 of 16 | test_recipe: branch_by_hand[map-style] | exact |
| fork at the end of an epoch | exact | exact | exact |
| fork in a later epoch | e2e, at 30 | exact | test_loop: branch_by_hand[map-style] |
| stream | exact | test_recipe: branch_by_hand[stream] | test_loop: branch_by_hand[stream] |
| two processes | e2e: two_processes | exact: two_processes_on_a_stream | test_loop: two_processes |
| bf16 | exact | exact | exact |
| gradient checkpointing | exact | exact | - |
| torch_compile, one shape of batch | exact | exact | exact |
| FSDP2, DeepSpeed, several machines | test_engines | - | - |
| WSD-S resumed after a decay | test_callback: wsd_s_resumed | exact: wsd_s | exact: wsd_s |

Other trainers (TRL, T5, LoRA, subclasses) are in test_other_trainers.py; stock transformers goes on in test_stock.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

import pretrain
import pretrain_no_trainer
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from blocks import DataArguments, load_blocks, load_tokenizer
from packaging.version import Version
from trainer_runs import FLAGS, ROOT, SCRIPT, command, command_line, same_weights

import hf_wsd.__main__ as launcher
from hf_wsd.history import read_history

pytestmark = pytest.mark.slow

STREAM = ROOT / "tests" / "downstream" / "train_stream.py"
TINY = (
    *("--config_overrides", "n_layer=1,n_embd=16,n_head=1,resid_pdrop=0.1", "--block_size", 32),
    *("--per_device_train_batch_size", 4, "--warmup_steps", 5, "--learning_rate", "1e-2", "--use_cpu"),
    *("--eval_steps", 1000, "--save_steps", 1000, "--logging_steps", 1),
)
MAIN = {"script": launcher.main, "recipe": pretrain.main, "loop": pretrain_no_trainer.main}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A setting of the matrix. Of 30 blocks, 4 to a batch, an epoch has 8 batches; a loop drops the last, half one."""

    flags: tuple[object, ...] = ()
    blocks: int = 30
    fork: int = 13
    end: int = 18
    evaluations: tuple[int, int, int] = (1000, 1000, 1000)  # so many steps apart in trunk, straight run and branch
    environment: Mapping[str, str] = field(default_factory=dict)
    script: Path = SCRIPT


def accumulation(batches: int, blocks: int) -> Row:
    return Row(flags=("--gradient_accumulation_steps", batches), blocks=blocks, fork=7, end=11)


WORKERS = ("--dataloader_num_workers", 2)
PERSISTENT = (*WORKERS, "--dataloader_persistent_workers", True)
GRID = {
    "shuffled, with dropout": (Row(), ["recipe"]),
    "evaluations at different steps": (Row(evaluations=(3, 4, 1)), ["script", "recipe", "loop"]),
    "accumulation": (accumulation(2, blocks=32), ["script", "recipe", "loop"]),
    "accumulation with a remainder": (accumulation(3, blocks=30), ["script", "recipe"]),
    "workers": (Row(flags=WORKERS), ["script", "recipe"]),
    "persistent workers": (Row(flags=PERSISTENT), ["script", "recipe"]),
    "persistent workers, end of an epoch": (Row(flags=PERSISTENT, blocks=32, fork=16, end=26), ["script"]),
    "first epoch": (Row(fork=6, end=10), ["loop"]),
    "end of an epoch": (Row(blocks=32, fork=16, end=20), ["script", "recipe", "loop"]),
    "stream": (Row(script=STREAM), ["script"]),
    "stream, workers": (Row(script=STREAM, flags=WORKERS), ["script"]),
    "bf16": (Row(flags=("--bf16",)), ["script", "recipe"]),
    "bf16 of the launcher": (Row(environment={"ACCELERATE_MIXED_PRECISION": "bf16"}), ["loop"]),
    "gradient checkpointing": (Row(flags=("--gradient_checkpointing",)), ["script", "recipe"]),
}
CELLS = [pytest.param(row, door, id=f"{name}-{door}") for name, (row, doors) in GRID.items() for door in doors]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Flags of files whose documents are one block each, by the number of blocks."""
    folder, tokenizer = tmp_path_factory.mktemp("rows"), load_tokenizer(DataArguments())
    words = [f" {word[1:]}" for word in sorted(tokenizer.get_vocab()) if word[1:].isalpha()]
    words = [word for word in words if len(tokenizer(word)["input_ids"]) == 1]

    @cache
    def write(blocks: int) -> tuple[object, ...]:
        draw, files = random.Random(1), {}
        for split, count in (("train", blocks), ("validation", 8)):
            texts = ["".join(draw.choices(words, k=31)) for _ in range(count)]
            files[split] = folder / f"{split}-{blocks}.jsonl"
            files[split].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        data = DataArguments(train_file=str(files["train"]), validation_file=str(files["validation"]), block_size=32)
        assert len(load_blocks(data, tokenizer)[0]) == blocks
        return "--train_file", files["train"], "--validation_file", files["validation"]

    return write


@pytest.fixture
def train(rows):
    """Trains in this process through a door, each time as if it were a new process."""

    def run_here(door: str, row: Row, run: Path, *flags: object, **settings: int) -> Path:
        start_anew()
        if door == "script":
            own = ("--blocks", row.blocks) if row.script == SCRIPT else ()
            words = ("hf_wsd", row.script, "--output_dir", run, *FLAGS, *own)
        else:
            words = (f"{door}.py", "--output_dir", run, *TINY, *rows(row.blocks))
        with command_line(*words, *flags, *row.flags):
            os.environ.update(row.environment)
            os.environ.update({f"HF_WSD_{name.upper()}": str(value) for name, value in settings.items()})
            MAIN[door]()
        return run

    yield run_here
    start_anew()


def start_anew():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    torch._dynamo.reset()


def branch_is_the_straight_run(train: Callable[..., Path], door: str, row: Row, folder: Path) -> bool:
    """Train a trunk up to the fork, the branch from there, and the straight run."""
    decay = {"num_decay_steps": row.end - row.fork}
    every = [("--eval_steps", steps) for steps in row.evaluations]
    trunk = train(door, row, folder / "trunk", "--max_steps", row.fork, *every[0], trunk=1)
    straight = train(door, row, folder / "straight", "--max_steps", row.end, *every[1], **decay)
    resume = ("--resume_from_checkpoint", trunk / f"checkpoint-{row.fork}")
    branch = train(door, row, folder / "branch", "--max_steps", row.end, *resume, *every[2], **decay)
    return same_weights(*(run / f"checkpoint-{row.end}" for run in (branch, straight)))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")  # its new name is too new
@pytest.mark.parametrize(("row", "door"), CELLS)
def test_trunk_and_branch_are_the_straight_run(row, door, train, tmp_path):
    assert branch_is_the_straight_run(train, door, row, tmp_path)


def compiled(*flags: str, **environment: str) -> Row:
    return Row(flags=flags, environment=environment, blocks=32, end=17)


COMPILED = {  # the script's larger model takes inductor a minute more; it was exact too
    "script": compiled("--eval_strategy", "no", "--torch_compile", "--torch_compile_backend", "aot_eager"),
    "recipe": compiled("--eval_strategy", "no", "--torch_compile"),
    "loop": compiled(ACCELERATE_DYNAMO_BACKEND="inductor"),
}


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile on CPU needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's compiler meets warnings of torch itself
@pytest.mark.parametrize("door", COMPILED)
def test_compiled_trunk_and_branch_are_the_compiled_straight_run_with_batches_of_one_shape(door, train, tmp_path):
    assert branch_is_the_straight_run(train, door, COMPILED[door], tmp_path)


LINE = ("--lr_scheduler_type", "wsd_s", "--budgets", 12, 20, "--decay_fraction", 0.25)


@pytest.mark.parametrize("door", ["recipe", "loop"])
def test_wsd_s_resumed_after_a_decay_goes_on_at_the_peak_as_the_straight_line_does(door, train, tmp_path):
    straight = train(door, Row(), tmp_path / "straight", *LINE)
    resumed = tmp_path / "resumed"
    shutil.copytree(straight / "_fork-points" / "checkpoint-12", resumed / "checkpoint-12")
    train(door, Row(), resumed, *LINE, "--resume_from_checkpoint", resumed / "checkpoint-12")
    lrs = {row["step"]: row["learning_rate"] for row in read_history(resumed) if "learning_rate" in row}
    assert lrs[13] == 1e-2
    assert same_weights(resumed / "checkpoint-20", straight / "checkpoint-20")


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="before 5.18 transformers resumes no run of several processes on CPU: it loads the optimizer to cpu:0",
)
def test_recipe_of_two_processes_on_a_stream_trains_trunk_and_branch_as_the_straight_run(rows, tmp_path):
    def train_two(door: str, row: Row, run: Path, *flags: object, **settings: int) -> Path:
        words = (ROOT / "recipes" / "pretrain.py", "--output_dir", run, *TINY, *rows(row.blocks), *row.flags, *flags)
        more = {f"HF_WSD_{name.upper()}": str(value) for name, value in settings.items()}
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
        command([*torchrun, *words], ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", **more)
        return run

    flags = ("--per_device_train_batch_size", 2, "--streaming", "--gradient_accumulation_steps", 2)
    row = Row(flags=flags, fork=7, end=11)
    assert branch_is_the_straight_run(train_two, "recipe", row, tmp_path)


def test_first_step_a_million_steps_deep_comes_at_most_1_3_times_as_late_as_a_fresh_runs():
    seconds = json.loads(command([ROOT / "tests" / "bench" / "deep.py", "--repeats", 3], OMP_NUM_THREADS="1").stdout)
    start_up = seconds.pop("start_up")
    late = {w: (start_up + median(s["branch"])) / (start_up + median(s["fresh"])) for w, s in seconds.items()}
    assert max(late.values()) <= 1.3, late
