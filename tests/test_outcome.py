"""The result in words: what beats random actions, and which dreams are to be trusted."""

from __future__ import annotations

import pytest

from wm_agents.evaluation.evaluate import Score
from wm_agents.evaluation.outcome import trust
from wm_agents.evaluation.references import reference_of


def around(mean: float) -> Score:
    return Score([mean - 1, mean, mean + 1, mean])


@pytest.mark.parametrize(
    "real, dream, random, policy, verdict",
    [
        (100.0, 101.0, 20.0, "is better than random", "can be trusted"),
        (42.0, 23.4, 20.0, "is better than random", "Do NOT trust the dream: it gives far less than reality"),
        (42.0, 90.0, 20.0, "is better than random", "Do NOT trust the dream: it gives far more than reality"),
        (20.5, 20.0, 20.0, "is NOT clearly better", "can be trusted"),
        (5.0, 5.5, 20.0, "is WORSE than random", "can be trusted"),
        (-150.0, -170.0, -1200.0, "is better than random", "can be trusted"),  # The gap is an eighth.
    ],
)
def test_the_result_is_put_into_words(real: float, dream: float, random: float, policy: str, verdict: str) -> None:
    text = trust(around(real), around(dream), around(random))
    assert policy in text and verdict in text


def test_a_large_gap_within_wide_intervals_shows_nothing() -> None:
    dream = Score([20.0, 340.0, 180.0, 180.0])
    text = trust(around(120.0), dream, around(20.0))
    assert "do not show whether to trust the dream: the returns differ by 60.0" in text


def test_one_episode_shows_nothing() -> None:
    assert "single episode" in trust(Score([1.0]), Score([9.0]), around(0.0))


def test_references_are_found_by_environment_in_any_version() -> None:
    found = reference_of("mod:LunarLander-v3")
    assert found is not None and found.mean == 242.1
    assert str(found) == "SB3 PPO, 1,000,000 steps of LunarLander-v2 (RL Zoo, one run)"
    assert reference_of("LunarLanderContinuous-v3") != found and reference_of("Mine-v0") is None
