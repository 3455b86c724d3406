"""Converts between frames of environments and inputs of networks, float (B, C, H, W) in [0, 1]."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from wm_envs.frames import CHANNELS


def to_network(obs: Tensor) -> Tensor:
    """Convert frames (..., H, W, C) or (..., C, H, W) to float (..., C, H, W) in [0, 1]; uint8 is divided by
    255."""
    # The moved view is channels-last in memory, which is fastest for CPU convolutions.
    x = obs
    if obs.shape[-1] in CHANNELS:
        x = obs.movedim(obs.ndim - 1, obs.ndim - 3)
    if x.is_floating_point():
        return x
    return x.float() / 255


def to_frames(x: Tensor, space: gym.Space[Any]) -> Tensor:
    """Convert float (..., C, H, W) to uint8 frames in the layout of `space`."""
    frames = (x.float().clamp(0, 1) * 255).round().to(torch.uint8)
    if tuple(frames.shape[-3:]) == space.shape:
        return frames
    return frames.movedim(x.ndim - 3, x.ndim - 1).contiguous()
