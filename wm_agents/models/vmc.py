"""V-M-C of Ha & Schmidhuber, "World Models" (2018): V is a VAE that encodes frames, M an MDN-RNN that predicts them.

`ConvVAE`, `MDRNN` and `MDRNNCell` are the parts with the usual signatures; `VMC` joins them into a `WorldModel`. As in
the paper, feat[t] = [z[t], h[t]], where h[t] depends on (z, act) up to t - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self  # Comes with torch; `typing` has it from Python 3.11 on.

from wm_agents.errors import strict
from wm_agents.models.config import ELSEWHERE, WorldModelConfig
from wm_agents.models.cpu_kernels import RowStep, draw_by_component, gains_by_component, is_dream
from wm_agents.models.frames import to_network
from wm_agents.models.loss import LossOutput
from wm_agents.models.model import Model
from wm_envs.fields import at_least
from wm_envs.frames import frame_shape
from wm_envs.world_model import Generator, Latent, Step, draw_normal

if TYPE_CHECKING:
    from wm_agents.data.replay import Batch

Mixture = Literal["joint", "per_dim"]


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
    hidden: int = field(default=256, metadata=at_least(1))
    mixtures: int = field(default=5, metadata=at_least(1))
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
        return self if frame_shape(obs_space) is not None else self.replace(vision="identity")


def sizes(cfg: VMCConfig) -> tuple[str, int, int, int, str, str, bool]:
    """The settings on which the shapes of the weights depend; the others affect only training."""
    return (
        cfg.vision,
        cfg.z_dim,
        cfg.hidden,
        cfg.mixtures,
        cfg.mixture,
        cfg.rew_head,
        cfg.motion_weight > 0,
    )


MOVED = 0.05
"""Minimum difference from the median frame that counts as motion, relative to the range of a pixel."""
MEDIAN_OF = 1024
"""Minimum number of frames for the median; at most twice as many are used."""
SMALL = 0.1
"""Share of the pixels of a frame. If more pixels move, as in a title screen, the weight of each is reduced in
proportion."""
DRAWN_AT_ONCE = 256
"""Number of frames decoded at a time; the fastest value from 32 to 1,024 (docs/log.md)."""
MAX_CLASSES = 16
"""Maximum number of different rewards of `classes`."""
RARE_WEIGHT = 3.0
"""Weight of all rewards except the most common one in the cross-entropy. Dreams correct the predicted probabilities
for it."""


class VMC(Model):
    """The world model: latent {z (B, Z), h (B, H), c (B, H)}, feat [z, h]."""

    family: ClassVar[str] = "vmc"
    cfg: VMCConfig

    def __init__(self, cfg: VMCConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> None:
        super().__init__(cfg, obs_space, act_space)
        self.vision = make_vision(cfg, obs_space)
        self.z_dim = self.vision.latent_size
        rewards = 1 if cfg.rew_head == "mse" else MAX_CLASSES
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
            raise ValueError(f"temperature must be 0 (the likeliest future) or above, got {temperature}")
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
        return obs if tuple(obs.shape[1:]) == self.obs_space.shape else obs.movedim(-1, 1).contiguous()

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


def to_input(obs: Tensor) -> Tensor:
    """The input of V: frames as float (B, C, H, W) in [0, 1], vectors as float32."""
    return to_network(obs) if obs.ndim == 4 else obs.float()


def make_vision(cfg: VMCConfig, obs_space: gym.Space[Any]) -> ConvVAE | Identity:
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


class ConvVAE(nn.Module):
    """V: encodes images (B, C, S, S) in [0, 1] to a Gaussian posterior over z, and decodes z.

    `paper` is the published network, with 4,348,547 parameters for z = 32. `small` has half its width and padded
    convolutions.
    """

    def __init__(
        self,
        img_channels: int = 3,
        latent_size: int = 32,
        variant: Literal["paper", "small"] = "paper",
        size: int = 64,
        still: bool = False,
    ) -> None:
        """Create V. With `still`, it encodes and decodes differences from a background frame `still` (C, S, S)."""
        super().__init__()
        if variant not in ("paper", "small"):
            raise ValueError(f"variant must be 'paper' or 'small', got {variant!r}")
        if variant == "paper" and size != 64:
            raise ValueError(f"variant='paper' needs images of 64x64 pixels, got {size}x{size}; use variant='small'")
        if variant == "small" and size not in (32, 64, 96):
            raise ValueError(
                f"variant='small' needs images of 32, 64 or 96 pixels, got {size}; set size in the preprocessing"
            )
        self.latent_size = latent_size
        self.encoder = Encoder(img_channels, latent_size, variant, size)
        self.decoder = Decoder(img_channels, latent_size, variant, size)
        self.still: Tensor | None
        self.register_buffer("still", torch.zeros(img_channels, size, size) if still else None)
        # Weight of the motion of each pixel in the loss; used only in training.
        self.rarity: Tensor
        self.register_buffer("rarity", torch.ones(size, size), persistent=False)
        if still:
            # Start with little noise in z: with sigma 1, V ignores small objects for a long time.
            nn.init.constant_(self.encoder.fc_logsigma.bias, -3.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map images to (recon, mu, logsigma), with z sampled from the posterior."""
        mu, logsigma = self.encode(x)
        return self.decoder(mu + logsigma.exp() * torch.randn_like(mu), self.still), mu, logsigma

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logsigma), each (B, latent_size)."""
        return cast(tuple[Tensor, Tensor], self.encoder(x if self.still is None else x - self.still))

    def watch(self, frames: Tensor) -> None:
        """Set the background from frames (N, S, S, C), if it is not set, and how often each pixel moves.

        `rarity`: pixels that move more often than typical ones get less weight. Otherwise paddles, which always move in
        the same columns, would outweigh a ball, which is rarely at any one pixel.
        """
        if self.still is None:
            return
        if not self.still.any():
            some = frames[:: max(len(frames) // MEDIAN_OF, 1)].cpu().numpy()
            median = torch.from_numpy(np.median(some, axis=0).astype(some.dtype))
            self.still.copy_(to_input(median[None])[0])
        rate = sum((self.moving(to_input(x)).sum((0, 1)) for x in frames.split(512)), torch.zeros(())) / len(frames)
        typical = rate[rate > 0].median() if rate.any() else rate.new_ones(())
        self.rarity.copy_((typical / rate).clamp(max=1))

    def attention(self, x: Tensor) -> Tensor:
        """The weight of the motion of each pixel, from 0 to 1: (B, 1, S, S)."""
        moved = self.moving(x)
        share = moved.mean((2, 3), keepdim=True)
        return moved * self.rarity * (SMALL / share.clamp(min=SMALL))

    def moving(self, x: Tensor) -> Tensor:
        """1 where an image differs from the background, else 0: (B, 1, S, S)."""
        return ((x - cast(Tensor, self.still)).abs().amax(1, keepdim=True) > MOVED).float()

    def decode_obs(self, z: Tensor) -> Tensor:
        """Decode z to uint8 frames (B, S, S, C), a few rows at a time, so that activations fit into a CPU cache."""
        return torch.cat([self.decoder.draw(part, self.still) for part in z.split(DRAWN_AT_ONCE)])


class Encoder(nn.Module):
    """Four convolutions of stride 2, then mu and logsigma."""

    def __init__(self, img_channels: int, latent_size: int, variant: str, size: int) -> None:
        super().__init__()
        width, pad = (32, 0) if variant == "paper" else (16, 1)
        dims = [img_channels, width, 2 * width, 4 * width, 8 * width]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 4, stride=2, padding=pad) for i, o in pairwise(dims))
        side = 2 if variant == "paper" else size // 16
        self.fc_mu = nn.Linear(dims[-1] * side * side, latent_size)
        self.fc_logsigma = nn.Linear(dims[-1] * side * side, latent_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        return self.fc_mu(x), self.fc_logsigma(x).clamp(-8, 4)


class Decoder(nn.Module):
    """z back to an image in [0, 1] by four transposed convolutions."""

    def __init__(self, img_channels: int, latent_size: int, variant: str, size: int) -> None:
        super().__init__()
        if variant == "paper":
            widths, kernels, pad, side = [1024, 128, 64, 32], [5, 5, 6, 6], 0, 1
        else:
            widths, kernels, pad, side = [128, 64, 32, 16], [4, 4, 4, 4], 1, size // 16
        self.shape = (widths[0], side, side)
        self.fc = nn.Linear(latent_size, widths[0] * side * side)
        self.deconvs = nn.ModuleList(
            nn.ConvTranspose2d(i, o, k, stride=2, padding=pad)
            for i, o, k in zip(widths, [*widths[1:], img_channels], kernels)
        )

    def forward(self, z: Tensor, still: Tensor | None = None) -> Tensor:
        """Images (B, C, S, S) in [0, 1]; with `still`, `still` plus the output, not clipped."""
        x = F.relu(self.fc(z)).unflatten(1, self.shape).contiguous(memory_format=torch.channels_last)
        for deconv in self.deconvs[:-1]:
            x = F.relu(deconv(x))
        x = cast(Tensor, self.deconvs[-1](x))
        return torch.sigmoid(x) if still is None else still + x

    def draw(self, z: Tensor, still: Tensor | None) -> Tensor:
        """Frames (B, S, S, C) uint8."""
        return _to_levels(self(z, still)).permute(0, 2, 3, 1).contiguous()


def _to_levels(image: Tensor) -> Tensor:
    """Convert [0, 1] to uint8 from 0 to 255; overwrites `image`."""
    levels = image.float().clamp_(0, 1).mul_(255).round_()
    return levels.to(torch.int32).to(torch.uint8)  # Takes half as long as a single conversion.


class Identity(nn.Module):
    """V for vectors: z is the normalised observation, and nothing is trained."""

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__()
        self.latent_size = dim = space.shape[0]
        self.dtype = torch.from_numpy(space.low).dtype
        self.mean: Tensor
        self.std: Tensor
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        for name in ("low", "high"):
            bound = torch.from_numpy(getattr(space, name).copy())
            bound = bound if bound.is_floating_point() else bound.float()
            self.register_buffer(name, bound, persistent=False)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = (x - self.mean) / self.std
        return mu, torch.full_like(mu, -8.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logsigma = self.encode(x)
        return x, mu, logsigma

    def watch(self, x: Tensor) -> None:
        """Set the units of z from observations (N, D), if they are not set."""
        if not self.mean.any() and (self.std == 1).all():
            self.fit(x)

    def fit(self, x: Tensor) -> None:
        """Set the units of z to the mean and the standard deviation of observations (N, D)."""
        std, mean = torch.std_mean(x.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-3))

    def decode_obs(self, z: Tensor) -> Tensor:
        """Convert z to observations (B, Z) within the bounds and in the dtype of the space."""
        obs = (z * self.std + self.mean).to(self.low.dtype).clamp(self.low, self.high)
        return (obs if self.dtype.is_floating_point else obs.round()).to(self.dtype)


class _MDRNNBase(nn.Module):
    """The common part of the sequence model and the cell: one linear head from the memory to a Gaussian mixture,
    reward and termination."""

    def __init__(
        self,
        latents: int,
        actions: int,
        hiddens: int,
        gaussians: int,
        mixture: Mixture = "joint",
        rewards: int = 1,
    ) -> None:
        """`rewards`: 1 for a reward as one number, or the number of logits of rewards."""
        super().__init__()
        if mixture not in ("joint", "per_dim"):
            raise ValueError(f"mixture must be 'joint' or 'per_dim', got {mixture!r}")
        self.latents, self.actions, self.hiddens, self.gaussians = latents, actions, hiddens, gaussians
        self.mixture, self.rewards = mixture, rewards
        self.choices = 1 if mixture == "joint" else latents
        per_component = 2 * latents + 1 if mixture == "joint" else 3 * latents
        self.num_mixture = per_component * gaussians
        self.gmm_linear = nn.Linear(hiddens, self.num_mixture + rewards + 1)

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError("use MDRNN for sequences or MDRNNCell for single steps")

    def split(self, head: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Split the output (..., D) of the head into mus, sigmas (..., K, Z), logpi (..., K) or (..., K, Z), and its
        last outputs `ends`."""
        k, z = self.gaussians, self.latents
        mus = head[..., : k * z].unflatten(-1, (k, z))
        sigmas = head[..., k * z : 2 * k * z].unflatten(-1, (k, z)).clamp(-7, 5).exp()
        logits = head[..., 2 * k * z : self.num_mixture]
        if self.mixture == "per_dim":
            logits = logits.unflatten(-1, (k, z))
        logpi = logits.log_softmax(dim=-1 if self.mixture == "joint" else -2)
        return mus, sigmas, logpi, *self.ends(head[..., self.num_mixture :])

    def ends(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Split the last R + 1 outputs (..., R + 1) of the head into the reward (...), or its logits (..., R), and
        the logit of termination."""
        rew = ends[..., :-1]
        return rew[..., 0] if self.rewards == 1 else rew, ends[..., -1]

    def draw(self, h: Tensor, temperature: float, generator: Generator) -> tuple[Tensor, Tensor]:
        """From the memory (B, H): z' (B, Z) by `sample`, and the outputs of the head for reward and termination (B,
        R + 1)."""
        if self.mixture == "joint" and gains_by_component(h):
            return draw_by_component(self, h, temperature, generator)
        head = self.gmm_linear(h).float()
        return self.sample(head, temperature, generator), head[:, self.num_mixture :]

    def sample(self, head: Tensor, temperature: float, generator: Generator) -> Tensor:
        """Sample z' (B, Z) from the mixture of the head; temperature 0 gives the mean of the most likely component."""
        b, k, z = len(head), self.gaussians, self.latents
        logits = head[:, 2 * k * z : self.num_mixture].view(b, k, self.choices)
        noise = self.noise(b, temperature, generator, head.device)
        index = self.choose(logits, noise, temperature)[:, None].expand(b, 1, z)
        mus, logsigmas = (part.view(b, k, z).gather(1, index)[:, 0] for part in head[:, : 2 * k * z].chunk(2, dim=1))
        return self.spread(mus, logsigmas, noise, temperature)

    def noise(self, num: int, temperature: float, generator: Generator, device: torch.device) -> Tensor | None:
        """Standard normal noise (num, choices + Z) for the choice of components and for z'; None at temperature 0."""
        return draw_normal(num, self.choices + self.latents, generator, device) if temperature > 0 else None

    def choose(self, logits: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """The components (B, choices) for logits (B, K, choices): sampled, or the most likely ones without noise."""
        if noise is None:
            return logits.argmax(1)
        edges = (logits / temperature).softmax(1).cumsum(1)
        chance = torch.special.ndtr(noise[:, None, : self.choices])  # The CDF of a normal sample is uniform.
        return cast(Tensor, (edges < chance).sum(1).clamp(max=self.gaussians - 1))

    def spread(self, mus: Tensor, logsigmas: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
        """z' (B, Z) of components with these means and standard deviations (B, Z); the means without noise."""
        if noise is None:
            return mus
        wider: float = temperature**0.5
        return mus + logsigmas.clamp(-7, 5).exp() * wider * noise[:, self.choices :]


class MDRNN(_MDRNNBase):
    """M over sequences, time-first: p(z[t+1], rew[t], term[t] | z[:t+1], act[:t+1])."""

    def __init__(
        self,
        latents: int,
        actions: int,
        hiddens: int,
        gaussians: int,
        mixture: Mixture = "joint",
        rewards: int = 1,
    ) -> None:
        super().__init__(latents, actions, hiddens, gaussians, mixture, rewards)
        self.rnn = nn.LSTM(latents + actions, hiddens)

    def forward(self, actions: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Map actions (T, B, A) and latents (T, B, Z) to mus, sigmas (T, B, K, Z), logpi (T, B, K), rs and ds (T,
        B); ds is a logit."""
        outs, _ = self.rnn(torch.cat([actions, latents], dim=-1))
        return self.split(self.gmm_linear(outs).float())  # bfloat16 is not precise enough for a mixture.

    def advance(self, z: Tensor, act: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the LSTM with (z, act); updates (h, c), each (B, H)."""
        rnn = self.rnn
        bias = cast(Tensor, rnn.bias_ih_l0) + cast(Tensor, rnn.bias_hh_l0)
        # Two products are faster than one with joined weights, whose inner width would be odd.
        gates = F.linear(torch.cat([act, z], dim=1), cast(Tensor, rnn.weight_ih_l0), bias)  # bfloat16 under autocast.
        gates.addmm_(h.to(gates.dtype), cast(Tensor, rnn.weight_hh_l0).t().to(gates.dtype))
        i, f, g, o = gates.to(c.dtype).chunk(4, dim=1)
        i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
        c = torch.addcmul(_times_tanh(i, g), f, c)
        return _times_tanh(o, c), c


def _times_tanh(a: Tensor, x: Tensor) -> Tensor:
    """a * tanh(x) as a - 2 a sigmoid(-2 x), because tanh is three times slower than the sigmoid on CPUs without
    AVX-512."""
    return torch.addcmul(a, a, torch.sigmoid(-2 * x), value=-2)


class MDRNNCell(_MDRNNBase):
    """M for single steps; `load_mdrnn` copies the weights of a trained sequence model."""

    def __init__(
        self,
        latents: int,
        actions: int,
        hiddens: int,
        gaussians: int,
        mixture: Mixture = "joint",
        rewards: int = 1,
    ) -> None:
        super().__init__(latents, actions, hiddens, gaussians, mixture, rewards)
        self.rnn = nn.LSTMCell(latents + actions, hiddens)

    def forward(
        self, action: Tensor, latent: Tensor, hidden: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Map actions (B, A), latents (B, Z) and (h, c) to mus, sigmas (B, K, Z), logpi (B, K), r, d (B,) and the
        next (h, c)."""
        h, c = self.rnn(torch.cat([action, latent], dim=1), hidden)
        return (*self.split(self.gmm_linear(h)), (h, c))

    def get_init_hidden(self, num: int) -> tuple[Tensor, Tensor]:
        """The initial memory (h, c), each (num, H)."""
        zeros = torch.zeros(num, self.hiddens, device=self.gmm_linear.weight.device)
        return zeros, zeros.clone()

    def load_mdrnn(self, mdrnn: MDRNN) -> None:
        """Copy the weights of `mdrnn`."""
        self.gmm_linear.load_state_dict(mdrnn.gmm_linear.state_dict())
        self.rnn.load_state_dict({key.removesuffix("_l0"): w for key, w in mdrnn.rnn.state_dict().items()})


def kl_divergence(mu: Tensor, logsigma: Tensor) -> Tensor:
    """KL from N(mu, sigma) to N(0, 1), summed over z: (B,)."""
    return -0.5 * (1 + 2 * logsigma - mu.square() - (2 * logsigma).exp()).sum(-1)


def conv_vae_loss(recon: Tensor, x: Tensor, mu: Tensor, logsigma: Tensor) -> Tensor:
    """Squared error plus KL, both summed over everything: a scalar, equal to the error alone at mu = logsigma = 0."""
    return F.mse_loss(recon, x, reduction="sum") + kl_divergence(mu, logsigma).sum()


def gmm_loss(batch: Tensor, mus: Tensor, sigmas: Tensor, logpi: Tensor, reduce: bool = True) -> Tensor:
    """Negative log-likelihood of `batch` (..., Z) under a mixture with mus and sigmas (..., K, Z).

    logpi (..., K) is one mixture over all dimensions of z; logpi (..., K, Z) is one mixture per dimension. Without
    `reduce` the result is (...).
    """
    unit = (batch.unsqueeze(-2) - mus) / sigmas
    log_prob = -0.5 * unit.square() - sigmas.log() - 0.9189385332046727  # log sqrt(2 pi)
    if logpi.ndim == mus.ndim:
        nll = -torch.logsumexp(logpi + log_prob, dim=-2).sum(-1)
    else:
        nll = -torch.logsumexp(logpi + log_prob.sum(-1), dim=-1)
    return nll.mean() if reduce else nll
