"""Schedules and previews as text: sparkline, tables, two side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from hf_wsd.lengths import show_tokens
from hf_wsd.preview import BYTES_PER_PARAMETER, Preview
from hf_wsd.schedule import Schedule

BLOCKS = "▁▂▃▄▅▆▇█"
SAMPLES = 20  # of one block


def sparkline(schedule: Schedule, *, stop: int, width: int = 60) -> str:
    """The multipliers of updates 0 to `stop` - 1 as a line of `width` blocks, from 0 to 1; each block shows a mean.

    A block of many updates shows the mean of SAMPLES of them, evenly spaced.

    >>> from hf_wsd.builders import wsd
    >>> sparkline(wsd(100, num_warmup_steps=20, num_decay_steps=40, decay_type="linear"), stop=100, width=10)
    '▂▆█████▆▄▂'
    """
    line = ""
    for i in range(width):
        first = stop * i // width
        after = max(stop * (i + 1) // width, first + 1)
        cell = [schedule(step) for step in range(first, after, 1 + (after - first) // SAMPLES)]
        line += BLOCKS[min(int(sum(cell) / len(cell) * len(BLOCKS)), len(BLOCKS) - 1)]
    return line


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows as aligned text; the first column to the left, the others to the right.

    >>> print(columns([("a", "10"), ("bb", "9")]))
    a   10
    bb   9
    """
    rows = [tuple(row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def last_shown(schedule: Schedule, stop: int | None = None) -> int:
    """Where a drawing ends: at the schedule's end; of an open-ended one at `stop`, or some time after its last change.

    >>> from hf_wsd.builders import wsd
    >>> last_shown(wsd(100)), last_shown(wsd(num_warmup_steps=50, num_decay_steps=0))
    (100, 500)
    """
    if schedule.total_steps is not None:
        return schedule.total_steps
    begin = list(schedule.spans())[-1][0]
    return stop or max(10 * begin, 10)


def schedule_text(schedule: Schedule, *, stop: int | None = None, every: int | None = None) -> str:
    """A schedule as sparkline, segments and checkpoints; with `every`, a multiplier each so many steps.

    >>> from hf_wsd.builders import wsd
    >>> print(schedule_text(wsd(100, num_decay_steps=20)).splitlines()[-1])
    checkpoints: 80 pre-decay, 100 post-decay
    """
    end = last_shown(schedule, stop)
    rows = [("phase", "from step", "to", "lr / peak", "shape")]
    for start, after, segment in schedule.spans():
        shape = segment.shape + "".join(f" {name}={value:g}" for name, value in segment.shape_params)
        lr = f"{segment.end:g}" if segment.shape == "constant" else f"{segment.start:g} -> {segment.end:g}"
        rows.append((segment.phase.value, str(start), "open" if after is None else str(after), lr, shape))
    parts = [sparkline(schedule, stop=end), columns(rows)]
    if every is not None:
        steps = [*range(0, end, every), end - 1]
        parts.append(columns([("step", "lr / peak", "phase"), *_values(schedule, sorted(set(steps)))]))
    marks = ", ".join(f"{step} {kind}" for step, kind in schedule.checkpoint_steps().items())
    return "\n".join([*parts, f"checkpoints: {marks or 'none'}"])


def _values(schedule: Schedule, steps: Iterable[int]) -> list[tuple[str, str, str]]:
    return [(str(step), f"{schedule(step):.6g}", schedule.phase(step).value) for step in steps]


def side_by_side(
    one: Schedule, other: Schedule, *, names: Sequence[str], stop: int | None = None, every: int | None = None
) -> str:
    """Two schedules, one beside the other, and the first update in which they differ.

    >>> from hf_wsd.builders import wsd
    >>> text = side_by_side(wsd(100), wsd(100, decay_fraction=0.2), names=("a", "b"))
    >>> print(text.splitlines()[-1])
    first differing step: 81, lr / peak 1 | 0.776393
    """
    end = max(last_shown(one, stop), last_shown(other, stop))
    texts = [schedule_text(schedule, stop=end, every=every).splitlines() for schedule in (one, other)]
    left = max(len(names[0]), *map(len, texts[0]))
    lines = [
        f"{a.ljust(left)}  |  {b}".rstrip()
        for a, b in zip_longest([names[0], *texts[0]], [names[1], *texts[1]], fillvalue="")
    ]
    return "\n".join([*lines, first_difference_text(one, other)])


def first_difference_text(one: Schedule, other: Schedule) -> str:
    """The sentence that names the first differing update.

    >>> from hf_wsd.builders import wsd
    >>> first_difference_text(wsd(100), wsd(100))
    'no difference'
    """
    step = one.first_difference(other)
    if step is None:
        return "no difference" if (words := one.difference(other)) is None else f"equal lrs, other phases: {words}"
    ended = [schedule.total_steps is not None and step >= schedule.total_steps for schedule in (one, other)]
    lrs = ["ended" if end else f"{schedule(step):.6g}" for schedule, end in zip((one, other), ended, strict=True)]
    return f"first differing step: {step}, lr / peak {' | '.join(lrs)}"


def preview_text(preview: Preview) -> str:
    """A preview as text: models, runs, checkpoints to keep, costs.

    >>> text = preview_text(Preview.make("wsd", ["1000", "2000"]))
    >>> print(text.splitlines()[-1])
    saving: 30.0 % of the separate runs
    """
    tokens = preview.tokens
    models = [("model", "lr falls from step", "ends at step", "tokens")]
    for model in preview.models:
        models.append((model.budget, str(model.decay_from), str(model.end), show_tokens(tokens(model.end))))
    runs = [("run", "from step", "to", "updates", "tokens", "")]
    for leg in preview.legs:
        line = sparkline(leg.schedule, stop=leg.end, width=30)
        runs.append((leg.name, str(leg.start), str(leg.end), str(leg.steps), show_tokens(tokens(leg.steps)), line))
    kept = [("checkpoint to keep", "of run", "why")]
    kept += [(kept.path("RUN"), kept.run, kept.why) for kept in preview.kept()]
    return "\n\n".join([columns(models), columns(runs), columns(kept), "\n".join(_costs(preview))])


def _costs(preview: Preview) -> Iterable[str]:
    longest = preview.models[-1].end
    for name, steps in ((preview.method, preview.steps), ("separate runs", preview.separate_steps)):
        costs = preview.costs(steps)
        parts = [f"{steps:,} updates"]
        parts += [f"{show_tokens(costs['tokens'])} tokens"] if costs["tokens"] is not None else []
        parts += [f"{costs['flops']:.3g} FLOPs (6 N D)"] if costs["flops"] is not None else []
        parts += [f"{costs['gpu_hours']:,.1f} GPU-hours"] if costs["gpu_hours"] is not None else []
        yield f"{name}: {', '.join(parts)} = {steps / longest:.0%} of the longest model".replace("%", " %")
    if preview.tokens_per_step is None and (preview.parameters or preview.tokens_per_second):
        yield "FLOPs and GPU-hours: say how many tokens a step has (--tokens-per-step)"
    if (disk := preview.disk_bytes) is not None:
        yield (
            f"disk: {len(list(preview.kept()))} checkpoints, {disk / 1e9:.3g} GB ({BYTES_PER_PARAMETER} bytes a "
            "parameter: fp32 weights and AdamW's two moments)"
        )
    yield f"saving: {preview.saving:.1%} of the separate runs".replace("%", " %")
