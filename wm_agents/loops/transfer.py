"""Fresh controllers in the frozen dream of a saved model, scored in the real environment.

<out>/
  run.json, state.json   settings and finished policies, for resuming
  policy-00/             the training state of the first controller
  policy-00/model/       the saved model with this controller, for `wm evaluate`
  transfer.json          the score of every policy, their mean, and the spread between them
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from policies.cmaes import Generation
from policies.pool import Procs
from policies.rollout import EVAL_SEED
from policies.sb3 import check_actions
from wm_agents.checkpoint import Artifact, sha256
from wm_agents.control.evolve import evolve_in_dream
from wm_agents.control.ppo import Iteration, ppo_in_dream
from wm_agents.errors import describe as message_of
from wm_agents.evaluation.evaluate import Score, evaluate
from wm_agents.loops.evolve_saved import save_with_policy
from wm_agents.loops.recipes import PROJECT_RECIPES, RECIPES, ImproveConfig, recipe_for, seeded
from wm_agents.models.model import Model
from wm_agents.models.saved import load_model
from wm_agents.pretrained import Controller, real_spec, saved_dream
from wm_agents.system.files import write_json
from wm_agents.system.progress import Bar
from wm_agents.system.run_folder import RunFolder, provenance, start_run
from wm_envs.real import probe
from wm_envs.registry import RealSpec, protocol_of

SEEDS_APART = 10_000
"""Policy k has the seed of the run plus k times this number, so that policies do not share dreams."""
MOST_DREAMED = 20_000_000
"""Dreamed steps of a policy by default, as in a published test of frozen Atari models (LYK-love/CGSReg)."""


def transfer(
    model: str,
    out: Path,
    *,
    policies: int = 5,
    seed: int = 1,
    algo: Literal["recipe", "ppo", "linear"] = "recipe",
    iterations: int | None = None,
    episodes: int = 100,
    procs: Procs = 2,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train `policies` controllers from scratch in the dream of `model`, and score the last state of each.

    The model is not trained further, and real episodes are not used to select anything. The same call resumes.
    A policy whose training or evaluation raises an error is recorded as failed; the next call tries it again.

    Returns:
        The content of `transfer.json`.

    Raises:
        ValueError: the settings are out of range, or do not fit the actions of the environment.
    """
    if policies < 1 or episodes < 1:
        raise ValueError(f"policies and episodes must be at least 1, got {policies} and {episodes}")
    if seed < 0 or seed + policies * SEEDS_APART > EVAL_SEED:
        raise ValueError(f"seed must be between 0 and {EVAL_SEED - policies * SEEDS_APART:,}, got {seed:,}")
    net, artifact = load_model(model)
    probe(real_spec(artifact))  # Raises an error for an unsupported environment.
    cfg = _controller_settings(real_spec(artifact), algo, iterations)
    settings = {
        "model": {name: sha256(artifact.path / name) for name in ("model.safetensors", "starts.safetensors")},
        "controller": _settings_of(cfg),
        "episodes": episodes,
    }
    with start_run(out, settings, {"run": seed, "judge": EVAL_SEED}) as run:
        fresh = _Transfer(run, cfg, net, artifact, episodes, procs, console)
        records = [fresh.policy(number, seed + number * SEEDS_APART) for number in range(policies)]
    result = {
        "model": model,
        "env": cfg.spec.id,
        "protocol": protocol_of(cfg.spec),
        "episodes": episodes,
        "first_episode_seed": EVAL_SEED,
        "controller": settings["controller"],
        "policies": records,
        "real": _summary_of(records),
        **provenance(),
    }
    write_json(out / "transfer.json", result)
    return result


class _Transfer(NamedTuple):
    """Trains and scores the controllers, one after another."""

    run: RunFolder
    cfg: ImproveConfig
    """The recipe; its controller settings are used."""
    model: Model
    artifact: Artifact
    episodes: int
    procs: Procs
    console: Console | None

    def policy(self, number: int, seed: int) -> dict[str, Any]:
        """The record of controller `number`: its scores, or why it failed."""
        found: dict[str, Any] = self.run.state.get("policies", {}).get(str(number), {"failed": "not trained yet"})
        if "failed" not in found:
            return found
        try:
            record = {"seed": seed, **self._train_and_score(number, seed)}
        except Exception as error:
            record = {"seed": seed, "failed": message_of(error)}
        self._note("policies", number, record)
        return record

    def _train_and_score(self, number: int, seed: int) -> dict[str, Any]:
        folder = self.run.path / f"policy-{number:02d}"
        folder.mkdir(exist_ok=True)
        with Bar(f"policy {number}, seed {seed}: iteration", self.cfg.generations, self.console) as bar:
            controller = self._train(seeded(self.cfg, seed), number, folder, bar)
        facts = {"model": str(self.artifact.path), "controller": f"{self.cfg.controller}, from scratch, seed {seed}"}
        save_with_policy(folder / "model", self.artifact, controller, facts)
        score = evaluate(str(folder / "model"), episodes=self.episodes, procs=self.procs, console=self.console)
        return {
            "model": str(folder / "model"),
            "real": {name: score["real"][name] for name in ("mean", "std", "ci95", "returns")},
            "dream": {name: score["dream"][name] for name in ("mean", "std", "ci95")},
            "gap": score["gap"],
            "train_wall_s": round(self.run.state["train_wall_s"][str(number)]),
        }

    def _train(self, cfg: ImproveConfig, number: int, folder: Path, bar: Bar) -> Controller:
        """The last state of a controller that is trained from scratch; an interrupted training run resumes."""

        def show(now: Iteration | Generation) -> None:
            before = self.run.state.get("train_wall_s", {}).get(str(number), 0.0)
            self._note("train_wall_s", number, before + now.wall_s)
            bar.update(now.number, f"dream return {now.mean:.1f}")

        saved = saved_dream(self.model, self.artifact)
        dream = cfg.dream(saved.bounded)
        if cfg.controller == "ppo":
            state = folder / "ppo.safetensors"
            return ppo_in_dream(
                self.model, saved.starts, cfg.ppo, dream, state=state, on_iteration=show, start="anywhere"
            ).policy
        return evolve_in_dream(
            self.model,
            saved.starts,
            cfg.cma,
            dream,
            squash=cfg.squash,
            state=folder / "evolution.json",
            on_generation=show,
        ).policy

    def _note(self, name: str, number: int, value: Any) -> None:
        """Store `value` of controller `number` in the state of the run."""
        self.run.update(**{name: {**self.run.state.get(name, {}), str(number): value}})


def _controller_settings(spec: RealSpec, algo: str, iterations: int | None) -> ImproveConfig:
    """The recipe of the task, or default settings, with the number of iterations (CMA-ES: generations).

    The default is rounds x iterations of the recipe, for at most `MOST_DREAMED` dreamed steps, but never less than one
    round.

    Raises:
        ValueError: `algo` does not support the actions of the environment.
    """
    known = [*RECIPES.values(), *PROJECT_RECIPES.values()]
    same = [recipe for recipe in known if recipe.spec == spec] or [r for r in known if r.spec.id == spec.id]
    cfg = same[0] if same else recipe_for(spec)
    if algo != "recipe":
        cfg = replace(cfg, controller=algo)  # type: ignore[arg-type]
    if cfg.controller == "ppo":
        check_actions(probe(spec).act_space)
        steps = cfg.ppo.envs * cfg.ppo.steps
    else:
        steps = cfg.cma.population * cfg.cma.rollouts * cfg.horizon
    if iterations is None:
        iterations = max(min(cfg.generations * cfg.rounds, MOST_DREAMED // steps), cfg.generations)
    return replace(
        cfg, ppo=replace(cfg.ppo, iterations=iterations), cma=replace(cfg.cma, generations=iterations), spec=spec
    )


def _summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over the policies that did not fail, and the spread between them; failures are counted."""
    means = [record["real"]["mean"] for record in records if "failed" not in record]
    counts = {"policies": len(records), "failed": len(records) - len(means)}
    if not means:
        return counts
    between = Score(means)
    return {
        **counts,
        "mean": round(between.mean, 3),
        "std_between": round(between.std, 3),
        "min": min(means),
        "max": max(means),
    }


def lines_of(result: dict[str, Any]) -> list[str]:
    """The scores as lines of text: one per policy, then their mean and spread."""
    lines = []
    for number, record in enumerate(result["policies"]):
        head = f"policy {number} (seed {record['seed']}):"
        if "failed" in record:
            lines.append(f"{head} FAILED: {record['failed']}")
            continue
        real, dream = record["real"], record["dream"]
        lines.append(
            f"{head} real {real['mean']:.1f} ± {real['std']:.1f}, dream {dream['mean']:.1f}, "
            f"{record['train_wall_s'] / 60:.1f} min"
        )
    total = result["real"]
    failed = ""
    if total["failed"]:
        failed = f" ({total['failed']} of {total['policies']} failed)"
    if "mean" in total:
        lines.append(
            f"mean over policies {total['mean']:.1f}, standard deviation between them {total['std_between']:.1f}, "
            f"from {total['min']:.1f} to {total['max']:.1f}{failed}"
        )
    else:
        lines.append("all policies failed")
    return lines


def _settings_of(cfg: ImproveConfig) -> dict[str, Any]:
    """The settings that a controller is trained with."""
    values = cfg.to_dict()
    part = "cma"
    if cfg.controller == "ppo":
        part = "ppo"
    names = ["controller", "horizon", "temperature", "pessimism", "max_disagreement", part]
    if part == "cma":
        names += ["squash", "dream_stall"]
    settings = {name: values[name] for name in names}
    settings[part] = {name: value for name, value in settings[part].items() if name != "seed"}
    return settings
