"""Other data in the decay: up to the fork point the trunk's own order, from its first update on a mixture.

    hf-wsd decay runs/small --control -- --decay_dataset code.jsonl=0.7 trunk=0.3

What an update reads depends on its number alone. So a run that is resumed in mid-decay reads on where it was, and a
straight run reads what trunk and branch read. A decay begins with the first samples of its data. Files are shuffled,
anew for each pass; `trunk` goes on with the trunk's samples, in the trunk's order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import count, islice
from typing import Any

import datasets
import numpy as np
import torch
from blocks import DataArguments, load_training_documents, pack, tokenize
from datasets import Dataset
from family_arguments import asked_schedule
from mixture import ROUND, TRUNK, Batches, Mixture, Source, find_sources, read_weights, shuffled
from transformers import PreTrainedTokenizerBase, Trainer

from hf_wsd.by_name import NAMES
from hf_wsd.errors import DataError
from hf_wsd.samples import take_samples
from hf_wsd.settings import Settings

logger = logging.getLogger(__name__)


class DecayBlocks(torch.utils.data.Dataset):
    """The trunk's blocks and, behind its end, where `sampler` alone reaches, those of the decay's sources.

    As long as the trunk's set, so that epochs, updates and fingerprint stay the trunk's.
    """

    def __init__(
        self,
        trunk: Dataset,
        weights: Mapping[str, float],
        blocks: Mapping[str, Dataset],
        *,
        begin: int,
        batches: Batches,
        seed: int,
    ) -> None:
        self._rows = datasets.concatenate_datasets([trunk, *blocks.values()])
        self._length, self._used, self._seed, self.epoch = len(trunk), batches.used(len(trunk)), seed, 0
        epoch, place = batches.place(len(trunk), begin)
        self._begin = epoch * self._used + place
        own = Source(offset=0, length=self._length, used=self._used, read=self._begin)
        lengths = {name: len(rows) for name, rows in blocks.items()}
        self._mixture = Mixture(weights.values(), find_sources(weights, lengths, self._length, own), seed)
        self.decay_data = describe(weights, blocks | {TRUNK: trunk})

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._rows[row]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        return self._rows.__getitems__(rows)

    def set_epoch(self, epoch: int) -> None:
        """Accelerate calls this where it cannot reach the sampler: several processes that resume in mid-epoch."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """The rows of this epoch as training reads them."""
        rows = shuffled(self._length, self._seed + self.epoch)
        before = self.epoch * self._used - self._begin  # samples of the decay before this epoch
        begin = min(max(-before, 0), self._length)
        rows[begin:] = self._mixture.rows(before + np.arange(begin, self._length))
        return rows

    @property
    def sampler(self) -> torch.utils.data.Sampler[int]:
        """The order of training, for a DataLoader."""
        return _InOrder(self)


class _InOrder(torch.utils.data.Sampler):
    """No RandomSampler: Accelerate would put its own in the place of one."""

    def __init__(self, blocks: DecayBlocks) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def set_epoch(self, epoch: int) -> None:
        self._blocks.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(self._blocks.order().tolist())


class DecayStream(torch.utils.data.IterableDataset):
    """A trunk's stream up to the fork point, then the mixture; its part of the trunk is the stream going on."""

    def __init__(
        self,
        trunk: Any,
        weights: Mapping[str, float],
        blocks: Mapping[str, Dataset],
        *,
        begin: int,
        batches: Batches,
        seed: int,
    ) -> None:
        self._trunk, self._begin = trunk, begin * batches.samples_per_update
        self._rows = datasets.concatenate_datasets(list(blocks.values())) if blocks else None
        lengths = {name: len(rows) for name, rows in blocks.items()}
        self._mixture = Mixture(weights.values(), find_sources(weights, lengths, 0, None), seed)
        self.decay_data = describe(weights, blocks | {TRUNK: trunk})

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        trunk = iter(self._trunk)
        yield from islice(trunk, self._begin)
        for first in count(0, ROUND):
            for row in self._mixture.rows(first + np.arange(ROUND)).tolist():
                yield next(trunk) if row < 0 else self._rows[row]


class OwnOrderTrainer(Trainer):
    """A Trainer that reads a training set in the set's own order, if it has one."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        data = self.train_dataset if train_dataset is None else train_dataset
        return data.sampler if isinstance(data, DecayBlocks) else super()._get_train_sampler(train_dataset)


def describe(weights: Mapping[str, float], blocks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the record says of a mixture: each source's part and fingerprint."""
    total = sum(weights.values())
    return {
        name: {"part": round(weight / total, 6), "data": take_samples(blocks[name]).fingerprint}
        for name, weight in weights.items()
    }


def with_decay_data(
    trunk: Any,
    data: DataArguments,
    args: Any,
    tokenizer: PreTrainedTokenizerBase,
    batches: Batches,
    main_process_first: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Any:
    """The training set of a run: the trunk's own or, where the run decays on other data, one that goes over to it.

    Args:
        trunk: blocks or a stream of the trunk.
        data: has the decay's data.
        args: of the recipe: schedule, length, seed.
        tokenizer: as for the trunk.
        batches: of the run.
        main_process_first: as in `load_blocks`.

    Raises:
        DataError: data that cannot be read, or a run in which the place of the decay's first sample is not known.
    """
    if not data.decay_dataset:
        return trunk
    weights, begin = read_weights(data.decay_dataset), _decay_begin(args)
    if begin is None:
        logger.warning("--decay_dataset is for branches: not for the trunk, nor for a decay that starts while it runs")
        return trunk
    _refuse_other_orders(args, trunk)
    with main_process_first():
        blocks = {
            name: pack(tokenize(load_training_documents(name, data), data, tokenizer), name, data.block_size)
            for name in weights
            if name != TRUNK
        }
    seed = args.seed if getattr(args, "data_seed", None) is None else args.data_seed
    kind = DecayBlocks if hasattr(trunk, "__len__") else DecayStream
    mixed = kind(trunk, weights, blocks, begin=begin, batches=batches, seed=seed)
    samples = (args.max_steps - begin) * batches.samples_per_update
    for name, rows in blocks.items():
        part = mixed.decay_data[name]["part"]
        told = (begin, 100 * part, name, len(rows), part * samples / len(rows))
        logger.warning("from step %d on the decay reads %g %% of its blocks from %s: all %d of them %.2g times", *told)
    return mixed


def _decay_begin(args: Any) -> int | None:
    """The update with which the decay starts; None for a trunk."""
    settings = Settings.from_env()
    if args.lr_scheduler_type not in NAMES:
        raise DataError(f"--decay_dataset with --lr_scheduler_type {args.lr_scheduler_type}: it is for wsd")
    clocks = {"finish_by": settings.finish_by, "time_budget": settings.time_budget}
    clocks["on_job_end decay"] = settings.on_job_end == "decay"
    if (clock := [name for name, given in clocks.items() if given]) and not settings.branch:
        raise DataError(
            f"--decay_dataset with {clock[0]}: a running job reads batches ahead, so its decay keeps the trunk's data. "
            "Train the trunk, then `hf-wsd decay RUN --at STEP -- --decay_dataset ...`"
        )
    if settings.trunk and not settings.branch:
        return None
    if args.max_steps <= 0:
        raise DataError("--decay_dataset needs to know where the decay starts: give --budgets, or --max_steps")
    schedule = asked_schedule(args)
    begins = [step for step, kind in schedule.checkpoint_steps().items() if kind == "pre-decay"]
    if len(begins) > 1:
        raise DataError(f"--decay_dataset is for one decay, but the line has {len(begins)}: use --trunk with wsd")
    return begins[0] if begins else None


def _refuse_other_orders(args: Any, trunk: Any) -> None:
    """Refuse what reads a training set in another order than Trainer's and Accelerate's own."""
    config = getattr(args, "accelerator_config", None)
    strange = {
        "--train_sampling_strategy": getattr(args, "train_sampling_strategy", "random") != "random",
        "--group_by_length": getattr(args, "group_by_length", False),
        "--ignore_data_skip": getattr(args, "ignore_data_skip", False),
        "split_batches": getattr(config, "split_batches", False),
        "dispatch_batches": getattr(config, "dispatch_batches", None) is not None,
        "use_seedable_sampler false": not getattr(config, "use_seedable_sampler", True),
        "several --dataloader_num_workers of a stream": not hasattr(trunk, "__len__")
        and getattr(args, "dataloader_num_workers", 0) > 1,
    }
    if found := [name for name, there in strange.items() if there]:
        raise DataError(
            f"--decay_dataset with {found[0]}: nobody could tell where the decay's data begins. Leave it out"
        )
