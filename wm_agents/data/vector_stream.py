"""Real environments in lockstep: takes one batch of actions per step and returns whole episodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from policies.step_count import StepCount
from wm_agents.data.episode import Episode, NonFiniteStep, check_episode, check_step
from wm_envs.real import make_real
from wm_envs.registry import RealSpec

Array = NDArray[Any]


class Stream:
    """`num` environments in lockstep; a row whose episode ends starts the next one with the next seed.

    Rows without a seed stop; `going` marks the active rows. Use it in a `with` statement, or close it.

    Args:
        count: counts the steps of all rows before they are taken.
    """

    def __init__(self, spec: RealSpec, num: int, seeds: Iterator[int], count: StepCount | None = None) -> None:
        if num < 1:
            raise ValueError(f"num must be at least 1, got {num}")
        self.envs: list[gym.Env[Any, Any]] = [make_real(spec) for _ in range(num)]
        self.spec, self.seeds, self.count = spec, seeds, count
        self.obs_space, self.act_space = self.envs[0].observation_space, self.envs[0].action_space
        self.obs: Array = np.zeros((num, *(self.obs_space.shape or ())), self.obs_space.dtype)
        """(N, *obs_shape): the current observation of each row."""
        self.first = np.ones(num, bool)
        """(N,): it is the first of an episode."""
        self.going = np.ones(num, bool)
        self._played: list[_Played] = [_Played() for _ in range(num)]
        for row in range(num):
            self._open(row)

    def step(self, act: Array) -> list[tuple[int, Episode]]:
        """Take one step in every active row and return the finished episodes, each with its row."""
        ended = []
        if self.count is not None:
            self.count.add(int(self.going.sum()))
        for row in map(int, np.flatnonzero(self.going)):
            obs, rew, term, trunc, _ = self.envs[row].step(act[row])
            played = self._played[row]
            played.obs.append(np.array(obs))
            played.act.append(np.array(act[row]))
            played.rew.append(float(rew))
            self._check(row)
            self.obs[row], self.first[row] = obs, False
            if term or trunc:
                ended.append((row, played.episode(bool(term), bool(trunc))))
                self._open(row)
        return ended

    def _open(self, row: int) -> None:
        seed = next(self.seeds, None)
        if seed is None:
            self.going[row] = False
            return
        obs, _ = self.envs[row].reset(seed=seed)
        self.obs[row], self.first[row] = obs, True
        self._played[row] = _Played(seed, np.array(obs))
        self._check(row)

    def _check(self, row: int) -> None:
        """Check the last observation and reward of a row."""
        played = self._played[row]
        try:
            check_step(played.obs[-1], (played.rew or [0.0])[-1], played.seed, len(played.rew))
        except NonFiniteStep as error:
            raise NonFiniteStep(f"{self.spec.id}: {error}") from error

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Played:
    """An unfinished episode."""

    def __init__(self, seed: int = 0, obs: Array | None = None) -> None:
        self.seed = seed
        self.obs: list[Array] = []
        if obs is not None:
            self.obs.append(obs)
        self.act: list[Array] = []
        self.rew: list[float] = []

    def episode(self, term: bool, trunc: bool) -> Episode:
        rew = np.array(self.rew, np.float32)
        ep = Episode(np.stack(self.obs), np.stack(self.act), rew, term, trunc, self.seed, {})
        check_episode(ep)
        return ep
