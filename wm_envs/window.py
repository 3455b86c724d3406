"""A window for `render_mode="human"`."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_display() -> None:
    """Check that a display exists, because SDL silently renders nowhere without one.

    Raises:
        RuntimeError: there is no display, and SDL_VIDEODRIVER is not set.
    """
    shown = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if sys.platform == "linux" and not shown:
        raise RuntimeError(
            "render_mode='human' needs a display, got none (DISPLAY and WAYLAND_DISPLAY are empty); "
            "use render_mode='rgb_array' with RecordVideo, or set SDL_VIDEODRIVER=dummy to render nowhere"
        )


class Window:
    """Shows frames (H, W, 3) uint8, enlarged to about `side` pixels, at a constant rate."""

    def __init__(self, fps: int, side: int = 512) -> None:
        check_display()
        # pygame is slow to import and rarely needed.
        import pygame

        self.pygame, self.fps, self.side = pygame, fps, side
        self.screen: Any = None
        self.clock = pygame.time.Clock()
        pygame.display.init()

    def show(self, frame: NDArray[np.uint8]) -> None:
        height, width, _ = frame.shape
        scale = max(1, self.side // max(height, width))
        size = (scale * width, scale * height)
        if self.screen is None:
            self.screen = self.pygame.display.set_mode(size)
        surface = self.pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self.pygame.transform.scale(surface, size, self.screen)
        self.pygame.event.pump()
        self.pygame.display.flip()
        self.clock.tick(self.fps)

    def close(self) -> None:
        self.pygame.display.quit()
