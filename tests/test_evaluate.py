"""Scores: real, in the order of their seeds; dreamed; and the gap between them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny import save_tiny, work_here
from toy import Toy, toy_starts
from toy_policy import Always, refuse

from policies.linear import LinearPolicy
from wm_agents.evaluation import evaluate as evaluating
from wm_agents.evaluation.evaluate import Score, evaluate, evaluate_dream, evaluate_real, student95
from wm_agents.pretrained import load_dream, load_model, load_policy, load_starts, save_model
from wm_envs.dream import DreamConfig
from wm_envs.registry import TASKS, RealSpec, without_sticky_actions

ECHO = RealSpec("toy_env:Echo-v0", action_repeat=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    work_here(monkeypatch)


def test_a_score_is_the_mean_with_its_spread_and_interval() -> None:
    score = Score([1.0, 2.0, 3.0, 6.0])
    assert (score.mean, score.std) == (3.0, pytest.approx(math.sqrt(14 / 3)))
    assert score.ci95 == pytest.approx(3.182 * math.sqrt(14 / 3) / 2)
    assert str(score) == "3.0 ± 2.2 (95 % CI of the mean: ± 3.4; 4 episodes)"
    assert Score([5.0]).to_dict() == {"mean": 5.0, "std": 0.0, "ci95": 0.0, "returns": [5.0]}


@pytest.mark.parametrize(
    "num, quantile",
    [(2, 12.706), (3, 4.303), (8, 2.365), (10, 2.262), (11, 2.228), (21, 2.086), (100, 1.984), (10**6, 1.960)],
)
def test_few_episodes_have_student_s_wider_interval(num: int, quantile: float) -> None:
    assert student95(num - 1) == pytest.approx(quantile, abs=6e-4)


def test_the_interval_of_three_holds_the_true_mean_in_95_of_100_cases() -> None:
    draws = np.random.default_rng(0).normal(size=(5_000, 3))
    held = [abs(score.mean) < score.ci95 for score in (Score(list(row)) for row in draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.007)  # 1.96 would hold 81 % of them.


def test_a_single_value_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="degrees of freedom must be at least 1, got 0"):
        student95(0)


def test_returns_stand_in_the_order_of_the_seeds_whatever_process_played_them() -> None:
    def lengths(score: Score) -> list[float]:
        return [ret / 0.5 for ret in score.returns]

    score = evaluate_real(ECHO, partial(Always, 0.5), [7, 3, 11, 5, 9, 1], procs=2)
    alone = [evaluate_real_here([seed]) for seed in (7, 3, 11, 5, 9, 1)]
    assert lengths(score) == [lengths(one)[0] for one in alone]
    assert len(set(score.returns)) > 1
    assert score.frames == sum(one.frames for one in alone)


def evaluate_real_here(seeds: list[int]) -> Score:
    with pytest.MonkeyPatch.context() as patch:
        work_here(patch)
        return evaluate_real(ECHO, partial(Always, 0.5), seeds)


def test_frames_are_those_of_the_real_environment(at_home: None) -> None:
    spec = RealSpec("toy_env:Echo-v0", {"length": 6}, action_repeat=3)
    assert evaluate_real(spec, partial(Always, 1.0), [1, 2]).frames == 12


def test_a_workers_error_arrives(at_home: None) -> None:
    with pytest.raises(LookupError, match="no such policy"):
        evaluate_real(ECHO, refuse, [1])


def test_progress_goes_to_the_console_alone(at_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_real(ECHO, partial(Always, 1.0), [1, 2, 3], console=Console(stderr=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert "real toy_env:Echo-v0 3/3  mean return" in err
    evaluate_real(ECHO, partial(Always, 1.0), [1])
    assert capsys.readouterr() == ("", "")


def test_a_dreamed_return_is_the_sum_to_its_end_from_a_first_frame() -> None:
    def score(model: Toy) -> list[float]:
        return evaluate_dream(model, toy_starts(), Always(1.0), DreamConfig(horizon=5), episodes=20, seed=1).returns

    assert score(Toy()) == [5.0] * 20
    assert set(score(Toy(end=2.5))) == {2.0, 3.0, 4.0}  # From -1 to 1 in moves of 1; elsewhere it would end at once.


def test_the_dream_score_follows_its_seed_horizon_and_temperature(tiny: str) -> None:
    net, artifact = load_model(tiny)
    policy, starts = load_policy(net, artifact), load_starts(artifact)

    def score(seed: int, horizon: int | None = 5, temperature: float = 1.0) -> list[float]:
        dream = DreamConfig(temperature, horizon)
        return evaluate_dream(net, starts, policy, dream, episodes=4, seed=seed).returns

    assert score(1) == score(1)
    assert score(1) != score(2)
    assert score(1) != score(1, horizon=4)
    assert score(1) != score(1, temperature=3.0)
    assert score(1)[1:] == pytest.approx(score(2)[:-1], abs=2e-3)  # Row i seeded s is the dream seeded s + i.
    with pytest.raises(ValueError, match="horizon must be a number of steps"):
        score(1, horizon=None)


def test_the_same_call_gives_the_same_json_and_all_of_it(tiny: str, at_home: None) -> None:
    first, again = (evaluate(tiny, episodes=3) for _ in range(2))
    assert {key: again[key] for key in again if key != "wall_s"} == {k: v for k, v in first.items() if k != "wall_s"}
    assert json.loads(json.dumps(first)) == first
    assert list(first) == [
        "model", "policy", "real", "dream", "degraded_modes", "protocol", "gap", "frames", "wall_s", "versions",
    ]  # fmt: skip
    real, dream = first["real"], first["dream"]
    assert list(real) == ["env", "episodes", "seed", "mean", "std", "ci95", "returns"]
    assert (real["env"], real["episodes"], real["seed"]) == ("CarRacing-v3", 3, 1_000_000)
    assert len(real["returns"]) == len(dream["returns"]) == 3
    assert (dream["temperature"], dream["horizon"]) == (1.0, 6)
    assert first["gap"] == pytest.approx(dream["mean"] - real["mean"], abs=2e-3)
    assert first["frames"] == 3 * 6 * 4
    assert first["versions"]["gymnasium"]
    fewer = evaluate(tiny, episodes=3, dream_episodes=1)
    assert fewer["real"] == first["real"] and fewer["dream"]["returns"] == first["dream"]["returns"][:1]
    assert fewer["dream"]["episodes"] == 1
    moved = evaluate(tiny, episodes=2, seed=1_000_001)
    assert moved["real"]["returns"] == real["returns"][1:]


def test_games_are_scored_with_and_without_sticky_actions(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[RealSpec] = []

    def play(spec: RealSpec, make_policy: Any, seeds: Any, *more: Any) -> Score:
        played.append(spec)
        return Score([float(len(played))] * len(seeds))

    monkeypatch.setattr(evaluating, "evaluate_real", play)
    game = replace(TASKS["Pong"].real, size=32)
    result = evaluate(save_tiny(tmp_path / "game", game), episodes=2, both_protocols=True)
    assert played == [game, without_sticky_actions(game)]
    assert result["real"]["mean"] == 1.0 and "with sticky actions 0.25" in result["protocol"]
    other = result["real_without_sticky"]
    assert (other["mean"], other["episodes"], other["seed"]) == (2.0, 2, 1_000_000)
    assert "without sticky actions" in other["protocol"]
    assert result["gap"] == pytest.approx(result["dream"]["mean"] - 1.0, abs=1e-3)
    with pytest.raises(ValueError, match="both_protocols needs a game with sticky actions, .* got CarRacing-v3"):
        evaluate(tiny, episodes=2, both_protocols=True)


def test_saved_loaded_and_scored_again_is_the_same_score(tiny: str, at_home: None, tmp_path: Path) -> None:
    net, artifact = load_model(tiny)
    spec = RealSpec.from_dict(artifact.config["real"])
    policy = load_policy(net, artifact)
    save_model(tmp_path / "copy", net, spec, load_starts(artifact), horizon=6, card="", policy=policy)
    before, after = evaluate(tiny, episodes=2), evaluate(str(tmp_path / "copy"), episodes=2)
    assert (before["real"], before["dream"]) == (after["real"], after["dream"])


def test_the_score_is_that_of_the_policy_in_the_artifact(tiny: str, at_home: None, tmp_path: Path) -> None:
    net, artifact = load_model(tiny)
    spec = RealSpec.from_dict(artifact.config["real"])
    brake = np.zeros((3, net.feat_dim + 1))
    brake[2, -1] = 9.0
    policy = LinearPolicy(net.act_space, brake, ("tanh", "sigmoid", "clip"))
    save_model(tmp_path / "braking", net, spec, load_starts(artifact), horizon=6, card="", policy=policy)
    assert evaluate(str(tmp_path / "braking"), episodes=2)["real"]["mean"] < evaluate(tiny, episodes=2)["real"]["mean"]


def test_seeds_that_training_may_have_used_are_rejected(tiny: str) -> None:
    with pytest.raises(ValueError, match="seed must be at least 1,000,000, .* got 999,999"):
        evaluate(tiny, seed=999_999)


def test_no_episode_is_rejected(tiny: str) -> None:
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        evaluate(tiny, episodes=0)


def test_what_is_wrong_with_a_model_shows_before_an_episode_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "play", lambda *args: pytest.fail("an episode was played"))
    with pytest.raises(ValueError, match=r"bare has no controller; train one with `wm evolve`"):
        evaluate(save_tiny(tmp_path / "bare", controller=False))
    endless = RealSpec("toy_env:Echo-v0")
    with pytest.raises(ValueError, match="horizon must be a number of steps, got None"):
        evaluate(save_tiny(tmp_path / "endless", endless, horizon=None))


def test_a_dream_is_cut_where_the_real_environment_cuts_unless_the_artifact_says(tmp_path: Path) -> None:
    assert load_dream(save_tiny(tmp_path / "short", horizon=5)).bounded.horizon == 5
    assert load_dream(save_tiny(tmp_path / "open", horizon=None)).bounded.horizon == 6
    pole = save_tiny(tmp_path / "pole", RealSpec("CartPole-v1", action_repeat=3), horizon=None)
    assert load_dream(pole).bounded.horizon == 167  # CartPole-v1 has 500 frames.
