"""`wm demo`: trains a controller in Dream-CarRacing-v0, drives the real CarRacing-v3, and records a video of both."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from policies.cmaes import CMAConfig, Generation
from policies.linear import LinearPolicy
from policies.play import EpisodeResult, EpisodeTask, Stage, play_task
from policies.policy import Policy, RandomPolicy
from policies.pool import Halt, WorkerPool
from policies.rollout import EVAL_SEED
from wm_agents.control.evolve import Evolved
from wm_agents.evaluation.evaluate import Score, dream_facts, evaluate_dream
from wm_agents.loops.evolve_saved import evolve_by
from wm_agents.loops.recipes import RECIPES
from wm_agents.pretrained import (
    Saved,
    cached_model,
    dream_of,
    frame_policy,
    load_dream,
)
from wm_agents.system.extras import extra
from wm_agents.system.files import write_json
from wm_agents.system.hardware import describe
from wm_agents.system.progress import StageBar
from wm_agents.system.run_folder import versions
from wm_agents.video import record
from wm_envs.registry import RealSpec

DREAM = "Dream-CarRacing-v0"
CMA = CMAConfig(population=64, rollouts=16, sigma=0.2, components=64, average=20, seed=1)
"""These settings take a quarter of the dreamed steps of the recipe; docs/log.md compares variants."""
TEMPERATURE = 1.2
"""Above that of the recipe, because dreams are smoother than real tracks."""
SHARES = {"loading": 0.02, "training in the dream": 0.58, "driving": 0.4}
"""Share of the total time of each stage, on two cores without bfloat16."""


class Drives(NamedTuple):
    """Real scores of the new controller and of random actions, on the same tracks."""

    real: Score
    random: Score


def run_demo(out: Path, *, generations: int, episodes: int, procs: int, console: Console) -> dict[str, Any]:
    """Train a controller from scratch, only in dreams, and write `summary.json` and `real_vs_dream.mp4` to `out`."""
    for name, value in (("generations", generations), ("episodes", episodes), ("procs", procs)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    began = time.perf_counter()
    film = out / "real_vs_dream.mp4"
    with StageBar(SHARES, console) as bar:
        bar.update("loading", 0.0, DREAM)
        saved = _load()
        evolved = _evolve(saved, generations, bar)
        policy, dreamed = evolved.policy, time.perf_counter() - began
        drives = _drive_and_film(saved.spec, policy, film, range(EVAL_SEED, EVAL_SEED + episodes), procs, bar)
    dream = evaluate_dream(saved.model, saved.starts, policy, saved.dream, episodes=100, seed=EVAL_SEED)
    how = dream_facts(saved.dream)
    summary = {
        "dream_env": DREAM,
        "real_env": saved.spec.id,
        "controller": f"linear, {policy.weights.size} parameters, trained from scratch only in dreams",
        "dream_steps": evolved.steps,
        "real": {"episodes": episodes, "seed": EVAL_SEED, **drives.real.to_dict()},
        "random": {"episodes": episodes, "seed": EVAL_SEED, **drives.random.to_dict()},
        "dream": {"episodes": 100, **how, **{name: x for name, x in dream.to_dict().items() if name != "returns"}},
        "gap": round(dream.mean - drives.real.mean, 3),
        "dreaming_s": round(dreamed, 1),
        "wall_s": round(time.perf_counter() - began, 1),
        "video": str(film),
        "hardware": describe(),
        "versions": versions(),
    }
    write_json(out / "summary.json", summary)
    console.print(f"real {drives.real}\nrandom {drives.random}\ndream {dream}", highlight=False, soft_wrap=True)
    return summary


def _load() -> Saved:
    try:
        return load_dream(DREAM)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the model of {DREAM} is missing from this installation (wm_agents/store); install the package again, or "
            "train one with scripts/reference/carracing.sh"
        ) from error


def _evolve(saved: Saved, generations: int, bar: StageBar) -> Evolved:
    """Train a controller from scratch in dreams with the settings of the recipe."""

    def show(generation: Generation) -> None:
        text = f"generation {generation.number}/{generations}, mean dream return {generation.mean:.0f}"
        bar.update("training in the dream", generation.number / generations, text)

    recipe = replace(RECIPES["CarRacing"], cma=replace(CMA, generations=generations), temperature=TEMPERATURE)
    return evolve_by(recipe, saved, on_generation=show)


def _drive_and_film(
    spec: RealSpec, policy: LinearPolicy, film: Path, seeds: range, procs: int, bar: StageBar
) -> Drives:
    """Drive with the controller and with random actions, one episode per seed, and record a video of one episode."""
    bar.update("driving", 0.0)
    drivers: list[tuple[Any, ...]] = [(policy.weights, policy.squash), ()]
    tasks = [EpisodeTask(seed, driver) for driver in drivers for seed in seeds]
    results: list[EpisodeResult] = []
    with WorkerPool(Stage(spec, partial(_driver, DREAM)), procs) as pool:
        filming = pool.submit(_film, DREAM, film, policy.weights, policy.squash, seeds[0])
        for _, result in pool.run(play_task, enumerate(tasks)):
            results.append(result)
            bar.update("driving", len(results) / (len(tasks) + 1), f"{len(results)}/{len(tasks)} episodes")
        with extra("the video", bar.console):
            pool.result(filming)
    bar.update("driving", 1.0, str(film))
    returns = [round(result.ret, 3) for result in sorted(results)]
    return Drives(Score(returns[: len(seeds)]), Score(returns[len(seeds) :]))


def _driver(dream: str, weights: NDArray[np.float32] | None = None, squash: tuple[str, ...] | None = None) -> Policy:
    """A policy on real frames: the controller with these weights, or random actions."""
    if weights is None:
        return RandomPolicy(cached_model(dream)[0].act_space)
    return frame_policy(dream, weights, squash)


def _film(
    stage: Stage,
    halt: Halt,
    dream: str,
    path: Path,
    weights: NDArray[np.float32],
    squash: tuple[str, ...],
    seed: int,
) -> None:
    model, artifact = cached_model(dream)
    policy = LinearPolicy(model.act_space, weights, squash)
    record(path, stage.spec, model, policy, dream_of(artifact), seed=seed)
