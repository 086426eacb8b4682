"""Everything in code, as in a notebook: the arguments, or `set_lr_scheduler` after them. No word of hf_wsd."""

import argparse

from tiny import Blocks, make_model
from transformers import Trainer, TrainingArguments

cli = argparse.ArgumentParser()
cli.add_argument("--output_dir", required=True)
cli.add_argument("--scheduler", default="wsd")
cli.add_argument("--afterwards", action="store_true", help="set the schedule on the finished arguments")
flags = cli.parse_args()

common = {
    "output_dir": flags.output_dir,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
if flags.afterwards:
    args = TrainingArguments(**common).set_lr_scheduler(name=flags.scheduler, max_steps=20, warmup_steps=5)
else:
    kwargs = {"num_decay_steps": 5, "decay_type": "linear"}
    args = TrainingArguments(
        **common, max_steps=20, warmup_steps=5, lr_scheduler_type=flags.scheduler, lr_scheduler_kwargs=kwargs
    )

trainer = Trainer(model=make_model(), args=args, train_dataset=Blocks())
trainer.train()
trainer.save_state()
