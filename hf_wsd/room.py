"""Whether a checkpoint can be saved at all: a save that fails in the middle would end a Trainer's training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hf_wsd.disk import show_bytes

_PROBE = 2**16  # bytes: quotas and read-only mounts show only where something is written
_MORE = 1.05  # a checkpoint's state grows with what is logged


def why_no_room(folder: Path, size: int) -> str | None:
    """Why files of `size` bytes cannot be written into a folder, or None if they can.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     why_no_room(Path(run), 1000)
    >>> why_no_room(Path("nowhere"), 1000)
    "[Errno 2] No such file or directory: 'nowhere'"
    """
    probe = folder / ".room"
    try:
        needed, free = round(size * _MORE) + _PROBE, shutil.disk_usage(folder).free
        if free < needed:
            return f"it takes about {show_bytes(needed)}, and {show_bytes(free)} are free"
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return str(error)
    return None
