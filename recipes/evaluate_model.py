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
import sys
import tempfile
from pathlib import Path

from held_out import HeldOut, held_out, split_flags
from pretrain import metrics
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

from hf_wsd.errors import RecordError, WSDError
from hf_wsd.family import read_run
from hf_wsd.history import losses_of
from hf_wsd.lineage import RECORD, Command, Lineage


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


def evaluate(model: str, data: HeldOut) -> dict[str, object]:
    """Loss, perplexity and bits per byte of a model, as the Trainer of recipes/pretrain.py gives them.

    Args:
        model: a folder or a name on the hub.
        data: the blocks; their tokenizer must be the model's.
    """
    data.refuse_other_tokenizer(model)
    compute_metrics, preprocess_logits = metrics(data.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=TrainingArguments(folder, report_to="none", disable_tqdm=True, **vars(data.how)),
            eval_dataset=data.blocks,
            data_collator=default_data_collator,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits,
        )
        found = losses_of(trainer.evaluate())
    known = {name: found[name] for name in ("loss", "perplexity", "bits_per_byte") if name in found}
    return {"model": model, **known, "blocks": len(data.blocks), "block_size": data.block_size}


def main() -> None:
    """Parse, find the run's data, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="A model's folder, or its name on the hub.")
    parser.add_argument("--run", type=Path, help="The run whose data it is; default: the one that the model lies in.")
    ours, flags = split_flags(sys.argv[1:])
    args = parser.parse_args(ours)
    local = Path(args.model).resolve() if Path(args.model).is_dir() else None
    command = None
    if args.run is not None:
        command = read_run(args.run).latest.command
    elif local is not None:
        command = command_of(local)
    with contextlib.redirect_stdout(sys.stderr):  # transformers prints what it logs
        result = evaluate(str(local or args.model), held_out(args.model, command, flags))
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        raise SystemExit(f"hf_wsd: {error}") from None
