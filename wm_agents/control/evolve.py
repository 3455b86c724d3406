"""Trains a linear controller on the latents of a model with CMA-ES, in its dream or in the real environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from policies.cmaes import (
    CMAConfig,
    Generation,
    Score,
    evolve,
    read_about,
    rollout_seeds,
    score_in_dream,
    score_in_real,
    unflatten,
)
from policies.linear import LinearPolicy, num_params
from policies.play import EpisodePool
from policies.pool import Halt, Pool, Procs, make_pool
from policies.rollout import Transition, returns, rollout
from policies.subspace import Subspace, principal, seen
from wm_agents.models.saved import load_model
from wm_agents.pretrained import frame_policy, load_starts, real_spec
from wm_agents.system.progress import Bar
from wm_envs.dream import DreamConfig, DreamVectorEnv
from wm_envs.world_model import Latent, WorldModel

Array = NDArray[Any]
ROWS = 64
"""Dreams that a worker plays at once."""
OnGeneration = Callable[[Generation], bool | None]


class Evolved(NamedTuple):
    """The result of CMA-ES in a dream."""

    policy: LinearPolicy
    dream_return: float
    """Mean return of the last population in the dream."""
    steps: int
    """Dreamed steps of this call, over all rows."""


def evolve_in_dream(
    model: WorldModel,
    starts: dict[str, Latent],
    cfg: CMAConfig,
    dream: DreamConfig,
    *,
    x0: NDArray[np.float64] | None = None,
    squash: tuple[str, ...] | None = None,
    sees: slice = slice(None),
    procs: Procs = 0,
    state: Path | None = None,
    on_generation: OnGeneration | None = None,
) -> Evolved:
    """Evolve a linear controller on latents; one batch of dreams scores the whole population.

    With workers, each scores a few candidates at a time. The returns are the same up to rounding, and do not depend
    on the number of workers.

    Args:
        dream: the settings of the dreams, with a horizon. Dreams start from latents of any moment in the data.
        x0: initial weights on feat, flat; default: zeros, as in the paper. With `cfg.components` they are projected to
            the components.
        sees: the dimensions of feat that the controller uses; its weights on the others stay 0.
        procs: number of worker processes, 0 for one batch in this process, or a `RayCluster`.
        state: file from which an interrupted run resumes.
        on_generation: called after every generation, with weights on feat.
    """
    envs = DreamVectorEnv(
        model,
        starts,
        cfg.population * cfg.rollouts,
        dream,
        obs="latent",
        autoreset_mode=AutoresetMode.DISABLED,
        precision=read_about(state).get("precision", "auto"),  # type: ignore[arg-type]
    )
    dreams = Dreams(model, starts, dream, envs.precision, cfg, squash)  # type: ignore[arg-type]
    subspace = _subspace(model, starts, cfg, sees)
    if x0 is None:
        x0 = np.zeros(num_params(model.act_space, model.feat_dim))
    with nullcontext() if procs == 0 else make_pool(dreams, procs) as pool:
        score = score_in_dream(envs, cfg, squash=squash, widen=subspace.widen)
        if pool is not None:
            score = dreams.score_on(pool, subspace.widen)
        evolution = evolve(
            score,
            subspace.narrow(unflatten(x0, model.act_space)).ravel(),
            cfg,
            state=state,
            about={"precision": envs.precision},
            on_generation=_on_feat(on_generation, subspace, model.act_space),
        )
    weights = subspace.widen(unflatten(evolution.result, model.act_space))
    steps = envs.steps + dreams.steps
    return Evolved(LinearPolicy(model.act_space, weights, squash), float(evolution.told[-1].mean()), steps)


class Dreams:
    """Scores a few candidates of a population at a time, on the workers of a pool, which share it."""

    def __init__(
        self,
        model: WorldModel,
        starts: dict[str, Latent],
        dream: DreamConfig,
        precision: Literal["bf16", "fp32", "auto"],
        cfg: CMAConfig,
        squash: tuple[str, ...] | None,
    ) -> None:
        self.model, self.starts, self.dream, self.precision = model, starts, dream, precision
        self.cfg, self.squash = cfg, squash
        self.steps = 0
        """Dreamed steps on all workers."""

    def score_on(self, pool: Pool, widen: Callable[[Array], Array]) -> Score:
        """The score of a population, played on the workers of `pool`."""
        cfg = self.cfg
        few = max(ROWS // cfg.rollouts, 1)  # Whatever the number of workers, so that rounding is the same.

        def score(candidates: Array, generation: int) -> Array:
            weights = widen(unflatten(candidates, self.model.act_space))
            seeds = rollout_seeds(cfg, generation)
            parts = [(weights[i : i + few], seeds) for i in range(0, len(weights), few)]
            scores: dict[int, Array] = {}
            for index, (found, steps) in pool.run(_score, parts):
                scores[index] = found
                self.steps += steps
            return np.concatenate([scores[index] for index in range(len(parts))])

        return score


def _score(dreams: Dreams, halt: Halt, part: tuple[Array, range]) -> tuple[Array, int]:
    """The returns of candidates with weights (P, A, F + 1), and the dreamed steps."""
    weights, seeds = part
    halt.is_set()
    envs = DreamVectorEnv(
        dreams.model,
        dreams.starts,
        len(weights) * len(seeds),
        dreams.dream,
        obs="latent",
        autoreset_mode=AutoresetMode.DISABLED,
        precision=dreams.precision,
    )
    policy = LinearPolicy(dreams.model.act_space, weights, dreams.squash)
    steps = _until(halt, rollout(envs, policy, seed=[*seeds] * len(weights), options={"start": "anywhere"}))
    per_candidate: Array = returns(steps).reshape(len(weights), len(seeds)).mean(1)
    return per_candidate, envs.steps


def _until(halt: Halt, steps: Iterator[Transition]) -> Iterator[Transition]:
    for step in steps:
        if halt.is_set():
            raise InterruptedError("the evolution was interrupted")
        yield step


def controller_at(flat: NDArray[np.float64], model: WorldModel, squash: tuple[str, ...] | None) -> LinearPolicy:
    """The controller with the flat weights `flat`."""
    return LinearPolicy(model.act_space, unflatten(flat, model.act_space), squash)


def evolve_in_real(
    model: str,
    cfg: CMAConfig,
    *,
    squash: tuple[str, ...] | None = None,
    procs: Procs = 2,
    state: Path | None = None,
    on_generation: OnGeneration | None = None,
) -> LinearPolicy:
    """Evolve a linear controller on latents in real episodes, as the paper does for CarRacing.

    The score of a candidate is its mean return over whole episodes, with environment seeds below 1,000,000.

    Args:
        model: a model directory, or the name of a shipped model or dream.
        procs: number of worker processes, or a `RayCluster`.
        state: file from which an interrupted run resumes.
        on_generation: called after every generation, with weights on feat.
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
    """A callback that updates `bar` after every generation."""

    def show(generation: Generation) -> None:
        bar.update(generation.number, f"mean return {generation.mean:.1f}, best {generation.best:.1f}")

    return show


def _subspace(model: WorldModel, starts: dict[str, Latent], cfg: CMAConfig, sees: slice = slice(None)) -> Subspace:
    """The subspace that the controller uses: all dimensions `sees`, or principal components of initial latents."""
    if cfg.components is None:
        return seen(model.feat_dim, sees)
    with torch.inference_mode():
        bank = {key: leaf.float().to(model.device) for key, leaf in starts["anywhere"].items()}
        feat = model.feat(bank).cpu().double().numpy()
    return principal(feat, cfg.components, sees)


def _on_feat(on_generation: OnGeneration | None, subspace: Subspace, act_space: gym.Space[Any]) -> OnGeneration | None:
    """Wrap `on_generation` to receive weights on feat instead of weights on `subspace`."""
    if on_generation is None:
        return None

    def widened(generation: Generation) -> bool | None:
        weights = subspace.widen(unflatten(generation.weights, act_space))
        return on_generation(generation._replace(weights=weights.ravel()))

    return widened
