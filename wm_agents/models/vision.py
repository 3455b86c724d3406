"""V of V-M-C: a VAE that encodes frames, or the identity for vectors (Ha & Schmidhuber 2018)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_agents.models.frames import to_network

MOVED = 0.05
"""Minimum difference from the median frame that counts as motion, relative to the range of a pixel."""
MEDIAN_OF = 1024
"""Minimum number of frames for the median; at most twice as many are used."""
SMALL = 0.1
"""Share of the pixels of a frame. If more pixels move, as in a title screen, the weight of each is reduced in
proportion."""
DRAWN_AT_ONCE = 256
"""Number of frames decoded at a time; the fastest value from 32 to 1,024 (docs/log.md)."""


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
        self.encoder = _Encoder(img_channels, latent_size, variant, size)
        self.decoder = _Decoder(img_channels, latent_size, variant, size)
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


class _Encoder(nn.Module):
    """Four convolutions of stride 2, then mu and logsigma."""

    def __init__(self, img_channels: int, latent_size: int, variant: str, size: int) -> None:
        super().__init__()
        width, pad, side = 16, 1, size // 16
        if variant == "paper":
            width, pad, side = 32, 0, 2
        dims = [img_channels, width, 2 * width, 4 * width, 8 * width]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 4, stride=2, padding=pad) for i, o in pairwise(dims))
        self.fc_mu = nn.Linear(dims[-1] * side * side, latent_size)
        self.fc_logsigma = nn.Linear(dims[-1] * side * side, latent_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        return self.fc_mu(x), self.fc_logsigma(x).clamp(-8, 4)


class _Decoder(nn.Module):
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
        if still is None:
            return torch.sigmoid(x)
        return still + x

    def draw(self, z: Tensor, still: Tensor | None) -> Tensor:
        """Frames (B, S, S, C) uint8."""
        return _to_levels(self(z, still)).permute(0, 2, 3, 1).contiguous()


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
            if not bound.is_floating_point():
                bound = bound.float()
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


def to_input(obs: Tensor) -> Tensor:
    """The input of V: frames as float (B, C, H, W) in [0, 1], vectors as float32."""
    if obs.ndim == 4:
        return to_network(obs)
    return obs.float()


def _to_levels(image: Tensor) -> Tensor:
    """Convert [0, 1] to uint8 from 0 to 255; overwrites `image`."""
    levels = image.float().clamp_(0, 1).mul_(255).round_()
    return levels.to(torch.int32).to(torch.uint8)  # Takes half as long as a single conversion.


def kl_divergence(mu: Tensor, logsigma: Tensor) -> Tensor:
    """KL from N(mu, sigma) to N(0, 1), summed over z: (B,)."""
    return -0.5 * (1 + 2 * logsigma - mu.square() - (2 * logsigma).exp()).sum(-1)


def conv_vae_loss(recon: Tensor, x: Tensor, mu: Tensor, logsigma: Tensor) -> Tensor:
    """Squared error plus KL, both summed over everything: a scalar, equal to the error alone at mu = logsigma = 0."""
    return F.mse_loss(recon, x, reduction="sum") + kl_divergence(mu, logsigma).sum()
