"""Pictures of a family: what its lr did, and what that did to the loss.

Functions take a run and an Axes and return the Axes; every lr is the schedule's own. Only `family_figure` and
`families_figure` load matplotlib, and they make a Figure without pyplot's global state: they work without a display and
in threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from textwrap import fill
from typing import TYPE_CHECKING, Any

from hf_wsd.family import Run
from hf_wsd.lengths import Length, show_tokens
from hf_wsd.segment import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREEN, PURPLE, AMBER, SKY = "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"  # Okabe and Ito: for all eyes
TRUNK, TRAINING, DECAY = "#5f5f5f", "#c9c9c9", "#d55e00"  # greys, and their vermilion
WIDE_RANGE = 20  # end of the longest model / first fork point from which the x axis is logarithmic
POINTS = 200  # drawn of one curve
LABELS = 12  # ends of decays; of more, the first and the last alone have their label
FAMILIES = (BLUE, GREEN, PURPLE, AMBER, SKY, DECAY, TRUNK)
End = tuple[int, float, str]  # step, loss and budget of a decayed model


def curve(run: Run, key: str) -> dict[int, float]:
    """A logged value by step, "loss" (training) or "eval_loss"; what has diverged cannot be drawn and is left out."""
    return {row["step"]: row[key] for row in run.history if key in row and isfinite(row[key])}


def plot_lr(ax: Axes, run: Run) -> Axes:
    """The lr over tokens: the trunk as far as it has come, each branch to its end (dashed until it is finished).

    The y axis is the lr where all parameters share one peak lr, else the multiplier; x is steps where nobody knows the
    tokens of a step.
    """
    per_step = run.tokens_per_step or 1
    peak = run.identity.peak_lr
    for member in run.walk(rewound=False):
        schedule = member.identity.schedule
        for phase, steps in _stretches(member):
            ax.plot(
                [step * per_step for step in steps],
                [schedule(step) * (peak or 1) for step in steps],
                color=DECAY if phase is Phase.DECAY else TRUNK,
                linestyle="-" if steps[-1] <= member.steps_done else "--",
                linewidth=2.2,
                gid=phase.value,
            )
        for fork, _ in member.decays():
            _mark(ax, fork * per_step, schedule(fork) * (peak or 1), filled=False)
    ax.set_ylabel("learning rate" if peak else "learning rate / peak")
    ax.set_ylim(-0.05 * (peak or 1), 1.15 * (peak or 1))
    return ax


def _stretches(run: Run) -> Iterator[tuple[Phase, list[int]]]:
    """Each phase that a run makes itself, with the steps to draw; a line begins where the one before it ends."""
    begin = run.planned.step if run.planned else 0
    schedule = run.identity.schedule
    reach = run.steps_done if run.planned is None else schedule.total_steps or begin
    for start, end, segment in schedule.spans():
        first = max(start - 1, begin)
        last = end - 1 if end and end <= reach and end != schedule.total_steps else min(end or reach, reach)
        if first < last:
            yield segment.phase, sorted({first, *range(max(start, begin), last, 1 + (last - first) // POINTS), last})


def plot_losses(ax: Axes, run: Run) -> Axes:
    """Evaluation losses over tokens: the trunk grey (its training loss faint), each decay from fork point to end.

    A finished model is marked at its end and labelled with its budget and its loss; an unfinished decay is dashed. What
    lies above the loss at the first fork point is cut off.
    """
    per_step, trunk, ends = run.tokens_per_step or 1, curve(run, "eval_loss"), list[End]()
    _line(ax, curve(run, "loss"), per_step, color=TRAINING, linewidth=1.0, gid="training")
    _line(ax, trunk, per_step, color=TRUNK, gid="trunk")
    for member in run.walk(rewound=False):
        own = curve(member, "eval_loss")
        for fork, end in member.decays():
            points = {step: trunk[step] for step in (fork,) if step in trunk}
            points |= {step: loss for step, loss in own.items() if fork < step <= end}
            _line(ax, points, per_step, color=DECAY, linestyle="-" if member.has_saved(end) else "--", gid="decay")
            if fork in trunk:
                _mark(ax, fork * per_step, trunk[fork], filled=False)
            if end in own and member.has_saved(end):
                _mark(ax, end * per_step, own[end], filled=True)
                ends.append((end, own[end], _budget(member, end)))
    ends.sort()
    groups = _close_together(ax, ends if len(ends) <= LABELS else [ends[0], ends[-1]], per_step)
    _cut_steep_start(ax, run, lines=max(map(len, groups), default=0))
    for group in groups:
        _label(ax, group, per_step, trunk)
    if not trunk:
        text = "no evaluation: train with --eval_strategy steps"
        ax.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=13)
    ax.set_ylabel("evaluation loss" if trunk else "training loss")
    return ax


def _line(ax: Axes, values: dict[int, float], per_step: int, **style: Any) -> None:
    ax.plot([step * per_step for step in values], list(values.values()), **{"linewidth": 2.2} | style)


def _mark(ax: Axes, x: float, y: float, *, filled: bool) -> None:
    face = DECAY if filled else "white"
    ax.plot(x, y, "o", color=DECAY, markerfacecolor=face, markersize=8, zorder=3, gid="end" if filled else "fork")


def _budget(run: Run, end: int) -> str:
    """What a decayed model is called: its tokens as they were asked for, else as they are, else its steps."""
    requested, per_step = run.identity.requested, run.identity.tokens_per_step
    if requested and Length(requested).tokens:
        return requested
    return show_tokens(end * per_step) if per_step else f"{end} steps"


def _close_together(ax: Axes, ends: list[End], per_step: int) -> list[list[End]]:
    """Ends in groups: those within 8 % of the panel's width of the one before, where labels would overlap."""
    groups, previous = list[list[End]](), 0.0
    ax.get_xlim()  # brings the limits up to date
    for end in ends:
        place = ax.transAxes.inverted().transform(ax.transData.transform((end[0] * per_step, end[1])))[0]
        if groups and place - previous < 0.08:
            groups[-1].append(end)
        else:
            groups.append([end])
        previous = place
    return groups


def _label(ax: Axes, group: list[End], per_step: int, trunk: dict[int, float]) -> None:
    """Budget and loss of each model of a group: below the lowest mark, or above it where the trunk runs lower."""
    step, low = group[-1][0], min(loss for _, loss, _ in group)
    below = len(group) > 1 or low <= trunk.get(step, low)
    between = "\n" if len(group) == 1 else ": "
    ax.annotate(
        "\n".join(f"{budget}{between}{loss:.3f}" for _, loss, budget in group),
        (step * per_step, low),
        xytext=(0, -9) if below else (9, 3),
        textcoords="offset points",
        ha="center" if below else "left",
        va="top" if below else "bottom",
        color=DECAY,
        weight="bold",
        fontsize=12,
    )


def _cut_steep_start(ax: Axes, run: Run, *, lines: int) -> None:
    """Limits from the first fork point on, with room for labels: a trunk's first losses would flatten all else."""
    family = list(run.walk(rewound=False))
    first = min((fork for member in family for fork, _ in member.decays()), default=0)
    shown = [loss for member in family for step, loss in curve(member, "eval_loss").items() if step >= first]
    if len(set(shown)) > 1:
        height = max(shown) - min(shown)
        ax.set_ylim(min(shown) - (0.12 + 0.08 * max(2, lines)) * height, max(shown) + 0.1 * height)


def _scale_x(ax: Axes, run: Run) -> None:
    """Tokens (or steps) from the start, or logarithmic from before the first fork where the models differ a lot."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    per_step = run.tokens_per_step
    decays = [decay for member in run.walk(rewound=False) for decay in member.decays()]
    first = min((fork for fork, _ in decays), default=0) * (per_step or 1)
    last = max([1, run.steps_done, *(end for _, end in decays)]) * (per_step or 1)
    log = 0 < first * WIDE_RANGE <= last
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(first / 2 if log else 0, last * (1.3 if log else 1.06))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_tokens(x)))
    ax.set_xlabel(("tokens seen" if per_step else "steps") + (" (log scale)" if log else ""))


def _legend(ax: Axes, run: Run) -> None:
    """One row above the panel, where no line can run into it."""
    from matplotlib.lines import Line2D

    line = any(run.decays())  # WSD-S
    dot: dict[str, Any] = {"color": DECAY, "marker": "o", "markersize": 8}
    keys = {
        "line" if line else "trunk": Line2D([], [], color=TRUNK, linewidth=2.2),
        "its training loss": Line2D([], [], color=TRAINING),
        "decay starts" if line else "fork point": Line2D([], [], **dot, linestyle="", markerfacecolor="white"),
        "decay to a finished model": Line2D([], [], **dot, linewidth=2.2),
    }
    ax.legend(
        keys.values(), keys, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=len(keys), frameon=False, fontsize=12
    )


def family_figure(run: Run, *, title: str = "") -> Figure:
    """Losses above, lr below, on one x axis: 1600 x 1000 pixels when saved.

    Args:
        run: a trunk with its branches, or a WSD-S line.
        title: the claim that the picture makes: `Report.claim`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.25), dpi=160, layout="constrained")
    losses, lr = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _scale_x(lr, run)
    plot_losses(losses, run)
    plot_lr(lr, run)
    _legend(losses, run)
    for ax in (losses, lr):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=12)
        ax.xaxis.label.set_size(13)
        ax.yaxis.label.set_size(13)
    put_title(figure, title)
    return figure


def families_figure(runs: Mapping[str, Run], *, title: str = "") -> Figure:
    """Decayed losses of several families over tokens (log scale): 1600 x 960 pixels when saved.

    Args:
        runs: trunks by what their line is called; labels stand at the ends of the lines.
        title: the claim that the picture makes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=160, layout="constrained")
    ax = figure.subplots()
    tails: list[tuple[float, str, str]] = []
    for at, (name, run) in enumerate(runs.items()):
        color, marker = FAMILIES[at % len(FAMILIES)], "os^Dv"[at // len(FAMILIES) % 5]
        points = [point for member in run.walk(rewound=False) if not member.changed for point in _decayed(member)]
        if points:
            ax.plot(*zip(*sorted(points), strict=True), marker + "-", color=color, linewidth=2.2, markersize=8)
            tails.append((sorted(points)[-1][1], name, color))
    ax.set_xscale("log")
    ax.set_xlabel("tokens seen (log scale)")
    ax.set_ylabel("decayed loss")
    if not tails:
        ax.annotate(
            "no decayed model with an evaluation", (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=13
        )
    _scale_log(ax)
    _label_lines(ax, sorted(tails))
    ax.spines[["top", "right"]].set_visible(False)
    put_title(figure, title)
    return figure


def put_title(figure: Figure, title: str) -> None:
    """A claim above a figure of 10 inches, on as many lines as it takes: 72 letters are the widest that fit on one."""
    figure.suptitle(fill(title, 72), x=0.01, ha="left", weight="bold", fontsize=15)


def _decayed(run: Run) -> Iterator[tuple[float, float]]:
    """Tokens and loss of each finished model of a run."""
    for _, end in run.decays():
        tokens, loss = run.tokens_at(end), run.losses_at(end).get("loss")
        if run.has_saved(end) and tokens and loss is not None and isfinite(loss):
            yield tokens, loss


def _scale_log(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: show_tokens(x)))
    ax.tick_params(labelsize=12)
    ax.xaxis.label.set_fontsize(13)
    ax.yaxis.label.set_fontsize(13)


def _label_lines(ax: Axes, tails: list[tuple[float, str, str]]) -> None:
    """The name of each line beside its last mark, moved up where it would meet the one below."""
    low, high = ax.get_ylim()
    place = -1.0
    for loss, name, color in tails:
        place = max((loss - low) / (high - low), place + 0.055)
        style: dict[str, Any] = {"color": color, "weight": "bold", "fontsize": 12, "va": "center", "parse_math": False}
        ax.annotate(name, (1.01, place), xycoords="axes fraction", annotation_clip=False, **style)
