"""Live frames: the newest real observation of a run, drawn into one image that is replaced a few times per second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm_envs.drawing import draw

LIVE = "live.png"
"""The image in a run folder."""


class LiveView(NamedTuple):
    """Where live frames go, and how often."""

    path: Path
    fps: float
    """Frames per second at most; 0: none."""


class LiveFrames:
    """Writes the newest real observation to the image file `view.path`, at most `view.fps` times per second.

    Args:
        space: the observation space.
        env_id: the real environment, for drawings of vectors.
    """

    def __init__(
        self,
        view: LiveView | None,
        space: gym.Space[Any],
        env_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.view, self.space, self.env_id, self.clock = view, space, env_id, clock
        self._due = clock()

    def show(self, obs: NDArray[Any]) -> None:
        """Replace the image by the drawing of `obs` if the last one is old enough.

        An image that cannot be drawn or written must not end a run, so it is left out.
        """
        if self.view is None or self.view.fps <= 0 or (now := self.clock()) < self._due:
            return
        self._due = now + 1 / self.view.fps
        new = self.view.path.with_name(f".{self.view.path.name}.new")
        with suppress(OSError, ValueError, cv2.error):
            frame = draw(self.env_id, self.space, obs)
            new.write_bytes(cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]))[1].tobytes())
            os.replace(new, self.view.path)
