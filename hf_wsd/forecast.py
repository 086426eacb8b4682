"""What a decay would give before it is trained: a law of the loss curve fitted to a family, with an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import t as student

from hf_wsd.errors import FitError, unknown
from hf_wsd.local_fit import LAWS, Local, near, refuse
from hf_wsd.loss_curves import Curve, Decay, decays_of
from hf_wsd.schedule import Schedule

Hide = Callable[[Curve, bool, Decay], Curve]  # a curve, whether the decay is its own, the decay -> what is left
PUBLISHED = 0.005  # mean error of the multi-power law on unseen schedules, nats: arXiv 2503.12811


@dataclass(frozen=True, kw_only=True)
class Check:
    """A decay that has been trained, and what the law says of it when it is hidden.

    Args:
        name: its run.
        fork, end: in steps.
        measured: its last evaluation, in nats.
        forecast: the same from a fit without it.
    """

    name: str
    fork: int
    end: int
    measured: float
    forecast: float

    @property
    def error(self) -> float:
        """Forecast minus measured loss, in nats."""
        return self.forecast - self.measured


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The forecast loss at the end of a decay.

    Args:
        law: "multi-power" or "annealing".
        fork, end: in steps.
        shape: of the decay.
        loss: in nats.
        low, high: the interval around it.
        level: part of such intervals that should hold the loss.
        new_shape: whether no decay of this shape is in the data.
        tokens: seen by the model at its end, where known.
    """

    law: str
    fork: int
    end: int
    shape: str
    loss: float
    low: float
    high: float
    level: float
    new_shape: bool = False
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecaster:
    """Forecasts from the curves of a family.

    Args:
        name: "multi-power" or "annealing".
        curves: what was measured, the trunk's first; a forecast takes what lies near its fork point.

    Raises:
        FitError: an unknown law, too few evaluations, none in a decay, or a peak lr that is not the same everywhere.

    >>> from hf_wsd.builders import wsd
    >>> from hf_wsd.multi_power_law import MultiPowerLaw
    >>> law = MultiPowerLaw(
    ...     irreducible=2.6, data_scale=0.6, data_exponent=0.45, drop_scale=400, drop_rate=2, drop_exponent=0.5,
    ...     lr_exponent=0.5,
    ... )
    >>> branch, steps = wsd(num_decay_steps=0).fork(1500, decay_steps=500), np.arange(100, 2001, 100)
    >>> lrs = np.array(branch.multipliers()) * 3e-4
    >>> curve = Curve(name="a", lrs=lrs, steps=steps, losses=law(lrs, steps), decays=((1500, 2000),))
    >>> forecast, measured = Forecaster(curves=(curve,)).of(branch).loss, float(curve.losses[-1])
    >>> abs(forecast - measured) < 0.001
    True
    """

    name: str = "multi-power"
    curves: tuple[Curve, ...]

    def __post_init__(self) -> None:
        if self.name not in LAWS:
            raise FitError(unknown("law", self.name, LAWS))
        refuse(self.curves)

    @property
    def last(self) -> int:
        """The last step at which a loss was measured."""
        return max(int(curve.steps.max()) for curve in self.curves if len(curve.steps))

    @cached_property
    def shapes(self) -> tuple[str, ...]:
        """The shapes of the decays in which something was measured, as far as they are known."""
        return tuple(sorted({shape for curve in self.curves if curve.in_decay().any() for shape in curve.shapes}))

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """Each decay, forecast from everything else; empty where there is only one."""
        return self._checks(lambda curve, own, decay: curve.without(decay) if own else curve)

    @cached_property
    def ahead(self) -> tuple[Check, ...]:
        """The two longest decays, each forecast from what was known when it started."""
        return self._checks(lambda curve, own, decay: curve.kept(curve.steps <= decay[0]), newest=2)

    def _checks(self, hide: Hide, *, newest: int = 0) -> tuple[Check, ...]:
        checks = []
        for index, (fork, end) in decays_of(self.curves)[-newest:]:
            rest = tuple(hide(curve, i == index, (fork, end)) for i, curve in enumerate(self.curves))
            own = self.curves[index]
            last = int(own.steps[own.steps <= end].max())
            try:
                local = Local(self.name, near(rest, fork))
            except FitError:  # it was the only decay, or too little is left
                continue
            measured, forecast = float(own.losses[own.steps == last][0]), local.loss(own.lrs, last, own.warmup, fork)
            checks.append(Check(name=own.name, fork=fork, end=last, measured=measured, forecast=forecast))
        return tuple(checks)

    @cached_property
    def _locals(self) -> dict[Any, Local]:
        return {}

    def local(self, fork: int) -> Local:
        """The law fitted near a fork point."""
        curves = near(self.curves, fork)
        key = tuple((curve.name, *curve.steps.tolist()) for curve in curves)
        if key not in self._locals:
            self._locals[key] = Local(self.name, curves)
        return self._locals[key]

    @cached_property
    def error(self) -> float | None:
        """Root mean square of the errors on hidden decays; None with only one decay."""
        return float(np.sqrt(np.mean([check.error**2 for check in self.checks]))) if self.checks else None

    def error_ahead(self, end: int) -> float:
        """What is to be added for an end past the data: by how much errors grew when the last steps were hidden."""
        own = self.error or PUBLISHED
        rates = [(check.error**2 - own**2) / np.log(check.end / check.fork) ** 2 for check in self.ahead]
        rate = np.sqrt(max(0.0, float(np.mean(rates)))) if rates else 0.0
        return float(rate * np.log(max(1.0, end / self.last)))

    def of(self, schedule: Schedule, *, level: float = 0.9, tokens_per_step: int | None = None) -> Forecast:
        """The loss at the end of a schedule whose last phase is a decay, with its interval.

        The law says what the decay and further updates change; the level is that of the last three evaluations of the
        stable phase before the fork. The interval is the error on hidden decays, with Student's quantile of as many
        degrees of freedom as there are; beside it, with the normal one, what the scatter of refits has more, and past
        the data the growth of errors when the last steps were hidden. With one decay nothing can be hidden: the error
        is the larger one of the published error and the misfit. For a shape that is not in the data it is at least
        the published error. Of 120 simulated 90 % intervals (2 and 4 decays, noise of 0.003 nats, the law true, forks
        in the data and twice as far, a known and a new shape) 117 held the loss: they are rather too wide.

        Args:
            schedule: up to the end of the decay, in multipliers of the peak lr.
            level: part of the intervals that should hold the loss, in (0, 1).
            tokens_per_step: tokens of one update.
        """
        fork, end, segment = list(schedule.spans())[-1]
        if end is None:
            raise FitError("a forecast needs a schedule that ends: give the decay its steps")
        local, curve = self.local(fork), self.curves[0]
        lrs = np.array(schedule.multipliers()) * (curve.peak_lr or 1.0)
        loss = local.loss(lrs, end, curve.warmup, fork)
        known = segment.shape in self.shapes
        error = max(PUBLISHED, local.misfit) if self.error is None else max(self.error, 0 if known else PUBLISHED)
        spread, ahead = local.spread(lrs, end, curve.warmup, fork), self.error_ahead(end)
        more = max(0.0, spread**2 - error**2) + ahead**2
        quantile, few = (student.ppf((1 + level) / 2, freedom) for freedom in (1e6, len(self.checks) or 1e6))
        width = float(np.hypot(few * error, quantile * np.sqrt(more)))
        return Forecast(
            law=self.name,
            fork=fork,
            end=end,
            shape=segment.shape,
            loss=loss,
            low=loss - width,
            high=loss + width,
            level=level,
            new_shape=bool(self.shapes) and not known,
            tokens=None if tokens_per_step is None else tokens_per_step * end,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fits and the checks, JSON-ready."""
        told = {
            name: [asdict(check) | {"error": check.error} for check in found]
            for name, found in {"checks": self.checks, "checks_ahead": self.ahead}.items()
        }
        fits = [local.to_dict() for local in self._locals.values()]
        return {"law": self.name, "error": self.error, "shapes": self.shapes, **told, "fits": fits}
