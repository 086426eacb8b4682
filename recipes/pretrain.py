"""Pretrain a GPT-2-style model with Warmup-Stable-Decay: a trunk, or one model of a given length.

A trunk on the embedded corpus, then a decayed model for every budget:

    accelerate launch recipes/pretrain.py --output_dir runs/small --trunk --budgets 0.4M 0.8M 1.6M 3.2M
    hf-wsd decay runs/small
    hf-wsd report runs/small

One model by itself, or the same model as a branch of the trunk (the same command with two more flags):

    python recipes/pretrain.py --output_dir runs/one --budgets 3.2M
    python recipes/pretrain.py --output_dir runs/two --budgets 3.2M --resume_from_checkpoint runs/small/checkpoint-1406

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
from dataclasses import dataclass, field
from pathlib import Path

import evaluate
import torch
from blocks import DataArguments, byte_lengths, load_blocks, load_tokenizer
from decay_data import Batches, OwnOrderTrainer, with_decay_data
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    EvalPrediction,
    GPT2Config,
    HfArgumentParser,
    ProgressCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import hf_wsd
from hf_wsd.by_name import NAMES, build_schedule
from hf_wsd.checkpoint import newest_whole
from hf_wsd.errors import SettingsError, WSDError, unknown
from hf_wsd.extending import point_to_extend
from hf_wsd.lineage import RECORD
from hf_wsd.plan import Plan
from hf_wsd.schedule import Schedule
from hf_wsd.scheduler import find_wsd_scheduler
from hf_wsd.settings import Settings

PRESETS = {  # layers, heads, width; the name counts parameters at vocabulary 2048, from 124M on at GPT-2's 50257
    "0.5M": (3, 3, 96),
    "2M": (5, 5, 160),
    "10M": (6, 6, 336),
    "30M": (8, 8, 512),
    "124M": (12, 12, 768),
    "350M": (24, 16, 1024),
}
LINES = ("wsd_s", "cyclic_cosine")  # one run, a finished model at the end of every cycle
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
class FamilyArguments:
    """How long, and with which decay."""

    trunk: bool = field(default=False, metadata={"help": "Train at the peak lr up to the last budget's fork point."})
    budgets: list[str] = field(
        default_factory=list,
        metadata={"help": "Lengths of the decayed models: tokens (2M, 1.5B) or steps (3000)."},
    )
    decay_fraction: float | None = field(default=None, metadata={"help": "Decay steps / steps of the model; 0.1."})
    decay_type: str | None = field(default=None, metadata={"help": "Shape of the decay; 1-sqrt."})
    keep_every: str | None = field(default=None, metadata={"help": "Keep a checkpoint for good every so many steps."})


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
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})


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


def register_family(family: FamilyArguments, kind: str, per_step: dict[str, int]) -> None:
    """Hand the family's arguments to the schedule: a line of cycles ends one at every budget."""
    settings = vars(family) | per_step  # a stream cannot be asked for a sample's length
    if kind in LINES:
        settings["cycle_ends"] = settings.pop("budgets")
    elif kind != "wsd":  # another baseline takes its length from the budget, and nothing else
        names = ("trunk", "decay_fraction", "decay_type", "keep_every", *(per_step if kind in NAMES else ()))
        settings = {name: settings[name] for name in names}
    asked = Settings.make(**{name: value for name, value in settings.items() if value}).given()
    before = Settings.from_env()
    for name, value in before.given().items() if not before.branch else ():
        if asked.get(name, value) != value:
            raise SettingsError(f"{name} is given twice: {value} by the launcher or HF_WSD_*, {asked[name]} here")
    hf_wsd.register(**asked)


def set_length(family: FamilyArguments, args: TrainingArguments, per_step: dict[str, int]) -> None:
    """Turn the budgets into max_steps: the end of the one model, of the line of cycles, or of the trunk."""
    settings = Settings.from_env()
    if settings.branch or not family.budgets:  # a branch's length is in its record
        return
    line = args.lr_scheduler_type in LINES
    if len(family.budgets) > 1 and not family.trunk and not line:
        raise SettingsError(
            f"{len(family.budgets)} budgets need --trunk, then `hf-wsd decay {args.output_dir}`; or in one line of "
            "cycles, --lr_scheduler_type wsd_s"
        )
    plan = Plan.of_budgets(family.budgets, **per_step, **({} if line else settings.decay_kwargs()))
    if args.max_steps <= 0:
        args.max_steps = plan.trunk_steps if family.trunk else plan.decays[-1].end


def per_block(logits: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sums of each block, [blocks, 3]: negative log likelihood (nats), tokens predicted, bytes they stand for."""
    targets = labels[:, 1:]
    counted = targets != -100
    known = targets.clamp(min=0)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), known, reduction="none")
    sums = (nll * counted, counted, lengths.to(labels.device)[known] * counted)
    return torch.stack([part.sum(dim=1).float() for part in sums], dim=1)


class PhaseProgress(ProgressCallback):
    """A progress bar that shows the phase of the update just made."""

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):  # noqa: D102
        if self.training_bar is not None and (ours := find_wsd_scheduler(lr_scheduler)):
            phase = ours.schedule.phase(max(state.global_step - 1, 0))
            self.training_bar.set_description(phase.value, refresh=False)
        super().on_step_end(args, state, control, **kwargs)


def resume_point(args: TrainingArguments) -> str | None:
    """The checkpoint that was named, or else the newest whole one of an earlier try in the same folder."""
    if args.resume_from_checkpoint:
        return args.resume_from_checkpoint
    ours = args.lr_scheduler_type in NAMES
    newest, damage = newest_whole(Path(args.output_dir), needs=RECORD if ours else None)
    for problem in damage:
        logger.warning("passed over: %s", problem)
    if newest is not None and (asked := asked_schedule(args)):
        newest, why = point_to_extend(Path(args.output_dir), newest, asked)
        if why:
            logger.warning("%s", why)
    return None if newest is None else str(newest)


def asked_schedule(args: TrainingArguments) -> Schedule | None:
    """The schedule that the run will ask for; None where only the Trainer knows its length."""
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if name not in NAMES or args.max_steps <= 0:
        return None
    ratio = 0 < args.warmup_steps < 1
    warmup_steps = args.get_warmup_steps(args.max_steps) if ratio else int(args.warmup_steps)
    kwargs = getattr(args, "lr_scheduler_kwargs", None)  # the recipe without a Trainer has none
    length = {"num_training_steps": args.max_steps, "num_warmup_steps": warmup_steps}
    return build_schedule(name, **length, kwargs=kwargs)


def main() -> None:
    """Parse, load, train, save."""
    hf_wsd.register()  # before the arguments are parsed: they name our schedules
    parser = HfArgumentParser((ModelArguments, DataArguments, FamilyArguments, PretrainingArguments))
    model_args, data_args, family, args = parser.parse_args_into_dataclasses()
    samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    per_step = {"tokens_per_step": samples * data_args.block_size, "samples_per_step": samples}
    register_family(family, args.lr_scheduler_type, per_step)
    set_seed(args.seed)

    set_length(family, args, per_step)
    checkpoint = resume_point(args)
    if checkpoint and checkpoint.endswith(f"-{args.max_steps}"):
        return logger.warning("%s is finished: nothing is left to train", checkpoint)

    tokenizer = load_tokenizer(data_args, model_args.model_name_or_path)
    train_blocks, eval_blocks = load_blocks(data_args, tokenizer, args.main_process_first)
    batches = Batches(
        args.train_batch_size, args.world_size, args.gradient_accumulation_steps, args.dataloader_drop_last
    )
    train_blocks = with_decay_data(train_blocks, data_args, args, tokenizer, batches, args.main_process_first)
    model = new_model(model_args, len(tokenizer), data_args.block_size, tokenizer.eos_token_id)

    metric = evaluate.load(str(METRIC), keep_in_memory=True)
    lengths = torch.tensor(byte_lengths(tokenizer) or [0] * len(tokenizer))

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        nll_sum, n_tokens, n_bytes = prediction.predictions.T
        return metric.compute(nll_sum=nll_sum, n_tokens=n_tokens.astype(int), n_bytes=n_bytes.astype(int))

    trainer = OwnOrderTrainer(
        model=model,
        args=args,
        train_dataset=train_blocks,
        eval_dataset=eval_blocks,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: per_block(logits, labels, lengths),
    )
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(PhaseProgress)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.accelerator.end_training()  # leaves the process group: else gloo now and then aborts a finished process


if __name__ == "__main__":
    try:
        main()
    except WSDError as error:
        raise SystemExit(f"hf_wsd: {error}") from None
