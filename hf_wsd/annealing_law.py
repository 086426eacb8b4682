"""The annealing law of a loss curve (Tissue et al., arXiv 2408.11029), to be compared with the multi-power law.

It predicts losses of schedules like those it was fitted on. It must not choose a schedule: its "optimal" decay
collapses to an instant drop (arXiv 2503.12811).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from hf_wsd.loss_curves import Curve, Floats, Steps
from hf_wsd.robust_fit import Space, robust_fit

MEMORY = 0.999  # lambda of the paper's fits
_FREE = dict.fromkeys(("pull", "centre", "reach"), np.zeros(4))
_SPACE = Space(low=np.array([0, -20, 0.01, 0]), high=np.array([30, 20, 3, 1e3]), **_FREE)


@dataclass(frozen=True, kw_only=True)
class AnnealingLaw:
    """Loss after s updates: L0 + A S1^-alpha - C S2.

    S1 is the sum of the lrs, the warm-up counted as if at the peak; S2 the sum of the momenta
    m_i = lambda m_{i-1} + (lr_{i-1} - lr_i).

    Args:
        irreducible: L0, in nats.
        data_scale, data_exponent: A and alpha.
        drop_scale: C, in nats per unit of S2.
        memory: lambda, in (0, 1).

    >>> law = AnnealingLaw(irreducible=2.65, data_scale=0.6, data_exponent=0.45, drop_scale=0.5)
    >>> stable, halved = np.full(20_000, 3e-4), np.repeat([3e-4, 1.5e-4], [18_000, 2_000])
    >>> [float(law(lrs, np.array([20_000]))[0].round(3)) for lrs in (stable, halved)]
    [2.918, 2.859]
    """

    irreducible: float
    data_scale: float
    data_exponent: float
    drop_scale: float
    memory: float = MEMORY

    def __call__(self, lrs: Floats, steps: Steps, *, warmup: int = 0) -> Floats:
        """Losses after `steps` updates (ascending) with these lrs."""
        forward, annealing = _areas(lrs, steps, warmup, 1.0, self.memory)
        return np.asarray(
            self.irreducible + self.data_scale * forward**-self.data_exponent - self.drop_scale * annealing
        )


def _areas(lrs: Floats, steps: Steps, warmup: int, peak: float, memory: float) -> tuple[Floats, Floats]:
    """S1 and S2 after `steps` updates, in units of the peak lr."""
    lr = np.array(lrs, dtype=float) / peak
    lr[:warmup] = lr[min(warmup, len(lr) - 1)]
    momenta = lfilter([1.0], [1.0, -memory], np.concatenate([[0.0], -np.diff(lr)]))
    last = np.asarray(steps) - 1
    return np.cumsum(lr)[last], np.cumsum(momenta)[last]


def _losses(theta: Floats, forward: Floats, annealing: Floats) -> tuple[Floats, Floats]:
    """Losses, and their derivatives."""
    level, scale, exponent, drop = theta
    log_sum = np.log(forward)
    data = np.exp(scale - exponent * log_sum)
    return level + data - drop * annealing, np.stack([np.ones_like(data), data, -data * log_sum, -annealing], axis=1)


class AnnealingFit:
    """The law of some curves.

    L0, A, alpha and C minimise the sum of Huber losses (1e-3) of log losses; lambda stays 0.999, as in the paper.

    Args:
        curves: runs with one peak lr; at least one has a decay.
    """

    space = _SPACE

    def __init__(self, curves: Sequence[Curve]) -> None:
        self.peak = max(float(np.max(curve.lrs)) for curve in curves)
        areas = [_areas(curve.lrs, curve.steps, curve.warmup, self.peak, MEMORY) for curve in curves]
        self._forward, self._annealing = (np.concatenate(parts) for parts in zip(*areas, strict=True))
        self.losses = np.concatenate([curve.losses for curve in curves])
        self._theta, self.cost = robust_fit(self._model, self.losses, self._starts(), self.space)
        self.law = self._to_law(self._theta)
        self.fitted, self.fitted_slopes = self._model(self._theta)

    def slopes(self, lrs: Floats, steps: Steps, warmup: int) -> Floats:
        """Derivatives of the losses after `steps` updates with these lrs, by the numbers that were fitted."""
        return _losses(self._theta, *_areas(lrs, steps, warmup, self.peak, MEMORY))[1]

    def _model(self, theta: Floats) -> tuple[Floats, Floats]:
        return _losses(theta, self._forward, self._annealing)

    def _to_law(self, theta: Floats) -> AnnealingLaw:
        level, scale, exponent, drop = (float(value) for value in theta)
        return AnnealingLaw(
            irreducible=level,
            data_scale=float(np.exp(scale) * self.peak**exponent),
            data_exponent=exponent,
            drop_scale=drop / self.peak,
        )

    def _starts(self) -> list[Floats]:
        starts = []
        for exponent in (0.25, 0.5, 0.8):
            features = np.stack([np.ones_like(self._forward), self._forward**-exponent, -self._annealing], axis=1)
            level, scale, drop = np.linalg.lstsq(features, self.losses, rcond=None)[0]
            starts.append(np.array([level, np.log(max(scale, 1e-6)), exponent, drop]))
        return starts
