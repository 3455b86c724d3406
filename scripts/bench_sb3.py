"""Agent steps per second of SB3's PPO, for rollouts and updates together, in a dream and in the real environment.

    python scripts/bench_sb3.py                        the shipped CarRacing dream, on all cores
    python scripts/bench_sb3.py --task CartPole --seconds 60 --json

Each is measured twice: as `DreamVecEnv` (hundreds of dreams, or one process per real environment), and as SB3's
`make_vec_env(id, 8)`, which steps one environment after another.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

import wm_envs  # noqa: F401  Registers the ids.
from policies.sb3 import DreamVecEnv
from wm_agents.errors import ConfigurationError
from wm_agents.system.hardware import check_threads, describe, num_cores

BAR = 10_000  # Agent steps a second in the dream, on two free cores.
STEPS = 64  # A rollout, times the number of dreams.
EPOCHS, MINIBATCHES, LR = 10, 8, 1e-3  # As train_sb3_in_dream.py has them.
REAL_STEPS = 512
OWN_ENVS = 8  # Of SB3's make_vec_env.
IN_PROCESSES = ("real, latents", "real, pixels")  # Their time is not this process's own.


class Clock(BaseCallback):
    """Wall time of rollouts and of updates."""

    def __init__(self) -> None:
        super().__init__()
        self.spent = {"rollout": 0.0, "update": 0.0}
        self._last = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._lap("update")

    def _on_rollout_end(self) -> None:
        self._lap("rollout")

    def _on_training_end(self) -> None:
        self._lap("update")

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.spent[name] += now - self._last
        self._last = now


class Case(NamedTuple):
    """One case."""

    name: str
    policy: str
    num_envs: int
    num_steps: int
    make: Callable[[], VecEnv]


class Speed(NamedTuple):
    """Agent steps per second."""

    case: str
    policy: str
    num_envs: int
    num_steps: int
    batch_size: int
    steps: int
    learn_sps: float
    """`learn()` as a whole."""
    env_sps: float
    """The environment alone with random actions, which limits any algorithm."""
    cpu_sps: float
    """Per second of CPU time of this process, which other processes hardly change."""
    rollout_share: float


def dream(env_id: str, num: int) -> VecEnv:
    return VecMonitor(DreamVecEnv(gym.make_vec(env_id, num_envs=num, obs="latent", start="anywhere", precision="auto")))


def real(env_id: str, num: int, obs: str) -> VecEnv:
    """One process with one thread per environment."""
    os.environ["OMP_NUM_THREADS"] = "1"  # This process has read it already.
    workers = {"autoreset_mode": AutoresetMode.SAME_STEP, "context": "spawn"}
    return VecMonitor(DreamVecEnv(gym.make_vec(env_id, num, "async", workers, obs=obs)))


def own(env_id: str) -> VecEnv:
    """As made by SB3's make_vec_env."""
    return make_vec_env(f"wm_envs:{env_id}", OWN_ENVS, env_kwargs={"obs": "latent"})


def measure(case: Case, seconds: float) -> Speed:
    """Time the environment alone for a quarter of `seconds`, then `learn()` in whole iterations for about `seconds`."""
    envs = case.make()
    try:
        env_sps = random_sps(envs, seconds / 4)
        rollout = case.num_envs * case.num_steps
        batch_size = max(rollout // MINIBATCHES, 2)
        model = PPO(
            case.policy,
            envs,
            n_steps=case.num_steps,
            batch_size=batch_size,
            n_epochs=EPOCHS,
            learning_rate=LR,
            seed=0,
            device="cpu",
        )
        steps, spent = 0, {"rollout": 0.0, "update": 0.0}
        began, cpu = time.perf_counter(), time.process_time()
        while not steps or time.perf_counter() - began < seconds:
            clock = Clock()
            model.learn(rollout, clock)
            spent = {name: total + clock.spent[name] for name, total in spent.items()}
            steps += rollout
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    finally:
        envs.close()
    share = spent["rollout"] / sum(spent.values())
    sizes = (case.num_envs, case.num_steps, batch_size, steps)
    return Speed(case.name, case.policy, *sizes, steps / wall, env_sps, steps / cpu, share)


def random_sps(envs: VecEnv, seconds: float) -> float:
    envs.action_space.seed(0)
    acts = np.stack([envs.action_space.sample() for _ in range(envs.num_envs)])
    envs.reset()
    steps, began = 0, time.perf_counter()
    while not steps or time.perf_counter() - began < seconds:
        envs.step(acts)
        steps += envs.num_envs
    return steps / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="CarRacing", help="a task with a shipped dream")
    parser.add_argument("--num-envs", type=int, default=512, help="dreams side by side")
    parser.add_argument("--real-envs", type=int, default=num_cores(), help="real ones, each in a process")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each learn()")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; all cores by default")
    parser.add_argument(
        "--pixels", action="store_true", help="also time the real environment with pixels and CnnPolicy"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    args = parser.parse_args()
    try:
        torch.set_num_threads(torch.get_num_threads() if args.threads is None else check_threads(args.threads))
    except ConfigurationError as error:
        parser.error(str(error))
    console = Console(stderr=args.json)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    machine = {**describe(), "threads": torch.get_num_threads(), "torch": torch.__version__, "load": load}
    console.print(machine)
    console.print(
        f"PPO of Stable-Baselines3: net 64-64 tanh, {EPOCHS} epochs of {MINIBATCHES} minibatches a rollout, "
        f"learning rate {LR}, the rest SB3's defaults; seed 0; the machine's load before the start was {load}"
    )
    dream_id, real_id = f"Dream-{args.task}-v0", f"Real-{args.task}-v0"
    few = (args.real_envs, REAL_STEPS)
    cases = [
        Case("dream, latents", "MlpPolicy", args.num_envs, STEPS, lambda: dream(dream_id, args.num_envs)),
        Case("real, latents", "MlpPolicy", *few, lambda: real(real_id, args.real_envs, "latent")),
        Case("dream, make_vec_env", "MlpPolicy", OWN_ENVS, STEPS, lambda: own(dream_id)),
        Case("real, make_vec_env", "MlpPolicy", OWN_ENVS, STEPS, lambda: own(real_id)),
    ]
    if args.pixels:
        cases.append(Case("real, pixels", "CnnPolicy", *few, lambda: real(real_id, args.real_envs, "pixels")))
    speeds = []
    for case in cases:
        speeds.append(measure(case, args.seconds))
        console.print(f"{case.name}: {speeds[-1].learn_sps:,.0f} agent steps/s")
    console.print(report(args.task, speeds))
    console.print(
        "agent steps a second; the environment alone is what no learner can pass; rollouts: share of the time"
    )
    verdict = "reached" if speeds[0].learn_sps >= BAR else "not reached"
    console.print(f"bar for the dream, on two free cores: {BAR:,} agent steps/s; {verdict} here")
    if args.json:
        print(json.dumps({"machine": machine, "speeds": [speed._asdict() for speed in speeds]}))


def report(task: str, speeds: list[Speed]) -> Table:
    table = Table("", "envs x steps", "learn()", "x real", "env alone", "per CPU-s", "rollouts", title=f"PPO in {task}")
    for speed in speeds:
        table.add_row(
            f"{speed.case}\n{speed.policy}",
            f"{speed.num_envs} x {speed.num_steps}",
            f"{speed.learn_sps:,.0f}",
            f"{speed.learn_sps / speeds[1].learn_sps:,.1f}",
            f"{speed.env_sps:,.0f}",
            "" if speed.case in IN_PROCESSES else f"{speed.cpu_sps:,.0f}",
            f"{speed.rollout_share:.0%}",
        )
    return table


if __name__ == "__main__":
    main()
