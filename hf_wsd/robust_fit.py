"""The fit that both laws of a loss curve use: Huber's loss of log losses, summed, from several starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from hf_wsd.loss_curves import Floats

DELTA = 1e-3  # where Huber's loss of a log loss turns from square to straight; both papers
Model = Callable[[Floats], tuple[Floats, Floats]]  # parameters -> losses, and their derivatives


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Where parameters are searched.

    Args:
        low, high: bounds of each parameter.
        pull, centre: a residual `pull * (parameter - centre)` is added for each parameter with a pull above 0, so that
            what the data does not determine stays where it is plausible.
    """

    low: Floats
    high: Floats
    pull: Floats
    centre: Floats


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
    nearer = starts
    if len(starts) > 1:  # a single start is the end of a fit to nearly the same losses
        leads = sorted((search(start, 0.1, 50) for start in starts), key=lambda pair: pair[0])[:2]
        nearer = [search(start, 0.01, 50)[1] for _, start in leads]
    cost, theta = min((search(start, DELTA, 150) for start in nearer), key=lambda pair: pair[0])
    return theta, cost
