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
            raise ValueError(
                f"Box actions need finite bounds, got {space}; set them with a wrapper: "
                f"gymnasium.wrappers.TransformAction(env, lambda act: act, Box(-1, 1, {space.shape}))"
            )
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
    return ActionEncoder(space)(act)


class ActionEncoder:
    """`encode_action` for one space; what depends on the space alone is computed once."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self.space, self.width, self.shape = space, act_dim(space), space.shape or ()
        if isinstance(space, spaces.Box):
            self.low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            self.scale = 2 / np.where(high > self.low, high - self.low, 1)
            return
        counts = np.full(self.shape, 2)
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            counts = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec, np.int64)
        self.start, self.counts = np.asarray(getattr(space, "start", 0), np.int64), counts.astype(np.uint64)
        # Discrete action k of a row sets column offset[k] + action.
        self.offset = np.cumsum(counts) - counts.ravel()

    def __call__(self, act: Array) -> NDArray[np.float32]:
        """Encode actions (N, *space.shape) as float32 (N, act_dim): see `encode_action`."""
        if act.ndim == 0 or act.shape[1:] != self.shape:
            raise ValueError(f"act must be (N, {', '.join(map(str, self.shape))}) for {self.space}, got {act.shape}")
        if isinstance(self.space, spaces.Box):
            return self._scaled(act)
        choice = self._choices(act)
        if isinstance(self.space, spaces.MultiBinary):
            return (2 * choice - 1).astype(np.float32)
        hot = np.zeros((len(act), self.width), np.float32)
        hot.put(choice + self.offset + self.width * np.arange(len(act))[:, None], 1)
        return hot

    def _scaled(self, act: Array) -> NDArray[np.float32]:
        if act.dtype.kind not in "fiu":
            raise ValueError(f"act must be numeric for {self.space}, got dtype {act.dtype}")
        if not np.isfinite(act).all():
            raise ValueError(f"act must be finite for {self.space}, got NaN or infinity; the policy has diverged")
        unit = np.minimum(np.maximum((act - self.low) * self.scale - 1, -1), 1)
        return unit.astype(np.float32).reshape(-1, self.width)

    def _choices(self, act: Array) -> NDArray[np.int64]:
        """Discrete actions or bits counted from 0, flat: (N, K)."""
        if act.dtype.kind not in "iub":
            raise ValueError(f"act must be integers for {self.space}, got dtype {act.dtype}")
        choice = act.astype(np.int64) - self.start
        if np.count_nonzero(choice.astype(np.uint64) >= self.counts):  # What is below 0 becomes very large.
            raise ValueError(f"act must be in {self.space}, got values from {act.min()} to {act.max()}")
        flat: NDArray[np.int64] = choice.reshape(len(act), -1)
        return flat


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
