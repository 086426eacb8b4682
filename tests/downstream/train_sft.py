"""TRL's SFTTrainer on lines of text, packed into blocks of equal length. It has never heard of hf_wsd."""

from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import HfArgumentParser
from trl import SFTConfig, SFTTrainer


@dataclass
class ScriptArguments:
    model: str = field(metadata={"help": "A folder with model and tokenizer."})
    data: str = field(metadata={"help": "A folder with train.jsonl and test.jsonl."})


def main():
    script_args, training_args = HfArgumentParser((ScriptArguments, SFTConfig)).parse_args_into_dataclasses()
    data = load_dataset(script_args.data)
    trainer = SFTTrainer(
        model=script_args.model, args=training_args, train_dataset=data["train"], eval_dataset=data["test"]
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
