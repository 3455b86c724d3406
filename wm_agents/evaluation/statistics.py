"""Correlations, with None where they are undefined, and statistics of the scores of several runs.

The interquartile mean is scipy's trimmed mean. Its interval is scipy's percentile bootstrap with one stratum per task,
as in Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 5_000


def load_scipy() -> Any:
    """The module `scipy.stats`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("statistics over seeds need scipy: pip install 'dreams-as-envs[distributed]'") from error
    return stats


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean: that of the middle half of the scores."""
    return float(load_scipy().trim_mean(np.asarray(scores), 0.25))


def interval(strata: Iterable[Sequence[float]]) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the interquartile mean of all scores; each stratum is resampled separately.

    None if a stratum has fewer than two scores.
    """
    samples = [np.asarray(scores) for scores in strata]
    if min(map(len, samples)) < 2:
        return None
    found = (
        load_scipy()
        .bootstrap(
            samples,
            _iqm_of_all,
            n_resamples=RESAMPLES,
            vectorized=False,
            paired=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        .confidence_interval
    )
    return float(found.low), float(found.high)


def _iqm_of_all(*strata: NDArray[np.float64]) -> float:
    return iqm(np.concatenate(strata))


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
