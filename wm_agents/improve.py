"""The improvement loop: collect -> see -> remember -> dream -> judge, in rounds.

A dream learned from random play is only good where random play went, so each round drives the last controller in
the real environment, refits the model on all data and evolves the controller in the new dream. Every stage resumes by
itself; a run that is killed anywhere goes on by the same command.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file

from policies.cmaes import CMAConfig, Generation
from policies.policy import HeldActions, NoisyPolicy, OrnsteinUhlenbeck, Policy
from wm_agents.atomic import write_json
from wm_agents.checkpoint import load_weights, model_card
from wm_agents.data.collect import CollectConfig, collect
from wm_agents.data.dataset import Dataset
from wm_agents.evaluate import evaluate, evaluate_real
from wm_agents.evolve import evolve_in_dream
from wm_agents.hardware import describe
from wm_agents.models.vmc import VMC, VMCConfig, sizes
from wm_agents.pretrained import frame_policy, load_model, load_policy, load_starts, save_model
from wm_agents.runlog import RunFolder, provenance, start_run
from wm_agents.training.callbacks import Callback, LoggingCallback, ProgressCallback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.vmc import encode_dataset, fit_memory, fit_vision, make_starts, set_reward_scale
from wm_agents.video import record
from wm_envs.real import make_real
from wm_envs.registry import TASKS, RealSpec

STAGES = ("collect", "vision", "memory", "evolve", "judge")
SEEDS_A_ROUND = 20_000
JUDGE_SEED = 900_000  # Model selection's own seeds: never collected, never the held-out ones.
SHIPPED_STARTS = 512
FIXED = {"spec", "random_steps", "squash"}  # Any other setting may change between rounds; run.json says when.

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
    dream_stall: int | None = None
    """A dream earns nothing more after so many steps without reward: models are too hopeful about lost cars."""
    judge_episodes: int = 24
    """Real episodes that each round's controller is judged on, for choosing the round."""
    starts: int = 512
    """Latents in each bank that dreams start from; a shipped model keeps the first 512."""
    start_rounds: int = 4
    """Dreams start from moments of the last rounds' episodes only: where the controller goes now."""
    seed: int = 1
    procs: int = 2
    max_gb: float = 5.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        end = self.seed + self.rounds * SEEDS_A_ROUND
        if self.seed < 0 or end > JUDGE_SEED:
            raise ValueError(
                f"{self.rounds} rounds from seed {self.seed:,} collect up to seed {end:,}; those from {JUDGE_SEED:,} "
                "up are for judging. Use a lower seed or fewer rounds"
            )

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for machine_only in ("out", "procs", "rounds", "max_gb"):
            values.pop(machine_only)
        return values


RECIPES = {
    "CarRacing": ImproveConfig(
        TASKS["CarRacing"].real,
        out="runs/carracing",
        rounds=12,
        round_steps=25_000,
        stall=150,
        memory=replace(MEMORY, updates=2000, batch_size=32),
        window=128,
        cma=CMAConfig(rollouts=32, generations=130),
        squash=("tanh", "sigmoid", "clip"),
        horizon=250,
        dream_stall=8,
        starts=4096,
    ),
}
"""Settings to begin a task with; the last rounds of the shipped dream had these (scripts/reference/ has them all)."""


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
        if not summary.returns:
            raise ValueError(f"nothing could be collected ({summary.stopped}); see max_gb ({cfg.max_gb}) and the disk")
        if summary.stopped != "done":
            self.console.print(f"  collecting stopped at {summary.steps} steps: {summary.stopped}")
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
        dataset = Dataset(self.data_dir)
        data = encode_dataset(model, dataset)
        if self.round == 0:
            set_reward_scale(model, data)
        result = fit_memory(model, data, cfg.memory, self._dir() / "memory", cfg.window, self._callbacks("memory"))
        since = cfg.seed + (self.round - cfg.start_rounds + 1) * SEEDS_A_ROUND
        recent = np.flatnonzero(np.array(dataset.seeds) >= since)
        starts = make_starts(model, data, cfg.starts, np.random.default_rng([cfg.seed, self.round]), recent)
        save_model(self._dir() / "model", model, cfg.spec, starts, horizon=cfg.spec.max_episode_steps, card="")
        return {"val": result.best_val or 0.0}

    def evolve(self) -> dict[str, float]:
        """Evolve the controller in the dream, from where the last round's mean stood."""
        cfg, path = self.cfg, self._dir() / "model"
        model, artifact = load_model(path)
        starts = load_starts(artifact)
        evolved = evolve_in_dream(
            model,
            starts,
            cfg.cma,
            horizon=cfg.horizon,
            x0=self._last_mean(),
            squash=cfg.squash,
            temperature=cfg.temperature,
            stall=cfg.dream_stall,
            state=self._dir() / "evolution.json",
            on_generation=self._report,
        )
        horizon = cfg.spec.max_episode_steps
        save_model(path, model, cfg.spec, starts, horizon=horizon, card="", policy=evolved.policy)
        return {"dream": evolved.dream_return}

    def judge(self) -> dict[str, float]:
        """Drive for real without noise, on seeds kept for choosing between rounds."""
        seeds = range(JUDGE_SEED, JUDGE_SEED + self.cfg.judge_episodes)
        score = evaluate_real(
            self.cfg.spec, partial(frame_policy, str(self._dir() / "model")), list(seeds), self.cfg.procs
        )
        self.console.print(f"  real return {score}")
        if self.cfg.spec.size is not None:
            net, artifact = load_model(self._dir() / "model")
            video = self._dir() / "real_vs_dream.mp4"
            record(video, self.cfg.spec, net, load_policy(net, artifact), seed=JUDGE_SEED)
        return {
            "real": score.mean,
            "std": score.std,
            "ci95": score.ci95,
            "steps": score.frames // self.cfg.spec.action_repeat,
        }

    def finish(self) -> dict[str, Any]:
        """Choose the round with the best judged score, and score that one over 100 held-out seeds.

        Leaves `model/`, the artifact in half precision with its card, and `summary.json`.
        """
        history = self.run.state["history"]
        best = max(history, key=lambda index: history[index].get("judge", {}).get("real", -np.inf))
        model, artifact = load_model(self._dir(int(best)) / "model")
        starts = {
            bank: {key: leaf[:SHIPPED_STARTS] for key, leaf in latent.items()}
            for bank, latent in load_starts(artifact).items()
        }
        final = self.run.path / "model"
        save = partial(
            save_model, final, model, self.cfg.spec, starts, horizon=self.cfg.spec.max_episode_steps, half=True
        )
        policy = load_policy(model, artifact)
        save(card="", policy=policy)
        result = evaluate(str(final), procs=self.cfg.procs, console=self.console)
        result |= {"round": int(best), **self._costs(history)}
        save(card=self._card(result), policy=policy)
        write_json(self.run.path / "summary.json", {**result, "rounds": history})
        self.console.print(f"real {result['real']['mean']} ± {result['real']['std']}, dream {result['dream']['mean']}")
        return result

    def _costs(self, history: dict[str, Any]) -> dict[str, Any]:
        stages = [stage for stages in history.values() for stage in stages.values()]
        steps = sum(int(stage.get("steps", 0)) for stage in stages)
        return {
            "real_steps": steps,
            "real_frames": steps * self.cfg.spec.action_repeat,
            "train_wall_s": round(sum(stage["wall_s"] for stage in stages)),
            "hardware": describe(),
        }

    def _card(self, result: dict[str, Any]) -> str:
        real, dream, spec = result["real"], result["dream"], self.cfg.spec
        facts = {
            "real environment": f"{spec.id}, gymnasium {result['versions']['gymnasium']}",
            "real score": f"{real['mean']} ± {real['std']} (95 % of the mean: ± {real['ci95']}), "
            f"{real['episodes']} episodes, seeds from {real['seed']}",
            "dream score": f"{dream['mean']} ± {dream['std']}, gap {result['gap']}",
            "data": f"{result['real_steps']} agent steps, {result['real_frames']} frames, "
            f"the judging of rounds included; seeds from {self.cfg.seed} and {JUDGE_SEED}",
            "training": f"{result['train_wall_s']} s of wall time over {len(self.run.state['history'])} rounds; "
            f"round {result['round']} chosen on seeds from {JUDGE_SEED}",
            "command": provenance()["command"],
            "hardware": result["hardware"]["cpu"] + f", {result['hardware']['cores']} cores",
            "license": "MIT",
        }
        text = f"The controller learned in dreams only. Scores again: `wm evaluate MODEL --seed {real['seed']}`."
        return model_card(f"V-M-C dream of {spec.id}", facts, text)

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
            model, _ = load_model(self._dir(self.round - 1) / "model")
            if sizes(model.cfg) != sizes(self.cfg.model):
                raise ValueError(f"model must stay {model.cfg} in its sizes, got {self.cfg.model}; use another folder")
            model.cfg = self.cfg.model
            return model
        env = make_real(self.cfg.spec)
        obs_space, act_space = env.observation_space, env.action_space
        env.close()
        torch.manual_seed(self.cfg.seed)
        return VMC(self.cfg.model, obs_space, act_space)

    def _last_mean(self) -> NDArray[np.float64] | None:
        if self.round == 0:
            return None
        policy = load_policy(*load_model(self._dir(self.round - 1) / "model"))
        return policy.weights.ravel().astype(np.float64)

    def _callbacks(self, name: str) -> tuple[Callback, ...]:
        return LoggingCallback(), ProgressCallback(f"round {self.round} {name}", self.console)


def improve(cfg: ImproveConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the loop, or what is left of it, in the folder `cfg.out`; returns the final scores."""
    console = console or Console(stderr=True)
    settings = cfg.to_dict()
    seeds = {"collect": cfg.seed, "judge": JUDGE_SEED}
    with start_run(cfg.out, settings, seeds, may_change=set(settings) - FIXED) as run:
        improvement = Improvement(cfg, run, console)
        improvement.loop()
        return improvement.finish()


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
