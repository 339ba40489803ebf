"""Rank of a noisy matrix by variational Bayes, in closed form. Imports no other module."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

EXACT = 1e-14  # share of the largest squared singular value below which a value is rounding


def bayes_rank(matrix: Tensor) -> int:
    """Return the rank that empirical variational Bayes gives to a matrix plus Gaussian noise.

    Global analytic solution of fully observed variational Bayesian matrix factorization (Nakajima,
    Sugiyama, Babacan and Tomioka 2013; the variances of priors and noise are found too).
    A component is kept if its squared singular value is above M s^2 (1 + t)(1 + alpha / t) with
    alpha = L / M, L <= M, where t solves p(t) + p(t / alpha) = 0, p(z) = log(1 + z) / z - 1 / 2.
    The variance s^2 of the noise minimizes the free energy, a function of one number.

    Arguments:
        matrix: [L, M].

    Returns:
        Number of singular values above the threshold; 0 if the matrix looks like noise.

    >>> generator = torch.Generator().manual_seed(0)
    >>> a, b, noise = (torch.randn(s, generator=generator) for s in ((60, 3), (3, 90), (60, 90)))
    >>> bayes_rank(a @ b + 0.3 * noise)
    3
    """
    low, high = sorted(matrix.shape)
    values = torch.linalg.svdvals(matrix.double()).numpy()
    alpha = low / high
    threshold = threshold_of(alpha)
    squares = values**2
    if squares.sum() <= 0:
        return 0
    squares = np.maximum(squares, EXACT * squares[0])  # an exact low rank has no noise
    # the variance lies between these bounds
    most = min(int(np.ceil(low / (1 + alpha))) - 1, low) - 1
    tail = squares[max(most, 0) + 1 :]
    upper = squares.sum() / (low * high)
    lower = max(tail[0] / (high * threshold), tail.mean() / high) if len(tail) else EXACT * upper
    if lower >= upper:
        variance = upper
    else:
        energy = lambda log: free_energy(squares / (high * np.exp(log)), alpha, threshold)  # noqa: E731
        grid = np.linspace(np.log(lower), np.log(upper), 64)
        best = int(np.argmin([energy(g) for g in grid]))
        around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
        variance = float(np.exp(minimize_scalar(energy, bounds=around, method="bounded").x))
    return int((squares > high * variance * threshold).sum())


def threshold_of(alpha: float) -> float:
    """Return the squared singular value from which a component is kept, over M s^2.

    Arguments:
        alpha: Share L / M of the sides of the matrix, above 0 and at most 1.
    """

    def balance(t: float) -> float:
        return np.log1p(t) / t + np.log1p(t / alpha) * alpha / t - 1

    t = brentq(balance, 1e-9, 3.0)
    return float((1 + t) * (1 + alpha / t))


def free_energy(x: np.ndarray, alpha: float, threshold: float) -> float:
    """Return twice the free energy over M, up to a constant.

    Arguments:
        x: Squared singular values over M times the variance of the noise.
        alpha: L / M.
        threshold: Smallest `x` of a component that is kept.
    """
    kept, noise = x[x > threshold], x[x <= threshold]
    t = (kept - (1 + alpha) + np.sqrt((kept - (1 + alpha)) ** 2 - 4 * alpha)) / 2
    signal = kept - t + np.log((t + 1) / kept) + alpha * np.log(t / alpha + 1)
    return float((noise - np.log(noise)).sum() + signal.sum())
