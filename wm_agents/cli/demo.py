"""The main job in one call: open the shipped dream, train a controller in it, drive the real car, film both."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from policies.policy import RandomPolicy
from policies.rollout import EVAL_SEED
from wm_agents.evaluation.evaluate import evaluate_dream, evaluate_real
from wm_agents.loops.evolve_saved import evolve_by
from wm_agents.loops.recipes import RECIPES
from wm_agents.models.saved import load_model
from wm_agents.pretrained import cut_off_of, frame_policy, load_starts, real_spec
from wm_agents.system.files import write_json
from wm_agents.system.hardware import describe
from wm_agents.system.run_folder import versions
from wm_agents.video import record

DREAM = "Dream-CarRacing-v0"


def run_demo(out: Path, *, generations: int, episodes: int, procs: int, console: Console) -> dict[str, Any]:
    """Leave `summary.json` and `real_vs_dream.mp4` in `out`; the controller starts from zero and sees dreams only."""
    for name, value in (("generations", generations), ("episodes", episodes), ("procs", procs)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    began = time.perf_counter()
    try:
        model, artifact = load_model(DREAM)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the model of {DREAM} is missing from this installation (wm_agents/store); install the package again, or "
            "train one with scripts/reference/carracing.sh"
        ) from error
    starts, spec, recipe = load_starts(artifact), real_spec(artifact), RECIPES["CarRacing"]
    cut_off = cut_off_of(artifact)
    policy = evolve_by(recipe, model, starts, generations, cut_off=cut_off, console=console)
    dreamed = time.perf_counter() - began
    seeds = range(EVAL_SEED, EVAL_SEED + episodes)
    console.print("driving for real: the new controller, then random actions")
    real = evaluate_real(spec, partial(frame_policy, DREAM, policy.weights, policy.squash), seeds, procs, console)
    floor = evaluate_real(spec, partial(RandomPolicy, model.act_space), seeds, procs, console)
    cfg = artifact.config
    how = {"temperature": cfg["temperature"], "horizon": cfg["horizon"], "cut_off": cut_off}
    dream = evaluate_dream(model, starts, policy, episodes=100, seed=EVAL_SEED, **how)
    film = out / "real_vs_dream.mp4"
    console.print(f"filming {film}", soft_wrap=True)
    record(film, spec, model, policy, seed=EVAL_SEED, cut_off=cut_off)
    summary = {
        "dream_env": DREAM,
        "real_env": spec.id,
        "controller": f"linear, {policy.weights.size} parameters, evolved from zero in dreams only",
        "dream_steps": generations * recipe.cma.population * recipe.cma.rollouts * recipe.horizon,
        "real": {"episodes": episodes, "seed": EVAL_SEED, **real.to_dict()},
        "random": {"episodes": episodes, "seed": EVAL_SEED, **floor.to_dict()},
        "dream": {"episodes": 100, **how, **{name: x for name, x in dream.to_dict().items() if name != "returns"}},
        "gap": round(dream.mean - real.mean, 3),
        "dreaming_s": round(dreamed, 1),
        "wall_s": round(time.perf_counter() - began, 1),
        "video": str(film),
        "hardware": describe(),
        "versions": versions(),
    }
    write_json(out / "summary.json", summary)
    console.print(f"real {real}\nrandom {floor}\ndream {dream}", highlight=False, soft_wrap=True)
    return summary
