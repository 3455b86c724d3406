"""Saved models: what comes back is what was saved, and dreams, drives and scores the same."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny import save_tiny

from policies.latent import LatentPolicy
from policies.linear import LinearPolicy, num_params
from policies.rollout import returns, rollout
from wm_agents.checkpoint import ArtifactError, read_tensors
from wm_agents.errors import ConfigurationError
from wm_agents.evaluation.evaluate import evaluate_dream
from wm_agents.models.ensemble import Ensemble, EnsembleConfig
from wm_agents.models.model import Model
from wm_agents.models.saved import model_path
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.pretrained import (
    cached_model,
    frame_policy,
    load_model,
    load_policy,
    load_starts,
    make_dream_env,
    make_dream_vec_env,
    make_real_env,
    real_spec,
    save_model,
)
from wm_envs.dream import DreamConfig
from wm_envs.real import make_real
from wm_envs.registry import TASKS, RealSpec
from wm_envs.world_model import Latent

POLE = RealSpec("CartPole-v1", max_episode_steps=60)
PENDULUM = RealSpec("Pendulum-v1", max_episode_steps=20)


@pytest.fixture(autouse=True)
def forget_models() -> None:
    cached_model.cache_clear()


def build(spec: RealSpec, **fields: Any) -> tuple[VMC, LinearPolicy, dict[str, Latent]]:
    env = make_real(spec)
    torch.manual_seed(0)
    config = {"vision": "identity", "hidden": 16, **fields}
    model = VMC(VMCConfig(**config), env.observation_space, env.action_space).eval()
    env.close()
    model.rew_scale.fill_(2.5)
    if config["vision"] == "identity":
        model.vision.mean.fill_(0.1)  # type: ignore[union-attr]
        model.vision.std.fill_(0.7)  # type: ignore[union-attr]
    starts = {
        bank: {key: torch.randn(32, leaf.shape[1]) for key, leaf in model.initial(1).items()}
        for bank in ("begin", "anywhere")
    }
    weights = np.random.default_rng(0).standard_normal(num_params(model.act_space, model.feat_dim))
    return model, LinearPolicy(model.act_space, weights.reshape(-1, model.feat_dim + 1)), starts


def save(path: Path, spec: RealSpec = POLE, half: bool = False, **fields: Any) -> tuple[VMC, LinearPolicy, str]:
    model, policy, starts = build(spec, **fields)
    save_model(path, model, spec, starts, horizon=40, card="# card\n", policy=policy, half=half)
    return model, policy, str(path)


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config |= changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@torch.no_grad()
def dream(model: VMC, steps: int = 5) -> torch.Tensor:
    """What a dream shows, given fixed frames, actions and luck."""
    generator = torch.Generator().manual_seed(0)
    assert model.obs_space.shape is not None
    latent = model.encode(torch.from_numpy(np.full((4, *model.obs_space.shape), 3, model.obs_space.dtype)))
    shown = []
    for t in range(steps):
        act = torch.full((4, model.memory.actions), 0.1 * t)
        latent, rew, cont, *_ = model.step(latent, act, generator=generator)
        shown.append(torch.cat([model.feat(latent), rew[:, None], cont[:, None], model.decode(latent).flatten(1)], 1))
    return torch.stack(shown)


@pytest.mark.parametrize(
    "spec, fields",
    [
        (POLE, {}),
        (PENDULUM, {"mixture": "per_dim", "mixtures": 3}),
        (RealSpec("CarRacing-v3", size=32), {"vision": "small", "z_dim": 8}),
    ],
)
def test_a_model_comes_back_as_it_was(tmp_path: Path, spec: RealSpec, fields: dict[str, Any]) -> None:
    model, policy, path = save(tmp_path / "m", spec, **fields)
    loaded, artifact = load_model(path)
    assert loaded.cfg == model.cfg and not loaded.training
    assert loaded.obs_space == model.obs_space and loaded.act_space == model.act_space
    assert real_spec(artifact) == spec and (tmp_path / "m" / "README.md").read_text() == "# card\n"
    assert torch.equal(dream(loaded), dream(model))
    again = load_policy(loaded, artifact)
    assert np.array_equal(again.weights, policy.weights) and again.squash == policy.squash
    starts = load_starts(artifact)
    assert set(starts) == {"begin", "anywhere"} and starts["begin"]["h"].shape == (32, 16)


def test_scores_are_the_same_after_saving(tmp_path: Path) -> None:
    model, policy, path = save(tmp_path / "m")
    envs = SyncVectorEnv([partial(make_real, POLE)], autoreset_mode=AutoresetMode.DISABLED)
    before, after = (
        [float(returns(rollout(envs, p, seed=[seed]))[0]) for seed in range(1_000_000, 1_000_005)]
        for p in (LatentPolicy(model, policy), frame_policy(path))
    )
    envs.close()
    assert before == after
    loaded, artifact = load_model(path)
    score = partial(evaluate_dream, dream=DreamConfig(horizon=30), episodes=20, seed=1_000_000)
    starts = build(POLE)[2]
    assert score(model, starts, policy) == score(loaded, load_starts(artifact), load_policy(loaded, artifact))


def test_half_precision_is_close_and_half_as_large(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"vision": "small", "z_dim": 8}
    spec = RealSpec("CarRacing-v3", size=32)
    model, policy, whole = save(tmp_path / "whole", spec, **fields)
    _, _, half = save(tmp_path / "half", spec, half=True, **fields)
    loaded, artifact = load_model(half)
    assert all(leaf.dtype == torch.float32 for leaf in loaded.state_dict().values())
    assert torch.allclose(dream(loaded)[:, :, :26], dream(model)[:, :, :26], atol=0.02)
    assert np.array_equal(load_policy(loaded, artifact).weights, policy.weights)  # Controllers stay whole.
    sizes = [(Path(p) / "model.safetensors").stat().st_size for p in (half, whole)]
    assert 0.4 < sizes[0] / sizes[1] < 0.6
    leaves = [leaf for latent in load_starts(artifact).values() for leaf in latent.values()]
    assert {leaf.dtype for leaf in artifact.starts.values()} == {torch.float16}
    assert {leaf.dtype for leaf in leaves} == {torch.float32}


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (5e4, 10.0), (1e5, 1e3), (0.0, 1e-4), (-1e12, 1e8)])
@pytest.mark.parametrize("family", ["ensemble", "vmc"])
def test_half_precision_keeps_the_dream_in_any_unit(tmp_path: Path, family: str, mean: float, std: float) -> None:
    bound = np.full(4, np.finfo(np.float32).max, np.float32)
    spaces = gym.spaces.Box(-bound, bound), gym.spaces.Discrete(2)
    torch.manual_seed(0)
    obs = mean + std * torch.randn(64, 4)
    model: Model
    if family == "vmc":
        model = VMC(VMCConfig("identity", hidden=16), *spaces)
        model.vision.fit(obs)  # type: ignore[union-attr, operator]
    else:
        model = Ensemble(EnsembleConfig(hidden=16), *spaces)
        model.scale.fit(obs, obs.roll(1, 0), torch.ones(64), torch.zeros(64), first=True)
    model.eval()
    begin = model.encode(obs)
    save_model(tmp_path / "m", model, POLE, {"begin": begin}, horizon=9, card="", half=True)
    loaded, artifact = load_model(tmp_path / "m")
    act = torch.eye(2)[torch.arange(64) % 2]
    with torch.inference_mode():
        want = model.step(begin, act, temperature=0.0)
        out = loaded.step(load_starts(artifact)["begin"], act, temperature=0.0)
        off = (loaded.decode(out.latent) - model.decode(want.latent)).abs() / std
    assert float(off.max()) < 0.05 and torch.isfinite(out.rew).all()
    assert {leaf.dtype for leaf in artifact.tensors.values() if leaf.ndim > 1} == {torch.float16}


def test_weights_given_to_frame_policy_take_the_place_of_the_saved_ones(tmp_path: Path) -> None:
    model, policy, path = save(tmp_path / "m")
    obs = np.ones((3, 4), np.float32)
    for weights, want in [(None, policy), (-policy.weights, LinearPolicy(model.act_space, -policy.weights))]:
        mine = frame_policy(path, weights)
        mine.reset(3, 0)
        assert mine.act(obs).tolist() == LatentPolicy(model, want).act(obs).tolist()


def test_weights_of_a_compiled_model_load(tmp_path: Path) -> None:
    model, _, starts = build(POLE)
    plain, shown = model.state_dict(), dream(model)
    compiled = {name.replace("memory.", "memory._orig_mod."): leaf for name, leaf in plain.items()}
    model.state_dict = lambda: compiled  # type: ignore[method-assign, assignment]
    save_model(tmp_path / "m", model, POLE, starts, horizon=40, card="")
    assert set(read_tensors(tmp_path / "m" / "model.safetensors")[0]) == set(plain) != set(compiled)
    assert torch.equal(dream(load_model(tmp_path / "m")[0]), shown)


# Environments


def test_dreams_and_real_environments_of_a_model_share_their_spaces(tmp_path: Path) -> None:
    _, _, path = save(tmp_path / "m")
    for obs in ("pixels", "latent"):
        one, many = make_dream_env(path, obs=obs), make_dream_vec_env(path, num_envs=3, obs=obs)
        real = make_real_env(path, obs)
        assert one.observation_space == many.single_observation_space == real.observation_space
        assert one.action_space == many.single_action_space == real.action_space
        seen, _ = one.reset(seed=0)
        assert one.observation_space.contains(seen)
        assert many.reset(seed=0)[0].shape == (3, *one.observation_space.shape)  # type: ignore[misc]
        real.close()


def test_dreams_take_their_horizon_and_temperature_from_the_model(tmp_path: Path) -> None:
    _, _, path = save(tmp_path / "m")
    edit_config(tmp_path / "m", temperature=1.25)
    envs = make_dream_vec_env(path, num_envs=2)
    assert (envs.horizon, envs.temperature) == (40, 1.25)
    envs = make_dream_vec_env(path, num_envs=2, horizon=7, temperature=0.5)
    assert (envs.horizon, envs.temperature) == (7, 0.5)
    assert make_dream_vec_env(path, num_envs=2, max_episode_steps=9).horizon == 9  # As gym.make_vec passes it on.


# What cannot be loaded


def test_unknown_models_are_named_with_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"config.json or one of \[.*Dream-CarRacing-v0.*got 'no-such'"):
        model_path("no-such")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Dream-CartPol-v0", "Dream-CartPole-v0"),
        ("Dream-LunarLander", "Dream-LunarLander-v0"),
        ("CartPole-v1", "Dream-CartPole-v0"),
        ("ensemble-acrobat", "ensemble-acrobot"),
    ],
)
def test_names_that_are_nearly_right_get_the_right_one(name: str, near: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"got {name!r}; did you mean {near!r}.$"):
        model_path(name)


def test_what_is_at_a_path_instead_of_a_model_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(path: str) -> str:
        with pytest.raises(FileNotFoundError) as error:
            model_path(path)
        return str(error.value)

    monkeypatch.chdir(tmp_path)
    assert told("/no/where") == "model must be a directory with a config.json, but /no/where does not exist"
    (tmp_path / "empty").mkdir()
    assert told("empty") == "model must be a directory with a config.json, but empty has none"
    save(tmp_path / "run" / "model")
    assert told("run").endswith("but run has none; give run/model")
    assert told("run/model/README.md").endswith("but run/model/README.md is a file; give run/model")


@pytest.mark.parametrize("out", ["outputs", "other"])
def test_a_project_in_place_of_a_model_says_where_that_is(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(path: str) -> str:
        with pytest.raises(FileNotFoundError) as error:
            model_path(path)
        return str(error.value)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    toml = tmp_path / "my" / "wm.toml"
    toml.write_text(f'environment = "CartPole-v1"\nmodel = "vmc:ci"\n[training]\noutput_dir = "{out}"\n')
    later = f"is an untrained project: run `wm train` in it; its model will be my/{out}/model"
    for path in ("my", "my/wm.toml", f"my/{out}", f"my/{out}/model"):
        assert told(path) == f"my {later}"
    monkeypatch.chdir(tmp_path / "my")  # Where `outputs/model` could be a repository on the Hub.
    for path in (".", f"{out}/model"):
        assert told(path) == f"this folder {later.replace('my/', '')}"
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "my" / out / "model")
    assert told("my") == f"my is a project; give its model, my/{out}/model"
    assert told(f"my/{out}").endswith(f"has none; give my/{out}/model")
    assert model_path(f"my/{out}/model") == Path("my", out, "model")
    toml.write_text("colour =\n")
    assert "my/wm.toml is not valid TOML" in told("my")


def test_a_dream_of_no_model_reports_what_to_give() -> None:
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=r'a directory, .* such as model="runs/my_model", model="Dream-'):
            make("wm_envs:Dream-v0")


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_dreams_id_and_its_models_name_are_one_place(task: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("wm_agents.models.saved.STORE", tmp_path)
    save(tmp_path / task.model)
    assert model_path(task.dream_id) == model_path(task.model) == tmp_path / task.model


def test_a_missing_policy_is_named(tmp_path: Path) -> None:
    model, artifact = load_model(save(tmp_path / "m")[2])
    with pytest.raises(ValueError, match=r"m: policy must be one of \['linear'\], got 'sb3'"):
        load_policy(model, artifact, "sb3")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"family": "tdmpc9"}, "family must be one of 'vmc', .*, got 'tdmpc9'; did you mean 'tdmpc2'"),
        ({"family": None}, "has no 'family'"),
        ({"spaces": None}, "has no 'spaces'"),
        ({"model": {"vision": "identity", "depth": 3}}, "unknown field 'depth' of VMCConfig; it has .*; upgrade"),
        ({"format_version": 99}, "format version 99, but this installation reads up to 1; upgrade"),
    ],
)
def test_foreign_and_newer_models_are_rejected(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _, _, path = save(tmp_path / "m")
    edit_config(tmp_path / "m", **changes)
    with pytest.raises(ArtifactError, match=message):
        load_model(path)


def test_weights_of_other_sizes_are_rejected_with_both_sides(tmp_path: Path) -> None:
    _, _, path = save(tmp_path / "m")
    edit_config(tmp_path / "m", model={**VMCConfig(vision="identity", hidden=8).to_dict()})
    with pytest.raises(ArtifactError, match=r"gmm_linear.weight: \(47, 8\) in the model, \(47, 16\) in"):
        load_model(path)


def test_a_pickle_offered_as_weights_is_rejected(tmp_path: Path) -> None:
    model, _, path = save(tmp_path / "m")
    torch.save(model.state_dict(), tmp_path / "m" / "model.safetensors")
    with pytest.raises(ArtifactError, match="file of torch.save, not safetensors. Loading it could run code"):
        load_model(path)


def test_a_device_that_is_not_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigurationError, match=r"device 'cuda' is not on this machine; use 'cpu', or 'auto'"):
        make_dream_vec_env("Dream-CartPole-v0", 2, device="cuda")
    for name in ("gpu", "xpu"):
        with pytest.raises(ConfigurationError, match=f"device must be auto, cpu, mps, cuda or cuda:N, got '{name}'"):
            gym.make("Dream-CartPole-v0", device=name)


def test_a_model_of_an_environment_that_only_this_process_knows_is_saved_with_a_warning(tmp_path: Path) -> None:
    assert toy_env  # Registers Echo-v0.
    with pytest.warns(UserWarning, match=r"Echo-v0 is registered in this process only.*RealSpec\('module:Echo-v0'\)"):
        save_tiny(tmp_path / "here", RealSpec("Echo-v0"), controller=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_tiny(tmp_path / "there", RealSpec("toy_env:Echo-v0"), controller=False)
        save_tiny(tmp_path / "installed", RealSpec("CartPole-v1"), controller=False)
