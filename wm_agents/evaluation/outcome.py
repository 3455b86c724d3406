"""The result of a run at one glance: its scores beside those of other policies, and whether to trust the dream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.exploit import FAR, exploits
from wm_agents.evaluation.references import reference_of


def trust(real: Score, dream: Score, random: Score) -> str:
    """Whether the policy is better than random actions, and whether its dream return can be trusted, in words.

    The dream is trusted if the gap is at most a fifth of the larger mean (in absolute value). A larger gap counts only
    if the 95 % CIs of both means do not overlap.
    """
    if min(len(real.returns), len(dream.returns)) < 2:
        return "A single episode does not show whether to trust the dream; evaluate more episodes."
    return f"{_against_random(real, random)} {_against_dream(real, dream)}"


def _against_random(real: Score, random: Score) -> str:
    margin = real.ci95 + random.ci95
    if real.mean > random.mean + margin:
        return "The policy is better than random actions."
    if real.mean < random.mean - margin:
        return "The policy is WORSE than random actions."
    return "The policy is NOT clearly better than random actions."


def _against_dream(real: Score, dream: Score) -> str:
    gap = dream.mean - real.mean
    if exploits(dream, real):
        return "Do NOT trust the dream: it gives far more than reality, because the policy exploits errors of it."
    if abs(gap) <= FAR * max(abs(dream.mean), abs(real.mean)):
        return "The dream can be trusted for this policy: both returns agree."
    if abs(gap) <= dream.ci95 + real.ci95:
        return (
            f"These episodes do not show whether to trust the dream: the returns differ by {abs(gap):.1f}, within "
            "their intervals; evaluate more episodes."
        )
    return (
        "Do NOT trust the dream: it gives far less than reality, so it lacks what the policy reaches. Collect more "
        "real steps with this policy."
    )


def outcome_table(result: Mapping[str, Any]) -> Table:
    """The scores of a `summary.json` as a table: random actions, a published agent, the policy, its dream, the gap.

    Args:
        result: `real`, `dream` and `random` as `Score.to_dict` gives them, `gap`, `real_steps`, `train_wall_s`.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % CI", justify="right", no_wrap=True)
    table.add_column("")
    for name, key in (("random actions, real", "random"), ("policy, real", "real"), ("policy, dream", "dream")):
        score = result[key]
        num = len(score["returns"])
        table.add_row(name, f"{score['mean']:.1f}", f"± {score['ci95']:.1f}", f"{num} episode{'s' * (num != 1)}")
    table.add_row("gap (dream - real)", f"{result['gap']:+.1f}", "", "")
    if (known := reference_of(result["real"]["env"])) is not None:
        table.add_row("published reference", f"{known.mean:.1f}", "", str(known))
    table.add_row("real steps", f"{result['real_steps']:,}", "", "")
    table.add_row("training time", f"{result['train_wall_s'] / 60:.1f} min", "", "")
    return table
