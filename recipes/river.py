"""The river valley of arXiv 2410.05192 in two dimensions: why a stable phase and a decay are both needed.

    python recipes/river.py --into recipes/figures

A flat river winds through steep hills: L(x, y) = -slope x + curvature e^2 / 2 with e = y - r(x), r(x) = bend sin(k x).
SGD sees the gradient plus noise across the river. To first order in the lr, theory says

    progress    time of the gradient flow along the river, the integral of (1 + r'^2) / slope dx = sum of lr
    hill loss   curvature E[e^2] / 2 = lr noise^2 / (2 (2 - lr c)) ~ lr noise^2 / 4,  c = curvature (1 + r'^2)
    decay       lowest variance after each step: 1 / lr[t+1] = 1 / lr[t] + c, the shape `inverse`

Why: with e[t+1] = (1 - lr c) e[t] + lr s xi and v = E[e^2], s^2 = noise^2 (1 + r'^2):
v[t+1] = (1 - lr c)^2 v[t] + lr^2 s^2. Its fixed point is the hill loss. It is lowest for lr = c v / (c^2 v + s^2); then
1 / v[t+1] = 1 / v[t] + c^2 / s^2 and 1 / lr[t] = c + s^2 / (c v[t]), which grows by c in each step. As v[t+1] rises
with v[t], the greedy choice is also the best for the last v. After a stable phase at lr it begins with
1 / lr[0] = 2 / lr: at half the peak. The command prints how near every schedule comes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_wsd.baselines import constant, cosine, cyclic_cosine, multi_step
from hf_wsd.builders import wsd, wsd_s
from hf_wsd.plots import BLUE, DECAY, SKY, TRUNK
from hf_wsd.schedule import Schedule
from hf_wsd.segment import Segment

PEAK_LR, STEPS, DECAY_STEPS = 0.08, 1000, 200
SCHEDULES: dict[str, Schedule] = {
    "constant": constant(STEPS),
    "WSD, 1-sqrt": wsd(STEPS, num_decay_steps=DECAY_STEPS),
    "WSD, linear": wsd(STEPS, num_decay_steps=DECAY_STEPS, decay_type="linear"),
    "WSD, inverse": wsd(STEPS, num_decay_steps=DECAY_STEPS, decay_type="inverse", min_lr_ratio=0.02),
    "WSD-S": wsd_s(STEPS, cycle_ends=[STEPS // 4, STEPS // 2, STEPS], decay_fraction=0.2),
    "multi-step": multi_step(STEPS),
    "cosine": cosine(STEPS, num_warmup_steps=20),
    "cyclic cosine": cyclic_cosine(STEPS, cycle_ends=[STEPS // 2, STEPS]),
}


@dataclass(frozen=True, kw_only=True)
class Valley:
    """A river and its hills.

    Args:
        slope: fall of the river per unit of x.
        curvature: of the hills, in y.
        noise: standard deviation of the gradient across the river.
        bend: how far the river swings to each side; 0 is straight.
        wavelength: of the swings.
    """

    slope: float = 0.1
    curvature: float = 6.0
    noise: float = 3.6
    bend: float = 0.45  # at 0.6 the hills, narrower where the river is steep, push progress off by up to 5 %
    wavelength: float = 9.0

    def river(self, x: np.ndarray) -> np.ndarray:
        """The y of the river at x."""
        return self.bend * np.sin(2 * np.pi / self.wavelength * x)

    def direction(self, x: np.ndarray) -> np.ndarray:
        """The derivative r'(x) of the river."""
        return 2 * np.pi / self.wavelength * self.bend * np.cos(2 * np.pi / self.wavelength * x)

    def loss(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Loss without noise: that of the river at x, and of the hill above it."""
        return -self.slope * x + self.hill(x, y)

    def hill(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The part of the loss that a decay removes."""
        return self.curvature * (y - self.river(x)) ** 2 / 2

    def progress(self, x: np.ndarray) -> np.ndarray:
        """Time that the gradient flow needs along the river from 0 to x: the closed form of the integral."""
        k = 2 * np.pi / self.wavelength
        return (x + (self.bend * k) ** 2 * (x / 2 + np.sin(2 * k * x) / (4 * k))) / self.slope

    @property
    def sharpness(self) -> float:
        """Curvature across the river, c, on average over x: swings make it a little higher than that in y."""
        return self.curvature * (1 + (2 * np.pi / self.wavelength * self.bend) ** 2 / 2)

    def hill_losses(self, lrs: Sequence[float], start: float = 0.0) -> np.ndarray:
        """What theory gives for the hill loss, `start` and after each update: the recursion of the variance."""
        c, noise = self.sharpness, self.noise
        hills = [start]
        for lr in lrs:
            hills.append((1 - lr * c) ** 2 * hills[-1] + lr**2 * c * noise**2 / 2)
        return np.array(hills)

    def stationary_hill_loss(self, lr: float) -> float:
        """What theory gives for the hill loss of a long stable phase; about lr noise^2 / 4."""
        return lr * self.noise**2 / (2 * (2 - lr * self.sharpness))


@dataclass(frozen=True, kw_only=True)
class Track:
    """Where SGD has been: x and y after each update, shape (updates + 1, seeds)."""

    x: np.ndarray
    y: np.ndarray


def descend(valley: Valley, lrs: Sequence[float], *, seeds: int, seed: int = 0) -> Track:
    """SGD from the river's start, with one lr for each update and `seeds` independent noises."""
    rng = np.random.default_rng(seed)
    x, y = np.zeros((len(lrs) + 1, seeds)), np.zeros((len(lrs) + 1, seeds))
    for step, lr in enumerate(lrs):
        direction = valley.direction(x[step])
        push = valley.curvature * (y[step] - valley.river(x[step]))  # along (-r', 1), as the noise is
        push += valley.noise * rng.standard_normal(seeds) / np.sqrt(1 + direction**2)
        x[step + 1] = x[step] + lr * (valley.slope + push * direction)
        y[step + 1] = y[step] - lr * push
    return Track(x=x, y=y)


def greedy_lrs(variance: float, *, curvature: float, noise: float, steps: int) -> np.ndarray:
    """The lrs of the greedily best decay on a noisy quadratic: each gives the lowest next variance.

    Args:
        variance: E[e^2] before the first step.
        curvature: c of the quadratic c e^2 / 2.
        noise: standard deviation of the gradient.
        steps: how many lrs.
    """
    first = curvature * variance / (curvature**2 * variance + noise**2)
    return 1 / (1 / first + curvature * np.arange(steps))


def decay_ends(valley: Valley, steps: int = DECAY_STEPS) -> dict[str, float]:
    """Hill loss after a decay out of a stable phase at PEAK_LR, by shape, over that of the greedily best lrs.

    `inverse` goes from the peak to where the greedy one ends, the others go to zero.
    """
    start, c = valley.stationary_hill_loss(PEAK_LR), valley.sharpness
    greedy = greedy_lrs(2 * start / c, curvature=c, noise=valley.noise, steps=steps + 1)
    ends = {"greedy": 0.0, "inverse": greedy[-1] / PEAK_LR} | dict.fromkeys(("1-sqrt", "cosine", "linear"), 0.0)
    hills = {}
    for shape, end in ends.items():
        multipliers = [] if shape == "greedy" else Segment.decay(steps, shape=shape, end=end).multipliers(0, steps)
        lrs = [PEAK_LR * multiplier for multiplier in multipliers] or greedy[:-1]
        hills[shape] = valley.hill_losses(lrs, start)[-1]
    return {shape: hill / hills["greedy"] for shape, hill in hills.items()}


def summary(valley: Valley, *, seeds: int = 256) -> Iterator[str]:
    """The table: each schedule's progress and mean hill loss over what theory gives, its end; how well decays end."""
    row = "{:<14} {:>9} {:>17} {:>18} {:>9} {:>9}".format
    yield row("schedule", "sum of lr", "progress / theory", "hill loss / theory", "last hill", "last loss")
    for name, schedule in SCHEDULES.items():
        lrs = [PEAK_LR * multiplier for multiplier in schedule.multipliers()]
        track = descend(valley, lrs, seeds=seeds)
        progress, hills = valley.progress(track.x[-1]).mean(), valley.hill(track.x, track.y).mean(axis=1)
        ratios = progress / sum(lrs), hills.mean() / valley.hill_losses(lrs).mean()
        end = valley.loss(track.x[-1], track.y[-1]).mean()
        yield row(name, f"{sum(lrs):.1f}", *(f"{r:.3f}" for r in ratios), f"{hills[-1]:.4f}", f"{end:.3f}")
    ends = ", ".join(f"{shape} {ratio:.3f}" for shape, ratio in decay_ends(valley).items())
    yield f"hill loss after a decay of {DECAY_STEPS} steps over the lowest: {ends}"


def plot_valley(ax: Axes, valley: Valley, tracks: dict[str, Track]) -> Axes:
    """The valley from above, with one walk of a WSD run and one at a tenth of its lr."""
    x, y = np.meshgrid(np.linspace(-0.4, 8.6, 400), np.linspace(-1.7, 1.7, 200))
    ax.contourf(x, y, np.sqrt(valley.hill(x, y)), levels=16, cmap="Greens", alpha=0.55)
    ax.plot(x[0], valley.river(x[0]), color=SKY, linewidth=7, alpha=0.8, solid_capstyle="butt")
    whole, slow, fork = tracks["WSD"], tracks["low"], STEPS - DECAY_STEPS
    ax.plot(whole.x[: fork + 1, 0], whole.y[: fork + 1, 0], color=TRUNK, linewidth=0.7)
    ax.plot(whole.x[fork:, 0], whole.y[fork:, 0], color=DECAY, linewidth=1.6)
    ax.plot(slow.x[:, 0], slow.y[:, 0], color=BLUE, linewidth=1.6)
    ax.plot(whole.x[-1, 0], whole.y[-1, 0], "o", color=DECAY, markersize=9)
    ax.plot(slow.x[-1, 0], slow.y[-1, 0], "o", color=BLUE, markersize=9)
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
    style = {"weight": "bold", "fontsize": 12, "bbox": box}
    ax.annotate("stable phase: far along the river,\nback and forth across it", (1.9, 1.2), color=TRUNK, **style)
    ax.annotate("decay: down\nto the river", (6.7, 0.35), color=DECAY, **style)
    ax.annotate("a tenth of the lr:\nquiet, but nowhere", (-0.2, -1.2), color=BLUE, **style)
    ax.set_title("The valley from above: the river falls to the right", loc="left", fontsize=13)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def plot_losses(ax: Axes, valley: Valley, tracks: dict[str, Track]) -> Axes:
    """Loss over steps, the mean of all seeds; dotted the loss of the river below."""
    steps, fork = np.arange(STEPS + 1), STEPS - DECAY_STEPS
    loss = {name: valley.loss(track.x, track.y).mean(axis=1) for name, track in tracks.items()}
    ax.plot(steps, -valley.slope * tracks["WSD"].x.mean(axis=1), ":", color=SKY, linewidth=2.5)
    ax.plot(steps, loss["constant"], color=TRUNK, linewidth=2.2)
    ax.plot(steps, loss["low"], color=BLUE, linewidth=2.2)
    ax.plot(steps[fork:], loss["WSD"][fork:], color=DECAY, linewidth=2.2)
    ax.plot(STEPS, loss["WSD"][-1], "o", color=DECAY, markersize=9)
    river = -valley.slope * float(tracks["WSD"].x[500].mean())
    ax.annotate(
        "", (500, river), (500, loss["WSD"][480:520].mean()), arrowprops={"arrowstyle": "<->", "color": "black"}
    )
    ax.annotate("hill loss: grows\nwith lr x noise$^2$", (485, -0.14), ha="right", va="center", fontsize=12)
    style = {"weight": "bold", "fontsize": 12}
    ax.annotate("stable phase: high, falling fast", (300, 0.2), color=TRUNK, **style)
    ax.annotate("a tenth of the lr", (700, 0.02), color=BLUE, **style)
    ax.annotate("decay", (815, -0.52), color=DECAY, ha="right", **style)
    ax.annotate("the river below:\nfalls with the sum of lr", (110, -0.58), color="#2a7fb0", **style)
    ax.set_xlabel("step")
    ax.set_title("The loss that one sees", loc="left", fontsize=13)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def figure(valley: Valley) -> Figure:
    """The one picture: 1600 x 700 pixels when saved."""
    schedules = {"WSD": (SCHEDULES["WSD, 1-sqrt"], 1.0), "constant": (SCHEDULES["constant"], 1.0)}
    schedules["low"] = (SCHEDULES["constant"], 0.1)
    tracks = {
        name: descend(valley, [PEAK_LR * scale * m for m in schedule.multipliers()], seeds=1500)
        for name, (schedule, scale) in schedules.items()
    }
    whole = Figure(figsize=(13, 5.2), dpi=125, layout="constrained", facecolor="white")
    above, losses = whole.subplots(1, 2, width_ratios=(1.35, 1))
    plot_valley(above, valley, tracks)
    plot_losses(losses, valley, tracks)
    claim = "A high lr travels far but bounces off the hills; the decay drops onto the river"
    whole.suptitle(claim, x=0.01, ha="left", weight="bold", fontsize=16)
    return whole


def main() -> None:
    """Print the table; draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="folder for river.png")
    args = parser.parse_args()
    print("\n".join(summary(Valley())))
    if args.into:
        args.into.mkdir(parents=True, exist_ok=True)
        figure(Valley()).savefig(args.into / "river.png", metadata={"Software": None})
        print(args.into / "river.png")


if __name__ == "__main__":
    main()
