"""Checkpoints on disk: where they are, and whether one is whole. No torch: a login node can ask."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_wsd.errors import CheckpointError

FORK_POINTS = "_fork-points"  # the leading underscore keeps a folder out of Trainer's uploads and rotation
_NAME = re.compile(r"(?:checkpoint-|step_)(\d+)")  # step_: scripts without a Trainer
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "pytorch_model_fsdp*", "global_step*")  # FSDP, DeepSpeed: folders
_STATES = ("optimizer state", "scheduler state", "RNG state")  # all that --save_only_model leaves out
_SHARD = re.compile(rb"__\d+_\d+\.distcp")
_ZERO_STATE = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt")  # of one process
_ZIP_END_SIZE = 22  # bytes of the record with which a zip ends


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What a saved checkpoint consists of: the file with its step, and patterns of the others."""

    state: str
    step: str
    rng_state: re.Pattern[str]  # of one rank
    rng_state_alone: str | None = None  # of a process without others
    files: Mapping[str, tuple[str, ...]]


_TRAINER = _Layout(
    state="trainer_state.json",
    step="global_step",
    rng_state=re.compile(r"rng_state_(\d+)\.pth"),  # not "rng_state_0 copy.pth"
    rng_state_alone="rng_state.pth",
    files={
        "weights": _WEIGHTS,
        "optimizer state": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
        "scheduler state": ("scheduler.pt", "global_step*"),
    },
)
_SAVE_STATE = _Layout(  # accelerator.save_state; the step is in our record alone
    state="wsd.json",
    step="step",
    rng_state=re.compile(r"random_states_(\d+)\.pkl"),
    files={
        "weights": _WEIGHTS,
        "optimizer state": ("optimizer.bin", "optimizer_*", "pytorch_model/*optim_states*"),
        "scheduler state": ("scheduler.bin", "custom_checkpoint_*.pkl", "pytorch_model/*model_states*"),
    },
)


def saved_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, rising; a kept copy goes first: Trainer's own may be rotated away any time.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     for name in ("checkpoint-160", "_fork-points/checkpoint-80"):
    ...         (Path(run) / name).mkdir(parents=True)
    ...     {step: path.parent.name == FORK_POINTS for step, path in saved_checkpoints(Path(run)).items()}
    {80: True, 160: False}
    """
    kept, own = (
        {int(match[1]): path for path in folder.glob("*/") if (match := _NAME.fullmatch(path.name))}
        for folder in (run / FORK_POINTS, run)
    )
    damaged = {step for step in own.keys() & kept.keys() if any(_problems(kept[step]))}
    return dict(sorted((own | {step: path for step, path in kept.items() if step not in damaged}).items()))


def step_in_name(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after.

    >>> step_in_name(Path("RUN/checkpoint-80")), step_in_name(Path("RUN/step_80"))
    (80, 80)
    """
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise CheckpointError(f"{checkpoint} is not named after a step, as checkpoint-80 and step_80 are")
    return int(match[1])


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes `check_checkpoint`, or None, and what is wrong with each newer one.

    The decayed model with which its run ends needs no optimizer state: nothing is left to train.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as run:
    ...     (Path(run) / "checkpoint-80").mkdir()
    ...     newest, damage = newest_whole(Path(run))
    >>> newest, len(damage)
    (None, 1)
    """
    damage = []
    for path in reversed(saved_checkpoints(run).values()):
        try:
            check_checkpoint(path, to_resume=not _ends_its_run(path))
        except CheckpointError as error:
            damage.append(str(error))
            continue
        return path, damage
    return None, damage


def check_checkpoint(path: Path, *, to_resume: bool = True) -> int:
    """The step of a checkpoint that has all that an exact resume needs, each file structurally whole.

    Args:
        path: the checkpoint.
        to_resume: else the states of optimizer, scheduler and RNG may be missing, but what is there must be whole.

    Raises:
        CheckpointError: it is not there, or a file is missing or damaged; the message names all of them.

    >>> check_checkpoint(Path("RUN/checkpoint-80"))
    Traceback (most recent call last):
        ...
    hf_wsd.errors.CheckpointError: no checkpoint at RUN/checkpoint-80
    """
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}")
    problems = list(_problems(path, may_lack=() if to_resume else _STATES))
    if problems:
        raise CheckpointError(
            f"{path} cannot be resumed exactly: {'; '.join(problems)}. Use another checkpoint, and save without "
            "--save_only_model"
        )
    layout = _layout(path)
    return int(json.loads((path / layout.state).read_text())[layout.step])


def cut_short(path: Path) -> list[str]:
    """What shows that the save of a checkpoint did not come to its end; empty too where state was left out on purpose.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as checkpoint:
    ...     cut_short(Path(checkpoint))[0]
    'no trainer_state.json'
    """
    return list(_problems(path, may_lack=_STATES))


def _layout(path: Path) -> _Layout:
    return _SAVE_STATE if any(path.glob("random_states_*.pkl")) else _TRAINER


def optimizer_files(path: Path) -> list[Path]:
    """Files and folders of a checkpoint that hold optimizer state alone; of DeepSpeed's none: weights are in them too.

    >>> optimizer_files(Path("RUN/checkpoint-80"))
    []
    """
    return sorted(file for name in ("optimizer.pt", "optimizer.bin", "optimizer_*") for file in path.glob(name))


def weights_alone(path: Path) -> bool:
    """Whether a checkpoint has a model's weights, and no optimizer state with which it could be trained further.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as checkpoint:
    ...     (Path(checkpoint) / "model.safetensors").touch()
    ...     weights_alone(Path(checkpoint))
    True
    """
    weights, deepspeed = any(file for name in _WEIGHTS[:-1] for file in path.glob(name)), any(path.glob(_WEIGHTS[-1]))
    return weights and not deepspeed and not optimizer_files(path)


def _ends_its_run(path: Path) -> bool:
    """Whether a checkpoint is the decayed model with which its run ends, as its record says."""
    try:
        record = json.loads((path / "wsd.json").read_text())
        return bool(record["kind"] == "post-decay" and record["step"] == record["last_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _problems(path: Path, *, may_lack: Sequence[str] = ()) -> Iterator[str]:
    layout = _layout(path)
    try:
        step = json.loads((path / layout.state).read_text())[layout.step]
        if not isinstance(step, int):
            yield f"{layout.state} is damaged ({layout.step} is {step!r})"
    except FileNotFoundError:
        yield f"no {layout.state}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{layout.state} is damaged ({type(error).__name__}: {error})"
    of_ranks = [match for file in path.iterdir() if (match := layout.rng_state.fullmatch(file.name))]
    ranks = sorted(int(match[1]) for match in of_ranks)
    fewest = 2 if layout.rng_state_alone else 1  # a Trainer of one process writes no number
    if ranks and (len(ranks) < fewest or ranks != list(range(len(ranks)))):
        yield f"RNG state of ranks {', '.join(map(str, ranks))} alone"
    yield from _problems_of_shards(path)
    yield from _problems_of_fsdp(path)
    yield from _problems_of_deepspeed(path, processes=len(ranks) or 1)
    rng_states = (*filter(None, [layout.rng_state_alone]), *(match[0] for match in of_ranks))
    for what, names in {**layout.files, "RNG state": rng_states}.items():
        files = sorted(file for name in names for file in path.glob(name))
        if not files and what not in may_lack:
            yield f"no {what} ({' or '.join(names)})"
        for file in files:
            if file.is_file() and not _whole(file):
                yield f"{what} {file.name} is damaged"


def _problems_of_shards(path: Path) -> Iterator[str]:
    """What is wrong with weights in several files, which an index names."""
    for index in sorted(path.glob("*.index.json")):
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [name for name in names if not (path / name).exists()]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            yield f"{index.name} is damaged ({type(error).__name__}: {error})"
        else:
            yield from (f"no weights {name}, which the index names" for name in missing)


def _problems_of_fsdp(path: Path) -> Iterator[str]:
    """What is wrong with FSDP's folders of shards: `.metadata` is written last and names the others."""
    for folder in sorted(folder for name in ("pytorch_model_fsdp*/", "optimizer_*/") for folder in path.glob(name)):
        index = folder / ".metadata"
        content = index.read_bytes() if index.is_file() else b""
        names = sorted({name.decode() for name in _SHARD.findall(content)})
        if not names or not content.endswith(b"."):  # a pickle's last byte
            yield f"{folder.name} was not saved to its end (no whole .metadata)"
        yield from (
            f"{folder.name}/{name} is missing or damaged" for name in names if not _zip_to_its_end(folder / name)
        )


def _problems_of_deepspeed(path: Path, *, processes: int) -> Iterator[str]:
    """What is wrong with DeepSpeed's folder, which `latest` names; it goes on silently where a part is missing."""
    latest = path / "latest"
    if not latest.is_file():
        yield from (f"no latest, which names {folder.name}" for folder in path.glob("global_step*/"))
        return
    folder = path / latest.read_text().strip()
    states = sorted(folder.glob("*_states.pt"))
    yield from (f"{folder.name}/{file.name} is damaged" for file in states if not zipfile.is_zipfile(file))
    if not any(file.name.endswith("_model_states.pt") for file in states):
        yield f"no weights in {folder.name}"
    parts = sum(bool(_ZERO_STATE.fullmatch(file.name)) for file in states)
    if (parts or (path / "zero_to_fp32.py").exists()) and parts != processes:  # the script lies there with ZeRO alone
        yield f"optimizer state of {parts} of {processes} processes in {folder.name}"


def _zip_to_its_end(file: Path) -> bool:
    """Whether a file of several zips, one after the other, ends where a zip does."""
    try:
        with file.open("rb") as stream:
            stream.seek(-_ZIP_END_SIZE, os.SEEK_END)
            return stream.read(4) == b"PK\5\6"
    except OSError:  # it is not there, or shorter
        return False


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
