"""The commands that go on from a published stable revision; shown only if their schedule has the revision's past."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

from hf_wsd.by_name import build_schedule
from hf_wsd.errors import WSDError
from hf_wsd.lengths import DEFAULT_DECAY_FRACTION, total_for_fork
from hf_wsd.lineage import Lineage
from hf_wsd.revisions import Revision
from hf_wsd.sameness import SHARING
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase, Segment
from hf_wsd.settings import Settings
from hf_wsd.told import SHAPING, flags_of, showable

_PER_LINE = 108  # characters of a command's line, within a page's width


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to go on.

    Args:
        title: what it gives.
        command: for a shell.
    """

    title: str
    command: str


def ways_on(revision: Revision, repo: str, *, exact: bool) -> Iterator[Way]:
    """The ways to go on from a stable revision with WSD and with WSD-S.

    Args:
        revision: a fork point.
        repo: USER/NAME.
        exact: whether its optimizer state is published; without it the lr climbs to the peak once more.
    """
    record, step = revision.record, revision.step
    past = [end for end, kind in record.schedule.checkpoint_steps().items() if kind == "post-decay" and end <= step]
    begin = past[-1] if past else 0
    fraction = _fraction(record)
    now = begin + total_for_fork(step - begin, fraction)
    later = step + (now - begin)
    ends = [now, now + (now - begin)] if exact else [later, later + (later - begin)]
    asked: list[tuple[str, str, list[int]]] = []
    if exact:
        asked.append(("WSD, the decay starts at once", "wsd", [now]))
    asked.append(("WSD, the stable phase goes on, then a decay", "wsd", [later]))
    asked.append(("WSD-S, a finished model at the end of each cycle", "wsd_s", [*past, *ends]))
    for title, kind, budgets in asked:
        kwargs = _kwargs(record, kind)
        climb = {} if exact else {"rewarmup_at": step, "rewarmup_steps": _warmup(record).steps or 0}
        schedule = None
        with suppress(WSDError):
            schedule = _schedule(record, kind, budgets, kwargs, {"decay_fraction": fraction} | climb)
        if schedule and schedule.agrees_with(record.schedule, until=step) and len(set(record.peak_lrs)) == 1:
            flags = _flags(revision, kind, budgets, kwargs, fraction) | _rewarmup(climb)
            yield Way(title=title, command=_command(revision, f"{repo}@{revision.name}", flags))


def _fraction(record: Lineage) -> float:
    """The part of a model's steps that its decay takes, as the trunk was asked for it."""
    given = flags_of(record.command).get("decay_fraction")
    with suppress(TypeError, ValueError):
        return float(record.settings.get("decay_fraction") or given or DEFAULT_DECAY_FRACTION)
    return DEFAULT_DECAY_FRACTION


def _warmup(record: Lineage) -> Segment:
    first = record.schedule.segments[0]
    return first if first.phase is Phase.WARMUP else Segment(phase=Phase.WARMUP, steps=None)


def _kwargs(record: Lineage, kind: str) -> dict[str, Any]:
    """What the schedule's past needs beside the recipe's own flags."""
    warmup, kwargs = _warmup(record), dict[str, Any]()
    falls = [segment for segment in record.schedule.segments if segment.phase is Phase.DECAY] if kind == "wsd_s" else []
    lowest = falls[0].end if falls else 0.1 if kind == "wsd_s" else 0.0
    if falls and lowest != 0.1:
        kwargs["min_lr_ratio"] = lowest
    if warmup.steps and warmup.start != lowest:
        kwargs["warmup_start"] = warmup.start
    if warmup.steps and warmup.shape != "linear":
        kwargs["warmup_type"] = warmup.shape
    if falls and falls[0].shape_params:
        kwargs["decay_params"] = dict(falls[0].shape_params)
    return kwargs


def _shape(record: Lineage, kind: str) -> str | None:
    """The shape of the decays to come; None is the default."""
    falls = [segment.shape for segment in record.schedule.segments if segment.phase is Phase.DECAY]
    if kind == "wsd_s":
        return falls[0] if falls and falls[0] != "inverse" else None
    asked = record.settings.get("decay_type")
    return str(asked) if asked else None


def _schedule(
    record: Lineage, kind: str, budgets: list[int], kwargs: Mapping[str, Any], settings: dict[str, Any]
) -> Schedule:
    if kind == "wsd_s":
        settings = settings | {"cycle_ends": budgets}
    if shape := _shape(record, kind):
        settings = settings | {"decay_type": shape}
    return build_schedule(
        kind,
        num_training_steps=budgets[-1],
        num_warmup_steps=_warmup(record).steps or 0,
        kwargs=kwargs,
        settings=Settings.make(**settings),
    )


def _flags(
    revision: Revision, kind: str, budgets: list[int], kwargs: Mapping[str, Any], fraction: float
) -> dict[str, str]:
    """The flags of the recipe: what is asked for, then what the trunk was trained with."""
    record = revision.record
    flags = {} if kind == "wsd" else {"lr_scheduler_type": kind}
    flags["budgets"] = " ".join(map(str, budgets))
    if fraction != DEFAULT_DECAY_FRACTION:
        flags["decay_fraction"] = f"{fraction!r}"
    if shape := _shape(record, kind):
        flags["decay_type"] = shape
    if kwargs:
        flags["lr_scheduler_kwargs"] = json.dumps(dict(kwargs))
    flags["learning_rate"] = f"{record.peak_lrs[0]!r}"
    flags["warmup_steps"] = str(_warmup(record).steps or 0)
    setup = record.setup
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed"):
        if isinstance(setup.get(name), int) and setup[name] != {"gradient_accumulation_steps": 1, "seed": 42}.get(name):
            flags[name] = str(setup[name])
    if length := sequence_length(record):
        flags["block_size"] = str(length)
    return flags | {name: value for name, value in _shaping(revision).items() if name not in flags}


def _shaping(revision: Revision) -> dict[str, str]:
    return showable(flags_of(revision.family.identity.command), SHAPING)


def sequence_length(record: Lineage) -> int | None:
    """Tokens of a training sequence, where all have as many; None where nobody can tell."""
    parts = [part for name in SHARING if isinstance(part := record.setup.get(name), int)]
    samples = prod(parts)
    if record.tokens_per_step is None or len(parts) < len(SHARING) or record.tokens_per_step % samples:
        return None
    return record.tokens_per_step // samples


def _rewarmup(climb: Mapping[str, int]) -> dict[str, str]:
    return {"rewarmup_steps": str(climb["rewarmup_steps"])} if climb else {}


def _command(revision: Revision, spec: str, flags: Mapping[str, str]) -> str:
    world_size = revision.record.setup.get("world_size")
    launcher = "accelerate launch"
    if isinstance(world_size, int) and world_size > 1:
        launcher += f" --num_processes {world_size}"
    words = [f"{launcher} recipes/pretrain.py", f"--fork_from {shlex.quote(spec)}", "--output_dir runs/mine"]
    several = ("budgets",)  # a list of words
    for name, value in flags.items():
        quoted = value if name in several else shlex.quote(value) if value else ""
        words.append(f"--{name} {quoted}".rstrip())
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < _PER_LINE:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return " \\\n".join(lines)
