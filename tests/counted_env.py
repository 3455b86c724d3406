"""An environment that counts its own steps in the file COUNT_FILE: a byte per step, written before it is taken.

The episode with seed 0 is not counted: it is the check of an environment when a run starts.
"""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
from toy_env import Echo

from policies.policy import Array


class Counted(Echo):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        self.counts = seed != 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if self.counts:
            file = os.open(os.environ["COUNT_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, b".")
            os.close(file)
        return super().step(action)


if "Counted-v0" not in gym.registry:
    gym.register("Counted-v0", entry_point="counted_env:Counted", max_episode_steps=12)
