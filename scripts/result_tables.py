"""The result tables, as functions of records and model cards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from records import Record

from wm_agents.evaluation.statistics import interval, iqm
from wm_envs.registry import TASKS

ORDER = ("CartPole", "Acrobot", "Pendulum", "MountainCarContinuous", "LunarLander", "CarRacing", "Breakout", "Pong")
NONE = "–"
NO_RUNS = "No run is recorded yet.\n"


class Card(NamedTuple):
    """The scores on the card of a shipped model."""

    task: str
    agent: str
    mean: float
    std: float
    ci95: float
    dream: float
    real_steps: int
    wall_s: float
    cpu: str


class Results(NamedTuple):
    """The source of all tables."""

    records: list[Record]
    cards: list[Card]
    published: dict[str, str]
    """Published scores as text, by task, or by task and name of a record, such as `Acrobot/random`."""

    def of(self, task: str, *kinds: str) -> list[Record]:
        return [record for record in self.records if record.task == task and record.kind in kinds]

    def card(self, task: str) -> Card | None:
        return next((card for card in self.cards if card.task == task), None)

    def chance(self, task: str) -> float | None:
        """The score of the random policy."""
        return next(iter(means(self.of(task, "random"))), None)


def means(records: Iterable[Record]) -> list[float]:
    """The scores of the runs that did not fail."""
    return [record.real["mean"] for record in records if record.real is not None]


def number(value: float | None, std: float | None = None) -> str:
    """A score, and the standard deviation of its episodes."""
    if value is None:
        return NONE
    return f"{value:.1f}" if std is None else f"{value:.1f} ± {std:.1f}"


def average(values: Sequence[float]) -> str:
    return number(float(np.mean(values)) if values else None)


def bounds(pair: tuple[float, float] | None, digits: int = 1) -> str:
    return NONE if pair is None else f"{pair[0]:.{digits}f} to {pair[1]:.{digits}f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3600:.1f} h"


def count(steps: float | None, frames: int = 1) -> str:
    """Real steps, with the frames of a step."""
    if steps is None:
        return NONE
    return f"{steps:,.0f}" + (f" (x {frames} frames)" if frames > 1 else "")


def span(values: Iterable[float | None], show: Callable[[float | None], str]) -> str:
    """The smallest and the largest of the known values."""
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    low, high = show(min(known)), show(max(known))
    return low if low == high else f"{low} to {high}"


def real_of(run: Record) -> str:
    """The score of a run, or why it failed."""
    return f"FAILED: {run.failed}" if run.real is None else number(run.real["mean"])


def fresh_of(policy: dict[str, Any]) -> str:
    """The score of a fresh controller, or why it failed."""
    return f"FAILED: {policy['failed']}" if "failed" in policy else number(policy["real"]["mean"])


def table(columns: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; `columns` separates the heads by |."""
    if not rows:
        return NO_RUNS
    lines = [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def env_of(task: str, runs: Sequence[Record] = ()) -> str:
    """The id of the real environment."""
    return TASKS[task].real.id if task in TASKS else runs[0].env


def shipped(results: Results) -> str:
    """One row per shipped model, from its card, and one per run of a family that is trained online."""
    rows = []
    for task in ORDER:
        if card := results.card(task):
            rows.append(
                [
                    env_of(task),
                    f"`{TASKS[task].dream_id}`, {card.agent}",
                    f"**{number(card.mean, card.std)}**",
                    f"± {card.ci95:.1f}",
                    number(card.dream),
                    count(card.real_steps, TASKS[task].real.action_repeat),
                    duration(card.wall_s),
                    card.cpu,
                    results.published.get(task, ""),
                ]
            )
        rows += [_online_row(run, results.published) for run in results.of(task, "online")]
    return table(
        "environment | model and controller | real return | 95 % CI | dream return | real steps | wall time | CPU | "
        "published reference",
        rows,
    )


def _online_row(run: Record, published: dict[str, str]) -> list[str]:
    score, ci95 = real_of(run), NONE
    if run.real is not None:
        score, ci95 = f"**{number(run.real['mean'], run.real['std'])}**", f"± {run.real['ci95']:.1f}"
    dream = None if run.dream is None else run.dream["mean"]
    reference = published.get(f"{run.task}/{run.name}", "")
    steps = count(run.real_steps, run.frames_a_step)
    cpu = run.hardware["cpu"]
    return [run.env, run.agent, score, ci95, number(dream), steps, duration(run.wall_s), cpu, reference]


def seeds(results: Results) -> str:
    """All seeds of each recipe, trained from scratch."""
    rows = []
    for task in ORDER:
        if not (runs := results.of(task, "dream")):
            continue
        found = means(runs)
        rows.append(
            [
                env_of(task, runs),
                runs[0].agent,
                ", ".join(map(real_of, runs)),
                average(found),
                number(iqm(found) if found else None),
                bounds(interval([found])),
                span((run.real_steps for run in runs), count),
                span((run.wall_s for run in runs), duration),
                ", ".join(dict.fromkeys(run.hardware["cpu"] for run in runs)),
            ]
        )
    return table(
        "environment | recipe | real return of every seed | mean | IQM | 95 % interval of the IQM | real steps | "
        "wall time | CPU",
        rows,
    )


def aggregate(results: Results) -> str:
    """The normalised interquartile mean over all tasks that have two seeds and a random score."""
    strata = {}
    for task in ORDER:
        found, low = means(results.of(task, "dream")), results.chance(task)
        if task in TASKS and len(found) > 1 and low is not None:
            strata[task] = [(value - low) / (TASKS[task].threshold - low) for value in found]
    if not strata:
        return "No task has two seeds and a random score yet.\n"
    everything = [value for values in strata.values() for value in values]
    return (
        f"Over {len(everything)} runs of {', '.join(strata)}, normalised (0: random policy, 1: solved): "
        f"IQM **{iqm(everything):.2f}**, 95 % interval {bounds(interval(strata.values()), 2)}.\n"
    )


def transfers(results: Results) -> str:
    """Fresh controllers in the shipped dreams."""
    rows = []
    for task in ORDER:
        for run in results.of(task, "transfer"):
            done = [policy for policy in run.policies if "failed" not in policy]
            found = [policy["real"]["mean"] for policy in done]
            spread = float(np.std(found, ddof=1)) if len(found) > 1 else None
            rows.append(
                [
                    env_of(task, [run]),
                    run.agent,
                    ", ".join(map(fresh_of, run.policies)),
                    average(found),
                    number(spread),
                    _share(results, task, found),
                    span((policy["train_wall_s"] for policy in done), duration),
                ]
            )
    return table(
        "environment | controller | real return of every policy | mean | standard deviation between policies | "
        "share of the shipped gain | training of one policy",
        rows,
    )


def _share(results: Results, task: str, found: Sequence[float]) -> str:
    """The gain over the random policy, as a share of the shipped controller's."""
    card, low = results.card(task), results.chance(task)
    if card is None or low is None or not found:
        return NONE
    return f"{(np.mean(found) - low) / (card.mean - low):.2f}"


def references(results: Results) -> str:
    """Model-free learners in the real environment, at equal real steps and at equal wall time."""
    rows = []
    for task in ORDER:
        runs = results.of(task, "reference", "random")
        for agent, budget in dict.fromkeys((run.agent, run.budget) for run in runs):
            same = [run for run in runs if (run.agent, run.budget) == (agent, budget)]
            rows.append(
                [
                    env_of(task, same),
                    agent,
                    budget or NONE,
                    ", ".join(map(real_of, same)),
                    average(means(same)),
                    span((run.real_steps for run in same), count),
                    span((run.wall_s for run in same), duration),
                ]
            )
    return table("environment | learner | budget | real return of every seed | mean | real steps | wall time", rows)


def protocols(results: Results) -> str:
    """Games with and without sticky actions."""
    rows = []
    for task in ORDER:
        for run in results.of(task, "dream", "reference", "random"):
            if run.real is not None and run.without_sticky is not None:
                scores = [number(score["mean"], score["std"]) for score in (run.real, run.without_sticky)]
                rows.append([run.env, run.agent, str(run.seed), *scores])
    return table("environment | agent | seed | with sticky actions | without sticky actions", rows)


def overview(results: Results) -> str:
    """The table of the README: shipped models with all seeds and fresh policies; else runs of online families."""
    rows = []
    for task in reversed(ORDER):
        card = results.card(task)
        if card is None:
            rows += [_overview_of(run) for run in results.of(task, "online")]
            continue
        done = [p for run in results.of(task, "transfer") for p in run.policies if "failed" not in p]
        rows.append(
            [
                env_of(task),
                card.agent,
                f"**{number(card.mean, card.std)}**",
                number(card.dream),
                ", ".join(map(real_of, results.of(task, "dream"))) or NONE,
                average([policy["real"]["mean"] for policy in done]),
                count(card.real_steps),
                duration(card.wall_s),
            ]
        )
    return table(
        "environment | world model, controller | real return | dream return | all seeds | fresh policies | "
        "real steps | wall time",
        rows,
    )


def _overview_of(run: Record) -> list[str]:
    env, agent, score, _, dream, steps, time, *_ = _online_row(run, {})
    return [env, agent, score, dream, NONE, NONE, steps, time]


def with_curves(results: Results) -> list[str]:
    """The tasks with a figure."""
    return [task for task in ORDER if any(run.curve for run in results.of(task, "dream", "reference"))]


def figures(results: Results) -> str:
    """The learning curves, as images."""
    what = "real return by real steps and by wall time, and the exploit gap by round"
    return "\n".join(f"![{task}: {what}](records/{task}/curve.svg)\n" for task in with_curves(results)) or NO_RUNS


BLOCKS: dict[str, Callable[[Results], str]] = {
    "overview": overview,
    "shipped": shipped,
    "seeds": seeds,
    "aggregate": aggregate,
    "fresh policies": transfers,
    "references": references,
    "protocols": protocols,
    "curves": figures,
}
"""The blocks of the pages, by name."""
