"""CMA-ES: returns go up, luck is shared, a stopped run goes on to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cma
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from policies.cmaes import (
    CMAConfig,
    Evolution,
    Generation,
    Score,
    evolve,
    rollout_seeds,
    score_in_dream,
    score_in_real,
    unflatten,
)
from policies.linear import LinearPolicy, num_params
from policies.play import EpisodePool
from wm_envs.dream import DreamVectorEnv
from wm_envs.noise import Generator, draw_normal
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent, Step

CFG = CMAConfig(population=8, rollouts=2, generations=12, sigma=0.3, seed=3)
TARGET = np.array([0.5, -1.0, 2.0, 0.0, -0.3])


def distance(candidates: np.ndarray, generation: int = 0) -> np.ndarray:
    """Return = -|theta - theta*|^2."""
    return -((candidates - TARGET) ** 2).sum(1)


class Aim:
    """A dream that pays -(act - aim)^2 plus luck: aim is the start's, luck is drawn every step."""

    obs_space: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    act_space: gym.Space[Any] = gym.spaces.Box(-1, 1, (1,), np.float32)
    feat_dim = 1
    device = torch.device("cpu")

    def initial(self, num: int) -> Latent:
        return {"aim": torch.zeros(num, 1)}

    def encode(self, obs: Tensor, *rest: object, **more: object) -> Latent:
        return {"aim": obs}

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: Generator = None) -> Step:
        luck = draw_normal(len(act), 1, generator, self.device)[:, 0]
        return Step(latent, -(act - latent["aim"]).square()[:, 0] + luck, torch.ones(len(act)))

    def decode(self, latent: Latent) -> Tensor:
        return latent["aim"]

    def feat(self, latent: Latent) -> Tensor:
        return latent["aim"]


def aims(cfg: CMAConfig) -> DreamVectorEnv:
    starts = {name: {"aim": torch.linspace(-0.8, 0.8, 64)[:, None]} for name in ("begin", "anywhere")}
    envs = cfg.population * cfg.rollouts
    return DreamVectorEnv(Aim(), starts, envs, obs="latent", horizon=3, autoreset_mode=AutoresetMode.DISABLED)


# The sign


def test_returns_go_up(learning_seed: int) -> None:
    evolution = Evolution(np.zeros(5), CMAConfig(population=16, generations=60, sigma=0.3, seed=learning_seed))
    means = []
    for _ in range(60):
        values = distance(evolution.ask())
        evolution.tell(values)
        means.append(values.mean())
    assert means[-1] > -1e-3 > -1 > means[0]
    assert np.allclose(evolution.mean, TARGET, atol=0.02)


def test_a_controller_evolved_in_a_dream_hits_its_aim(learning_seed: int) -> None:
    cfg = CMAConfig(population=16, rollouts=8, generations=40, sigma=0.5, seed=learning_seed)
    seen: list[Generation] = []
    space = Aim.act_space
    evolution = evolve(score_in_dream(aims(cfg), cfg), np.zeros(2), cfg, on_generation=seen.append)
    policy = LinearPolicy(space, unflatten(evolution.mean, space))
    aim = np.linspace(-0.6, 0.6, 7, dtype=np.float32)[:, None]
    assert np.abs(policy.act(aim) - aim).max() < 0.25
    assert [g.number for g in seen] == list(range(1, 41))
    assert all(g.best >= g.mean and g.wall_s >= 0 and g.sigma > 0 for g in seen)


# Luck


def test_equal_candidates_get_equal_returns_and_rollouts_differ() -> None:
    score = score_in_dream(aims(CFG), CFG)
    values = score(np.full((8, 2), 0.3), 0)
    assert len(set(values.tolist())) == 1
    assert score(np.full((8, 2), 0.3), 0).tolist() == values.tolist()
    assert score(np.full((8, 2), 0.3), 1)[0] != values[0]
    single = CMAConfig(population=16, rollouts=1, generations=1, seed=CFG.seed)
    each = [score_in_dream(aims(single), single)(np.full((16, 2), 0.3), g)[0] for g in range(2)]
    assert each[0] != each[1] and np.mean(each) == pytest.approx(values[0])  # Seeds 3 and 4 of both.


def test_each_candidate_is_scored_by_its_own_weights() -> None:
    candidates = np.zeros((8, 2))
    candidates[5] = [0.0, 9.0]  # Always acts 1.
    values = score_in_dream(aims(CFG), CFG)(candidates, 0)
    assert len(set(np.delete(values, 5).tolist())) == 1 and values[5] < values[0]


def test_rollouts_use_seeds_below_those_for_evaluation() -> None:
    assert list(rollout_seeds(CFG, 0)) == [3, 4] and list(rollout_seeds(CFG, 10)) == [23, 24]
    for generation, seed in [(0, 999_999), (1, 999_998), (0, 1_000_000)]:
        cfg = CMAConfig(rollouts=2, seed=seed)
        with pytest.raises(ValueError, match="from 1,000,000 up are for evaluation only"):
            rollout_seeds(cfg, generation)
        with pytest.raises(ValueError, match="for evaluation only"):
            score_in_dream(aims(cfg), cfg)(np.zeros((64, 2)), generation)


def test_the_batch_must_fit_the_population() -> None:
    with pytest.raises(ValueError, match="population x rollouts = 1024 rows, got 16"):
        score_in_dream(aims(CFG), CMAConfig())


# Resuming


def disturbed(candidates: np.ndarray, generation: int) -> np.ndarray:
    np.random.seed(generation)
    np.random.standard_normal(7)
    cma.CMAEvolutionStrategy([0.0, 0.0], 1, {"verbose": -9, "seed": 1}).ask()  # Seeds NumPy's global generator.
    return distance(candidates)


def test_a_run_is_a_function_of_its_seed_whatever_others_draw() -> None:
    a, b = (evolve(score, np.zeros(5), CFG) for score in (distance, disturbed))
    assert np.array_equal(a.mean, b.mean) and a.sigma == b.sigma
    assert not np.array_equal(a.mean, evolve(distance, np.zeros(5), CMAConfig(**{**vars(CFG), "seed": 4})).mean)


def test_a_run_leaves_numpys_global_generator_alone() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr, index]
    evolve(distance, np.zeros(5), CFG)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr, index]


def killed_after(score: Score, generations: int) -> Score:
    def killed(candidates: np.ndarray, generation: int) -> np.ndarray:
        if generation == generations:
            raise KeyboardInterrupt
        return score(candidates, generation)

    return killed


@pytest.mark.parametrize("at", [0, 1, 7, 11])
def test_a_killed_run_resumes_to_the_bit(tmp_path: Path, at: int) -> None:
    whole = evolve(distance, np.zeros(5), CFG)
    state = tmp_path / "evolution.json"
    with pytest.raises(KeyboardInterrupt):
        evolve(killed_after(distance, at), np.zeros(5), CFG, state=state)
    asked: list[int] = []

    def score(candidates: np.ndarray, generation: int) -> np.ndarray:
        asked.append(generation)
        return disturbed(candidates, generation)

    resumed = evolve(score, np.zeros(5), CFG, state=state)
    assert asked == list(range(at, 12))  # To the generation.
    assert np.array_equal(resumed.mean, whole.mean) and resumed.sigma == whole.sigma
    assert np.array_equal(resumed.ask(), whole.ask())
    assert [p.name for p in tmp_path.iterdir()] == ["evolution.json"]


def test_a_run_at_the_papers_size_resumes_to_the_bit(tmp_path: Path) -> None:
    space = gym.spaces.Box(-1, 1, (3,))
    cfg = CMAConfig(population=64, generations=6)

    def score(candidates: np.ndarray, generation: int) -> np.ndarray:
        return -((candidates - 0.1) ** 2).sum(1)

    x0 = np.zeros(num_params(space, 288))
    whole = evolve(score, x0, cfg)
    with pytest.raises(KeyboardInterrupt):
        evolve(killed_after(score, 4), x0, cfg, state=tmp_path / "s.json")
    assert np.array_equal(evolve(score, x0, cfg, state=tmp_path / "s.json").mean, whole.mean)


def test_a_finished_run_asks_for_nothing_and_more_generations_continue(tmp_path: Path) -> None:
    state = tmp_path / "evolution.json"
    short = CMAConfig(**{**vars(CFG), "generations": 5})
    evolve(distance, np.zeros(5), short, state=state)
    assert evolve(killed_after(distance, 5), np.zeros(5), short, state=state).generation == 5
    longer = evolve(distance, np.zeros(5), CFG, state=state)
    assert np.array_equal(longer.mean, evolve(distance, np.zeros(5), CFG).mean)


def test_the_result_is_the_mean_of_the_last_means_after_a_kill_too(tmp_path: Path) -> None:
    means: list[np.ndarray] = []
    plain = evolve(distance, np.zeros(5), CFG, on_generation=lambda generation: means.append(generation.weights))
    assert np.array_equal(plain.result, plain.mean) and np.array_equal(means[-1], plain.mean)
    cfg = replace(CFG, average=5)
    results: list[np.ndarray] = []
    averaged = evolve(distance, np.zeros(5), cfg, on_generation=lambda generation: results.append(generation.weights))
    assert np.array_equal(averaged.mean, plain.mean)
    np.testing.assert_allclose(averaged.result, np.mean(means[-5:], axis=0))
    np.testing.assert_allclose(results[2], np.mean(means[:3], axis=0))
    with pytest.raises(KeyboardInterrupt):
        evolve(killed_after(distance, 9), np.zeros(5), cfg, state=tmp_path / "s.json")
    assert np.array_equal(evolve(distance, np.zeros(5), cfg, state=tmp_path / "s.json").result, averaged.result)


def test_the_state_of_another_run_is_rejected(tmp_path: Path) -> None:
    state = tmp_path / "evolution.json"
    evolve(distance, np.zeros(5), CFG, state=state)
    with pytest.raises(ValueError, match="other settings: sigma was 0.3, now 0.5"):
        evolve(distance, np.zeros(5), CMAConfig(**{**vars(CFG), "sigma": 0.5}), state=state)
    values = json.loads(state.read_text())
    values["mean"][0] += 0.01
    del values["sha256"]
    state.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="gives another mean.* another machine.*remove the file to start over"):
        Evolution.load(state)


# Odd returns


def test_equal_returns_do_no_harm() -> None:
    evolution = evolve(lambda candidates, generation: np.zeros(8), np.zeros(5), CFG)
    assert np.isfinite(evolution.mean).all() and np.isfinite(evolution.sigma)


@pytest.mark.parametrize("bad", [np.full(8, np.nan), np.append(np.zeros(7), np.inf), np.zeros(7), np.zeros((8, 1))])
def test_returns_that_are_none_are_rejected_and_nothing_is_lost(tmp_path: Path, bad: np.ndarray) -> None:
    state = tmp_path / "evolution.json"

    def score(candidates: np.ndarray, generation: int) -> np.ndarray:
        return bad if generation == 3 else distance(candidates)

    with pytest.raises(ValueError, match=r"returns must be \(8,\) and finite, got"):
        evolve(score, np.zeros(5), CFG, state=state)
    assert np.array_equal(evolve(distance, np.zeros(5), CFG, state=state).mean, evolve(distance, np.zeros(5), CFG).mean)


def test_weights_are_unflattened_as_linear_policies_take_them() -> None:
    flat = np.arange(12.0)
    assert unflatten(flat, gym.spaces.Discrete(3)).tolist() == flat.reshape(3, 4).tolist()
    assert unflatten(np.stack([flat, flat]), gym.spaces.Box(-1, 1, (2, 2))).shape == (2, 4, 3)


# In the real environment


def test_a_controller_is_evolved_in_the_real_environment_in_one_pool() -> None:
    cfg = CMAConfig(population=16, rollouts=2, generations=2, sigma=1.0, seed=1)
    space = gym.spaces.Discrete(2)
    seen: list[Generation] = []
    with EpisodePool(RealSpec("CartPole-v1"), partial(LinearPolicy, space), procs=1) as pool:
        score = score_in_real(pool, cfg, space)
        evolution = evolve(score, np.zeros(num_params(space, 4)), cfg, on_generation=seen.append)
        assert len(pool._pool._executor._processes) == 1
        assert pool.steps == pytest.approx(sum(g.mean for g in seen) * 16 * 2)
        candidates = np.tile(evolution.mean, (16, 1))
        candidates[3] = 0.0
        values = score(candidates, 100)
    assert len(set(np.delete(values, 3).tolist())) == 1  # The same seeds for all.
    assert 8 <= values[3] < 12  # Weights of zero: always to the left.


def test_real_episodes_on_seeds_for_evaluation_are_rejected() -> None:
    space = gym.spaces.Discrete(2)
    cfg = CMAConfig(population=8, rollouts=2, seed=999_999)
    with (
        EpisodePool(RealSpec("CartPole-v1"), partial(LinearPolicy, space), procs=1) as pool,
        pytest.raises(ValueError, match="got 1,000,000; seeds from 1,000,000 up are for evaluation only"),
    ):
        score_in_real(pool, cfg, space)(np.zeros((8, 10)), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"population": 1},
        {"rollouts": 0},
        {"generations": 0},
        {"sigma": 0.0},
        {"components": 0},
        {"average": 0},
        {"seed": -1},
    ],
)
def test_a_strategy_that_cannot_run_is_rejected(wrong: dict[str, float]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"CMAConfig\.{name} must be .*, got {value}"):
        CMAConfig(**wrong)  # type: ignore[arg-type]
