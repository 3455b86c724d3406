"""The linear controller: its size, its squashing, its populations."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from policies.linear import Controller, LinearPolicy, _default_squash, _squashed, num_params
from wm_envs.action import decode_action
from wm_envs.real import make_real
from wm_envs.registry import TASKS, RealSpec

BOX = spaces.Box(np.array([-2, 0, 0], np.float32), np.array([2, 10, 1], np.float32))
SQUASH = ("tanh", "sigmoid", "clip")


def sums(outs: list[list[float]]) -> np.ndarray:
    return np.array(outs, np.float32)


def test_car_racing_has_the_papers_867_parameters() -> None:
    env = make_real(TASKS["CarRacing"].real)
    assert num_params(env.action_space, 32 + 256) == 867
    assert sum(p.numel() for p in Controller(32, 256, 3).parameters()) == 867
    assert _default_squash(env.action_space) == ("tanh", "sigmoid", "sigmoid")
    env.close()


def test_doom_has_1088_parameters_and_a_bias() -> None:
    assert num_params(spaces.Box(-1, 1, (1,)), 64 + 2 * 512) == 1088 + 1


# The torch module


def test_controller_takes_the_joined_state_or_its_parts() -> None:
    controller = Controller(latent_size=32, hidden_size=256, action_size=3)
    z, h = torch.randn(4, 32), torch.randn(4, 256)
    out = controller(torch.cat([z, h], 1))
    assert out.shape == (4, 3) and torch.equal(out, controller(z, h))
    assert torch.equal(controller(h, z), controller(torch.cat([h, z], 1)))
    out.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in controller.parameters())


@pytest.mark.parametrize("z, h, a", [(16, 128, 2), (32, 256, 5), (64, 512, 10)])
def test_controller_sizes(z: int, h: int, a: int) -> None:
    controller = Controller(z, h, a)
    assert (controller.fc.in_features, controller.fc.out_features) == (z + h, a)
    assert controller(torch.randn(4, z + h)).shape == (4, a)


def test_policy_acts_as_the_torch_controller_does_before_squashing() -> None:
    controller = Controller(3, 5, 4)
    weights = torch.cat([controller.fc.weight, controller.fc.bias[:, None]], 1).detach().numpy()
    feat = torch.randn(6, 8)
    act = LinearPolicy(spaces.Discrete(4), weights).act(feat.numpy())
    assert act.tolist() == controller(feat).argmax(1).tolist()


# Squashing


def test_squashes_reach_from_bound_to_bound() -> None:
    far = decode_action(BOX, _squashed(sums([[99, 99, 99], [-99, -99, -99]]), SQUASH))
    assert far.tolist() == [[2, 10, 1], [-2, 0, 0]] and far.dtype == np.float32


def test_squashes_rest_where_they_should() -> None:
    assert decode_action(BOX, _squashed(sums([[0, 0, 0]]), SQUASH)).tolist() == [[0, 5, 0]]


def test_squashes_are_the_papers_between() -> None:
    x = 0.3
    act = decode_action(BOX, _squashed(sums([[x, x, x], [-x, -x, -x]]), SQUASH))
    t = np.tanh(x)
    assert np.allclose(act, [[2 * t, 10 * (t + 1) / 2, t], [-2 * t, 10 * (1 - t) / 2, 0]], atol=1e-5)


def test_default_squash_follows_each_range() -> None:
    space = spaces.Box(np.array([-1, 0, -5, 2], np.float32), np.array([1, 1, 0, 3], np.float32))
    assert _default_squash(space) == ("tanh", "sigmoid", "sigmoid", "sigmoid")
    rest = decode_action(space, _squashed(np.zeros((1, 4), np.float32), _default_squash(space)))
    assert np.allclose(rest, [[0, 0.5, -2.5, 2.5]])


def test_every_output_is_an_action_of_its_space() -> None:
    rng = np.random.default_rng(0)
    for space in [
        BOX,
        spaces.Box(np.float32(-0.3), np.float32(0.7), (5,)),
        spaces.Box(-0.1, 0.7, (2, 3), np.float64),
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([2, 3, 4]),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 1], [0, 0]])),
        spaces.MultiBinary(3),
        spaces.MultiBinary((2, 2)),
    ]:
        policy = LinearPolicy(space, 30 * rng.standard_normal((num_params(space, 0), 7)))
        for feat in rng.standard_normal((20, 5, 6)):
            act = policy.act(feat)
            assert act.shape == (5, *(space.shape or ()))
            assert all(space.contains(space.dtype.type(row) if row.ndim == 0 else row) for row in act), (space, act)


def test_the_last_weight_is_the_bias() -> None:
    weights = np.zeros((2, 4))
    weights[1, -1] = 1e-3
    assert LinearPolicy(spaces.Discrete(2), weights).act(np.zeros((3, 3), np.float32)).tolist() == [1, 1, 1]


# Populations


@pytest.mark.parametrize("space", [BOX, spaces.Discrete(4), spaces.MultiBinary(2)])
def test_a_population_acts_block_by_block_as_each_controller_alone(space: gym.Space) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((5, num_params(space, 0), 9))
    feat = rng.standard_normal((5 * 3, 8)).astype(np.float32)
    together = LinearPolicy(space, weights).act(feat)
    alone = [LinearPolicy(space, weights[p]).act(feat[3 * p : 3 * p + 3]) for p in range(5)]
    assert np.allclose(together, np.concatenate(alone), atol=1e-6)


# Errors


def test_wrong_sizes_are_rejected_with_both_sides() -> None:
    weights = np.zeros((3, 9))
    with pytest.raises(ValueError, match=r"weights must have shape \(3, features \+ 1\), or .* for Box.*, got \(4, "):
        LinearPolicy(BOX, np.zeros((4, 9)))
    with pytest.raises(ValueError, match=r"squash must contain only \['clip', 'sigmoid', 'tanh'\], got \['relu'\]"):
        LinearPolicy(BOX, weights, ("tanh", "relu", "clip"))
    with pytest.raises(ValueError, match="squash needs 3 names, .* each tanh, sigmoid or clip"):
        LinearPolicy(BOX, weights, ("tanh",))
    policy = LinearPolicy(BOX, weights)
    for obs in (np.zeros((4, 7)), np.zeros(8), np.zeros((4, 2, 4))):
        with pytest.raises(ValueError, match=r"obs must be \(N, 8\) with N a multiple of 1, got"):
            policy.act(obs)
    with pytest.raises(ValueError, match="N a multiple of 2, got"):
        LinearPolicy(BOX, np.zeros((2, 3, 9))).act(np.zeros((3, 8)))
    with pytest.raises(ValueError, match="must be Box, Discrete"):
        LinearPolicy(spaces.Text(3), weights)


def test_unbounded_actions_are_rejected() -> None:
    with pytest.raises(ValueError, match="need finite bounds, got Box.*set them with a wrapper"):
        LinearPolicy(spaces.Box(-np.inf, np.inf, (3,)), np.zeros((3, 9)))


def test_a_controller_on_plain_observations_plays_an_episode() -> None:
    env = make_real(RealSpec("Pendulum-v1"))
    policy = LinearPolicy(env.action_space, np.ones((1, 4)))
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        obs, _, _, _, _ = env.step(policy.act(obs[None])[0])
    env.close()
    assert np.isfinite(obs).all()
