"""Exploration policies: legal, repeatable, and on CarRacing they drive."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.box2d.car_racing import CarRacing

from policies.policy import (
    HeldActions,
    NoisyPolicy,
    OrnsteinUhlenbeck,
    Policy,
    RandomPolicy,
    _Mixture,
    _RandomNetwork,
    explorer,
)
from wm_envs.real import make_real
from wm_envs.registry import TASKS
from wm_envs.wrappers import ActionRepeat

CAR = spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32))
SPACES = [
    CAR,
    spaces.Box(-2, 3, (2, 2), np.float64),
    spaces.Discrete(4, start=1),
    spaces.Discrete(3, dtype=np.int32),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiDiscrete([3, 2], dtype=np.uint8),
    spaces.MultiBinary(3),
]
OBS = {"pixels": np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8), "vector": np.ones((5, 4))}


def make_all(space: spaces.Space) -> list[Policy]:
    box = [OrnsteinUhlenbeck(space)] if isinstance(space, spaces.Box) else []
    plain = [RandomPolicy(space), HeldActions(space), _RandomNetwork(space), *box]
    return [*plain, _Mixture(plain), NoisyPolicy(_RandomNetwork(space), space, (0.5,))]


def run(policy: Policy, seed: int, num: int = 5, steps: int = 30, obs: np.ndarray = OBS["vector"]) -> np.ndarray:
    policy.reset(num, seed)
    return np.stack([policy.act(obs[:num]) for _ in range(steps)])


@pytest.mark.parametrize("kind", OBS)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_are_the_spaces_own(space: spaces.Space, kind: str) -> None:
    for policy in make_all(space):
        acts = run(policy, seed=0, obs=OBS[kind])
        assert acts.shape == (30, 5, *space.shape) and acts.dtype == space.dtype, policy
        assert all(space.contains(np.asarray(a)[()]) for a in acts.reshape(-1, *space.shape)), policy


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_seed_decides_everything(space: spaces.Space) -> None:
    for policy in make_all(space):
        first = run(policy, seed=3)
        np.testing.assert_array_equal(first, run(policy, seed=3))
        assert not np.array_equal(first, run(policy, seed=4)), policy


def test_actions_handed_out_are_not_the_policys_own_memory() -> None:
    for policy in make_all(spaces.Box(-1, 1, (2,))):
        policy.reset(5, 0)
        a = policy.act(OBS["vector"])
        kept = a.copy()
        policy.act(OBS["vector"])
        np.testing.assert_array_equal(a, kept)


def test_held_actions_are_held_within_their_bounds() -> None:
    acts = run(HeldActions(spaces.Box(0, 1, (1,)), min_hold=2, max_hold=4), seed=0, num=1, steps=400)[:, 0, 0]
    holds = np.diff(np.flatnonzero(np.diff(acts) != 0))
    assert set(holds) == {2, 3, 4}


def test_ornstein_uhlenbeck_is_smooth_and_brakes_little() -> None:
    acts = run(OrnsteinUhlenbeck(CAR), seed=0, num=200, steps=100, obs=np.zeros((200, 1)))
    steer, gas, brake = np.moveaxis(acts, -1, 0)
    assert np.corrcoef(steer[:-1].ravel(), steer[1:].ravel())[0, 1] > 0.4
    assert abs(steer.mean()) < 0.05 and steer.std() > 0.4
    assert gas.mean() > 3 * brake.mean() > 0
    assert gas.mean(0).std() > 0.05  # Some episodes push harder than others.


def test_smooth_actions_of_bits_are_ones_as_often_as_zeros() -> None:
    acts = run(OrnsteinUhlenbeck(spaces.Box(0, 1, (3,), np.int8)), seed=0, steps=400)
    assert 0.4 < acts.mean() < 0.6


def test_ornstein_uhlenbeck_rejects_choices() -> None:
    with pytest.raises(ValueError, match=r"needs Box actions, got Discrete\(4\); use HeldActions"):
        OrnsteinUhlenbeck(spaces.Discrete(4))


def test_endless_bounds_are_rejected() -> None:
    with pytest.raises(ValueError, match="finite bounds"):
        RandomPolicy(spaces.Box(-np.inf, np.inf, (2,)))


def test_random_network_looks_and_is_redrawn_each_episode() -> None:
    policy = _RandomNetwork(CAR)
    other = np.random.default_rng(1).integers(0, 256, OBS["pixels"].shape, np.uint8)
    policy.reset(5, 0)
    first, second = policy.act(OBS["pixels"]), policy.act(other)
    np.testing.assert_array_equal(first, policy.act(OBS["pixels"]))
    assert not np.allclose(first, second)
    policy.reset(5, 1)
    assert not np.allclose(first, policy.act(OBS["pixels"]))


class Always:
    """Plays one choice."""

    def __init__(self, choice: int) -> None:
        self.choice = choice

    def reset(self, num: int, seed: int) -> None:
        self.num = num

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.full(self.num, self.choice)


def test_a_mixture_draws_one_policy_for_each_whole_episode() -> None:
    acts = run(_Mixture([Always(0), Always(1), Always(2)]), seed=0, num=5, steps=9)
    assert (acts == acts[0]).all()
    policy, picks = _Mixture([Always(0), Always(1)]), []
    for seed in range(200):
        policy.reset(1, seed)
        picks.append(int(policy.act(OBS["vector"][:1])[0]))
    assert np.mean(picks) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="at least one policy"):
        _Mixture([])


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_an_explorer(name: str) -> None:
    env = make_real(TASKS[name].real)
    policy, obs = explorer(env), env.reset(seed=0)[0]
    policy.reset(1, 0)
    assert env.action_space.contains(policy.act(obs[None])[0])
    env.close()
    kinds = {"CarRacing": OrnsteinUhlenbeck, "Pong": HeldActions, "Breakout": HeldActions}
    assert type(policy) is kinds.get(name, _Mixture)


def test_no_noise_leaves_the_policy_alone() -> None:
    for space in SPACES:
        want = run(_RandomNetwork(space), seed=0)
        np.testing.assert_array_equal(want, run(NoisyPolicy(_RandomNetwork(space), space, (0.0,)), seed=0))


class Still:
    """Zeros: one float for each row of width 1, else one choice."""

    def reset(self, num: int, seed: int) -> None:
        self.num = num

    def act(self, obs: np.ndarray) -> np.ndarray:
        return np.zeros((self.num, 1), np.float32) if obs.shape[1] == 1 else np.zeros(self.num, np.int64)


def test_noise_is_seeded_and_has_the_level_asked_for() -> None:
    box = spaces.Box(-10, 10, (1,))
    acts = run(NoisyPolicy(Still(), box, (0.1,)), 0, num=300, steps=60, obs=np.zeros((300, 1)))
    assert acts[20:].std() == pytest.approx(1.0, rel=0.05)
    assert not np.allclose(acts, run(NoisyPolicy(Still(), box, (0.1,)), 1, num=300, steps=60, obs=np.zeros((300, 1))))
    choices = spaces.Discrete(1000)
    acts = run(NoisyPolicy(Still(), choices, (0.3,)), 0, num=300, steps=60, obs=np.zeros((300, 2)))
    assert (acts[20:] != 0).mean() == pytest.approx(0.3, abs=0.03)


def test_each_episode_draws_its_level() -> None:
    policy = NoisyPolicy(RandomPolicy(CAR), CAR, (0.0, 0.3, 0.6))
    policy.reset(300, 0)
    assert {0.0, 0.3, 0.6} == set(policy.level)


def score(policy: Policy, seeds: range) -> float:
    """Mean return of blind episodes of 250 agent steps, cut as the collector cuts them: 40 without a new tile."""
    env = ActionRepeat(gym.make("CarRacing-v3", disable_env_checker=True), 4)
    total = 0.0
    for seed in seeds:
        env.reset(seed=seed)
        policy.reset(1, seed)
        idle = 0
        for _ in range(250):
            _, rew, term, trunc, _ = env.step(policy.act(np.zeros((1, 1)))[0])
            total += rew
            idle = 0 if rew > 0 else idle + 1
            if term or trunc or idle == 40:
                break
    return total / len(seeds)


def test_ornstein_uhlenbeck_drives_the_car_over_many_more_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.zeros((96, 96, 3), np.uint8)
    monkeypatch.setattr(CarRacing, "_render", lambda self, mode: blank)  # Nobody looks.
    drive, chance = score(OrnsteinUhlenbeck(CAR), range(10)), score(RandomPolicy(CAR), range(10))
    assert drive > chance + 20, (drive, chance)


def test_some_episodes_leave_the_policy_for_good() -> None:
    space = spaces.Discrete(50)

    class Always7:
        def reset(self, num: int, seed: int) -> None: ...

        def act(self, obs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.full(len(obs), 7)

    policy = NoisyPolicy(Always7(), space, noise=(0.0,), leave=0.5, leave_by=20)
    policy.reset(400, seed=0)
    own = np.array([policy.act(np.zeros((400, 1))) == 7 for _ in range(40)])  # (T, N)
    left = ~own.all(0)
    assert 0.4 < left.mean() < 0.6
    moments = own[:, left].argmin(0)
    assert moments.min() == 0 and 15 <= moments.max() <= 25
    after = np.concatenate([own[moment:, row] for row, moment in zip(np.flatnonzero(left), moments, strict=True)])
    assert after.mean() < 0.1  # One in fifty is the same by chance.


@pytest.mark.parametrize("kwargs", [{"leave": 1.1}, {"leave": -0.1}, {"leave_by": 0}])
def test_a_share_that_is_none_is_rejected(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need 0 <= leave <= 1 and leave_by >= 1"):
        NoisyPolicy(RandomPolicy(spaces.Discrete(2)), spaces.Discrete(2), **kwargs)
