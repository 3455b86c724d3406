"""The improvement loop: collect -> see -> remember -> dream -> judge, in rounds.

A dream learned from random play is only good where random play went, so each round drives the last controller in
the real environment, refits the model on all data and evolves the controller in the new dream. Every stage resumes by
itself; a run that is killed anywhere goes on by the same command.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file

from policies.cmaes import CMAConfig, Generation, evolve, score_in_dream, unflatten
from policies.linear import LinearPolicy, num_params
from policies.policy import HeldActions, NoisyPolicy, OrnsteinUhlenbeck, Policy
from wm_agents.checkpoint import load_weights
from wm_agents.data.collect import CollectConfig, collect
from wm_agents.data.dataset import Dataset
from wm_agents.evaluate import evaluate_real
from wm_agents.hardware import has_bf16
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.pretrained import frame_policy, load_model, load_policy, load_starts, save_model
from wm_agents.runlog import RunFolder, start_run
from wm_agents.training.callbacks import Callback, LoggingCallback, ProgressCallback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.vmc import encode_dataset, fit_memory, fit_vision, make_starts, set_reward_scale
from wm_envs.dream import DreamVectorEnv
from wm_envs.real import make_real
from wm_envs.registry import RealSpec

STAGES = ("collect", "vision", "memory", "evolve", "judge")
SEEDS_A_ROUND = 20_000
JUDGE_SEED = 900_000  # Model selection's own seeds: never collected, never the held-out ones.

VISION = TrainingConfig(updates=4000, batch_size=64, lr=2e-3, schedule="onecycle")
MEMORY = TrainingConfig(updates=3000, batch_size=64, lr=1e-3, schedule="onecycle", grad_clip=1.0)


@dataclass(frozen=True)
class ImproveConfig:
    """One run of the loop."""

    spec: RealSpec
    out: str
    rounds: int = 8
    random_steps: int = 60_000
    """Agent steps of exploration before the first round."""
    round_steps: int = 30_000
    """Agent steps with the last controller, before each further round."""
    stall: int | None = None
    """Collected episodes are cut after so many steps without reward."""
    noise: tuple[float, ...] = (0.0, 0.3, 0.6)
    """Exploration noise on the controller, one level drawn an episode."""
    model: VMCConfig = field(default_factory=VMCConfig)
    vision: TrainingConfig = VISION
    vision_rounds: int = 3
    """V is fitted in the first rounds and then kept, so that latents hold still; refits take half the updates."""
    memory: TrainingConfig = MEMORY
    window: int = 64
    cma: CMAConfig = field(default_factory=CMAConfig)
    squash: tuple[str, ...] | None = None
    horizon: int = 150
    """Steps of a dream that the controller is evolved in."""
    temperature: float = 1.0
    judge_episodes: int = 24
    """Real episodes that each round's controller is judged on, for choosing the round."""
    starts: int = 512
    """Latents in each bank of the artifact."""
    seed: int = 1
    procs: int = 2
    max_gb: float = 5.0

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for machine_only in ("out", "procs", "rounds", "max_gb"):
            values.pop(machine_only)
        return values


class Improvement:
    """The loop, one method a stage."""

    def __init__(self, cfg: ImproveConfig, run: RunFolder, console: Console) -> None:
        self.cfg, self.run, self.console = cfg, run, console
        self.data_dir = run.path / "data"
        self.round: int = run.state.get("round", 0)
        self.stage: str = run.state.get("stage", STAGES[0])

    def loop(self) -> None:
        """Run the stages that are left, and note each one's end."""
        while self.round < self.cfg.rounds:
            began = time.perf_counter()
            self.console.print(f"round {self.round}: {self.stage}")
            facts = getattr(self, self.stage)()
            facts["wall_s"] = time.perf_counter() - began
            self._note(facts)

    def collect(self) -> dict[str, float]:
        """Drive for real: explore at first, then the last controller with noise."""
        cfg = self.cfg
        first = self.round == 0
        summary = collect(
            CollectConfig(
                cfg.spec,
                str(self.data_dir),
                steps=cfg.random_steps if first else cfg.round_steps,
                seed=cfg.seed + self.round * SEEDS_A_ROUND,
                procs=cfg.procs,
                stall=cfg.stall,
                max_gb=cfg.max_gb,
            ),
            explore if first else partial(explore_with, str(self._dir(self.round - 1) / "model"), cfg.noise),
            console=self.console,
        )
        if summary.stopped == "interrupted":
            raise KeyboardInterrupt
        return {"return": float(np.mean(summary.returns)), "steps": summary.steps}

    def vision(self) -> dict[str, float]:
        """Fit V, or keep it once it has seen enough."""
        if self.round >= self.cfg.vision_rounds:
            return {}
        training = self.cfg.vision if self.round == 0 else _half(self.cfg.vision)
        result = fit_vision(
            self._last_model(), Dataset(self.data_dir), training, self._dir() / "vision", self._callbacks("vision")
        )
        return {"val": result.best_val or 0.0}

    def memory(self) -> dict[str, float]:
        """Fit M on all data through the present V, and draw the starts of dreams."""
        cfg, model = self.cfg, self._last_model()
        if (fitted := self._dir() / "vision" / "best.safetensors").exists():
            load_weights(model.vision, load_file(fitted))
        data = encode_dataset(model, Dataset(self.data_dir))
        if self.round == 0:
            set_reward_scale(model, data)
        result = fit_memory(model, data, cfg.memory, self._dir() / "memory", cfg.window, self._callbacks("memory"))
        starts = make_starts(model, data, cfg.starts, np.random.default_rng([cfg.seed, self.round]))
        save_model(self._dir() / "model", model, cfg.spec, starts, horizon=cfg.spec.max_episode_steps, card="")
        return {"val": result.best_val or 0.0}

    def evolve(self) -> dict[str, float]:
        """Evolve the controller in the dream, from where the last round's mean stood."""
        cfg, path = self.cfg, self._dir() / "model"
        model, artifact = load_model(path)
        envs = DreamVectorEnv(
            model,
            load_starts(artifact),
            cfg.cma.population * cfg.cma.rollouts,
            obs="latent",
            temperature=cfg.temperature,
            horizon=cfg.horizon,
            autoreset_mode=AutoresetMode.DISABLED,
            precision="bf16" if has_bf16(model.device) else "fp32",
        )
        evolution = evolve(
            score_in_dream(envs, cfg.cma, squash=cfg.squash),
            self._last_mean(model),
            cfg.cma,
            state=self._dir() / "evolution.json",
            on_generation=self._report,
        )
        policy = LinearPolicy(model.act_space, unflatten(evolution.mean, model.act_space), cfg.squash)
        starts = load_starts(artifact)
        save_model(path, model, cfg.spec, starts, horizon=cfg.spec.max_episode_steps, card="", policy=policy)
        return {"dream": float(evolution.told[-1].mean())}

    def judge(self) -> dict[str, float]:
        """Drive for real without noise, on seeds kept for choosing between rounds."""
        seeds = range(JUDGE_SEED, JUDGE_SEED + self.cfg.judge_episodes)
        score = evaluate_real(
            self.cfg.spec, partial(frame_policy, str(self._dir() / "model")), list(seeds), self.cfg.procs
        )
        self.console.print(f"  real return {score.mean:.0f} ± {score.std:.0f} ({len(score.returns)} episodes)")
        return {"real": score.mean, "std": score.std}

    def _note(self, facts: dict[str, float]) -> None:
        """Record a stage's facts and step on."""
        self.run.metrics(self.round, {f"{self.stage}/{name}": value for name, value in facts.items()})
        history = {**self.run.state.get("history", {})}
        history.setdefault(str(self.round), {})[self.stage] = facts
        at = STAGES.index(self.stage) + 1
        self.round, self.stage = (self.round, STAGES[at]) if at < len(STAGES) else (self.round + 1, STAGES[0])
        self.run.update(round=self.round, stage=self.stage, history=history)

    def _report(self, generation: Generation) -> None:
        values = {"dream/return": generation.mean, "dream/best": generation.best, "dream/sigma": generation.sigma}
        self.run.metrics(self.round * self.cfg.cma.generations + generation.number, values)
        if generation.number % 10 == 0:
            text = f"  generation {generation.number}: dream return {generation.mean:.1f}, {generation.wall_s:.2f} s"
            self.console.print(text)

    def _dir(self, index: int | None = None) -> Path:
        return self.run.path / f"round-{self.round if index is None else index:02d}"

    def _last_model(self) -> VMC:
        """The model as the round before left it; a new one at first."""
        if self.round > 0:
            return load_model(self._dir(self.round - 1) / "model")[0]
        env = make_real(self.cfg.spec)
        obs_space, act_space = env.observation_space, env.action_space
        env.close()
        torch.manual_seed(self.cfg.seed)
        return VMC(self.cfg.model, obs_space, act_space)

    def _last_mean(self, model: VMC) -> NDArray[np.float64]:
        if self.round == 0:
            return np.zeros(num_params(model.act_space, model.feat_dim))
        last, artifact = load_model(self._dir(self.round - 1) / "model")
        return load_policy(last, artifact).weights.ravel().astype(np.float64)

    def _callbacks(self, name: str) -> tuple[Callback, ...]:
        return LoggingCallback(), ProgressCallback(f"round {self.round} {name}", self.console)


def improve(cfg: ImproveConfig, console: Console | None = None) -> Path:
    """Run the loop, or what is left of it, in the folder `cfg.out`."""
    console = console or Console(stderr=True)
    with start_run(cfg.out, cfg.to_dict(), {"collect": cfg.seed, "judge": JUDGE_SEED}) as run:
        Improvement(cfg, run, console).loop()
    return Path(cfg.out)


def explore(env: gym.Env[Any, Any]) -> Policy:
    """The policy of the first round's data."""
    if isinstance(env.action_space, gym.spaces.Box):
        return OrnsteinUhlenbeck(env.action_space)
    return HeldActions(env.action_space)


def explore_with(model: str, noise: tuple[float, ...], env: gym.Env[Any, Any]) -> Policy:
    """The policy of later rounds' data: a controller, shaken."""
    return NoisyPolicy(frame_policy(model), env.action_space, noise)


def _half(cfg: TrainingConfig) -> TrainingConfig:
    return cfg.replace(updates=max(cfg.updates // 2, 1), lr=cfg.lr / 2)
