"""Latents of a model along recorded episodes, and its one-step predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_agents.data.episode import Episode
from wm_envs.action import encode_action
from wm_envs.world_model import Latent, WorldModel

Floats = NDArray[np.float64]


class _Moment(NamedTuple):
    """Step t of all episodes that are long enough, one row each."""

    t: int
    episode: NDArray[np.int64]
    """(R,) the index of the episode."""
    latent: Latent
    """(R, ...) the latent after obs[t]."""
    act: Tensor
    """(R, A) act[t], encoded."""
    rew: Floats
    """(R,) rew[t], the reward of act[t]."""
    term: NDArray[np.bool_]
    """(R,) whether act[t] terminated the episode."""


class OneStep(NamedTuple):
    """One-step predictions and real outcomes of all real steps; all (M,)."""

    rew: Floats
    cont: Floats
    real_rew: Floats
    real_term: NDArray[np.bool_]


@torch.inference_mode()
def walk(model: WorldModel, episodes: Iterable[Episode], batch: int = 64) -> Iterator[_Moment]:
    """Encode all episodes, `batch` at a time, and yield the running episodes of each step."""
    rest, before = iter(episodes), 0
    while chunk := list(islice(rest, batch)):
        # Longest first, so that finished rows are always the last ones.
        order = sorted(range(len(chunk)), key=lambda i: -chunk[i].num_steps)
        latent: Latent | None = None
        act: Tensor | None = None
        for t in range(chunk[order[0]].num_steps):
            rows = [i for i in order if chunk[i].num_steps > t]
            if latent is not None and act is not None:
                latent, act = {key: leaf[: len(rows)] for key, leaf in latent.items()}, act[: len(rows)]
            obs = np.stack([chunk[i].obs[t] for i in rows])
            latent = model.encode(torch.from_numpy(obs).to(model.device), latent, act)
            encoded = encode_action(model.act_space, np.stack([chunk[i].act[t] for i in rows]))
            act = torch.from_numpy(encoded).to(model.device)
            rew = np.array([chunk[i].rew[t] for i in rows], np.float64)
            term = np.array([chunk[i].term and t == chunk[i].num_steps - 1 for i in rows])
            yield _Moment(t, before + np.array(rows), latent, act, rew, term)
        before += len(chunk)


@torch.inference_mode()
def predict_steps(
    model: WorldModel, episodes: Iterable[Episode], *, temperature: float = 1.0, seed: int = 0, batch: int = 64
) -> OneStep:
    """Predict every step of the episodes once, from its real latent and real action.

    Raises:
        ValueError: there are no episodes.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    parts = []
    for moment in walk(model, episodes, batch):
        out = model.step(moment.latent, moment.act, temperature=temperature, generator=generator)
        parts.append((out.rew.double().cpu().numpy(), out.cont.double().cpu().numpy(), moment.rew, moment.term))
    if not parts:
        raise ValueError("at least one episode is needed, got none")
    rew, cont, real_rew, real_term = (np.concatenate(column) for column in zip(*parts))
    return OneStep(rew, cont, real_rew, real_term)
