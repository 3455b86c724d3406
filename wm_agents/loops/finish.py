"""The end of a run: save the selected model, score it on held-out seeds and in its dream, write its card."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from policies.policy import RandomPolicy
from policies.pool import Procs
from policies.rollout import EVAL_SEED
from wm_agents.checkpoint import model_card
from wm_agents.evaluation.evaluate import Score, evaluate, evaluate_real
from wm_agents.evaluation.exploit import exploit_warning
from wm_agents.evaluation.fidelity.report import fidelity_report
from wm_agents.evaluation.outcome import outcome_table, trust
from wm_agents.models.model import Model
from wm_agents.pretrained import Controller, save_model
from wm_agents.system.extras import extra
from wm_agents.system.files import write_json
from wm_agents.system.hardware import describe
from wm_agents.system.run_folder import provenance
from wm_agents.system.time_limit import time_limit
from wm_envs.real import probe
from wm_envs.registry import RealSpec, has_sticky_actions
from wm_envs.world_model import Latent

SHIPPED_STARTS = 512
"""Initial latents of each kind that a saved model keeps."""


PLANNED = 10
"""Dream episodes for the score of a planning policy, which plans for all rows in each step."""


RANDOM_EPISODES = 20
"""Held-out episodes of random actions."""
REPORT_MINUTES = 2.0
"""Default time limit of the fidelity report."""


class Candidate(NamedTuple):
    """The selected model of a run."""

    model: Model
    policy: Controller
    spec: RealSpec
    starts: dict[str, Latent]
    cut_off: float
    rounds: list[dict[str, float]] | None = None
    """Dream return and real return of each round, for the fidelity report."""


class Story(NamedTuple):
    """Facts about the training for the card and the summary."""

    data: str
    """Seeds and their use; the card prints it after the number of steps."""
    training: str
    """A summary of the training; the card prints it after the wall time."""
    text: str
    real_steps: int
    """All agent steps in the real environment."""
    train_wall_s: float
    result: Mapping[str, Any]
    """Additional entries of the result, such as the selected round."""
    summary: Mapping[str, Any]
    """Additional entries of summary.json only."""


def deliver(
    run: Path,
    candidate: Candidate,
    story: Story,
    *,
    episodes: int,
    procs: Procs,
    console: Console,
    report_minutes: float = REPORT_MINUTES,
) -> dict[str, Any]:
    """Write `model/` (half precision, with a card) and `summary.json` into the run folder, then `fidelity/`.

    A planning policy is scored on fewer dreams and gets no `fidelity/`.

    Args:
        report_minutes: maximum time of the fidelity report, which is the last step; 0: no report.

    Returns:
        Scores, gap, real steps and wall time.
    """
    spec, final = candidate.spec, run / "model"
    save = partial(
        save_model,
        final,
        candidate.model,
        spec,
        {bank: {k: v[:SHIPPED_STARTS] for k, v in latent.items()} for bank, latent in candidate.starts.items()},
        horizon=probe(spec).limit,
        cut_off=candidate.cut_off,
        policy=candidate.policy,
        rounds=candidate.rounds,
        half=True,
    )
    save(card="")
    result = _score(final, candidate, episodes, procs, console)
    result |= {
        "real_steps": story.real_steps,
        "real_frames": story.real_steps * spec.action_repeat,
        "train_wall_s": round(story.train_wall_s),
        "hardware": describe(),
        **story.result,
    }
    save(card=_card(spec, result, story))
    write_json(run / "summary.json", {**result, **story.summary})
    if candidate.policy.about()["kind"] == "mppi":  # It would take tens of thousands of plans.
        console.print(f"no fidelity report: with a planning policy it takes hours; run `wm fidelity {final}`")
    elif report_minutes:
        _report(final, run / "fidelity", report_minutes, procs, console)
    _show(result, final, console)
    return result


def _score(final: Path, candidate: Candidate, episodes: int, procs: Procs, console: Console) -> dict[str, Any]:
    """The scores of the saved model and of random actions, on held-out seeds; whether to trust the dream."""
    spec, plans = candidate.spec, candidate.policy.about()["kind"] == "mppi"
    console.print(f"held-out score: {episodes} real episodes on seeds unused so far")
    result = evaluate(
        str(final),
        episodes=episodes,
        dream_episodes=min(PLANNED, episodes) if plans else episodes,
        procs=procs,
        both_protocols=has_sticky_actions(spec),
        console=console,
    )
    seeds = range(EVAL_SEED, EVAL_SEED + min(episodes, RANDOM_EPISODES))
    random = evaluate_real(spec, partial(RandomPolicy, probe(spec).act_space), seeds, procs, console)
    real, dream = Score(result["real"]["returns"]), Score(result["dream"]["returns"])
    result |= {"random": random.to_dict(), "trust": trust(real, dream, random)}
    if warning := exploit_warning(dream, real):
        result["warning"] = warning
    return result


def _report(model: Path, out: Path, minutes: float, procs: Procs, console: Console) -> None:
    """Write the quick fidelity report. An error, an interruption or the time limit ends it, but not the run."""
    full = f"run `wm fidelity {model}` for the full one"
    console.print(
        f"quick fidelity report, at most {minutes:g} minutes (one real episode per policy); {full}", soft_wrap=True
    )
    try:
        with extra("the fidelity report", console), time_limit(60 * minutes, "raise report_minutes"):
            fidelity_report(str(model), out, procs=procs, quick=True, console=console)
    except KeyboardInterrupt:
        console.print("  the fidelity report was interrupted; the run is complete without it")


def _show(result: dict[str, Any], final: Path, console: Console) -> None:
    """Print the result of the run."""
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    if "warning" in result:
        say(result["warning"])
    say(f"protocol: {result['protocol']}")
    say(outcome_table(result))
    say(result["trust"])
    say(f"the dream and its policy are in {final}")


def _other_protocol(result: dict[str, Any]) -> dict[str, str]:
    """The row of the card with the score without sticky actions, if there is one."""
    other = result.get("real_without_sticky")
    if other is None:
        return {}
    return {"real score without sticky actions": f"{other['mean']} ± {other['std']}, {other['episodes']} episodes"}


def _card(spec: RealSpec, result: dict[str, Any], story: Story) -> str:
    real, dream = result["real"], result["dream"]
    facts = {
        "real environment": f"{spec.id}, gymnasium {result['versions']['gymnasium']}",
        "real score": f"{real['mean']} ± {real['std']} (95 % CI of the mean: ± {real['ci95']}), "
        f"{real['episodes']} episodes, seeds from {real['seed']}",
        "protocol": result["protocol"],
        **_other_protocol(result),
        **({"warning": result["warning"]} if "warning" in result else {}),
        "dream score": f"{dream['mean']} ± {dream['std']}, gap {result['gap']}",
        "random actions": f"{result['random']['mean']} ± {result['random']['std']}",
        "trust": result["trust"],
        "data": f"{result['real_steps']} agent steps, {result['real_frames']} frames, {story.data}",
        "training": f"{result['train_wall_s']} s of wall time, {story.training}",
        "command": provenance()["command"],
        "hardware": result["hardware"]["cpu"] + f", {result['hardware']['cores']} cores",
        "license": "MIT",
    }
    return model_card(
        f"Dream of {spec.id}",
        facts,
        f"{story.text} `wm evaluate MODEL --seed {real['seed']}` reproduces the scores.",
    )
