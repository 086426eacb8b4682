"""Pictures of a scaling law: losses over tokens with the band of the law, and what a compute budget buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_wsd.law import Prediction
from hf_wsd.lengths import show_tokens
from hf_wsd.optimum import best_size
from hf_wsd.plan import FLOPS_PER
from hf_wsd.plots import AMBER, BLUE, DECAY, GREEN, PURPLE, SKY, TRUNK, put_title
from hf_wsd.points import Point
from hf_wsd.scaling import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, GREEN, PURPLE, AMBER, SKY, "black")
AHEAD = 4.0  # times the longest budget: how far the law is drawn
LABEL = 0.09  # part of the axis that a label takes
BAND = 13  # budgets at which the interval is worked out


def plot_law(ax: Axes, fit: Fit, *, level: float = 0.9, predictions: Sequence[Prediction] = ()) -> Axes:
    """Measured losses over tokens with the law, solid where there is data and dashed ahead of it.

    For one size also the band in which one more run lies, and the check: the largest model predicted from the others.

    Args:
        ax: gets a logarithmic x axis.
        fit: the law and its models.
        level: of the band, in (0, 1).
        predictions: are marked, and for one size named.
    """
    tokens = [point.tokens for point in fit.points]
    end = max([AHEAD * max(tokens), *(1.05 * prediction.tokens for prediction in predictions)])
    ax.set_xscale("log")
    ax.set_xlim(min(tokens) / 1.25, end * (8 if fit.size else 1.12))
    sizes = sorted({point.size(fit.size) or 0 for point in fit.points}) if fit.size else [0]
    for number, size in enumerate(sizes):
        colour = DECAY if not fit.size else COLOURS[number % len(COLOURS)]
        own = [point for point in fit.points if not fit.size or point.size(fit.size) == size]
        _curve(ax, fit, own, size, colour, AHEAD * max(point.tokens for point in own) if size else end)
    if not fit.size:
        _band(ax, fit, np.geomspace(min(tokens), end, BAND), level)
        _check(ax, fit)
    for prediction, storey in zip(predictions, _storeys(ax, [told.tokens for told in predictions]), strict=True):
        _predicted(ax, prediction, None if fit.size else storey)
    _tokens_axis(ax, "tokens seen, D (log scale)")
    ax.set_ylabel("loss of the decayed model")
    return ax


def _curve(ax: Axes, fit: Fit, points: Sequence[Point], size: int, colour: str, end: float) -> None:
    measured = [point.tokens for point in points]
    ax.plot(measured, [point.loss for point in points], "o", color=colour, markersize=8, zorder=4, gid="measured")
    stretches = ((min(measured), max(measured), "-"), (max(measured), end, "--"))
    for first, last, style in stretches:
        at = np.geomspace(first, last, 60)
        ax.plot(at, [fit.law(d, size or None) for d in at], style, color=colour, linewidth=2.2, gid="law")
    if size:
        _name(ax, f"N = {show_tokens(size)}", (end, fit.law(end, size)), colour)


def _name(ax: Axes, name: str, end: tuple[float, float], colour: str) -> None:
    """What a line is called, right of its end."""
    style: dict[str, Any] = {"color": colour, "weight": "bold", "fontsize": 12, "va": "center"}
    ax.annotate(name, end, xytext=(5, 0), textcoords="offset points", **style)


def _band(ax: Axes, fit: Fit, at: Any, level: float) -> None:
    told = [fit.predict(tokens, level=level) for tokens in at]
    ends = [(p.low, p.high) for p in told if p.low is not None and p.high is not None]
    if not ends:
        return
    ax.fill_between(at, *np.transpose(ends), color=TRUNK, alpha=0.2, linewidth=0, zorder=1, gid="band")


def _check(ax: Axes, fit: Fit) -> None:
    """The prediction for the largest model from the others, a little left of it, with its interval."""
    if fit.left_out is None:
        return
    told, x = fit.left_out.prediction, fit.left_out.prediction.tokens / 1.04
    if told.low is not None and told.high is not None:
        ax.plot([x, x], [told.low, told.high], color=TRUNK, linewidth=2.2, zorder=2, gid="check interval")
    ax.plot(x, told.loss, "s", color=TRUNK, markerfacecolor="white", markersize=7, zorder=3, gid="check")


def _storeys(ax: Axes, tokens: Sequence[int]) -> list[int]:
    """How many labels each of some labels stands above, so that none lies on another: the lowest free place."""
    low, high = np.log(ax.get_xlim())
    places: list[int] = []
    for number, x in enumerate(tokens):
        near = {places[i] for i in range(number) if abs(np.log(x / tokens[i])) < LABEL * (high - low)}
        places.append(min({*range(number + 1)} - near))
    return places


def _predicted(ax: Axes, told: Prediction, storey: int | None) -> None:
    x = told.tokens
    if told.low is not None and told.high is not None:
        ax.plot([x, x], [told.low, told.high], color=DECAY, linewidth=2.2, zorder=3, gid="interval")
    ax.plot(x, told.loss, "o", color=DECAY, markerfacecolor="white", markersize=8, zorder=4, gid="prediction")
    if storey is None:
        return
    ax.annotate(
        f"{show_tokens(x)}\n{told.loss:.3f}",
        (x, told.loss if told.high is None else told.high),
        xytext=(0, 7 + 34 * storey),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=DECAY,
        weight="bold",
        fontsize=12,
    )


def plot_iso_flops(ax: Axes, fit: Fit, flops: Sequence[float]) -> Axes:
    """The law's loss over the size of the model, a curve for each compute budget; the best size of each is marked."""
    sizes = [point.size(fit.size or "parameters") or 1 for point in fit.points]
    for number, budget in enumerate(flops):
        best = best_size(fit.law, budget)
        centre = best or float(np.median(sizes))
        at = np.geomspace(centre / 8, centre * 8, 80)
        losses = [fit.law(budget / (FLOPS_PER * n), n) for n in at]
        colour = COLOURS[number % len(COLOURS)]
        ax.plot(at, losses, color=colour, linewidth=2.2, gid="iso flops")
        if best:
            ax.plot(best, fit.law(budget / (FLOPS_PER * best), best), "o", color=colour, markersize=8, gid="optimum")
        _name(ax, f"{budget:.2g}".replace("e+", "e"), (at[-1], losses[-1]), colour)
    ax.set_xscale("log")
    ax.margins(x=0.2)
    _tokens_axis(ax, f"{(fit.size or 'parameters').replace('_', ' ')}, N (log scale)")
    ax.set_ylabel("loss by the law")
    ax.set_title("equal FLOPs (6ND), best size marked", loc="left", fontsize=13)
    return ax


def _tokens_axis(ax: Axes, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = ax.get_xlim()
    subs = (1, 2, 5) if high / low < 200 else (1,)
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_tokens(x)))
    ax.set_xlabel(label)


def law_figure(
    fit: Fit,
    *,
    level: float = 0.9,
    predictions: Sequence[Prediction] = (),
    flops: Sequence[float] = (),
    title: str = "",
) -> Figure:
    """A fit in a picture: 1600 x 1000 pixels when saved.

    Args:
        fit: the law and its models.
        level: of the intervals, in (0, 1).
        predictions: are marked.
        flops: compute budgets of the second panel, which is there where exponents of sizes and tokens are known; none:
            around those trained.
        title: the claim that the picture makes; "" is the check of the largest model.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.25), dpi=160, layout="constrained")
    size = "" if fit.withheld else fit.size  # the best size follows from the exponents
    panels = figure.subplots(1, 2 if size else 1, squeeze=False)[0]
    plot_law(panels[0], fit, level=level, predictions=predictions)
    if size:
        largest = FLOPS_PER * max((point.size(size) or 0) * point.tokens for point in fit.points)
        plot_iso_flops(panels[1], fit, flops or [largest / 16, largest / 4, largest, largest * 4])
    _legend(panels[0], fit, level, predicted=bool(predictions))
    for ax in panels:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=12)
        ax.xaxis.label.set_size(13)
        ax.yaxis.label.set_size(13)
    put_title(figure, title or _claim(fit))
    return figure


def _claim(fit: Fit) -> str:
    if fit.left_out is None:
        return f"The law of {len(fit.points)} decayed models"
    return f"The largest model, predicted from the others: {abs(fit.left_out.error):.4f} nats off"


def _legend(ax: Axes, fit: Fit, level: float, *, predicted: bool) -> None:
    """One row above the panel, where no line can run into it."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colour = TRUNK if fit.size else DECAY
    keys: dict[str, Any] = {
        "decayed model": Line2D([], [], color=colour, marker="o", markersize=8, linestyle=""),
        "law": Line2D([], [], color=colour, linewidth=2.2),
    }
    if not fit.size and fit.noise is not None:
        keys[f"{level:.0%} of further runs"] = Patch(color=TRUNK, alpha=0.2, linewidth=0)
    if not fit.size and fit.left_out is not None:
        keys["largest, from the others"] = Line2D(
            [], [], color=TRUNK, marker="s", markersize=7, markerfacecolor="white"
        )
    if predicted:
        keys["prediction"] = Line2D([], [], color=DECAY, marker="o", markersize=8, markerfacecolor="white")
    ax.legend(keys.values(), keys, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, frameon=False, fontsize=12)
