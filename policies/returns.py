"""λ-returns: what a state is worth by the rewards that follow it, and by a critic's word where they leave off."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_returns(rew: Tensor, cont: Tensor, value: Tensor, lam: float | Tensor = 0.95) -> Tensor:
    """R[t] = rew[t] + cont[t] ((1 - λ) value[t] + λ R[t+1]), where R[T] = value[T-1] (Sutton & Barto 2018, eq. 12.18).

    Args:
        rew: (T, B), what step t earned.
        cont: (T, B), the discount times the chance that the episode went on after step t.
        value: (T, B), the critic's word for the state that step t led to.
        lam: the share that goes by what follows, one number or (T, B).
    """
    settled = rew + cont * (1 - lam) * value
    carried = cont * lam
    out, ahead = [], value[-1]
    for t in reversed(range(len(rew))):
        ahead = settled[t] + carried[t] * ahead
        out.append(ahead)
    return torch.stack(out[::-1])
