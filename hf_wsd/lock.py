"""A lock on a run's folder: the process that trains there has it, and it is free again when that process ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_wsd.errors import RunError

LOCK = "_lock"  # the leading underscore keeps it out of Trainer's uploads


def take_lock(folder: Path) -> int:
    """The lock on a folder, as a file descriptor: it is free again when the descriptor is closed.

    Raises:
        BlockingIOError: another process has it. ImportError, OSError: this system, or file system, has no locks.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     lock = take_lock(Path(run))
    ...     try:
    ...         take_lock(Path(run))
    ...     except BlockingIOError:
    ...         os.close(lock)
    """
    import fcntl  # not on Windows, where training needs no lock

    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """The same as a block; the descriptor can be handed to the process that runs there, and the lock ends with it.

    Raises:
        RunError: a process runs there already, perhaps left over from a command that was killed.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run, locked(Path(run)) as descriptor:
    ...     descriptor > 0
    True
    """
    try:
        descriptor = take_lock(folder)
    except BlockingIOError:
        raise RunError(f"a process is already training in {folder}: wait for it, or end it") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
