"""Image spaces: which observations are frames, and in which layout."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

CHANNELS = (1, 3)


def is_image(space: gym.Space[Any]) -> bool:
    """Whether observations are (H, W, 3) or (H, W, 1) uint8 pixels."""
    shape = space.shape or ()
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(shape) == 3 and shape[-1] in CHANNELS


def is_channels_first(space: gym.Space[Any]) -> bool:
    """Whether observations are (3, H, W) or (1, H, W) uint8 pixels, as from wrappers for PyTorch."""
    shape = space.shape or ()
    pixels = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(shape) == 3
    return pixels and shape[0] in CHANNELS and not is_image(space)


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
    grey = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 2
    bounded = isinstance(space, spaces.Box) and bool((space.low == 0).all() and (space.high == 255).all())
    return (grey or is_image(space)) and bounded


def to_rgb(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert pixels (..., H, W, 1 or 3) to (..., H, W, 3)."""
    return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames
