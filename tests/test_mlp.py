"""The network policy: what it computes, what it refuses, and that it survives a file."""

from __future__ import annotations

import itertools
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from policies.mlp import DrawnPolicy, MLPPolicy, mean_mlp
from wm_agents.checkpoint import read_tensors
from wm_agents.system.files import write_tensors
from wm_envs.action import act_dim

BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))
SPACES = [
    (BOX, "clip"),
    (BOX, "tanh"),
    (spaces.Box(-0.1, 0.7, (2, 3), np.float64), "tanh"),
    (spaces.Discrete(4, start=-1), "argmax"),
    (spaces.MultiDiscrete([2, 3, 4]), "argmax"),
    (spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 1], [0, 0]])), "argmax"),
    (spaces.MultiBinary(3), "sign"),
    (spaces.MultiBinary((2, 2)), "sign"),
]


def identity(space: gym.Space, squash: str) -> MLPPolicy:
    """Outputs are the feat itself."""
    dim = act_dim(space)
    return MLPPolicy(space, [(torch.eye(dim), torch.zeros(dim))], "tanh", squash)


def random_policy(space: gym.Space, squash: str, sizes: tuple[int, ...] = (7, 5, 6)) -> MLPPolicy:
    rng = torch.Generator().manual_seed(0)
    dims = (*sizes, act_dim(space))
    layers = [(torch.randn(b, a, generator=rng), torch.randn(b, generator=rng)) for a, b in itertools.pairwise(dims)]
    return MLPPolicy(space, layers, "silu", squash)


def act(policy: MLPPolicy, rows: list[list[float]]) -> list:
    return policy.act(np.array(rows, np.float32)).tolist()


@pytest.mark.parametrize("name, module", [("tanh", nn.Tanh), ("relu", nn.ReLU), ("silu", nn.SiLU)])
def test_it_computes_what_torch_s_layers_do(name: str, module: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), module(), nn.Linear(8, 8), module(), nn.Linear(8, 2))
    layers = [(m.weight, m.bias) for m in net if isinstance(m, nn.Linear)]
    wide = spaces.Box(-99, 99, (2,), np.float32)
    obs = torch.randn(6, 3)
    np.testing.assert_array_equal(MLPPolicy(wide, layers, name, "clip").act(obs.numpy()), net(obs).detach().numpy())


def test_clip_stops_at_the_bounds_and_tanh_stretches_onto_them() -> None:
    assert act(identity(BOX, "clip"), [[1.5, 3], [-9, -9], [9, 99]]) == [[1.5, 3], [-2, 0], [2, 10]]
    assert act(identity(BOX, "tanh"), [[0, 0], [-99, -99], [99, 99]]) == [[0, 5], [-2, 0], [2, 10]]


def test_unit_scales_to_the_bounds_and_clips() -> None:
    assert act(identity(BOX, "unit"), [[0, 0], [-1, 1], [-9, 9]]) == [[0, 5], [-2, 10], [-2, 10]]


def test_choices_take_the_largest_output_of_each_and_bits_what_is_above_0() -> None:
    assert act(identity(spaces.Discrete(3, start=5), "argmax"), [[0, 2, 1], [3, 2, 1]]) == [6, 5]
    many = spaces.MultiDiscrete([2, 3], start=[0, 10])
    assert act(identity(many, "argmax"), [[1, 0, 0, 0, 1], [0, 1, 0, 1, 0]]) == [[0, 12], [1, 11]]
    assert act(identity(spaces.MultiBinary(3), "sign"), [[0.1, -0.1, 0]]) == [[1, 0, 0]]


@pytest.mark.parametrize("space, squash", SPACES)
def test_every_output_is_an_action_of_its_space(space: gym.Space, squash: str) -> None:
    policy = random_policy(space, squash)
    for obs in 30 * np.random.default_rng(0).standard_normal((20, 5, 7)):
        acts = policy.act(obs)
        assert acts.shape == (5, *(space.shape or ())) and acts.dtype == space.dtype
        assert all(space.contains(row) for row in acts), (space, acts)


@pytest.mark.parametrize("space, squash", SPACES)
def test_it_survives_a_file(space: gym.Space, squash: str, tmp_path: Path) -> None:
    policy = random_policy(space, squash)
    write_tensors(tmp_path / "policy.safetensors", policy.tensors(), policy.about())
    back = MLPPolicy.from_tensors(space, *read_tensors(tmp_path / "policy.safetensors"))
    obs = np.random.default_rng(0).standard_normal((9, 7)).astype(np.float32)
    np.testing.assert_array_equal(back.act(obs), policy.act(obs))
    assert back.about() == {"kind": "mlp", "activation": "silu", "squash": squash} and back.feat_dim == 7


def test_more_than_ten_layers_keep_their_order() -> None:
    policy = random_policy(BOX, "clip", (2,) * 13)
    back = MLPPolicy.from_tensors(BOX, policy.tensors(), policy.about())
    assert all(torch.equal(a[0], b[0]) for a, b in zip(policy.layers, back.layers, strict=True))


def test_a_policy_owns_its_numbers() -> None:
    weight = torch.eye(2, requires_grad=True)
    policy = MLPPolicy(BOX, [(weight, torch.zeros(2))], "tanh", "clip")
    with torch.no_grad():
        weight.zero_()
    first = policy.act(np.ones((1, 2), np.float32))
    first[:] = -1
    assert act(policy, [[1, 1]]) == [[1, 1]]


def test_half_precision_weights_act_in_single() -> None:
    policy = MLPPolicy(BOX, [(torch.eye(2).half(), torch.zeros(2).half())], "tanh", "clip")
    assert policy.act(np.ones((1, 2), np.float64)).dtype == np.float32


# Errors


def test_what_does_not_fit_is_rejected_with_both_sides() -> None:
    eye, zeros = torch.eye(2), torch.zeros(2)
    for layers, message in [
        ([(torch.eye(3), torch.zeros(3))], r"the last layer must have 2 outputs for Box.*, got 3"),
        ([(eye, torch.zeros(3))], r"layers must be weights \(out, in\) and biases \(out,\) of matching sizes, got"),
        ([(torch.ones(3, 2), torch.zeros(3)), (eye, zeros)], r"of matching sizes, got .*\(3, 2\)"),
        ([], "of matching sizes, got \\[\\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            MLPPolicy(BOX, layers, "tanh", "clip")
    with pytest.raises(ValueError, match=r"activation must be one of \['relu', 'silu', 'tanh'\], got 'gelu'"):
        MLPPolicy(BOX, [(eye, zeros)], "gelu", "clip")
    with pytest.raises(ValueError, match=r"squash must be one of \['clip', 'tanh', 'unit'\] for Box.*, got 'argmax'"):
        MLPPolicy(BOX, [(eye, zeros)], "tanh", "argmax")
    for obs in (np.zeros((4, 3)), np.zeros(2)):
        with pytest.raises(ValueError, match=r"obs must be \(N, 2\), got"):
            identity(BOX, "clip").act(obs)


def test_foreign_tensors_are_rejected() -> None:
    policy = random_policy(BOX, "clip")
    with pytest.raises(
        ValueError,
        match="metadata must contain kind='mlp' and the keys 'activation' and 'squash', got {'kind': 'linear'}",
    ):
        MLPPolicy.from_tensors(BOX, policy.tensors(), {"kind": "linear"})
    with pytest.raises(ValueError, match=r"tensors must be '0.weight', '0.bias' and so on, got \['weights'\]"):
        MLPPolicy.from_tensors(BOX, {"weights": torch.eye(2)}, policy.about())
    lacking = {name: t for name, t in policy.tensors().items() if name != "0.bias"}
    with pytest.raises(ValueError, match="tensors must be '0.weight'"):
        MLPPolicy.from_tensors(BOX, lacking, policy.about())
    with pytest.raises(ValueError, match="the last layer must have 3 outputs for Discrete"):
        MLPPolicy.from_tensors(spaces.Discrete(3), policy.tensors(), {**policy.about(), "squash": "argmax"})


def test_drawn_actions_come_as_often_as_the_outputs_say_and_follow_the_seed() -> None:
    policy = DrawnPolicy(identity(spaces.Discrete(3, start=5), "argmax"))
    feat = np.log(np.tile(np.array([[0.2, 0.7, 0.1]], np.float32), (20_000, 1)))
    drawn = []
    for seed in (0, 0, 1):
        policy.reset(len(feat), seed)
        drawn.append(policy.act(feat))
    assert np.bincount(drawn[0] - 5) / len(feat) == pytest.approx([0.2, 0.7, 0.1], abs=0.015)
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], policy.act(feat)), "the next step draws anew"


def test_only_discrete_actions_can_be_drawn() -> None:
    with pytest.raises(ValueError, match="sampling actions needs an MLPPolicy with Discrete actions"):
        DrawnPolicy(identity(BOX, "clip"))


def test_the_mean_of_policies_has_their_mean_weights() -> None:
    eye = torch.eye(2)
    policies = [MLPPolicy(BOX, [(k * eye, torch.tensor([0.0, k]))], "tanh", "clip") for k in (1.0, 3.0)]
    mean = mean_mlp(policies)
    assert torch.equal(mean.layers[0][0], 2 * eye) and torch.equal(mean.layers[0][1], torch.tensor([0.0, 2.0]))
    assert mean.act(np.array([[0.5, 1.0]], np.float32)).tolist() == [[1.0, 4.0]]
