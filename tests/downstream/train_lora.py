"""LoRA adapters on a frozen model. It has never heard of hf_wsd."""

from dataclasses import dataclass, field

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class ScriptArguments:
    model: str = field(metadata={"help": "A folder with the model."})


def blocks(count, seed):
    ids = torch.randint(0, 64, (count, 16), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row} for row in ids]


def main():
    script_args, args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(args.seed)
    lora = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, target_modules=["c_attn"], task_type="CAUSAL_LM")
    trainer = Trainer(
        model=get_peft_model(AutoModelForCausalLM.from_pretrained(script_args.model), lora),
        args=args,
        train_dataset=blocks(64, seed=1),
        eval_dataset=blocks(8, seed=2),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
