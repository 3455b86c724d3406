"""A controller evolved in a model's dream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from policies.cmaes import CMAConfig, Generation, evolve, score_in_dream, unflatten
from policies.linear import LinearPolicy, num_params
from wm_agents.hardware import has_bf16
from wm_envs.dream import DreamVectorEnv
from wm_envs.world_model import Latent, WorldModel


class Evolved(NamedTuple):
    """The controller at CMA-ES's mean, and the last population's mean return in the dream."""

    policy: LinearPolicy
    dream_return: float


def evolve_in_dream(
    model: WorldModel,
    starts: dict[str, Latent],
    cfg: CMAConfig,
    *,
    horizon: int,
    x0: NDArray[np.float64] | None = None,
    squash: tuple[str, ...] | None = None,
    sees: slice = slice(None),
    temperature: float = 1.0,
    state: Path | None = None,
    on_generation: Callable[[Generation], None] | None = None,
) -> Evolved:
    """Evolve a linear controller on latents; the whole population dreams in one batch.

    Args:
        horizon: steps of each dream, started anywhere in the data.
        x0: flat parameters to start from; zeros as in the paper unless given.
        sees: the part of feat that the controller sees; its weights on the rest are 0 and are not evolved.
        state: file that a killed run goes on from.
    """
    envs = DreamVectorEnv(
        model,
        starts,
        cfg.population * cfg.rollouts,
        obs="latent",
        temperature=temperature,
        horizon=horizon,
        autoreset_mode=AutoresetMode.DISABLED,
        precision="bf16" if has_bf16(model.device) else "fp32",
    )
    widen = partial(_widen, feat_dim=model.feat_dim, sees=sees)
    if x0 is None:
        x0 = np.zeros(num_params(model.act_space, len(range(model.feat_dim)[sees])))
    score = score_in_dream(envs, cfg, squash=squash, widen=widen)
    evolution = evolve(score, x0, cfg, state=state, on_generation=on_generation)
    weights = widen(unflatten(evolution.mean, model.act_space))
    return Evolved(LinearPolicy(model.act_space, weights, squash), float(evolution.told[-1].mean()))


def _widen(weights: NDArray[np.float64], feat_dim: int, sees: slice) -> NDArray[np.float64]:
    """Weights (..., A, F' + 1) on a part of feat as weights (..., A, F + 1) on all of it."""
    wide = np.zeros((*weights.shape[:-1], feat_dim + 1))
    wide[..., :feat_dim][..., sees] = weights[..., :-1]
    wide[..., -1] = weights[..., -1]
    return wide
