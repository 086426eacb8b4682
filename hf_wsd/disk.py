"""What files take on disk, and what deleting them frees: a file with several hard links is there once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def used_bytes(*paths: Path) -> int:
    """Bytes of the files in some files or folders, those with several names counted once.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     file = Path(run) / "model.safetensors"
    ...     _ = file.write_bytes(bytes(100))
    ...     os.link(file, Path(run) / "link")
    ...     used_bytes(Path(run)), used_bytes(Path(run) / "gone")
    (100, 0)
    """
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in _files(paths)}.values())


def freed_bytes(*paths: Path) -> int:
    """Bytes that deleting some files or folders frees: those of files that have no other name elsewhere.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     file, link = (Path(run) / name for name in ("model.safetensors", "link"))
    ...     _ = file.write_bytes(bytes(100))
    ...     os.link(file, link)
    ...     freed_bytes(file), freed_bytes(file, link)
    (0, 100)
    """
    stats = list(_files(paths))
    names = Counter((stat.st_dev, stat.st_ino) for stat in stats)
    last = {(s.st_dev, s.st_ino): s.st_size for s in stats if names[s.st_dev, s.st_ino] >= s.st_nlink}
    return sum(last.values())


def show_bytes(number: float) -> str:
    """A number of bytes for people.

    >>> show_bytes(0), show_bytes(1234), show_bytes(1.5e9), show_bytes(999_950)
    ('0 B', '1.23 kB', '1.5 GB', '1 MB')
    """
    power = 0
    while float(f"{number:.3g}") >= 1000 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {UNITS[power]}"


def _files(paths: Iterable[Path]) -> Iterator[os.stat_result]:
    """The files below some paths; what vanishes meanwhile, such as a rotated checkpoint, is none."""
    for path in dict.fromkeys(paths):
        names = [path]
        if path.is_dir() and not path.is_symlink():
            names = [Path(folder, name) for folder, _, files in os.walk(path) for name in files]
        for name in names:
            try:
                yield name.lstat()
            except OSError:
                continue
