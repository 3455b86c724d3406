"""Strips: a real episode, its reconstruction, and open-loop dreams of it, as rows of small images.

    FOLDER/step-0050.png   three rows (real, reconstruction, dream), from step 50 on, a column every 4 steps

The dream starts from the real frame of the first column and takes the real actions. It gets no further frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from wm_agents.system.replace import replacing_folder
from wm_envs.action import encode_action
from wm_envs.drawing import draw
from wm_envs.world_model import Latent, WorldModel

Array = NDArray[Any]
STRIPS = "strips"
"""The folder in that of a round or an evaluation."""
EVERY, COLUMNS, MOST = 4, 13, 3
"""Steps between columns, columns of a strip, and strips of an episode."""
SPAN = EVERY * (COLUMNS - 1)
FRAMES = MOST * (SPAN + 1)
"""Frames of an episode that are needed for all strips."""
SIDE = 96
"""Larger frames are reduced to this height in pixels."""


def write_strips(
    folder: Path, model: WorldModel, obs: Array, act: Array, *, env_id: str, temperature: float = 1.0, seed: int = 0
) -> int:
    """Write the strips of one episode into `folder`, which is replaced, and return their number.

    Args:
        obs: (T+1, *obs_shape) real observations; only the first `FRAMES` count. Below two columns, nothing is written.
        act: (T, *act_shape) actions, as the environment takes them.
        env_id: the real environment, for drawings of vectors.
        temperature: randomness of the dream.
    """
    obs, act = obs[:FRAMES], encode_action(model.act_space, act[: FRAMES - 1])
    if len(obs) <= EVERY:
        return 0
    starts = [start for start in range(0, len(obs), SPAN + 1) if start + SPAN < len(obs)] or [0]
    with torch.inference_mode():
        seen = _encode(model, obs, act)
        with replacing_folder(folder) as new:
            for start in starts:
                columns = range(start, min(start + SPAN + 1, len(obs)), EVERY)
                dreamed = _dream(model, seen[start], act[start : columns[-1]], temperature, seed)
                rows = [
                    obs[columns],
                    np.stack([_decode(model, seen[t]) for t in columns]),
                    np.stack([_decode(model, dreamed[t - start]) for t in columns]),
                ]
                image = np.concatenate([_row(draw(env_id, model.obs_space, row)) for row in rows])
                cv2.imwrite(str(new / f"step-{start:04d}.png"), np.ascontiguousarray(image[..., ::-1]))
    return len(starts)


def _encode(model: WorldModel, obs: Array, act: Array) -> list[Latent]:
    """The latent after every frame."""
    latents: list[Latent] = []
    latent: Latent | None = None
    for t, frame in enumerate(obs):
        before = torch.from_numpy(act[t - 1 : t]).to(model.device) if t else None
        latent = model.encode(torch.from_numpy(frame[None].copy()).to(model.device), latent, before)
        latents.append(latent)
    return latents


def _dream(model: WorldModel, latent: Latent, act: Array, temperature: float, seed: int) -> list[Latent]:
    """The latents of a dream: `latent`, then one per action."""
    generator = torch.Generator(model.device).manual_seed(seed)
    latents = [latent]
    for row in act:
        moved = torch.from_numpy(row[None]).to(model.device)
        latents.append(model.step(latents[-1], moved, temperature=temperature, generator=generator).latent)
    return latents


def _decode(model: WorldModel, latent: Latent) -> Array:
    frame: Array = model.decode(latent)[0].cpu().numpy()
    return frame


def _row(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames (N, H, W, 3) beside each other, of at most `SIDE` pixels height."""
    height, width = frames.shape[1:3]
    scale = min(1.0, SIDE / height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = [np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA)) for frame in frames]
    return np.concatenate(small, axis=1).astype(np.uint8)
