"""A real environment whose every number is known: reward = action, observation = (step, last action)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from policies.policy import Array, RandomPolicy


class Echo(gym.Env):
    """Ends after `length` steps (drawn from 3 to 12 at each reset when None), by `end`."""

    def __init__(
        self,
        length: int | None = None,
        end: str = "term",
        pixels: bool = False,
        fail_at: int = -1,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self.fixed, self.end, self.pixels, self.fail_at = length, end, pixels, fail_at
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = (
            spaces.Box(0, 255, (16, 16, 3), np.uint8) if pixels else spaces.Box(-100, 100, (2,), np.float32)
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict]:
        super().reset(seed=seed)
        self.length = self.fixed or int(self.np_random.integers(3, 13))
        self.t, self.last = 0, np.float32(0)
        return self._obs(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict]:
        self.t, self.last = self.t + 1, action[0]
        if self.t == self.fail_at:
            raise ArithmeticError("the environment broke")
        over = self.t >= self.length
        return self._obs(), float(self.last), over and self.end == "term", over and self.end == "trunc", {}

    def _obs(self) -> Array:
        if not self.pixels:
            return np.array([self.t, self.last], np.float32)
        obs = np.zeros((16, 16, 3), np.uint8)
        obs[..., 0], obs[..., 1] = self.t, np.round(127 * (self.last + 1))
        return obs


if "Echo-v0" not in gym.registry:
    gym.register("Echo-v0", entry_point="toy_env:Echo")


def is_aligned(obs: Array, act: Array, rew: Array) -> bool:
    """Whether `obs[t], act[t] -> rew[t], obs[t+1]` holds in data of Echo, (..., T+1, 2) and so on."""
    same_reward = np.array_equal(rew, act[..., 0])
    same_echo = np.array_equal(obs[..., 1:, 1], act[..., 0])
    return same_reward and same_echo and bool((np.diff(obs[..., 0]) == 1).all())


def make_random(env: gym.Env) -> RandomPolicy:
    return RandomPolicy(env.action_space)
