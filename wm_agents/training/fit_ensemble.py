"""Fits an ensemble to a dataset of vectors, and computes initial latents."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_agents.data.dataset import Dataset, hold_out
from wm_agents.models.ensemble import Ensemble, Moves
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer, TrainingResult
from wm_envs.action import encode_action
from wm_envs.world_model import Latent


class _MoveSet(NamedTuple):
    """Every step of a dataset: obs[i], act[i] -> rew[i], next_obs[i], in the order of its episodes."""

    obs: Tensor
    """(N, D)"""
    act: Tensor
    """(N, A), encoded"""
    rew: Tensor
    """(N,)"""
    term: Tensor
    next_obs: Tensor
    episode: NDArray[np.int64]
    """(N,) the episode of each step."""
    first: NDArray[np.int64]
    """(E,) the first step of each episode."""

    def take(self, index: NDArray[np.int64]) -> Moves:
        """The steps at `index` (any shape)."""
        at = torch.from_numpy(index)
        return Moves(self.obs[at], self.act[at], self.rew[at], self.term[at], self.next_obs[at])


def read_moves(model: Ensemble, dataset: Dataset) -> _MoveSet:
    """Read all steps into memory, about 100 bytes each.

    Raises:
        ValueError: there are no episodes.
    """
    episodes = list(dataset.iter_episodes())
    if not episodes:
        raise ValueError(f"no episodes in {dataset.root}{dataset.skipped_note}; collect episodes first")
    lengths = np.array([len(ep.rew) for ep in episodes])

    def join(parts: list[NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).float()

    ends = [np.append(np.zeros(len(ep.rew) - 1), ep.term) for ep in episodes]
    return _MoveSet(
        join([ep.obs[:-1] for ep in episodes]),
        join([encode_action(model.act_space, ep.act) for ep in episodes]),
        join([ep.rew for ep in episodes]),
        join([end.astype(np.float32) for end in ends]),
        join([ep.obs[1:] for ep in episodes]),
        np.repeat(np.arange(len(episodes)), lengths),
        np.cumsum(lengths) - lengths,
    )


def fit_ensemble(
    model: Ensemble,
    data: _MoveSet,
    cfg: TrainingConfig,
    run_dir: Path,
    *,
    first: bool,
    callbacks: tuple[Callback, ...] = (),
) -> TrainingResult:
    """Train every member on its own bootstrap sample of the training steps.

    Args:
        first: these are the first training data; they define the normalisation of feat.
    """
    # Single steps, as in MBPO: a held-out episode may be the only one that leaves the familiar states.
    train, val = hold_out(len(data.obs), cfg.seed)
    seen = data.take(train)
    model.scale.fit(seen.obs, seen.next_obs, seen.rew, seen.term, first)
    members = model.cfg.members
    rng = np.random.default_rng(cfg.seed)
    bootstraps = rng.choice(train, (members, len(train)))
    held_out = data.take(rng.choice(val, min(len(val), 4096), replace=False)[None])

    def batches(update: int) -> Moves:
        draw = cfg.rng(update).integers(len(train), size=(members, cfg.batch_size))
        return data.take(np.take_along_axis(bootstraps, draw, axis=1))

    trainer = Trainer(model, cfg, callbacks, loss=model.moves_loss, run_dir=run_dir)

    def validate() -> float:
        parts = model.moves_loss(trainer.fabric.to_device(held_out)).components
        return float(torch.stack(list(parts.values())).sum())

    result = trainer.fit(batches, validate)
    trainer.load_best()
    return result


def make_starts(
    data: _MoveSet, num: int, rng: np.random.Generator, episodes: NDArray[np.int64] | None = None
) -> dict[str, Latent]:
    """Initial latents from real episodes: "begin" (first observations) and "anywhere" (any except the last).

    `episodes` limits the episodes; default: all.
    """
    if episodes is None:
        episodes = np.arange(len(data.first))
    anywhere = rng.choice(np.flatnonzero(np.isin(data.episode, episodes)), num)
    begin = data.first[rng.choice(episodes, num)]
    return {"begin": {"obs": data.obs[begin]}, "anywhere": {"obs": data.obs[anywhere]}}
