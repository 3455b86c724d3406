"""Which generations are filmed."""

from __future__ import annotations

import pytest

from wm_agents.curriculum.films import _triad, video_generations


@pytest.mark.parametrize(
    "generations, films",
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (4, [1, 2, 3]),
        (24, [6, 12, 18]),
        (200, [50, 100, 150]),
        (1000, [50, 500, 950]),
    ],
)
def test_triad_videos_near_the_beginning_the_middle_and_near_the_end(generations: int, films: list[int]) -> None:
    assert _triad(generations) == films


@pytest.mark.parametrize("generations", range(1, 300))
def test_a_triad_is_always_three_generations_of_the_run(generations: int) -> None:
    films = _triad(generations)
    assert len(set(films)) == min(generations, 3) and min(films) >= 1 and max(films) <= generations


def test_long_runs_are_recorded_three_times_and_short_ones_at_every_evaluation() -> None:
    assert video_generations(200, range(10, 201, 10)) == [50, 100, 150]
    assert video_generations(60, range(10, 61, 10)) == [10, 20, 30, 40, 50, 60]


def test_modes_overrule_the_length_of_the_run() -> None:
    assert video_generations(200, [100, 200], mode="all") == [100, 200]
    assert video_generations(200, [100, 200], mode="none") == []
    assert video_generations(40, [10, 20], mode="triad") == [10, 20, 30]


def test_a_list_goes_before_a_period_and_a_period_before_a_mode() -> None:
    assert video_generations(1000, [], mode="none", every=300) == [300, 600, 900]
    assert video_generations(1000, [], mode="none", every=300, explicit=[975, 25, 500, 25, 2000]) == [25, 500, 975]


def test_what_cannot_be_recorded_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"must be at least 1, got \[0\]"):
        video_generations(10, [], explicit=[0, 5])
    with pytest.raises(ValueError, match="at least 1 generation apart, got 0"):
        video_generations(10, [], every=0)
    with pytest.raises(ValueError, match="triad, none or all, got 'some'"):
        video_generations(10, [], mode="some")  # type: ignore[arg-type]
