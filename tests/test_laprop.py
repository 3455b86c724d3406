"""LaProp with adaptive clipping against NumPy, and as an optimizer among others."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from wm_agents.training.laprop import LaProp, _clip_by_agc

LR, KEEP, KEEP_SQUARE, EPS, AGC, PMIN = 0.01, 0.9, 0.999, 1e-20, 0.3, 1e-3


def np_agc(weight: np.ndarray, grad: np.ndarray) -> np.ndarray:
    most = AGC * max(PMIN, float(np.linalg.norm(weight)))
    return grad / max(1.0, float(np.linalg.norm(grad)) / most)


def np_laprop(weight: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    square, momentum = np.zeros_like(weight), np.zeros_like(weight)
    for t, raw in enumerate(grads, start=1):
        grad = np_agc(weight, raw)
        square = KEEP_SQUARE * square + (1 - KEEP_SQUARE) * grad**2
        scaled = grad / (np.sqrt(square / (1 - KEEP_SQUARE**t)) + EPS)
        momentum = KEEP * momentum + (1 - KEEP) * scaled
        weight = weight - LR * momentum / (1 - KEEP**t)
    return weight


def run(weight: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    param = nn.Parameter(torch.from_numpy(weight.copy()))
    opt = LaProp([param], LR)
    for grad in grads:
        param.grad = torch.from_numpy(grad.copy())
        opt.step()
    return param.detach().numpy()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_five_steps_are_the_equations(scale: float) -> None:
    rng = np.random.default_rng(0)
    weight, grads = rng.normal(size=(4, 3)), [scale * rng.normal(size=(4, 3)) for _ in range(5)]
    np.testing.assert_allclose(run(weight, grads), np_laprop(weight, grads), rtol=1e-9)


def test_clipping_goes_by_the_norm_of_each_tensor() -> None:
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=5), np.zeros(5), 1e-5 * rng.normal(size=(2, 2))]
    grads = [10 * rng.normal(size=5), 10 * rng.normal(size=5), 1e-9 * rng.normal(size=(2, 2))]
    got = _clip_by_agc([torch.from_numpy(w) for w in weights], [torch.from_numpy(g) for g in grads], AGC, PMIN)
    for clipped, weight, grad in zip(got, weights, grads, strict=True):
        np.testing.assert_allclose(clipped, np_agc(weight, grad), rtol=1e-9)
    assert float(got[1].norm()) == pytest.approx(AGC * PMIN) and (got[2].numpy() == grads[2]).all()


def test_the_first_step_moves_every_weight_by_the_learning_rate() -> None:
    grad = np.array([1e-9, -3.0, 50.0])
    np.testing.assert_allclose(run(np.ones(3), [grad]), 1 - LR * np.sign(grad))


def test_momentum_comes_after_the_scaling() -> None:
    """Where the sign of a gradient turns, a tenth of the new direction is added to nine of the old."""
    before, after = (
        run(np.ones(1), [np.full(1, 1e-4)] * 50),
        run(np.ones(1), [np.full(1, 1e-4)] * 50 + [np.full(1, -1e-4)]),
    )
    assert float(after[0] - before[0]) == pytest.approx(-0.8 * LR, rel=0.02)


def test_groups_have_rates_of_their_own_and_idle_tensors_stay() -> None:
    a, b, idle = (nn.Parameter(torch.ones(2)) for _ in range(3))
    opt = LaProp([{"params": [a, idle]}, {"params": [b], "lr": 1.0}], LR)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    opt.step()
    assert idle.tolist() == [1, 1] and not opt.state[idle]
    np.testing.assert_allclose(a.detach(), 1 - LR, rtol=1e-6)
    np.testing.assert_allclose(b.detach(), 0, atol=1e-6)


def test_a_resumed_optimizer_continues_to_the_bit() -> None:
    def steps(opt: LaProp, param: nn.Parameter, num: int) -> None:
        for _ in range(num):
            opt.zero_grad()
            (param**3).sum().backward()
            opt.step()

    param = nn.Parameter(torch.tensor([1.0, -2.0]))
    opt = LaProp([param], LR)
    steps(opt, param, 3)
    twin = nn.Parameter(param.detach().clone())
    other = LaProp([twin], LR)
    other.load_state_dict(deepcopy(opt.state_dict()))
    steps(opt, param, 3)
    steps(other, twin, 3)
    assert torch.equal(param, twin)


def test_impossible_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"betas in .0, 1. .* got lr=0.1, betas=\(1.0, 0.9\)"):
        LaProp([nn.Parameter(torch.ones(1))], 0.1, betas=(1.0, 0.9))
