"""An environment of any spaces: observations are samples, the reward is the step's number, episodes take 7 steps."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

OBS: dict[str, spaces.Space] = {
    "dict": spaces.Dict({"where": spaces.Box(-1, 1, (2, 2), np.float32), "mode": spaces.Discrete(3, start=1)}),
    "tuple": spaces.Tuple([spaces.MultiBinary(2), spaces.Box(-5, 5, (1,), np.float32)]),
    "choice": spaces.Discrete(5),
    "matrix": spaces.Box(-1, 1, (3, 4), np.float64),
    "bits": spaces.Box(0, 1, (4, 4, 2), np.bool_),
    "grey": spaces.Box(0, 255, (37, 53), np.uint8),
    "grey1": spaces.Box(0, 255, (20, 20, 1), np.uint8),
    "rgb": spaces.Box(0, 255, (90, 41, 3), np.uint8),
    "planes": spaces.Box(0, 255, (3, 64, 64), np.uint8),
    "floats": spaces.Box(0, 1, (64, 64, 3), np.float32),
    "text": spaces.Dict({"say": spaces.Text(5), "where": spaces.Box(-1, 1, (2,))}),
    "sequence": spaces.Tuple([spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2))]),
    "graph": spaces.Graph(spaces.Discrete(2), None),
    "nan": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "liar": spaces.Box(-1, 1, (3,), np.float32),
}
ACT: dict[str, spaces.Space] = {
    "box": spaces.Box(-2, 2, (2,), np.float32),
    "discrete": spaces.Discrete(4),
    "from1": spaces.Discrete(4, start=1),
    "multi": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(3),
    "endless": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "dict": spaces.Dict({"go": spaces.Discrete(2)}),
}


class Odd(gym.Env):
    """`obs` and `act` name the spaces; `seen` holds the actions it got."""

    def __init__(self, obs: str = "dict", act: str = "discrete", render_mode: str | None = None) -> None:
        self.kind, self.render_mode = obs, render_mode
        self.observation_space, self.action_space = OBS[obs], ACT[act]
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.t, self.seen = 0, []
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        self.seen.append(action)
        return self._obs(), float(self.t), self.t == 7, False, {}

    def _obs(self) -> Any:
        if self.kind == "nan":
            return np.full(2, np.nan, np.float32)
        if self.kind == "liar":
            return np.zeros(4, np.float32)
        self.last = self.observation_space.sample()
        return self.last


class Sized(Odd):
    """Has no default for its size; observations of more than one number are images."""

    def __init__(self, size: int, render_mode: str | None = None) -> None:
        super().__init__("grey" if size > 1 else "choice")


def without_text(env: gym.Env) -> gym.Env:
    """A wrapper for the observations "text"."""
    return gym.wrappers.FilterObservation(env, ["where"])


def no_env(env: gym.Env) -> int:
    """A wrapper that returns something else."""
    return 7


if "Odd-v0" not in gym.registry:
    gym.register("Odd-v0", entry_point="odd_env:Odd")
    gym.register("Sized-v0", entry_point="odd_env:Sized", max_episode_steps=7)
