"""A batch of training windows."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from wm_agents.errors import did_you_mean
from wm_envs.world_model import Latent

_ALIASES = {"actions": "act", "rewards": "rew", "terminations": "term"}


@dataclass(frozen=True)
class Batch:
    """B windows of T steps and T+1 frames: obs[t], act[t] -> rew[t], obs[t+1]. Supports `batch["obs"]`."""

    obs: Tensor
    """(B, T+1, *obs_shape) in the dtype of the env."""
    act: Tensor
    """(B, T, A) float32, encoded."""
    rew: Tensor
    """(B, T) float32."""
    term: Tensor
    """(B, T) bool: the step terminated its episode."""
    first: Tensor
    """(B, T+1) bool: the frame is the first of an episode. If first[t+1], step t is padding and all zeros."""
    last: Tensor
    """(B, T+1) bool: the frame is the last of its episode, terminated or truncated."""
    latent: Latent | None = None
    """Stored latents of frame 0, leaves (B, ...); zeros if not written, None if the buffer has no latents."""
    index: Tensor | None = None
    """(B, T+1) int64: positions of the frames in the buffer, for `write_latents`."""

    def __getitem__(self, name: str) -> Any:
        """A field by its name, or by its long name: actions, rewards, terminations."""
        known = [f.name for f in fields(self)]
        if _ALIASES.get(name, name) not in known:
            raise KeyError(f"a batch has no {name!r}{did_you_mean(name, [*known, *_ALIASES], cutoff=0.0)}")
        return getattr(self, _ALIASES.get(name, name))

    def to(self, device: torch.device | str) -> Batch:
        """Copy to another device."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        latent = None
        if self.latent is not None:
            latent = {key: leaf.to(device) for key, leaf in self.latent.items()}
        return replace(self, latent=latent, **moved)
