"""An actor-critic trained in imagination, on `feat` of any world model (Hafner et al. 2023, section "Actor").

The model dreams H steps from states of real episodes. The critic learns the return from each state. The actor
is trained by REINFORCE with the advantage. No gradient passes through the dream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.dists import TwoHot, draw_one_hot, entropy, likeliest
from policies.nets import MLP, Linear, compute_dtype, forgetful_autocast, make_layers
from policies.returns import lambda_returns
from wm_envs.action import act_dim, decode_action
from wm_envs.fields import at_least, check_fields, share
from wm_envs.noise import Generator, draw_normal
from wm_envs.world_model import Latent, WorldModel, imagine

Array = NDArray[Any]


@dataclass(frozen=True)
class ActorCriticConfig:
    """Sizes and weights of the authors' code; `units` should match the model's."""

    units: int = field(default=256, metadata=at_least(1))
    layers: int = field(default=3, metadata=at_least(1))
    horizon: int = field(default=15, metadata=at_least(1))
    """Steps of a dream."""
    discount: float = field(default=1 - 1 / 333, metadata=share())
    lam: float = field(default=0.95, metadata=share())
    entropy: float = field(default=3e-4, metadata=at_least(0))
    """Weight of the actor's entropy; advantages are divided by the range of returns."""
    slow_rate: float = field(default=0.02, metadata=share())
    """Rate at which the slow critic follows the critic, per update."""
    slow_weight: float = field(default=1.0, metadata=at_least(0))
    """Weight of the regularisation of the critic towards the slow critic."""
    return_rate: float = field(default=0.01, metadata=share())
    """Update rate of the running range of returns."""

    def __post_init__(self) -> None:
        check_fields(self)


class _Choice(NamedTuple):
    """A categorical distribution over A discrete actions."""

    logits: Tensor
    """(..., A) float32"""

    @property
    def noise_dim(self) -> int:
        return 1

    def sample(self, noise: Tensor) -> Tensor:
        """One-hot samples (..., A) from standard normal noise (..., 1)."""
        return draw_one_hot(self.logits.softmax(-1), torch.special.ndtr(noise[..., 0]))

    def mode(self) -> Tensor:
        return likeliest(self.logits)

    def log_prob(self, act: Tensor) -> Tensor:
        return (self.logits.log_softmax(-1) * act).sum(-1)

    def entropy(self) -> Tensor:
        return entropy(self.logits.softmax(-1))


class _BoundedNormal(NamedTuple):
    """A normal distribution in A dimensions with mean in [-1, 1]; samples may lie outside."""

    mean: Tensor
    """(..., A) float32"""
    std: Tensor

    @property
    def noise_dim(self) -> int:
        return self.mean.shape[-1]

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, act: Tensor) -> Tensor:
        off = (act - self.mean) / self.std
        return (-0.5 * off.square() - self.std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class _Actor(nn.Module):
    """Maps feat (..., F) to a distribution over actions.

    Raises:
        ValueError: the action space is neither Box nor Discrete.
    """

    LOW, HIGH = 0.1, 1.0
    """Minimum and maximum standard deviation of continuous actions."""

    def __init__(self, act_space: gym.Space[Any], feat_dim: int, units: int = 256, layers: int = 3) -> None:
        super().__init__()
        if not isinstance(act_space, spaces.Box | spaces.Discrete):
            raise ValueError(
                f"this actor needs Box or Discrete actions, got {act_space}; use a wrapper that flattens them, "
                "or train with `wm evolve` or SB3, which support them"
            )
        self.body = make_layers(feat_dim, units, layers)
        self.out = Linear(units, act_dim(act_space), scale=0.01)
        self.spread = Linear(units, act_dim(act_space), scale=0.01) if isinstance(act_space, spaces.Box) else None

    def forward(self, feat: Tensor) -> _Choice | _BoundedNormal:
        x = self.body(feat)
        out = self.out(x).float()
        if self.spread is None:
            return _Choice(out)
        std = self.LOW + (self.HIGH - self.LOW) * torch.sigmoid(self.spread(x).float() + 2)
        return _BoundedNormal(torch.tanh(out), std)


class _Critic(nn.Module):
    """Maps feat (..., F) to logits over bins of the return; before training, all values are 0."""

    def __init__(self, feat_dim: int, units: int = 256, layers: int = 3) -> None:
        super().__init__()
        self.bins = TwoHot()
        self.net = MLP(feat_dim, units, layers, self.bins.num, scale=0.0)

    def forward(self, feat: Tensor) -> Tensor:
        return cast(Tensor, self.net(feat)).float()

    def value(self, feat: Tensor) -> Tensor:
        """The discounted return (...) from feat (..., F)."""
        return self.bins.mean(self(feat))


class _ReturnScale(nn.Module):
    """The range from the 5th to the 95th percentile of returns, averaged over updates; at least 1."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, returns: Tensor) -> Tensor:
        """The scale; in training mode, updated with these returns first."""
        if self.training:
            at = torch.tensor([0.05, 0.95], device=returns.device)
            low, high = torch.quantile(returns.detach().float().flatten(), at)
            self.low.lerp_(low, self.rate)
            self.high.lerp_(high, self.rate)
        return (self.high - self.low).clamp(min=1)


class _Dream(NamedTuple):
    """H imagined steps of N dreams, time-first, without gradients."""

    feats: Tensor
    """(H+1, N, F)"""
    acts: Tensor
    """(H, N, A)"""
    rews: Tensor
    """(H, N)"""
    conts: Tensor
    """(H+1, N): the probability that the episode continues from each state."""


class _Judged(NamedTuple):
    """Losses and metrics (scalars) of a dream."""

    policy: Tensor
    value: Tensor
    returns: Tensor
    """(H, N), of each state except the last."""
    metrics: dict[str, Tensor]


class ActorCritic(nn.Module):
    """Actor, critic, slow critic and return scale."""

    def __init__(self, cfg: ActorCriticConfig, act_space: gym.Space[Any], feat_dim: int) -> None:
        super().__init__()
        self.cfg, self.act_space = cfg, act_space
        self.actor = _Actor(act_space, feat_dim, cfg.units, cfg.layers)
        self.critic = _Critic(feat_dim, cfg.units, cfg.layers)
        self.slow = deepcopy(self.critic).requires_grad_(False)
        self.scale = _ReturnScale(cfg.return_rate)

    @torch.no_grad()
    def act(self, feat: Tensor, *, explore: bool, generator: Generator = None) -> Tensor:
        """Encoded actions (N, A) for feat (N, F): sampled if `explore`, else the mode."""
        dist: _Choice | _BoundedNormal = self.actor(feat)
        if not explore:
            return dist.mode()
        drawn = dist.sample(draw_normal(len(feat), dist.noise_dim, generator, feat.device))
        return drawn.clamp(-1, 1)

    @torch.no_grad()
    def dream(self, model: WorldModel, start: Latent, cont: Tensor) -> _Dream:
        """Imagine from latents (N, ...), whose episodes continue with probability `cont` (N,)."""
        with forgetful_autocast(cont.device):
            ahead = imagine(model, start, self._draw, self.cfg.horizon)
            # All layers that read feat compute in this dtype, so convert it once here.
            dtype = compute_dtype(self.actor.out.weight)
            feats = torch.stack([model.feat(latent).to(dtype) for latent in ahead.latents])
        return _Dream(feats, ahead.acts, ahead.rewards, torch.cat([cont[None], ahead.continues]))

    def judge(self, dream: _Dream) -> _Judged:
        """The losses of actor and critic on a dream."""
        dream = _Dream(*(part.detach() for part in dream))
        cfg, feats = self.cfg, dream.feats
        logits = self.critic(feats)
        value = self.critic.bins.mean(logits.detach())
        cont = cfg.discount * dream.conts
        returns = lambda_returns(dream.rews, cont[1:], value[1:], cfg.lam)
        # The probability that the dream reaches each state.
        weight = cont.cumprod(0)[:-1]
        dist: _Choice | _BoundedNormal = self.actor(feats[:-1])
        advantage = (returns - value[:-1]) / self.scale(returns)
        chance = dist.entropy()
        policy = -weight * (dist.log_prob(dream.acts) * advantage + cfg.entropy * chance)
        loss = weight * self._critic_loss(logits[:-1], feats[:-1], returns)
        metrics = {
            "return": returns.mean(),
            "return_scale": (self.scale.high - self.scale.low).clone(),
            "value": value.mean(),
            "entropy": chance.detach().mean(),
            "dream_rew": dream.rews.mean(),
            "dream_cont": dream.conts.mean(),
        }
        return _Judged(policy.mean(), loss.mean(), returns, metrics)

    def judge_replay(self, feat: Tensor, rew: Tensor, term: Tensor, last: Tensor, boot: Tensor) -> Tensor:
        """The critic's loss on replayed episodes; its gradient flows into feat.

        Args:
            feat: (T, B, F) of frames.
            rew: (T, B), reward of the step to the frame.
            term: (T, B) bool, the episode terminated at the frame.
            last: (T, B) bool, the frame is the last of its episode (terminated or truncated).
            boot: (T, B), imagined returns from the frames, for bootstrapping.
        """
        cont = self.cfg.discount * (~term[1:]).float()
        returns = lambda_returns(rew[1:], cont, boot[1:], self.cfg.lam * (~last[1:]).float())
        loss = self._critic_loss(self.critic(feat[:-1]), feat[:-1].detach(), returns)
        return ((~last[:-1]).float() * loss).mean()

    @torch.no_grad()
    def after_update(self) -> None:
        """Update the slow critic."""
        pairs = zip(self.slow.parameters(), self.critic.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, self.cfg.slow_rate)

    def _critic_loss(self, logits: Tensor, feat: Tensor, returns: Tensor) -> Tensor:
        with torch.no_grad():
            slow = self.slow.value(feat)
        return self.critic.bins.loss(logits, returns, slow, self.cfg.slow_weight)

    def _draw(self, feat: Tensor) -> Tensor:
        dist: _Choice | _BoundedNormal = self.actor(feat)
        return dist.sample(draw_normal(len(feat), dist.noise_dim, None, feat.device))


class ActorPolicy:
    """An actor as a deterministic policy on feat (N, F), which takes the mode of the action distribution."""

    def __init__(self, act_space: gym.Space[Any], actor: _Actor) -> None:
        self.space = act_space
        self.actor = deepcopy(actor).cpu().float().eval().requires_grad_(False)

    @property
    def feat_dim(self) -> int:
        """Width of its observations."""
        return int(self.actor.body[0].linear.in_features)  # type: ignore[union-attr,arg-type]

    def reset(self, num: int, seed: int) -> None:
        """Does nothing: the policy has no state."""

    @torch.inference_mode()
    def act(self, obs: Array) -> Array:
        """Map feat (N, F) to the env's own actions (N, *space.shape)."""
        if obs.ndim != 2 or obs.shape[1] != self.feat_dim:
            raise ValueError(f"obs must be (N, {self.feat_dim}), got {obs.shape}")
        feat = torch.from_numpy(np.ascontiguousarray(obs, np.float32))
        dist: _Choice | _BoundedNormal = self.actor(feat)
        return decode_action(self.space, dist.mode().numpy())

    def tensors(self) -> dict[str, Tensor]:
        """The actor's weights by name, for a safetensors file."""
        return dict(self.actor.state_dict())

    def about(self) -> dict[str, str]:
        """Settings for the metadata of the file."""
        return {"kind": "actor"}

    @classmethod
    def from_tensors(
        cls, act_space: gym.Space[Any], tensors: Mapping[str, Tensor], about: Mapping[str, str]
    ) -> ActorPolicy:
        """Restore a policy from its `tensors` and `about`.

        Raises:
            ValueError: they belong to another kind of policy, or to another action space.
        """
        if about.get("kind") != "actor" or "body.0.linear.weight" not in tensors:
            raise ValueError(f"expected weights of an actor and kind 'actor', got {sorted(tensors)} and {dict(about)}")
        units, feat_dim = tensors["body.0.linear.weight"].shape
        layers = sum(name.endswith("linear.weight") for name in tensors)
        actor = _Actor(act_space, feat_dim, units, layers)
        own = {name: tuple(t.shape) for name, t in actor.state_dict().items()}
        given = {name: tuple(t.shape) for name, t in tensors.items()}
        if own != given:
            raise ValueError(f"the saved actor does not fit {act_space}: expected shapes {own}, got {given}")
        actor.load_state_dict(dict(tensors))
        return cls(act_space, actor)
