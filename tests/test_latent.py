"""A policy on latents: V sees, M remembers, C acts, with the paper's timing."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from policies.latent import LatentPolicy
from policies.linear import LinearPolicy, num_params
from policies.policy import Array, RandomPolicy
from policies.rollout import rollout
from wm_agents.models.vision import to_input
from wm_agents.models.vmc import VMC, MDRNNCell, VMCConfig
from wm_envs.action import act_dim, encode_action
from wm_envs.real import LatentObservation, make_real
from wm_envs.registry import RealSpec

CAR = RealSpec("CarRacing-v3", size=32, action_repeat=2, max_episode_steps=4)


class Watched:
    """A controller that keeps what it is shown."""

    def __init__(self, controller: LinearPolicy) -> None:
        self.controller, self.feats = controller, []

    def reset(self, num: int, seed: int) -> None:
        self.feats.clear()

    def act(self, obs: Array) -> Array:
        self.feats.append(obs.copy())
        return self.controller.act(obs)


def model_of(obs_space: gym.Space, act_space: gym.Space) -> VMC:
    torch.manual_seed(0)
    vision = "small" if len(obs_space.shape or ()) == 3 else "identity"
    return VMC(VMCConfig(vision=vision, z_dim=8, hidden=16), obs_space, act_space)  # type: ignore[arg-type]


def controller_of(model: VMC) -> Watched:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((act_dim(model.act_space), model.feat_dim + 1))
    return Watched(LinearPolicy(model.act_space, weights))


@pytest.mark.parametrize("spec", [CAR, RealSpec("CartPole-v1", max_episode_steps=6)])
def test_a_real_episode_goes_through_v_c_env_and_m_in_the_papers_order(spec: RealSpec) -> None:
    env = make_real(spec)
    model = model_of(env.observation_space, env.action_space)
    controller = controller_of(model)
    envs = SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED)
    steps = list(rollout(envs, LatentPolicy(model, controller), seed=1))
    envs.close()
    assert len(steps) >= 4
    cell = MDRNNCell(model.z_dim, act_dim(env.action_space), 16, 5)
    cell.load_mdrnn(model.memory)
    h, c = cell.get_init_hidden(1)
    with torch.no_grad():
        for step, feat in zip(steps, controller.feats, strict=True):
            z, _ = model.vision.encode(to_input(torch.from_numpy(step.obs)))
            assert np.allclose(feat, torch.cat([z, h], 1), atol=1e-5)  # a[t] from h before it took in (z[t], a[t]).
            assert np.array_equal(step.act, controller.controller.act(feat))
            act = torch.from_numpy(encode_action(env.action_space, step.act))
            *_, (h, c) = cell(act, z, (h, c))


def test_a_new_episode_forgets_the_last() -> None:
    env = make_real(RealSpec("Pendulum-v1", max_episode_steps=5))
    model = model_of(env.observation_space, env.action_space)
    policy = LatentPolicy(model, controller_of(model))
    envs = SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED)
    first, _, again = ([step.act for step in rollout(envs, policy, seed=s)] for s in (1, 2, 1))
    assert np.array_equal(first, again)


def test_rows_do_not_mix() -> None:
    space, acts = gym.spaces.Box(-9, 9, (3,), np.float32), gym.spaces.Discrete(3)
    model = model_of(space, acts)
    together = LatentPolicy(model, controller_of(model))
    alone = [LatentPolicy(model, controller_of(model)) for _ in range(4)]
    together.reset(4, 0)
    for policy in alone:
        policy.reset(1, 0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        obs = rng.standard_normal((4, 3)).astype(np.float32)
        act = together.act(obs)
        assert act.tolist() == [int(policy.act(obs[i : i + 1])[0]) for i, policy in enumerate(alone)]
        feats = np.concatenate([policy.observer.model.feat(policy.observer.latent) for policy in alone])  # type: ignore[arg-type]
        assert np.allclose(together.observer.model.feat(together.observer.latent), feats, atol=1e-6)  # type: ignore[arg-type]


def test_the_controller_sees_what_the_latent_observed_environment_shows() -> None:
    env = make_real(CAR)
    model = model_of(env.observation_space, env.action_space)
    controller = controller_of(model)
    envs = SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED)
    steps = list(rollout(envs, LatentPolicy(model, controller), seed=5))
    shown = LatentObservation(env, model)
    feats = [shown.reset(seed=5)[0], *(shown.step(step.act[0])[0] for step in steps)]
    envs.close()
    assert np.allclose(np.concatenate(controller.feats), np.stack(feats[:-1]), atol=1e-5)


def test_its_size_is_that_of_the_paper() -> None:
    space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    model = VMC(VMCConfig(), space, gym.spaces.Box(-1, 1, (3,), np.float32))
    assert num_params(model.act_space, model.feat_dim) == 867


def test_a_policy_that_draws_is_seeded_through() -> None:
    space = gym.spaces.Box(-9, 9, (3,), np.float32)
    model = model_of(space, gym.spaces.Discrete(5))
    policy = LatentPolicy(model, RandomPolicy(model.act_space))
    obs = np.zeros((6, 3), np.float32)
    acts = []
    for seed in (1, 1, 2):
        policy.reset(6, seed)
        acts.append(policy.act(obs).tolist())
    assert acts[0] == acts[1] != acts[2]
