"""Batches that a rewound run passes over: the samples of some updates, moved to the end of their epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from os.path import normpath
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler
from transformers import TrainingArguments

from hf_wsd.checkpoint import saved_checkpoints
from hf_wsd.errors import DataError, RunError
from hf_wsd.job import Job
from hf_wsd.lengths import Span, show_spans
from hf_wsd.lineage import RECORD, Lineage
from hf_wsd.plan import Plan


class MovedSampler:
    """A sampler with spans of its order moved to the end of their epoch, so that no sample is lost.

    It counts epochs by itself: not every sampler is told of them. For the rest it is the sampler inside.

    Args:
        sampler: one that gives an epoch's order, over all processes.
        spans: positions in that order by epoch; a second span of an epoch is one of the order that the first has left.
        epoch: the epoch that is asked for first.
    """

    def __init__(self, sampler: Any, spans: Mapping[int, Sequence[Span]], *, epoch: int) -> None:
        self._sampler, self._spans, self._epoch = sampler, spans, epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        order = iter(self._sampler)
        for span in self._spans.get(self._epoch, ()):
            order = move_to_end(order, span)
        self._epoch += 1
        yield from order

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._sampler, name)


def move_to_end(order: Iterable[Any], span: Span) -> Iterator[Any]:
    """An order with the entries at the positions of a span moved to its end.

    >>> list(move_to_end("abcdefg", (2, 4)))
    ['a', 'b', 'e', 'f', 'g', 'c', 'd']
    """
    moved = []
    for position, entry in enumerate(order):
        if span[0] <= position < span[1]:
            moved.append(entry)
        else:
            yield entry
    yield from moved


def move_data(loader: Any, spans: Sequence[Span], args: TrainingArguments, *, step: int) -> None:
    """Have a Trainer's loader give the samples of some updates at the end of their epoch.

    Args:
        loader: the training data, as Trainer hands it to callbacks.
        spans: updates, as in `Lineage.moved_data`; nothing is done without any.
        args: the Trainer's arguments.
        step: updates done.

    Raises:
        DataError: the data is a stream, a span does not end before its epoch does, or a decay on other data is in it.
    """
    if not spans:
        return
    sampler = _batch_sampler(loader)
    if sampler is None or args.ignore_data_skip:
        why = "--ignore_data_skip gives up the order" if args.ignore_data_skip else "a stream has no order"
        raise DataError(f"the batches of updates {show_spans(spans)} cannot be passed over: {why}")
    accumulation = args.gradient_accumulation_steps
    updates = ceil(len(loader) / accumulation)  # of an epoch
    samples = loader.total_batch_size * accumulation  # of an update
    by_epoch: dict[int, list[Span]] = defaultdict(list)
    for start, stop in spans:
        epoch, first = divmod(start, updates)
        if first + stop - start >= updates:
            raise DataError(
                f"the batches of updates {show_spans([(start, stop)])} cannot be moved to the end of their epoch: its "
                f"last update is {(epoch + 1) * updates - 1}. Skip fewer than {updates - first}"
            )
        by_epoch[epoch].append((first * samples, (first + stop - start) * samples))
    epoch = step // updates
    if max(by_epoch) >= epoch and getattr(loader.dataset, "decay_data", None):
        raise DataError(
            f"the batches of updates {show_spans(spans)} are at the end of an epoch that is not over, in the midst of "
            f"the decay's own data. Fork after update {(max(by_epoch) + 1) * updates - 1}, or keep the trunk's data"
        )
    sampler.sampler = MovedSampler(sampler.sampler, by_epoch, epoch=epoch)


def rewound_run(planned: Lineage | None, job: Job) -> Lineage | None:
    """The record of the rewound run in whose folder a job trains, also where it was started by hand; else None.

    Raises:
        RunError: the job starts from before the point to which the run was rewound.
    """
    record = planned
    if record is None and (job.folder / RECORD).exists():
        record = Lineage.read(job.folder)
    if record is None or record.intent != "rewind":
        return None
    if job.step < record.step:
        raise RunError(
            f"{job.folder} is a run that was rewound to step {record.step}, but the script starts at step {job.step}: "
            f"give --resume_from_checkpoint {_start_of(record, job)}"
        )
    return record


def _start_of(record: Lineage, job: Job) -> Path:
    own = saved_checkpoints(job.folder)
    parent = job.folder / (record.parent.checkpoint if record.parent else "")
    return list(own.values())[-1] if own else Path(normpath(parent))


def remaining(plan: Plan, rewound: Lineage | None) -> Plan:
    """A plan without the decays whose fork points a rewound run has left behind."""
    if rewound is None:
        return plan
    return replace(plan, decays=tuple(decay for decay in plan.decays if decay.fork > rewound.step))


def just_rewound(record: Lineage) -> bool:
    """Whether a run is at the step to which it was rewound."""
    return record.intent == "rewind" and record.parent is not None and record.step == record.parent.step


def refuse_moved_data(record: Lineage) -> None:
    """Refuse a run with moved data in a loop of one's own, which finds its place in the data by itself.

    Raises:
        RunError: as said.
    """
    if record.moved_data:
        raise RunError(
            f"the batches of updates {show_spans(record.moved_data)} are to be passed over, which only a run with a "
            "Trainer can: this loop finds its place in the data by itself"
        )


def _batch_sampler(loader: Any) -> Any:
    """The sampler of batches that all processes share, below Accelerate's; None for a stream."""
    if not hasattr(getattr(loader, "dataset", None), "__len__"):
        return None
    batches = loader.sampler if isinstance(loader.sampler, BatchSampler) else loader.batch_sampler
    while hasattr(batches, "batch_sampler"):  # Accelerate's has a `sampler` too, which it does not ask
        batches = batches.batch_sampler
    return batches if hasattr(batches, "sampler") else None
