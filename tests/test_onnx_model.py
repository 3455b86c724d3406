"""`backend="onnx"`: the same dreams as by PyTorch, computed by ONNX Runtime."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import wm_envs  # noqa: F401

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnx", reason="the extra `export` is not installed")

STEPS = 30


def both(env_id: str, num: int = 2, **kwargs: Any) -> tuple[gym.vector.VectorEnv, gym.vector.VectorEnv]:
    return tuple(gym.make_vec(env_id, num_envs=num, backend=name, **kwargs) for name in ("torch", "onnx"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "env_id, kwargs",
    [
        ("Dream-CarRacing-v0", {"temperature": 1.3}),
        ("Dream-CarRacing-v0", {"obs": "latent", "deterministic": True}),
        ("Dream-CartPole-v0", {}),
    ],
    ids=["V-M-C images", "V-M-C latents, most likely", "ensemble, sampled ends"],
)
def test_seeds_and_actions_give_the_dreams_of_pytorch(env_id: str, kwargs: dict[str, Any]) -> None:
    torch_env, onnx_env = both(env_id, **kwargs)
    torch_env.action_space.seed(0)
    first, second = torch_env.reset(seed=5)[0], onnx_env.reset(seed=5)[0]
    ends = 0
    for _ in range(STEPS):
        loose = {"atol": 1.0} if first.dtype == np.uint8 else {"rtol": 1e-3, "atol": 1e-3}
        np.testing.assert_allclose(second.astype(float), first.astype(float), **loose)
        act = torch_env.action_space.sample()
        first, *ours, _ = torch_env.step(act)
        second, *theirs, _ = onnx_env.step(act)
        np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-3, atol=1e-3)
        assert np.array_equal(ours[1], theirs[1]) and np.array_equal(ours[2], theirs[2])
        ends += int(ours[1].sum())
    assert ends > 0 or "CartPole" not in env_id


def test_a_pickled_dream_continues() -> None:
    env = gym.make("Dream-CartPole-v0", backend="onnx").unwrapped
    env.reset(seed=1)
    env.step(0)
    copy = pickle.loads(pickle.dumps(env))
    assert np.array_equal(env.step(1)[0], copy.step(1)[0])


def test_single_rows_differ_by_seed_only() -> None:
    env = gym.make("Dream-CartPole-v0", backend="onnx")
    rewards = []
    for seed in (1, 2, 1):
        env.reset(seed=seed)
        rewards.append([env.step(t % 2)[0].tolist() for t in range(5)])
    assert rewards[0] == rewards[2] != rewards[1]


WRONG = {
    "backend must be one of torch, onnx, got 'tensorrt'": {"backend": "tensorrt"},
    "computes on the CPU in fp32, got device='cpu' and precision='bf16'": {"backend": "onnx", "precision": "bf16"},
    "does not compute the disagreement of ensembles": {"backend": "onnx", "pessimism": 1.0},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_it_cannot_do_is_said(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make("Dream-CartPole-v0", **WRONG[message])


def test_families_with_graphs_of_one_row_take_one_row() -> None:
    from wm_agents.factory import create_world_model
    from wm_agents.models.onnx_model import OnnxModel

    model: Any = create_world_model("dreamerv3:ci", obs_shape=(5,), action_dim=2)
    onnx_model = OnnxModel(model.eval(), {"begin": model.initial(2)})
    assert onnx_model.decode(model.initial(1)).shape == (1, 5)
    with pytest.raises(
        ValueError, match=r"supports dreamerv3 with one row only, got 2; use num_envs=1 or backend='torch'"
    ):
        onnx_model.decode(model.initial(2))


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "wm_agents.models.onnx_model", raising=False)
    monkeypatch.delitem(sys.modules, "wm_agents.models.onnx_graphs", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'dreams-as-envs\[export\]'"):
        gym.make("Dream-CartPole-v0", backend="onnx")
