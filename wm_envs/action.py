"""Encode actions of any space as flat vectors in [-1, 1], and decode them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[Any]


def act_dim(space: gym.Space[Any]) -> int:
    """Width of the encoded vector of one action."""
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
        f"actions must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}; use a wrapper to flatten them"
    )


def encode_action(space: gym.Space[Any], act: Array) -> NDArray[np.float32]:
    """Encode actions (N, *space.shape) as float32 (N, act_dim).

    Box actions are clipped to their bounds and scaled to [-1, 1], discrete actions become concatenated
    one-hot vectors, bits become -1 and +1.

    Raises:
        ValueError: wrong shape or dtype, NaN or infinity, or a discrete action outside the space.
    """
    width = act_dim(space)
    shape = space.shape or ()
    if act.ndim == 0 or act.shape[1:] != shape:
        raise ValueError(f"act must be (N, {', '.join(map(str, shape))}) for {space}, got {act.shape}")
    if isinstance(space, spaces.Box):
        return _scale(space, act).reshape(-1, width)
    if isinstance(space, spaces.MultiBinary):
        _check_choice(space, act, np.zeros(shape, np.int64), np.full(shape, 2))
        return (2 * act.astype(np.float32) - 1).reshape(-1, width)
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete), space
    counts = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)
    start = np.asarray(space.start)
    _check_choice(space, act, start, counts)
    # Discrete action k of a row sets column offset[k] + action.
    offset = np.cumsum(counts) - counts.ravel()
    columns = (act.astype(np.int64) - start).reshape(len(act), -1) + offset
    hot = np.zeros((len(act), width), np.float32)
    np.put_along_axis(hot, columns, 1, axis=1)
    return hot


def decode_action(space: gym.Space[Any], act: Array) -> Array:
    """Decode vectors (N, act_dim) to the env's own actions (N, *space.shape), the inverse of `encode_action`.

    Box actions are clipped to their bounds, discrete actions take the largest entry, bits are 1 above 0.
    """
    width = act_dim(space)
    if act.ndim != 2 or act.shape[1] != width:
        raise ValueError(f"act must be (N, {width}) for {space}, got {act.shape}")
    shape = (len(act), *(space.shape or ()))
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return clip_action(space, low + 0.5 * (act.reshape(shape).astype(np.float64) + 1) * (high - low))
    if isinstance(space, spaces.MultiBinary):
        return (act.reshape(shape) > 0).astype(space.dtype)
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start + act.argmax(1), space.dtype)
    assert isinstance(space, spaces.MultiDiscrete), space
    parts = np.split(act, np.cumsum(space.nvec.ravel())[:-1], axis=1)
    best = np.stack([part.argmax(1) for part in parts], 1).reshape(shape)
    return np.asarray(space.start + best, space.dtype)


def clip_action(space: spaces.Box, act: Array) -> Array:
    """Clip actions (N, *space.shape) in the env's own units to their bounds; integer spaces round them."""
    own = np.clip(act, space.low, space.high)
    if space.dtype.kind in "iu":
        own = own.round()
    return own.astype(space.dtype, copy=False)


def _scale(space: spaces.Box, act: Array) -> NDArray[np.float32]:
    if act.dtype.kind not in "fiu":
        raise ValueError(f"act must be numeric for {space}, got dtype {act.dtype}")
    if not np.isfinite(act).all():
        raise ValueError(f"act must be finite for {space}, got NaN or infinity; the policy has diverged")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    span = np.where(high > low, high - low, 1)
    unit: NDArray[np.float32] = np.clip(2 * (act - low) / span - 1, -1, 1).astype(np.float32)
    return unit


def _check_choice(space: gym.Space[Any], act: Array, start: Array, counts: Array) -> None:
    if act.dtype.kind not in "iub":
        raise ValueError(f"act must be integers for {space}, got dtype {act.dtype}")
    if ((act < start) | (act >= start + counts)).any():
        raise ValueError(f"act must be in {space}, got values from {act.min()} to {act.max()}")
