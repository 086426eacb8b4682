"""The commands that go on from a published stable revision; shown only if their schedule has the revision's past."""

from __future__ import annotations

import json
import os
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
from hf_wsd.segment import Phase, Segment
from hf_wsd.settings import Settings
from hf_wsd.told import MODELS, flags_of, is_recipe, showable

_USUAL = {  # of transformers: what the record holds, where it is another, is said
    "per_device_train_batch_size": None,
    "gradient_accumulation_steps": 1,
    "seed": 42,
    "data_seed": None,
    "max_grad_norm": 1.0,
    "label_smoothing_factor": 0.0,
    "dataloader_num_workers": 0,
    "torch_compile": False,
}
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
    record, step, recipe = revision.record, revision.step, is_recipe(revision.family.identity.command)
    past = [end for end, kind in record.schedule.checkpoint_steps().items() if kind == "post-decay" and end <= step]
    begin, fraction = past[-1] if past else 0, _fraction(record)
    try:
        length = total_for_fork(step - begin, fraction)
    except WSDError:  # too early for a decay of that fraction
        return
    now, later = begin + length, step + length
    first = now if exact else later
    asked = [("WSD, the decay starts at once", "wsd", [now])] if exact else []
    asked.append(("WSD, the stable phase goes on, then a decay", "wsd", [later]))
    asked.append(("WSD-S, a finished model at the end of each cycle", "wsd_s", [*past, first, 2 * first - begin]))
    climb = {} if exact else {"rewarmup_at": step, "rewarmup_steps": _warmup(record).steps or 0}
    for title, kind, ends in asked if record.peak_lr is not None else ():
        plan = _Plan(kind=kind, ends=ends, fraction=fraction, shape=_shape(record, kind), kwargs=_kwargs(record, kind))
        if not _has_past(plan, record, step, climb):
            continue
        if recipe:
            yield Way(title=title, command=_with_recipe(revision, f"{repo}@{revision.name}", plan, climb))
        elif exact and (script := _script(revision)):
            yield Way(title=title, command=_with_script(revision, repo, script, plan))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is asked for: name of the schedule, steps at which its models end, settings that are not the default."""

    kind: str
    ends: list[int]
    fraction: float
    shape: str | None
    kwargs: dict[str, Any]


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
    params = dict(falls[0].shape_params) if falls else record.settings.get("decay_params") if kind == "wsd" else None
    return kwargs | ({"decay_params": params} if params else {})


def _shape(record: Lineage, kind: str) -> str | None:
    """The shape of the decays to come; None is the default."""
    falls = [segment.shape for segment in record.schedule.segments if segment.phase is Phase.DECAY]
    if kind == "wsd_s":
        return falls[0] if falls and falls[0] != "inverse" else None
    asked = record.settings.get("decay_type")
    return str(asked) if asked else None


def _has_past(plan: _Plan, record: Lineage, step: int, climb: Mapping[str, int]) -> bool:
    """Whether the schedule that is asked for is the record's own up to its step; any other would be refused."""
    settings: dict[str, Any] = {"decay_fraction": plan.fraction, "decay_type": plan.shape, **climb}
    settings |= {"cycle_ends": plan.ends} if plan.kind == "wsd_s" else {}
    with suppress(WSDError):
        asked = build_schedule(
            plan.kind,
            num_training_steps=plan.ends[-1],
            num_warmup_steps=_warmup(record).steps or 0,
            kwargs=plan.kwargs,
            settings=Settings.make(**{name: value for name, value in settings.items() if value is not None}),
        )
        return asked.agrees_with(record.schedule, until=step)
    return False


def _with_recipe(revision: Revision, spec: str, plan: _Plan, climb: Mapping[str, int]) -> str:
    flags = {"fork_from": spec, "output_dir": "runs/mine"}
    flags |= {"lr_scheduler_type": plan.kind} if plan.kind != "wsd" else {}
    flags["budgets"] = " ".join(map(str, plan.ends))
    flags |= {"rewarmup_steps": str(climb["rewarmup_steps"])} if climb else {}
    flags |= {"decay_fraction": str(plan.fraction)} if plan.fraction != DEFAULT_DECAY_FRACTION else {}
    flags |= {"decay_type": plan.shape} if plan.shape else {}
    flags |= {"lr_scheduler_kwargs": json.dumps(plan.kwargs)} if plan.kwargs else {}
    length = sequence_length(revision.record)
    flags |= _trained_with(revision) | ({"block_size": str(length)} if length else {})
    if any(name in flags for name in MODELS):  # the model's config and tokenizer are in the repository
        repo = spec.partition("@")[0]
        flags = {name: value for name, value in flags.items() if name not in MODELS}
        flags |= {"config_name": repo, "tokenizer_name": repo}
    return _command(f"{_launcher(revision)} recipes/pretrain.py", flags)


def _with_script(revision: Revision, repo: str, script: str, plan: _Plan) -> str:
    """The same with the script that trained the trunk, which has no --fork_from."""
    folder = f"runs/fetched/checkpoint-{revision.step}"  # not the output folder: a branch in its trunk's is refused
    kwargs = plan.kwargs | {"decay_fraction": plan.fraction} | ({"decay_type": plan.shape} if plan.shape else {})
    kwargs |= {"cycle_ends": plan.ends} if plan.kind == "wsd_s" else {}
    flags = {"output_dir": "runs/mine", "resume_from_checkpoint": folder, "lr_scheduler_type": plan.kind}
    flags |= {"lr_scheduler_kwargs": json.dumps(kwargs), "max_steps": str(plan.ends[-1])} | _trained_with(revision)
    fetched = _command(f"hf download {shlex.quote(repo)}", {"revision": revision.name, "local-dir": folder})
    return fetched + "\n" + _command(f"{_launcher(revision)} -m hf_wsd {shlex.quote(script)}", flags)


def _script(revision: Revision) -> str | None:
    """The name of the trunk's own script."""
    command = revision.family.identity.command
    scripts = [os.path.basename(word) for word in command.argv if word.endswith(".py")] if command else []
    return scripts[0] if scripts and scripts[0].isprintable() else None


def _launcher(revision: Revision) -> str:
    setup = revision.record.setup
    world_size, threads = setup.get("world_size"), setup.get("threads")
    of_cpu = f"OMP_NUM_THREADS={threads} " if isinstance(threads, int) and threads > 1 else ""  # the launcher takes one
    several = isinstance(world_size, int) and world_size > 1
    return of_cpu + (f"accelerate launch --num_processes {world_size}" if several else "accelerate launch")


def _trained_with(revision: Revision) -> dict[str, str]:
    """Flags that must be the trunk's, or the run would be refused."""
    record = revision.record
    flags = {"learning_rate": str(record.peak_lrs[0]), "warmup_steps": str(_warmup(record).steps or 0)}
    for name, usual in _USUAL.items():
        if record.setup.get(name, usual) not in (usual, None):
            flags[name] = str(record.setup[name])
    if record.setup.get("precision") in ("bf16", "fp16"):
        flags[str(record.setup["precision"])] = "True"
    return showable(revision.family.identity.command) | flags


def sequence_length(record: Lineage) -> int | None:
    """Tokens of a training sequence, where all have as many; None where nobody can tell."""
    parts = [part for name in SHARING if isinstance(part := record.setup.get(name), int)]
    samples = prod(parts)
    if record.tokens_per_step is None or len(parts) < len(SHARING) or record.tokens_per_step % samples:
        return None
    return record.tokens_per_step // samples


def _command(start: str, flags: Mapping[str, str]) -> str:
    """Flags after a command, on lines of a page's width."""
    lines = [start]
    for name, value in flags.items():
        quoted = value if name == "budgets" else shlex.quote(value) if value else ""  # budgets are words of their own
        word = f"--{name} {quoted}".rstrip()
        if len(lines[-1]) + len(word) < _PER_LINE:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return " \\\n".join(lines)
