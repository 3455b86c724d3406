"""Episodes given as plain arrays, as other programs store them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm_envs.action import encode_action

Array = NDArray[Any]


def plain_episode(
    obs: Array, actions: Array, rewards: Array, dones: Array | None, terminated: bool | None, action_dim: int
) -> tuple[Array, NDArray[np.float32], Array, bool]:
    """An episode of T steps as observations (T+1, ...), encoded actions (T, A), rewards (T,), and whether it
    terminated.

    The arguments are those of `ReplayBuffer.add_episode`.

    Raises:
        ValueError: the arrays are inconsistent, or not finite.
    """
    rewards = np.asarray(rewards)
    steps = len(rewards) if rewards.ndim else 0
    if steps == 0 or rewards.shape != (steps,):
        raise ValueError(f"rewards must be (T,) with T of at least 1, got {rewards.shape}")
    if len(obs) not in (steps, steps + 1):
        raise ValueError(f"obs must have {steps} or {steps + 1} frames for {steps} rewards, got {len(obs)}")
    if terminated is None:
        terminated = _terminates(dones, steps)
    elif dones is not None:
        raise ValueError("give dones or terminated, not both")
    if len(obs) == steps:
        obs = np.concatenate([obs, obs[-1:]])
    if not np.isfinite(rewards).all():
        raise ValueError(f"rewards must be finite, got {rewards[~np.isfinite(rewards)][0]}")
    return obs, _encoded(np.asarray(actions), steps, action_dim), rewards, bool(terminated)


def _terminates(dones: Array | None, steps: int) -> bool:
    if dones is None:
        return False
    flags = np.asarray(dones, bool)
    if flags.shape != (steps,):
        raise ValueError(f"dones must be ({steps},) for {steps} rewards, got {flags.shape}")
    if flags[:-1].any():
        raise ValueError(
            f"dones may be True only at the last step, got True at index {int(flags.argmax())} of {steps}; "
            "split the episode"
        )
    return bool(flags[-1])


def _encoded(actions: Array, steps: int, action_dim: int) -> NDArray[np.float32]:
    discrete = actions.dtype.kind in "iu" and action_dim > 1 and actions.shape in ((steps,), (steps, 1))
    if discrete:
        return encode_action(gym.spaces.Discrete(action_dim), actions.reshape(steps))
    if actions.shape != (steps, action_dim):
        raise ValueError(
            f"actions must be ({steps}, {action_dim}) for {steps} rewards, got {actions.shape}; "
            "discrete actions may be integers (T,)"
        )
    if actions.dtype.kind not in "fiub" or not np.isfinite(actions).all():
        raise ValueError(f"actions must be finite numbers, got {actions.dtype} with NaN, infinity or objects")
    return actions.astype(np.float32)
