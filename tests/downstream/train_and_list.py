"""A script that writes down which blocks each update was trained on, in seen-<rank>.jsonl of its --output_dir."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tiny import make_model
from transformers import HfArgumentParser, Trainer, TrainingArguments


@dataclass
class ScriptArguments:
    order: str | None = field(default=None, metadata={"help": "A JSON list of blocks: train on these, as they come."})


class Numbered(torch.utils.data.Dataset):
    """Blocks of forty kinds; the first token of each is its kind."""

    def __init__(self, kinds):
        self.kinds = torch.tensor(kinds)
        self.tails = torch.randint(64, (40, 15), generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.kinds)

    def __getitem__(self, i):
        ids = torch.cat([self.kinds[i : i + 1], self.tails[self.kinds[i]]])
        return {"input_ids": ids, "labels": ids}


class ListingTrainer(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        with Path(self.args.output_dir, f"seen-{self.args.process_index}.jsonl").open("a") as file:
            file.write(json.dumps([self.state.global_step, inputs["input_ids"][:, 0].tolist()]) + "\n")
        return super().training_step(model, inputs, *args, **kwargs)


class InOrder(ListingTrainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


script, args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
kinds = json.loads(Path(script.order).read_text()) if script.order else list(range(40))
kind = InOrder if script.order else ListingTrainer
model = make_model(args.seed)
for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
    dropout.p = 0.0  # the generators move once an epoch, and a list has one epoch
trainer = kind(model=model, args=args, train_dataset=Numbered(kinds), eval_dataset=Numbered(list(range(8))))
trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
