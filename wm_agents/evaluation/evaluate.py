"""Real score and dream score of a policy, and the gap between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode
from rich.console import Console

from policies.play import EpisodeResult, EpisodeTask, play
from policies.policy import Policy
from policies.pool import Procs
from policies.rollout import EVAL_SEED, returns, rollout
from policies.step_count import StepCount
from wm_agents.degraded import degraded_of
from wm_agents.pretrained import frame_policy, load_dream
from wm_agents.system.progress import Bar
from wm_agents.system.run_folder import versions
from wm_envs.dream import DreamConfig, DreamVectorEnv
from wm_envs.real import probe
from wm_envs.registry import RealSpec, has_sticky_actions, protocol_of, without_sticky_actions
from wm_envs.world_model import Latent, WorldModel


class Score(NamedTuple):
    """Undiscounted returns of single episodes."""

    returns: list[float]
    frames: int = 0
    """Frames of the real environment, counting the last action of an episode completely."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Sample standard deviation of single episodes."""
        if len(self.returns) > 1:
            return float(np.std(self.returns, ddof=1))
        return 0.0

    @property
    def ci95(self) -> float:
        """Half width of the 95 % CI of the mean (Student); 0 for a single episode."""
        num = len(self.returns)
        if num > 1:
            return student95(num - 1) * self.std / math.sqrt(num)
        return 0.0

    def __str__(self) -> str:
        interval = f"95 % CI of the mean: ± {self.ci95:.1f}"
        return f"{self.mean:.1f} ± {self.std:.1f} ({interval}; {len(self.returns)} episodes)"

    def to_dict(self) -> dict[str, Any]:
        rounded = {"mean": self.mean, "std": self.std, "ci95": self.ci95}
        return {**{name: round(value, 3) for name, value in rounded.items()}, "returns": self.returns}


def student95(dof: int) -> float:
    """The 97.5 % quantile of Student's t distribution, accurate to three decimals."""
    few = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    if dof < 1:
        raise ValueError(f"the number of degrees of freedom must be at least 1, got {dof}; give at least two values")
    if dof <= len(few):
        return few[dof - 1]
    z = 1.959964  # The same quantile of a normal; then Abramowitz & Stegun 1964, eq. 26.7.5.
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / float(dof) ** i for i, term in enumerate(terms, 1))


def evaluate_real(
    spec: RealSpec,
    make_policy: Callable[[], Policy],
    seeds: Sequence[int],
    procs: Procs = 2,
    console: Console | None = None,
    count: StepCount | None = None,
) -> Score:
    """Play one real episode per seed; returns are in the order of `seeds`. `count` counts the steps."""
    played: list[EpisodeResult] = []
    with Bar(f"real {spec.id}", len(seeds), console) as bar:
        for episode in play(spec, make_policy, [EpisodeTask(seed) for seed in seeds], procs, count):
            played.append(episode)
            bar.update(len(played), f"mean return {np.mean([p.ret for p in played]):.1f}")
    steps = sum(p.steps for p in played)
    return Score([round(p.ret, 3) for p in sorted(played)], steps * spec.action_repeat)


def evaluate_dream(
    model: WorldModel,
    starts: dict[str, Latent],
    policy: Policy,
    dream: DreamConfig,
    *,
    episodes: int,
    seed: int,
) -> Score:
    """Play a batch of dreamed episodes, from first frames of real episodes. The policy observes latents."""
    if dream.horizon is None:
        raise ValueError("horizon must be a number of steps, got None; a dream without a horizon may never end")
    envs = DreamVectorEnv(model, starts, episodes, dream, obs="latent", autoreset_mode=AutoresetMode.DISABLED)
    return Score([round(float(r), 3) for r in returns(rollout(envs, policy, seed=seed, policy_seed=0))])


def dream_facts(cfg: DreamConfig) -> dict[str, Any]:
    """The settings of dreams that a report states."""
    return {"temperature": cfg.temperature, "horizon": cfg.horizon, "cut_off": cfg.cut_off}


def evaluate(
    model: str,
    *,
    episodes: int = 100,
    dream_episodes: int | None = None,
    seed: int = EVAL_SEED,
    procs: Procs = 2,
    both_protocols: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score the policy of a saved model: real score on held-out seeds, dream score, gap.

    Args:
        dream_episodes: default: the number of real episodes.
        both_protocols: also score the policy without sticky actions, as `real_without_sticky`.

    Raises:
        ValueError: seeds below 1,000,000, which training may have used, or `both_protocols` for an environment
            without sticky actions.
    """
    if seed < EVAL_SEED:
        raise ValueError(f"seed must be at least {EVAL_SEED:,}, because lower seeds are for training; got {seed:,}")
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    began = time.perf_counter()
    saved = load_dream(model)
    spec, policy = saved.spec, saved.policy
    if both_protocols and not has_sticky_actions(spec):
        raise ValueError(f"both_protocols needs a game with sticky actions, such as ALE/Pong-v5, got {spec.id}")
    probe(spec)  # Raises an error for an unsupported environment.
    cfg = saved.bounded
    # Dream first: it takes seconds, and shows errors of the model early.
    dreamed = dream_episodes or episodes
    dream = evaluate_dream(saved.model, saved.starts, policy, cfg, episodes=dreamed, seed=seed)

    def score(spec: RealSpec) -> Score:
        return evaluate_real(spec, partial(frame_policy, model), range(seed, seed + episodes), procs, console)

    real, other = score(spec), {}
    if both_protocols:
        plain = without_sticky_actions(spec)
        other["real_without_sticky"] = {
            "env": spec.id,
            "episodes": episodes,
            "seed": seed,
            "protocol": protocol_of(plain),
            **score(plain).to_dict(),
        }
    return {
        "model": model,
        "policy": policy.about()["kind"],
        "real": {"env": spec.id, "episodes": episodes, "seed": seed, **real.to_dict()},
        **other,
        "dream": {"episodes": dreamed, "seed": seed, **dream_facts(cfg), **dream.to_dict()},
        "degraded_modes": degraded_of(saved.artifact),
        "protocol": protocol_of(spec),
        "gap": round(dream.mean - real.mean, 3),
        "frames": real.frames,
        "wall_s": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }
