"""Policies that worker processes can import: what a test needs to see there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from policies.policy import Array


class Always:
    """Takes the one action that it is made with."""

    def __init__(self, action: float) -> None:
        self.action = action

    def reset(self, num: int, seed: int) -> None: ...

    def act(self, obs: Array) -> Array:
        return np.full((len(obs), 1), self.action, np.float32)


class Raises(Always):
    def act(self, obs: Array) -> Array:
        if obs[0, 0] == 2:
            raise ArithmeticError(f"the policy broke at step {obs[0, 0]:.0f}")
        return super().act(obs)


class Dies(Always):
    """Ends its process at once where the action is negative, as a crash or the system's killer would."""

    def act(self, obs: Array) -> Array:
        if self.action < 0:
            os._exit(3)
        return super().act(obs)


class Slow(Always):
    """Notes each step in a file and takes its time."""

    def __init__(self, path: str) -> None:
        super().__init__(0.0)
        self.path = path

    def act(self, obs: Array) -> Array:
        with Path(self.path).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.02)
        return super().act(obs)


class Frail(Always):
    """Ends its process: only the first one of those that share `folder`, or every one without a folder."""

    def __init__(self, folder: str, action: float) -> None:
        super().__init__(action)
        self.mark = Path(folder) / "died" if folder else None

    def act(self, obs: Array) -> Array:
        if obs[0, 0] == 2 and (self.mark is None or not self.mark.exists()):
            if self.mark is not None:
                self.mark.touch()
            os._exit(3)
        return super().act(obs)


class Unhurried(Always):
    """Leaves a file named for its process in `folder`, and takes its time."""

    def __init__(self, folder: str, action: float) -> None:
        super().__init__(action)
        (Path(folder) / str(os.getpid())).touch()

    def act(self, obs: Array) -> Array:
        time.sleep(0.02)
        return super().act(obs)


def refuse() -> Always:
    raise LookupError("no such policy")
