"""A world model whose every number is known: a point on a line."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from wm_envs.action import act_dim
from wm_envs.noise import Generator, draw_normal
from wm_envs.world_model import Latent, Step

BOX = spaces.Box(-1, 1, (1,), np.float32)


class Toy:
    """x' = x + move + noise sqrt(tau) normal; reward = move; the episode ends where x' > end.

    Latent {"x": (B, 2)}: the point and the move that led there. feat is that very tensor, so whoever writes in what
    it is given writes in the dream. A Box action is its own move, one choice of n moves by -1 to 1.
    """

    device = torch.device("cpu")
    feat_dim = 2

    def __init__(
        self, noise: float = 0.0, end: float = 1e9, pixels: bool = False, act_space: gym.Space[Any] = BOX
    ) -> None:
        self.noise, self.end, self.pixels, self.act_space = noise, end, pixels, act_space
        self.obs_space = (
            spaces.Box(0, 255, (40, 40, 3), np.uint8) if pixels else spaces.Box(-999, 999, (2,), np.float32)
        )
        num = act_dim(act_space)
        self.moves = torch.linspace(-1, 1, num)[:, None] if num > 1 else torch.ones(1, 1)

    def initial(self, num: int) -> Latent:
        return {"x": torch.zeros(num, 2)}

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        x = obs[:, 0, 0, :1].float() - 100 if self.pixels else obs[:, :1].float()
        move = torch.zeros(len(obs), 1) if act is None or latent is None else act @ self.moves
        if first is not None:
            move = move * ~first[:, None]
        return {"x": torch.cat([x, move], 1)}

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        move = act @ self.moves
        x = latent["x"][:, :1] + move
        if self.noise and temperature:
            x = x + self.noise * temperature**0.5 * draw_normal(len(x), 1, generator, self.device)
        return Step({"x": torch.cat([x, move], 1)}, move[:, 0], (x[:, 0] <= self.end).float())

    def decode(self, latent: Latent) -> Tensor:
        if not self.pixels:
            return latent["x"]
        level = (latent["x"][:, :1, None, None] + 100).clamp(0, 255).round().to(torch.uint8)
        return level.expand(-1, 40, 40, 3).contiguous()

    def feat(self, latent: Latent) -> Tensor:
        return latent["x"]


def toy_starts(num: int = 50) -> dict[str, Latent]:
    """Dreams begin at -1 ... 1, or anywhere from 10 to 20."""
    banks = {"begin": torch.linspace(-1, 1, num), "anywhere": torch.linspace(10, 20, num)}
    return {name: {"x": torch.stack([x, torch.zeros(num)], 1)} for name, x in banks.items()}
