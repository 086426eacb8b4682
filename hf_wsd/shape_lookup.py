"""A shape by its name, also one of the user's own; and what a shape refuses before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from inspect import signature
from itertools import pairwise
from typing import Any

from hf_wsd.errors import ShapeError, ShapeImportError, unknown
from hf_wsd.shapes import SHAPES, WARMUP_SHAPES, Shape, fall

Params = Mapping[str, float]
GRID = 1000  # progress values at which a user's own shape is tried


def find_shape(name: str, *, warmup: bool = False) -> Shape:
    """The shape of that name.

    Args:
        name: a key of `SHAPES`, or of `WARMUP_SHAPES` with `warmup`; or `pkg.module:function`, a fall s(x) of the
            user's own, from 1 at progress x = 0 towards 0; its other arguments are parameters.
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
    except Exception as error:  # a user's module may fail in any way
        raise ShapeImportError(
            f"the shape {name} cannot be imported ({type(error).__name__}: {error}): write pkg.module:function, and "
            "put the module's folder on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ShapeError(f"the shape {name} is no function but {function!r}")
    return Shape(
        curve=fall(lambda x, **params: float(function(x, **params))),
        formula=f"{attribute}(x)",
        source=module,
        params=_params_of(function),
    )


def _params_of(function: Callable[..., Any]) -> dict[str, float | None]:
    """A user's parameters behind the progress, as far as they are numbers above 0; recorded with every schedule."""
    try:
        behind = list(signature(function).parameters.values())[1:]
    except (TypeError, ValueError):
        return {}
    named = [p for p in behind if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    defaults = {p.name: None if p.default is p.empty else p.default for p in named}
    return {key: value for key, value in defaults.items() if value is None or _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value < 1e300  # a larger whole number is no float


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
        if not _is_number(value):
            raise ShapeError(f"{key} of the {name} shape must be a number above 0, not {value!r}")
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
    """Try a user's function wherever it will be asked, or at GRID places and the last: a fall between 1 and 0."""
    places = min(steps, GRID)
    values = [_try(name, shape, x, steps, params) for x in (*(i / places for i in range(places)), (steps - 1) / steps)]
    if abs(values[0] - 1) > 1e-6:
        raise ShapeError(f"the shape {name} starts at {values[0]:g}: a fall starts at 1, the peak")
    if max(after - before for before, after in pairwise([1.0, *values])) > 1e-9:
        raise ShapeError(f"the shape {name} rises on its way: a decay falls from 1 to 0")


def _try(name: str, shape: Shape, x: float, steps: int, params: Params) -> float:
    try:
        value = float(shape.curve(x, 1.0, 0.0, steps, **params))
    except Exception as error:
        raise ShapeError(f"the shape {name} fails at progress {x:g}: {type(error).__name__}: {error}") from error
    if not 0 <= value <= 1:
        raise ShapeError(
            f"the shape {name} gives {value:g} at progress {x:g}: a fall lies between 1, where the decay starts, and "
            "0, where it ends"
        )
    return value
