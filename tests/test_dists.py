"""Numbers as bins and choices as one-hots, against NumPy written from the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies.dists import (
    TwoHot,
    draw_one_hot,
    entropy,
    likeliest,
    mixed,
    straight_through,
    symexp,
    symlog,
    tempered,
)

NUMBERS = np.array([0.0, 1.0, -1.0, 0.3, -7.25, 1234.5, -1e6, 4e8, 9e9, -9e9], np.float32)


def np_symexp(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * (np.exp(np.abs(x)) - 1)


def np_two_hot(x: float, bins: np.ndarray) -> np.ndarray:
    """Hafner et al. 2023, eq. 10: the two bins next to x share it in proportion to how near they are."""
    x = min(max(x, bins[0]), bins[-1])
    hot = np.zeros(len(bins))
    k = min(int(np.sum(bins <= x)) - 1, len(bins) - 2)
    hot[k] = (bins[k + 1] - x) / (bins[k + 1] - bins[k])
    hot[k + 1] = 1 - hot[k]
    return hot


def test_symlog_and_symexp_are_the_papers_and_undo_each_other() -> None:
    x = torch.from_numpy(NUMBERS)
    np.testing.assert_allclose(symlog(x), np.sign(NUMBERS) * np.log(np.abs(NUMBERS) + 1), rtol=1e-6)
    np.testing.assert_allclose(symexp(symlog(x)), NUMBERS, rtol=1e-5)
    np.testing.assert_allclose(symexp(torch.tensor([-2.0, 3.0])), np_symexp(np.array([-2.0, 3.0])), rtol=1e-6)


def test_bins_are_exponential_and_mirrored() -> None:
    bins = TwoHot().bins.double().numpy()
    np.testing.assert_allclose(bins, np_symexp(np.linspace(-20, 20, 255)), rtol=1e-4, atol=1e-12)
    assert (bins == -bins[::-1]).all() and (np.diff(bins) > 0).all()


@pytest.mark.parametrize("space", ["symexp", "symlog"])
def test_a_number_is_shared_by_the_bins_next_to_it(space: str) -> None:
    hot = TwoHot(101, 10.0, space)  # type: ignore[arg-type]
    grid = np.linspace(-10, 10, 101)
    where = np_symexp(grid) if space == "symexp" else grid
    at = NUMBERS.astype(float) if space == "symexp" else np.sign(NUMBERS) * np.log1p(np.abs(NUMBERS.astype(float)))
    want = np.stack([np_two_hot(x, where) for x in at])
    got = hot.encode(torch.from_numpy(NUMBERS))
    np.testing.assert_allclose(got, want, atol=2e-4)
    inside = np.abs(NUMBERS) < 1e4
    np.testing.assert_allclose(hot.mean(got.log())[inside], NUMBERS[inside], rtol=2e-4, atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_the_shares() -> None:
    hot, rng = TwoHot(), np.random.default_rng(0)
    logits = rng.normal(size=(len(NUMBERS), 255)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    want = [-(np_two_hot(float(x), hot.bins.double().numpy()) * lp).sum() for x, lp in zip(NUMBERS, log_probs)]
    np.testing.assert_allclose(hot.loss(torch.from_numpy(logits), torch.from_numpy(NUMBERS)), want, rtol=1e-4)


def test_a_second_target_counts_by_its_weight() -> None:
    hot, logits = TwoHot(), torch.randn(4, 255, generator=torch.manual_seed(0))
    one, two = torch.tensor([1.0, -5.0, 0.0, 3e4]), torch.tensor([2.0, 2.0, -0.5, 1e9])
    torch.testing.assert_close(hot.loss(logits, one, two, 0.3), hot.loss(logits, one) + 0.3 * hot.loss(logits, two))


def test_even_chances_expect_zero_to_the_bit() -> None:
    hot = TwoHot()
    assert (hot.mean(torch.zeros(7, 255)) == 0).all() and (hot.mean(torch.full((3, 255), 1.7)) == 0).all()


def test_the_target_gets_no_gradient() -> None:
    hot, target = TwoHot(), torch.tensor([1.0], requires_grad=True)
    logits = torch.zeros(1, 255, requires_grad=True)
    hot.loss(logits, target).sum().backward()
    assert target.grad is None and logits.grad is not None and logits.grad.abs().sum() > 0


def test_bins_stay_in_range_in_half_precision() -> None:
    hot = TwoHot().half()
    assert hot.bins.dtype == torch.float32 and hot.bins.isfinite().all()
    np.testing.assert_allclose(hot.mean(TwoHot().encode(torch.tensor([1.5])).log()), [1.5], rtol=1e-2)


def test_an_even_number_of_bins_is_rejected() -> None:
    with pytest.raises(ValueError, match="TwoHot needs an odd num of at least 3 and a limit above 0, got 254 and 20"):
        TwoHot(254)


def test_unimix_is_a_hundredth_of_even_chances() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4, 8)).astype(np.float32) * 9
    probs = np.exp(logits - logits.max(1, keepdims=True))
    want = 0.99 * probs / probs.sum(1, keepdims=True) + 0.01 / 4
    np.testing.assert_allclose(mixed(torch.from_numpy(logits), 0.01, dim=1), want, rtol=1e-5)
    np.testing.assert_allclose(mixed(torch.from_numpy(logits), 0.01, dim=1).sum(1), 1, rtol=1e-6)


def test_choices_are_drawn_by_their_running_sum() -> None:
    probs = torch.tensor([0.2, 0.5, 0.3])
    drawn = draw_one_hot(probs.expand(5, 3), torch.tensor([0.0, 0.19, 0.2, 0.69, 0.7])).argmax(-1)
    assert drawn.tolist() == [0, 0, 1, 1, 2]
    # Rounding may leave the sum below the largest uniform number there is: the last choice takes it.
    assert draw_one_hot(torch.full((1, 3), 0.3), torch.tensor([0.999])).tolist() == [[0, 0, 1]]
    many = draw_one_hot(probs[:, None].expand(2000, 3, 2), torch.rand(2000, 2, generator=torch.manual_seed(0)), dim=1)
    np.testing.assert_allclose(many.mean((0, 2)), probs, atol=0.03)
    assert (many.sum(1) == 1).all()


def test_likeliest_and_temperature() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0]])
    assert likeliest(probs).tolist() == [[0, 1, 0], [1, 0, 0]]
    cold = tempered(torch.tensor([0.2, 0.5, 0.3]), 0.5).numpy()
    np.testing.assert_allclose(cold, np.array([0.04, 0.25, 0.09]) / 0.38, rtol=1e-5)
    np.testing.assert_allclose(entropy(probs), [1.0296531, np.log(2)], rtol=1e-5)


def test_gradients_pass_a_one_hot_as_if_it_were_its_chances() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0], requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 5.0])
    out = straight_through(torch.tensor([0.0, 1.0, 0.0]), mixed(logits))
    assert out.tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    (got,) = torch.autograd.grad((out * weight).sum(), logits)
    (want,) = torch.autograd.grad((mixed(logits) * weight).sum(), logits)
    torch.testing.assert_close(got, want)
