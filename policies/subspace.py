"""A subspace of feat, so that a linear controller is searched with fewer numbers than feat has."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Subspace(NamedTuple):
    """Coordinates `(feat - centre) @ axes.T`, K of them."""

    centre: Array
    """(F,)"""
    axes: Array
    """(K, F), orthonormal rows."""

    def widen(self, weights: Array) -> Array:
        """Weights on the coordinates (..., A, K + 1) as the weights on feat (..., A, F + 1) that act the same."""
        on_feat = weights[..., :-1] @ self.axes
        bias = weights[..., -1:] - (on_feat @ self.centre)[..., None]
        return np.concatenate([on_feat, bias], axis=-1)

    def narrow(self, weights: Array) -> Array:
        """Weights on feat (..., A, F + 1) as those on the coordinates (..., A, K + 1): the inverse of `widen`, which
        loses the part of the weights along other directions."""
        on_axes = weights[..., :-1] @ self.axes.T
        bias = weights[..., -1:] + (weights[..., :-1] @ self.centre)[..., None]
        return np.concatenate([on_axes, bias], axis=-1)


def seen(feat_dim: int, sees: slice = slice(None)) -> Subspace:
    """The part `sees` of feat as it is."""
    return Subspace(np.zeros(feat_dim), np.eye(feat_dim)[sees])


def principal(feat: Array, num: int, sees: slice = slice(None)) -> Subspace:
    """The `num` directions in which the part `sees` of feat (S, F) varies most (Pearson 1901), the largest first.

    Raises:
        ValueError: that part has fewer directions than `num`.
    """
    centre = feat[:, sees].mean(0, dtype=np.float64)
    _, _, axes = np.linalg.svd(feat[:, sees] - centre, full_matrices=False)
    if not 1 <= num <= len(axes):
        raise ValueError(
            f"components must be from 1 to {len(axes)} for {len(feat)} latents of {len(centre)} features, got {num}"
        )
    largest = np.abs(axes).argmax(1)[:, None]
    axes *= np.sign(np.take_along_axis(axes, largest, 1))  # Libraries differ in the signs that they choose.
    whole = seen(feat.shape[1], sees).axes
    return Subspace(centre @ whole, axes[:num] @ whole)
