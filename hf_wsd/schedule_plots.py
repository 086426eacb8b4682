"""Pictures of schedules before anything is trained: a plan, or schedules on one panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_wsd.legs import Leg, leg_to
from hf_wsd.lengths import show_tokens
from hf_wsd.plots import BLUE, DECAY, GREEN, PURPLE, TRUNK
from hf_wsd.preview import Preview
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Phase
from hf_wsd.show import last_shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 400  # drawn of one phase
COLOURS = (BLUE, DECAY, GREEN, PURPLE)


def plot_plan(ax: Axes, preview: Preview) -> Axes:
    """The multiplier of every run over tokens (steps where their tokens are unknown): trunk grey, decays one colour.

    Fork points (or starts of decays) are open circles; each model is marked at its end and labelled with its budget.
    """
    per_step = preview.tokens_per_step or 1
    for leg in preview.legs:
        for phase, steps in _stretches(leg):
            ax.plot(
                [step * per_step for step in steps],
                [leg.schedule(step) for step in steps],
                color=DECAY if phase is Phase.DECAY else TRUNK,
                linewidth=2.2,
                gid=phase.value,
            )
    dot: dict[str, Any] = {"color": DECAY, "markersize": 7, "zorder": 3}
    for model in preview.models:
        schedule = leg_to(model.end, preview.legs).schedule
        start, end = schedule(model.decay_from), schedule(model.end - 1)
        ax.plot(model.decay_from * per_step, start, "o", markerfacecolor="white", gid="fork", **dot)
        ax.plot(model.end * per_step, end, "o", gid="end", **dot)
        ax.annotate(
            model.budget,
            (model.end * per_step, end),
            xytext=(0, -8),
            textcoords="offset points",
            ha="center",
            va="top",
            color=DECAY,
            weight="bold",
            fontsize=11,
        )
    _finish(ax, "tokens seen" if preview.tokens_per_step else "steps")
    return ax


def _stretches(leg: Leg) -> list[tuple[Phase, list[int]]]:
    """Each phase that a run makes itself, with the steps to draw."""
    found = []
    for start, end, segment in leg.schedule.spans():
        first, last = max(start, leg.start), min(end or leg.end, leg.end)
        if first < last:
            found.append((segment.phase, _steps(first, last)))
    return found


def _steps(first: int, last: int) -> list[int]:
    """Steps from `first` to `last`, whose own value is the next stretch's: the one before it is drawn."""
    return sorted({*range(first, last, 1 + (last - first) // POINTS), last - 1})


def plot_schedules(ax: Axes, schedules: Mapping[str, Schedule], *, stop: int | None = None) -> Axes:
    """Schedules by name on one panel, over steps; the first difference of two is marked.

    `stop` is where an open-ended one ends.
    """
    last = max(last_shown(one, stop) for one in schedules.values())
    for colour, (name, schedule) in zip(COLOURS, schedules.items(), strict=False):
        end = min(last, schedule.total_steps or last)
        steps = _steps(0, end)
        edges = {edge for start, after, _ in schedule.spans() for edge in (start - 1, start, (after or end) - 1)}
        steps = sorted({*steps, *(edge for edge in edges if 0 <= edge < end)})
        ax.plot(steps, [schedule(step) for step in steps], color=colour, linewidth=2.2, label=name)
    if len(schedules) == 2:
        one, other = schedules.values()
        if (step := one.first_difference(other)) is not None:
            ax.axvline(step, color=TRUNK, linestyle=":", gid="difference")
            side = "right" if 2 * step > last else "left"  # the words stay inside the panel
            ax.annotate(f" first differing step: {step} ", (step, 1.06), ha=side, fontsize=11, color=TRUNK)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=2, frameon=False, fontsize=11)
    _finish(ax, "steps")
    return ax


def _finish(ax: Axes, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter

    ax.set_ylim(-0.16, 1.15)
    ax.set_xlim(left=0)
    ax.set_ylabel("learning rate / peak", fontsize=12)
    ax.set_xlabel(unit, fontsize=12)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_tokens(x)))
    ax.spines[["top", "right"]].set_visible(False)


def plan_figure(preview: Preview) -> Figure:
    """A preview as a picture of 1600 x 720 pixels, with its cost in the title."""
    figure, ax = _figure()
    plot_plan(ax, preview)
    parts = (
        f"{100 * preview.part_of_longest:.0f} % of the longest model, {100 * preview.saving:.0f} % below separate runs"
    )
    figure.suptitle(f"{preview.method}: {len(preview.models)} models for {parts}", x=0.01, ha="left", weight="bold")
    return figure


def schedules_figure(schedules: Mapping[str, Schedule], *, stop: int | None = None) -> Figure:
    """Schedules as a picture of 1600 x 720 pixels."""
    figure, ax = _figure()
    plot_schedules(ax, schedules, stop=stop)
    return figure


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=160, layout="constrained")
    return figure, figure.subplots()
