"""Which rows the updates of a decay read: a weighted mixture of sources, as a function of the update's number alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_wsd.errors import DataError

TRUNK = "trunk"
ROUND = 1000  # samples of a mixture in which each source has its part to the sample


@dataclass(frozen=True)
class Batches:
    """How the updates of a run take samples from a map-style set, epoch by epoch.

    Args:
        size: samples of a process in a forward pass.
        processes: how many there are.
        accumulation: forward passes of an update.
        drop_last: whether an epoch leaves out the samples that fill no batch of all processes.
    """

    size: int
    processes: int
    accumulation: int
    drop_last: bool = False

    @property
    def samples_per_update(self) -> int:
        """Samples of an update over all processes; the last one of an epoch may have fewer."""
        return self.size * self.processes * self.accumulation

    def used(self, length: int) -> int:
        """Samples of an epoch that are trained on."""
        return length - length % (self.size * self.processes) if self.drop_last else length

    def place(self, length: int, update: int) -> tuple[int, int]:
        """The epoch of an update, and the place of its first sample there."""
        epoch, nth = divmod(update, max(math.ceil(self.used(length) / self.samples_per_update), 1))
        return epoch, nth * self.samples_per_update


def shuffled(length: int, seed: int) -> np.ndarray:
    """The order of a pass, as Accelerate's SeedableRandomSampler has it; its seed is the run's + the epoch."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).numpy()


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a source of a mixture lies among the rows of all.

    Args:
        offset: its first row.
        length: its rows.
        used: rows of a pass over it.
        read: samples of it that were read before the decay.
    """

    offset: int
    length: int
    used: int
    read: int = 0

    def rows(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """The rows of the samples with these numbers."""
        passes, places = np.divmod(self.read + samples, self.used)
        rows = np.empty_like(samples)
        for nth in np.unique(passes):
            rows[passes == nth] = shuffled(self.length, seed + int(nth))[places[passes == nth]]
        return self.offset + rows


class Mixture:
    """Which row each sample of a decay is.

    Which source has which sample repeats after ROUND of them, spread as evenly as can be: every update has its part.

    Args:
        weights: of the sources, relative to one another.
        sources: None for a stream, whose rows are -1.
        seed: of the run.
    """

    def __init__(self, weights: Iterable[float], sources: Iterable[Source | None], seed: int) -> None:
        parts = np.array(list(weights), dtype=float)
        parts *= ROUND / parts.sum()
        counts = np.floor(parts).astype(int)
        counts[np.argsort(counts - parts, kind="stable")[: ROUND - counts.sum()]] += 1
        order = np.argsort(np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n]), kind="stable")
        self._counts, self._sources, self._seed = counts, list(sources), seed
        self._source = np.repeat(np.arange(len(counts)), counts)[order]
        self._before = np.concatenate([np.arange(n) for n in counts])[order]

    def rows(self, samples: np.ndarray) -> np.ndarray:
        """The rows of the samples with these numbers, counted from the decay's first."""
        rounds, place = np.divmod(samples, ROUND)
        source = self._source[place]
        samples = rounds * self._counts[source] + self._before[place]  # of its own source
        rows = np.full_like(samples, -1)
        for nth, one in enumerate(self._sources):
            if one is not None:
                rows[source == nth] = one.rows(samples[source == nth], self._seed)
        return rows


def find_sources(
    weights: Mapping[str, float], lengths: Mapping[str, int], offset: int, trunk: Source | None
) -> list[Source | None]:
    """The sources in the order of their weights; those that are not the trunk lie one behind the other."""
    found = {TRUNK: trunk}
    for name, length in lengths.items():
        found[name] = Source(offset=offset, length=length, used=length)
        offset += length
    return [found[name] for name in weights]


def read_weights(words: Sequence[str]) -> dict[str, float]:
    """Weights by source: `code.jsonl=0.7 trunk=0.3`; without any, all are alike.

    Raises:
        DataError: a weight that is none, a source that is named twice, or one with too small a part.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, equals, text = word.rpartition("=")
        try:
            name, weight = (name, float(text)) if equals else (word, 1.0)
        except ValueError:  # a name with a = of its own
            name, weight = word, 1.0
        if not 0 < weight < math.inf:
            raise DataError(f"--decay_dataset {word}: a weight is a number above 0")
        if name in weights:
            raise DataError(f"--decay_dataset {' '.join(words)}: {name} is there twice")
        weights[name] = weight
    total = sum(weights.values())
    if small := [name for name, weight in weights.items() if weight < total / ROUND]:
        raise DataError(f"--decay_dataset {' '.join(words)}: {small[0]} has less than a part in {ROUND} of the whole")
    return weights
