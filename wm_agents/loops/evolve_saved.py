"""Trains a linear controller for a saved model with CMA-ES, and saves it in a new model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from policies.cmaes import CMAConfig
from policies.linear import LinearPolicy
from policies.pool import Procs
from wm_agents.checkpoint import Artifact, model_card, save_artifact, sha256
from wm_agents.control.evolve import Evolved, OnGeneration, evolve_in_dream, evolve_in_real, show_generations
from wm_agents.loops.recipes import ImproveConfig
from wm_agents.pretrained import POLICIES, Controller, Saved, load_dream
from wm_agents.system.progress import Bar
from wm_agents.system.run_folder import start_run
from wm_envs.dream import DreamConfig


def evolve_by(
    recipe: ImproveConfig, saved: Saved, *, sees: slice = slice(None), on_generation: OnGeneration | None = None
) -> Evolved:
    """Train a controller from scratch with the recipe of a task."""
    return evolve_in_dream(
        saved.model,
        saved.starts,
        recipe.cma,
        recipe.dream(saved.dream),
        squash=recipe.squash,
        sees=sees,
        on_generation=on_generation,
    )


def evolve_artifact(
    model: str,
    out: Path,
    cfg: CMAConfig,
    *,
    where: Literal["dream", "real"],
    dream: DreamConfig,
    squash: tuple[str, ...] | None,
    procs: Procs,
    console: Console | None = None,
) -> LinearPolicy:
    """Train a controller from scratch, and write it with the model to `out`; the same call resumes.

    The run folder `<out>.run` contains the state for resuming, and rejects another model or other settings.
    """
    if out.exists() and not (out / "config.json").exists():
        raise ValueError(f"{out} exists and is not a saved model; choose another directory")
    saved = load_dream(model)
    artifact = saved.artifact
    settings: dict[str, Any] = {"where": where, **asdict(cfg), "squash": squash}
    if where == "dream":
        settings |= {"horizon": dream.horizon, "temperature": dream.temperature, "stall": dream.stall}
    learned = {name: sha256(artifact.path / name) for name in ("model.safetensors", "starts.safetensors")}
    folder = out.with_name(f"{out.name}.run")
    with (
        start_run(folder, settings | learned, {"cma": cfg.seed}, may_change=["generations"]) as run,
        Bar(f"evolving ({where}), generation", cfg.generations, console) as bar,
    ):
        state, show = run.path / "evolution.json", show_generations(bar)
        try:
            if where == "dream":
                policy = evolve_in_dream(
                    saved.model, saved.starts, cfg, dream, squash=squash, procs=procs, state=state, on_generation=show
                ).policy
            else:
                policy = evolve_in_real(model, cfg, squash=squash, procs=procs, state=state, on_generation=show)
        finally:
            if not state.exists():  # Nothing to resume: remove the settings of the failed run.
                (run.path / "run.json").unlink()
        save_with_policy(out, artifact, policy, {"model": model} | settings)
    return policy


def save_with_policy(out: Path, artifact: Artifact, policy: Controller, facts: dict[str, Any]) -> None:
    """Write `artifact` to `out` with a new controller and a card with its `facts`."""
    card = model_card(out.name, facts, f"A model with a new controller. Score it with `wm evaluate {out}`.")
    if (old := artifact.path / "README.md").exists():
        before = old.read_text(encoding="utf-8")
        card += f"\n## The original card, with scores of an earlier controller\n\n{before}"
    others = {name: old for name, old in artifact.policies.items() if name not in POLICIES}
    policies = others | {policy.about()["kind"]: (policy.tensors(), policy.about())}
    save_artifact(out, artifact.config, artifact.tensors, artifact.starts, card, policies)
