"""Pretrain a GPT-2-style model with Warmup-Stable-Decay: a trunk, one model of a given length, or a whole family.

A family on the embedded corpus in one process: the trunk and, at every fork point, a decayed model:

    accelerate launch recipes/pretrain.py --output_dir runs/small --budgets 0.4M 0.8M 1.6M 3.2M
    hf-wsd report runs/small

The same in processes of their own, the trunk first, then the decays, on the same machine or another:

    accelerate launch recipes/pretrain.py --output_dir runs/small --trunk --budgets 0.4M 0.8M 1.6M 3.2M
    hf-wsd decay runs/small
    hf-wsd report runs/small

One model by itself, or the same model as a branch of the trunk (the same command with two more flags):

    python recipes/pretrain.py --output_dir runs/one --budgets 3.2M
    python recipes/pretrain.py --output_dir runs/two --budgets 3.2M --resume_from_checkpoint runs/small/checkpoint-1406

A decay, or with --trunk and a larger budget a longer trunk, from a fork point that somebody has published:

    python recipes/pretrain.py --output_dir runs/mine --budgets 3.2M --fork_from USER/NAME@stable-step1406-tokens2.9M

All of them in one line with WSD-S:

    accelerate launch recipes/pretrain.py --output_dir runs/line --lr_scheduler_type wsd_s --budgets 0.4M 0.8M 1.6M 3.2M

GPT-2 124M on a hub data set, 8 GPUs:

    accelerate launch --num_processes 8 recipes/pretrain.py --output_dir runs/gpt2 --preset 124M \
        --dataset_name HuggingFaceFW/fineweb-edu --dataset_config_name sample-10BT --streaming --tokenizer_name gpt2 \
        --block_size 1024 --per_device_train_batch_size 16 --gradient_accumulation_steps 4 --bf16 --torch_compile \
        --learning_rate 1e-3 --warmup_steps 1000 --trunk --budgets 1B 2B 4B 8B

A command that is repeated goes on from the newest whole checkpoint in --output_dir. All TrainingArguments work.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import torch
from blocks import DataArguments, byte_lengths, load_blocks, load_tokenizer
from decay_data import Batches, OwnOrderTrainer, with_decay_data
from family_arguments import (
    FamilyArguments,
    ForkArguments,
    register_family,
    resume_point,
    set_length,
    start_from_published,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    EvalPrediction,
    GPT2Config,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import hf_wsd
from hf_wsd.errors import SettingsError, WSDError, unknown
from hf_wsd.ranks import leave
from hf_wsd.scheduler import find_wsd_scheduler

PRESETS = {  # layers, heads, width; the name counts parameters at vocabulary 2048, from 124M on at GPT-2's 50257
    "0.1M": (2, 2, 32),
    "0.25M": (2, 2, 64),
    "0.5M": (3, 3, 96),
    "2M": (5, 5, 160),
    "10M": (6, 6, 336),
    "30M": (8, 8, 512),
    "124M": (12, 12, 768),
    "350M": (24, 16, 1024),
}
METRIC = Path(hf_wsd.__file__).parent / "metrics" / "bits_per_byte"

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """Which model to train."""

    preset: str = field(default="0.5M", metadata={"help": f"Size of a new GPT-2: {', '.join(PRESETS)}."})
    config_name: str | None = field(default=None, metadata={"help": "A new model of this config instead."})
    config_overrides: str | None = field(default=None, metadata={"help": "Changes: resid_pdrop=0.1,n_layer=2."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Go on training this model instead."})


@dataclass
class PretrainingArguments(TrainingArguments):
    """TrainingArguments with pretraining's defaults."""

    lr_scheduler_type: str = field(
        default="wsd", metadata={"help": "wsd, wsd_s, cyclic_cosine, multi_step, or any of transformers."}
    )
    learning_rate: float = field(default=5e-3, metadata={"help": "Peak lr; the default suits the small presets."})
    warmup_steps: float = field(default=50, metadata={"help": "Steps of the warm-up."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's beta2."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate, beside forks and decay ends."})
    eval_steps: float | None = field(default=100, metadata={"help": "Steps between evaluations."})
    save_steps: float = field(default=100, metadata={"help": "Steps between checkpoints that a resume may use."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints beside the kept fork points."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    hub_strategy: str = field(default="end", metadata={"help": "With --push_to_hub: each decayed model, at its end."})
    hub_private_repo: bool | None = field(default=True, metadata={"help": "A repository that is made is private."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})


ARGUMENTS = (ModelArguments, DataArguments, FamilyArguments, ForkArguments, PretrainingArguments)


def new_model(args: ModelArguments, vocab_size: int, block_size: int, eos_token_id: int) -> torch.nn.Module:
    """A model with fresh weights, or the one to go on from."""
    if args.model_name_or_path:
        return AutoModelForCausalLM.from_pretrained(args.model_name_or_path)
    ids = {"vocab_size": vocab_size, "bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    if args.config_name:
        config = AutoConfig.from_pretrained(args.config_name, **ids)
    elif args.preset in PRESETS:
        layers, heads, width = PRESETS[args.preset]
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(
            n_layer=layers,
            n_head=heads,
            n_embd=width,
            n_positions=block_size,
            loss_type="ForCausalLM",
            **ids,
            **no_dropout,
        )
    else:
        raise SettingsError(unknown("preset", args.preset, PRESETS))
    if args.config_overrides:
        config.update_from_string(args.config_overrides)
    return AutoModelForCausalLM.from_config(config)


def per_block(logits: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sums of each block, [blocks, 3]: negative log likelihood (nats), tokens predicted, bytes they stand for."""
    targets = labels[:, 1:]
    counted = targets != -100
    known = targets.clamp(min=0)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), known, reduction="none")
    sums = (nll * counted, counted, lengths.to(labels.device)[known] * counted)
    return torch.stack([part.sum(dim=1).float() for part in sums], dim=1)


def metrics(tokenizer: PreTrainedTokenizerBase) -> tuple[Callable[..., dict[str, float]], Callable[..., torch.Tensor]]:
    """What a Trainer needs for loss, perplexity and bits per byte of an evaluation."""
    metric = evaluate.load(str(METRIC), keep_in_memory=True)
    lengths = torch.tensor(byte_lengths(tokenizer) or [0] * len(tokenizer))

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        nll_sum, n_tokens, n_bytes = prediction.predictions.T
        return metric.compute(nll_sum=nll_sum, n_tokens=n_tokens.astype(int), n_bytes=n_bytes.astype(int))

    return compute, lambda logits, labels: per_block(logits, labels, lengths)


class PhaseProgress(ProgressCallback):
    """A progress bar that shows the phase of the update just made."""

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):  # noqa: D102
        if self.training_bar is not None and (ours := find_wsd_scheduler(lr_scheduler)):
            phase = ours.schedule.phase(max(state.global_step - 1, 0))
            self.training_bar.set_description(phase.value, refresh=False)
            self.training_bar.total = state.max_steps  # a decay on demand moves the end
        super().on_step_end(args, state, control, **kwargs)


def main() -> None:
    """Parse, load, train, save."""
    hf_wsd.register()  # before the arguments are parsed: they name our schedules
    parser = HfArgumentParser(ARGUMENTS)
    model_args, data_args, family, fork, args = parser.parse_args_into_dataclasses()
    samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    per_step = {"tokens_per_step": samples * data_args.block_size, "samples_per_step": samples}
    in_one_process = len(family.budgets) > 1 and args.lr_scheduler_type == "wsd" and not family.trunk
    family.trunk |= in_one_process
    register_family(family, args.lr_scheduler_type, per_step)
    start_from_published(fork, args)
    set_seed(args.seed)

    plan = set_length(family, args, per_step)
    work = hf_wsd.Family(args, resume_point, plan.decays if in_one_process else (), then=family.then)
    if work.next() is None:
        return logger.warning("%s is finished: nothing is left to train", args.output_dir)

    tokenizer = load_tokenizer(data_args, model_args.model_name_or_path)
    trunk_blocks, eval_blocks = load_blocks(data_args, tokenizer, args.main_process_first)
    vocabulary = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    models = [new_model(model_args, block_size=data_args.block_size, **vocabulary)]
    compute_metrics, preprocess_logits = metrics(tokenizer)

    def make_trainer(args: TrainingArguments) -> Trainer:
        batches = Batches(
            args.train_batch_size, args.world_size, args.gradient_accumulation_steps, args.dataloader_drop_last
        )
        trainer = OwnOrderTrainer(
            model=models.pop() if models else new_model(model_args, block_size=data_args.block_size, **vocabulary),
            args=args,
            train_dataset=with_decay_data(trunk_blocks, data_args, args, tokenizer, batches, args.main_process_first),
            eval_dataset=eval_blocks,
            processing_class=tokenizer,
            data_collator=default_data_collator,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits,
        )
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):  # they change the model for good
            models.append(trainer.model)
        if not args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(PhaseProgress)
        return trainer

    hf_wsd.train_family(work, make_trainer)


if __name__ == "__main__":
    try:
        main()
        leave()
    except WSDError as error:
        raise SystemExit(f"hf_wsd: {error}") from None
