"""Dream and real score by temperature: the table of Ha & Schmidhuber."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from rich.console import Console

from policies.cmaes import CMAConfig
from wm_agents.control.evolve import evolve_in_dream, show_generations
from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.fidelity.ranking import interval
from wm_agents.evaluation.subject import Subject, dream_score
from wm_agents.evaluation.variants import Contender, squash_of
from wm_agents.system.progress import Bar


class Warmth(NamedTuple):
    """One temperature."""

    tau: float
    dream: float
    """Return of the saved policy in dreams of this temperature."""
    dream_std: float
    dream_ci95: float | None
    trained_dream: float | None = None
    """Dream return of a controller trained from scratch in dreams of this temperature."""
    trained_real: float | None = None
    """Real return of that controller."""
    trained_real_ci95: float | None = None


def sweep(subject: Subject, taus: tuple[float, ...], *, episodes: int, seed: int) -> list[Warmth]:
    """Compute the dream return of the saved policy at every temperature."""
    assert subject.policy is not None
    scores = [
        (tau, dream_score(subject, subject.policy, episodes=episodes, seed=seed, temperature=tau))
        for tau in sorted(set(taus))
    ]
    return [Warmth(tau, score.mean, score.std, interval(score)[1]) for tau, score in scores]


def train_at(
    row: Warmth,
    subject: Subject,
    cma: CMAConfig,
    real: Callable[[Contender], Score],
    *,
    episodes: int,
    seed: int,
    console: Console | None = None,
) -> Warmth:
    """Train a controller in dreams of one temperature, and add its dream and real score to the row."""
    with Bar(f"training at tau {row.tau}, generation", cma.generations, console) as bar:
        policy = evolve_in_dream(
            subject.model,
            subject.starts,
            cma,
            replace(subject.dream, temperature=row.tau),
            squash=squash_of(subject.policy),
            on_generation=show_generations(bar),
        ).policy
    dream = dream_score(subject, policy, episodes=episodes, seed=seed, temperature=row.tau)
    mean, ci95 = interval(real(Contender(f"trained at {row.tau}", weights=policy.weights)))
    return row._replace(trained_dream=dream.mean, trained_real=mean, trained_real_ci95=ci95)
