"""SB3 in dreams: the VecEnv view keeps SB3's contract, actors survive without SB3, zips are read but never run."""

from __future__ import annotations

import base64
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from torch import nn
from toy import BOX, Toy, toy_starts
from toy_env import Echo

from policies.mlp import MLPPolicy
from policies.sb3 import DreamVecEnv, SB3Policy, Whitened, check_actions, load_sb3, to_mlp, unit_actions
from wm_envs.action import decode_action
from wm_envs.dream import DreamVectorEnv
from wm_envs.world_model import Latent

SAME_STEP = AutoresetMode.SAME_STEP
ODD = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32))
TINY = {"net_arch": [8]}


def dreams(num: int = 4, *, act_space: gym.Space = BOX, horizon: int | None = 5, **kwargs) -> DreamVectorEnv:
    toy = {key: kwargs.pop(key) for key in ("noise", "end", "pixels") if key in kwargs}
    return DreamVectorEnv(Toy(act_space=act_space, **toy), toy_starts(), num, horizon=horizon, **kwargs)


def view(num: int = 4, **kwargs) -> DreamVecEnv:
    return DreamVecEnv(dreams(num, **kwargs))


def move(num: int, by: float = 0.5) -> np.ndarray:
    return np.full((num, 1), by, np.float32)


def small(algo: type[BaseAlgorithm], env: object, policy: str = "MlpPolicy", **kwargs) -> BaseAlgorithm:
    """A small model whose every weight is far from where SB3 starts it."""
    kwargs = {**kwargs, "policy_kwargs": dict(kwargs.get("policy_kwargs", TINY))}  # SB3 writes in it.
    model = algo(policy, env, seed=0, **({"buffer_size": 100} if algo in (SAC, TD3, DQN) else {}), **kwargs)
    with torch.no_grad():
        for weight in model.policy.parameters():
            weight += 0.5 * torch.randn_like(weight)
    return model


# The view of a batch of dreams


def test_a_view_reports_what_the_dreams_say() -> None:
    plain, seen = dreams(noise=0.5), view(noise=0.5)
    seen.seed(3)
    np.testing.assert_array_equal(seen.reset(), plain.reset(seed=3)[0])
    for _ in range(12):
        obs, rew, term, trunc, _ = plain.step(move(4))
        got, got_rew, done, infos = seen.step(move(4))
        np.testing.assert_array_equal(got, obs)
        np.testing.assert_array_equal(got_rew, rew.astype(np.float32))
        np.testing.assert_array_equal(done, term | trunc)
        assert got_rew.dtype == np.float32 and len(infos) == 4 and type(infos) is list


def test_a_seed_counts_for_one_reset_only() -> None:
    envs = view(noise=1.0)
    assert envs.seed(7) == [7, 8, 9, 10]
    first, second = envs.reset(), envs.reset()
    envs.seed(7)
    np.testing.assert_array_equal(envs.reset(), first)
    assert not np.array_equal(first, second)


def test_the_last_observation_is_in_the_info_and_the_next_episode_in_the_observation() -> None:
    envs = view(2, horizon=2, start="anywhere")
    first = envs.reset()
    envs.step(move(2))
    obs, _, done, infos = envs.step(move(2))
    assert done.all()
    for row, info in enumerate(infos):
        np.testing.assert_allclose(info["terminal_observation"], [first[row, 0] + 1, 0.5])
        assert info["TimeLimit.truncated"] is True
    assert (obs[:, 0] >= 10).all() and not obs[:, 1].any()


def test_an_end_is_not_a_time_limit_even_in_the_last_step() -> None:
    for horizon, steps, truncated in [(None, 3, False), (3, 3, False), (2, 2, True)]:
        envs = view(1, horizon=horizon, end=1.2)
        envs.set_options({"start": {"x": torch.zeros(1, 2)}})
        envs.reset()
        for _ in range(steps):
            _, _, done, infos = envs.step(move(1))
        assert done[0] and infos[0]["TimeLimit.truncated"] is truncated


def test_rows_that_continue_say_so() -> None:
    envs = view(3)
    envs.reset()
    _, _, done, infos = envs.step(move(3))
    assert not done.any() and infos == [{"TimeLimit.truncated": False}] * 3
    infos[0]["mine"] = 1
    assert "mine" not in infos[1] and "mine" not in envs.step(move(3))[3][0]


def test_observations_are_not_copied_and_rewards_are_sb3_s_own(monkeypatch) -> None:
    envs = view(2)
    envs.reset()
    given = []
    step = envs.envs.step
    monkeypatch.setattr(envs.envs, "step", lambda act: given.append(step(act)) or given[-1])
    obs, rew, *_ = envs.step(move(2))
    assert obs is given[0][0] and not np.shares_memory(rew, given[0][1])


class Doubtful(Toy):
    """A toy whose members are as far apart as the point is from 0."""

    members = 2

    def disagreement(self, latent: Latent, act: torch.Tensor, ahead: Latent) -> torch.Tensor:
        return ahead["x"][:, 0].abs()


def test_what_the_dream_says_of_each_row_is_in_its_info() -> None:
    dreams = DreamVectorEnv(Doubtful(), toy_starts(), 2, horizon=2, disagreement=True)
    envs = VecMonitor(DreamVecEnv(dreams), info_keywords=("disagreement",))
    envs.set_options({"start": {"x": torch.tensor([[0.0, 0.0], [2.0, 0.0]])}})
    envs.reset()
    assert [float(info["disagreement"]) for info in envs.step(move(2))[3]] == [0.5, 2.5]
    assert [float(info["episode"]["disagreement"]) for info in envs.step(move(2))[3]] == [1.0, 3.0]


@pytest.mark.parametrize(
    "act_space, acts",
    [
        (spaces.Discrete(3), np.array([0, 2], np.int32)),
        (spaces.MultiDiscrete([2, 3]), np.array([[0, 1], [1, 2]])),
        (spaces.MultiBinary(3), np.array([[0, 1, 1], [1, 0, 0]], np.float32)),  # PPO's bits are floats.
        (spaces.Box(-1, 1, (1,), np.float64), np.array([[0.5], [1]], np.float32)),
    ],
)
def test_actions_reach_the_dream_in_its_own_type(act_space: gym.Space, acts: np.ndarray, monkeypatch) -> None:
    envs = view(2, act_space=act_space)
    envs.reset()
    taken = []
    step = envs.envs.step
    monkeypatch.setattr(envs.envs, "step", lambda act: taken.append(act) or step(act))
    envs.step(acts)
    assert taken[0].dtype == act_space.dtype and np.array_equal(taken[0], acts)


def test_attributes_of_a_batch_are_shared() -> None:
    envs = view(3, noise=1.0)
    assert envs.get_attr("temperature") == [1.0] * 3 and envs.get_attr("horizon", [0, 2]) == [5, 5]
    envs.set_attr("temperature", 1.5)
    assert envs.envs.temperature == 1.5 and envs.get_attr("temperature", 1) == [1.5]
    assert envs.has_attr("starts") and not envs.has_attr("tempeture")
    with pytest.raises(AttributeError, match="tempeture"):
        envs.set_attr("tempeture", 2.0)
    with pytest.raises(ValueError, match=r"set_attr\('temperature'\) needs all 3 rows of .*, got rows \[0\]"):
        envs.set_attr("temperature", 2.0, indices=0)
    first = envs.reset()
    (obs, _), *_ = envs.env_method("reset", seed=3)
    assert obs.shape == first.shape and envs.env_is_wrapped(Monitor) == [False] * 3
    with pytest.raises(ValueError, match=r"env_method\('reset'\) needs all 3 rows"):
        envs.env_method("reset", indices=[1])


def test_one_set_of_options_is_used_once() -> None:
    envs = view(2)
    envs.set_options({"start": "anywhere"})
    assert (envs.reset() >= 10).any(axis=1).all() and (envs.reset()[:, 0] <= 1).all()
    with pytest.raises(ValueError, match="options must be one dict for all rows, got a list"):
        envs.set_options([{}, {}])


def test_frames_are_tiled() -> None:
    envs = view(3, pixels=True, render_mode="rgb_array", fps=12)
    envs.reset()
    assert envs.render_mode == "rgb_array" and envs.metadata["render_fps"] == 12
    assert envs.render().shape == (80, 80, 3) and len(envs.get_images()) == 3
    assert view(3).get_images() == [None] * 3 and view(3).render_mode is None


def test_envs_that_reset_otherwise_are_rejected() -> None:
    for mode in ("DISABLED", "NEXT_STEP"):
        with pytest.raises(ValueError, match=f"same step, got autoreset_mode=AutoresetMode.{mode}; make them with"):
            view(autoreset_mode=mode)


@pytest.mark.parametrize(
    ("act_space", "message"),
    [
        (
            spaces.Discrete(3, start=1),
            r"SB3 needs discrete actions that start at 0, got Discrete\(3, start=1\); wrap the env",
        ),
        (spaces.MultiDiscrete([2, 3], start=[0, 1]), "SB3 needs discrete actions that start at 0, got MultiDiscrete"),
        (spaces.MultiDiscrete([[2, 3], [2, 2]]), "SB3 needs one row of discrete actions, .*, got Multi"),
        (spaces.MultiBinary([2, 2]), r"one row of discrete actions, .*, got MultiBinary\(\(2, 2\)\); flatten them"),
        (spaces.MultiBinary([3]), r"one row of discrete actions, .*, got MultiBinary\(\(3,\)\)"),
    ],
)
def test_actions_that_sb3_cannot_choose_from_are_rejected_by_name(act_space: gym.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view(act_space=act_space)


@pytest.mark.parametrize(
    "act_space",
    [
        *(spaces.Discrete(1), spaces.MultiDiscrete([3]), spaces.MultiDiscrete([2, 3])),
        *(spaces.MultiBinary(1), spaces.MultiBinary(3), BOX, spaces.Box(-1, 1, ()), spaces.Box(-1, 1, (2, 2))),
    ],
)
def test_actions_that_are_not_rejected_are_learned(act_space: gym.Space) -> None:
    check_actions(act_space)
    PPO("MlpPolicy", view(act_space=act_space), n_steps=4, batch_size=8, n_epochs=1).learn(16)


# Gymnasium's own vector envs


def limited() -> gym.Env:
    """Ends by itself after 3 to 12 steps, unless it is cut off at 6."""
    return TimeLimit(Echo(), 6)


def play(envs, steps: int = 30) -> list:
    envs.seed(5)
    told = [envs.reset()]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        told += envs.step(rng.uniform(-1, 1, (envs.num_envs, 1)).astype(np.float32))
    envs.close()
    return told


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b) and a.dtype == b.dtype
    if isinstance(a, (list, dict)):
        keys = a.keys() if isinstance(a, dict) else range(len(a))
        return len(a) == len(b) and all(same(a[key], b[key]) for key in keys)
    return a == b


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_real_envs_look_as_through_sb3_s_own_view(kind: type) -> None:
    got = play(DreamVecEnv(kind([limited] * 3, autoreset_mode=SAME_STEP)))
    assert same(got, play(DummyVecEnv([limited] * 3)))
    assert any(info["TimeLimit.truncated"] for infos in got[4::4] for info in infos)


class Chatty(Echo):
    def reset(self, **kwargs):
        obs, _ = super().reset(**kwargs)
        return obs, {"opened": True}

    def step(self, action):
        obs, rew, term, trunc, _ = super().step(action)
        return obs, rew, term, trunc, {"t": self.t, "deep": {"er": float(self.last)}}


def test_infos_of_rows_arrive_whole() -> None:
    got = play(DreamVecEnv(SyncVectorEnv([Chatty] * 2, autoreset_mode=SAME_STEP)))
    want = play(DummyVecEnv([Chatty] * 2))
    for mine, theirs in zip(got[4::4], want[4::4], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert {key: a[key] for key in ("t", "deep")} == {key: b[key] for key in ("t", "deep")}


def test_what_a_reset_says_is_kept_as_sb3_keeps_it() -> None:
    envs = DreamVecEnv(SyncVectorEnv([lambda: Chatty(2)] * 2, autoreset_mode=SAME_STEP))
    envs.reset()
    assert envs.reset_infos == [{"opened": True}] * 2
    envs.reset_infos = []
    with pytest.raises(IndexError):  # Nothing else writes there.
        [envs.step(move(2)) for _ in range(2)]


def test_envs_that_share_their_buffer_are_copied() -> None:
    envs = DreamVecEnv(SyncVectorEnv([Echo] * 2, copy=False, autoreset_mode=SAME_STEP))
    first = envs.reset()
    second, *_ = envs.step(move(2))
    kept = first.copy(), second.copy()
    envs.step(move(2, -0.5))
    np.testing.assert_array_equal((first, second), kept)


def test_attributes_of_real_rows_are_their_own() -> None:
    envs = DreamVecEnv(SyncVectorEnv([lambda: Monitor(Echo(3)), lambda: Echo(4)], autoreset_mode=SAME_STEP))
    assert envs.get_attr("fixed") == [3, 4] and envs.env_is_wrapped(Monitor) == [True, False]
    envs.set_attr("fixed", 7, indices=[1])
    assert envs.get_attr("fixed") == [3, 7]
    envs.reset()
    assert [obs.tolist() for obs in envs.env_method("_obs", indices=[0])] == [[0, 0]]


def test_dict_observations_are_handed_on() -> None:
    class Parts(gym.ObservationWrapper):
        observation_space = spaces.Dict({"a": spaces.Box(-100, 100, (2,), np.float32)})

        def observation(self, obs):
            return {"a": obs}

    for copy in (True, False):
        envs = DreamVecEnv(SyncVectorEnv([lambda: Parts(Echo(2))] * 2, copy=copy, autoreset_mode=SAME_STEP))
        first = envs.reset()
        envs.step(move(2))
        obs, _, _, infos = envs.step(move(2))
        assert first["a"].tolist() == obs["a"].tolist() == [[0, 0]] * 2
        assert infos[0]["terminal_observation"]["a"].tolist() == [2, 0.5]
        PPO("MultiInputPolicy", envs, n_steps=8, batch_size=16, n_epochs=1).learn(16)


# SB3's wrappers and callbacks


def test_monitor_counts_the_episodes_and_writes_in_no_info_but_the_ended() -> None:
    envs = VecMonitor(view(3, horizon=2))
    envs.reset()
    _, _, _, going = envs.step(move(3))
    _, _, _, ended = envs.step(move(3))
    assert all("episode" not in info for info in going)
    assert [(info["episode"]["r"], info["episode"]["l"]) for info in ended] == [(1.0, 2)] * 3


@pytest.mark.parametrize("wrap", [VecCheckNan, VecNormalize, lambda envs: VecFrameStack(envs, 3)])
def test_sb3_s_wrappers_take_the_view(wrap) -> None:
    model = PPO("MlpPolicy", wrap(view(end=1.0)), n_steps=8, batch_size=32, n_epochs=1)
    model.learn(64)
    assert len(model.predict(model.env.reset())[0]) == 4


def test_callbacks_run(tmp_path: Path) -> None:
    callbacks = [
        EvalCallback(VecMonitor(view(2)), n_eval_episodes=4, eval_freq=8, log_path=str(tmp_path), verbose=0),
        CheckpointCallback(8, str(tmp_path)),
    ]
    PPO("MlpPolicy", VecMonitor(view()), n_steps=8, batch_size=32, n_epochs=1).learn(64, callbacks)
    with np.load(tmp_path / "evaluations.npz") as seen:
        assert seen["results"].shape == (2, 4)
    assert len(list(tmp_path.glob("rl_model_*_steps.zip"))) == 2


def test_sb3_s_evaluation_finds_the_known_return() -> None:
    class Half(SB3Policy):
        def predict(self, obs, **kwargs):
            return move(len(obs)), None

    mean, std = evaluate_policy(Half(None), VecMonitor(view(horizon=6)), 8)
    assert (mean, std) == (3.0, 0.0)


# Learning


OFF_POLICY = {"learning_starts": 64, "train_freq": 1, "learning_rate": 1e-2, "batch_size": 64}


@pytest.mark.parametrize(
    "algo, act_space, kwargs, steps",
    [
        (PPO, BOX, {"n_steps": 32, "batch_size": 256, "learning_rate": 1e-2}, 4096),
        (PPO, spaces.MultiDiscrete([2, 2]), {"n_steps": 32, "batch_size": 256, "learning_rate": 1e-2}, 4096),
        (A2C, spaces.Discrete(3), {"learning_rate": 1e-2}, 4096),
        (DQN, spaces.Discrete(3), OFF_POLICY, 1600),
        (SAC, BOX, {**OFF_POLICY, "ent_coef": 0.01}, 800),
        (TD3, BOX, OFF_POLICY, 800),
    ],
)
def test_every_algorithm_learns_to_move_on(
    algo, act_space: gym.Space, kwargs: dict, steps: int, learning_seed: int
) -> None:
    """The reward is the move, so the best return of 5 steps is 5."""
    envs = view(8, act_space=act_space)
    model = algo("MlpPolicy", envs, seed=learning_seed, gamma=0.5, policy_kwargs={"net_arch": [32]}, **kwargs)
    model.learn(steps)
    assert evaluate_policy(model, VecMonitor(view(8, act_space=act_space)), 8)[0] > 0.8 * best_return(act_space)


def best_return(act_space: gym.Space) -> float:
    return 5 * (2 / 3 if isinstance(act_space, spaces.MultiDiscrete) else 1)


@pytest.mark.parametrize("algo, act_space", [(PPO, BOX), (DQN, spaces.Discrete(3)), (SAC, BOX)])
def test_pixels_are_learned_from_and_acted_on(algo, act_space: gym.Space) -> None:
    kwargs = {"n_steps": 4, "n_epochs": 1, "batch_size": 8} if algo is PPO else {"learning_starts": 8, "batch_size": 8}
    sizes = {"features_extractor_kwargs": {"features_dim": 16}, "net_arch": [8]}
    model = small(algo, view(2, pixels=True, act_space=act_space), "CnnPolicy", policy_kwargs=sizes, **kwargs)
    assert isinstance(model.env, VecTransposeImage)
    model.learn(16)
    obs = view(3, pixels=True).reset()
    acts = SB3Policy(model).act(obs)
    assert obs.shape == (3, 40, 40, 3) and acts.shape == (3, *act_space.shape) and acts.dtype == act_space.dtype
    with pytest.raises(ValueError, match="to_mlp needs vector observations, got Box.*use SB3Policy"):
        to_mlp(model)


# Actors without SB3


FITS = [
    *((algo, space) for algo in (PPO, A2C) for space in (ODD, spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3]))),
    *((algo, spaces.Discrete(4)) for algo in (PPO, A2C, DQN)),
    *((algo, space) for algo in (SAC, TD3) for space in (ODD, spaces.Box(-2, 5, (2, 2), np.float64))),
]


@pytest.mark.parametrize("algo, act_space", FITS)
def test_the_network_acts_as_sb3_predicts(algo, act_space: gym.Space) -> None:
    model = small(algo, view(act_space=act_space))
    obs = 3 * np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)
    want, _ = model.predict(obs, deterministic=True)
    got, ours = to_mlp(model).act(obs), SB3Policy(model).act(obs)
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(ours, want)
    assert got.dtype == ours.dtype == act_space.dtype and got.shape == want.shape and len(np.unique(got)) > 1
    assert all(act_space.contains(act) for act in got)


FAR = spaces.Box(np.array([[5], [-1000]], np.float32), np.array([[35], [0]], np.float32))


@pytest.mark.parametrize("act_space", [FAR, spaces.Box(0, 10, (1,), np.int32)], ids=str)
def test_actions_in_units_of_the_bounds_reach_all_of_them(act_space: gym.Space, monkeypatch) -> None:
    seen, step = [], DreamVectorEnv.step
    monkeypatch.setattr(DreamVectorEnv, "step", lambda self, act: (seen.append(act), step(self, act))[1])
    envs = unit_actions(dreams(act_space=act_space))
    model = small(PPO, DreamVecEnv(envs), n_steps=64).learn(256)
    acts = np.concatenate(seen)
    assert acts.shape == (256, *act_space.shape) and acts.dtype == act_space.dtype
    np.testing.assert_allclose(acts.min(0), act_space.low)
    np.testing.assert_allclose(acts.max(0), act_space.high)
    obs = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    want = decode_action(act_space, model.predict(obs, deterministic=True)[0])
    np.testing.assert_array_equal(SB3Policy(model, act_space).act(obs), want)
    np.testing.assert_allclose(to_mlp(model, act_space).act(obs), want, rtol=1e-5)


def test_actions_without_bounds_are_left_as_they_are() -> None:
    envs = dreams(act_space=spaces.Discrete(3))
    assert unit_actions(envs) is envs


class Counter:
    """A recurrent model of SB3's kind: acts by the number of steps since the start of the episode."""

    action_space = spaces.Discrete(99)

    def predict(self, obs, state=None, episode_start=None, deterministic=False):
        count = np.zeros(len(obs), np.int64) if state is None else np.where(episode_start, 0, state + 1)
        return count, count


def test_a_recurrent_model_keeps_its_state_until_the_next_episode() -> None:
    policy, obs = SB3Policy(Counter()), np.zeros((2, 4))  # type: ignore[arg-type]
    for _ in range(2):
        policy.reset(2, 0)
        assert [policy.act(obs).tolist() for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("sizes", [[], [8, 5, 7], {"pi": [6], "vf": [3, 3]}])
def test_any_sizes_and_known_activations(activation: type[nn.Module], sizes) -> None:
    model = small(PPO, view(), policy_kwargs={"net_arch": sizes, "activation_fn": activation})
    obs = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    np.testing.assert_allclose(to_mlp(model).act(obs), model.predict(obs, deterministic=True)[0], atol=1e-6)


def test_whitening_goes_into_the_first_layer() -> None:
    scale = {"mean": torch.tensor([3.0, -1.0]), "std": torch.tensor([0.5, 20.0])}
    kwargs = {"features_extractor_class": Whitened, "features_extractor_kwargs": scale, **TINY}
    model = small(PPO, view(), policy_kwargs=kwargs)
    obs = np.random.default_rng(0).normal([3, -1], [0.5, 20], (50, 2)).astype(np.float32)
    want = model.predict(obs, deterministic=True)[0]
    np.testing.assert_allclose(to_mlp(model).act(obs), want, atol=1e-5)
    layers = [model.policy.mlp_extractor.policy_net[0], model.policy.action_net]
    plain = MLPPolicy(BOX, [(layer.weight, layer.bias) for layer in layers], "tanh", "clip")
    assert not np.allclose(plain.act(obs), want, atol=1e-2)


def test_state_dependent_exploration_leaves_the_mean() -> None:
    model = small(PPO, view(), use_sde=True, policy_kwargs={**TINY, "squash_output": True})
    obs = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    assert to_mlp(model).squash == "tanh"
    np.testing.assert_allclose(to_mlp(model).act(obs), model.predict(obs, deterministic=True)[0], atol=1e-6)


@pytest.mark.parametrize("algo, act_space", [(PPO, BOX), (SAC, BOX), (TD3, BOX), (DQN, spaces.Discrete(3))])
def test_a_policy_alone_can_be_sent_to_other_processes(algo, act_space: gym.Space) -> None:
    model = small(algo, view(act_space=act_space))
    obs = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    sent = pickle.loads(pickle.dumps(SB3Policy(model.policy)))
    np.testing.assert_array_equal(sent.act(obs), SB3Policy(model).act(obs))


def test_a_network_is_a_copy() -> None:
    model = small(PPO, view())
    obs = np.ones((1, 2), np.float32)
    policy = to_mlp(model)
    before = policy.act(obs)
    with torch.no_grad():
        model.policy.action_net.bias += 0.1
    assert np.array_equal(policy.act(obs), before)


def test_what_is_not_a_plain_network_is_rejected_by_name() -> None:
    with pytest.raises(ValueError, match="does not support VecNormalize with norm_obs; use SB3Policy"):
        to_mlp(PPO("MlpPolicy", VecNormalize(view())))
    with pytest.raises(ValueError, match=r"Tanh, ReLU or SiLU, got \['Linear', 'ReLU', 'Linear', 'Hardtanh'\]"):
        to_mlp(small(SAC, view(), use_sde=True))
    with pytest.raises(ValueError, match=r"got \['Linear', 'ELU', 'Linear'\]"):
        to_mlp(small(PPO, view(), policy_kwargs={**TINY, "activation_fn": nn.ELU}))
    mixed = small(PPO, view(), policy_kwargs={"net_arch": [8, 8]})
    mixed.policy.mlp_extractor.policy_net[1] = nn.ReLU()
    with pytest.raises(ValueError, match=r"got \['Linear', 'ReLU', 'Linear', 'Tanh', 'Linear'\]"):
        to_mlp(mixed)


def test_normalisation_is_part_of_the_policy() -> None:
    envs = VecNormalize(view(noise=1.0))
    model = small(PPO, envs, n_steps=8, batch_size=32)
    model.learn(64)
    obs = np.array([[0.3, 0.1], [-0.3, 0]], np.float32)
    want, _ = model.predict(envs.normalize_obs(obs), deterministic=True)
    np.testing.assert_array_equal(SB3Policy(model).act(obs), want)
    assert not np.array_equal(want, model.predict(obs, deterministic=True)[0])


# Zips


@pytest.mark.parametrize("algo, act_space", [(PPO, BOX), (A2C, BOX), (SAC, BOX), (TD3, BOX), (DQN, spaces.Discrete(3))])
def test_saved_policies_load_in_plain_sb3_and_here(algo, act_space: gym.Space, tmp_path: Path) -> None:
    model = small(algo, view(act_space=act_space))
    model.save(tmp_path / "policy.zip")
    obs = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    want, _ = model.predict(obs, deterministic=True)
    plain = algo.load(tmp_path / "policy.zip")
    np.testing.assert_array_equal(plain.predict(obs, deterministic=True)[0], want)
    kwargs = {"policy_kwargs": TINY} | ({} if algo in (PPO, A2C) else {"buffer_size": 10})
    ours = load_sb3(tmp_path / "policy", algo, dreams(act_space=act_space), **kwargs)
    np.testing.assert_array_equal(ours.predict(obs, deterministic=True)[0], want)
    assert isinstance(ours, algo) and ours.env.num_envs == 4


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def rewrite(path: Path, name: str, content: bytes) -> None:
    """Put another file in a zip."""
    with zipfile.ZipFile(path) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, old in files.items():
            archive.writestr(entry, content if entry == name else old)


def test_a_pickle_in_the_zip_never_runs(tmp_path: Path) -> None:
    model = small(PPO, view())
    path, sprung = tmp_path / "policy.zip", tmp_path / "sprung"
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    data["policy_class"][":serialized:"] = base64.b64encode(cloudpickle.dumps(Trap(sprung))).decode()
    rewrite(path, "data", json.dumps(data).encode())
    obs = np.ones((1, 2), np.float32)
    ours = load_sb3(path, PPO, view(), policy_kwargs=TINY)
    np.testing.assert_array_equal(ours.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert not sprung.exists()
    with warnings.catch_warnings(), pytest.raises(Exception):  # noqa: B017  What the trap leaves is no policy class.
        warnings.simplefilter("ignore")
        PPO.load(path)
    assert sprung.exists(), "the trap must work, or this test shows nothing"


def test_weights_that_are_no_weights_are_rejected_unread(tmp_path: Path) -> None:
    path, sprung = tmp_path / "policy.zip", tmp_path / "sprung"
    small(PPO, view()).save(path)
    torch.save({"log_std": Trap(sprung)}, tmp_path / "bad.pth")
    for content in [(tmp_path / "bad.pth").read_bytes(), pickle.dumps(Trap(sprung)), b"", b"garbage"]:
        rewrite(path, "policy.pth", content)
        with pytest.raises(ValueError, match=r"policy.zip: policy.pth must contain only tensors"):
            load_sb3(path, PPO, view())
    torch.save([1, 2], tmp_path / "bad.pth")
    rewrite(path, "policy.pth", (tmp_path / "bad.pth").read_bytes())
    with pytest.raises(ValueError, match="policy.pth must contain named tensors, got list"):
        load_sb3(path, PPO, view())
    assert not sprung.exists()


def test_files_that_are_no_zip_of_sb3_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"text.zip must be a zip saved by SB3 with a policy.pth: File is not a zip"):
        load_sb3(tmp_path / "text.zip", PPO, view())
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(ValueError, match=r"must be a zip saved by SB3 with a policy.pth: .*policy.pth"):
        load_sb3(tmp_path / "other.zip", PPO, view())
    with pytest.raises(FileNotFoundError, match=r"none.zip"):
        load_sb3(tmp_path / "none.zip", PPO, view())


def test_weights_of_other_sizes_are_rejected_with_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "policy.zip"
    small(PPO, view()).save(path)
    with pytest.raises(ValueError, match=r"action_net.weight: \(1, 64\) in the model, \(1, 8\) in the file"):
        load_sb3(path, PPO, view())
    with pytest.raises(ValueError, match=r"does not fit SAC.*\n.*nothing in the (model|file)"):
        load_sb3(path, SAC, view(), buffer_size=10)
    with pytest.raises(ValueError, match=r"action_net.weight: \(3, 8\) in the model, \(1, 8\) in the file"):
        load_sb3(path, PPO, view(act_space=spaces.Discrete(3)), policy_kwargs=TINY)


# The page for users


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "sb3.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    quick = {
        "500_000": "64",
        "num_envs=64": "num_envs=2",
        "n_steps=64": "n_steps=32",
        "batch_size=512": "batch_size=32",
    }
    quick |= {"n_eval_episodes=10": "n_eval_episodes=1", 'obs="latent"))': 'obs="latent", max_episode_steps=3))'}
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        for long, short in quick.items():
            block = block.replace(long, short)
        exec(compile(block, "docs/sb3.md", "exec"), names)
    assert len(blocks) == 5 and names["actions"].shape == (2, 3) and np.isfinite(names["mean"])
    np.testing.assert_allclose(names["actions"], names["safe"].predict(names["feat"], deterministic=True)[0], atol=1e-5)
    assert names["dreams"].temperature == 1.3
