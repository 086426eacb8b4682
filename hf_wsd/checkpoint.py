"""Checkpoints on disk: where they are, and whether one is whole. No torch: a login node can ask."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from hf_wsd.errors import CheckpointError

FORK_POINTS = "_fork-points"  # the leading underscore keeps a folder out of Trainer's uploads and rotation
_NAME = re.compile(r"checkpoint-(\d+)")


def saved_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, rising; a kept fork point stands in where Trainer has rotated its own away."""
    found: dict[int, Path] = {}
    for folder in (run / FORK_POINTS, run):
        for path in folder.glob("checkpoint-*"):
            if (match := _NAME.fullmatch(path.name)) and path.is_dir():
                found[int(match[1])] = path
    return dict(sorted(found.items()))


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes `check_checkpoint`, or None, and what is wrong with each newer one."""
    damage = []
    for path in reversed(saved_checkpoints(run).values()):
        try:
            check_checkpoint(path)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        return path, damage
    return None, damage


def check_checkpoint(path: Path) -> int:
    """The step of a checkpoint that has all that an exact resume needs, each file structurally whole.

    Raises:
        CheckpointError: it is not there, or a file is missing or damaged; the message names all of them.
    """
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}")
    problems = list(_problems(path))
    if problems:
        raise CheckpointError(
            f"{path} cannot be resumed exactly: {'; '.join(problems)}. Use another checkpoint, and save without "
            "--save_only_model"
        )
    return int(json.loads((path / "trainer_state.json").read_text())["global_step"])


def _problems(path: Path) -> Iterator[str]:
    if (text := _unreadable_json(path / "trainer_state.json", "global_step")) is not None:
        yield text
    patterns = {  # FSDP and DeepSpeed save folders of their own
        "weights": ("*.safetensors", "pytorch_model*.bin", "pytorch_model_fsdp*", "global_step*"),
        "optimizer state": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
        "scheduler state": ("scheduler.pt",),
        "RNG state": ("rng_state*.pth",),
    }
    for what, names in patterns.items():
        files = sorted(file for name in names for file in path.glob(name))
        if not files:
            yield f"no {what} ({' or '.join(names)})"
        for file in files:
            if file.is_file() and not _whole(file):
                yield f"{what} {file.name} is damaged"


def _unreadable_json(file: Path, key: str) -> str | None:
    try:
        json.loads(file.read_text())[key]
    except FileNotFoundError:
        return f"no {file.name}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file.name} is damaged ({type(error).__name__}: {error})"
    return None


def _whole(file: Path) -> bool:
    """Whether a safetensors file has the bytes that its header promises, and a torch file is a complete zip."""
    if file.suffix != ".safetensors":
        return zipfile.is_zipfile(file)
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > os.path.getsize(file):
            return False
        try:
            header = json.loads(stream.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return os.path.getsize(file) == 8 + length + max(ends, default=0)
