"""TD-MPC2 (Hansen et al. 2024, "TD-MPC2: Scalable, Robust World Models for Continuous Control"): a model for
planning.

The model has no reconstruction loss: latents predict their successors, rewards, termination and values, and
the planner of `policies.mppi` searches in this latent space. Discrete actions, an addition to the paper, are
one-hot vectors: the policy is a categorical, and expected values over its actions are exact. A separate
decoder, the probe, renders latents; no gradient of it reaches the model. The dream is deterministic except
for its sampled termination, which is the only part that depends on the temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.dists import TwoHot, symexp, symlog
from policies.mppi import MPPI, MPPIConfig, MPPIPolicy
from policies.nets import forgetful_autocast
from wm_agents.errors import ConfigurationError, strict
from wm_agents.models.config import ELSEWHERE, WorldModelConfig
from wm_agents.models.frames import to_frames, to_network
from wm_agents.models.loss import LossOutput
from wm_agents.models.model import Model
from wm_agents.models.tdmpc2_layers import QEnsemble, mlp
from wm_agents.models.tdmpc2_nets import conv_decoder, conv_encoder, resized, shift, vector_encoder
from wm_agents.models.tdmpc2_policy import CategoricalPolicy, GaussianPolicy
from wm_envs.fields import FieldError, above, at_least, below, fail, share
from wm_envs.frames import frame_shape
from wm_envs.noise import Generator, draw_normal
from wm_envs.world_model import Latent, Step

if TYPE_CHECKING:
    from wm_agents.data.batch import Batch

FRAME = 64
"""Size of frames for the convolutions, as published; other frames are resized."""


@strict(ELSEWHERE)
@dataclass(frozen=True, kw_only=True)
class TDMPC2Config(WorldModelConfig):
    """Sizes, losses and planning; the defaults are the published ones for a single task, `5m`."""

    family: ClassVar[str] = "tdmpc2"
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ci": {
            "enc_dim": 64, "hidden_dim": 64, "latent_dim": 64, "num_q_networks": 2, "num_samples": 128,
            "num_elites": 16, "num_prior_plans": 8, "iterations": 4,
        },
        "1m": {"enc_dim": 256, "hidden_dim": 384, "latent_dim": 128, "num_q_networks": 2},
        "5m": {},
        "19m": {"enc_dim": 1024, "hidden_dim": 1024, "latent_dim": 768, "num_hidden_layers": 3},
        "48m": {"enc_dim": 1792, "hidden_dim": 1792, "latent_dim": 768, "num_hidden_layers": 4},
        "317m": {
            "enc_dim": 4096, "hidden_dim": 4096, "latent_dim": 1376, "num_hidden_layers": 5, "num_q_networks": 8,
        },
    }  # fmt: skip

    latent_dim: int = field(default=512, metadata=at_least(1))
    hidden_dim: int = field(default=512, metadata=at_least(1))
    """Width of all networks except the encoder."""
    enc_dim: int = field(default=256, metadata=at_least(1))
    num_hidden_layers: int = field(default=2, metadata=at_least(1))
    """Layers of the vector encoder, including the last one. Frames have a convolutional encoder."""
    num_channels: int = field(default=32, metadata=at_least(1))
    """Channels of the convolutional encoder."""
    num_q_networks: int = field(default=5, metadata=at_least(1))
    simnorm_dim: int = field(default=8, metadata=at_least(1))
    """Size of the groups of the latent; each group sums to 1."""
    num_bins: int = field(default=101, metadata=at_least(3))
    bin_limit: float = field(default=10.0, metadata=above(0))
    """Rewards and values are two-hot vectors over bins from -limit to limit, in symlog."""
    bin_space: Literal["symlog", "symexp"] = "symlog"
    """symlog: average the symlog of values over the bins, as published; symexp: average the values, as in
    DreamerV3. With symlog, a reward of 100 with probability 0.02 counts as 0.1, so rare large rewards are
    underestimated."""
    dropout: float = field(default=0.01, metadata=at_least(0) | below(1))
    episodic: bool = True
    """Learn to predict termination. False, as in the paper: episodes never terminate."""

    episode_length: int = field(default=500, metadata=at_least(1))
    """Steps of an episode, which determine the discount."""
    discount_min: float = field(default=0.95, metadata=share())
    discount_max: float = field(default=0.99, metadata=share())
    """As in the authors' code for Gymnasium tasks; 0.995 for the others."""
    rho: float = field(default=0.7, metadata=share())
    """The loss t steps ahead has the weight rho^t. As in the authors' code for Gymnasium tasks; 0.5 for the others."""
    consistency_coef: float = field(default=20.0, metadata=at_least(0))
    reward_coef: float = field(default=0.1, metadata=at_least(0))
    value_coef: float = field(default=0.1, metadata=at_least(0))
    termination_coef: float = field(default=1.0, metadata=at_least(0))
    entropy_coef: float = field(default=1e-4, metadata=at_least(0))
    """Weight of the policy entropy for Box actions, as published."""
    choice_entropy_coef: float = field(default=1e-2, metadata=above(0))
    """Weight of the policy entropy for discrete actions, relative to the range of Q."""
    log_std_min: float = -10.0
    log_std_max: float = 2.0
    tau: float = field(default=0.01, metadata=share())
    """Update rate of the target Q functions and of the scale of values."""
    enc_lr_scale: float = field(default=0.3, metadata=at_least(0))

    planning: bool = True
    """Act by planning; False: by the policy."""
    horizon: int = field(default=3, metadata=at_least(1))
    """Steps of a plan. The length of training windows is a setting of the trainer."""
    iterations: int = field(default=6, metadata=at_least(0))
    num_samples: int = field(default=512, metadata=at_least(1))
    num_elites: int = field(default=64, metadata=at_least(1))
    num_prior_plans: int = field(default=24, metadata=at_least(0))
    """Plans proposed by the policy."""
    temperature: float = field(default=0.5, metadata=at_least(0))
    min_std: float = field(default=0.05, metadata=above(0))
    max_std: float = 2.0
    smoothing: float = field(default=0.1, metadata=share())
    """See `policies.mppi.MPPIConfig`, also for the seven fields above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_dim % self.simnorm_dim:
            fail(self, "latent_dim", f"a multiple of simnorm_dim ({self.simnorm_dim})")
        if self.num_bins % 2 == 0:
            fail(self, "num_bins", "an odd number")
        if not self.log_std_min < self.log_std_max:
            fail(self, "log_std_min", f"below log_std_max ({self.log_std_max})")
        self.planner(1)  # MPPIConfig checks the relations between its fields.

    @property
    def discount(self) -> float:
        """The discount (T/5 - 1) / (T/5) for episodes of T steps, within bounds."""
        share = self.episode_length / 5
        return min(max((share - 1) / share, self.discount_min), self.discount_max)

    def planner(self, actions: int) -> MPPIConfig:
        """Settings of the planner; action spaces with many dimensions get two more iterations."""
        try:
            return MPPIConfig(
                horizon=self.horizon,
                iterations=self.iterations + 2 * (actions >= 20) if self.planning else 0,
                num_samples=self.num_samples,
                num_elites=self.num_elites,
                num_prior_plans=self.num_prior_plans,
                temperature=self.temperature,
                min_std=self.min_std,
                max_std=self.max_std,
                smoothing=self.smoothing,
                discount=self.discount,
            )
        except FieldError as error:
            raise FieldError(type(self).__name__, error.name, error.expected, error.value) from None


class TDMPC2(Model):
    """The world model with policy and Q functions: latent {z (B, L)}; feat is z."""

    family: ClassVar[str] = "tdmpc2"
    packs: ClassVar[bool] = True

    def __init__(self, cfg: TDMPC2Config, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        """Raise ConfigurationError for actions other than Box and Discrete, and for unsupported
        observations."""
        super().__init__(cfg, obs_space, act_space)
        self.cfg: TDMPC2Config = cfg
        if not isinstance(act_space, gym.spaces.Box | gym.spaces.Discrete):
            raise ConfigurationError(
                f"tdmpc2 needs Box or Discrete actions, got {act_space}; flatten them to one Discrete, "
                "or use the ensemble or vmc family, which support them (`wm improve --env` without --family)"
            )
        self.frames = frame_shape(obs_space)
        A, L, hidden, self.feat_dim = self.actions, cfg.latent_dim, 2 * [cfg.hidden_dim], cfg.latent_dim
        self.two_hot = TwoHot(cfg.num_bins, cfg.bin_limit, cfg.bin_space)
        kind = CategoricalPolicy if isinstance(act_space, gym.spaces.Discrete) else GaussianPolicy
        self.policy: CategoricalPolicy | GaussianPolicy = kind(cfg, A, self.two_hot)
        self.encoder = conv_encoder(cfg, self.frames[0]) if self.frames else vector_encoder(cfg, obs_space)
        self.dynamics = mlp([L + A, *hidden, L], cfg.simnorm_dim)
        self.reward = mlp([L + A, *hidden, cfg.num_bins])
        nn.init.zeros_(self.reward[-1].weight)  # type: ignore[arg-type]
        self.termination = mlp([L, *hidden, 1]) if cfg.episodic else None
        self.pi = mlp([L, *hidden, self.policy.out_dim])
        q_dims = [self.policy.q_in, *hidden, self.policy.q_out]
        self.qs = QEnsemble(cfg.num_q_networks, q_dims, cfg.dropout)
        self.slow_qs = QEnsemble(cfg.num_q_networks, q_dims, 0.0).requires_grad_(False)
        self.slow_qs.load_state_dict(self.qs.state_dict())
        self.decoder = conv_decoder(cfg, self.frames[0]) if self.frames else mlp([L, *hidden, obs_space.shape[0]])  # type: ignore[index]
        self.value_scale: Tensor
        self.register_buffer("value_scale", torch.ones(()))
        self._guess: Tensor | None = None

    def initial(self, num: int) -> Latent:
        """Uniform values in every group."""
        return {"z": torch.full((num, self.feat_dim), 1 / self.cfg.simnorm_dim, device=self.device)}

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Encode one frame. The model has no memory, so use stacked frames for images (`RealSpec.stack`)."""
        return {"z": self.encoder(self._seen(self.take_obs(obs)))}

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step: latent and action determine the reward, the next latent determines termination."""
        z = latent["z"]
        self.check_act(act, len(z))
        x = torch.cat([z, act], 1)
        z, rew = self.dynamics(x), self.two_hot.mean(self.reward(x))
        if self.termination is None:
            return Step({"z": z}, rew, torch.ones_like(rew))
        odds = self.termination(z).float()[:, 0]
        if temperature > 0:  # The CDF of a normal sample is uniform.
            uniform = torch.special.ndtr(draw_normal(len(z), 1, generator, z.device)[:, 0])
            end = torch.sigmoid(odds / temperature) > uniform
        else:
            end = odds > 0
        return Step({"z": z}, rew, torch.sigmoid(-odds), end)

    def decode(self, latent: Latent) -> Tensor:
        """The observation decoded by the probe; blurred where the latent ignores details."""
        space, x = self.obs_space, self.decoder(latent["z"]).float()
        if self.frames is not None:
            return to_frames(resized(x, *self.frames[1:]) + 0.5, space)
        assert isinstance(space, gym.spaces.Box), space
        low, high = (torch.from_numpy(bound).to(x.device) for bound in (space.low, space.high))
        x = symexp(x).clamp(low.float(), high.float())
        return (x if low.is_floating_point() else x.round()).to(low.dtype)

    def feat(self, latent: Latent) -> Tensor:
        return latent["z"].float()

    def latent_of(self, feat: Tensor) -> Latent:
        """The latent of `feat`."""
        return {"z": feat}

    def propose(self, latent: Latent, *, greedy: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Actions (B, A) of the policy, from which plans start: samples, or its mode if `greedy`."""
        return self.policy.act(self.pi(latent["z"]).float(), greedy, generator)

    def state_value(self, latent: Latent, *, generator: torch.Generator | None = None) -> Tensor:
        """The expected return (B,) of the policy: the mean of two random Q functions."""
        z = latent["z"]
        act = self.policy.weights(self.pi(z).float(), generator)
        return self._expected_q(self.qs, z, act, self._pair(generator)).mean(0)

    def planner(self) -> MPPI:
        """MPPI in this model, with its policy as the prior and its Q functions as the final value."""
        return MPPI(self, self.cfg.planner(self.actions), self.propose, self.state_value)

    def controller(self) -> MPPIPolicy:
        """The policy that is saved with the model: the planner."""
        return MPPIPolicy(self.planner())

    def act(
        self,
        latent: Latent,
        *,
        explore: bool,
        generator: torch.Generator | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        """Encoded actions (N, A) for N rows. Plans start from those of the previous call, except in `first`
        rows."""
        last = None
        if self._guess is not None and len(self._guess) == len(latent["z"]):
            last = self._guess
        act, self._guess = self.planner().plan(latent, last, first, explore=explore, generator=generator)
        return act

    def loss(self, batch: Batch) -> LossOutput:
        """The losses of the model, the policy and the probe, which only renders latents, on windows of T steps.

        Each loss trains its own weights.

        A window may contain the start of a second episode; steps after the end of the first one are masked. The
        published windows lie inside one episode. There a terminal frame is always the last of its window, so its
        value is used in targets but never trained.

        The published code updates the model first and then the policy with the updated Q functions. Here one
        optimizer step updates all weights, so the policy uses the Q functions before the update. The scale of
        values is updated only in train mode.
        """
        cfg, act, term = self.cfg, batch.act, batch.term.float()
        B, T, _ = act.shape
        known = batch.first[:, 1:].cumsum(1).eq(0).float()  # (B, T) steps, and the frames after them
        seen = self._seen(batch.obs.flatten(0, 1))
        obs = (seen if self.frames is None else shift(seen)).unflatten(0, (B, T + 1))
        with torch.no_grad(), forgetful_autocast(self.device):
            next_z = self.encoder(obs[:, 1:].flatten(0, 1)).unflatten(0, (B, T))
            target = self._td_target(next_z, batch.rew, term)
        path = [self.encoder(obs[:, 0])]
        for t in range(T):
            path.append(self.dynamics(torch.cat([path[-1], act[:, t]], 1)))
        zs = torch.stack(path, 1)  # (B, T+1, L)
        past, ahead = zs[:, :-1], zs[:, 1:]

        rho = cfg.rho ** torch.arange(T + 1, device=zs.device)
        bins = self.policy.q_bins(self.qs, past, act, drop=self.training)  # (K, B, T, bins)
        scales = {"consistency": cfg.consistency_coef, "reward": cfg.reward_coef, "value": cfg.value_coef}
        parts = {
            "consistency": _over_time((ahead - next_z).square().mean(-1) * known, rho),
            "reward": _over_time(self.two_hot.loss(self.reward(torch.cat([past, act], -1)), batch.rew) * known, rho),
            "value": _over_time(self.two_hot.loss(bins, target.expand(len(bins), -1, -1)).mean(0) * known, rho),
        }
        if self.termination is not None:  # Without rho, as published.
            odds = self.termination(ahead).float()[..., 0]
            parts["termination"] = F.binary_cross_entropy_with_logits(odds, term, known)
            scales["termination"] = cfg.termination_coef
        known = F.pad(known, (1, 0), value=1.0)  # (B, T+1) frames
        parts["policy"], metrics = self._policy_loss(zs.detach(), rho, known)
        missed = (self.decoder(zs.detach().flatten(0, 1)).float() - self._shown(seen)).square()
        parts["probe"] = (missed.flatten(1).mean(1) * known.flatten()).mean()
        loss = torch.stack([scales.get(name, 1.0) * part for name, part in parts.items()]).sum()
        return LossOutput(loss, parts, {**metrics, "td_target": target[:, 0].mean()})

    def after_update(self) -> None:
        """Update the target Q functions."""
        with torch.no_grad():
            for slow, quick in zip(self.slow_qs.parameters(), self.qs.parameters(), strict=True):
                slow.lerp_(quick, self.cfg.tau)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups: a lower learning rate for the encoder, and separate clipping for policy and
        probe."""
        apart = {"pi": {"lr": lr, "eps": 1e-5, "clip": "policy"}, "decoder": {"lr": lr, "clip": "probe"},
                 "encoder": {"lr": lr * self.cfg.enc_lr_scale, "clip": "model"}}  # fmt: skip
        groups = [{"params": list(self.get_submodule(name).parameters()), **facts} for name, facts in apart.items()]
        rest = [p for name, p in self.named_parameters() if p.requires_grad and name.partition(".")[0] not in apart]
        return [*groups, {"params": rest, "lr": lr, "clip": "model"}]

    @torch.no_grad()
    def _td_target(self, next_z: Tensor, rew: Tensor, term: Tensor) -> Tensor:
        """The TD target (B, T): the reward plus the discounted minimum of two target Q functions."""
        act = self.policy.sample(self.pi(next_z).float()).act
        q = self._expected_q(self.slow_qs, next_z, act, self._pair()).amin(0)
        return rew + self.cfg.discount * (1 - term) * q

    def _policy_loss(self, zs: Tensor, rho: Tensor, known: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The policy loss on latents (B, T+1, L), where they are `known`.

        The policy goes by the mean of two frozen Q functions, relative to their range, and by its entropy.
        """
        sample = self.policy.sample(self.pi(zs).float())
        q = self.policy.q(self.qs, zs, sample.act, self._pair(), frozen=True, drop=self.training).mean(0)
        expected = self.policy.expect(q, sample.act)
        self._follow_spread(expected)
        losses = self.policy.losses(q, sample, self.value_scale)
        metrics = {
            "entropy": sample.entropy[:, 0].mean().detach(),
            "q": expected[:, 0].mean().detach(),
            "value_scale": self.value_scale.clone(),
        }
        return _over_time(losses * known, rho), metrics

    @torch.no_grad()
    def _follow_spread(self, q: Tensor) -> None:
        """Update the scale of values with the range of q (B, T) at the first steps, in train mode."""
        if self.training:
            low, high = torch.quantile(q[:, 0], torch.tensor([0.05, 0.95], device=q.device))
            self.value_scale.lerp_((high - low).clamp(min=1.0), self.cfg.tau)

    def _pair(self, generator: torch.Generator | None = None) -> Tensor:
        """The indices of two random Q functions."""
        return torch.randperm(self.cfg.num_q_networks, generator=generator, device=self.device)[:2]

    def _expected_q(self, qs: QEnsemble, z: Tensor, act: Tensor, members: Tensor) -> Tensor:
        """Q (2, ...) of sampled actions, or the expectation over probabilities of discrete actions, `act` (..., A)."""
        return self.policy.expect(self.policy.q(qs, z, act, members), act)

    def _seen(self, obs: Tensor) -> Tensor:
        """Encoder inputs of observations (B, ...): unchanged vectors, or resized frames centred at zero."""
        if self.frames is None:
            return obs.float()
        x = resized(to_network(obs).float(), FRAME, FRAME) - 0.5
        return x.to(self.encoder[0].weight.dtype)  # type: ignore[arg-type]

    def _shown(self, seen: Tensor) -> Tensor:
        """The target of the probe."""
        if self.frames is None:
            return symlog(seen)
        return seen


def _over_time(losses: Tensor, rho: Tensor) -> Tensor:
    """Mean over rows and steps of losses (B, T), with weight rho[t] for step t."""
    return (losses.mean(0) * rho[: losses.shape[1]]).mean()
