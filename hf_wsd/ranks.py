"""What all processes of a job have to agree on, without waiting for their devices."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

_group: Any = None
_of: Any = None  # the job's own group, which a script may leave and join anew
_status: int | None = None  # of a job that is done


def _cpu_group() -> Any:
    """A group of all processes that talk through gloo: asking a GPU for a number at every step would stall it."""
    global _group, _of
    if _of is None:
        atexit.register(_end)  # what a script's trackers register later runs before it
    if _of is not dist.group.WORLD:
        _of = dist.group.WORLD
        _group = _of if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return _group


def several() -> bool:
    """Whether this job has other processes that can be asked."""
    return bool(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def leave(status: int = 0) -> None:
    """Say that the job is done, and how: its process then ends without python's tear-down.

    Gloo's threads now and then abort a finished process in there (a tensor is let go after the interpreter is gone).
    Destroying the groups does not stop them: DDP and FSDP hold on to theirs.
    """
    global _status
    if _of is not None:
        _status = status
        if dist.is_initialized():
            dist.destroy_process_group()


def _end() -> None:
    if _status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status)


def highest(number: int) -> int:
    """The highest number that any process of the job gives; all of them have to ask."""
    if not several():
        return number
    tensor = torch.tensor([number])
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_cpu_group())
    return int(tensor.item())


def from_main(value: Any) -> Any:
    """The value of the main process; all processes have to ask."""
    if not several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_cpu_group())
    return values[0]
