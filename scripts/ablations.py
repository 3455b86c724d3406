"""What each part of V-M-C is worth on CarRacing: controllers evolved alike, judged on the same held-out seeds.

    python scripts/ablations.py [--model Dream-CarRacing-v0] [--episodes 100] [--generations 100]

Rows: random actions; a controller that sees z alone; a controller whose memory is untrained (random weights, so that its
dreams are noise); the full model from scratch; the shipped policy, which had many rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from policies.cmaes import CMAConfig
from policies.linear import LinearPolicy
from wm_agents.evaluate import HELD_OUT, Score, evaluate_real, random_policy
from wm_agents.evolve import Evolved, evolve_in_dream
from wm_agents.hardware import describe
from wm_agents.improve import RECIPES
from wm_agents.models.vmc import MDRNN, VMC
from wm_agents.pretrained import frame_policy, load_model, load_starts, real_spec, save_model
from wm_envs.world_model import Latent

RECIPE = RECIPES["CarRacing"]


def evolve(model: VMC, starts: dict[str, Latent], generations: int, z_only: bool = False) -> Evolved:
    """A controller from zero, in the model's dream."""
    cfg = CMAConfig(generations=generations, seed=1)
    sees = slice(0, model.z_dim) if z_only else slice(0, model.feat_dim)
    return evolve_in_dream(model, starts, cfg, horizon=RECIPE.horizon, squash=RECIPE.squash, sees=sees)


def forget(model: VMC) -> None:
    """Give M the random weights it began with."""
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
    model, artifact = load_model(args.model)
    starts, spec = load_starts(artifact), real_spec(artifact)
    seeds = range(HELD_OUT, HELD_OUT + args.episodes)
    rows: dict[str, tuple[Score, float]] = {}

    def judge(name: str, make_policy: partial[object], began: float) -> None:
        score = evaluate_real(spec, make_policy, seeds, args.procs, console)  # type: ignore[arg-type]
        rows[name] = score, time.perf_counter() - began
        console.print(f"{name}: {score}")

    judge("random actions", partial(random_policy, spec), time.perf_counter())
    for name, z_only in [("full, one round in the shipped dream", False), ("z only", True)]:
        began = time.perf_counter()
        policy: LinearPolicy = evolve(model, starts, args.generations, z_only).policy
        judge(name, partial(frame_policy, args.model, policy.weights, policy.squash), began)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        forget(model)
        policy = evolve(model, starts, args.generations).policy
        path = Path(folder) / "model"
        save_model(path, model, spec, starts, horizon=spec.max_episode_steps, card="", policy=policy)
        judge("untrained M", partial(frame_policy, str(path)), began)
    judge("shipped policy", partial(frame_policy, args.model), time.perf_counter())

    table = Table("controller", "real return", "95 %", "wall s", title=f"{spec.id}, {args.episodes} episodes")
    for name, (score, wall_s) in rows.items():
        table.add_row(name, f"{score.mean:.0f} ± {score.std:.0f}", f"± {score.ci95:.0f}", f"{wall_s:.0f}")
    Console().print(table)
    print(
        json.dumps({"hardware": describe(), "rows": {n: s.to_dict() for n, (s, _) in rows.items()}}, default=np.asarray)
    )


if __name__ == "__main__":
    main()
