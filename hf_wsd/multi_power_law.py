"""The multi-power law of a loss curve (Luo et al., arXiv 2503.12811): what any schedule of lrs does to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import nnls

from hf_wsd.loss_curves import Curve, Floats, Steps
from hf_wsd.robust_fit import Space, robust_fit

# Falls of the lr are lumped: a lump ends at an evaluation, after 1/64 of the peak lr, and where the lr has changed by
# a tenth. A cosine of 24,000 steps has 248 lumps; its losses move by at most 0.00005 nats.
_PER_PEAK, _PER_FOLD = 64, 10
# L0, log A, alpha, log B, log C, beta, gamma, with lrs in peaks. The fits keep beta and gamma inside (0, 1), as the
# paper does: data that determines them moves them, three curves with one kind of decay do not.
# Reach is for intervals alone: with it simulated ones of 90 % hold 91 % (beta of 0.4-0.7, gamma of 0.35-0.7).
_SPACE = Space(
    low=np.array([0, -20, 0.01, -12, -12, 0.01, 0.01]),
    high=np.array([30, 20, 3, 5, 8, 0.99, 0.99]),
    pull=np.array([0, 0, 0, 0, 0.004, 0.03, 0.03]),
    centre=np.array([0, 0, 0, 0, np.log(0.12), 0.5, 0.5]),
    reach=np.array([0, 0, 0, 0, 1, 0.1, 0.1]),
)


@dataclass(frozen=True, kw_only=True)
class MultiPowerLaw:
    """Loss after t updates: L0 + A (S1(t))^-alpha - B sum_k (lr_{k-1} - lr_k) (1 - (1 + C lr_k^-gamma S_k(t))^-beta).

    S1(t) is the sum of the lrs of all updates, warm-up included; S_k(t) the sum from update k on; the sum over k runs
    over the updates after the warm-up. A rising lr (the next cycle of a WSD-S line) gives back what its fall gave.

    Args:
        irreducible: L0, in nats.
        data_scale, data_exponent: A and alpha.
        drop_scale: B, in nats per unit of lr: what an endless decay by that much gives.
        drop_rate, drop_exponent, lr_exponent: C, beta and gamma: how soon it gives it.

    >>> law = MultiPowerLaw(
    ...     irreducible=2.65, data_scale=0.6, data_exponent=0.45, drop_scale=438, drop_rate=2.1, drop_exponent=0.6,
    ...     lr_exponent=0.65,
    ... )
    >>> stable, halved = np.full(20_000, 3e-4), np.repeat([3e-4, 1.5e-4], [18_000, 2_000])
    >>> [float(law(lrs, np.array([20_000]))[0].round(3)) for lrs in (stable, halved)]
    [2.918, 2.861]
    """

    irreducible: float
    data_scale: float
    data_exponent: float
    drop_scale: float
    drop_rate: float
    drop_exponent: float
    lr_exponent: float

    def __call__(self, lrs: Floats, steps: Steps, *, warmup: int = 0) -> Floats:
        """Losses after `steps` updates (ascending) with these lrs."""
        peak = float(np.max(lrs))
        return _losses(self._theta(peak), _Sums(lrs, steps, warmup, peak))[0]

    def _theta(self, peak: float) -> Floats:
        logs = [np.log(max(value, 1e-300)) for value in (self.data_scale, self.drop_scale, self.drop_rate)]
        in_peaks = np.log(peak)
        scale, drop = logs[0] - self.data_exponent * in_peaks, logs[1] + in_peaks
        rate = logs[2] + (1 - self.lr_exponent) * in_peaks
        exponents = (self.drop_exponent, self.lr_exponent)
        return np.array([self.irreducible, scale, self.data_exponent, drop, rate, *exponents])


def _law(theta: Floats, peak: float) -> MultiPowerLaw:
    """The law with lrs as they are, from parameters with lrs in peaks."""
    level, scale, exponent, drop, rate, drop_exponent, lr_exponent = (float(value) for value in theta)
    return MultiPowerLaw(
        irreducible=level,
        data_scale=float(np.exp(scale) * peak**exponent),
        data_exponent=exponent,
        drop_scale=float(np.exp(drop) / peak),
        drop_rate=float(np.exp(rate) * peak ** (lr_exponent - 1)),
        drop_exponent=drop_exponent,
        lr_exponent=lr_exponent,
    )


class _Sums:
    """What the law needs to know of a curve: sums of lrs at its evaluations, and the falls of the lr in lumps."""

    def __init__(self, lrs: Floats, steps: Steps, warmup: int, peak: float) -> None:
        lr = np.asarray(lrs, dtype=float) / peak
        sums = np.concatenate([[0.0], np.cumsum(lr)])
        self.at = sums[steps]
        updates = np.arange(warmup + 1, min(len(lr), int(np.max(steps, initial=0))))
        falls = lr[updates - 1] - lr[updates]
        updates, falls = updates[falls != 0], falls[falls != 0]
        log_lr = np.log(np.maximum(lr[updates], 1e-9))
        marks = (np.cumsum(np.abs(falls)) * _PER_PEAK, log_lr * _PER_FOLD, np.sign(falls))
        keys = np.stack([np.searchsorted(steps, updates, side="right"), *np.floor(marks)])
        first = np.flatnonzero(np.any(np.diff(keys, axis=1, prepend=np.nan) != 0, axis=0))
        self.fall = np.add.reduceat(falls, first) if len(first) else falls

        def mean(values: Floats) -> Floats:
            return np.add.reduceat(falls * values, first) / self.fall if len(first) else values

        self.log_lr, self.before = mean(log_lr), mean(sums[updates])


def _losses(theta: Floats, sums: _Sums) -> tuple[Floats, Floats]:
    """Losses of one curve, and their derivatives."""
    level, scale, exponent, drop, rate, drop_exponent, lr_exponent = theta
    log_sum = np.log(np.maximum(sums.at, 1e-12))
    data = np.exp(scale - exponent * log_sum)
    since = np.maximum(sums.at[:, None] - sums.before[None, :], 0)  # 0 of a fall that is still to come
    time = since * np.exp(rate - lr_exponent * sums.log_lr)
    log_time = np.log1p(time)
    rest = np.exp(-drop_exponent * log_time)
    size = np.exp(drop)
    gain = size * ((1 - rest) @ sums.fall)
    slope = size * drop_exponent * rest * time / (1 + time)
    columns = [np.ones_like(data), data, -data * log_sum, -gain, -slope @ sums.fall]
    columns += [-size * ((rest * log_time) @ sums.fall), slope @ (sums.fall * sums.log_lr)]
    return level + data - gain, np.stack(columns, axis=1)


class MultiPowerFit:
    """The law of some curves.

    L0, A, alpha, B, C, beta and gamma minimise the sum of Huber losses (1e-3) of log losses, as in the paper; here by
    trust-region least squares with analytic derivatives instead of Adam, from the best points of a grid. beta and gamma
    are drawn weakly towards the middle of (0, 1); how weakly (0.03) was chosen looking at the public WSD curves, so the
    errors on those are not blind.

    Args:
        curves: runs with one peak lr; at least one has a decay.
    """

    space = _SPACE

    def __init__(self, curves: Sequence[Curve]) -> None:
        self.peak = max(float(np.max(curve.lrs)) for curve in curves)
        self._sums = [_Sums(curve.lrs, curve.steps, curve.warmup, self.peak) for curve in curves]
        self.losses = np.concatenate([curve.losses for curve in curves])
        self._theta, self.cost = robust_fit(self._model, self.losses, self._starts(), self.space)
        self.law = _law(self._theta, self.peak)
        self.fitted, self.fitted_slopes = self._model(self._theta)

    def slopes(self, lrs: Floats, steps: Steps, warmup: int) -> Floats:
        """Derivatives of the losses after `steps` updates with these lrs, by the numbers that were fitted."""
        return _losses(self._theta, _Sums(lrs, steps, warmup, self.peak))[1]

    def _model(self, theta: Floats) -> tuple[Floats, Floats]:
        parts = [_losses(theta, sums) for sums in self._sums]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _starts(self) -> list[Floats]:
        """The best of a grid of alpha and C: for each of its points L0, A and B are a linear problem."""
        found = []
        for exponent, rate in product((0.1, 0.25, 0.5, 0.8), (-5.0, -3.0, -1.0, 1.0)):
            theta = np.array([0, 0, exponent, 0, rate, 0.5, 0.5])
            (level, scale, drop), cost = nnls(self._model(theta)[1][:, [0, 1, 3]], self.losses)
            logs = np.log(np.maximum([scale, drop], 1e-6))
            found.append((cost, np.array([level, logs[0], exponent, logs[1], rate, 0.5, 0.5])))
        return [theta for _, theta in sorted(found, key=lambda pair: pair[0])[:3]]
