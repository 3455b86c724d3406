"""Plays whole episodes in a vector environment; collection, evaluation and CMA-ES use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from policies.policy import Policy
from policies.step_count import StepCount

Array = NDArray[Any]

EVAL_SEED = 1_000_000
"""Environment seeds from this one up are for evaluation only."""


class Transition(NamedTuple):
    """One step of every row: obs, act -> rew, next_obs."""

    obs: Array
    act: Array
    rew: Array
    """(N,)"""
    term: Array
    trunc: Array
    next_obs: Array
    alive: Array
    """(N,) bool: the episode of the row was running when `act` was taken; ignore other rows."""


def rollout(
    envs: VectorEnv[Array, Array, Array],
    policy: Policy,
    *,
    seed: int | list[int | None] | None,
    policy_seed: int | None = None,
    options: dict[str, Any] | None = None,
    count: StepCount | None = None,
) -> Iterator[Transition]:
    """Play one episode in each row until all have ended.

    Rows that have ended are still stepped, which a batch of dreams supports. Ignore their results.

    Args:
        policy_seed: seed of the policy's random draws; default: the (first) seed of the environments, so that episodes
            with other seeds have other random actions.
        count: counts the steps of a real environment before they are taken.

    Raises:
        ValueError: the envs reset ended rows automatically, or cannot step them. For a single real env use
            `SyncVectorEnv([make], autoreset_mode=AutoresetMode.DISABLED)`.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise ValueError(f"rollout needs autoreset_mode=DISABLED, got {mode}")
    if isinstance(envs, SyncVectorEnv | AsyncVectorEnv) and envs.num_envs > 1:
        raise ValueError(
            f"{type(envs).__name__} must have one row, got {envs.num_envs}: their episodes have different "
            "lengths, and it cannot step a row whose episode has ended; "
            "play real episodes one at a time (policies.play does so in parallel processes)"
        )
    policy.reset(envs.num_envs, _first(seed) if policy_seed is None else policy_seed)
    obs, _ = envs.reset(seed=seed, options=options)  # type: ignore[arg-type]
    alive = np.ones(envs.num_envs, bool)
    while alive.any():
        act = policy.act(obs)
        if count is not None:
            count.add(int(alive.sum()))
        next_obs, rew, term, trunc, _ = envs.step(act)
        yield Transition(obs, act, rew, term, trunc, next_obs, alive)
        alive = alive & ~(term | trunc)
        obs = next_obs


def _first(seed: int | list[int | None] | None) -> int:
    """The first seed, or a random one without seeds."""
    first = seed[0] if isinstance(seed, list) else seed
    return int(np.random.default_rng().integers(2**31)) if first is None else int(first)


def check_seed(seed: int) -> None:
    """Check that an environment seed is not reserved for evaluation.

    Raises:
        ValueError: the seed is not between 0 and 999,999.
    """
    if not 0 <= seed < EVAL_SEED:
        raise ValueError(
            f"collection and training need environment seeds from 0 to {EVAL_SEED - 1:,}, got {seed:,}; "
            "seeds from 1,000,000 up are for evaluation only"
        )


def returns(transitions: Iterator[Transition]) -> NDArray[np.float64]:
    """Undiscounted return of every row, (N,)."""
    total = np.zeros(0)
    for step in transitions:
        if not total.size:
            total = np.zeros(len(step.rew))
        total += step.rew * step.alive
    return total
