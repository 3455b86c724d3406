"""A subspace of feat, in which a linear controller has fewer weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Subspace(NamedTuple):
    """K coordinates `(feat - centre) @ axes.T`."""

    centre: Array
    """(F,)"""
    axes: Array
    """(K, F), orthonormal rows."""

    def widen(self, weights: Array) -> Array:
        """Convert weights on the coordinates (..., A, K + 1) to equivalent weights on feat (..., A, F + 1)."""
        on_feat = weights[..., :-1] @ self.axes
        bias = weights[..., -1:] - (on_feat @ self.centre)[..., None]
        return np.concatenate([on_feat, bias], axis=-1)

    def narrow(self, weights: Array) -> Array:
        """Project weights on feat (..., A, F + 1) to weights on the coordinates (..., A, K + 1).

        This is the inverse of `widen`. Parts of the weights along other directions are lost.
        """
        on_axes = weights[..., :-1] @ self.axes.T
        bias = weights[..., -1:] + (weights[..., :-1] @ self.centre)[..., None]
        return np.concatenate([on_axes, bias], axis=-1)


def seen(feat_dim: int, sees: slice = slice(None)) -> Subspace:
    """The subspace of the dimensions `sees` of feat."""
    return Subspace(np.zeros(feat_dim), np.eye(feat_dim)[sees])


def principal(feat: Array, num: int, sees: slice = slice(None)) -> Subspace:
    """The first `num` principal components of the dimensions `sees` of feat (S, F) (Pearson 1901).

    Raises:
        ValueError: there are fewer than `num` components.
    """
    centre = feat[:, sees].mean(0, dtype=np.float64)
    _, _, axes = np.linalg.svd(feat[:, sees] - centre, full_matrices=False)
    if not 1 <= num <= len(axes):
        raise ValueError(
            f"components must be from 1 to {len(axes)} for {len(feat)} latents of {len(centre)} features, got {num}"
        )
    largest = np.abs(axes).argmax(1)[:, None]
    axes *= np.sign(np.take_along_axis(axes, largest, 1))  # The sign depends on the library.
    whole = seen(feat.shape[1], sees).axes
    return Subspace(centre @ whole, axes[:num] @ whole)
