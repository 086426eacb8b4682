"""Scaling laws of decayed models: L(D) = E + B/D^beta of one family, L(N, D) = E + A/N^alpha + B/D^beta of several.

What is worth most is a prediction with its interval: exponents of near-identical families differ by a factor of two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import chi2

from hf_wsd.errors import FitError
from hf_wsd.intervals import Data
from hf_wsd.law import Check, Prediction, ScalingLaw
from hf_wsd.lengths import show_tokens
from hf_wsd.points import MIXABLE, SIZES, Point
from hf_wsd.projection import EXPONENTS, Array
from hf_wsd.screening import distinct, quotes_exponents, screen

__all__ = ["Check", "Fit", "Prediction", "ScalingLaw", "fit_law"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A law and the models that it was fitted to.

    Args:
        law: the best law.
        points: the models, by size and tokens.
        size: the count that is N, of `points.SIZES`; None for the models of one size.
        noise: standard deviation of one run's loss, in nats; None where it is neither given nor to be had.
        noise_from: "given", or where the noise comes from, or why there is none.
        withheld: why the exponents are not quoted; "" where they are.
        warnings: sentences on what was left out or is doubtful.
        data: the same models as numbers.
    """

    law: ScalingLaw
    points: tuple[Point, ...]
    size: str | None
    noise: float | None
    noise_from: str
    withheld: str
    warnings: tuple[str, ...]
    data: Data

    @cached_property
    def left_out(self) -> Check | None:
        """The model of most compute, predicted from the others; None where these are too few for a law."""
        compute = _sizes(self.points, self.size).prod(1)
        pairs = list(zip(self.points, compute > 0.95 * compute.max(), strict=True))
        largest, others = [p for p, is_last in pairs if is_last], tuple(p for p, is_last in pairs if not is_last)
        try:
            screen(others, size=self.size or SIZES[0], allow=MIXABLE)
        except FitError:
            return None
        if self.size and len(distinct(point.size(self.size) for point in others)) < 2:
            return None  # of one size nothing can be told of another
        tokens, parameters = largest[0].tokens, largest[0].size(self.size) if self.size else None
        told = _fit(others, self.size, self.data.noise, ()).predict(tokens, parameters)
        return Check(prediction=told, measured=sum(point.loss for point in largest) / len(largest))

    def predict(
        self, tokens: float, parameters: float | None = None, level: float = 0.9, *, of: str = "run"
    ) -> Prediction:
        """The loss after that many tokens, with an interval.

        Args:
            tokens: D, above 0.
            parameters: N; not needed where the law is one size's.
            level: of the interval, in (0, 1).
            of: "run": in which the loss of one more run lies; "law": in which the law itself does, without the noise.

        Raises:
            FitError: no N for a law that has one, or numbers out of range.
        """
        if tokens <= 0 or (parameters is not None and parameters <= 0):
            raise FitError(f"tokens and parameters are above 0, not {tokens:g} and {parameters}")
        if not 0 < level < 1 or of not in ("run", "law"):
            raise FitError(f"an interval has a level between 0 and 1 (0.9), and is of run or law, not {level} of {of}")
        loss = self.law(tokens, parameters)
        sizes = [parameters, tokens] if self.size else [tokens]
        logs = np.log(np.array([sizes], dtype=float) / _references(self.points, self.size))
        low, high = self.data.interval(logs, level, law=of == "law") or (None, None)
        n = None if parameters is None else round(parameters)
        return Prediction(tokens=round(tokens), parameters=n, loss=loss, low=low, high=high, level=level, of=of)

    @cached_property
    def simulated(self) -> tuple[ScalingLaw, ...]:
        """Laws of simulated data: how much its parameters are known; none where the noise is not."""
        if self.noise is None:
            return ()
        fits, references = self.data.refits, _references(self.points, self.size)
        return tuple(_law(*pair, references) for pair in zip(fits.exponents, fits.coefficients, strict=True))

    def spread(self, values: Iterable[float], level: float = 0.9) -> tuple[float, float]:
        """Between which the middle part of simulated values lies."""
        low, high = np.quantile(list(values), [0.5 - level / 2, 0.5 + level / 2])
        return float(low), float(high)

    def statements(self, level: float = 0.9) -> list[str]:
        """The fit in sentences: the law, its noise, the check, warnings. Exponents only where they can be quoted."""
        budgets = (
            f"{show_tokens(min(p.tokens for p in self.points))} to {show_tokens(max(p.tokens for p in self.points))}"
        )
        said = [f"Law of {len(self.points)} models of {budgets} tokens: {self._formula(level)}."]
        noise = f"{self.noise:.2g} nats, {self.noise_from}" if self.noise is not None else self.noise_from
        said.append(f"Noise of one run: {noise}.")
        if (check := self.left_out) is not None:
            inside = {True: ", inside", False: ", outside", None: ""}[check.prediction.holds(check.measured)]
            said.append(
                f"Check: from the others, the largest model is predicted at {check.prediction}; measured "
                f"{check.measured:.4f}{inside}, off by {check.error:+.4f}."
            )
        else:
            said.append("Check: none, for without the largest model too few are left for a law.")
        return [*said, *(f"{warning}." for warning in self.warnings)]

    def _formula(self, level: float) -> str:
        if self.withheld:
            return f"exponents are not quoted from {self.withheld}"
        law, parts = self.law, [f"{self.law.irreducible:.3f}"]
        if self.size:
            parts.append(f"{law.model_scale:.4g}/N^{law.model_exponent:.3f}")
        parts.append(f"{law.data_scale:.4g}/D^{law.data_exponent:.3f}")
        formula = f"L({'N, D' if self.size else 'D'}) = {' + '.join(parts)}"
        if not self.simulated:
            return formula
        named = {"E": "irreducible", **({"alpha": "model_exponent"} if self.size else {}), "beta": "data_exponent"}
        spreads = (self.spread((getattr(other, name) for other in self.simulated), level) for name in named.values())
        shown = (f"{letter} {low:.3f} to {high:.3f}" for letter, (low, high) in zip(named, spreads, strict=True))
        return f"{formula} ({level:.0%}: {', '.join(shown)})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the law is None where its exponents cannot be quoted."""
        check = self.left_out
        return {
            "law": None if self.withheld else self.law.to_dict(),
            "withheld": self.withheld,
            "size": self.size,
            "noise": self.noise,
            "noise_from": self.noise_from,
            "left_out": check and {**asdict(check), "error": check.error},
            "statements": self.statements(),
            "warnings": list(self.warnings),
            "points": [asdict(point) for point in self.points],
        }


def _sizes(points: Iterable[Point], size: str | None) -> Array:
    return np.array([[p.size(size) or 1, p.tokens] if size else [p.tokens] for p in points], dtype=float)


def _references(points: Iterable[Point], size: str | None) -> Array:
    """Sizes that logarithms are counted from: the geometric means."""
    return np.asarray(np.exp(np.log(_sizes(points, size)).mean(0)))


def _law(exponents: Array, coefficients: Array, references: Array) -> ScalingLaw:
    """The law in numbers of parameters and tokens, not in ratios to their references."""
    scales = coefficients[1:] * references**exponents
    model = {"model_scale": float(scales[0]), "model_exponent": float(exponents[0])} if len(scales) == 2 else {}
    data = {"data_scale": float(scales[-1]), "data_exponent": float(exponents[-1])}
    return ScalingLaw(irreducible=float(coefficients[0]), **data, **model)


def fit_law(
    points: Iterable[Point],
    *,
    noise: float | None = None,
    size: str = "parameters",
    allow: Collection[str] = (),
) -> Fit:
    """The scaling law of decayed models: of their tokens where all have one size, else of sizes and tokens.

    Args:
        points: decayed models, such as `points_of(run)`.
        noise: standard deviation of one run's loss, in nats, above 0; None: from the residuals.
        size: the count that is N, of `points.SIZES`.
        allow: differences between the models that are meant, of `points.MIXABLE`.

    Raises:
        FitError: models of which no honest law can be fitted.

    >>> true = ScalingLaw(irreducible=2.0, data_scale=50.0, data_exponent=0.3)
    >>> budgets = (10**6, 2 * 10**6, 4 * 10**6, 8 * 10**6)
    >>> fit = fit_law([Point(tokens=tokens, loss=true(tokens)) for tokens in budgets], noise=0.001)
    >>> round(fit.law.data_exponent, 3), round(fit.predict(16 * 10**6).loss, 3) == round(true(16 * 10**6), 3)
    (0.3, True)
    """
    if noise is not None and not 0 < noise < 1:
        raise FitError(f"noise is the standard deviation of one run's loss, above 0 nats and below 1, not {noise}")
    kept, warnings = screen(points, size=size, allow=allow)
    name = size if len(distinct(point.size(size) for point in kept)) > 1 else None
    return _fit(kept, name, noise, warnings)


def _fit(points: tuple[Point, ...], size: str | None, noise: float | None, warnings: tuple[str, ...]) -> Fit:
    references = _references(points, size)
    data = Data(np.log(_sizes(points, size) / references), np.array([point.loss for point in points]), noise)
    law = _law(data.fit.exponents[0], data.fit.coefficients[0], references)
    return Fit(
        law=law,
        points=points,
        size=size,
        noise=data.residual_noise if noise is None else noise,
        noise_from=_noise_from(data),
        withheld=quotes_exponents(points, size or SIZES[0]) or _unseen(data),
        warnings=(*warnings, *_edges(law), *_misfit(data)),
        data=data,
    )


def _edges(law: ScalingLaw) -> Iterator[str]:
    if law.irreducible == 0:
        yield "E is at its lower end, 0: in these models the loss does not begin to level off, and E is not known"


def _misfit(data: Data) -> Iterator[str]:
    """Whether the residuals are larger than the given noise explains, once in a hundred true laws."""
    found, given = data.residual_noise, data.noise
    if found and given and data.spare * (found / given) ** 2 > chi2.ppf(0.99, data.spare):
        yield (
            f"The models lie farther from the law than the given noise explains: as with a noise of {found:.2g} nats, "
            f"not {given:.2g}. Intervals are too narrow, or the models differ in more than size and tokens"
        )


def _unseen(data: Data) -> str:
    """Of which numbers the models show nothing: E at 0, exponents at an end of their range, or of a term that is 0."""
    names = ("alpha", "beta")[-data.logs.shape[1] :]
    low, high = 1.01 * EXPONENTS[0], 0.99 * EXPONENTS[1]
    terms = zip(names, data.fit.exponents[0], data.fit.coefficients[0, 1:], strict=True)
    unseen = [name for name, exponent, term in terms if not (low < exponent < high and term > 1e-9)]
    unseen += ["E"] if data.fit.coefficients[0, 0] == 0 else []
    return f"models that do not show {' and '.join(unseen)}" if unseen else ""


def _noise_from(data: Data) -> str:
    if data.noise is not None:
        return "given"
    if data.spare < 1:
        return (
            f"not known from {len(data.losses)} models, so no intervals: give --noise, or train more budgets or seeds"
        )
    more = f"{data.spare} model{'s' if data.spare > 1 else ''} more than the law has parameters"
    vague = ": vague, and so are intervals; --noise helps" if data.spare < 3 else ""
    return f"from the residuals ({more}{vague})"
