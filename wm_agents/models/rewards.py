"""Rewards as classes of a categorical distribution, for tasks in which few different ones occur."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MAX_CLASSES = 16
"""Maximum number of different rewards of `classes`."""
RARE_WEIGHT = 3.0
"""Weight of all rewards except the most common one in the cross-entropy. Dreams correct the predicted probabilities
for it."""


class RewardClasses(nn.Module):
    """The rewards that occur, as classes of a categorical distribution; an unused class has weight 0."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Tensor
        self.weights: Tensor
        self.register_buffer("values", torch.zeros(MAX_CLASSES))
        self.register_buffer("weights", torch.eye(MAX_CLASSES)[0])  # 0 is always a class.

    def learn(self, rew: Tensor) -> None:
        """Add the rewards (N,) of data as classes; existing classes keep their index.

        Raises:
            ValueError: there are more than 16 different rewards.
        """
        known = self.values[self.weights > 0]
        values, counts = rew.unique(return_counts=True)
        new = values[~torch.isin(values, known.to(values))]
        if len(known) + len(new) > MAX_CLASSES:
            raise ValueError(
                f"rew_head='classes' needs at most {MAX_CLASSES} different rewards, got {len(known) + len(new)}; "
                "use rew_head='mse'"
            )
        places = slice(len(known), len(known) + len(new))
        self.values[places], self.weights[places] = new.to(self.values), RARE_WEIGHT
        commonest = values[counts.argmax()].to(self.values)
        self.weights[: places.stop] = torch.where(self.values[: places.stop] == commonest, 1.0, RARE_WEIGHT)

    def expected(self, logits: Tensor) -> Tensor:
        """The expected reward (...) for logits (..., 16)."""
        return ((logits - self.weights.log()).where(self.weights > 0, -torch.inf).softmax(-1) * self.values).sum(-1)

    def loss(self, logits: Tensor, rew: Tensor) -> Tensor:
        """Weighted cross-entropy (...) of rewards (...) that are known to `learn`."""
        which = (rew[..., None] - self.values).abs().where(self.weights > 0, torch.inf).argmin(-1)
        log_chance = logits.where(self.weights > 0, -torch.inf).log_softmax(-1)
        return -self.weights[which] * log_chance.gather(-1, which[..., None])[..., 0]
