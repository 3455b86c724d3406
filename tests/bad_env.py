"""An environment that misbehaves at one of its steps; `how` says which way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from toy_env import Echo

from policies.policy import Array


class Unpicklable(Exception):
    """Its constructor needs two arguments, so that it cannot be unpickled."""

    def __init__(self, joint: str, angle: float) -> None:
        super().__init__(f"joint {joint} at {angle}")
        self.hook = lambda: None


def misbehave(how: str) -> None:
    """Do not return, or do not return normally."""
    if how == "hang":
        time.sleep(10**6)
    while how == "spin":
        pass
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(0)
    if how == "system exit":
        raise SystemExit(3)
    if how == "ctrl-c":
        raise KeyboardInterrupt
    if how == "unpicklable":
        raise Unpicklable("knee", 0.5)


class Bad(Echo):
    """Misbehaves from step `at` of every episode, and leaves the file `mark` then."""

    def __init__(self, how: str, at: int = 3, mark: str | None = None, render_mode: str | None = None) -> None:
        super().__init__(length=10**9, render_mode=render_mode)
        self.how, self.at, self.mark = how, at, mark

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        obs, rew, term, trunc, info = super().step(action)
        if self.t < self.at:
            return obs, rew, term, trunc, info
        if self.mark is not None:
            Path(self.mark).touch()
        misbehave(self.how)
        if self.how.endswith("obs"):
            obs[1] = {"nan obs": np.nan, "inf obs": -np.inf}[self.how]
        if self.how.endswith("reward"):
            rew = {"nan reward": np.nan, "large reward": 1e300}[self.how]
        return obs, rew, term, trunc, info


if "Bad-v0" not in gym.registry:
    gym.register("Bad-v0", entry_point="bad_env:Bad", disable_env_checker=True)
