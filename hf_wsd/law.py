"""A scaling law, and what it says of models that were not trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from hf_wsd.errors import FitError


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """L(N, D) = E + A/N^alpha + B/D^beta, in nats; without a term of N for the models of one size.

    Hoffmann et al., arXiv 2203.15556, equation 2.

    Args:
        irreducible: E, at least 0.
        data_scale, data_exponent: B and beta.
        model_scale, model_exponent: A and alpha; 0 for one size.

    >>> law = ScalingLaw(irreducible=2.0, data_scale=100.0, data_exponent=0.5)
    >>> law(10_000)
    3.0
    """

    irreducible: float
    data_scale: float
    data_exponent: float
    model_scale: float = 0.0
    model_exponent: float = 0.0

    def __call__(self, tokens: float, parameters: float | None = None) -> float:
        """The loss of a model of that many parameters after that many tokens.

        Raises:
            FitError: the law has a term of N, and no N is given.
        """
        loss: float = self.irreducible + self.data_scale * tokens**-self.data_exponent
        if not self.model_exponent:
            return loss
        if parameters is None:
            raise FitError("this law is one of sizes and tokens: say for how many parameters (--parameters 124M)")
        loss += self.model_scale * parameters**-self.model_exponent
        return loss

    def to_dict(self) -> dict[str, float]:
        """A JSON-ready dictionary; `from_dict` gives back an equal law."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> ScalingLaw:
        """The law that `to_dict` wrote.

        >>> law = ScalingLaw(irreducible=2.0, data_scale=100.0, data_exponent=0.5)
        >>> ScalingLaw.from_dict(law.to_dict()) == law
        True
        """
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The loss of a decayed model that was not trained.

    Args:
        tokens, parameters: of the model; parameters is None where the law is one size's.
        loss: the law's, in nats.
        low, high: the interval; None where the noise is not known.
        level: of the interval: how often it holds what it is of.
        of: "run", the loss of one more run; "law", the law's own, without a run's noise.

    >>> Prediction(tokens=10**9, parameters=None, loss=3.0, low=2.9, high=3.2).holds(3.1)
    True
    """

    tokens: int
    parameters: int | None
    loss: float
    low: float | None
    high: float | None
    level: float = 0.9
    of: str = "run"

    def holds(self, loss: float) -> bool | None:
        """Whether a loss is inside; None where there is no interval."""
        return None if self.low is None or self.high is None else self.low <= loss <= self.high

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.loss:.4f}"
        return f"{self.loss:.4f} ({self.level:.0%}: {self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True, kw_only=True)
class Check:
    """The largest model, predicted from the others.

    Args:
        prediction: for its size and tokens, from a law without it.
        measured: its loss; the mean of runs where there are several.

    >>> prediction = Prediction(tokens=10**9, parameters=None, loss=3.0, low=2.9, high=3.2)
    >>> round(Check(prediction=prediction, measured=3.1).error, 3)
    -0.1
    """

    prediction: Prediction
    measured: float

    @property
    def error(self) -> float:
        """Predicted - measured, in nats."""
        return self.prediction.loss - self.measured
