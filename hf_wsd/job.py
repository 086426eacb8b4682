"""What a script asked for, whichever loop it trains with: the part of it that a WSD run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """A script's run, before its first step.

    Args:
        folder: where its checkpoints go (--output_dir).
        step: updates done.
        max_steps: where its loop would end.
        length_given: whether the user gave that length in steps; a trunk without one stops at its last fork point.
        length_flag: what the script calls that length.
        checkpoint: the checkpoint that the user named, if it is there.
        prefix: of the names of its checkpoints.
        kwargs: `lr_scheduler_kwargs` as the script parsed them.
        setup: batch, accumulation, processes, seed, precision, device, ...: what must match for equal bits.
        samples_per_step: of one update over all processes; None where nobody knows.
        name: what trackers call the run; None is the folder's name.
        order_known: whether a resumed run has the samples in the order of a straight one.

    >>> Job(folder=Path("RUN"), step=0, max_steps=100).own_checkpoint
    PosixPath('RUN/checkpoint-0')
    """

    folder: Path
    step: int
    max_steps: int
    length_given: bool = True
    length_flag: str = "max_steps"
    checkpoint: Path | None = None
    prefix: str = "checkpoint-"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    setup: Mapping[str, Any] = field(default_factory=dict)
    samples_per_step: int | None = None
    name: str | None = None
    order_known: bool = True

    @property
    def own_checkpoint(self) -> Path:
        """Where the run itself saves the checkpoint of the step it is at."""
        return self.folder / f"{self.prefix}{self.step}"

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.setup.get("world_size", 1))
