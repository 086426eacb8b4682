"""What sixteen evenly spaced samples tell about a training set: its fingerprint and the tokens of a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A training set in short.

    Args:
        fingerprint: "<length>-<sha256 of the samples>"; "unknown" for a stream.
        tokens_per_sample: tokens of a sample, or None where samples differ, or have no `input_ids`.
    """

    fingerprint: str = UNKNOWN
    tokens_per_sample: int | None = None


def take_samples(dataset: Any, count: int = 16) -> Samples:
    """The `Samples` of a map-style dataset; of anything else, unknown ones.

    >>> take_samples([{"input_ids": [1, 2, 3]}] * 100).tokens_per_sample
    3
    """
    try:
        return _take(dataset, count)
    except Exception:  # any dataset may be given, and none may end a run here: one that breaks is unknown
        return Samples()


def _take(dataset: Any, count: int) -> Samples:
    length = len(dataset)
    samples = [dataset[i * (length - 1) // max(1, min(count, length) - 1)] for i in range(min(count, length))]
    made_anew = repr(_plain(dataset[0])) != repr(_plain(samples[0]))  # with random numbers: no two runs have the same
    digest = hashlib.sha256()
    lengths: set[int | None] = set()
    for sample in samples:
        ids = sample.get("input_ids") if isinstance(sample, Mapping) else None
        lengths.add(None if ids is None else len(ids))
        digest.update(repr(_plain(sample)).encode())
    return Samples(
        fingerprint=UNKNOWN if made_anew else f"{length}-{digest.hexdigest()[:16]}",
        tokens_per_sample=lengths.pop() if len(lengths) == 1 else None,
    )


def _plain(value: Any) -> Any:
    """What a repr tells the same in every process: arrays as lists, of other objects the kind and no address."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value if isinstance(value, (str, bytes, int, float, type(None))) else type(value).__name__
