"""The fit that both laws of a loss curve use: Huber's loss of log losses, summed, from several starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import erf

from hf_wsd.loss_curves import Floats

DELTA = 1e-3  # where Huber's loss of a log loss turns from square to straight; both papers
SHARE = 0.5  # of the squared residuals that is noise at least; the rest may be what a pull has cost
TINY = 1e-20  # squared residuals of losses that a law has made without noise
Model = Callable[[Floats], tuple[Floats, Floats]]  # parameters -> losses, and their derivatives


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Where parameters are searched.

    Args:
        low, high: bounds of each parameter.
        pull, centre: a residual `pull * (parameter - centre)` is added for each parameter with a pull above 0, so that
            what the data does not determine stays where it is plausible.
        reach: standard deviation of the truth around the centre; it counts only where there is a pull.
    """

    low: Floats
    high: Floats
    pull: Floats
    centre: Floats
    reach: Floats


def robust_fit(model: Model, losses: Floats, starts: Sequence[Floats], space: Space) -> tuple[Floats, float]:
    """Parameters with the smallest sum of Huber losses of log losses over all starts, and that sum.

    The same data gives the same numbers: nothing is drawn.
    """
    logs, pulled = np.log(losses), np.flatnonzero(space.pull)
    pull = np.zeros((len(pulled), len(space.low)))
    pull[np.arange(len(pulled)), pulled] = space.pull[pulled]

    def residuals(theta: Floats) -> Floats:
        return np.concatenate([np.log(np.maximum(model(theta)[0], 1e-9)) - logs, pull @ (theta - space.centre)])

    def slopes(theta: Floats) -> Floats:
        predicted, jacobian = model(theta)
        return np.concatenate([jacobian / np.maximum(predicted, 1e-9)[:, None], pull])

    def huber(z: Floats) -> Floats:  # of squared residuals / delta**2; the pulls stay squares
        data = z[: len(logs)]
        root = np.sqrt(np.maximum(data, 1.0))
        rho = np.array([z, np.ones_like(z), np.zeros_like(z)])
        rho[:, : len(logs)] = np.where(data > 1, [2 * root - 1, 1 / root, -0.5 / root**3], rho[:, : len(logs)])
        return rho

    def search(start: Floats, delta: float, evaluations: int) -> tuple[float, Floats]:
        inside = np.clip(start, space.low + 1e-6, space.high - 1e-6)
        bounds, robust = (space.low, space.high), {"loss": huber, "f_scale": delta, "x_scale": "jac"}
        found = least_squares(residuals, inside, slopes, bounds, **robust, max_nfev=evaluations)
        return float(found.cost), found.x

    # From afar Huber's loss is a sum of absolute values, on whose kinks a search stalls: squares lead the way.
    leads = [search(start, 0.1, 20) for start in starts]
    _, lead = min(leads, key=lambda pair: pair[0])
    cost, theta = search(search(lead, 0.01, 50)[1], DELTA, 150)
    return theta, cost


class Scatter:
    """How far what follows from a robust fit lies from the truth if the model is true, to first order.

    Parameters move by A^-1 (J' psi + pull^2 x): J are the derivatives of the log losses, psi the noise cut at DELTA, x
    what the truth is off the centre, and A = c J'J + pull^2, where c is the part of the noise that is not cut (Huber
    1964; here c of normal noise, as few residuals tell little of it). Noise is relative: 0.01 is 1 % of the loss.

    Args:
        slopes: derivatives of the log losses by the parameters.
        residuals: of the log losses.
        space: where the parameters were searched.

    >>> space = Space(low=np.zeros(1), high=np.ones(1), pull=np.zeros(1), centre=np.zeros(1), reach=np.zeros(1))
    >>> mean = Scatter(np.ones((4, 1)), np.array([1e-4, -1e-4, 1e-4, -1e-4]), space)  # of four losses
    >>> round(mean.variance(np.ones(1), np.zeros(4)) / mean.noise**2, 3), round(mean.freedom)
    (0.25, 3)
    """

    def __init__(self, slopes: Floats, residuals: Floats, space: Space) -> None:
        self._slopes, total = slopes, max(float(residuals @ residuals), TINY)
        self.noise = float(np.sqrt(total / len(residuals)))
        for _ in range(4):  # noise, c and the degrees of freedom that a pull leaves depend on each other
            z = DELTA / self.noise
            self._uncut = float(erf(z / np.sqrt(2)))
            tail = DELTA**2 * (1 - self._uncut) - 2 * self.noise * DELTA * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
            self._cut_variance = float(self.noise**2 * self._uncut + tail)
            square = self._uncut * slopes.T @ slopes
            self._inverse = np.linalg.pinv(square + np.diag(space.pull**2), hermitian=True)
            self._drawn = self._inverse * space.pull**2 * space.reach
            self.freedom = max(1.0, len(residuals) - float(np.trace(self._inverse @ square)))
            noise = max(total - float(np.sum((slopes @ self._drawn) ** 2)), SHARE * total)
            self.noise = float(np.sqrt(noise / self.freedom))

    def variance(self, slope: Floats, weights: Floats) -> float:
        """Of `slope` times the parameters plus `weights` times the noise of the fitted losses."""
        moved = self._slopes @ self._inverse @ slope
        apart = self._cut_variance * moved @ moved + self.noise**2 * weights @ weights
        return float(apart + 2 * self._uncut * self.noise**2 * moved @ weights + np.sum((slope @ self._drawn) ** 2))
