"""The loss of a model on the held-out blocks of a run of the recipes; one line of JSON on stdout.

A decayed model, a checkpoint or a merge preview of a run; its data are those of the run's own command:

    python recipes/evaluate_model.py runs/small/_branches/1250-1-sqrt-312
    python recipes/evaluate_model.py runs/small/checkpoint-1200

A model from elsewhere on the blocks of a run, or of flags that follow `--` (they also replace the run's):

    python recipes/evaluate_model.py USER/NAME --run runs/small
    python recipes/evaluate_model.py USER/NAME -- --train_file pages.jsonl --block_size 512
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blocks import DataArguments, load_blocks, load_tokenizer, option
from pretrain import ModelArguments, metrics
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_wsd.errors import RecordError, RunError, WSDError
from hf_wsd.family import read_run
from hf_wsd.history import losses_of
from hf_wsd.lineage import RECORD, Command, Lineage


@dataclass
class EvaluationArguments:
    """What else of a run's command the loss depends on."""

    per_device_eval_batch_size: int = option(8, "Blocks in a batch.")
    bf16: bool = option(False, "As the run was trained.")
    fp16: bool = option(False, "As the run was trained.")
    use_cpu: bool = option(False, "No accelerator.")


def command_of(model: Path) -> Command | None:
    """The command that trained a model: by the record in its folder, or the one of the run that it lies in."""
    for folder in (model, *model.parents[:2]):  # RUN/_merged/NAME is two below its run
        if (folder / RECORD).exists() and (command := Lineage.read(folder).command):
            return command
        try:
            return read_run(folder).latest.command
        except RecordError:
            continue
    return None


def flags_of(command: Command) -> list[str]:
    """The flags of a script: what follows its name."""
    script = next((i for i, word in enumerate(command.argv) if word.endswith(".py")), 0)
    return list(command.argv[script + 1 :])


def evaluate(model: str, flags: Sequence[str]) -> dict[str, object]:
    """Loss, perplexity and bits per byte of a model, as the Trainer of recipes/pretrain.py gives them.

    Args:
        model: a folder or a name on the hub.
        flags: of recipes/pretrain.py; those that an evaluation does not need are passed over.
    """
    parser = HfArgumentParser((ModelArguments, DataArguments, EvaluationArguments), allow_abbrev=False)
    model_args, data_args, how, _ = parser.parse_args_into_dataclasses(list(flags), return_remaining_strings=True)
    tokenizer = load_tokenizer(data_args, model_args.model_name_or_path)
    refuse_other_tokenizer(model, tokenizer)
    _, blocks = load_blocks(data_args, tokenizer)
    compute_metrics, preprocess_logits = metrics(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=TrainingArguments(folder, report_to="none", disable_tqdm=True, **vars(how)),
            eval_dataset=blocks,
            data_collator=default_data_collator,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits,
        )
        found = losses_of(trainer.evaluate())
    known = {name: found[name] for name in ("loss", "perplexity", "bits_per_byte") if name in found}
    return {"model": model, **known, "blocks": len(blocks), "block_size": data_args.block_size}


def refuse_other_tokenizer(model: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model that has a tokenizer of its own, and another one: the loss would be that of other text."""
    if Path(model).is_dir() and not any(Path(model).glob("tokenizer*")):  # transformers would make an empty one
        return
    own = AutoTokenizer.from_pretrained(model)
    if own.get_vocab() != tokenizer.get_vocab():
        raise RunError(
            f"{model} has another tokenizer ({len(own)} tokens) than the blocks ({len(tokenizer)}): evaluate it on "
            f"blocks of its own, -- --tokenizer_name {model}"
        )


def main() -> None:
    """Parse, find the run's data, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="A model's folder, or its name on the hub.")
    parser.add_argument("--run", type=Path, help="The run whose data it is; default: the one that the model lies in.")
    ours, flags = sys.argv[1:], []
    if "--" in ours:
        ours, flags = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    args = parser.parse_args(ours)
    if args.run is not None:
        command = read_run(args.run).latest.command
    else:
        command = command_of(Path(args.model).resolve()) if Path(args.model).is_dir() else None
    if command is None and not flags:
        raise RunError(f"no record says on which data {args.model} was trained: give --run RUN, or flags after --")
    model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model
    if command is not None:
        flags = flags_of(command) + flags  # of a flag that is there twice, the last counts
        if Path(command.cwd).is_dir():
            os.chdir(command.cwd)  # from which its files were named
    with contextlib.redirect_stdout(sys.stderr):  # transformers prints what it logs
        result = evaluate(model, flags)
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        raise SystemExit(f"hf_wsd: {error}") from None
