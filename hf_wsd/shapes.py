"""The curves of a decay and of a warm-up: one entry in a table each.

A decay shape is a function `f(x, start, end)` of the progress x in [0, 1) that returns the multiplier (lr / peak lr);
the multiplier is `start` at x = 0 and tends to `end` at x = 1. Update i (0-based) of a decay of D steps uses x = i / D,
so `end` itself is reached by the first update after the decay and trained by none (transformers' convention).

Most shapes are a fall s(x) from 1 to 0, scaled between the end points: `s(x) * (start - end) + end`. Written in this
order every multiplier equals that of transformers' `warmup_stable_decay` to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hf_wsd.errors import ShapeError, unknown


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One curve: `curve(x, start, end)`, the formula to print, its source, and its domain."""

    curve: Callable[[float, float, float], float]
    formula: str
    source: str
    needs_positive_ends: bool = False


def _fall(s: Callable[[float], float]) -> Callable[[float, float, float], float]:
    return lambda x, start, end: s(x) * (start - end) + end


def _rise(r: Callable[[float], float]) -> Callable[[float, float, float], float]:
    # Not `_fall` of 1 - r: in floating point 1 - (1 - p) is not p.
    return lambda x, start, end: r(x) * (end - start) + start


def _inverse(x: float, start: float, end: float) -> float:
    return 1.0 / (x / end + (1.0 - x) / start)


SHAPES: dict[str, Shape] = {
    "1-sqrt": Shape(
        curve=_fall(lambda x: 1.0 - math.sqrt(x)),
        formula="1 - sqrt(x)",
        source="Hägele et al. 2024, arXiv 2405.18392",
    ),
    "linear": Shape(
        curve=_fall(lambda x: 1.0 - x),
        formula="1 - x",
        source="transformers' warmup_stable_decay; arXiv 2405.18392",
    ),
    "cosine": Shape(
        curve=_fall(lambda x: 0.5 * (1.0 + math.cos(math.pi * x))),
        formula="(1 + cos(pi x)) / 2",
        source="transformers' warmup_stable_decay",
    ),
    "inverse": Shape(
        curve=_inverse,
        formula="1 / (x / end + (1 - x) / start), linear in 1 / lr",
        source="Wen et al. 2024 (WSD-S), arXiv 2410.05192",
        needs_positive_ends=True,
    ),
    "square": Shape(
        curve=_fall(lambda x: 1.0 - x * x),
        formula="1 - x^2",
        source="Dremov et al. 2025, arXiv 2508.01483",
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


def find_shape(name: str, *, end: float, start: float = 1.0, warmup: bool = False) -> Shape:
    """The shape of that name, checked against the multipliers between which it is to run.

    Args:
        name: a key of `SHAPES`, or of `WARMUP_SHAPES` with `warmup`.
        end: the multiplier at the end, in [0, 1].
        start: the multiplier at the start, in [0, 1].

    Raises:
        ShapeError: the name is unknown, or the shape needs end points above 0.

    >>> find_shape("linear", end=0.0).curve(0.25, 1.0, 0.0)
    0.75
    """
    table = WARMUP_SHAPES if warmup else SHAPES
    if not isinstance(name, str) or name not in table:
        raise ShapeError(unknown("warm-up shape" if warmup else "decay shape", name, table))
    shape = table[name]
    if shape.needs_positive_ends and min(start, end) <= 0:
        raise ShapeError(
            f"the {name} shape is linear in 1/lr and cannot run from {start:g} to {end:g}: give min_lr_ratio > 0, for "
            "example 0.1"
        )
    return shape
