"""Returns of several policies in the dream and in the real environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.statistics import pearson, spearman
from wm_agents.evaluation.subject import Subject, dream_score
from wm_agents.evaluation.variants import SAVED, Contender, controller


class _Ranked(NamedTuple):
    """Real return and dream return of a policy."""

    name: str
    real_mean: float
    real_ci95: float | None
    """Half width of the 95 % CI of the mean; None for a single episode."""
    dream_mean: float
    dream_ci95: float | None


class Ranking(NamedTuple):
    """The order of policies in the dream, compared with the real order."""

    spearman: float | None
    pearson: float | None
    policies: list[_Ranked]

    @property
    def by_real(self) -> list[_Ranked]:
        """The policies by real return, best first."""
        return sorted(self.policies, key=lambda r: -r.real_mean)

    @property
    def saved(self) -> _Ranked | None:
        """The saved policy of the model."""
        return next((r for r in self.policies if r.name == SAVED), None)


class Gap(NamedTuple):
    """Dream return minus real return of the saved policy."""

    real: float
    real_ci95: float | None
    dream: float
    dream_ci95: float | None
    gap: float
    horizon: int
    """Horizon of the dreams."""
    real_episodes: int


def rank(
    subject: Subject, among: Sequence[Contender], real: Mapping[str, Score], *, episodes: int, seed: int
) -> Ranking:
    """Compute the dream returns of all policies, and correlate them with the `real` scores."""
    ranked = []
    for who in among:
        policy = controller(subject.policy, subject.model.act_space, who)
        dream = dream_score(subject, policy, episodes=episodes, seed=seed)
        ranked.append(_Ranked(who.name, *interval(real[who.name]), *interval(dream)))
    worlds = [r.real_mean for r in ranked], [r.dream_mean for r in ranked]
    return Ranking(spearman(*worlds), pearson(*worlds), ranked)


def interval(score: Score) -> tuple[float, float | None]:
    """Mean and half width of its 95 % CI; None for a single episode."""
    return score.mean, score.ci95 if len(score.returns) > 1 else None


def gap_of(saved: _Ranked, horizon: int, real_episodes: int) -> Gap:
    """The gap between dream and real return of a ranked policy."""
    return Gap(
        saved.real_mean,
        saved.real_ci95,
        saved.dream_mean,
        saved.dream_ci95,
        saved.dream_mean - saved.real_mean,
        horizon,
        real_episodes,
    )
