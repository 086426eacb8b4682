"""The same pretraining as pretrain.py in a loop of one's own, with Accelerate: copy it, and change what you like.

    accelerate launch recipes/pretrain_no_trainer.py --output_dir runs/small --trunk --budgets 0.4M 0.8M 1.6M 3.2M
    hf-wsd decay runs/small
    hf-wsd report runs/small

Model, data and family have the arguments of pretrain.py. A command that is repeated goes on from the newest whole
checkpoint in --output_dir. The scheduler is not prepared by Accelerate, which would step it once for every process.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import evaluate
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from blocks import DataArguments, byte_lengths, load_blocks, load_tokenizer, option
from decay_data import Batches, with_decay_data
from family_arguments import FamilyArguments, register_family, resume_point, set_length
from pretrain import METRIC, ModelArguments, new_model, per_block
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, default_data_collator

import hf_wsd
from hf_wsd.by_name import NAMES
from hf_wsd.checkpoint import check_checkpoint
from hf_wsd.completing import missing_model
from hf_wsd.errors import SettingsError, WSDError, unknown
from hf_wsd.loop import WSDLoop, accelerator_job
from hf_wsd.randomness import unchanged_randomness
from hf_wsd.ranks import leave
from hf_wsd.trackers import accelerate_trackers, survive

logger = logging.getLogger(__name__)


@dataclass
class LoopArguments:
    """The loop; names and defaults are those of pretrain.py."""

    output_dir: str = option("runs/loop", "The run's folder.")
    lr_scheduler_type: str = option("wsd", f"{', '.join(NAMES)}.")
    learning_rate: float = option(5e-3, "Peak lr; the default suits the small presets.")
    warmup_steps: int = option(50, "Steps of the warm-up.")
    weight_decay: float = option(0.1, "Weight decay of matrices.")
    adam_beta2: float = option(0.95, "AdamW's beta2.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm.")
    max_steps: int = option(-1, "Updates; default: what the budgets need.")
    per_device_train_batch_size: int = option(8, "Blocks of a process in a forward pass.")
    per_device_eval_batch_size: int = option(8, "The same in an evaluation.")
    gradient_accumulation_steps: int = option(1, "Forward passes of an update.")
    eval_steps: int = option(100, "Steps between evaluations.")
    save_steps: int = option(100, "Steps between checkpoints that a resume may use.")
    save_total_limit: int = option(2, "Checkpoints beside the kept fork points.")
    logging_steps: int = option(10, "Steps between log lines.")
    seed: int = option(42, "Of weights, order of the data and dropout.")
    resume_from_checkpoint: str | None = option(None, "Default: the newest whole checkpoint of --output_dir.")
    report_to: str | None = option(None, "tensorboard, trackio or wandb.")
    project: str = option("hf_wsd", "What the tracker calls the project.")
    use_cpu: bool = option(False, "Train on the CPU; precision and engine are those of `accelerate launch`.")

    def __post_init__(self) -> None:
        if self.lr_scheduler_type not in NAMES:
            raise SettingsError(unknown("schedule", self.lr_scheduler_type, NAMES))


def new_optimizer(model: torch.nn.Module, args: LoopArguments) -> torch.optim.Optimizer:
    """AdamW without weight decay of vectors: biases and layer norms."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.adam_beta2))


def micro_batches(accelerator: Accelerator, loader: Any, updates_done: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches after those of `updates_done` updates, without end; every epoch has an order of its own."""
    accumulation = accelerator.gradient_accumulation_steps
    if not hasattr(loader.dataset, "__len__"):  # a stream has one endless epoch
        yield from midway(islice(loader, updates_done * accumulation, None)) if updates_done else loader
    epoch, updates = divmod(updates_done, ceil(len(loader) / accumulation))  # an epoch's last update may be smaller
    while True:
        part = accelerator.skip_first_batches(loader, updates * accumulation) if updates else loader
        part.set_epoch(epoch)
        yield from midway(part) if updates else part
        epoch, updates = epoch + 1, 0


def midway(loader: Iterable[Any]) -> Iterator[Any]:
    """A loader that goes on: the random number that it draws when it starts was drawn before the checkpoint."""
    batches = iter(loader)
    with unchanged_randomness():
        first = next(batches)
    yield first
    yield from batches


def load_data(args: LoopArguments, data_args: DataArguments, tokenizer: Any, accelerator: Accelerator) -> list[Any]:
    """Training data, which may go over to data of the decay, and evaluation data."""
    first = accelerator.main_process_first
    train_blocks, eval_blocks = load_blocks(data_args, tokenizer, first)
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    batches = Batches(size, accelerator.num_processes, accumulation, drop_last=True)
    return [with_decay_data(train_blocks, data_args, args, tokenizer, batches, first), eval_blocks]


def data_loaders(args: LoopArguments, train_blocks: Any, eval_blocks: Any) -> list[DataLoader]:
    """Training data, shuffled where it is no stream, and evaluation data."""
    own = getattr(train_blocks, "sampler", None)  # the order of data that goes over to the decay's
    order = {"sampler": own} if own else {"shuffle": hasattr(train_blocks, "__len__")}
    options = {"collate_fn": default_data_collator}
    return [
        DataLoader(train_blocks, args.per_device_train_batch_size, drop_last=True, **order, **options),
        DataLoader(eval_blocks, args.per_device_eval_batch_size, **options),
    ]


def evaluation(
    accelerator: Accelerator, model: torch.nn.Module, loader: Any, lengths: torch.Tensor
) -> dict[str, float]:
    """Loss, perplexity and bits per byte of the validation blocks."""
    metric = evaluate.load(str(METRIC), keep_in_memory=True)
    model.eval()
    for batch in loader:
        with torch.no_grad():
            sums = per_block(model(**batch).logits, batch["labels"], lengths)
        nll_sum, n_tokens, n_bytes = accelerator.gather_for_metrics(sums).T.cpu()
        metric.add_batch(nll_sum=nll_sum, n_tokens=n_tokens.int(), n_bytes=n_bytes.int())
    model.train()
    return {f"eval_{name}": value for name, value in metric.compute().items()}


def track(accelerator: Accelerator, run: WSDLoop, values: dict[str, float]) -> None:
    """Values for the history and the trackers."""
    row = run.log(values)
    with survive(accelerator):
        accelerator.log(row, step=run.step)


def train(
    accelerator: Accelerator,
    run: WSDLoop,
    args: LoopArguments,
    model: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    train_loader: Any,
    evaluate_now: Callable[[], dict[str, float]],
) -> None:
    """The updates from the run's step to its last."""
    model.train()
    losses: list[torch.Tensor] = []
    for batch in micro_batches(accelerator, train_loader, run.step):
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            losses.append(loss.detach())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        lr = scheduler.get_last_lr()[0]  # of the update just made
        run.update()
        if run.step % args.logging_steps == 0:
            mean = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
            accelerator.print(f"step {run.step}: loss {mean:.4f}, lr {lr:.3g}")
            track(accelerator, run, {"loss": mean, "learning_rate": lr})
            losses.clear()
        if run.step % args.eval_steps == 0 or run.evaluates:
            with run.evaluation():
                track(accelerator, run, evaluate_now())
        if run.step % args.save_steps == 0 or run.keeps:
            run.save()
        if run.step >= run.last_step:
            break


def main() -> None:
    """Parse, load, train, save."""
    parser = HfArgumentParser((ModelArguments, DataArguments, FamilyArguments, LoopArguments))
    model_args, data_args, family, args = parser.parse_args_into_dataclasses()
    accelerator = Accelerator(
        cpu=args.use_cpu,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    samples = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    per_step = {"tokens_per_step": samples * data_args.block_size, "samples_per_step": samples}
    register_family(family, args.lr_scheduler_type, per_step)
    set_length(family, args, per_step)
    if args.max_steps <= 0:
        raise SettingsError("how long? Give --budgets, or --max_steps")
    checkpoint = resume_point(args)
    finished = checkpoint is not None and check_checkpoint(Path(checkpoint), to_resume=False) == args.max_steps
    if finished and not missing_model(Path(args.output_dir), Path(checkpoint)):
        return logger.warning("%s is finished: nothing is left to train", checkpoint)

    set_seed(args.seed)
    tokenizer = load_tokenizer(data_args, model_args.model_name_or_path)
    train_blocks, eval_blocks = load_data(args, data_args, tokenizer, accelerator)
    model = new_model(model_args, len(tokenizer), data_args.block_size, tokenizer.eos_token_id)
    optimizer = new_optimizer(model, args)
    scheduler = hf_wsd.get_scheduler(args.lr_scheduler_type, optimizer, args.warmup_steps, args.max_steps)
    loaders = data_loaders(args, train_blocks, eval_blocks)
    model, optimizer, train_loader, eval_loader = accelerator.prepare(model, optimizer, *loaders)
    accelerator.register_for_checkpointing(scheduler)
    if checkpoint and check_checkpoint(Path(checkpoint)):
        accelerator.load_state(checkpoint)
    if not finished:  # else a kill has cut short what follows
        start = {"step": scheduler.steps_done, "max_steps": args.max_steps, "checkpoint": checkpoint, "seed": args.seed}
        job = accelerator_job(accelerator, batch_size=args.per_device_train_batch_size, folder=args.output_dir, **start)
        limit = args.save_total_limit
        run = WSDLoop(accelerator, scheduler, job, model=model, dataset=train_blocks, save_total_limit=limit)
        if args.report_to:
            accelerator.init_trackers(args.project, **accelerate_trackers(run.record, Path(args.output_dir)))
        lengths = torch.tensor(byte_lengths(tokenizer) or [0] * len(tokenizer))
        evaluate_now = partial(evaluation, accelerator, model, eval_loader, lengths)
        train(accelerator, run, args, model, optimizer, scheduler, train_loader, evaluate_now)
    options = {"is_main_process": accelerator.is_main_process, "save_function": accelerator.save}
    accelerator.unwrap_model(model).save_pretrained(args.output_dir, **options)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
        leave()
    except WSDError as error:
        raise SystemExit(f"hf_wsd: {error}") from None
