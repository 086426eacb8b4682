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
from functools import cache
from importlib import import_module
from typing import Any

from hf_wsd.errors import ShapeError, unknown

Params = Mapping[str, float]
GRID = 1000  # progress values at which a user's own shape is tried


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


def _fall(s: Callable[..., float]) -> Callable[..., float]:
    return lambda x, start, end, steps, **params: s(x, **params) * (start - end) + end


def _rise(r: Callable[[float], float]) -> Callable[..., float]:
    # Not `_fall` of 1 - r: in floating point 1 - (1 - p) is not p.
    return lambda x, start, end, steps: r(x) * (end - start) + start


def _cosine(x: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * x))


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
        curve=_fall(_cosine),
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
        curve=_fall(lambda x: 2.0 * (1.0 - x) - _cosine(x)),
        formula="2 (1 - x) - (1 + cos(pi x)) / 2",
        source="Dremov et al. 2025, arXiv 2508.01483",
    ),
    "square": Shape(
        curve=_fall(lambda x: 1.0 - x * x),
        formula="1 - x^2",
        source="Dremov et al. 2025, arXiv 2508.01483",
    ),
    "power": Shape(
        curve=_fall(lambda x, p: (1.0 - x) ** p),
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
        curve=_fall(lambda x: 2.0 * 0.5**x - 1.0),
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


def find_shape(name: str, *, warmup: bool = False) -> Shape:
    """The shape of that name.

    Args:
        name: a key of `SHAPES`, or of `WARMUP_SHAPES` with `warmup`; or `pkg.module:function`, a fall s(x) of the
            user's own, from 1 at progress x = 0 towards 0, whose parameters are keyword arguments.
        warmup: whether a rise is wanted.

    Raises:
        ShapeError: the name is unknown, or the function cannot be imported or is no fall.

    >>> find_shape("linear").curve(0.25, 1.0, 0.0, 100)
    0.75
    """
    table = WARMUP_SHAPES if warmup else SHAPES
    if isinstance(name, str) and name in table:
        return table[name]
    if isinstance(name, str) and ":" in name and not warmup:
        return _imported(name)
    raise ShapeError(unknown("warm-up shape" if warmup else "decay shape", name, table))


@cache
def _imported(name: str) -> Shape:
    module, _, attribute = name.partition(":")
    if module == "__main__":
        raise ShapeError(
            f"{name}: a branch runs in a process of its own, which finds no function of a script: move it to a module"
        )
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ShapeError(
            f"the shape {name} cannot be imported ({error}): write pkg.module:function, and put the module's folder on "
            "PYTHONPATH"
        ) from error
    if not callable(function):
        raise ShapeError(f"the shape {name} is no function but {function!r}")
    return Shape(
        curve=_fall(lambda x, **params: float(function(x, **params))), formula=f"{attribute}(x)", source=module
    )


def read_params(name: str, params: Any) -> dict[str, float]:
    """The parameters of a shape, defaults filled in, in the shape's order.

    Raises:
        ShapeError: one is unknown or missing, or is no number above 0.

    >>> read_params("power", None), read_params("half-life", {"half_life": 500})
    ({'p': 1.5}, {'half_life': 500})
    """
    try:
        given = dict(params or {})
    except (TypeError, ValueError):
        raise ShapeError(f"parameters of a shape are given by name, such as {{'p': 1.5}}, not {params!r}") from None
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ShapeError(f"{key} of the {name} shape must be a number above 0, not {value!r}")
    if ":" in name:
        return given
    known = find_shape(name).params
    for key in given:
        if key not in known:
            raise ShapeError(
                unknown(f"parameter of the {name} shape", key, known) if known else _NO_PARAMS % (name, key)
            )
    for key, default in known.items():
        if default is None and key not in given:
            raise ShapeError(f"the {name} shape needs decay_params {key}, for example {{{key!r}: 5000}}")
    return {key: given.get(key, default) for key, default in known.items()}  # type: ignore[misc]


_NO_PARAMS = "the %s shape has no parameters, so %s says nothing: leave it out"


def check_curve(name: str, *, start: float, end: float, steps: int, params: Params) -> None:
    """Refuse end points that a decay shape does not allow, before anything is trained.

    Raises:
        ShapeError: it needs multipliers above 0, has another end of its own, or leaves the range from `start` to `end`.

    >>> check_curve("linear", start=1.0, end=0.1, steps=100, params={})
    """
    shape = find_shape(name)
    if shape.needs_positive_ends and min(start, end) <= 0:
        raise ShapeError(
            f"the {name} shape is {shape.formula.partition(', ')[2]} and cannot run from {start:g} to {end:g}: give "
            "min_lr_ratio > 0, for example 0.1"
        )
    if shape.own_end is not None:
        own = shape.own_end(start, steps, **params)
        if end != own:
            raise ShapeError(
                f"the {name} shape ends by itself at {own:g} (after {steps} steps), not at {end:g}: leave min_lr_ratio "
                "out"
            )
    if ":" in name:
        _check_function(name, shape, steps, params)
    elif shape.jumps and shape.own_end is None:
        first = shape.curve(0.0, start, end, steps, **params)
        if not end - 1e-12 <= first <= start + 1e-12:
            raise ShapeError(f"the {name} shape would start at {first:g}, not between {start:g} and its end {end:g}")


def _check_function(name: str, shape: Shape, steps: int, params: Params) -> None:
    """Try a user's function wherever it will be asked, or at GRID places: it must stay a fall between 1 and 0."""
    places = min(steps, GRID)
    for x in (i / places for i in range(places)):
        try:
            value = shape.curve(x, 1.0, 0.0, steps, **params)
        except Exception as error:
            raise ShapeError(f"the shape {name} fails at progress {x:g}: {type(error).__name__}: {error}") from error
        if not 0 <= value <= 1:
            raise ShapeError(
                f"the shape {name} gives {value:g} at progress {x:g}: a fall lies between 1, where the decay starts, "
                "and 0, where it ends"
            )
