"""How a run ends: the chosen model is saved, scored on held-out seeds and in its own dream, and gets its card."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from wm_agents.checkpoint import model_card
from wm_agents.evaluation.evaluate import evaluate
from wm_agents.evaluation.fidelity.report import fidelity_report
from wm_agents.models.model import Model
from wm_agents.pretrained import Controller, save_model
from wm_agents.system.files import write_json
from wm_agents.system.hardware import describe
from wm_agents.system.run_folder import provenance
from wm_envs.real import episode_limit
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent

SHIPPED_STARTS = 512
"""Latents in each bank of starts that a shipped model keeps."""


PLANNED = 10
"""Episodes that a policy which plans is scored on in its dream: there each step takes all rows' plans at once."""


class Candidate(NamedTuple):
    """What a run has chosen."""

    model: Model
    policy: Controller
    spec: RealSpec
    starts: dict[str, Latent]
    cut_off: float
    rounds: list[dict[str, float]] | None = None
    """What each round promised and earned, for the fidelity report."""


class Story(NamedTuple):
    """What the card tells of the training, in words, and what the summary does, in numbers."""

    data: str
    """Seeds and what they were used for; the counts of steps come before it."""
    training: str
    """How it went; its wall time comes before it."""
    text: str
    real_steps: int
    """Agent steps in the real environment, all of them."""
    train_wall_s: float
    result: Mapping[str, Any]
    """What joins the result, such as the round that was chosen."""
    summary: Mapping[str, Any]
    """What only summary.json holds besides."""


def deliver(
    run: Path, candidate: Candidate, story: Story, *, episodes: int, procs: int, console: Console
) -> dict[str, Any]:
    """Leave `model/`, the artifact in half precision with its card, fidelity/ and `summary.json` in the run's folder.

    A policy that plans is dreamed of less, and gets no fidelity/.

    Returns:
        The scores, the gap and the costs.
    """
    spec, final = candidate.spec, run / "model"
    save = partial(
        save_model,
        final,
        candidate.model,
        spec,
        {bank: {k: v[:SHIPPED_STARTS] for k, v in latent.items()} for bank, latent in candidate.starts.items()},
        horizon=episode_limit(spec),
        cut_off=candidate.cut_off,
        policy=candidate.policy,
        rounds=candidate.rounds,
        half=True,
    )
    save(card="")
    plans = candidate.policy.about()["kind"] == "mppi"
    dreamed = min(PLANNED, episodes) if plans else episodes
    console.print(f"held-out score: {episodes} real episodes on seeds that nothing was trained or chosen on")
    result = evaluate(str(final), episodes=episodes, dream_episodes=dreamed, procs=procs, console=console)
    if plans:  # Tens of thousands of plans more.
        console.print(f"no fidelity report: the policy plans, and it would take hours; `wm fidelity {final}` writes it")
    else:
        console.print(
            f"fidelity: a first look, on one real episode a policy; `wm fidelity {final}` takes more", soft_wrap=True
        )
        fidelity_report(str(final), run / "fidelity", procs=procs, quick=True, console=console)
    result |= {
        "real_steps": story.real_steps,
        "real_frames": story.real_steps * spec.action_repeat,
        "train_wall_s": round(story.train_wall_s),
        "hardware": describe(),
        **story.result,
    }
    save(card=_card(spec, result, story))
    write_json(run / "summary.json", {**result, **story.summary})
    real, dream = result["real"], result["dream"]
    console.print(f"protocol: {result['protocol']}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"real {real['mean']:.1f} ± {real['std']:.1f} over {real['episodes']} held-out episodes, "
        f"dream {dream['mean']:.1f}; the dream and its policy are in {final}",
        soft_wrap=True,
    )
    return result


def _card(spec: RealSpec, result: dict[str, Any], story: Story) -> str:
    real, dream = result["real"], result["dream"]
    facts = {
        "real environment": f"{spec.id}, gymnasium {result['versions']['gymnasium']}",
        "real score": f"{real['mean']} ± {real['std']} (95 % of the mean: ± {real['ci95']}), "
        f"{real['episodes']} episodes, seeds from {real['seed']}",
        "protocol": result["protocol"],
        "dream score": f"{dream['mean']} ± {dream['std']}, gap {result['gap']}",
        "data": f"{result['real_steps']} agent steps, {result['real_frames']} frames, {story.data}",
        "training": f"{result['train_wall_s']} s of wall time, {story.training}",
        "command": provenance()["command"],
        "hardware": result["hardware"]["cpu"] + f", {result['hardware']['cores']} cores",
        "license": "MIT",
    }
    return model_card(
        f"Dream of {spec.id}", facts, f"{story.text} Scores again: `wm evaluate MODEL --seed {real['seed']}`."
    )
