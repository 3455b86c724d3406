"""The real environment through the model's eyes: the dream's spaces, the same preprocessing, no display needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from tiny import save_tiny

import wm_envs
from wm_agents.pretrained import load_model
from wm_envs.action import encode_action
from wm_envs.real import is_image, make_real
from wm_envs.registry import TASKS, RealSpec

CAR = TASKS["CarRacing"].real
ROOT = Path(wm_envs.__file__).parents[1]
# CarRacing-v3 itself draws this one: its pedals have no negative half.
pedals = pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric:UserWarning")
# Of any wrapped environment.
wrapped = pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("real") / "model", CAR, horizon=20)


@pytest.mark.parametrize("obs", ["pixels", "latent"])
def test_real_and_dream_have_equal_spaces(model: str, obs: str) -> None:
    real = gym.make("Real-CarRacing-v0", model=model, obs=obs)
    dream = gym.make("Dream-v0", model=model, obs=obs)
    assert real.observation_space == dream.observation_space and real.action_space == dream.action_space
    assert real.observation_space.shape == ((64, 64, 3) if obs == "pixels" else (12,))
    real.close()


def test_frames_are_resized_and_actions_repeated() -> None:
    real, plain = make_real(CAR), gym.make("CarRacing-v3")
    got, _ = real.reset(seed=3)
    full, _ = plain.reset(seed=3)
    act = np.array([0.1, 0.6, 0.0], np.float32)
    assert got.shape == (64, 64, 3) and got.dtype == np.uint8
    assert abs(float(got.mean()) - float(full.mean())) < 1
    _, rew, *_ = real.step(act)
    assert rew == pytest.approx(sum(float(plain.step(act)[1]) for _ in range(4)))
    real.close(), plain.close()


def test_an_episode_ends_by_agent_steps() -> None:
    env = make_real(RealSpec("CartPole-v1", action_repeat=2, max_episode_steps=3))
    env.reset(seed=0)
    ends = [env.step(t % 2)[2:4] for t in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


@wrapped
@pedals
@pytest.mark.parametrize("obs", ["pixels", "latent"])
def test_the_official_checkers_pass(model: str, obs: str) -> None:
    env = gym.make("Real-CarRacing-v0", model=model, obs=obs, disable_env_checker=True)
    check_env(env, skip_render_check=True)  # Rendering is CarRacing's own; a video is recorded below.
    check_env_sb3(env)
    check_env(env.unwrapped, skip_render_check=True)


def test_the_latent_is_the_model_carried_along_the_frames(model: str) -> None:
    frames, latents = (gym.make("Real-CarRacing-v0", model=model, obs=obs) for obs in ("pixels", "latent"))
    net, _ = load_model(model)
    latents.reset(seed=1)
    latents.step(np.array([0.5, 1, 0], np.float32))  # A second reset must forget this.
    obs, feat = frames.reset(seed=2)[0], latents.reset(seed=2)[0]
    latent, act = None, np.zeros(3, np.float32)
    for t in range(4):
        with torch.no_grad():
            encoded = torch.from_numpy(encode_action(net.act_space, act[None]))
            latent = net.encode(torch.from_numpy(obs[None]), latent, encoded)
        np.testing.assert_allclose(feat, net.feat(latent)[0], atol=1e-5)
        act = np.array([0.1 * t, 0.5, 0], np.float32)
        obs, feat = frames.step(act)[0], latents.step(act)[0]
    frames.close(), latents.close()


def test_video_and_statistics_of_the_real_environment(model: str, tmp_path: Path) -> None:
    env = gym.make("Real-CarRacing-v0", model=model, obs="latent", render_mode="rgb_array", max_episode_steps=3)
    env = RecordEpisodeStatistics(RecordVideo(env, str(tmp_path / "video"), episode_trigger=lambda _: True))
    env.reset(seed=0)
    infos = [env.step(env.action_space.sample())[4] for _ in range(3)]
    env.close()
    assert infos[-1]["episode"]["l"] == 3 and [path.suffix for path in (tmp_path / "video").iterdir()] == [".mp4"]


def test_vectors_of_real_environments_are_made() -> None:
    envs = gym.make_vec("Real-CarRacing-v0", num_envs=2)
    assert envs.reset(seed=0)[0].shape == (2, 64, 64, 3)
    envs.close()


def test_real_environments_need_neither_torch_nor_a_display() -> None:
    code = (
        "import sys; from wm_envs.real import make_real; from wm_envs import TASKS; "
        "env = make_real(TASKS['CarRacing'].real); env.reset(seed=0); print('torch' in sys.modules)"
    )
    bare = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare)
    assert (done.returncode, done.stdout.split()) == (0, ["False"]), done.stderr


def test_no_display_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(RuntimeError, match="render_mode='human' needs a display, got none"):
        make_real(CAR, render_mode="human")


def test_pixels_of_an_environment_without_are_refused() -> None:
    with pytest.raises(ValueError, match=r"CartPole-v1 must give \(H, W, 3\) uint8 pixels for size=64, got Box"):
        make_real(RealSpec("CartPole-v1", size=64))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (np.zeros(2), r"act must be \(N, 3\) for Box.*, got \(1, 2\)"),
        (np.full(3, np.nan), "act must be finite for Box.*NaN or infinity; the policy has diverged"),
        ("left", r"act must be \(N, 3\) for Box.*, got \(1,\)"),
        (None, r"act must be \(N, 3\) for Box.*, got \(1,\)"),
    ],
)
def test_a_wrong_action_is_named_and_breaks_nothing(act: object, message: str) -> None:
    env, plain = make_real(CAR), make_real(CAR)
    env.reset(seed=0), plain.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(act)
    gas = np.array([0, 1, 0], np.float32)
    np.testing.assert_array_equal(env.step(gas)[0], plain.step(gas)[0])
    env.close(), plain.close()


def test_a_step_before_the_first_reset_is_named() -> None:
    with pytest.raises(gym.error.ResetNeeded):
        make_real(CAR).step(np.zeros(3, np.float32))


def test_other_observations_are_refused(model: str) -> None:
    with pytest.raises(ValueError, match="obs must be 'pixels' or 'latent', got 'state'"):
        gym.make("Real-CarRacing-v0", model=model, obs="state")


def test_an_image_is_three_channels_of_bytes() -> None:
    box = gym.spaces.Box
    assert is_image(box(0, 255, (8, 9, 3), np.uint8))
    assert not is_image(box(0, 1, (8, 9, 3), np.float32)) and not is_image(box(0, 255, (8, 9, 1), np.uint8))
    assert not is_image(gym.spaces.Discrete(3))
