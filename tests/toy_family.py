"""A family of world models from outside: a linear map, in rounds or online."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from policies.linear import LinearPolicy
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.families import Family
from wm_agents.models.loss import LossOutput
from wm_agents.models.model import Model
from wm_envs.fields import at_least
from wm_envs.world_model import Step


@dataclass(frozen=True)
class ToyConfig(WorldModelConfig):
    """Settings of the map."""

    family: ClassVar[str] = "toy"
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny": {"width": 3}, "wide": {"width": 9}}

    width: int = field(default=3, metadata=at_least(1))


class Toy(Model):
    """Latent {obs (B, D)}; feat is the latent."""

    family: ClassVar[str] = "toy"
    cfg: ToyConfig

    def __init__(self, cfg: ToyConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__(cfg, obs_space, act_space)
        self.feat_dim = int(np.prod(obs_space.shape or ()))
        self.inner = nn.Linear(self.feat_dim + self.actions, cfg.width)
        self.outer = nn.Linear(cfg.width, self.feat_dim + 2)

    def initial(self, num: int) -> dict[str, Tensor]:
        return {"obs": torch.zeros(num, self.feat_dim)}

    def encode(self, obs: Tensor, latent: Any = None, act: Any = None, first: Any = None) -> dict[str, Tensor]:
        return {"obs": self.take_obs(obs).float()}

    def step(self, latent: Any, act: Tensor, *, temperature: float = 1.0, generator: Any = None) -> Step:
        change, rew, end = self(latent["obs"], act)
        return Step({"obs": latent["obs"] + change}, rew, torch.sigmoid(-end))

    def forward(self, obs: Tensor, act: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out: Tensor = self.outer(self.inner(torch.cat([obs, act], -1)))
        return out[..., :-2], out[..., -2], out[..., -1]

    def decode(self, latent: Any) -> Tensor:
        return torch.as_tensor(latent["obs"])

    def feat(self, latent: Any) -> Tensor:
        return torch.as_tensor(latent["obs"])

    def loss(self, batch: Any) -> LossOutput:
        obs, after = batch.obs[:, :-1].float(), batch.obs[:, 1:].float()
        change, rew, end = self(obs, batch.act)
        parts = {
            "change": (obs + change - after).square().mean(),
            "rew": (rew - batch.rew).square().mean(),
            "term": nn.functional.binary_cross_entropy_with_logits(end, batch.term.float()),
        }
        return LossOutput(parts["change"] + parts["rew"] + parts["term"], parts, {})


ROW = Family("toy_family:Toy", "toy_family:ToyConfig", "a linear map, for tests", (4,), 2, ("tiny", "wide"))


class ToyAgent(nn.Module):
    """Learns the map online, and takes the first action."""

    packs = False

    def __init__(self, model: Toy) -> None:
        super().__init__()
        self.model = model

    def act(self, latent: Any, *, explore: bool, generator: Any = None) -> Tensor:
        return torch.eye(self.model.actions)[[0] * len(latent["obs"])]

    def loss(self, batch: Any) -> LossOutput:
        return self.model.loss(batch)

    def check_batch(self, batch: Any) -> None:
        self.model.check_batch(batch)

    def after_update(self) -> None:
        """Nothing follows."""

    def controller(self) -> LinearPolicy:
        weights = np.zeros((self.model.actions, self.model.feat_dim + 1), np.float32)
        weights[0, -1] = 1
        return LinearPolicy(self.model.act_space, weights)
