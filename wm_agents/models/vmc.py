"""V-M-C of Ha & Schmidhuber, "World Models" (2018): V is a VAE that encodes frames, M an MDN-RNN that predicts them.

`VMC` joins `ConvVAE` (`models.vision`) and `MDRNN` (`models.mdrnn`) into a `WorldModel`. As in the paper,
feat[t] = [z[t], h[t]], where h[t] depends on (z, act) up to t - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self  # Comes with torch; `typing` has it from Python 3.11 on.

from wm_agents.errors import strict
from wm_agents.models.config import ELSEWHERE, WorldModelConfig
from wm_agents.models.loss import LossOutput
from wm_agents.models.mdrnn import MDRNN, MDRNNCell, Mixture, gmm_loss
from wm_agents.models.mdrnn_kernels import RowStep, is_dream
from wm_agents.models.model import Model
from wm_agents.models.rewards import MAX_CLASSES, RewardClasses
from wm_agents.models.vision import ConvVAE, Identity, conv_vae_loss, kl_divergence, to_input
from wm_envs.fields import at_least
from wm_envs.frames import frame_shape
from wm_envs.noise import Generator
from wm_envs.world_model import Latent, Step

if TYPE_CHECKING:
    from wm_agents.data.batch import Batch

__all__ = ["MDRNN", "VMC", "ConvVAE", "MDRNNCell", "VMCConfig", "conv_vae_loss", "gmm_loss", "sizes"]


@strict(ELSEWHERE)
@dataclass(frozen=True)
class VMCConfig(WorldModelConfig):
    """Sizes and loss weights of a V-M-C model."""

    family: ClassVar[str] = "vmc"
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ci": {"z_dim": 8, "hidden": 32},
        "small": {},
        "paper": {"vision": "paper"},
        "doom": {"vision": "paper", "z_dim": 64, "hidden": 512},
    }

    vision: Literal["small", "paper", "identity"] = "small"
    """Encoder. `small`: a VAE of half the published width, with padding, for CPUs. `paper`: the published VAE, 64
    pixels only. `identity`: for vectors, which are only normalised."""
    z_dim: int = field(default=32, metadata=at_least(1))
    """Size of z, the code of a frame."""
    hidden: int = field(default=256, metadata=at_least(1))
    """Size of h, the state of the recurrent network M."""
    mixtures: int = field(default=5, metadata=at_least(1))
    """Gaussians in the predicted distribution of the next z."""
    mixture: Mixture = "joint"
    """`joint`: all dimensions of z share the choice of the mixture component. `per_dim`: each dimension has its own,
    as in the authors' code."""
    free_bits: float = field(default=0.5, metadata=at_least(0))
    """KL below free_bits * z_dim is not reduced further (kl_tolerance in the authors' code)."""
    rew_weight: float = field(default=0.5, metadata=at_least(0))
    """Weight of the squared error of the normalised reward. With a weight of 2, M overfits to the rewards of the
    training data (docs/log.md)."""
    term_weight: float = field(default=10.0, metadata=at_least(0))
    """Weight of the rare terminal steps in the loss (restart_factor in the authors' code). `cont` is not corrected
    for it: the odds of termination are multiplied by this weight, and the termination threshold of dreams is
    calibrated instead."""
    motion_weight: float = field(default=0.0, metadata=at_least(0))
    """Above 0, V encodes and decodes the difference from the median frame, and errors of moving pixels have up to
    this additional weight; rarely moving pixels have the most. Without it V ignores a ball of two pixels. 0: as
    published."""
    kl_weight: float = field(default=1.0, metadata=at_least(0))
    """Weight of the KL relative to the squared error, which is small for small objects."""
    rew_head: Literal["mse", "classes"] = "mse"
    """`mse`: the reward is one number. `classes`: a probability for each of up to 16 rewards that occur, for games
    with rare points."""

    def fitting(self, obs_space: gym.Space[Any]) -> Self:
        if frame_shape(obs_space) is not None:
            return self
        return self.replace(vision="identity")


SIZES = ("vision", "z_dim", "hidden", "mixtures", "mixture", "rew_head")


def sizes(cfg: VMCConfig) -> dict[str, Any]:
    """The settings on which the shapes of the weights depend; the others affect only training."""
    return {name: getattr(cfg, name) for name in SIZES} | {"motion_weight > 0": cfg.motion_weight > 0}


class VMC(Model):
    """The world model: latent {z (B, Z), h (B, H), c (B, H)}, feat [z, h]."""

    family: ClassVar[str] = "vmc"
    cfg: VMCConfig

    def __init__(self, cfg: VMCConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__(cfg, obs_space, act_space)
        self.vision = _make_vision(cfg, obs_space)
        self.z_dim = self.vision.latent_size
        rewards = MAX_CLASSES
        if cfg.rew_head == "mse":
            rewards = 1
        self.memory = MDRNN(self.z_dim, self.actions, cfg.hidden, cfg.mixtures, cfg.mixture, rewards)
        self.feat_dim = self.z_dim + cfg.hidden
        # Rewards are normalised by their size in the first data.
        self.rew_scale: Tensor
        self.register_buffer("rew_scale", torch.ones(()))
        self.classes = RewardClasses() if cfg.rew_head == "classes" else None

    def initial(self, num: int) -> Latent:
        return {
            key: torch.zeros(num, dim, device=self.device)
            for key, dim in [("z", self.z_dim), ("h", self.cfg.hidden), ("c", self.cfg.hidden)]
        }

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        """Update the latent with a frame. z is the mean of the posterior, so real frames add no noise."""
        obs = self.take_obs(obs)
        h = c = torch.zeros(len(obs), self.cfg.hidden, device=self.device)
        if latent is not None:
            if act is None:
                raise ValueError("encode needs the act that led from latent to obs, got None")
            self.check_act(act, len(obs))
            h, c = self.memory.advance(latent["z"], act, latent["h"], latent["c"])
        if first is not None:
            keep = (~first).float()[:, None]
            h, c = h * keep, c * keep
        mu, _ = self.vision.encode(to_input(obs))
        return {"z": mu.float(), "h": h, "c": c}

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        """Dream one step. The temperature divides the logits and multiplies the variance, as in the authors'
        doomrnn.py."""
        self.check_act(act, len(latent["h"]))
        if temperature < 0:
            raise ValueError(f"temperature must be 0 (the most likely future) or above, got {temperature}")
        memory = RowStep.of(self.memory) if self._is_row(latent["h"]) else self.memory
        h, c = memory.advance(latent["z"], act, latent["h"], latent["c"])
        z, ends = memory.draw(h, temperature, generator)
        rews, term = self.memory.ends(ends)
        rew = rews * self.rew_scale if self.classes is None else self.classes.expected(rews)
        return Step({"z": z, "h": h, "c": c}, rew, torch.sigmoid(-term))

    def _is_row(self, h: Tensor) -> bool:
        return len(h) == 1 and is_dream(h) and self.cfg.mixture == "joint"

    def decode(self, latent: Latent) -> Tensor:
        obs = self.vision.decode_obs(latent["z"])
        # V decodes to (S, S, C).
        if tuple(obs.shape[1:]) == self.obs_space.shape:
            return obs
        return obs.movedim(-1, 1).contiguous()

    def feat(self, latent: Latent) -> Tensor:
        return torch.cat([latent["z"], latent["h"]], dim=1)

    def loss(self, batch: Batch) -> LossOutput:
        """The loss of V on all frames of the windows, and of M on their latents; the gradients of M do not reach V.

        In training mode the first batch sets the units of the data, unless they are set already.
        """
        B, T1, *_ = batch.obs.shape
        if self.training:
            self.settle(batch)
        vision, mu, logsigma = self._see(batch.obs.flatten(0, 1))
        mu, logsigma = (x.detach().float().unflatten(0, (B, T1)) for x in (mu, logsigma))
        # Steps after the first episode end in a window are masked: M would start the next episode with a wrong memory.
        mask = (batch.first[:, 1:].cumsum(1) == 0).float()
        memory = self.memory_loss(mu, logsigma, batch.act, batch.rew, batch.term.float(), mask)
        return LossOutput(vision.loss + memory.loss, vision.components | memory.components, {})

    def settle(self, batch: Batch) -> None:
        """Set the units of V and M from a batch, as `training.fit_vmc` sets them from a dataset."""
        obs, rew = batch.obs.flatten(0, 1), batch.rew.flatten()
        self.vision.watch(obs)
        self.scale_rewards(rew)
        if self.classes is not None:
            self.classes.learn(rew)

    def scale_rewards(self, rew: Tensor) -> None:
        """Set the unit of rewards to the root mean square of the first rewards (N,) that are not all 0.

        The standard deviation would be 0 for a reward of 1 at every step.
        """
        size = rew.double().square().mean().sqrt()
        self.rew_scale.copy_(torch.where((self.rew_scale == 1) & (size > 0), size, self.rew_scale))

    def vision_loss(self, obs: Tensor) -> LossOutput:
        """The loss of V: squared error summed over pixels, plus KL with free bits; mean over the batch."""
        return self._see(obs)[0]

    def _see(self, obs: Tensor) -> tuple[LossOutput, Tensor, Tensor]:
        """The loss of V on observations (N, ...), and the posterior of the observations."""
        x = to_input(obs)
        recon, mu, logsigma = self.vision(x)
        if self.cfg.motion_weight == 0:
            rec = F.mse_loss(recon.float(), x, reduction="sum") / len(x)
        else:
            weight = 1 + self.cfg.motion_weight * cast(ConvVAE, self.vision).attention(x)
            rec = (weight * (recon.float() - x).square()).sum() / len(x)
        kl = kl_divergence(mu.float(), logsigma.float())
        pressed = kl.clamp(min=self.cfg.free_bits * self.z_dim).mean()
        return LossOutput(rec + self.cfg.kl_weight * pressed, {"rec": rec, "kl": kl.mean()}, {}), mu, logsigma

    def memory_loss(
        self, mu: Tensor, logsigma: Tensor, act: Tensor, rew: Tensor, term: Tensor, mask: Tensor
    ) -> LossOutput:
        """The loss of M on windows that start with an empty memory.

        Args:
            mu, logsigma: (B, T + 1, Z) posteriors; z is sampled at each call, as in the paper.
            act: (B, T, A) encoded.
            rew, term, mask: (B, T); mask is 0 after the end of an episode.
        """
        z = mu + logsigma.exp() * torch.randn_like(mu)
        out = self.memory(act.transpose(0, 1), z[:, :-1].transpose(0, 1))
        mus, sigmas, logpi, rews, terms = (x.transpose(0, 1) for x in out)
        num = mask.sum().clamp(min=1)
        nll = (gmm_loss(z[:, 1:], mus, sigmas, logpi, reduce=False) * mask).sum() / num / self.z_dim
        off = (rews - rew / self.rew_scale).square() if self.classes is None else self.classes.loss(rews, rew)
        rew_loss = (off * mask).sum() / num
        weight = mask * (1 + (self.cfg.term_weight - 1) * term)
        bce = (F.binary_cross_entropy_with_logits(terms, term, reduction="none") * weight).sum() / num
        loss = nll + self.cfg.rew_weight * rew_loss + bce
        return LossOutput(loss, {"nll": nll, "rew": rew_loss, "term": bce}, {})


def _make_vision(cfg: VMCConfig, obs_space: gym.Space[Any]) -> ConvVAE | Identity:
    """The V for the observations.

    Raises:
        ValueError: pixels with `identity`, vectors with a convolutional V, or an unsupported image size.
    """
    shape = tuple(obs_space.shape or ())
    if cfg.vision == "identity":
        if not isinstance(obs_space, gym.spaces.Box) or len(shape) != 1:
            raise ValueError(f"vision='identity' needs a Box of vectors, got {obs_space}; use 'small' for pixels")
        return Identity(obs_space)
    frame = frame_shape(obs_space)
    if frame is None or frame[1] != frame[2]:
        raise ValueError(
            f"vision={cfg.vision!r} needs square (S, S, 3) or (S, S, 1) uint8 pixels, got {obs_space}; "
            "set size in the preprocessing, or use 'identity' for vectors"
        )
    return ConvVAE(frame[0], cfg.z_dim, cfg.vision, frame[1], still=cfg.motion_weight > 0)
