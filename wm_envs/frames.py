"""Image spaces: which observations are frames, and in which layout."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

CHANNELS = (1, 3)


def is_image(space: gym.Space[Any]) -> bool:
    """Whether observations are (H, W, 3) or (H, W, 1) uint8 pixels from 0 to 255.

    Other integer arrays, such as the board of a game with one plane per kind of piece, are not images.
    """
    return _is_frame(space) and (space.shape or ())[-1] in CHANNELS


def is_channels_first(space: gym.Space[Any]) -> bool:
    """Whether observations are (3, H, W) or (1, H, W) uint8 pixels, as from wrappers for PyTorch."""
    return _is_frame(space) and (space.shape or ())[0] in CHANNELS and not is_image(space)


def frame_shape(space: gym.Space[Any]) -> tuple[int, int, int] | None:
    """(C, H, W) of a space of uint8 frames in either layout, or None for other spaces."""
    if is_image(space):
        height, width, channels = space.shape or ()
        return channels, height, width
    if is_channels_first(space):
        channels, height, width = space.shape or ()
        return channels, height, width
    return None


def is_resizable(space: gym.Space[Any]) -> bool:
    """Whether observations are images that can be resized; grey images may have no channel axis."""
    return _is_frame(space, axes=2) or is_image(space)


def _is_frame(space: gym.Space[Any], axes: int = 3) -> bool:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != axes:
        return False
    return bool(space.low.max() == 0 and space.high.min() == 255)


def to_rgb(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert pixels (..., H, W, 1 or 3) to (..., H, W, 3)."""
    if frames.shape[-1] == 1:
        return np.repeat(frames, 3, axis=-1)
    return frames
