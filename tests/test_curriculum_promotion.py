"""Promotion, patience and the extension, on curves whose end is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import count

import pytest

from wm_agents.curriculum.promotion import Plateau, Promotion, Standing


def standing(threshold: float = 100.0, generations: int = 1000, **plateau: float | bool) -> Standing:
    return Standing(Promotion(threshold), Plateau(threshold, generations, **plateau))  # type: ignore[arg-type]


def play(task: Standing, means: Iterable[float], every: int = 10, begin: int = 0) -> int:
    """Feed evaluations; the generation of the last one taken in."""
    generation = begin
    for generation, mean in zip(count(begin + every, every), means, strict=False):
        if task.add(generation, mean):
            break
    return generation


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_fewer_than_five_evaluations_never_promote(num: int) -> None:
    task = Promotion(18.0)
    assert True not in [task.add(1e9) for _ in range(num)]
    assert task.rolling is None and not task.solved


def test_the_fifth_evaluation_can_promote_and_the_threshold_itself_is_enough() -> None:
    task = Promotion(18.0)
    assert [task.add(18.0) for _ in range(5)] == [False] * 4 + [True]


def test_one_lucky_evaluation_does_not_promote() -> None:
    task = Promotion(18.0)
    assert True not in [task.add(mean) for mean in (-21, -21, -21, -21, 21, -21, -21, -21, -21, -21)]


def test_the_mean_is_of_exactly_the_last_five() -> None:
    task = Promotion(1e9)
    for mean in (1000, 1, 2, 3, 4, 5):
        task.add(mean)
    assert task.rolling == 3.0 and task.means == [1, 2, 3, 4, 5]


def test_early_failures_roll_out_of_the_mean() -> None:
    task = Promotion(10.0)
    assert [task.add(mean) for mean in (-999, 10, 10, 10, 10, 10)] == [False] * 5 + [True]


def test_negative_thresholds_are_reached_from_below() -> None:
    task = Promotion(-100.0)
    assert True not in [task.add(-101) for _ in range(9)]
    assert [task.add(-95) for _ in range(5)][-1] and task.solved


@pytest.mark.parametrize("mean", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_rejected(mean: float) -> None:
    with pytest.raises(ValueError, match="mean return of an evaluation must be finite, got"):
        Promotion(1.0).add(mean)


def test_a_flat_curve_stops_when_patience_is_out() -> None:
    task = standing(patience=3)
    generation = play(task, [0.0] * 99)
    # The fifth evaluation sets the best rolling mean; three more without a better one are borne.
    assert (task.verdict, generation) == ("plateau", 80)


def test_patience_is_not_counted_before_there_is_a_rolling_mean() -> None:
    plateau = Plateau(100.0, 1000, patience=1)
    assert [plateau.add(g, None) for g in (10, 20, 30, 40)] == [None] * 4
    assert (plateau.num_bad, plateau.best) == (0, None)


def test_a_rise_below_min_delta_is_not_an_improvement_but_adds_up() -> None:
    plateau = Plateau(100.0, 1000, patience=9, min_delta=1.0)
    seen = []
    for i, rolling in enumerate([0.0, 0.6, 1.0, 1.2]):
        plateau.add(10 * i, rolling)
        seen.append(plateau.num_bad)
    assert seen == [0, 1, 2, 0]  # 1.0 is not *more* than min_delta; 1.2 is, measured from 0.0.
    assert plateau.best == 1.2


def test_a_rising_curve_is_not_stopped() -> None:
    task = standing(patience=2)
    assert play(task, [2.0 * i for i in range(40)]) == 400 and task.verdict is None


def test_without_early_stop_only_spent_generations_end_a_task() -> None:
    task = standing(generations=300, patience=1, early_stop=False)
    assert play(task, [0.0] * 99) == 300 and task.verdict == "max_generations"


def test_the_last_generation_may_still_solve() -> None:
    task = standing(generations=50)
    assert play(task, [100.0] * 5) == 50 and task.verdict == "solved" and task.plateau.extended_at is None


@pytest.mark.parametrize(
    "threshold, rolling, near",
    [(18, 13, True), (18, 12.9, False), (800, 720, True), (800, 719, False), (-100, -110, True), (-100, -111, False)],
)
def test_near_is_five_points_or_a_tenth_of_the_threshold(threshold: float, rolling: float, near: bool) -> None:
    assert Plateau(threshold, 100).is_near(rolling) is near
    assert not Plateau(threshold, 100).is_near(None)


@pytest.mark.parametrize("generations, extra", [(5, 10), (100, 10), (101, 11), (200, 20), (1000, 100)])
def test_an_extension_is_a_tenth_of_the_generations_and_ten_at_least(generations: int, extra: int) -> None:
    assert Plateau(1.0, generations).extension == extra
    assert Plateau(1.0, generations, period=4).extension == -(-extra // 4) * 4  # It ends with an evaluation.


def test_an_extension_really_extends_spent_generations_once() -> None:
    task = standing(generations=200, patience=99)
    assert play(task, [95.0] * 99) == 220
    assert task.verdict == "max_generations"
    assert (task.plateau.extended_at, task.plateau.extension, task.plateau.limit) == (200, 20, 220)


def test_an_extension_really_extends_a_plateau_once() -> None:
    task = standing(generations=1000, patience=3)
    # Out of patience at 80, near the threshold: 100 generations more, ten evaluations, then the end.
    assert play(task, [95.0] * 99) == 180
    assert task.verdict == "plateau" and task.plateau.extended_at == 80


def test_far_from_the_threshold_nothing_is_extended() -> None:
    task = standing(generations=200, patience=99)
    assert play(task, [80.0] * 99) == 200 and task.plateau.extended_at is None


def test_what_rises_in_its_extension_continues_to_the_last_generation() -> None:
    task = standing(generations=1000, patience=8)
    # Patience is out at 130; the extension ends at 230, and the curve has just risen then.
    curve = [95.0] * 17 + [98.0] * 200
    assert play(task, curve) > 230
    assert task.verdict == "plateau" and task.plateau.extended_at == 130


def test_an_extension_can_promote() -> None:
    task = standing(generations=200, patience=99)
    assert play(task, [95.0] * 20 + [120.0] * 9) == 210  # One of 120 lifts the mean of five to 100.
    assert task.verdict == "solved"


def test_an_extension_never_shortens_what_may_be_trained() -> None:
    plateau = Plateau(100.0, 1000, patience=1, extended_at=10)
    assert plateau.limit == 1000


def test_a_result_stays() -> None:
    task = standing()
    play(task, [200.0] * 5)
    before = task.to_dict()
    assert task.add(60, -999.0) == "solved" and task.to_dict() == before


@pytest.mark.parametrize("cut", range(26))
def test_a_standing_survives_json_at_any_point(cut: int) -> None:
    curve = [95.0] * 20 + [99.0] * 6
    whole, first = (standing(generations=200, patience=9) for _ in range(2))
    generation = play(whole, curve)
    at = play(first, curve[:cut])
    text = json.dumps(first.to_dict(), allow_nan=False)
    again = Standing.from_dict(json.loads(text))
    assert again == first
    end = at if again.verdict else play(again, curve[cut:], begin=at)
    assert (again, end) == (whole, generation)


@pytest.mark.parametrize("name, value", [("max_generations", 0), ("patience", 0), ("min_delta", -1.0)])
def test_settings_that_make_no_sense_are_rejected(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a .* of at least"):
        Plateau(1.0, **{"max_generations": 10, name: value})  # type: ignore[arg-type]
