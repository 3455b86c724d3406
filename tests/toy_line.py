"""A real environment that `Toy` dreams exactly, and models of it that are bent in one known way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from toy import BOX, Toy

from policies.latent import LatentPolicy
from policies.linear import LinearPolicy
from policies.play import EpisodeTask
from policies.policy import Array
from wm_agents.data.episode import Episode
from wm_agents.evaluation.held_out import record
from wm_agents.evaluation.subject import Subject
from wm_agents.evaluation.variants import Contender, controller
from wm_envs.dream import DreamConfig
from wm_envs.noise import Generator
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent, Step

END = 4.0


class Line(gym.Env):
    """x' = x + move from x = 0, reward = move, over where x' > end; the observation is (x, move)."""

    def __init__(self, end: float = END, render_mode: str | None = None) -> None:
        self.end, self.render_mode = end, render_mode
        self.action_space, self.observation_space = BOX, spaces.Box(-999, 999, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict]:
        super().reset(seed=seed)
        self.x = np.float32(0)
        return np.zeros(2, np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict]:
        self.x = np.float32(self.x + action[0])
        return np.array([self.x, action[0]], np.float32), float(action[0]), bool(self.x > self.end), False, {}


if "Line-v0" not in gym.registry:
    gym.register("Line-v0", entry_point="toy_line:Line")

LINE = RealSpec("Line-v0", max_episode_steps=20)


class Drifting(Toy):
    """Every dreamed step goes `drift` too far."""

    drift = 0.1

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        out = super().step(latent, act, temperature=temperature, generator=generator)
        return out._replace(latent={"x": out.latent["x"] + torch.tensor([self.drift, 0.0])})


class Backwards(Toy):
    """Pays the opposite."""

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        out = super().step(latent, act, temperature=temperature, generator=generator)
        return out._replace(rew=-out.rew)


class Doubtful(Toy):
    """Goes too far by a tenth of the move, and says so: its members disagree just as much."""

    members = 2

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        out = super().step(latent, act, temperature=temperature, generator=generator)
        off = 0.1 * out.rew.abs()
        return out._replace(latent={"x": out.latent["x"] + torch.stack([off, torch.zeros_like(off)], 1)})

    def disagreement(self, latent: Latent, act: Tensor, ahead: Latent) -> Tensor:
        return 0.1 * (act @ self.moves)[:, 0].abs()


class Hot(Toy):
    """Pays the temperature."""

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        out = super().step(latent, act, temperature=temperature, generator=generator)
        return out._replace(rew=torch.full_like(out.rew, temperature))


def constant(move: float) -> LinearPolicy:
    """Moves by `move` at every step."""
    return LinearPolicy(BOX, np.array([[0.0, 0.0, np.arctanh(move)]]))


def subject(model: Toy, policy: LinearPolicy | None = None) -> Subject:
    """The model with dreams from x = 0 and a policy that moves by 0.45: 9 steps to the end."""
    starts = {bank: model.initial(8) for bank in ("begin", "anywhere")}
    return Subject(model, starts, policy or constant(0.45), DreamConfig(horizon=20))


def playing(model: Toy, policy: LinearPolicy | None, spec: RealSpec = LINE) -> Any:
    """Plays the jobs of `measure` in this process."""

    def make(who: Contender) -> LatentPolicy:
        return LatentPolicy(model, controller(policy, BOX, who))

    def play(jobs: Sequence[EpisodeTask]) -> Iterator[Episode]:
        return record(spec, make, jobs, procs=0)

    return play
