"""A budget for the loop in rounds: its trial, its forecast, and its settings."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from policies.cmaes import Generation
from policies.step_count import StepCount
from wm_agents.control.ppo import Iteration
from wm_agents.data.dataset import Dataset
from wm_agents.evaluation.evaluate import evaluate_real
from wm_agents.loops.budget import WORKERS_S, Forecast, plan_run, scaled, workers_here
from wm_agents.loops.finish import RANDOM_EPISODES
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.loops.rounds import FILMED, STAGES, Improvement
from wm_agents.loops.seeds import JUDGE_SEED
from wm_agents.models.families import FAMILIES, Family
from wm_agents.pretrained import frame_policy
from wm_agents.system.run_folder import RunFolder
from wm_agents.training.callbacks import Callback
from wm_agents.training.config import TrainingConfig
from wm_agents.training.trainer import Trainer
from wm_envs.real import probe

TRIAL_STEPS, TRIAL_EPISODE, TRIAL_UPDATES = 600, 150, 24
"""Real steps of the trial, its longest episode, and its updates of each part of the model."""


@dataclass(frozen=True)
class Speeds:
    """Seconds of the units of work, on this machine."""

    step_s: float
    """A real step by exploration, in one process."""
    act_s: float
    """A real step with the controller, in one process."""
    update_s: dict[str, float]
    """An update of each part of the model; a part without updates, such as the encoder of vectors, is missing."""
    generation_s: float
    """A generation of CMA-ES, or an iteration of PPO."""
    episode: int
    """Steps of an episode of a good controller, at a guess: the limit, or four times those of exploration."""


class Stopwatch(Callback):
    """Measures the updates of a trainer."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_update(self, trainer: Trainer) -> None:
        self.ends.append(time.perf_counter())

    @property
    def update_s(self) -> float:
        """The median time of an update, without the first ones, which are slow."""
        return median(end - begin for begin, end in zip(self.ends[4:], self.ends[5:]))


class Trial(Improvement):
    """One tiny round, whose parts are timed."""

    def __init__(self, cfg: ImproveConfig, run: RunFolder, count: StepCount) -> None:
        super().__init__(cfg, run, Console(file=io.StringIO()))
        self.count = count
        self.watches: dict[str, Stopwatch] = {}
        self.generations: list[float] = []

    def loop(self) -> None:
        """Run every stage."""
        for self.stage in STAGES:
            began, before = time.perf_counter(), self.count.value
            facts = getattr(self, self.stage)()
            wall_s, steps = time.perf_counter() - began, self.count.value - before
            self._note(facts | {"wall_s": wall_s, "steps": steps})

    def speeds(self) -> Speeds:
        """The speeds of the finished trial."""
        collected = self.run.state["history"]["0"]["collect"]
        model = str(self._dir(0) / "model")
        frame_policy(model)  # Loads the model.
        began, before = time.perf_counter(), self.count.value
        evaluate_real(self.cfg.spec, partial(frame_policy, model), [JUDGE_SEED], 0, count=self.count)
        act_s = (time.perf_counter() - began) / max(self.count.value - before, 1)
        return Speeds(
            step_s=collected["wall_s"] / collected["steps"],
            act_s=act_s,
            update_s={name: watch.update_s for name, watch in self.watches.items() if watch.ends},
            generation_s=self.generations[-1],
            episode=0,
        )

    def _callbacks(self, name: str) -> tuple[Callback, ...]:
        self.watches[name] = Stopwatch()
        return (self.watches[name],)

    def _look(self, save: Any, policy: Any, now: Generation | Iteration) -> bool:
        self.generations.append(now.wall_s)
        return False


def measure(cfg: ImproveConfig, run: RunFolder, count: StepCount) -> Speeds:
    """Run a trial in a temporary folder. Its real steps are counted in the run."""
    limit = probe(cfg.spec).limit
    assert limit is not None, cfg.spec
    with tempfile.TemporaryDirectory(dir=run.path, prefix="trial-") as folder:
        inner = RunFolder(Path(folder))
        try:
            trial = Trial(tiny(cfg, folder, min(limit, TRIAL_EPISODE)), inner, count)
            trial.loop()
            speeds = trial.speeds()
            num = Dataset(trial.data_dir).num_episodes
        finally:
            inner.close()
    return replace(speeds, episode=min(limit, 4 * max(TRIAL_STEPS // num, 100)))


def tiny(cfg: ImproveConfig, out: str, limit: int) -> ImproveConfig:
    """One round with batches, rows and networks of the same size as those of `cfg`, in this process."""

    def brief(training: TrainingConfig) -> TrainingConfig:
        return training.replace(total_steps=TRIAL_UPDATES, eval_interval=TRIAL_UPDATES, save_interval=TRIAL_UPDATES)

    return replace(
        cfg,
        out=out,
        spec=replace(cfg.spec, max_episode_steps=limit),
        rounds=1,
        random_steps=TRIAL_STEPS,
        shard_episodes=1,
        vision=brief(cfg.vision),
        memory=brief(cfg.memory),
        dynamics=brief(cfg.dynamics),
        cma=replace(cfg.cma, generations=1),
        ppo=replace(cfg.ppo, iterations=2),
        judge_episodes=0,
        check_every=None,
        live_fps=0.0,
        procs=0,
        ray=None,
        budget=None,
        quick=False,
    )


def forecast(cfg: ImproveConfig, speeds: Speeds) -> Forecast:
    """The expected time of a run."""
    workers = workers_here(cfg.workers)
    start_s = WORKERS_S if cfg.workers else 0.0
    episode_s = speeds.episode * speeds.act_s / workers
    judged = sum(map(cfg.is_judged, range(cfg.rounds)))
    later = (cfg.rounds - 1) * cfg.round_steps
    return Forecast(
        {
            "collect": (cfg.random_steps * speeds.step_s + later * speeds.act_s) / workers + cfg.rounds * start_s,
            "model": sum(number * speeds.update_s.get(part, 0.0) for part, number in updates(cfg).items()),
            "controller": cfg.rounds * cfg.generations * speeds.generation_s,
            "evaluation": judged * (cfg.judge_episodes * episode_s + start_s + 2 * FILMED * speeds.act_s),
            "end": _end_s(cfg, episode_s, start_s),
        }
    )


def _end_s(cfg: ImproveConfig, episode_s: float, start_s: float) -> float:
    episodes = cfg.final_episodes + min(cfg.final_episodes, RANDOM_EPISODES)
    return episodes * episode_s + 2 * start_s + 60 * cfg.report_minutes


def updates(cfg: ImproveConfig) -> dict[str, int]:
    """The updates of each part of the model in all rounds."""
    seen = min(cfg.rounds, cfg.vision_rounds)
    vision = cfg.vision.total_steps * min(seen, 1) + max(cfg.vision.total_steps // 2, 1) * max(seen - 1, 0)
    family, training = _trained(cfg)
    return {"vision": vision, family.training: (cfg.rounds + family.first_fit - 1) * training.total_steps}


def _trained(cfg: ImproveConfig) -> tuple[Family, TrainingConfig]:
    """The family of the model, and the training settings of its dynamics."""
    family = FAMILIES[cfg.model_config(probe(cfg.spec).obs_space).family]
    training: TrainingConfig = getattr(cfg, family.training)
    return family, training


def scale(cfg: ImproveConfig, factor: float) -> ImproveConfig:
    """All amounts of work times `factor`, part of it as rounds; none falls below what a useful run needs."""
    rounds = scaled(cfg.rounds, factor**0.5, 2)
    each = factor * cfg.rounds / rounds

    def part(training: TrainingConfig) -> TrainingConfig:
        steps = scaled(training.total_steps, each, 200)
        every = min(training.eval_interval, steps), min(training.save_interval, steps)
        return training.replace(total_steps=steps, eval_interval=every[0], save_interval=every[1])

    return replace(
        cfg,
        rounds=rounds,
        random_steps=scaled(cfg.random_steps, each, 500),
        round_steps=scaled(cfg.round_steps, each, 300),
        vision=part(cfg.vision),
        memory=part(cfg.memory),
        dynamics=part(cfg.dynamics),
        cma=replace(cfg.cma, generations=scaled(cfg.cma.generations, each, 5)),
        ppo=replace(cfg.ppo, iterations=scaled(cfg.ppo.iterations, each, 5)),
        judge_episodes=min(scaled(cfg.judge_episodes, each, 3), cfg.judge_episodes),
        final_episodes=min(scaled(cfg.final_episodes, factor**0.5, 10), cfg.final_episodes),
    )


def planned(cfg: ImproveConfig, run: RunFolder, count: StepCount, console: Console) -> ImproveConfig:
    """The settings that fit in the budget of `cfg`; `cfg` itself without a budget. A resumed run keeps its plan.

    Raises:
        ConfigurationError: the budget is too short for any run.
    """

    def forecasts(usual: ImproveConfig) -> Callable[[ImproveConfig], Forecast]:
        return partial(forecast, speeds=measure(usual, run, count))

    return plan_run(
        cfg, run, console, measure=forecasts, scale=scale, rounds=lambda some: some.rounds, describe=describe_plan
    )


def describe_plan(cfg: ImproveConfig) -> str:
    """The amounts of work as text."""
    _, training = _trained(cfg)
    unit = {"ppo": "iterations of PPO", "linear": "generations of CMA-ES"}[cfg.controller]
    return (
        f"{cfg.rounds} rounds of {cfg.round_steps:,} real steps (the first {cfg.random_steps:,}), "
        f"{training.total_steps:,} updates and {cfg.generations} {unit}; scored on {cfg.final_episodes} episodes"
    )
