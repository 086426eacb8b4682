"""Which decayed models may share one scaling law, and what must be said of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from hf_wsd.errors import FitError
from hf_wsd.lengths import show_tokens
from hf_wsd.points import MIXABLE, SIZES, Point, some

LEAST_BUDGETS = 3  # for a fit: the law of one size has three parameters
EXPONENT_BUDGETS, EXPONENT_SPAN = 4, 8.0  # for an exponent: from fewer, exponents of twin runs differ by a factor of 2
LEAST_SPAN = 2.0  # of sizes, and of tokens per parameter: where these are equal, alpha and beta cannot be told apart
MOST_LOSS = 1e6  # a loss beyond it has diverged
ALIKE = 1.05  # numbers that differ by less are one: a fraction is rounded to steps
# Below so many steps it is the steps of a decay that count, not its fraction: from one fork point of the demo's trunk
# (0.5M parameters, step 1250), decays of 10, 20, 40 and 80 steps lowered the loss by 0.022, 0.049, 0.081 and 0.117.
LEAST_DECAY_STEPS = 50


def screen(
    points: Iterable[Point], *, size: str = "parameters", allow: Collection[str] = ()
) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """The points that one law may describe, by size and tokens, and sentences on what is left out or doubtful.

    Args:
        points: decayed models.
        size: the count that is N, of `points.SIZES`.
        allow: differences between the models that are meant, of `points.MIXABLE`.

    Raises:
        FitError: models that no one law describes, or too few budgets.

    >>> few = [Point(tokens=tokens, loss=3.0) for tokens in (1000, 2000)]
    >>> screen(few)
    Traceback (most recent call last):
        ...
    hf_wsd.errors.FitError: a law needs at least 3 budgets, and there are 2 (1K, 2K): train more decays (`hf-wsd decay \
RUN --budgets ...`)
    """
    if size not in SIZES:
        raise FitError(f"a size is {' or '.join(SIZES)}, not {size!r}")
    if unknown := [name for name in allow if name not in MIXABLE]:
        raise FitError(f"models may differ on purpose in {', '.join(MIXABLE)}, not in {unknown[0]!r}")
    given = list(points)
    kept = [point for point in given if 0 < point.loss < MOST_LOSS]
    warnings = [_left_out(given, kept)] if len(kept) < len(given) else []
    for name in MIXABLE:
        if name not in allow:
            _refuse_mixture(kept, name, size)
    if "decay_fraction" not in allow:
        _refuse_undecayed(kept)
    sizes = {point.size(size) for point in kept}
    if None in sizes and len(sizes) > 1:
        unsized = [point for point in kept if point.size(size) is None]
        raise FitError(f"{len(unsized)} of {len(kept)} models have no {size}: {_named(unsized, given)}. Leave them out")
    _refuse_few(kept, size, "".join(f". {warning}" for warning in warnings))
    warnings += [*_mixed(kept, allow), *_doubts(kept)]
    return tuple(sorted(kept, key=lambda point: (point.size(size) or 0, point.tokens, point.run))), tuple(warnings)


def _left_out(given: Sequence[Point], kept: Sequence[Point]) -> str:
    lost = [point for point in given if point not in kept]
    return (
        f"Left out: {len(lost)} of {len(given)} models without a loss between 0 and {MOST_LOSS:g} (unfinished or "
        "diverged): "
        f"{_named(lost, given)}"
    )


def _refuse_undecayed(points: Sequence[Point]) -> None:
    """Refuse trunks: their loss is elevated, and does not fall over tokens as that of decayed models does."""
    trunks = [
        point
        for point in points
        if (point.schedule or "").startswith(("wsd", "constant")) and 0 in (point.decay_fraction, point.decay_steps)
    ]
    if trunks:
        raise FitError(
            f"{len(trunks)} of {len(points)} models have no decay ({_named(trunks, points)}): the loss of a trunk says "
            "nothing about that of a finished model. Leave them out, or fit them all the same with --allow "
            "decay_fraction"
        )


def _named(points: Sequence[Point], among: Sequence[Point]) -> str:
    """Models by their tokens and their runs, without the folders that all have in common."""
    folders = (Path(point.run).parts[:-1] for point in among)
    shared = len([*takewhile(lambda level: len({*level}) == 1, zip(*folders, strict=False))])
    names = ["/".join(Path(point.run).parts[shared:]) for point in points]
    tokens = [f"{show_tokens(point.tokens)} tokens" for point in points]
    return some([f"{name} ({d})" if name else d for name, d in zip(names, tokens, strict=True)])


def _refuse_mixture(points: Sequence[Point], name: str, size: str) -> None:
    """Refuse models that differ in one thing; a peak lr may differ between sizes."""
    groups = {point.size(size) for point in points} if name == "peak_lr" else {None}
    for group in groups:
        known = [getattr(point, name) for point in points if name != "peak_lr" or point.size(size) == group]
        values = distinct(known)
        if len(values) > 1:
            most = max(values, key=lambda value: sum(_alike(value, other) for other in known))
            raise FitError(
                f"models with different {name} ({', '.join(map(_show, values))}) are not one law's: pick one with "
                f"--where {name}={_show(most, 6)}, or mix them on purpose with --allow {name}"
            )


def _mixed(points: Sequence[Point], allow: Collection[str]) -> Iterator[str]:
    """What was mixed on purpose."""
    for name in MIXABLE:
        values = distinct(getattr(point, name) for point in points)
        if name in allow and len(values) > 1:
            yield f"Mixed on purpose: models with different {name} ({', '.join(map(_show, values))})"


def _show(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _alike(value: object, other: object) -> bool:
    """Whether two values are one: equal texts, numbers within 5 % (ALIKE).

    >>> _alike(0.2, 0.205), _alike(0.2, 0.22), _alike("linear", None)
    (True, False, False)
    """
    if isinstance(value, (int, float)) and isinstance(other, (int, float)):
        return bool(max(value, other) <= ALIKE * min(value, other))
    return value == other


def distinct(values: Iterable[object]) -> list[object]:
    """Values that differ, `None` (unknown) left out; numbers within 5 % are equal: a fraction is rounded to steps.

    >>> distinct([0.2, 0.1995, None, 0.1]), distinct(["linear", "linear"])
    ([0.1, 0.1995], ['linear'])
    """
    known = {value for value in values if value is not None}
    numbers = sorted(value for value in known if isinstance(value, (int, float)))
    found: list[object] = [*sorted(str(value) for value in known if not isinstance(value, (int, float)))]
    for number in numbers:
        if not found or not _alike(found[-1], number):
            found.append(number)
    return found


def budgets_of(points: Iterable[Point]) -> list[int]:
    """The token budgets of models, shortest first; those within 5 % are one.

    >>> budgets_of(Point(tokens=tokens, loss=3.0) for tokens in (2000, 1000, 1001))
    [1000, 2000]
    """
    return [int(tokens) for tokens in distinct(point.tokens for point in points) if isinstance(tokens, (int, float))]


def _refuse_few(points: Sequence[Point], size: str, left_out: str) -> None:
    budgets, sizes = budgets_of(points), distinct(point.size(size) for point in points)
    if len(budgets) < LEAST_BUDGETS:
        shown = ", ".join(map(show_tokens, budgets)) or "none"
        raise FitError(
            f"a law needs at least {LEAST_BUDGETS} budgets, and there are {len(budgets)} ({shown}): train more decays "
            f"(`hf-wsd decay RUN --budgets ...`){left_out}"
        )
    if len(sizes) > 1 and len(points) < 5:
        raise FitError(
            f"a law of sizes and tokens needs at least 5 models, and there are {len(points)} of {len(sizes)} sizes"
            f"{left_out}"
        )


def _doubts(points: Sequence[Point]) -> Iterable[str]:
    short = [point for point in points if point.decay_steps is not None and 0 < point.decay_steps < LEAST_DECAY_STEPS]
    if short:
        least = min(point.decay_steps or 0 for point in short)
        yield (
            f"{len(short)} of {len(points)} models have a decay of fewer than {LEAST_DECAY_STEPS} steps (down to "
            f"{least}): so short a decay lowers the loss less than its fraction does later, and bends the law"
        )
    twins = len(points) - len({replace(point, run="") for point in points})
    if twins:
        yield (
            f"{twins} of {len(points)} models are equal to another in all that is known of them: if one run was given "
            "twice, take it out, for it makes intervals too narrow"
        )
    for size in {point.sizes for point in points}:
        own = sorted((point for point in points if point.sizes == size), key=lambda point: point.tokens)
        if own[-1].tokens > own[0].tokens and own[-1].loss >= own[0].loss:
            yield (
                f"The loss does not fall with tokens: {own[0].loss:.4f} at {show_tokens(own[0].tokens)}, "
                f"{own[-1].loss:.4f} at {show_tokens(own[-1].tokens)}. A law cannot tell why"
            )
    for name in MIXABLE:
        unknown = sum(getattr(point, name) is None for point in points)
        if 0 < unknown < len(points):
            yield f"The {name} of {unknown} of {len(points)} models is not known: taken to be that of the others"


def quotes_exponents(points: Sequence[Point], size: str) -> str:
    """Why the exponents of a law of these models cannot be quoted; "" where they can.

    >>> quotes_exponents([Point(tokens=1000 * 2**i, loss=3.0) for i in range(4)], "parameters")
    ''
    """
    budgets, sizes = budgets_of(points), sorted({point.size(size) or 1 for point in points})
    if len(budgets) < EXPONENT_BUDGETS:
        return f"{len(budgets)} budgets (it takes {EXPONENT_BUDGETS})"
    if (span := budgets[-1] / budgets[0]) < 0.99 * EXPONENT_SPAN:
        return f"budgets over a span of {span:.3g} (it takes {EXPONENT_SPAN:g})"
    if (count := len(distinct(sizes))) == 1:
        return ""
    if count == 2:
        return "2 sizes (it takes 3)"
    if (span := sizes[-1] / sizes[0]) < 0.99 * LEAST_SPAN:
        return f"sizes over a span of {span:.3g} (it takes {LEAST_SPAN:g})"
    ratios = [point.tokens / (point.size(size) or 1) for point in points]
    if max(ratios) < 0.99 * LEAST_SPAN * min(ratios):
        return "sizes that all have the same tokens per parameter (each takes several budgets)"
    return ""
