"""The worker of `hf-wsd doctor`: `python -m hf_wsd`, with a `Stopwatch` in every Trainer."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import transformers.trainer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import hf_wsd.__main__ as launcher
from hf_wsd.registration import register


class Stopwatch(TrainerCallback):
    """Writes a row into OUTPUT_DIR.times whenever an update, an evaluation or a save is done.

    If there is a file OUTPUT_DIR.halt, every rank stands still after the update that it names until it is deleted: what
    is killed there is in the middle of its training, however fast it is.
    """

    def __init__(self) -> None:
        self._halt_after = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first update comes now."""
        halt = Path(f"{args.output_dir}.halt")
        self._halt_after = int(halt.read_text()) if halt.exists() else 0
        _write(args, state, "begin", engine=args.distributed_state.distributed_type.value)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An update is done."""
        _write(args, state, "step")
        if state.global_step == self._halt_after:
            _write(args, state, "halt")
            while Path(f"{args.output_dir}.halt").exists():
                time.sleep(0.02)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An evaluation is done."""
        _write(args, state, "evaluation")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint is saved, with its record."""
        _write(args, state, "save")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What comes after the training is not timed."""
        _write(args, state, "end")


def _write(args: TrainingArguments, state: TrainerState, event: str, **facts: Any) -> None:
    if state.is_world_process_zero:
        row = {"event": event, "step": state.global_step, "time": time.time(), **facts}
        with Path(f"{args.output_dir}.times").open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    register()  # first, so that a save is timed with its record
    transformers.trainer.DEFAULT_CALLBACKS.append(Stopwatch)
    launcher.main()
