"""Ablations of V-M-C on CarRacing: controllers trained in the same way and scored on the same held-out seeds.

    python scripts/ablations.py [--model Dream-CarRacing-v0] [--episodes 100] [--generations 100]

Rows: random actions; a controller on [z, h] trained from scratch in the dream; a controller on z only in the same
dream; a controller on a model whose M was never trained, so that its dreams are noise; the saved policy of the model,
which was trained in many rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from policies.linear import LinearPolicy
from policies.policy import Policy, RandomPolicy
from policies.rollout import EVAL_SEED
from wm_agents.control.evolve import show_generations
from wm_agents.evaluation.evaluate import evaluate_real
from wm_agents.loops.evolve_saved import evolve_by
from wm_agents.loops.recipes import RECIPES
from wm_agents.models.vmc import MDRNN, VMC
from wm_agents.pretrained import frame_policy, load_dream, save_model
from wm_agents.system.hardware import describe
from wm_agents.system.progress import Bar
from wm_agents.system.run_folder import versions

RECIPE = RECIPES["CarRacing"]


def forget(model: VMC) -> None:
    """Reset M to random initial weights."""
    torch.manual_seed(0)
    m = model.memory
    model.memory.load_state_dict(MDRNN(m.latents, m.actions, m.hiddens, m.gaussians, m.mixture).state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Dream-CarRacing-v0")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--procs", type=int, default=2)
    args = parser.parse_args()
    console = Console(stderr=True)
    saved = load_dream(args.model)
    model, spec, artifact = saved.model, saved.spec, saved.artifact
    table = Table("controller", "real return", "95 %", "wall s", title=f"{spec.id}, {args.episodes} episodes")
    rows = {}
    if not isinstance(model, VMC):
        raise SystemExit(f"{args.model} must be a V-M-C model, it is of the family {model.family!r}")

    def evolve(sees: slice = slice(None)) -> LinearPolicy:
        """Train a controller from scratch in the model's dream, on the dimensions `sees` of feat."""
        recipe = replace(RECIPE, cma=replace(RECIPE.cma, generations=args.generations, seed=1))
        with Bar("dreaming, generation", args.generations, console) as bar:
            show = show_generations(bar)
            return evolve_by(recipe, saved, sees=sees, on_generation=show).policy

    def judge(name: str, make_policy: Callable[[], Policy], began: float) -> None:
        seeds = range(EVAL_SEED, EVAL_SEED + args.episodes)
        score = evaluate_real(spec, make_policy, seeds, args.procs, console)
        wall_s = round(time.perf_counter() - began, 1)
        rows[name] = {**score.to_dict(), "wall_s": wall_s}
        table.add_row(name, f"{score.mean:.0f} ± {score.std:.0f}", f"± {score.ci95:.0f}", f"{wall_s:.0f}")
        console.print(f"{name}: {score}", highlight=False)

    judge("random actions", partial(RandomPolicy, model.act_space), time.perf_counter())
    for name, sees in (("z and h", slice(None)), ("z only", slice(model.z_dim))):
        began = time.perf_counter()
        policy = evolve(sees)
        judge(name, partial(frame_policy, args.model, policy.weights, policy.squash), began)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        forget(model)
        policy = evolve()
        path = Path(folder) / "model"
        how = {"horizon": saved.dream.horizon, "cut_off": saved.dream.cut_off}
        save_model(path, model, spec, saved.starts, **how, card="", policy=policy)
        judge("z and h, M untrained", partial(frame_policy, str(path)), began)
    if artifact.policies:
        judge("the model's own policy", partial(frame_policy, args.model), time.perf_counter())
    Console().print(table)
    facts = {"model": args.model, "real_env": spec.id, "seed": EVAL_SEED, "generations": args.generations}
    print(json.dumps({**facts, "rows": rows, "hardware": describe(), "versions": versions()}))


if __name__ == "__main__":
    main()
