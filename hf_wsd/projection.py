"""Fits of a sum of power laws to many vectors of losses at once, by variable projection.

With exponents fixed, the law E + A/N^alpha + B/D^beta is linear in E, A and B: only the exponents are searched, and
what is searched has one or two dimensions. Nothing is drawn at random: equal data gives equal numbers. The objective is
that of Hoffmann et al. (arXiv 2203.15556, approach 3), the sum of Huber losses of log residuals; the sum matters, its
mean stops an optimizer too early (arXiv 2404.10102).
"""

from __future__ import annotations

from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HUBER = 1e-3  # of a log loss: where the squares of Huber's loss end
EXPONENTS = (0.01, 2.0)  # where an exponent is searched; published ones lie between 0.05 and 0.8
GRID = {1: 33, 2: 13}  # exponents tried at first, for one and for two of them
ITERATIONS = 40  # at most; most fits take six
SETTLED = 1e-8  # of the objective: a step that changes it less is the last
Problem = tuple[Array, Array, Array, float]  # logs, losses, weights, Huber's delta


class Solutions(NamedTuple):
    """The best fits to R vectors of losses.

    Args:
        exponents: R x m.
        coefficients: R x (m + 1), of the constant first; none is below 0.
        objective: R; twice the weighted sum of Huber losses, so that it is a sum of squares where residuals are small.
    """

    exponents: Array
    coefficients: Array
    objective: Array


def solve(
    logs: Array,
    losses: Array,
    weights: Array | None = None,
    *,
    delta: float = HUBER,
    near: Solutions | None = None,
) -> Solutions:
    """The best sum of a constant and a power law of each size, with exponents in EXPONENTS and no negative term.

    A grid of exponents, then Levenberg-Marquardt steps of the exponents alone (Kaufman's variable projection).

    Args:
        logs: n x m, logarithms of the m sizes (tokens, parameters) of n models, best around 0.
        losses: R x n, above 0.
        weights: n, of the models in the sum; None: each counts once.
        delta: Huber's, of a log loss.
        near: fits (one, or R) to start from instead of the grid.

    >>> logs = np.log([[1.0], [2.0], [4.0], [8.0]])
    >>> found = solve(logs, 2 + np.exp(-0.5 * logs).T)
    >>> np.round([*found.exponents[0], *found.coefficients[0]], 4).tolist()
    [0.5, 2.0, 1.0]
    """
    problem = (logs, losses, np.ones(len(logs)) if weights is None else weights, delta)
    found = _coarse(problem) if near is None else _start(problem, near)
    damping = np.full(len(losses), 1e-3)
    going = np.arange(len(losses))
    for _ in range(ITERATIONS):
        part = (logs, losses[going], problem[2], delta)
        here = Solutions(*(array[going] for array in found))
        tried = _evaluate(part, np.clip(here.exponents * np.exp(_step(part, here, damping[going])), *EXPONENTS), here)
        better = tried.objective < here.objective
        settled = np.abs(tried.objective - here.objective) < SETTLED * here.objective + 1e-15
        for array, new in zip(found, tried, strict=True):
            array[going[better]] = new[better]
        damping[going] *= np.where(better, 0.1, 10.0)
        going = going[~settled & (damping[going] < 1e8)]
        if not len(going):
            break
    return found


def _coarse(problem: Problem) -> Solutions:
    """The best of a grid of exponents, by least squares of relative differences."""
    logs, losses, weights, _ = problem
    m = logs.shape[1]
    axis = np.geomspace(*EXPONENTS, GRID[m])
    best = np.full(len(losses), np.inf)
    exponents, coefficients = np.empty((len(losses), m)), np.empty((len(losses), m + 1))
    by_squares = weights / losses.mean(0) ** 2
    for tried in product(axis, repeat=m):
        columns = _columns(logs, np.array(tried))
        matrix, right = (columns.T * by_squares) @ columns, (losses * by_squares) @ columns
        found = nonnegative(np.broadcast_to(matrix, (len(losses), *matrix.shape)), right)
        error = (by_squares * (losses - found @ columns.T) ** 2).sum(-1)
        better = error < best
        best, exponents[better], coefficients[better] = np.minimum(best, error), tried, found[better]
    return _start(problem, Solutions(exponents, coefficients, best))


def _start(problem: Problem, near: Solutions) -> Solutions:
    """Fits with the exponents of others: their coefficients brought from least squares to Huber's loss."""
    found = Solutions(*(np.repeat(array, len(problem[1]) // len(array), 0) for array in near))
    for _ in range(3):
        found = _evaluate(problem, found.exponents, found)
    return found


def _evaluate(problem: Problem, exponents: Array, before: Solutions) -> Solutions:
    """The best coefficients for given exponents, starting from fits nearby, and the objective."""
    logs, losses, weights, delta = problem
    columns, coefficients = _columns(logs, exponents), before.coefficients
    fitted = predict(logs, before)
    for _ in range(2):
        by_squares = (weights * _as_squares(losses, fitted, delta))[..., None] * columns
        right = np.einsum("rnk,rn->rk", by_squares, losses)
        coefficients = nonnegative(by_squares.swapaxes(1, 2) @ columns, right)
        fitted = (columns @ coefficients[..., None])[..., 0]
    objective = (weights * huber(np.log(losses / fitted), delta)).sum(-1)
    return Solutions(exponents, coefficients, objective)


def _step(problem: Problem, here: Solutions, damping: Array) -> Array:
    """A step of the logarithms of the exponents, for each fit: R x m."""
    logs, losses, weights, delta = problem
    columns = _columns(logs, here.exponents)
    fitted = (columns @ here.coefficients[..., None])[..., 0]
    by_squares = weights * _as_squares(losses, fitted, delta)
    used = columns * (here.coefficients > 0)[:, None, :]
    slopes = -logs * here.exponents[:, None, :] * columns[..., 1:] * here.coefficients[:, None, 1:]
    weighted = (by_squares[..., None] * used).swapaxes(1, 2)
    across = slopes - used @ _solve(weighted @ used, weighted @ slopes)
    weighted = (by_squares[..., None] * across).swapaxes(1, 2)
    matrix, right = weighted @ across, (weighted @ (losses - fitted)[..., None])[..., 0]
    stuck = ((here.exponents <= EXPONENTS[0]) & (right < 0)) | ((here.exponents >= EXPONENTS[1]) & (right > 0))
    right = np.where(stuck, 0.0, right)
    matrix = np.where(stuck[:, None, :] | stuck[:, :, None], 0.0, matrix)
    diagonal = np.einsum("rkk->rk", matrix)
    matrix = matrix + np.eye(right.shape[1]) * (damping[:, None] * diagonal + stuck + 1e-300)[:, None, :]
    return np.clip(_solve(matrix, right[..., None])[..., 0], -1.0, 1.0)


def predict(logs: Array, solutions: Solutions) -> Array:
    """The losses that R fits give at n sizes: R x n."""
    columns = _columns(logs, solutions.exponents)
    return np.asarray(np.einsum("rnk,rk->rn", columns, solutions.coefficients))


def _columns(logs: Array, exponents: Array) -> Array:
    powers = np.exp(-exponents[..., None, :] * logs)
    return np.concatenate([np.ones((*powers.shape[:-1], 1)), powers], axis=-1)


def huber(residuals: Array, delta: float) -> Array:
    """Twice Huber's loss: squares, which go on as lines beyond `delta`."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2, delta * (2 * size - delta))


def _as_squares(losses: Array, fitted: Array, delta: float) -> Array:
    """Weights with which squared differences of losses have the gradient of Huber's loss of log residuals."""
    residual, difference = np.log(losses / fitted), losses - fitted
    near = np.abs(residual) < 1e-9
    slope = np.clip(residual, -delta, delta)
    return np.where(near, 1 / fitted**2, slope / (fitted * np.where(near, 1.0, difference)))


def nonnegative(matrix: Array, right: Array) -> Array:
    """Least squares with no coefficient below 0, by normal equations: R x k x k and R x k.

    All k columns are used where none gets a negative coefficient; else the best set of fewer.
    """
    result = _solve(matrix, right[..., None])[..., 0]
    bad = (result < 0).any(-1)
    if bad.any():
        result[bad] = _best_subset(matrix[bad], right[bad])
    return result


def _best_subset(matrix: Array, right: Array) -> Array:
    k = right.shape[-1]
    best, gain = np.zeros_like(right), np.full(len(right), -np.inf)
    for size in range(1, k):
        for kept in map(list, combinations(range(k), size)):
            part = np.zeros_like(right)
            part[:, kept] = _solve(matrix[:, kept, :][:, :, kept], right[:, kept, None])[..., 0]
            own = np.where((part < 0).any(-1), -np.inf, (part * right).sum(-1))
            best, gain = np.where((own > gain)[:, None], part, best), np.maximum(own, gain)
    return best


def _solve(matrix: Array, right: Array) -> Array:
    """Solutions of small symmetric systems; a column that is the others' sum gets a little of what is missing."""
    trace = np.einsum("rkk->r", matrix)[:, None, None]
    return np.linalg.solve(matrix + (1e-13 * trace + 1e-300) * np.eye(matrix.shape[-1]), right)
