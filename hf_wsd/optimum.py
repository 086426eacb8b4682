"""The best use of a compute budget by a fitted law of sizes and tokens: how large a model, on how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from hf_wsd.errors import FitError
from hf_wsd.law import ScalingLaw
from hf_wsd.plan import FLOPS_PER
from hf_wsd.scaling import Fit

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The sizes at which a compute budget gives the lowest loss, and what other sizes give.

    Args:
        flops: the budget: 6ND with the N of the law, also where that leaves out embeddings, whose compute is then not
            in it.
        parameters, tokens, loss: at the optimum.
        parameters_range, tokens_range: of the optima of simulated laws at the level; None where the noise is not known
            or simulated laws have no optimum.
        size: the count that is N, of `points.SIZES`.
        times_largest: the budget / the compute of the largest model fitted to.
        others: parameters, tokens and loss of models of the same compute, of FACTORS of the best size.

    >>> Optimum(flops=6e9, parameters=1e3, tokens=1e6, loss=3.0, times_largest=2.0, others=()).tokens_per_parameter
    1000.0
    """

    flops: float
    parameters: float
    tokens: float
    loss: float
    times_largest: float
    others: Sequence[tuple[float, float, float]]
    parameters_range: tuple[float, float] | None = None
    tokens_range: tuple[float, float] | None = None
    size: str = "parameters"

    @property
    def tokens_per_parameter(self) -> float:
        """D / N."""
        return self.tokens / self.parameters

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self) | {"tokens_per_parameter": self.tokens_per_parameter}


def best_size(law: ScalingLaw, flops: float) -> float | None:
    """The N that minimizes L(N, flops / 6N); None where a term of the law is missing, so that there is none.

    Hoffmann et al., arXiv 2203.15556, equation 4.

    >>> law = ScalingLaw(irreducible=2, data_scale=100, data_exponent=0.5, model_scale=100, model_exponent=0.5)
    >>> round(best_size(law, 6e12))
    1000000
    """
    steep = law.model_exponent * law.model_scale, law.data_exponent * law.data_scale
    if min(steep) <= 0:
        return None
    product = flops / FLOPS_PER
    exponents = law.model_exponent + law.data_exponent
    size: float = (steep[0] / steep[1]) ** (1 / exponents) * product ** (law.data_exponent / exponents)
    return size if 0 < size < inf else None


def find_optimum(fit: Fit, flops: float, level: float = 0.9) -> Optimum:
    """The best size and tokens for a compute budget.

    Args:
        fit: of several sizes.
        flops: the budget, above 0.
        level: of the ranges, in (0, 1).

    Raises:
        FitError: a law of one size, or one without an optimum.
    """
    if not 0 < flops < inf:
        raise FitError(f"a compute budget is in FLOPs, above 0, not {flops:g}")
    if fit.size is None:
        raise FitError(
            f"the best size for {flops:g} FLOPs takes models of several sizes, and these have one: give the families "
            "of 2 sizes or more (recipes/ladder.py)"
        )
    if fit.withheld:
        raise FitError(
            f"the best size for {flops:g} FLOPs follows from the exponents, which are not known from {fit.withheld}"
        )
    size = best_size(fit.law, flops)
    if size is None:
        raise FitError(
            f"no best size for {flops:g} FLOPs: in these {len(fit.points)} models the loss does not fall with "
            f"{'size' if not fit.law.model_scale else 'tokens'} by a power law"
        )
    product = flops / FLOPS_PER
    largest = max((point.size(fit.size) or 0) * point.tokens for point in fit.points)
    sizes = [best_size(law, flops) for law in fit.simulated]
    known = [size for size in sizes if size is not None]
    both = fit.spread(known, level) if known and len(known) == len(sizes) else None
    return Optimum(
        flops=flops,
        parameters=size,
        tokens=product / size,
        loss=fit.law(product / size, size),
        times_largest=product / largest,
        others=tuple((n, product / n, fit.law(product / n, n)) for n in (size * factor for factor in FACTORS)),
        parameters_range=both,
        tokens_range=both and (product / both[1], product / both[0]),
        size=fit.size,
    )
