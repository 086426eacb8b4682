"""A lock on a run's folder: the process that trains there has it, and it is free again when that process ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_wsd.errors import RunError

LOCK = "_lock"  # the leading underscore keeps it out of Trainer's uploads


ORPHANS = 10.0  # seconds: data loader workers outlive a killed process by five, and have its lock


def take_lock(folder: Path, *, patience: float = 0.0, name: str = LOCK) -> int:
    """The lock on a folder, as a file descriptor: it is free again when this process ends, or with `release`.

    Args:
        folder: the run's folder.
        patience: seconds to wait for it.
        name: of the lock: the default is that of training.

    Raises:
        BlockingIOError: another process has it. ImportError, OSError: this system, or file system, has no locks.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     lock = take_lock(Path(run))
    ...     try:
    ...         take_lock(Path(run))
    ...     except BlockingIOError:
    ...         release(lock)
    """
    import fcntl  # not on Windows, where training needs no lock

    descriptor, end = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644), time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() >= end:
                os.close(descriptor)
                raise
            time.sleep(0.1)
        else:
            return descriptor


def release(lock: int) -> None:
    """Give a lock back, also where data loader workers have inherited it.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     for _ in range(2):
    ...         release(take_lock(Path(run)))
    """
    import fcntl

    fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


def has_lock(folder: Path) -> bool:
    """Whether this process has the lock on a folder: it has taken it, or was handed it by the one that started it.

    >>> has_lock(Path("nowhere"))
    False
    """
    try:
        lock = (folder / LOCK).stat()
        descriptors = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return False
    for descriptor in descriptors:
        with suppress(OSError):  # that of the listing itself
            if os.path.samestat(os.fstat(descriptor), lock):
                return True
    return False


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
