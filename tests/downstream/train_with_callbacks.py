"""A script with callbacks of its own, one of which writes down all that it sees. It has never heard of hf_wsd."""

import json

from tiny import Blocks, make_model
from transformers import EarlyStoppingCallback, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments


class Witness(TrainerCallback):
    """A line for every event: its name, the step, what is about to happen, what was logged."""

    def __init__(self, path):
        self.path = path

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda args, state, control, **kwargs: self.write(name, state, control, kwargs)

    def write(self, name, state, control, kwargs):
        line = [name, state.global_step, state.max_steps, vars(control), kwargs.get("logs"), kwargs.get("metrics")]
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")


(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
trainer = Trainer(
    model=make_model(args.seed),
    args=args,
    train_dataset=Blocks(),
    eval_dataset=Blocks(16, seed=2),
    callbacks=[EarlyStoppingCallback(early_stopping_patience=9), Witness("events.jsonl")],
)
trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
trainer.save_model()
trainer.save_state()
trainer.create_model_card()
print(json.dumps([type(callback).__name__ for callback in trainer.callback_handler.callbacks]))
