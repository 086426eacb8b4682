"""Trainers that make their optimizer or their scheduler themselves. They have never heard of hf_wsd."""

from dataclasses import dataclass, field

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    get_scheduler,
    set_seed,
)


class TwoRates(Trainer):
    """A tenth of the lr for the embeddings."""

    def create_optimizer(self, model=None):
        named = dict((model or self.model).named_parameters())
        embeddings = [p for name, p in named.items() if ".wte." in name or ".wpe." in name]
        others = [p for name, p in named.items() if ".wte." not in name and ".wpe." not in name]
        lr = self.args.learning_rate
        self.optimizer = torch.optim.AdamW([{"params": others, "lr": lr}, {"params": embeddings, "lr": lr / 10}])
        return self.optimizer


class OwnArguments(Trainer):
    """A warm-up in the code, whatever the arguments say."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = get_scheduler(
            "wsd",
            optimizer=optimizer or self.optimizer,
            num_warmup_steps=7,
            num_training_steps=num_training_steps,
            scheduler_specific_kwargs={"decay_fraction": 0.25},
        )
        return self.lr_scheduler


class OwnScheduler(Trainer):
    """A schedule of its own."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda step: 0.9**step)
        return self.lr_scheduler


@dataclass
class ScriptArguments:
    trainer: str = field(default="TwoRates", metadata={"help": "TwoRates, OwnArguments or OwnScheduler."})


def blocks(count, seed):
    ids = torch.randint(0, 64, (count, 16), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row} for row in ids]


def main():
    script_args, args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    trainer = globals()[script_args.trainer](
        model=GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=1)),
        args=args,
        train_dataset=blocks(64, seed=1),
        eval_dataset=blocks(8, seed=2),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
