"""TD-MPC2 (Hansen et al. 2024, "TD-MPC2: Scalable, Robust World Models for Continuous Control"): a model to plan in.

Nothing is learned for the looks of it: latents must foretell their own successors, rewards, ends and values, and the
planner of `policies.mppi` searches among them. Discrete actions, which the paper has not, are one-hots: the policy is a
categorical, and values are expected over its choices exactly. A probe, which nothing else learns from, decodes latents
so that a dream can be seen. The dream is deterministic: only its end is drawn, and temperature acts on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.dists import TwoHot, draw_one_hot, entropy, likeliest, symexp, symlog
from policies.mppi import MPPI, MPPIConfig
from policies.nets import forgetful_autocast
from wm_agents.errors import ConfigurationError, strict
from wm_agents.models.config import ELSEWHERE, WorldModelConfig
from wm_agents.models.frames import to_frames, to_network
from wm_agents.models.loss import LossOutput
from wm_agents.models.model import Model
from wm_agents.models.tdmpc2_layers import QEnsemble, SimNorm, Small, mlp
from wm_envs.frames import frame_shape
from wm_envs.precision import PRODUCTS, use_bf16
from wm_envs.world_model import Generator, Latent, Step, draw_normal

if TYPE_CHECKING:
    from wm_agents.data.replay import Batch

FRAME = 64
"""Frames of any size are resized to this before the convolution, as published."""


@strict(ELSEWHERE)
@dataclass(frozen=True, kw_only=True)
class TDMPC2Config(WorldModelConfig):
    """Sizes, losses and planning; the defaults are those published for one task, `5m`."""

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

    latent_dim: int = 512
    hidden_dim: int = 512
    """Width of every network but the encoder."""
    enc_dim: int = 256
    num_hidden_layers: int = 2
    """Layers of the encoder of vectors, the one onto the latent among them. Frames have a convolution of their own."""
    num_channels: int = 32
    """Of that convolution."""
    num_q_networks: int = 5
    simnorm_dim: int = 8
    """Latents are groups of so many numbers that sum to 1."""
    num_bins: int = 101
    bin_limit: float = 10.0
    """Rewards and values are two-hots over bins from -limit to limit, in symlog."""
    bin_space: Literal["symlog", "symexp"] = "symlog"
    """What is averaged over the bins: the symlog of numbers, as published, or numbers themselves, as in DreamerV3. The
    first takes 100 with a chance of one in fifty for 0.1, which hides what luck, or a hidden clock, decides."""
    dropout: float = 0.01
    episodic: bool = True
    """Learn where episodes end. Off, as in the paper's tasks, they never do."""

    episode_length: int = 500
    """Steps of an episode, which the discount follows from."""
    discount_min: float = 0.95
    discount_max: float = 0.995
    rho: float = 0.5
    """A loss t steps ahead weighs rho^t. The authors' own code has 0.7 for Gymnasium's tasks."""
    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    termination_coef: float = 1.0
    entropy_coef: float = 1e-4
    """Of a Box, as published."""
    choice_entropy_coef: float = 1e-2
    """Of choices: Qs that differ by so much of their spread are e times as likely."""
    log_std_min: float = -10.0
    log_std_max: float = 2.0
    tau: float = 0.01
    """How far the slow Qs, and the scale of values, move with an update."""
    enc_lr_scale: float = 0.3

    planning: bool = True
    """Act by planning; else by the policy alone."""
    horizon: int = 3
    """Steps of a plan. Windows that are learned from have a length of their own, told to the trainer."""
    iterations: int = 6
    num_samples: int = 512
    num_elites: int = 64
    num_prior_plans: int = 24
    """Plans that the policy makes."""
    temperature: float = 0.5
    min_std: float = 0.05
    max_std: float = 2.0
    smoothing: float = 0.1
    """See `policies.mppi.MPPIConfig`, as for the seven above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(1, "latent_dim", "hidden_dim", "enc_dim", "num_hidden_layers", "num_channels",
                         "num_q_networks", "simnorm_dim", "episode_length", "horizon")  # fmt: skip
        self.check_least(0, "consistency_coef", "reward_coef", "value_coef", "termination_coef", "entropy_coef",
                         "enc_lr_scale")  # fmt: skip
        self.check_share("discount_min", "discount_max", "rho", "tau")
        if self.latent_dim % self.simnorm_dim:
            self.fail("latent_dim", f"a multiple of simnorm_dim ({self.simnorm_dim})")
        if not (self.num_bins >= 3 and self.num_bins % 2):
            self.fail("num_bins", "an odd number from 3 up")
        self.check_above_0("bin_limit", "choice_entropy_coef")
        if not 0 <= self.dropout < 1:
            self.fail("dropout", "from 0 up and below 1")
        if not self.log_std_min < self.log_std_max:
            self.fail("log_std_min", f"below log_std_max ({self.log_std_max})")
        self.planner(1)  # Its fields are checked where they are used.

    @property
    def discount(self) -> float:
        """Longer episodes look further ahead: (T/5 - 1) / (T/5), within bounds."""
        share = self.episode_length / 5
        return min(max((share - 1) / share, self.discount_min), self.discount_max)

    def planner(self, actions: int) -> MPPIConfig:
        """Settings of the planner; many dimensions of action get two more iterations."""
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
        except ValueError as error:
            raise ConfigurationError(str(error).replace("MPPIConfig", type(self).__name__)) from None


class Drawn(NamedTuple):
    """What the policy does."""

    act: Tensor
    """(..., A) a draw of a Box; chances of choices"""
    entropy: Tensor
    """(...)"""
    scaled_entropy: Tensor
    """(...) as the loss of a Box's policy counts it"""
    log_chances: Tensor
    """(..., A) of choices; empty for a Box"""


class TDMPC2(Model):
    """The world model, its policy and its values: latent {z (B, L)}, feat the same."""

    family: ClassVar[str] = "tdmpc2"
    packs: ClassVar[bool] = True

    def __init__(self, cfg: TDMPC2Config, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        """Raise ConfigurationError for actions that are neither a Box nor one choice, and for odd observations."""
        super().__init__(cfg, obs_space, act_space)
        self.cfg: TDMPC2Config = cfg
        if not isinstance(act_space, gym.spaces.Box | gym.spaces.Discrete):
            raise ConfigurationError(
                f"tdmpc2 needs Box or Discrete actions, got {act_space}; flatten choices into one Discrete, "
                "or dream by an ensemble or V-M-C, which take them as they are (`wm improve --env` alone)"
            )
        self.choices = isinstance(act_space, gym.spaces.Discrete)
        self.frames = frame_shape(obs_space)
        A, L, hidden, self.feat_dim = self.actions, cfg.latent_dim, 2 * [cfg.hidden_dim], cfg.latent_dim
        self.two_hot = TwoHot(cfg.num_bins, cfg.bin_limit, cfg.bin_space)
        self.encoder = conv_encoder(cfg, self.frames[0]) if self.frames else vector_encoder(cfg, obs_space)
        self.dynamics = mlp([L + A, *hidden, L], cfg.simnorm_dim)
        self.reward = mlp([L + A, *hidden, cfg.num_bins])
        nn.init.zeros_(self.reward[-1].weight)  # type: ignore[arg-type]
        self.termination = mlp([L, *hidden, 1]) if cfg.episodic else None
        self.pi = mlp([L, *hidden, A if self.choices else 2 * A])
        # Choices need no Q each: one pass gives the bins of all.
        q_dims = [L, *hidden, A * cfg.num_bins] if self.choices else [L + A, *hidden, cfg.num_bins]
        self.qs = QEnsemble(cfg.num_q_networks, q_dims, cfg.dropout)
        self.slow_qs = QEnsemble(cfg.num_q_networks, q_dims, 0.0).requires_grad_(False)
        self.slow_qs.load_state_dict(self.qs.state_dict())
        self.decoder = conv_decoder(cfg, self.frames[0]) if self.frames else mlp([L, *hidden, obs_space.shape[0]])  # type: ignore[index]
        self.value_scale: Tensor
        self.register_buffer("value_scale", torch.ones(()))
        self._guess: Tensor | None = None

    def initial(self, num: int) -> Latent:
        """Nothing is known: even shares in every group."""
        return {"z": torch.full((num, self.feat_dim), 1 / self.cfg.simnorm_dim, device=self.device)}

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Take in one frame: it is all the model ever sees, so pictures come in threes (`RealSpec.stack`)."""
        return {"z": self.encoder(self._seen(self.take_obs(obs)))}

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step: the reward is of this latent and action, the end of the latent they lead to."""
        z = latent["z"]
        self.check_act(act, len(z))
        x = torch.cat([z, act], 1)
        z, rew = self.dynamics(x), self.two_hot.mean(self.reward(x))
        if self.termination is None:
            return Step({"z": z}, rew, torch.ones_like(rew))
        odds = self.termination(z).float()[:, 0]
        if temperature > 0:  # A normal's own quantile is uniform.
            uniform = torch.special.ndtr(draw_normal(len(z), 1, generator, z.device)[:, 0])
            end = torch.sigmoid(odds / temperature) > uniform
        else:
            end = odds > 0
        return Step({"z": z}, rew, torch.sigmoid(-odds), end)

    def decode(self, latent: Latent) -> Tensor:
        """What the probe makes of it: sharp where the latent had a use for what it shows, and vague elsewhere."""
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
        """The latent that `feat` was taken of."""
        return {"z": feat}

    def propose(self, latent: Latent, *, greedy: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """The policy's own actions (B, A), drawn or the likeliest: what plans begin from."""
        out = self.pi(latent["z"]).float()
        if self.choices:
            probs = out.softmax(-1)
            uniform = torch.rand(len(probs), generator=generator, device=probs.device)
            return likeliest(probs) if greedy else draw_one_hot(probs, uniform)
        mean, log_std = self._gaussian(out)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return torch.tanh(mean if greedy else mean + log_std.exp() * noise)

    def worth(self, latent: Latent, *, generator: torch.Generator | None = None) -> Tensor:
        """The return (B,) that the policy promises from here: the mean of two Qs drawn by lot."""
        z = latent["z"]
        act = self.pi(z).float().softmax(-1) if self.choices else self.propose(latent, generator=generator)
        return self._expected_q(self.qs, z, act, self._pair(generator)).mean(0)

    def planner(self) -> MPPI:
        """MPPI through this model, from its own policy and towards its own values."""
        bf16 = use_bf16("auto", PRODUCTS, self.device)
        return MPPI(self, self.cfg.planner(self.actions), self.propose, self.worth, bf16)

    def act(
        self,
        latent: Latent,
        *,
        explore: bool,
        generator: torch.Generator | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        """Encoded actions (N, A) for N rows, which begin from the plans of the call before unless they are `first`."""
        last = self._guess if self._guess is not None and len(self._guess) == len(latent["z"]) else None
        act, self._guess = self.planner().plan(latent, last, first, explore=explore, generator=generator)
        return act

    def loss(self, batch: Batch) -> LossOutput:
        """All losses of windows of T steps; they reach weights of their own: the model's, the policy's, the probe's.

        A window counts as far as its first episode goes. Were all windows inside one episode, as published, its end
        would be seen at the end of dreams only, and the values of what the encoder makes of those frames, which
        targets are made of, would not be learned.

        The published code steps the model's optimizer first and shows the policy the Qs after it; here all weights
        step at once, so that the policy sees the Qs from before. The scale of values moves in train mode only.
        """
        cfg, act, term = self.cfg, batch.act, batch.term.float()
        B, T, _ = act.shape
        known = batch.first[:, 1:].cumsum(1).eq(0).float()  # (B, T) steps, and the frames that they lead to
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
        bins = self._q_bins(self.qs, past, act, drop=self.training)  # (K, B, T, bins)
        scales = {"consistency": cfg.consistency_coef, "reward": cfg.reward_coef, "value": cfg.value_coef}
        parts = {
            "consistency": over_time((ahead - next_z).square().mean(-1) * known, rho),
            "reward": over_time(self.two_hot.loss(self.reward(torch.cat([past, act], -1)), batch.rew) * known, rho),
            "value": over_time(self.two_hot.loss(bins, target.expand(len(bins), -1, -1)).mean(0) * known, rho),
        }
        if self.termination is not None:  # Not weighed by rho, as published.
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
        """The slow Qs follow the quick ones."""
        with torch.no_grad():
            for slow, quick in zip(self.slow_qs.parameters(), self.qs.parameters(), strict=True):
                slow.lerp_(quick, self.cfg.tau)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """For Adam: a slower encoder, and the policy and the probe with gradient norms of their own to be clipped."""
        apart = {"pi": {"lr": lr, "eps": 1e-5, "clip": "policy"}, "decoder": {"lr": lr, "clip": "probe"},
                 "encoder": {"lr": lr * self.cfg.enc_lr_scale, "clip": "model"}}  # fmt: skip
        groups = [{"params": list(self.get_submodule(name).parameters()), **facts} for name, facts in apart.items()]
        rest = [p for name, p in self.named_parameters() if p.requires_grad and name.partition(".")[0] not in apart]
        return [*groups, {"params": rest, "lr": lr, "clip": "model"}]

    @torch.no_grad()
    def _td_target(self, next_z: Tensor, rew: Tensor, term: Tensor) -> Tensor:
        """What a step earns and the lesser of two slow Qs promises after it, (B, T)."""
        drawn = self._policy(next_z)
        q = self._expected_q(self.slow_qs, next_z, drawn.act, self._pair()).amin(0)
        return rew + self.cfg.discount * (1 - term) * q

    def _policy_loss(self, zs: Tensor, rho: Tensor, known: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the policy should raise: the mean of two frozen Qs, in units of their spread, and its entropy.

        Of latents (B, T+1, L), as far as they are `known`.

        For choices the best such policy is known, exp(Q / (weight of the entropy * spread)), and it is learned
        by cross-entropy: the gradient of the expected Q is gone where the policy has become sure, right or wrong.
        """
        drawn, how = self._policy(zs), {"frozen": True, "drop": self.training}
        if self.choices:
            each = self._q_of_choices(self.qs, zs, self._pair(), **how).mean(0)
            q = (each * drawn.act).sum(-1)
            self._follow_spread(q)
            best = (each.detach() / (self.cfg.choice_entropy_coef * self.value_scale)).softmax(-1)
            losses = -(best * drawn.log_chances).sum(-1)
        else:
            q = self._expected_q(self.qs, zs, drawn.act, self._pair(), **how).mean(0)
            self._follow_spread(q)
            losses = -(self.cfg.entropy_coef * drawn.scaled_entropy + q / self.value_scale)
        metrics = {"entropy": drawn.entropy[:, 0].mean(), "q": q[:, 0].mean(), "value_scale": self.value_scale.clone()}
        return over_time(losses * known, rho), {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def _follow_spread(self, q: Tensor) -> None:
        """Move the scale of values towards the spread of q (B, T) at the first steps, in train mode."""
        if self.training:
            low, high = torch.quantile(q[:, 0], torch.tensor([0.05, 0.95], device=q.device))
            self.value_scale.lerp_((high - low).clamp(min=1.0), self.cfg.tau)

    def _policy(self, z: Tensor) -> Drawn:
        out = self.pi(z).float()
        if self.choices:
            probs = out.softmax(-1)
            return Drawn(probs, entropy(probs), entropy(probs), out.log_softmax(-1))
        mean, log_std = self._gaussian(out)
        noise = torch.randn_like(mean)
        act = torch.tanh(mean + log_std.exp() * noise)
        log_prob = gaussian_log_prob(noise, log_std)
        # The published loss has the entropy of the normal, before tanh, times the dimensions of action: it scales the
        # entropy by (dimensions * normal's log-probability) / (log-probability after tanh), and the tanh cancels.
        return Drawn(act, squash_correction(act) - log_prob, -log_prob * self.actions, noise.new_empty(0))

    def _gaussian(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the deviation before tanh, of what `pi` gives."""
        low, high = self.cfg.log_std_min, self.cfg.log_std_max
        mean, raw = out.chunk(2, dim=-1)
        return mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1)

    def _pair(self, generator: torch.Generator | None = None) -> Tensor:
        """Two Qs by lot."""
        return torch.randperm(self.cfg.num_q_networks, generator=generator, device=self.device)[:2]

    def _expected_q(self, qs: QEnsemble, z: Tensor, act: Tensor, members: Tensor, **how: bool) -> Tensor:
        """Q (2, ...) of drawn actions, or expected over the chances of choices; all in `act` (..., A)."""
        if self.choices:
            return (self._q_of_choices(qs, z, members, **how) * act).sum(-1)
        return self.two_hot.mean(qs(torch.cat([z, act], -1), members, **how))

    def _q_of_choices(self, qs: QEnsemble, z: Tensor, members: Tensor, **how: bool) -> Tensor:
        """Q (2, ..., A) of every choice."""
        out: Tensor = qs(z, members, **how)
        return self.two_hot.mean(out.unflatten(-1, (self.actions, -1)))

    def _q_bins(self, qs: QEnsemble, z: Tensor, act: Tensor, **how: bool) -> Tensor:
        """Logits (K, ..., bins) of actions (..., A) that were taken."""
        out: Tensor = qs(z if self.choices else torch.cat([z, act], -1), **how)
        if not self.choices:
            return out
        bins: Tensor = out.unflatten(-1, (self.actions, -1))
        return bins.take_along_dim(act.argmax(-1)[None, ..., None, None], -2).squeeze(-2)

    def _seen(self, obs: Tensor) -> Tensor:
        """Observations (B, ...) as the encoder takes them: vectors as they are, frames small and around zero."""
        if self.frames is None:
            return obs.float()
        x = resized(to_network(obs).float(), FRAME, FRAME) - 0.5
        return x.to(self.encoder[0].weight.dtype)  # type: ignore[arg-type]

    def _shown(self, seen: Tensor) -> Tensor:
        """What the probe is to give back."""
        return symlog(seen) if self.frames is None else seen


def vector_encoder(cfg: TDMPC2Config, space: gym.Space[Any]) -> nn.Sequential:
    """For a Box of vectors."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise ConfigurationError(
            f"tdmpc2 needs a Box of vectors, or one uint8 frame of 1 or 3 channels, got {space}; "
            "flatten the vector, or make frames with Real-* or make_real"
        )
    return mlp([space.shape[0], *(cfg.num_hidden_layers - 1) * [cfg.enc_dim], cfg.latent_dim], cfg.simnorm_dim)


def conv_encoder(cfg: TDMPC2Config, channels: int) -> nn.Sequential:
    """For frames (B, C, 64, 64), as published; a latent of another width than its output's gets a layer onto it."""
    num = cfg.num_channels
    convs: list[nn.Module] = []
    for sees, kernel, stride in ((channels, 7, 2), (num, 5, 2), (num, 3, 2), (num, 3, 1)):
        convs += [nn.Conv2d(sees, num, kernel, stride), nn.ReLU()]
    flat = 16 * num
    onto = [] if flat == cfg.latent_dim else [Small(flat, cfg.latent_dim)]
    return nn.Sequential(*convs[:-1], nn.Flatten(), *onto, SimNorm(cfg.simnorm_dim))


def conv_decoder(cfg: TDMPC2Config, channels: int) -> nn.Sequential:
    """The probe for frames, (B, L) to (B, C, 64, 64)."""
    num = 2 * cfg.num_channels
    layers: list[nn.Module] = [Small(cfg.latent_dim, 16 * num), nn.Unflatten(1, (num, 4, 4))]
    for sees, gives in ((num, num), (num, num // 2), (num // 2, num // 4), (num // 4, channels)):
        layers += [nn.SiLU(), nn.ConvTranspose2d(sees, gives, 4, 2, 1)]
    return nn.Sequential(*layers)


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Log-density (...) of draws mean + std * noise (..., A) under their normal."""
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def squash_correction(act: Tensor) -> Tensor:
    """What log-densities (...) lose where tanh gave the actions (..., A)."""
    return (F.relu(1 - act.square()) + 1e-6).log().sum(-1)


def over_time(losses: Tensor, rho: Tensor) -> Tensor:
    """Mean over rows and steps of losses (B, T), step t weighed by rho[t]."""
    return (losses.mean(0) * rho[: losses.shape[1]]).mean()


def shift(frames: Tensor, pad: int = 3) -> Tensor:
    """Frames (B, C, H, W), each moved by up to `pad` pixels, its border repeated (Yarats et al. 2021)."""
    B, _, H, W = frames.shape
    by = torch.randint(-pad, pad + 1, (2, B, 1), device=frames.device)
    rows = (torch.arange(H, device=frames.device) + by[0]).clamp(0, H - 1)
    cols = (torch.arange(W, device=frames.device) + by[1]).clamp(0, W - 1)
    index = torch.arange(B, device=frames.device)[:, None, None]
    return frames.movedim(1, -1)[index, rows[:, :, None], cols[:, None, :]].movedim(-1, 1)


def resized(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames (B, C, H, W) at another size."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    return F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
