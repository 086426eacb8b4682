"""The picture of a forecast: what was measured, what the law says of it, and where the asked decays would end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_wsd.forecast import Forecast, Forecaster
from hf_wsd.lengths import show_tokens
from hf_wsd.loss_curves import Curve, Floats, Steps
from hf_wsd.plots import BLUE, DECAY, GREEN, PURPLE, SKY, TRUNK
from hf_wsd.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORECAST = (BLUE, GREEN, PURPLE, SKY, "black")  # a colour for each shape
APART = 0.012  # part of the axis between the ends of two shapes, whose intervals would lie on each other
ROWS = 12  # forecasts named at the right; more end in dots
POINTS = 60  # drawn of one forecast decay


def forecast_figure(
    forecaster: Forecaster,
    branches: Sequence[Schedule],
    found: Sequence[Forecast],
    *,
    tokens_per_step: int | None = None,
) -> Figure:
    """Measured losses and forecast decays with their intervals: 1600 x 1000 pixels when saved.

    Args:
        forecaster: what was measured; of two laws the first is drawn.
        branches: the schedules of the decays.
        found: their forecasts, of any law.
        tokens_per_step: tokens of one update; None draws over steps.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(10, 6.25), dpi=160, layout="constrained")
    ax, per_step = figure.subplots(), tokens_per_step or 1
    drawn = [each for each in found if each.law == forecaster.name]
    for curve in forecaster.curves:
        _measured(ax, curve, forecaster.curves[0], per_step)
    _limits(ax, forecaster, drawn, per_step)
    for branch, each in zip(branches, drawn, strict=True):
        _forecast(ax, forecaster, branch, each, per_step, _shapes(drawn).index(each.shape))
    _label(ax, drawn, per_step)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_tokens(x)))
    ax.set_xlabel("tokens seen" if tokens_per_step else "steps", fontsize=13)
    ax.set_ylabel("evaluation loss", fontsize=13)
    ax.tick_params(labelsize=12)
    ax.spines[["top", "right"]].set_visible(False)
    _legend(ax, _shapes(drawn), f"forecast, {drawn[0].level:.0%} interval")
    figure.suptitle("Forecast of decays that have not been trained", x=0.01, ha="left", weight="bold", fontsize=15)
    return figure


def _measured(ax: Axes, curve: Curve, trunk: Curve, per_step: int) -> None:
    """Losses of the stable phase grey, of each decay in one colour from its fork point on."""
    decaying = curve.in_decay()
    _line(ax, curve.steps[~decaying], curve.losses[~decaying], TRUNK, per_step)
    for fork, end in curve.decays or [(0, len(curve.lrs))]:
        own = decaying & (curve.steps > fork) & (curve.steps <= end)
        start = (trunk.steps == fork) & ~trunk.in_decay()
        steps, losses = (
            np.concatenate(parts) for parts in zip(_points(trunk, start), _points(curve, own), strict=True)
        )
        if own.any():
            _line(ax, steps, losses, DECAY, per_step)


def _points(curve: Curve, which: NDArray[np.bool_]) -> tuple[Steps, Floats]:
    return curve.steps[which], curve.losses[which]


def _line(ax: Axes, steps: Steps, losses: Floats, colour: str, per_step: int) -> None:
    marks: dict[str, Any] = (
        {"linewidth": 2.0} if len(steps) > 25 else {"linewidth": 1.2, "marker": "o", "markersize": 5}
    )
    ax.plot(steps * per_step, losses, color=colour, **marks)


def _shapes(drawn: Sequence[Forecast]) -> list[str]:
    return list(dict.fromkeys(each.shape for each in drawn))


def _colour(shape: int) -> str:
    return FORECAST[shape % len(FORECAST)]


def _forecast(ax: Axes, forecaster: Forecaster, branch: Schedule, each: Forecast, per_step: int, shape: int) -> None:
    """A dashed line from the fork point, or from where the data ends, to the end, where the interval is drawn."""
    local, first = forecaster.local(each.fork), forecaster.curves[0]
    stable = max((int(c.steps[~c.in_decay()].max(initial=0)) for c in forecaster.curves), default=each.fork)
    lrs = np.array(branch.multipliers()) * (first.peak_lr or 1.0)
    steps = np.unique(np.linspace(min(each.fork, stable), each.end, POINTS).round().astype(int))
    losses = [local.loss(lrs[:step], int(step), first.warmup, each.fork) for step in steps]
    ax.plot(steps * per_step, losses, color=_colour(shape), linestyle="--", linewidth=1.8)
    ends = [[each.loss - each.low], [each.high - each.loss]]
    end = each.end * per_step + shape * APART * float(np.ptp(ax.get_xlim()))
    ax.errorbar(end, each.loss, ends, color=_colour(shape), marker="D", markersize=7, capsize=5, zorder=4)


def _label(ax: Axes, drawn: Sequence[Forecast], per_step: int) -> None:
    """The losses in a column at the right, at their height; with the shape where there are several."""
    shapes, height = _shapes(drawn), float(np.mean([each.loss for each in drawn]))
    shown = list(drawn[:ROWS])
    for row, each in enumerate(shown):
        shape = f" {each.shape}" if len(shapes) > 1 else ""
        more = " ..." if row == ROWS - 1 < len(drawn) - 1 else ""
        ax.annotate(
            f"{show_tokens(each.end * per_step)}{shape}: {each.loss:.3f}{more}",
            (1.01, height),
            xycoords=ax.get_yaxis_transform(),
            xytext=(0, 16 * ((len(shown) - 1) / 2 - row)),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            color=_colour(shapes.index(each.shape)),
            weight="bold",
            fontsize=12,
        )


def _limits(ax: Axes, forecaster: Forecaster, drawn: Sequence[Forecast], per_step: int) -> None:
    """From a quarter of the first fork on: a trunk's first losses would flatten all else."""
    first = min(min(each.fork for each in drawn), forecaster.last) / 4
    end = max(forecaster.last, *(each.end for each in drawn))
    losses = [loss for curve in forecaster.curves for loss in curve.losses[curve.steps >= first]]
    low, high = min(*losses, *(each.low for each in drawn)), max(*losses, *(each.high for each in drawn))
    ax.set_xlim(first * per_step, end * 1.08 * per_step)
    ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _legend(ax: Axes, shapes: Sequence[str], forecast: str) -> None:
    """One key for all forecasts, or one for each shape of several."""
    from matplotlib.lines import Line2D

    keys = {
        "measured, stable phase": Line2D([], [], color=TRUNK, marker="o"),
        "measured, in a decay": Line2D([], [], color=DECAY, marker="o"),
    }
    for number, shape in enumerate(shapes):
        name = forecast if len(shapes) == 1 else f"{shape}, {forecast}"
        keys[name] = Line2D([], [], color=_colour(number), linestyle="--", marker="D")
    ax.legend(keys.values(), keys, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=3, frameon=False, fontsize=12)
