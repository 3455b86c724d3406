"""λ-returns against their definition."""

from __future__ import annotations

import numpy as np
import torch

from policies.returns import lambda_returns

RNG = np.random.default_rng(0)
REW, CONT, VALUE, LAM = RNG.normal(size=(6, 3)), RNG.random((6, 3)), RNG.normal(size=(6, 3)), RNG.random((6, 3))


def returns(rew: np.ndarray, cont: np.ndarray, value: np.ndarray, lam: float | np.ndarray) -> np.ndarray:
    many = torch.from_numpy(lam) if isinstance(lam, np.ndarray) else lam
    return lambda_returns(torch.from_numpy(rew), torch.from_numpy(cont), torch.from_numpy(value), many).numpy()


def n_step(t: int, n: int) -> np.ndarray:
    """What n steps from t earn, and the critic's word for where they lead."""
    total, chance = np.zeros(3), np.ones(3)
    for k in range(t, t + n):
        total, chance = total + chance * REW[k], chance * CONT[k]
    return total + chance * VALUE[t + n - 1]


def test_a_lambda_return_mixes_all_n_step_returns() -> None:
    """Sutton & Barto 2018, eq. 12.3: shares (1 - λ) λ^(n-1), the last one taking the rest."""
    for t in range(6):
        steps = 6 - t
        shares = [0.1 * 0.9 ** (n - 1) for n in range(1, steps)] + [0.9 ** (steps - 1)]
        want = sum(share * n_step(t, n) for n, share in enumerate(shares, start=1))
        np.testing.assert_allclose(returns(REW, CONT, VALUE, 0.9)[t], want, rtol=1e-6)


def test_lambda_may_differ_at_every_step() -> None:
    want, ahead = np.zeros((6, 3)), VALUE[-1]
    for t in reversed(range(6)):
        ahead = want[t] = REW[t] + CONT[t] * ((1 - LAM[t]) * VALUE[t] + LAM[t] * ahead)
    np.testing.assert_allclose(returns(REW, CONT, VALUE, LAM), want)


def test_lambda_0_looks_one_step_ahead_and_1_to_the_end() -> None:
    np.testing.assert_allclose(returns(REW, CONT, VALUE, 0.0), REW + CONT * VALUE)
    np.testing.assert_allclose(returns(REW, CONT, VALUE, 1.0)[2], n_step(2, 4))


def test_nothing_follows_an_end() -> None:
    ended = CONT.copy()
    ended[2] = 0
    got = returns(REW, ended, VALUE, 0.95)
    np.testing.assert_allclose(got[2], REW[2])
    changed = REW.copy()
    changed[3:] += 100
    np.testing.assert_allclose(returns(changed, ended, VALUE, 0.95)[:3], got[:3])
