"""Scripts that make the scheduler themselves: in `create_scheduler`, or beside the optimizer. No word of hf_wsd."""

from dataclasses import dataclass

import torch
import transformers
from tiny import Blocks, make_model
from transformers import HfArgumentParser, Trainer, TrainingArguments


@dataclass
class ScriptArguments:
    scheduler: str = "wsd"
    beside_the_optimizer: bool = False


class MyTrainer(Trainer):
    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = make_scheduler(self.optimizer if optimizer is None else optimizer, num_training_steps)
        return self.lr_scheduler


def make_scheduler(optimizer, num_training_steps):
    return transformers.get_scheduler(script.scheduler, optimizer, args.get_warmup_steps(20), num_training_steps)


script, args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
model, data = make_model(args.seed), Blocks()
if script.beside_the_optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    trainer = Trainer(
        model=model, args=args, train_dataset=data, optimizers=(optimizer, make_scheduler(optimizer, args.max_steps))
    )
else:
    trainer = MyTrainer(model=model, args=args, train_dataset=data)
trainer.train()
trainer.save_state()
