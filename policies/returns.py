"""λ-returns: the value of a state from the following rewards and a critic."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_returns(rew: Tensor, cont: Tensor, value: Tensor, lam: float | Tensor = 0.95) -> Tensor:
    """R[t] = rew[t] + cont[t] ((1 - λ) value[t] + λ R[t+1]), where R[T] = value[T-1] (Sutton & Barto 2018, eq. 12.18).

    Args:
        rew: (T, B), the reward of step t.
        cont: (T, B), the discount times the probability that the episode continues after step t.
        value: (T, B), the critic's value of the state after step t.
        lam: λ, a number or (T, B).
    """
    settled = rew + cont * (1 - lam) * value
    carried = cont * lam
    out, ahead = [], value[-1]
    for t in reversed(range(len(rew))):
        ahead = settled[t] + carried[t] * ahead
        out.append(ahead)
    return torch.stack(out[::-1])
