"""A court of pixels whose every frame is known: a square bounces between a wall and a bat that the player moves."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from policies.policy import Array

SIZE, REACH = 24, 6
"""Pixels of the court, and of the bat along it."""
BAT, BALL = 120, 200
"""Grey levels."""
POINTS = 3


class Court(gym.Env):
    """24 x 24 grey pixels on a striped floor. Actions: 0 stay, 1 up, 2 down, two pixels each.

    The ball of 2 x 2 moves a pixel a step along both axes and bounces off all walls but the left one, where the bat of
    6 x 2 returns it. A ball that gets past comes back in the middle of the third frame after; the point is -1. Three
    points end the game.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(3)
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict]:
        super().reset(seed=seed)
        self.bat, self.lost, self.away = 8, 0, 0
        self._serve()
        return self.frame(), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict]:
        self.bat = int(np.clip(self.bat + (0, -2, 2)[int(action)], 0, SIZE - REACH))
        rew = 0.0
        if self.away:
            self.away -= 1
            if not self.away:
                self._serve()
        else:
            rew = self._fly()
        self.lost += rew < 0
        return self.frame(), rew, self.lost >= POINTS, False, {}

    def frame(self) -> Array:
        """What is seen now."""
        obs = np.zeros((SIZE, SIZE, 1), np.uint8)
        obs[::2] = 40
        obs[self.bat : self.bat + REACH, 1:3] = BAT
        if not self.away:
            obs[self.row : self.row + 2, self.column : self.column + 2] = BALL
        return obs

    def _serve(self) -> None:
        self.row, self.column = int(self.np_random.integers(4, 18)), 12
        self.down, self.right = 1, -1

    def _fly(self) -> float:
        self.row, self.column = self.row + self.down, self.column + self.right
        if self.row in (0, SIZE - 2):
            self.down = -self.down
        meets = self.bat - 2 < self.row < self.bat + REACH
        if self.column == SIZE - 2 or (self.column == 3 and meets):
            self.right = -self.right
        if self.column > 0:
            return 0.0
        self.away = 3
        return -1.0


if "Court-v0" not in gym.registry:
    gym.register("Court-v0", entry_point="toy_court:Court", max_episode_steps=400)
