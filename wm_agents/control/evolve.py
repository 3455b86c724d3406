"""A controller evolved for a model: in its dream, or in the real environment it dreams of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from policies.cmaes import CMAConfig, Generation, evolve, read_about, score_in_dream, score_in_real, unflatten
from policies.linear import LinearPolicy, num_params
from policies.play import EpisodePool
from policies.subspace import Subspace, principal, seen
from wm_agents.models.saved import load_model
from wm_agents.pretrained import frame_policy, load_starts, real_spec
from wm_agents.system.progress import Bar
from wm_envs.dream import DreamVectorEnv
from wm_envs.world_model import Latent, WorldModel

OnGeneration = Callable[[Generation], bool | None]


class Evolved(NamedTuple):
    """What CMA-ES arrived at."""

    policy: LinearPolicy
    dream_return: float
    """The last population's mean return in the dream."""
    steps: int
    """Steps dreamed in this call, of all rows together."""


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
        x0: flat weights on feat to start from; zeros as in the paper unless given. With `cfg.components` what they
            say of other directions is lost.
        sees: the part of feat that the controller sees; its weights on the rest are 0 and are not evolved.
        stall: a dream is truncated after N steps in a row without a positive reward.
        state: file that a killed run resumes from.
        on_generation: gets each generation, its weights as those on feat.
    """
    envs = DreamVectorEnv(
        model,
        starts,
        cfg.population * cfg.rollouts,
        obs="latent",
        temperature=temperature,
        horizon=horizon,
        stall=stall,
        cut_off=cut_off,
        pessimism=pessimism,
        max_disagreement=max_disagreement,
        autoreset_mode=AutoresetMode.DISABLED,
        precision=read_about(state).get("precision", "auto"),  # type: ignore[arg-type]
    )
    subspace = _subspace(model, starts, cfg, sees)
    whole = np.zeros(num_params(model.act_space, model.feat_dim)) if x0 is None else x0
    evolution = evolve(
        score_in_dream(envs, cfg, squash=squash, widen=subspace.widen),
        subspace.narrow(unflatten(whole, model.act_space)).ravel(),
        cfg,
        state=state,
        about={"precision": envs.precision},
        on_generation=_on_feat(on_generation, subspace, model.act_space),
    )
    weights = subspace.widen(unflatten(evolution.result, model.act_space))
    return Evolved(LinearPolicy(model.act_space, weights, squash), float(evolution.told[-1].mean()), envs.steps)


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
    subspace = _subspace(net, load_starts(artifact), cfg)
    with EpisodePool(real_spec(artifact), partial(frame_policy, model, squash=squash), procs) as pool:
        evolution = evolve(
            score_in_real(pool, cfg, net.act_space, widen=subspace.widen),
            np.zeros(num_params(net.act_space, len(subspace.axes))),
            cfg,
            state=state,
            on_generation=_on_feat(on_generation, subspace, net.act_space),
        )
    return LinearPolicy(net.act_space, subspace.widen(unflatten(evolution.result, net.act_space)), squash)


def show_generations(bar: Bar) -> OnGeneration:
    """What moves `bar` as an evolution goes on."""

    def show(generation: Generation) -> None:
        bar.update(generation.number, f"mean return {generation.mean:.1f}, best {generation.best:.1f}")

    return show


def _subspace(model: WorldModel, starts: dict[str, Latent], cfg: CMAConfig, sees: slice = slice(None)) -> Subspace:
    """What of feat the controller sees: all of `sees`, or the principal components of the moments it starts at."""
    if cfg.components is None:
        return seen(model.feat_dim, sees)
    with torch.inference_mode():
        bank = {key: leaf.float().to(model.device) for key, leaf in starts["anywhere"].items()}
        feat = model.feat(bank).cpu().double().numpy()
    return principal(feat, cfg.components, sees)


def _on_feat(on_generation: OnGeneration | None, subspace: Subspace, act_space: gym.Space[Any]) -> OnGeneration | None:
    """`on_generation` for generations whose weights are those on `subspace`: it gets them on feat."""
    if on_generation is None:
        return None

    def widened(generation: Generation) -> bool | None:
        weights = subspace.widen(unflatten(generation.weights, act_space))
        return on_generation(generation._replace(weights=weights.ravel()))

    return widened
