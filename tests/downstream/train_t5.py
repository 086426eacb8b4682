"""A small T5 that learns to reverse; evaluations generate. It has never heard of hf_wsd."""

import torch
from transformers import (
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)


class Reversals(torch.utils.data.Dataset):
    def __init__(self, count, seed):
        self.ids = torch.randint(2, 32, (count, 12), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i].flip(0)}


def accuracy(prediction):
    width = min(prediction.predictions.shape[1] - 1, prediction.label_ids.shape[1])
    return {"accuracy": float((prediction.predictions[:, 1 : width + 1] == prediction.label_ids[:, :width]).mean())}


def main():
    (args,) = HfArgumentParser(Seq2SeqTrainingArguments).parse_args_into_dataclasses()
    set_seed(args.seed)
    config = T5Config(
        vocab_size=32,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    model.generation_config.do_sample = True  # as summarizers sample: an evaluation draws random numbers
    trainer = Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=Reversals(64, seed=1),
        eval_dataset=Reversals(8, seed=2),
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
