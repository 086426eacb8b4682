"""A script like those people have: a small GPT-2 on packed token blocks. It has never heard of hf_wsd."""

from dataclasses import dataclass, field

import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class ScriptArguments:
    blocks: int = field(default=64, metadata={"help": "Number of training blocks."})
    block_size: int = field(default=16, metadata={"help": "Tokens of a block."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout of the model."})


class Blocks(torch.utils.data.Dataset):
    def __init__(self, count, size, seed):
        steps = torch.randint(1, 4, (count, size), generator=torch.Generator().manual_seed(seed))
        self.ids = steps.cumsum(dim=1) % 64

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def main():
    script_args, training_args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    p = script_args.dropout
    config = GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=p, embd_pdrop=p, attn_pdrop=p
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=training_args,
        train_dataset=Blocks(script_args.blocks, script_args.block_size, seed=1),
        eval_dataset=Blocks(16, script_args.block_size, seed=2),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
