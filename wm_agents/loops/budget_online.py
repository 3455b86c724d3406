"""A budget for online training: its trial, its forecast, and its settings."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console

from policies.step_count import StepCount
from wm_agents.loops.budget import WORKERS_S, Forecast, plan_run, scaled, time_of, workers_here
from wm_agents.loops.finish import PLANNED, RANDOM_EPISODES
from wm_agents.loops.online import Online, least_steps
from wm_agents.loops.online_config import OnlineConfig
from wm_agents.system.processes import check_one_process
from wm_agents.system.run_folder import RunFolder
from wm_envs.real import probe

TRIAL_UPDATES, TRIAL_STEPS = 8, 16
"""Updates, and steps with the policy, of the trial."""
MANY_ROWS = 3.0
"""Time of a step of all dreams of the final score, relative to that of a single row."""


@dataclass(frozen=True)
class Speeds:
    """Seconds of the units of work, on this machine."""

    step_s: float
    """A real step by exploration, in all rows."""
    act_s: float
    """A real step with the policy, in all rows."""
    update_s: float
    limit: int
    """Longest episode in steps."""
    plans: bool
    """The policy plans in the model."""


def measure(cfg: OnlineConfig, run: RunFolder, count: StepCount) -> Speeds:
    """Time steps and updates in a temporary folder. The real steps are counted in the run."""
    limit = probe(cfg.spec).limit
    assert limit is not None, cfg.spec
    with tempfile.TemporaryDirectory(dir=run.path, prefix="trial-") as folder:
        inner = RunFolder(Path(folder))
        try:
            online = Online(tiny(cfg, folder, limit), inner, Console(file=io.StringIO()))
            online.count = count
            step_s, act_s, update_s = _time(online)
            plans = online.learner.controller().about()["kind"] == "mppi"
        finally:
            inner.close()
    return Speeds(step_s, act_s, update_s, limit, plans)


def trial_steps(cfg: OnlineConfig) -> int:
    """The number of real steps that the trial run takes to measure the speeds of this machine."""
    return (2 * (cfg.length + 1) + TRIAL_STEPS) * cfg.num_envs


def tiny(cfg: OnlineConfig, out: str, limit: int) -> OnlineConfig:
    """Short episodes, so that windows are there early; batches and networks have the size of those of `cfg`."""
    episode, prefill = min(limit, cfg.length + 1), trial_steps(cfg) - TRIAL_STEPS * cfg.num_envs
    return replace(
        cfg,
        out=out,
        spec=replace(cfg.spec, max_episode_steps=episode),
        prefill=prefill,
        real_steps=prefill + TRIAL_STEPS * cfg.num_envs + limit,
        eval_episodes=0,
        capacity=min(cfg.capacity, 10_000),
        live_fps=0.0,
        budget=None,
        quick=False,
    )


def _time(online: Online) -> tuple[float, float, float]:
    """Seconds of a step by exploration, of a step with the policy, and of an update."""
    cfg, trainer = online.cfg, online.trainer
    with trainer.running():
        playing = online._play()
        began = time.perf_counter()
        while online.now.played < cfg.prefill:
            next(playing)
        step_s = (time.perf_counter() - began) * cfg.num_envs / online.now.played
        took: list[float] = []
        for number in range(TRIAL_UPDATES):
            began = time.perf_counter()
            pack, generator = online.model.packs, trainer.cfg.generator(number)
            trainer.step(online.buffer.sample(cfg.batch_size, cfg.length, pack=pack, generator=generator))
            took.append(time.perf_counter() - began)
        acted: list[float] = []
        for _ in range(TRIAL_STEPS):
            began = time.perf_counter()
            next(playing)
            acted.append(time.perf_counter() - began)
    return step_s, median(acted), median(took[2:])


def forecast(cfg: OnlineConfig, speeds: Speeds) -> Forecast:
    """The expected time of a run."""
    workers = workers_here(cfg.workers)
    steps = cfg.real_steps / cfg.num_envs
    one_s = speeds.act_s / cfg.num_envs if cfg.num_envs > 1 and not speeds.plans else speeds.act_s
    episodes = cfg.final_episodes + min(cfg.final_episodes, RANDOM_EPISODES)
    dreamed_s = MANY_ROWS * speeds.act_s * speeds.limit if speeds.plans else 0.0
    return Forecast(
        {
            "acting": steps * speeds.act_s,
            "updates": cfg.real_steps * cfg.updates_per_step * speeds.update_s,
            "end": episodes * speeds.limit * one_s / workers
            + dreamed_s * min(PLANNED, cfg.final_episodes) / PLANNED
            + 2 * WORKERS_S
            + (0.0 if speeds.plans else 60 * cfg.report_minutes),
        }
    )


def scale(cfg: OnlineConfig, factor: float) -> OnlineConfig:
    """Real steps, prefill and episodes times `factor`; updates follow the real steps."""
    episodes = min(scaled(cfg.eval_episodes, factor, 1), cfg.eval_episodes)
    small = replace(
        cfg,
        prefill=min(scaled(cfg.prefill, factor, 200), cfg.prefill),
        eval_episodes=episodes,
        final_episodes=min(scaled(cfg.final_episodes, factor**0.5, 10), cfg.final_episodes),
    )
    return replace(small, real_steps=max(round(cfg.real_steps * factor), least_steps(small)) + trial_steps(cfg))


def planned(cfg: OnlineConfig, run: RunFolder, count: StepCount, console: Console) -> OnlineConfig:
    """The settings that fit in the budget of `cfg`; `cfg` itself without a budget. A resumed run keeps its plan.

    Raises:
        ConfigurationError: the budget is too short for any run.
    """
    if time_of(cfg.budget, cfg.quick) is not None:
        check_one_process("a budget of time")

    def forecasts(usual: OnlineConfig) -> Callable[[OnlineConfig], Forecast]:
        return partial(forecast, speeds=measure(usual, run, count))

    return plan_run(cfg, run, console, measure=forecasts, scale=scale, rounds=lambda _: 1, describe=describe_plan)


def describe_plan(cfg: OnlineConfig) -> str:
    """The amounts of work as text."""
    return (
        f"{cfg.real_steps:,} real steps, {cfg.training().total_steps:,} updates, scored on "
        f"{cfg.final_episodes} episodes"
    )
