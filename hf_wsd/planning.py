"""`hf-wsd plan`: what a family will take, a schedule, or two side by side; as text, JSON, picture or commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_wsd.casts import cast
from hf_wsd.errors import SettingsError
from hf_wsd.lengths import Length, to_steps
from hf_wsd.plan import read_budgets
from hf_wsd.preview import Preview
from hf_wsd.schedule_plots import plan_figure, schedules_figure
from hf_wsd.shapes import shape_names
from hf_wsd.show import last_shown, preview_text, schedule_text, side_by_side
from hf_wsd.sources import read_schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Words = list[str] | None
_SHOWN = "Show these instead: a RUN, a checkpoint, a file, or a call such as 'wsd(1000, decay_fraction=0.2)'."


def plan(
    schedules: Annotated[Words, typer.Argument(metavar="[SCHEDULE [SCHEDULE]]", help=_SHOWN)] = None,
    budgets: Annotated[Words, typer.Option(help="Models wanted: 2M (tokens), 3000 (steps), 640samples, 10%.")] = None,
    of: Annotated[str | None, typer.Option(help="The whole of which 10% is a part, such as 10B.")] = None,
    method: Annotated[str, typer.Option(help="wsd, wsd_s, cosine or cyclic_cosine.")] = "wsd",
    warmup: Annotated[str, typer.Option(help="Length of the warm-up.")] = "0",
    decay_fraction: Annotated[float | None, typer.Option(help="Decay steps / steps of the model (cycle).")] = None,
    decay_steps: Annotated[str | None, typer.Option(help="The decay's length instead; 10% is of the whole.")] = None,
    decay_type: Annotated[str | None, typer.Option(help=f"Shape: {shape_names()}.")] = None,
    decay_params: Annotated[Words, typer.Option(metavar="NAME=X", help="Parameters of the shape.")] = None,
    min_lr_ratio: Annotated[float | None, typer.Option(help="Lr at the end / peak lr.")] = None,
    model_size: Annotated[str | None, typer.Option(help="Parameters, such as 124M: for FLOPs and disk.")] = None,
    tokens_per_step: Annotated[str | None, typer.Option(help="Tokens of one update over all GPUs: 0.5M.")] = None,
    samples_per_step: Annotated[str | None, typer.Option(help="Samples of one update over all GPUs.")] = None,
    throughput: Annotated[str | None, typer.Option(help="Tokens per second of one GPU: for GPU-hours.")] = None,
    commands: Annotated[bool, typer.Option("--commands", help="Print the launch commands.")] = False,
    script: Annotated[str, typer.Option(help="Script in the commands, with its arguments.")] = "recipes/pretrain.py",
    launcher: Annotated[str, typer.Option(help="Launcher in the commands.")] = "accelerate launch",
    output_dir: Annotated[str, typer.Option(help="Folder in the commands.")] = "RUN",
    every: Annotated[int | None, typer.Option(min=1, help="Of a SCHEDULE, also the lr each so many steps.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Say what a family will take before it is trained; or show a schedule, or two side by side."""
    decay = {"decay_fraction": decay_fraction, "num_decay_steps": decay_steps, "min_lr_ratio": min_lr_ratio}
    shape = {"decay_type": decay_type, "decay_params": decay_params or None}
    per_step = {"tokens_per_step": tokens_per_step, "samples_per_step": samples_per_step}
    sizes = {"parameters": model_size, "tokens_per_second": throughput}
    given = [*(decay | shape | per_step | sizes).values(), of, budgets, commands or None]
    if schedules and (any(value is not None for value in given) or (method, warmup) != ("wsd", "0")):
        raise SettingsError("show a SCHEDULE, or plan --budgets and their options: one of the two")
    if commands and as_json:
        raise SettingsError("--commands are lines for a shell: leave out --json")
    if every and not schedules:
        raise SettingsError("--every is for showing a SCHEDULE: leave it out")
    if schedules:
        return show_schedules(schedules, every=every, plot=plot, as_json=as_json)
    preview = read_preview(method, budgets or [], of=of, warmup=warmup, **decay, **shape, **per_step, **sizes)
    if plot:
        _save(plan_figure(preview), plot)
    if commands:
        known = (f"--{name.replace('_', '-')} {_number(name, size)}" for name, size in per_step.items() if size)
        print("\n".join(preview.commands(output_dir, script=script, launcher=launcher, per_step=" ".join(known))))
    else:
        print(json.dumps(preview.to_dict(), indent=1) if as_json else preview_text(preview))


def read_preview(method: str, budgets: list[str], *, of: str | None, warmup: str, **typed: Any) -> Preview:
    """The preview of what was typed: numbers may be written as 124M.

    Raises:
        WSDError: as in `Preview.make`.

    >>> read_preview("wsd", ["1B", "2B"], of=None, warmup="10M", tokens_per_step="1M").legs[0].end
    1800
    """
    numbers = {name: _number(name, typed.pop(name, None)) for name in ("tokens_per_step", "samples_per_step")}
    sizes = {name: _number(name, typed.pop(name, None)) for name in ("parameters", "tokens_per_second")}
    decay = {name: cast(name, value) for name, value in typed.items()}
    _, whole = read_budgets(budgets, of=of, **numbers)
    warmup_steps = 0 if warmup == "0" else to_steps(warmup, **numbers, of=whole)
    lengths = numbers | {"of": of}
    return Preview.make(method, budgets, num_warmup_steps=warmup_steps, lengths=lengths, **sizes, **decay)


def _number(name: str, text: str | None) -> int | None:
    """A number above 0 that may have a unit: 0.5M is 500000."""
    if text is None:
        return None
    try:
        length = Length(text)
        if length.kind not in ("tokens", "steps"):
            raise ValueError
    except ValueError:
        name = {"parameters": "model-size", "tokens_per_second": "throughput"}.get(name, name).replace("_", "-")
        raise SettingsError(f"{name} is a number such as 512, 400K or 124M, not {text!r}") from None
    return length.steps(tokens_per_step=1)


def show_schedules(sources: list[str], *, every: int | None, plot: Path | None, as_json: bool) -> None:
    """Print one schedule, or two side by side with their first differing step; draw them if asked.

    Raises:
        SettingsError: more than two. WSDError: as in `read_schedule`.
    """
    if len(sources) > 2:
        raise SettingsError(f"one schedule, or two to compare, not {len(sources)}")
    found = [read_schedule(source) for source in sources]
    schedules = [schedule for schedule, _ in found]
    stop = max((last for _, last in found if last is not None), default=None)
    if plot:
        _save(schedules_figure(dict(zip(_names(sources), schedules, strict=True)), stop=stop), plot)
    if as_json:
        difference = {"first_differing_step": schedules[0].first_difference(schedules[1])} if len(found) == 2 else {}
        print(json.dumps({"schedules": [_as_json(s, stop, every) for s, stop in found], **difference}, indent=1))
    elif len(found) == 2:
        print(side_by_side(*schedules, names=_names(sources), stop=stop, every=every))
    else:
        print(schedule_text(schedules[0], stop=stop, every=every))


def _names(sources: list[str]) -> tuple[str, ...]:
    return tuple(sources if len(set(sources)) == len(sources) else (f"{s} ({i + 1})" for i, s in enumerate(sources)))


def _as_json(schedule: Any, stop: int | None, every: int | None) -> Mapping[str, Any]:
    lrs = {} if every is None else {step: schedule(step) for step in range(0, last_shown(schedule, stop), every)}
    marks = {"checkpoints": schedule.checkpoint_steps()}
    return {"schedule": schedule.to_dict(), "total_steps": schedule.total_steps, **marks, "multipliers": lrs}


def _save(figure: Figure, file: Path) -> None:
    if file.suffix not in (".png", ".svg", ".pdf"):
        raise SettingsError(f"a picture is a .png, .svg or .pdf, not {file.name}")
    if not file.parent.is_dir():
        raise SettingsError(f"there is no folder {file.parent} for the picture")
    figure.savefig(file)
    print(f"written: {file}", file=sys.stderr)
