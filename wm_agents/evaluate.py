"""What a policy scores in the real environment and in the dream, and the gap between the two."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.progress import track

from policies.play import Job, play
from policies.policy import Policy, RandomPolicy
from policies.rollout import returns, rollout
from wm_agents.pretrained import frame_policy, load_model, load_policy, load_starts, real_spec
from wm_agents.runlog import versions
from wm_envs.dream import DreamVectorEnv
from wm_envs.real import make_real
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent, WorldModel

HELD_OUT = 1_000_000
"""Environment seeds from here up are for evaluation alone; the collector refuses them."""


class Score(NamedTuple):
    """Undiscounted returns of single episodes."""

    returns: list[float]
    frames: int = 0
    """Real environment frames played."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Spread of single episodes (sample standard deviation)."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def ci95(self) -> float:
        """Half width of the 95 % interval of the mean."""
        return 1.96 * self.std / math.sqrt(len(self.returns))

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f} (95 % of the mean: ± {self.ci95:.1f}; {len(self.returns)} episodes)"

    def to_dict(self) -> dict[str, Any]:
        rounded = {"mean": self.mean, "std": self.std, "ci95": self.ci95}
        return {**{name: round(value, 3) for name, value in rounded.items()}, "returns": self.returns}


def evaluate_real(
    spec: RealSpec,
    make_policy: Callable[[], Policy],
    seeds: Sequence[int],
    procs: int = 2,
    console: Console | None = None,
) -> Score:
    """Play one real episode a seed; returns are in the order of `seeds`."""
    jobs = [Job(seed) for seed in seeds]
    episodes = track(
        play(spec, make_policy, jobs, procs),
        f"real {spec.id}",
        total=len(jobs),
        console=console or Console(stderr=True),
        disable=console is None,
    )
    played = sorted(episodes)
    return Score([round(p.ret, 3) for p in played], sum(p.steps for p in played) * spec.action_repeat)


def evaluate_dream(
    model: WorldModel,
    starts: dict[str, Latent],
    policy: Policy,
    *,
    episodes: int,
    seed: int,
    horizon: int | None,
    temperature: float = 1.0,
) -> Score:
    """Play dreamed episodes of the policy on latents, all at once, from first frames of real episodes."""
    if horizon is None:
        raise ValueError("horizon must be a number of steps: a dream without one may never end")
    envs = DreamVectorEnv(
        model,
        starts,
        episodes,
        obs="latent",
        horizon=horizon,
        temperature=temperature,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    return Score([round(float(r), 3) for r in returns(rollout(envs, policy, seed=seed))])


def evaluate(
    model: str, *, episodes: int = 100, seed: int = HELD_OUT, procs: int = 2, console: Console | None = None
) -> dict[str, Any]:
    """Judge the policy that a model carries: real score on held-out seeds, dream score, gap.

    Raises:
        ValueError: seeds below 1,000,000, which training may have used.
    """
    if seed < HELD_OUT:
        raise ValueError(f"seed must be at least {HELD_OUT:,}: lower ones may have been trained on; got {seed}")
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    began = time.perf_counter()
    net, artifact = load_model(model)
    policy, spec = load_policy(net, artifact), real_spec(artifact)
    seeds = range(seed, seed + episodes)
    real = evaluate_real(spec, partial(frame_policy, model), seeds, procs, console)
    dream = evaluate_dream(
        net, load_starts(artifact), policy, episodes=episodes, seed=seed, horizon=artifact.config["horizon"]
    )
    return {
        "model": model,
        "policy": "linear",
        "real": {"env": spec.id, "episodes": episodes, "seed": seed, **real.to_dict()},
        "dream": dream.to_dict(),
        "gap": round(dream.mean - real.mean, 3),
        "frames": real.frames,
        "wall_s": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }


def random_policy(spec: RealSpec) -> Policy:
    """The floor: uniform actions."""
    env: gym.Env[Any, Any] = make_real(spec)
    space = env.action_space
    env.close()
    return RandomPolicy(space)
