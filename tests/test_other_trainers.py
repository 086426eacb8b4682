"""Trainers of other projects and of one's own, each as its user starts it: real processes, scripts without hf_wsd."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer_runs import FAMILY, FLAGS, ROOT, command, same_weights, train_here
from transformers import AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, set_seed

from hf_wsd import wsd
from hf_wsd.family import Run, read_run
from hf_wsd.lineage import Lineage

pytestmark = pytest.mark.slow
SCRIPTS = ROOT / "tests" / "downstream"


@dataclass(frozen=True, kw_only=True)
class Program:
    """What follows the launcher's own flags, and what it must make of them.

    Args:
        target: a script or module, and the arguments that it alone has.
        needs: the package without which it cannot run.
        flags: the arguments that all scripts have; a YAML file has its own.
        peak_lrs: of its parameter groups.
        warmup: its steps of warm-up.
        shape: of its decay.
    """

    target: tuple[str, ...]
    needs: str = "transformers"
    flags: tuple[str, ...] = (*FLAGS, "--logging_steps", "1", "--include_num_input_tokens_seen", "True")
    peak_lrs: tuple[float, ...] = (1e-2, 1e-2)
    warmup: int = 5
    shape: str = "1-sqrt"

    def train(self, run: Path, *flags: object, launch: tuple[object, ...] = ()) -> Path:
        argv = ["-m", "hf_wsd", *launch, *self.target, *self.flags, "--output_dir", run, *flags]
        command(argv, cwd=run.parents[1], HF_DATASETS_CACHE=str(run.parents[1] / "datasets"))
        return run


def script(name: str, *arguments: str, **kwargs: Any) -> Program:
    return Program(target=(str(SCRIPTS / name), *arguments), **kwargs)


GENERATE = ("--predict_with_generate", "True", "--generation_max_length", "14")
WRAPPED = ("--packing", "True", "--packing_strategy", "wrapped", "--max_length", "32")
PROGRAMS = {
    "trl-yaml": Program(
        target=("-m", "trl.scripts.sft", "--config", str(SCRIPTS / "sft.yaml")), needs="trl", flags=(), shape="linear"
    ),
    "trl-packed": script("train_sft.py", "--model", "model", "--data", "data", *WRAPPED, needs="trl"),
    "t5": script("train_t5.py", *GENERATE),
    "sentences": script("train_sentences.py", "--model", "bert", needs="sentence_transformers"),
    "lora": script("train_lora.py", "--model", "model", needs="peft"),
    "two-rates": script("train_subclasses.py", "--trainer", "TwoRates", peak_lrs=(1e-2, 1e-3)),
    "own-arguments": script("train_subclasses.py", "--trainer", "OwnArguments", warmup=7),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A program's trunk with its branch, and the run straight to the same end."""

    program: Program
    trunk: Run
    straight: Run

    @property
    def ends(self) -> tuple[Path, Path]:
        """The last checkpoints of branch and straight run."""
        return self.trunk.branches[0].path / "checkpoint-40", self.straight.path / "checkpoint-40"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a small GPT-2, a small BERT and lines of text."""
    place = tmp_path_factory.mktemp("place")
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "recipes" / "corpus" / "tokenizer")
    words, end = len(tokenizer), tokenizer.eos_token_id
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=words, n_positions=64, n_embd=16, n_layer=1, n_head=1, **ends)
    ).save_pretrained(place / "model")
    BertModel(
        BertConfig(
            vocab_size=words, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, **ends
        )
    ).save_pretrained(place / "bert")
    for folder in ("model", "bert"):
        tokenizer.save_pretrained(place / folder)
    numbers = random.Random(1)
    (place / "data").mkdir()
    for split, count in (("train", 80), ("test", 8)):
        lines = (" ".join(str(numbers.randrange(99)) for _ in range(numbers.randrange(3, 20))) for _ in range(count))
        (place / "data" / f"{split}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return place


@pytest.fixture(scope="module", params=PROGRAMS)
def family(request, place) -> Family:
    program, folder = PROGRAMS[request.param], place / request.param
    if find_spec(program.needs) is None:
        pytest.skip(f"{program.needs} is not installed")
    trunk = program.train(folder / "trunk", "--num_train_epochs", 9, launch=FAMILY)
    command(["-m", "hf_wsd.cli", "decay", trunk, "--budgets", 40], cwd=place)
    straight = program.train(folder / "straight", "--max_steps", 40, launch=("--decay-fraction", 0.25))
    return Family(program=program, trunk=read_run(trunk), straight=read_run(straight))


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    (file,) = checkpoint.glob("*.safetensors")
    return load_file(file)


def state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "trainer_state.json").read_text())


def lrs(checkpoint: Path) -> dict[int, float]:
    """What Trainer itself logged, by step."""
    return {row["step"]: row["learning_rate"] for row in state(checkpoint)["log_history"] if "learning_rate" in row}


def test_branch_equals_the_straight_run_bit_for_bit(family):
    branch, straight = map(weights, family.ends)
    assert branch.keys() == straight.keys()
    assert all(torch.equal(branch[name], straight[name]) for name in branch)


def test_logged_lr_is_the_schedule_at_every_update(family):
    program, (branch, straight) = family.program, family.ends
    schedule = wsd(40, num_warmup_steps=program.warmup, decay_fraction=0.25, decay_type=program.shape)
    expected = {step: program.peak_lrs[0] * schedule(step - 1) for step in range(1, 41)}
    assert lrs(family.trunk.path / "checkpoint-30") | lrs(branch) == expected
    assert lrs(straight) == expected


def test_every_parameter_group_has_its_own_peak(family):
    assert Lineage.read(family.ends[0]).peak_lrs == family.program.peak_lrs


def test_record_counts_the_parameters_that_train(family):
    assert Lineage.read(family.ends[0]).parameters == sum(tensor.numel() for tensor in weights(family.ends[0]).values())


def test_record_counts_the_tokens_that_trainer_counts(family):
    for end in family.ends:
        assert Lineage.read(end).tokens == (state(end)["num_input_tokens_seen"] or None)


def test_generation_in_an_evaluation_does_not_change_training(tmp_path):
    flags = ("--max_steps", 12, *GENERATE)
    never, often = (
        train_here(tmp_path / name, *flags, *evaluations, script=SCRIPTS / "train_t5.py")
        for name, evaluations in (("never", ("--eval_strategy", "no")), ("often", ("--eval_steps", 3)))
    )
    assert same_weights(never / "checkpoint-12", often / "checkpoint-12")


SUBCLASSES, OWN_SCHEDULER = SCRIPTS / "train_subclasses.py", ("--trainer", "OwnScheduler", "--max_steps", 5)


def test_trainer_with_a_scheduler_of_its_own_is_left_alone(tmp_path):
    flags = ("--lr_scheduler_type", "linear", "--logging_steps", 1, "--save_strategy", "steps")
    run = train_here(tmp_path / "run", *OWN_SCHEDULER, *flags, script=SUBCLASSES)
    assert lrs(run / "checkpoint-5") == pytest.approx({step: 1e-2 * 0.9 ** (step - 1) for step in range(1, 6)})
    assert not list(run.rglob("wsd.json*"))


def test_trainer_that_would_ignore_the_asked_schedule_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="wsd would be ignored: the script trains with a LambdaLR of its own"):
        train_here(tmp_path / "run", *OWN_SCHEDULER, script=SUBCLASSES)
