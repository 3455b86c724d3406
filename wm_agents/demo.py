"""The main job in one call: open the shipped dream, train a controller in it, drive the real car, film both."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from policies.cmaes import CMAConfig, Generation
from wm_agents.atomic import write_json
from wm_agents.evaluate import HELD_OUT, evaluate_dream, evaluate_real, random_policy
from wm_agents.evolve import evolve_in_dream
from wm_agents.hardware import describe
from wm_agents.improve import RECIPES
from wm_agents.pretrained import frame_policy, load_model, load_starts, real_spec
from wm_agents.runlog import versions
from wm_agents.video import record

DREAM = "Dream-CarRacing-v0"


def run_demo(out: Path, *, generations: int, episodes: int, procs: int, console: Console) -> dict[str, Any]:
    """Leave `summary.json` and `real_vs_dream.mp4` in `out`; the controller starts from zero and sees dreams only."""
    began = time.perf_counter()
    recipe = RECIPES["CarRacing"]
    model, artifact = load_model(DREAM)
    starts, spec = load_starts(artifact), real_spec(artifact)
    cfg = CMAConfig(generations=generations, seed=1)
    bar = Progress(
        TextColumn("dreaming"),
        BarColumn(),
        TextColumn("generation {task.completed}/{task.total}  dream return {task.fields[mean]:.0f}"),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("", total=generations, mean=0.0)

        def report(generation: Generation) -> None:
            bar.update(task, completed=generation.number, mean=generation.mean)

        evolved = evolve_in_dream(
            model, starts, cfg, horizon=recipe.horizon, squash=recipe.squash, on_generation=report
        )
    dreamed = time.perf_counter() - began
    policy = evolved.policy
    seeds = range(HELD_OUT, HELD_OUT + episodes)
    drive = partial(frame_policy, DREAM, policy.weights, policy.squash)
    real = evaluate_real(spec, drive, seeds, procs, console)
    floor = evaluate_real(spec, partial(random_policy, spec), seeds, procs, console)
    dream = evaluate_dream(
        model, starts, policy, episodes=max(episodes, 64), seed=HELD_OUT, horizon=artifact.config["horizon"]
    )
    out.mkdir(parents=True, exist_ok=True)
    record(out / "real_vs_dream.mp4", spec, model, policy, seed=HELD_OUT)
    summary = {
        "dream_env": DREAM,
        "real_env": spec.id,
        "dream_steps": generations * cfg.population * cfg.rollouts * recipe.horizon,
        "real": {"episodes": episodes, "seed": HELD_OUT, **real.to_dict()},
        "random": floor.to_dict(),
        "dream": {name: value for name, value in dream.to_dict().items() if name != "returns"},
        "gap": round(dream.mean - real.mean, 3),
        "dreaming_s": round(dreamed, 1),
        "wall_s": round(time.perf_counter() - began, 1),
        "video": str(out / "real_vs_dream.mp4"),
        "hardware": describe(),
        "versions": versions(),
    }
    write_json(out / "summary.json", summary)
    return summary
