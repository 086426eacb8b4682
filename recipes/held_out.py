"""The held-out blocks of a run of the recipes, found again by the command that its record keeps."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocks import DataArguments, load_blocks, load_tokenizer, option
from datasets import Dataset
from pretrain import ARGUMENTS, ModelArguments
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerBase

from hf_wsd.errors import RunError, SettingsError
from hf_wsd.lineage import Command


@dataclass
class EvaluationArguments:
    """What else of a run's command the loss depends on."""

    per_device_eval_batch_size: int = option(8, "Blocks in a batch.")
    bf16: bool = option(False, "As the run was trained.")
    fp16: bool = option(False, "As the run was trained.")
    use_cpu: bool = option(False, "No accelerator.")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out blocks, rows of equal `input_ids` and `labels`, and the tokenizer that made them."""

    blocks: Dataset
    block_size: int
    tokenizer: PreTrainedTokenizerBase
    how: EvaluationArguments

    def refuse_other_tokenizer(self, model: str) -> None:
        """Refuse a model that has a tokenizer of its own, and another one: the loss would be that of other text.

        Args:
            model: a folder or a name on the hub.
        """
        if Path(model).is_dir() and not any(Path(model).glob("tokenizer*")):  # transformers would make an empty one
            return
        own = AutoTokenizer.from_pretrained(model)
        if own.get_vocab() != self.tokenizer.get_vocab():
            raise RunError(
                f"{model} has another tokenizer ({len(own)} tokens) than the blocks ({len(self.tokenizer)}): evaluate "
                f"it on blocks of its own, -- --tokenizer_name {model}"
            )


def split_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, and those after it."""
    end = words.index("--") if "--" in words else len(words)
    return list(words[:end]), list(words[end + 1 :])


def held_out(
    whose: object,
    command: Command | None,
    flags: Sequence[str] = (),
    main_process_first: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> HeldOut:
    """The held-out blocks that a run's command and flags after it name; of a flag that is there twice the last counts.

    Args:
        whose: the run or the model, for errors.
        command: from the record of the run; relative names of files are from its folder.
        flags: of recipes/pretrain.py; those that an evaluation does not need are passed over.
        main_process_first: of the Accelerator, so that one process fills the cache for all.

    Raises:
        RunError: neither a command nor flags. SettingsError: flags that recipes/pretrain.py does not have.
    """
    refuse_unknown(flags)
    if command is None and not flags:
        raise RunError(f"no record says on which data {whose} was trained: give flags of recipes/pretrain.py after --")
    words = [*(flags_of(command) if command else ()), *flags]
    parser = HfArgumentParser((ModelArguments, DataArguments, EvaluationArguments), allow_abbrev=False)
    model, data, how, _ = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    with folder_of(command):
        tokenizer = load_tokenizer(data, model.model_name_or_path)
        _, blocks = load_blocks(data, tokenizer, main_process_first)
    return HeldOut(blocks=blocks, block_size=data.block_size, tokenizer=tokenizer, how=how)


def refuse_unknown(flags: Sequence[str]) -> None:
    """Refuse what recipes/pretrain.py would: a typo must not evaluate on other data without a word."""
    if odd := HfArgumentParser(ARGUMENTS, allow_abbrev=False).parse_known_args(list(flags))[1]:
        raise SettingsError(f"recipes/pretrain.py has no {' '.join(odd)}: its flags may follow --")


def flags_of(command: Command) -> list[str]:
    """The flags of a script: what follows its name."""
    script = next((i for i, word in enumerate(command.argv) if word.endswith(".py")), 0)
    return list(command.argv[script + 1 :])


@contextmanager
def folder_of(command: Command | None):
    """In the folder in which a command was given, if it still exists."""
    here = Path.cwd()
    if command is not None and Path(command.cwd).is_dir():
        os.chdir(command.cwd)
    try:
        yield
    finally:
        os.chdir(here)
