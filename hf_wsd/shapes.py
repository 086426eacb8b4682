"""The curves of a decay and of a warm-up: one entry in a table each.

A shape is a function `curve(x, start, end, steps)` of the progress x in [0, 1) that returns the multiplier (lr / peak
lr); it tends to `end` at x = 1. Update i (0-based) of a decay of D steps uses x = i / D, so `end` itself is reached by
the first update after the decay and trained by none (transformers' convention).

Most shapes are a fall s(x) from 1 to 0, scaled between the end points: `s(x) * (start - end) + end`. Written in this
order every multiplier equals that of transformers' `warmup_stable_decay` to the last bit. The minimum means the same
for every shape: the multiplier that the decay tends to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One curve.

    Args:
        curve: `curve(x, start, end, steps, **params)`, the multiplier at progress x.
        formula: to print; of a fall from 1 to 0, or with `start` and `end`.
        source: paper or program.
        params: names of its parameters, each above 0, with their defaults (None: must be given).
        needs_positive_ends: whether it is defined between multipliers above 0 alone.
        own_end: `own_end(start, steps, **params)` of a shape that computes the multiplier at which it ends.
        jumps: whether it starts below `start`.

    >>> SHAPES["power"].formula, SHAPES["power"].curve(0.75, 1.0, 0.0, 100, p=1.5)
    ('(1 - x)^p', 0.125)
    """

    curve: Callable[..., float]
    formula: str
    source: str
    params: Mapping[str, float | None] = field(default_factory=dict)
    needs_positive_ends: bool = False
    own_end: Callable[..., float] | None = None
    jumps: bool = False


def fall(s: Callable[..., float]) -> Callable[..., float]:
    """The curve of a fall s(x) from 1 to 0 between two multipliers: the one rule of the minimum.

    >>> fall(lambda x: 1 - x)(0.5, 1.0, 0.1, 100)
    0.55
    """
    return lambda x, start, end, steps, **params: s(x, **params) * (start - end) + end


def _rise(r: Callable[[float], float]) -> Callable[..., float]:
    # Not `_fall` of 1 - r: in floating point 1 - (1 - p) is not p.
    return lambda x, start, end, steps: r(x) * (end - start) + start


def _cosine(x: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * x))


SHAPES: dict[str, Shape] = {
    "1-sqrt": Shape(
        curve=fall(lambda x: 1.0 - math.sqrt(x)),
        formula="1 - sqrt(x)",
        source="Hägele et al. 2024, arXiv 2405.18392",
    ),
    "linear": Shape(
        curve=fall(lambda x: 1.0 - x),
        formula="1 - x",
        source="transformers' warmup_stable_decay; arXiv 2405.18392",
    ),
    "cosine": Shape(
        curve=fall(_cosine),
        formula="(1 + cos(pi x)) / 2",
        source="transformers' warmup_stable_decay",
    ),
    "inverse": Shape(
        curve=lambda x, start, end, steps: 1.0 / (x / end + (1.0 - x) / start),
        formula="1 / (x / end + (1 - x) / start), linear in 1 / lr",
        source="Wen et al. 2024 (WSD-S), arXiv 2410.05192",
        needs_positive_ends=True,
    ),
    "mirror-cosine": Shape(
        curve=fall(lambda x: 2.0 * (1.0 - x) - _cosine(x)),
        formula="2 (1 - x) - (1 + cos(pi x)) / 2",
        source="Dremov et al. 2025, arXiv 2508.01483",
    ),
    "square": Shape(
        curve=fall(lambda x: 1.0 - x * x),
        formula="1 - x^2",
        source="Dremov et al. 2025, arXiv 2508.01483",
    ),
    "power": Shape(
        curve=fall(lambda x, p: (1.0 - x) ** p),
        formula="(1 - x)^p",
        source="multi-power law, arXiv 2503.12811: p = 1.5 is the best decay that it found",
        params={"p": 1.5},
    ),
    "exponential": Shape(
        curve=lambda x, start, end, steps: start * (end / start) ** x,
        formula="start (end / start)^x, linear in log lr",
        source="arXiv 2405.18392",
        needs_positive_ends=True,
    ),
    "half-life": Shape(
        curve=lambda x, start, end, steps, half_life: start * 0.5 ** (x * steps / half_life),
        formula="start 0.5^(x steps / half_life)",
        source="MiniCPM, arXiv 2404.06395 (there: 5000 steps)",
        params={"half_life": None},
        own_end=lambda start, steps, half_life: start * 0.5 ** (steps / half_life),
    ),
    "lowered-linear": Shape(
        curve=lambda x, start, end, steps, factor: (1.0 - x) * (factor * start - end) + end,
        formula="(1 - x) (factor start - end) + end",
        source="linear from 0.7 of the peak: a jump, then the straight line",
        params={"factor": 0.7},
        jumps=True,
    ),
    "megatron-exponential": Shape(
        curve=fall(lambda x: 2.0 * 0.5**x - 1.0),
        formula="2 0.5^x - 1",
        source="Megatron-LM's lr_wsd_decay_style exponential",
    ),
    "multi-step": Shape(
        curve=lambda x, start, end, steps: start * (0.316 if x < 0.5 else 0.1),
        formula="0.316 start, from x = 1/2 on 0.1 start",
        source="DeepSeek LLM, arXiv 2401.02954: with decay_fraction 0.2 its schedule",
        own_end=lambda start, steps: start * 0.1,
        jumps=True,
    ),
}

WARMUP_SHAPES: dict[str, Shape] = {
    "linear": Shape(
        curve=_rise(lambda x: x),
        formula="x",
        source="transformers' warmup_stable_decay",
    ),
    "cosine": Shape(
        curve=_rise(lambda x: 0.5 * (1.0 - math.cos(math.pi * x))),
        formula="(1 - cos(pi x)) / 2",
        source="transformers' warmup_stable_decay",
    ),
    "1-sqrt": Shape(
        curve=_rise(lambda x: 1.0 - math.sqrt(1.0 - x)),
        formula="1 - sqrt(1 - x)",
        source="transformers' warmup_stable_decay",
    ),
}


def shape_names() -> str:
    """The decay shapes for a help text: first the four that people use.

    >>> shape_names()[:48]
    '1-sqrt, linear, cosine, inverse; mirror-cosine, '
    """
    names = list(SHAPES)
    return f"{', '.join(names[:4])}; {', '.join(names[4:])}; or a function of yours, pkg.module:name"
