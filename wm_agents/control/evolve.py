"""A controller evolved for a model: in its dream, or in the real environment it dreams of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from policies.cmaes import CMAConfig, Generation, evolve, read_about, score_in_dream, score_in_real, unflatten
from policies.linear import LinearPolicy, num_params
from policies.play import EpisodePool
from wm_agents.models.saved import load_model
from wm_agents.pretrained import frame_policy, real_spec
from wm_agents.system.progress import Bar
from wm_envs.dream import DreamVectorEnv
from wm_envs.world_model import Latent, WorldModel

OnGeneration = Callable[[Generation], bool | None]


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
    cut_off: float = 0.5,
    pessimism: float = 0.0,
    max_disagreement: float | None = None,
    stall: int | None = None,
    state: Path | None = None,
    on_generation: OnGeneration | None = None,
) -> Evolved:
    """Evolve a linear controller on latents; the whole population dreams in one batch.

    Args:
        horizon: steps of each dream, started anywhere in the data.
        x0: flat parameters to start from; zeros as in the paper unless given.
        sees: the part of feat that the controller sees; its weights on the rest are 0 and are not evolved.
        stall: a dream earns nothing more after so many steps in a row without a positive reward.
        state: file that a killed run goes on from.
    """
    envs = DreamVectorEnv(
        model,
        starts,
        cfg.population * cfg.rollouts,
        obs="latent",
        temperature=temperature,
        horizon=horizon,
        cut_off=cut_off,
        pessimism=pessimism,
        max_disagreement=max_disagreement,
        autoreset_mode=AutoresetMode.DISABLED,
        precision=read_about(state).get("precision", "auto"),  # type: ignore[arg-type]
    )
    widen = partial(_widen, feat_dim=model.feat_dim, sees=sees)
    if x0 is None:
        x0 = np.zeros(num_params(model.act_space, len(range(model.feat_dim)[sees])))
    score = score_in_dream(envs, cfg, squash=squash, widen=widen, stall=stall)
    evolution = evolve(score, x0, cfg, state=state, about={"precision": envs.precision}, on_generation=on_generation)
    weights = widen(unflatten(evolution.mean, model.act_space))
    return Evolved(LinearPolicy(model.act_space, weights, squash), float(evolution.told[-1].mean()))


def controller_at(flat: NDArray[np.float64], model: WorldModel, squash: tuple[str, ...] | None) -> LinearPolicy:
    """The controller that flat parameters of an evolution stand for."""
    return LinearPolicy(model.act_space, unflatten(flat, model.act_space), squash)


def evolve_in_real(
    model: str,
    cfg: CMAConfig,
    *,
    squash: tuple[str, ...] | None = None,
    procs: int = 2,
    state: Path | None = None,
    on_generation: OnGeneration | None = None,
) -> LinearPolicy:
    """Evolve the same controller on the same latents, but in real episodes over processes, as the paper did for cars.

    A candidate's return is that of whole episodes, on environment seeds below 1,000,000.
    """
    net, artifact = load_model(model)
    x0 = np.zeros(num_params(net.act_space, net.feat_dim))
    with EpisodePool(real_spec(artifact), partial(frame_policy, model, squash=squash), procs) as arena:
        score = score_in_real(arena, cfg, net.act_space)
        evolution = evolve(score, x0, cfg, state=state, on_generation=on_generation)
    return LinearPolicy(net.act_space, unflatten(evolution.mean, net.act_space), squash)


def show_generations(bar: Bar) -> OnGeneration:
    """What moves `bar` as an evolution goes on."""

    def show(generation: Generation) -> None:
        bar.update(generation.number, f"mean return {generation.mean:.1f}, best {generation.best:.1f}")

    return show


def _widen(weights: NDArray[np.float64], feat_dim: int, sees: slice) -> NDArray[np.float64]:
    """Weights (..., A, F' + 1) on a part of feat as weights (..., A, F + 1) on all of it."""
    wide = np.zeros((*weights.shape[:-1], feat_dim + 1))
    wide[..., :feat_dim][..., sees] = weights[..., :-1]
    wide[..., -1] = weights[..., -1]
    return wide
