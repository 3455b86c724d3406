"""Subspaces of feat: wide weights act as narrow ones, principal components are found."""

from __future__ import annotations

import numpy as np
import pytest

from policies.subspace import principal, seen

RNG = np.random.default_rng(0)


def test_wide_weights_act_on_feat_as_narrow_ones_on_its_coordinates() -> None:
    feat = RNG.normal(size=(50, 6)) + 3
    subspace = principal(feat, 2)
    narrow = RNG.normal(size=(4, 3, 3))  # Candidates, actions, coordinates and a bias.
    wide = subspace.widen(narrow)
    coordinates = (feat - subspace.centre) @ subspace.axes.T
    want = np.einsum("pak,nk->pna", narrow[..., :-1], coordinates) + narrow[:, None, :, -1]
    got = np.einsum("paf,nf->pna", wide[..., :-1], feat) + wide[:, None, :, -1]
    np.testing.assert_allclose(got, want)
    np.testing.assert_allclose(subspace.narrow(wide), narrow)


def test_principal_components_are_the_directions_of_largest_variance_in_order() -> None:
    spread = np.array([0.1, 3.0, 0.2, 1.0])
    turn, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    subspace = principal(RNG.normal(size=(20_000, 4)) * spread @ turn.T + 7, 2)
    np.testing.assert_allclose(np.abs(subspace.axes @ turn[:, [1, 3]]), np.eye(2), atol=0.03)
    np.testing.assert_allclose(subspace.centre, 7, atol=0.1)
    assert (subspace.axes[np.arange(2), np.abs(subspace.axes).argmax(1)] > 0).all()


def test_signs_do_not_depend_on_the_data() -> None:
    feat = RNG.normal(size=(30, 5))
    np.testing.assert_allclose(principal(feat, 3).axes, principal(-feat, 3).axes)


def test_what_is_not_seen_has_weight_0() -> None:
    feat = RNG.normal(size=(30, 5))
    for subspace in (seen(5, slice(1, 4)), principal(feat, 2, slice(1, 4))):
        wide = subspace.widen(RNG.normal(size=(3, len(subspace.axes) + 1)))
        assert wide.shape == (3, 6) and (wide[:, [0, 4]] == 0).all() and (wide[:, 1:4] != 0).all()


def test_all_of_feat_is_itself_to_the_bit() -> None:
    weights = RNG.normal(size=(2, 3, 6))
    np.testing.assert_array_equal(seen(5).widen(weights), weights)
    np.testing.assert_array_equal(seen(5).narrow(weights), weights)


@pytest.mark.parametrize("num", [0, 5])
def test_more_components_than_there_are_directions_are_rejected(num: int) -> None:
    with pytest.raises(ValueError, match=f"components must be from 1 to 4 for 4 latents of 9 features, got {num}"):
        principal(RNG.normal(size=(4, 9)), num)
