"""Checkpoints on disk: where they are, and whether one is whole. No torch: a login node can ask."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hf_wsd.errors import CheckpointError

FORK_POINTS = "_fork-points"  # the leading underscore keeps a folder out of Trainer's uploads and rotation
_NAME = re.compile(r"checkpoint-(\d+)")


def saved_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, rising; a kept copy goes first: Trainer's own may be rotated away any time."""
    kept, own = (
        {int(match[1]): path for path in folder.glob("*/") if (match := _NAME.fullmatch(path.name))}
        for folder in (run / FORK_POINTS, run)
    )
    damaged = {step for step in own.keys() & kept.keys() if any(_problems(kept[step]))}
    return dict(sorted((own | {step: path for step, path in kept.items() if step not in damaged}).items()))


def newest_whole(run: Path, *, needs: str | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes `check_checkpoint`, or None, and what is wrong with each newer one.

    Args:
        run: the run's folder.
        needs: a file that must be there too: a run killed between its last save and the record makes both again.
    """
    damage = []
    for path in reversed(saved_checkpoints(run).values()):
        try:
            check_checkpoint(path)
            if needs and not (path / needs).exists():
                raise CheckpointError(f"{path} has no {needs}")
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
    try:
        step = json.loads((path / "trainer_state.json").read_text())["global_step"]
        if not isinstance(step, int):
            yield f"trainer_state.json is damaged (global_step is {step!r})"
    except FileNotFoundError:
        yield "no trainer_state.json"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"trainer_state.json is damaged ({type(error).__name__}: {error})"
    ranks = sorted(int(f.stem.rpartition("_")[2]) for f in path.glob("rng_state_[0-9]*.pth"))
    if ranks and (len(ranks) < 2 or ranks != list(range(len(ranks)))):  # one process alone writes no number
        yield f"RNG state of ranks {', '.join(map(str, ranks))} alone"
    for name in _shards(path):
        if not (path / name).exists():
            yield f"no weights {name}, which the index names"
    patterns = {  # FSDP and DeepSpeed save folders of their own
        "weights": ("*.safetensors", "pytorch_model*.bin", "pytorch_model_fsdp*", "global_step*"),
        "optimizer state": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
        "scheduler state": ("scheduler.pt", "global_step*"),
        "RNG state": ("rng_state*.pth",),
    }
    for what, names in patterns.items():
        files = sorted(file for name in names for file in path.glob(name))
        if not files:
            yield f"no {what} ({' or '.join(names)})"
        for file in files:
            if file.is_file() and not _whole(file):
                yield f"{what} {file.name} is damaged"


def _shards(path: Path) -> set[str]:
    """The files that weights in several pieces consist of."""
    names: set[str] = set()
    for index in path.glob("*.index.json"):
        with suppress(OSError, ValueError, KeyError, AttributeError):
            names |= set(json.loads(index.read_text())["weight_map"].values())
    return names


def _whole(file: Path) -> bool:
    """Whether a safetensors file has the bytes that its header promises, and a torch file is a complete zip."""
    if file.suffix != ".safetensors":
        return zipfile.is_zipfile(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, size)))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
            return bool(size == 8 + length + end)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return False
