"""A sentence embedding model, as in sentence-transformers' own examples. It has never heard of hf_wsd."""

from dataclasses import dataclass, field

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from transformers import HfArgumentParser, set_seed


@dataclass
class ScriptArguments:
    model: str = field(metadata={"help": "A folder with a transformer and its tokenizer."})


def pairs(numbers):
    return Dataset.from_dict(
        {"anchor": [f"the number {n}" for n in numbers], "positive": [f"{n} is a number" for n in numbers]}
    )


def main():
    parser = HfArgumentParser((ScriptArguments, SentenceTransformerTrainingArguments))
    script_args, args = parser.parse_args_into_dataclasses()
    set_seed(args.seed)
    model = SentenceTransformer(script_args.model)  # a plain transformer: its mean becomes the embedding
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=pairs(range(64)),
        eval_dataset=pairs(range(64, 72)),
        loss=losses.MultipleNegativesRankingLoss(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
