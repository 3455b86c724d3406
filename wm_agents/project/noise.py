"""Random episodes, for testing a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np

from policies.policy import sample_actions
from wm_agents.data.dataset import Dataset, write_shard
from wm_agents.data.episode import Episode
from wm_agents.project.translate import Spaces

LENGTH = 100
"""Default number of steps per episode."""
SHARD = "random"


def write_noise(folder: Path, spaces: Spaces, steps: int, length: int | None, seed: int) -> Dataset:
    """A dataset of at least `steps` random steps; an existing one is reused."""
    if not (folder / f"{SHARD}.h5").is_file():
        write_shard(folder, SHARD, _noise(spaces, steps, length or LENGTH, seed))
    return Dataset(folder)


def _noise(spaces: Spaces, steps: int, length: int, seed: int) -> Iterator[Episode]:
    """Episodes with independent random frames, actions and rewards; half of them terminate."""
    obs_space, act_space = spaces
    rng = np.random.default_rng(seed)
    for i in range(-(-steps // length)):
        obs = _frames(obs_space, length + 1, rng)
        rew = rng.standard_normal(length).astype(np.float32)
        term = bool(rng.random() < 0.5)
        yield Episode(obs, sample_actions(act_space, length, rng), rew, term, not term, -1, {"random": True, "part": i})


def _frames(space: gym.Space[object], num: int, rng: np.random.Generator) -> np.ndarray:
    shape = (num, *(space.shape or ()))
    if space.dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape).astype(space.dtype or np.float32)
