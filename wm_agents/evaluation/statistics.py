"""Correlations, with None where they are undefined."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """Linear correlation of x and y (M,), or None for fewer than two points or a constant."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) < 2:
        return None
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    # Rounding may give a constant a tiny variance.
    if not np.ptp(a) or not np.ptp(b) or not np.isfinite(size) or size == 0:
        return None
    return float(np.clip(a @ b / size, -1, 1))


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Rank correlation; equal values share their mean rank."""
    return pearson(_ranks(np.asarray(x)), _ranks(np.asarray(y)))


def _ranks(x: NDArray[np.generic]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    rank: NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return rank[inverse]
