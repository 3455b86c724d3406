"""Opens and times, in the same way, each interface through which users step an environment. Here it is called a door.

This file calls only the public API, so that it can also time other versions of the code
(`scripts/bench_dream_speed.py --against`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import cycle
from typing import Any, Literal, NamedTuple, TextIO

import gymnasium as gym
import numpy as np
from gymnasium.utils import performance
from gymnasium.vector import VectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

import wm_envs
from policies.sb3 import DreamVecEnv

Way = Literal["gym.make", "SyncVectorEnv", "AsyncVectorEnv", "native vector", "make_vec_env", "DreamVecEnv"]
AnyEnv = gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | VecEnv
ACTIONS = 64
"""Number of random actions that are drawn in advance and repeated, so that drawing them is not timed."""
LONGEST = 25
"""A measurement over whole episodes ends at this multiple of its duration, even within an episode."""
WARM_UP = 3
"""Number of first steps, which are slow and not timed."""
MAKE_VEC: dict[Way, dict[str, Any]] = {
    "native vector": {},
    "DreamVecEnv": {},
    "SyncVectorEnv": {"vectorization_mode": "sync"},
    # A forked process may hang where torch has started threads.
    "AsyncVectorEnv": {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}},
}
"""Arguments of `gym.make_vec`, by interface."""


class Door(NamedTuple):
    """One interface to one environment."""

    way: Way
    id: str
    """Gymnasium id."""
    rows: int = 1
    kwargs: dict[str, Any] = {}  # noqa: RUF012  Never changed.
    """Keyword arguments of the environment."""
    whole_episodes: bool = False
    """Measure whole episodes of the first environment, so that slow resets count as often as they occur."""

    @property
    def call(self) -> str:
        """Python code that opens this interface."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
        if self.way == "gym.make":
            return f"gym.make({', '.join(filter(None, (repr(self.id), given)))})"
        if self.way == "make_vec_env":
            options = f"env_kwargs={self.kwargs}" if self.kwargs else ""
            return f"make_vec_env({', '.join(filter(None, (repr(f'wm_envs:{self.id}'), str(self.rows), options)))})"
        mode = MAKE_VEC[self.way].get("vectorization_mode")
        arguments = filter(None, (repr(self.id), str(self.rows), mode and repr(mode), given))
        call = f"gym.make_vec({', '.join(arguments)})"
        return f"DreamVecEnv({call})" if self.way == "DreamVecEnv" else call


class OpenDoor:
    """An environment that was made and reset."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.env = make(door)
        self.step: Callable[[], bool] = STEPS[kind_of(self.env)](self.env, draw_actions(self.env, door.rows))
        """Steps every environment once; returns whether the first environment's episode ended."""
        for _ in range(WARM_UP):
            self.step()

    def spell(self, seconds: float) -> float:
        """Measure steps per second of all environments together, for at least `seconds`."""
        calls, began = 0, time.perf_counter()
        while True:
            ended = self.step()
            calls += 1
            spent = time.perf_counter() - began
            may_end = ended or not self.door.whole_episodes or spent >= LONGEST * seconds
            if spent >= seconds and may_end:
                return self.door.rows * calls / spent

    def gymnasium_figure(self, seconds: float) -> float | None:
        """Measure steps per second with Gymnasium's own benchmark, which also times the sampling of actions.

        Returns:
            None if the installed version has no benchmark for this kind of environment.
        """
        names = {"single": "benchmark_step", "vector": "benchmark_vector_step"}
        benchmark = getattr(performance, names.get(kind_of(self.env), ""), None)
        return None if benchmark is None else float(benchmark(self.env, seconds, seed=0))

    def close(self) -> None:
        """Close the environment and its processes."""
        self.env.close()


def make(door: Door) -> AnyEnv:
    """Make the environment of one interface (gym.make, a vector environment, SB3) without resetting it."""
    if door.way == "gym.make":
        return gym.make(door.id, **door.kwargs)
    if door.way == "make_vec_env":
        return make_vec_env(f"wm_envs:{door.id}", door.rows, env_kwargs=door.kwargs)
    envs = gym.make_vec(door.id, door.rows, **MAKE_VEC[door.way], **door.kwargs)
    return DreamVecEnv(envs) if door.way == "DreamVecEnv" else envs


def kind_of(env: AnyEnv) -> Literal["single", "vector", "sb3"]:
    """Return which kind of interface an environment has."""
    if isinstance(env, VecEnv):
        return "sb3"
    return "vector" if isinstance(env, VectorEnv) else "single"


def draw_actions(env: AnyEnv, rows: int) -> list[Any]:
    """Draw `ACTIONS` random actions, each for all rows."""
    env.action_space.seed(0)
    if not isinstance(env, VecEnv):
        return [env.action_space.sample() for _ in range(ACTIONS)]
    return [np.stack([env.action_space.sample() for _ in range(rows)]) for _ in range(ACTIONS)]


def single_steps(env: Any, actions: list[Any]) -> Callable[[], bool]:
    """Return a function that steps one environment and resets it when its episode ends."""
    env.reset(seed=0)
    following = cycle(actions)

    def step() -> bool:
        _, _, term, trunc, _ = env.step(next(following))
        if term or trunc:
            env.reset()
        return bool(term or trunc)

    return step


def vector_steps(envs: Any, actions: list[Any]) -> Callable[[], bool]:
    """Return a function that steps a vector environment of Gymnasium."""
    envs.reset(seed=0)
    following = cycle(actions)

    def step() -> bool:
        _, _, term, trunc, _ = envs.step(next(following))
        return bool(term[0] or trunc[0])

    return step


def sb3_steps(envs: Any, actions: list[Any]) -> Callable[[], bool]:
    """Return a function that steps a vector environment of Stable-Baselines3."""
    envs.seed(0)
    envs.reset()
    following = cycle(actions)
    return lambda: bool(envs.step(next(following))[2][0])


STEPS = {"single": single_steps, "vector": vector_steps, "sb3": sb3_steps}


def by_turns(spells: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Call the functions in turn until `seconds` have passed for each, so that other processes slow all
    equally.

    Returns:
        For each name, one result per round.
    """
    rates: dict[str, list[float]] = {name: [] for name in spells}
    end = time.perf_counter() + seconds * len(spells)
    while True:
        for name, spell in spells.items():
            rates[name].append(spell())
        if time.perf_counter() >= end:
            return rates


def serve() -> None:
    """Open and time doors on request of the parent process: requests on stdin, answers on stdout."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # Keep other output away from the parent.
    answer(sys.stdin, answers)


def answer(questions: TextIO, answers: TextIO) -> None:
    """Answer every line with a line of JSON, `{name: value}`.

    A line that contains a `Door` as JSON opens it. After it, the lines "spell SECONDS" and "gymnasium_figure
    SECONDS" each measure it for that time, until the line "close".
    """
    print(json.dumps({"package": wm_envs.__file__}), file=answers)
    for line in iter(questions.readline, ""):
        try:
            with closing(OpenDoor(Door(*json.loads(line)))) as opened:
                print(json.dumps({"call": opened.door.call}), file=answers)
                for name, seconds in map(str.split, iter(questions.readline, "close\n")):
                    print(json.dumps({name: getattr(opened, name)(float(seconds))}), file=answers)
        except Exception as error:  # The parent decides whether other doors are opened.
            print(json.dumps({"failed": f"{type(error).__name__}: {error}"}), file=answers)
