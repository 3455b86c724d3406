"""Encoders and decoder of TD-MPC2, and what frames go through before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_agents.errors import ConfigurationError
from wm_agents.models.tdmpc2_layers import SimNorm, Small, Spread, mlp

if TYPE_CHECKING:
    from wm_agents.models.tdmpc2 import TDMPC2Config


def vector_encoder(cfg: TDMPC2Config, space: gym.Space[Any]) -> nn.Sequential:
    """The encoder for a Box of vectors."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise ConfigurationError(
            f"tdmpc2 needs a Box of vectors, or a uint8 frame with 1 or 3 channels, got {space}; "
            "flatten the observation, or create frames with Real-* or make_real"
        )
    return mlp([space.shape[0], *(cfg.num_hidden_layers - 1) * [cfg.enc_dim], cfg.latent_dim], cfg.simnorm_dim)


def conv_encoder(cfg: TDMPC2Config, channels: int) -> nn.Sequential:
    """The encoder for frames (B, C, 64, 64), as published; an extra layer adapts its output to the latent
    width."""
    num = cfg.num_channels
    convs: list[nn.Module] = []
    for sees, kernel, stride in ((channels, 7, 2), (num, 5, 2), (num, 3, 2), (num, 3, 1)):
        convs += [nn.Conv2d(sees, num, kernel, stride), nn.ReLU()]
    flat = 16 * num
    onto: nn.Module = Spread(cfg.simnorm_dim)
    if flat != cfg.latent_dim:
        onto = Small(flat, cfg.latent_dim)
    return nn.Sequential(*convs[:-1], nn.Flatten(), onto, SimNorm(cfg.simnorm_dim))


def conv_decoder(cfg: TDMPC2Config, channels: int) -> nn.Sequential:
    """The probe for frames, from (B, L) to (B, C, 64, 64)."""
    num = 2 * cfg.num_channels
    layers: list[nn.Module] = [Small(cfg.latent_dim, 16 * num), nn.Unflatten(1, (num, 4, 4))]
    for sees, gives in ((num, num), (num, num // 2), (num // 2, num // 4), (num // 4, channels)):
        layers += [nn.SiLU(), nn.ConvTranspose2d(sees, gives, 4, 2, 1)]
    return nn.Sequential(*layers)


def shift(frames: Tensor, pad: int = 3) -> Tensor:
    """Random shift of frames (B, C, H, W) by up to `pad` pixels, with repeated borders (Yarats et al.
    2021)."""
    B, _, H, W = frames.shape
    by = torch.randint(-pad, pad + 1, (2, B, 1), device=frames.device)
    rows = (torch.arange(H, device=frames.device) + by[0]).clamp(0, H - 1)
    cols = (torch.arange(W, device=frames.device) + by[1]).clamp(0, W - 1)
    index = torch.arange(B, device=frames.device)[:, None, None]
    return frames.movedim(1, -1)[index, rows[:, :, None], cols[:, None, :]].movedim(-1, 1)


def resized(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize frames (B, C, H, W)."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    return F.interpolate(frames, (height, width), mode="bilinear", antialias=True)
