"""All measurements of the fidelity report, on held-out real episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from rich.console import Console

from policies.cmaes import CMAConfig
from policies.play import EpisodeTask
from policies.rollout import EVAL_SEED
from wm_agents.data.episode import Episode
from wm_agents.evaluation.determinism import Determinism, check_seeds
from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.fidelity.calibration import Reliability, drawn_ends, reliability
from wm_agents.evaluation.fidelity.closed_loop import Closed, closed_loop
from wm_agents.evaluation.fidelity.history import History
from wm_agents.evaluation.fidelity.open_loop import OpenLoop, open_loop
from wm_agents.evaluation.fidelity.ranking import Gap, Ranking, gap_of, rank
from wm_agents.evaluation.fidelity.temperature import Warmth, sweep, train_at
from wm_agents.evaluation.posterior import predict_steps
from wm_agents.evaluation.subject import Subject
from wm_agents.evaluation.variants import SAVED, Contender, contenders
from wm_agents.system.progress import Bar
from wm_envs.fields import above, at_least, check_fields, fail

Play = Callable[[Sequence[EpisodeTask]], Iterator[Episode]]
"""Real episodes of jobs (seed, (contender,)), in their order."""


@dataclass(frozen=True)
class FidelityConfig:
    """Settings of the measurements."""

    episodes: int = field(default=8, metadata=at_least(1))
    """Real episodes per policy."""
    policies: int = field(default=12, metadata=at_least(1))
    """Maximum number of ranked policies."""
    dream_episodes: int = field(default=128, metadata=at_least(1))
    """Dreams per policy and per temperature."""
    windows: int = field(default=1024, metadata=at_least(1))
    """Windows of the real episodes that are dreamed again."""
    horizons: tuple[int, ...] = field(default=(1, 2, 5, 10, 15, 25, 50, 100), metadata=at_least(1))
    longest_dream: int = 2000
    """Maximum horizon of dreams, unless a real episode is longer; the limit of a game may be 27,000 steps."""
    tolerance: int = 2
    """Tolerance in steps for predicted terminations."""
    temperatures: tuple[float, ...] = field(default=(0.5, 0.7, 0.85, 1.0, 1.15, 1.3), metadata=above(0))
    train_temperatures: tuple[float, ...] = field(default=(), metadata=above(0))
    """Temperatures at which controllers are trained and scored in the real environment."""
    cma: CMAConfig = field(default_factory=lambda: CMAConfig(32, 8, 60))
    """CMA-ES settings for these controllers."""
    max_gb: float = 1.0
    """Maximum memory of frames; episodes beyond that contribute only their returns."""
    seed: int = EVAL_SEED
    longest_episode: int | None = field(default=None, metadata=at_least(1))
    """Truncate real episodes after N steps; None: only the environment's own limit."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seed < EVAL_SEED:
            fail(self, "seed", f"at least {EVAL_SEED:,}, because lower seeds are for training")


QUICK = FidelityConfig(episodes=1, longest_episode=1000, policies=8, dream_episodes=64, windows=256, longest_dream=1000)


class Fidelity(NamedTuple):
    """All measurements; None or empty if there are no data for a section."""

    real_episodes: int
    real_steps: int
    open_loop: OpenLoop
    reliability: Reliability
    determinism: Determinism
    gap: Gap | None
    closed_loop: list[Closed]
    ranking: Ranking
    temperatures: list[Warmth]
    history: History | None


def measure(
    subject: Subject,
    play: Play,
    cfg: FidelityConfig,
    *,
    among: Sequence[Contender] | None = None,
    history: History | None = None,
    console: Console | None = None,
) -> Fidelity:
    """Measure a model.

    Args:
        play: plays real episodes.
        among: the policies to play and rank; default: variants of the saved one.
    """
    if among is None:
        among = contenders(subject.policy, subject.model.act_space, cfg.policies)
    drives = _drive(play, among, cfg, console)
    longest = max(drives.steps)
    horizon = min(subject.dream.horizon or longest, max(longest, cfg.longest_dream))
    subject = subject._replace(dream=replace(subject.dream, horizon=horizon))
    model, dreamed = subject.model, {"episodes": cfg.dream_episodes, "seed": cfg.seed}
    warmths: list[Warmth] = []
    closed: list[Closed] = []
    own = [ep for ep, who in zip(drives.episodes, drives.who) if who == SAVED]
    with Bar("dreams", 4, console) as bar:
        ranking = rank(subject, among, drives.scores, **dreamed)
        bar.update(1, "policies")
        if subject.policy is not None:
            warmths = sweep(subject, (*cfg.temperatures, *cfg.train_temperatures), **dreamed)
        bar.update(2, "temperatures")
        ahead = open_loop(
            model,
            drives.episodes,
            horizons=cfg.horizons,
            windows=cfg.windows,
            temperature=subject.dream.temperature,
            cut_off=subject.dream.cut_off,
            tolerance=cfg.tolerance,
        )
        bar.update(3, "dreams of real episodes")
        if own and subject.policy is not None:
            closed = closed_loop(subject, own, horizons=cfg.horizons, windows=cfg.windows)
        seen = predict_steps(model, drives.episodes, temperature=subject.dream.temperature)
        drawn = drawn_ends(model, drives.episodes, temperature=subject.dream.temperature)
        bar.update(4, "termination")
    for i, row in enumerate(warmths):
        if row.tau in cfg.train_temperatures:
            warmths[i] = train_at(
                row,
                subject,
                cfg.cma,
                lambda who: _drive(play, [who], cfg, console).scores[who.name],
                **dreamed,
                console=console,
            )
    return Fidelity(
        len(drives.steps),
        sum(drives.steps),
        ahead,
        reliability(seen, subject.dream.cut_off, drawn),
        check_seeds(subject),
        gap_of(ranking.saved, horizon, cfg.episodes) if ranking.saved else None,
        closed,
        ranking,
        warmths,
        history,
    )


class _Drives(NamedTuple):
    scores: dict[str, Score]
    """By policy."""
    steps: list[int]
    """Of every episode."""
    episodes: list[Episode]
    """Episodes with frames, within the memory limit."""
    who: list[str]
    """The policies of these episodes."""


def _drive(play: Play, among: Sequence[Contender], cfg: FidelityConfig, console: Console | None) -> _Drives:
    # Seed by seed, so that a full memory drops seeds and not policies.
    jobs = [EpisodeTask(cfg.seed + i, (who,)) for i in range(cfg.episodes) for who in among]
    found = _Drives({who.name: Score([]) for who in among}, [], [], [])
    room = cfg.max_gb * 1e9
    with Bar("real episodes", len(jobs), console) as bar:
        for job, ep in zip(jobs, play(jobs), strict=True):
            name, ret = job.args[0].name, float(ep.rew.sum(dtype=np.float64))
            found.scores[name].returns.append(ret)
            found.steps.append(ep.num_steps)
            room -= ep.obs.nbytes
            if room >= 0 or not found.episodes:
                found.episodes.append(ep)
                found.who.append(name)
            bar.update(len(found.steps), f"{name}: {ret:.1f}")
    return found
