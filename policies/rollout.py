"""The only loop that steps environments: collecting, judging and evolving all call it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from policies.policy import Policy

Array = NDArray[Any]


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
    """(N,) bool: the row's episode was still going when `act` was taken; ignore the row elsewhere."""


def rollout(
    envs: VectorEnv[Array, Array, Array],
    policy: Policy,
    *,
    seed: int | list[int | None] | None,
    policy_seed: int = 0,
    options: dict[str, Any] | None = None,
) -> Iterator[Transition]:
    """Play one episode in each row until all have ended.

    Raises:
        ValueError: the envs reset ended rows by themselves; a single real env is
            `SyncVectorEnv([make], autoreset_mode=AutoresetMode.DISABLED)`.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise ValueError(f"rollout needs autoreset_mode=DISABLED, got {mode}")
    policy.reset(envs.num_envs, policy_seed)
    obs, _ = envs.reset(seed=seed, options=options)  # type: ignore[arg-type]
    alive = np.ones(envs.num_envs, bool)
    while alive.any():
        act = policy.act(obs)
        next_obs, rew, term, trunc, _ = envs.step(act)
        yield Transition(obs, act, rew, term, trunc, next_obs, alive)
        alive = alive & ~(term | trunc)
        obs = next_obs


def returns(transitions: Iterator[Transition]) -> NDArray[np.float64]:
    """Undiscounted return of every row, (N,)."""
    total: NDArray[np.float64] = np.sum([step.rew * step.alive for step in transitions], axis=0, dtype=np.float64)
    return total
