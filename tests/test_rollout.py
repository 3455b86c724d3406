"""The loop that steps environments: one episode a row, whatever the environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_env import Echo

from policies.policy import RandomPolicy
from policies.rollout import EVAL_SEED, Transition, check_seed, returns, rollout


def one_row(**kwargs: object) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: Echo(**kwargs)], autoreset_mode=AutoresetMode.DISABLED)  # type: ignore[arg-type]


class Rows(gym.vector.VectorEnv):
    """Row i ends after i + 1 steps and pays 1 a step, also when it is stepped on after its end, as dreams may be."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
    single_action_space = gym.spaces.Discrete(2)

    def __init__(self, num: int) -> None:
        self.num_envs = num

    def reset(self, *, seed: object = None, options: object = None) -> tuple[np.ndarray, dict]:
        self.t, self.seed, self.options = 0, seed, options
        return np.full((self.num_envs, 1), self.t), {}

    def step(self, act: np.ndarray) -> tuple:
        self.t += 1
        over = self.t > np.arange(self.num_envs)
        half = over & (np.arange(self.num_envs) % 2 == 0)
        return np.full((self.num_envs, 1), self.t), np.ones(self.num_envs), half, over & ~half, {}


def test_transitions_are_aligned_and_stop_at_the_end() -> None:
    envs = one_row(length=5)
    steps = list(rollout(envs, RandomPolicy(envs.single_action_space), seed=3))
    assert len(steps) == 5
    for t, step in enumerate(steps):
        assert step.obs[0, 0] == t and step.next_obs[0, 0] == t + 1
        assert step.next_obs[0, 1] == step.act[0, 0] == step.rew[0]  # Echo: this action, not the one before.
        assert step.alive.tolist() == [True] and step.term.tolist() == [t == 4] and not step.trunc.any()


def test_an_episode_of_one_step_is_played() -> None:
    envs = one_row(length=1)
    (step,) = rollout(envs, RandomPolicy(envs.single_action_space), seed=3)
    assert step.term.tolist() == step.alive.tolist() == [True]


def test_rows_that_ended_are_marked_and_do_not_count() -> None:
    envs = Rows(4)
    steps = list(rollout(envs, RandomPolicy(envs.single_action_space), seed=[7, 8, 9, 10], options={"start": "begin"}))
    assert [step.alive.sum() for step in steps] == [4, 3, 2, 1]
    assert returns(iter(steps)).tolist() == [1, 2, 3, 4]
    assert envs.seed == [7, 8, 9, 10] and envs.options == {"start": "begin"}


def test_transitions_share_no_buffers() -> None:
    envs = one_row(length=4)
    steps = list(rollout(envs, RandomPolicy(envs.single_action_space), seed=0))
    assert [step.obs[0, 0] for step in steps] == [0, 1, 2, 3]
    assert [step.next_obs[0, 0] for step in steps] == [1, 2, 3, 4]
    masks = list(rollout(Rows(3), RandomPolicy(gym.spaces.Discrete(2)), seed=0))
    assert [m.alive.tolist() for m in masks] == [[True] * 3, [False, True, True], [False, False, True]]


def test_the_same_seeds_give_the_same_episode() -> None:
    def play(seed: int, policy_seed: int) -> list[Transition]:
        envs = one_row()
        return list(rollout(envs, RandomPolicy(envs.single_action_space), seed=seed, policy_seed=policy_seed))

    a, b = play(1, 2), play(1, 2)
    assert len(a) == len(b) and all(np.array_equal(x.act, y.act) for x, y in zip(a, b))
    assert not np.array_equal(a[0].act, play(1, 3)[0].act)
    assert len({len(play(seed, 2)) for seed in range(8)}) > 1


def test_other_environment_seeds_bring_other_random_actions() -> None:
    def first_act(seed: int | list[int | None] | None) -> float:
        envs = one_row()
        return float(next(rollout(envs, RandomPolicy(envs.single_action_space), seed=seed)).act[0, 0])

    assert len({first_act([seed]) for seed in range(8)}) == 8
    assert first_act(3) == first_act([3]) and first_act(None) != first_act(None)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_envs_that_reset_by_themselves_are_rejected(mode: AutoresetMode) -> None:
    envs = SyncVectorEnv([lambda: Echo(5)], autoreset_mode=mode)
    with pytest.raises(ValueError, match="rollout needs autoreset_mode=DISABLED, got AutoresetMode"):
        next(rollout(envs, RandomPolicy(envs.single_action_space), seed=0))


def test_rows_that_gymnasium_would_not_step_on_are_rejected() -> None:
    envs = SyncVectorEnv([lambda: Echo(5)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="SyncVectorEnv must have one row, got 2: .* play real episodes one at a time"):
        next(rollout(envs, RandomPolicy(envs.single_action_space), seed=0))


def test_seeds_for_evaluation_are_rejected() -> None:
    check_seed(0)
    check_seed(EVAL_SEED - 1)
    for seed in (EVAL_SEED, -1):
        with pytest.raises(ValueError, match=r"from 0 to 999,999, got .*from 1,000,000 up are for evaluation only"):
            check_seed(seed)
