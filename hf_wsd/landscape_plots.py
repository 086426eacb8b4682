"""Pictures of a run's landscape: the valley from above, from the side, and the way that the run took."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_wsd.plots import BLUE, DECAY, TRUNK
from hf_wsd.valley import Landscape, Slice
from hf_wsd.verdict import judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIVER = BLUE
LEVELS = 14  # of the loss in the picture from above
_DOT: dict[str, Any] = {"color": DECAY, "markersize": 9, "zorder": 4, "linestyle": ""}


def above_figure(found: Landscape) -> Figure:
    """The valley from above: losses in the plane of the last decay, 1600 x 960 pixels when saved."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter

    figure = Figure(figsize=(10, 6), dpi=160, layout="constrained")
    ax, plane = figure.subplots(), found.slice
    losses = np.array(plane.losses)
    low, high = losses.min(), max(losses.max(), losses.min() + 1e-9)  # levels must rise
    digits = "%.2f" if high - low > 0.3 else "%.4f"
    levels = low + (high - low) * np.linspace(0, 1, LEVELS) ** 2  # closer near the bottom
    hills = ax.contourf(plane.along, plane.across, losses, levels=levels, cmap="cividis")
    ax.contour(plane.along, plane.across, losses, levels=levels, colors="white", linewidths=0.6, alpha=0.6)
    bar = figure.colorbar(hills, ax=ax, ticks=levels[:: max(1, LEVELS // 6)], format=FormatStrFormatter(digits))
    bar.set_label("evaluation loss (levels closer near the bottom)", fontsize=12)
    _walk(ax, found, plane)
    ax.set_xlabel("along the river: distance from the decayed model", fontsize=13)
    ax.set_ylabel("across: distance from the river", fontsize=13)
    ax.tick_params(labelsize=12)
    figure.suptitle(_above_claim(found), x=0.01, ha="left", weight="bold", fontsize=15)
    return figure


def _above_claim(found: Landscape) -> str:
    verdict, hill = judge(found), found.decays[-1].fork.hill_loss
    if verdict.behaves is False:
        failed = sum(one.holds is False for one in verdict.statements)
        return f"From above: no river valley ({failed} of {len(verdict.statements)} statements do not hold)"
    return f"From above: the trunk lies {hill:.3f} up the hill, and the decay goes down to the river"


def _walk(ax: Axes, found: Landscape, plane: Slice) -> None:
    """The river between the two decayed models, and the decay down to it."""
    losses = {spot.name: spot.loss for spot in found.spots}
    before, end, fork = plane.corners
    river: dict[str, Any] = {"color": "white", "linewidth": 2.0, "linestyle": "--"}
    ax.plot(*zip(before, end, strict=True), **river)
    ax.plot(*zip(fork, *plane.inside, end, strict=True), color=DECAY, linewidth=2.4)
    ax.plot(*zip(*plane.inside, strict=True), "o", **_DOT | {"markersize": 6}) if plane.inside else None
    ax.plot(*fork, "o", **_DOT, markerfacecolor="white")
    ax.plot(*zip(before, end, strict=True), "o", **_DOT)
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    texts = ("decayed model before", "decayed model", "fork point on the trunk")
    for name, text, place in zip((plane.before, plane.end, plane.fork), texts, plane.corners, strict=True):
        at: dict[str, Any] = (
            {"ha": "left", "xytext": (0, -18)} if name == plane.before else {"ha": "right", "xytext": (0, -18)}
        )
        at |= {"va": "top"} if name != plane.fork else {"va": "bottom", "xytext": (-12, 6)}
        label = f"{text}: {losses[name]:.3f}"
        ax.annotate(label, place, textcoords="offset points", fontsize=12, bbox=box, parse_math=False, **at)


def side_figure(found: Landscape) -> Figure:
    """The valley from the side: the ways between fork points and between decayed models, 1600 x 960 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=160, layout="constrained")
    ax = figure.subplots()
    lr_sums = {spot.name: spot.lr_sum for spot in found.spots}
    colours = {"stable-stable": TRUNK, "decayed-decayed": RIVER, "stable-decayed": DECAY}
    labels = {
        "stable-stable": "between fork points of the trunk",
        "decayed-decayed": "between decayed models: the river",
    }
    labels |= {"stable-decayed": "from a fork point to its decayed model"}
    for line in found.lines:
        style: dict[str, Any] = {"color": colours[line.kind], "linewidth": 2.2, "label": labels.pop(line.kind, None)}
        ax.plot(line.lr_sums(lr_sums), line.losses, **style)
    losses = {spot.name: spot.loss for spot in found.spots}
    for decay in found.decays:
        ax.plot(lr_sums[decay.fork.name], losses[decay.fork.name], "o", **_DOT, markerfacecolor="white")
        ax.plot(lr_sums[decay.end], losses[decay.end], "o", **_DOT)
    ax.set_xlabel("sum of the lr / peak lr, on straight lines between checkpoints' weights", fontsize=13)
    ax.set_ylabel("evaluation loss", fontsize=13)
    _tidy(figure, [ax])
    ax.legend(loc="upper right", frameon=False, fontsize=12)
    figure.suptitle(_side_claim(found), x=0.01, ha="left", weight="bold", fontsize=15)
    return figure


def _side_claim(found: Landscape) -> str:
    floor = next(one for one in judge(found).statements if one.claim.startswith("after the same"))
    return f"From the side: the river {'runs' if floor.holds else 'does not run'} below the trunk"


def way_figure(found: Landscape) -> Figure:
    """How far the checkpoints lie from the river, and progress along it over the sum of the lr, 1600 x 800 pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=160, layout="constrained")
    places, progress = figure.subplots(1, 2)
    spots = {spot.name: spot for spot in found.spots}
    trunk = found.trunk
    forks = [(spots[decay.fork.name].along, decay.fork.distance) for decay in found.decays]
    places.plot(*zip(*forks, strict=True), "-", color=TRUNK, linewidth=2.2, label="trunk, fork point to fork point")
    progress.plot([s.lr_sum for s in trunk], [s.along for s in trunk], "o-", color=TRUNK, linewidth=2.2)
    for at, decay in enumerate(found.decays):
        way = [spots[name] for name in (*(b.name for b in decay.beside), decay.end)]
        style: dict[str, Any] = {"color": DECAY, "linewidth": 2.2, "marker": "o", "markersize": 6}
        label = None if at else "decays, to decayed models"
        distances = [*(beside.distance for beside in decay.beside), 0.0]
        places.plot([s.along for s in way], distances, **style, label=label)
        progress.plot([s.lr_sum for s in way], [s.along for s in way], **style)
    places.axhline(0, color=RIVER, linewidth=4, alpha=0.5, zorder=0, label="the river, through the decayed models")
    places.set_ylim(top=places.get_ylim()[1] * 1.45)  # room for the legend
    places.set_xlabel("along the river, from the first decayed model", fontsize=13)
    places.set_ylabel("distance from the river", fontsize=13)
    progress.set_xlabel("sum of the lr / peak lr", fontsize=13)
    progress.set_ylabel("along the river", fontsize=13)
    _tidy(figure, [places, progress])
    places.legend(loc="upper left", frameon=False, fontsize=11)
    figure.suptitle("Distance from the river, and progress along it", x=0.01, ha="left", weight="bold", fontsize=15)
    return figure


def _tidy(figure: Figure, axes: Sequence[Axes]) -> None:
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=12)


FIGURES = {"landscape": above_figure, "landscape-side": side_figure, "landscape-way": way_figure}


def write_figures(found: Landscape, folder: Path) -> list[Path]:
    """Write landscape.png, landscape-side.png and landscape-way.png, each whole or not at all; returns their files."""
    files = []
    for name, draw in FIGURES.items():
        file = folder / f"{name}.png"
        new = file.with_name(f".{file.name}.{os.getpid()}")
        draw(found).savefig(new, format="png", metadata={"Software": None})
        new.replace(file)
        files.append(file)
    return files
