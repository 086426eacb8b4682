"""Arguments as run_clm.py takes them: flags, or one JSON or YAML file. It has never heard of hf_wsd."""

import sys

from tiny import Blocks, make_model
from transformers import HfArgumentParser, Trainer, TrainingArguments

parser = HfArgumentParser(TrainingArguments)
if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
    (args,) = parser.parse_json_file(sys.argv[1])
elif len(sys.argv) == 2 and sys.argv[1].endswith(".yaml"):
    (args,) = parser.parse_yaml_file(sys.argv[1])
else:
    (args,) = parser.parse_args_into_dataclasses()

trainer = Trainer(model=make_model(args.seed), args=args, train_dataset=Blocks(), eval_dataset=Blocks(16, seed=2))
trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
trainer.save_state()
trainer.create_model_card()
