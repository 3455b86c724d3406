"""Actions of any space as the flat vector in [-1, 1] that models take in."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


def act_dim(space: gym.Space[Any]) -> int:
    """Width of the vector that `encode_action` makes of one action."""
    if isinstance(space, spaces.Box):
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(f"Box actions need finite bounds, got {space}; wrap the env in RescaleAction")
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(np.sum(space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return int(np.prod(space.shape))
    raise ValueError(
        f"actions must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}; flatten them with a wrapper"
    )


def encode_action(space: gym.Space[Any], act: NDArray[np.generic]) -> NDArray[np.float32]:
    """Turn actions (N, *space.shape) into float32 (N, act_dim).

    Box is scaled from its bounds to [-1, 1], choices become one-hots side by side, bits become -1 and +1.
    """
    shape = space.shape or ()
    if act.shape[1:] != shape:
        raise ValueError(f"act must be (N, {', '.join(map(str, shape))}) for {space}, got {act.shape}")
    num = len(act)
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        unit = (act.astype(np.float32) - low) / (high - low)
        flat: NDArray[np.float32] = np.clip(2 * unit - 1, -1, 1).reshape(num, act_dim(space))
        return flat
    if isinstance(space, spaces.Discrete):
        return np.eye(act_dim(space), dtype=np.float32)[act.astype(np.int64) - int(space.start)]
    if isinstance(space, spaces.MultiDiscrete):
        choices = (act - space.start).reshape(num, -1).astype(np.int64)
        hots = [np.eye(int(n), dtype=np.float32)[c] for n, c in zip(space.nvec.ravel(), choices.T, strict=True)]
        return np.concatenate(hots, axis=1)
    if isinstance(space, spaces.MultiBinary):
        return (2 * act.astype(np.float32) - 1).reshape(num, -1)
    raise ValueError(f"unsupported action space {space}")
