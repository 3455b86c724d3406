"""Initial latents and the termination threshold for models trained on a replay buffer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_agents.data.episode import Episode
from wm_agents.data.replay import ReplayBuffer
from wm_agents.evaluation.termination import CUT_OFF, FEW_ENDS, calibrate_cut_off
from wm_agents.models.model import Model
from wm_envs.world_model import Latent

BURN_IN = 32
"""Maximum number of frames encoded before an initial latent in the middle of an episode."""


def find_cut_off(model: Model, episodes: Sequence[Episode]) -> float:
    """The termination threshold, calibrated on held-out `episodes` if the model uses one."""
    latent = model.initial(1)
    act = torch.zeros(1, model.actions, device=model.device)
    with torch.no_grad():
        draws = model.step(latent, act).end is not None
    if draws or not episodes:
        return CUT_OFF
    calibration = calibrate_cut_off(model, episodes)
    if calibration.ends < FEW_ENDS:
        return CUT_OFF
    return calibration.cut_off


@torch.no_grad()
def make_starts(model: Model, buffer: ReplayBuffer, num: int, rng: np.random.Generator) -> dict[str, Latent]:
    """Initial latents from real episodes: "begin" (first frames) and "anywhere" (after up to BURN_IN
    frames)."""
    begins, lengths = buffer.episodes()
    if not len(begins):
        raise ValueError("there are no initial latents, because the replay buffer has no episodes; collect more steps")
    pick = rng.choice(len(begins), num, p=lengths / lengths.sum())
    begin, end = begins[pick], begins[pick] + (rng.random(num) * lengths[pick]).astype(np.int64)
    latent: Latent | None = None
    act: Tensor | None = None
    for back in range(BURN_IN, -1, -1):
        at = np.maximum(end - back, begin)
        latent, act = _see(model, buffer, at, latent, act, at == begin)
    assert latent is not None
    every = np.ones(num, bool)
    return {
        "begin": _see(model, buffer, begins[rng.choice(len(begins), num)], None, None, every)[0],
        "anywhere": latent,
    }


def _see(
    model: Model,
    buffer: ReplayBuffer,
    at: NDArray[np.int64],
    latent: Latent | None,
    act: Tensor | None,
    first: NDArray[np.bool_],
) -> tuple[Latent, Tensor]:
    """Encode the frames at positions of the buffer, and return the latents and the actions taken there."""
    obs, next_act = buffer.frames(at)
    device = model.device
    latent = model.encode(torch.from_numpy(obs).to(device), latent, act, torch.from_numpy(first).to(device))
    return latent, torch.from_numpy(next_act).to(device)
