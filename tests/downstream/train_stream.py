"""A script with a stream of its own, endless: a stream that ends and starts over is not resumed exactly by Trainer."""

from itertools import count

import torch
from tiny import Blocks, make_model
from transformers import HfArgumentParser, Trainer, TrainingArguments


class Stream(torch.utils.data.IterableDataset):
    """The blocks over and over; the workers of a DataLoader share them out."""

    def __init__(self, blocks):
        self.blocks = blocks

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return (self.blocks[i % len(self.blocks)] for i in count(first, step))


(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
trainer = Trainer(
    model=make_model(args.seed),
    args=args,
    train_dataset=Stream(Blocks(30)),
    eval_dataset=Blocks(16, seed=2),
)
trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
trainer.save_model()
