"""The real environment through the model's eyes: the dream's spaces, the same preprocessing, no display needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from numpy.typing import NDArray
from odd_env import ACT, OBS, Odd
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from tiny import save_tiny

import wm_envs
from wm_agents.cli.app import main
from wm_agents.data.vector_stream import Stream
from wm_agents.loops import rounds
from wm_agents.pretrained import load_model
from wm_envs import real
from wm_envs.action import encode_action
from wm_envs.frames import is_image, to_rgb
from wm_envs.real import check_spec, make_real, probe, spec_for
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


def test_pixels_of_an_environment_without_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"CartPole-v1: observations must be .* uint8 pixels.* for size=64, got Box"):
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


def test_other_observations_are_rejected(model: str) -> None:
    with pytest.raises(ValueError, match="obs must be 'pixels' or 'latent', got 'state'"):
        gym.make("Real-CarRacing-v0", model=model, obs="state")


def test_an_image_is_bytes_in_one_or_three_channels() -> None:
    box = gym.spaces.Box
    assert is_image(box(0, 255, (8, 9, 3), np.uint8)) and is_image(box(0, 255, (8, 9, 1), np.uint8))
    assert not is_image(box(0, 1, (8, 9, 3), np.float32)) and not is_image(box(0, 255, (8, 9, 4), np.uint8))
    assert not is_image(box(0, 255, (8, 9), np.uint8)) and not is_image(gym.spaces.Discrete(3))


def test_grey_frames_are_shown_in_three_channels() -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
    assert (to_rgb(grey) == grey).all() and to_rgb(grey).shape == (2, 3, 4, 3)
    rgb = np.zeros((3, 4, 3), np.uint8)
    assert to_rgb(rgb) is rgb


# Any environment


def odd(obs: str = "dict", act: str = "discrete", **fields: object) -> RealSpec:
    return RealSpec("odd_env:Odd-v0", {"obs": obs, "act": act}, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("obs", "shape"), [("dict", (7,)), ("tuple", (3,)), ("choice", (5,)), ("matrix", (12,)), ("bits", (32,))]
)
def test_what_is_not_a_vector_is_flattened_to_one(obs: str, shape: tuple[int, ...]) -> None:
    check_spec(odd(obs))
    env = make_real(odd(obs))
    got, _ = env.reset(seed=0)
    assert env.observation_space.shape == got.shape == shape
    np.testing.assert_array_equal(got, gym.spaces.flatten(OBS[obs], env.unwrapped.last))
    assert env.step(0)[0] in env.observation_space


@pytest.mark.parametrize(("obs", "channels"), [("grey", 1), ("grey1", 1), ("rgb", 3)])
def test_pixels_of_any_size_are_resized_grey_ones_in_one_channel(obs: str, channels: int) -> None:
    check_spec(odd(obs, size=32))
    env = make_real(odd(obs, size=32))
    got, _ = env.reset(seed=0)
    assert is_image(env.observation_space) and got.shape == (32, 32, channels) and got.dtype == np.uint8
    assert abs(float(got.mean()) - float(env.unwrapped.last.mean())) < 2


@pytest.mark.parametrize("act", ["box", "discrete", "from1", "multi", "bits"])
def test_actions_of_every_kind_reach_the_environment(act: str) -> None:
    check_spec(odd(act=act))
    env = make_real(odd(act=act))
    env.reset(seed=0)
    ACT[act].seed(0)
    sent = [ACT[act].sample() for _ in range(3)]
    assert [env.step(a)[1] for a in sent] == [1, 2, 3]
    assert all(np.array_equal(a, b) for a, b in zip(sent, env.unwrapped.seen, strict=True))


def test_other_environments_are_checked_as_they_are() -> None:
    for name in ["Pendulum-v1", "MountainCarContinuous-v0", "FrozenLake-v1"]:
        check_spec(RealSpec(name))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (odd("text"), r"Odd-v0: observations must be made of Box.*got observation\['say'\] is Text.*drop or encode"),
        (odd("sequence"), r"observation\[1\] is Sequence"),
        (odd("graph"), r"observation is Graph"),
        (odd("floats"), r"flatten to 12,288 values, but at most 2,000 .*convert images to uint8 from 0 to 255"),
        (odd("planes"), r"flatten to 12,288 values.*move the channel axis from first to last"),
        (odd("planes", size=64), r"uint8 pixels from 0 to 255 for size=64, got Box.*move the channel axis"),
        (odd("floats", size=64), r"uint8 pixels from 0 to 255 for size=64, got Box.*float32.*convert images to uint8"),
        (odd("dict", size=64), r"for size=64, got Dict.*keep only the image with TransformObservation"),
        (RealSpec("CartPole-v1", size=64), r"for size=64, got Box.*remove size for vectors"),
        (odd("dict", crop=(0, 1, 0, 1)), r"crop needs a size"),
        (odd("rgb", size=32, crop=(0, 91, 0, 9)), r"crop .* must lie in 90 rows and 41 columns, got \(0, 91, 0, 9\)"),
        (odd("dict", max_frames=True, action_repeat=4), r"max_frames needs uint8 pixels, got Dict"),
        (odd("rgb", size=32, max_frames=True), r"repeat must be at least 2 for max_frames, got 1"),
        (odd(act="endless"), r"Odd-v0: Box actions need finite bounds, got Box.*; set them with a wrapper"),
        (odd(act="dict"), r"Odd-v0: actions must be Box, Discrete, MultiDiscrete or MultiBinary, got Dict"),
        (odd(act="box", actions=(0,)), r"the setting `actions` works only with Discrete actions, got Box"),
        (
            odd(act="from1", actions=(0, 1)),
            r"actions must be distinct elements of Discrete\(4, start=1\), got \(0, 1\)",
        ),
        (odd("nan"), r"Odd-v0: observations must be finite, got NaN"),
        (odd("liar"), r"observations must be \(3,\) float32 as declared by its space, got \(4,\) float32"),
    ],
)
def test_what_cannot_be_dreamed_is_named_at_once(spec: RealSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_spec(spec)


def test_a_wrapper_is_the_innermost_part_of_the_environment() -> None:
    spec = odd("text", wrapper="odd_env:without_text")
    assert check_spec(spec).obs_space.shape == (2,) and check_spec(spec).limit == check_spec(odd("dict")).limit
    assert spec_for(spec).wrapper == "odd_env:without_text"
    assert RealSpec.from_dict(spec.to_dict()) == spec and "wrapper" not in odd("text").to_dict()


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("odd_env:gone", "wrapper odd_env:gone: module 'odd_env' has no attribute 'gone'"),
        ("no_such_module:wrap", "No module named 'no_such_module'; give module:function"),
        ("odd_env:no_env", "wrapper odd_env:no_env must return a gymnasium.Env, got int"),
        ("odd_env.no_env", "RealSpec.wrapper must be module:function, got 'odd_env.no_env'"),
    ],
)
def test_a_wrapper_that_cannot_be_used_is_named(wrapper: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_spec(odd("dict", wrapper=wrapper))


def test_the_chosen_actions_are_the_environments_own() -> None:
    env = make_real(odd(act="from1", actions=(4, 2)))
    assert env.action_space == gym.spaces.Discrete(2)
    env.reset(seed=0)
    env.step(0), env.step(np.int64(1))
    assert env.unwrapped.seen == [4, 2]
    with pytest.raises(ValueError, match=r"act must be in Discrete\(2\)"):
        env.step(2)


def test_a_crop_keeps_rows_and_columns_of_the_native_image() -> None:
    env = make_real(odd("rgb", size=10, crop=(30, 40, 5, 15)))
    got, _ = env.reset(seed=0)
    np.testing.assert_array_equal(got, env.unwrapped.last[30:40, 5:15])


@pytest.mark.parametrize("obs", ["rgb", "grey", "grey1"])
def test_three_images_in_grey_are_the_channels_of_one(obs: str) -> None:
    check_spec(odd(obs, size=10, stack=True))
    stacked, plain = (make_real(odd(obs, size=10, stack=stack)) for stack in (True, False))
    assert stacked.observation_space == gym.spaces.Box(0, 255, (10, 10, 3), np.uint8)
    seen = [stacked.reset(seed=0)[0], *(stacked.step(0)[0] for _ in range(4))]
    grey = [_luminance(obs) for obs in (plain.reset(seed=0)[0], *(plain.step(0)[0] for _ in range(4)))]
    assert not np.array_equal(grey[3], grey[4])
    for t, picture in enumerate(seen):  # Oldest first; before the first one stands the first one.
        past = [grey[max(t + back, 0)] for back in (-2, -1, 0)]
        np.testing.assert_allclose(picture, np.stack(past, -1), atol=1)
    with pytest.raises(ValueError, match="stack needs a size"):
        make_real(odd(obs, stack=True))


def _luminance(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(H, W): ITU-R BT.709."""
    return picture @ np.array([0.2125, 0.7154, 0.0721]) if picture.shape[-1] == 3 else picture[..., 0].astype(float)


# The Arcade Learning Environment


def test_pong_is_the_plain_game_cropped_with_three_actions() -> None:
    """Repeating the action outside gives the rewards, ends and sticky actions of the frame skip inside."""
    spec = TASKS["Pong"].real
    real, plain = make_real(spec), gym.make("ALE/Pong-v5", obs_type="grayscale", disable_env_checker=True)
    assert real.observation_space.shape == (160, 160, 1) and real.action_space == gym.spaces.Discrete(3)
    assert real.metadata["render_fps"] == 15
    real.reset(seed=7), plain.reset(seed=7)
    rng, rewards = np.random.default_rng(0), []
    for _ in range(200):
        choice = int(rng.integers(3))
        got, want = real.step(choice), plain.step([0, 2, 3][choice])
        assert got[1:4] == want[1:4]
        rewards.append(got[1])
    assert min(rewards) == -1
    assert real.unwrapped.ale.getEpisodeFrameNumber() == plain.unwrapped.ale.getEpisodeFrameNumber()
    np.testing.assert_array_equal(real.unwrapped.ale.getRAM(), plain.unwrapped.ale.getRAM())


def test_a_game_is_truncated_after_its_108000_frames() -> None:
    assert TASKS["Pong"].real.max_episode_steps * TASKS["Pong"].real.action_repeat == 108_000
    spec = RealSpec("ALE/Pong-v5", {"frameskip": 1, "max_num_frames_per_episode": 41}, action_repeat=4)
    env = make_real(spec)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(11)]
    assert ends[-1] == (False, True) and set(ends[:-1]) == {(False, False)}
    assert env.unwrapped.ale.getEpisodeFrameNumber() == 41


@pytest.mark.parametrize(
    ("kwargs", "said", "limit"),
    [
        ({}, {}, 27_000),
        ({}, {"action_repeat": 3}, 9_000),
        ({}, {"max_episode_steps": 500}, 500),
        ({}, {"max_episode_steps": 50_000}, 27_000),
        ({"frameskip": 1}, {"action_repeat": 4}, 27_000),
        ({"max_num_frames_per_episode": 41}, {}, 11),
        ({"max_num_frames_per_episode": 41, "frameskip": 1}, {"action_repeat": 4}, 11),
        ({"max_num_frames_per_episode": 41, "frameskip": (2, 5)}, {}, 21),
        ({"max_num_frames_per_episode": 41, "max_episode_steps": 7}, {}, 7),
        ({"max_num_frames_per_episode": 0}, {}, None),
    ],
)
def test_the_limit_that_a_game_sets_itself_is_known(kwargs: dict, said: dict, limit: int | None) -> None:
    assert probe(RealSpec("ALE/Boxing-v5", kwargs, **said)).limit == limit


@pytest.mark.parametrize(
    ("env_id", "limit"),
    [("ALE/Pong-v5", 27_000), ("BoxingNoFrameskip-v4", 108_000), ("ale_py:Boxing-v4", 54_000)],
)
def test_games_have_a_limit_by_any_of_their_ids(env_id: str, limit: int) -> None:
    assert probe(RealSpec(env_id)).limit == limit


@pytest.mark.parametrize("name", ["Pong", "Breakout"])
def test_the_fields_of_the_games_are_seen_whole(name: str) -> None:
    spec = TASKS[name].real
    env = make_real(spec)
    env.reset(seed=0)
    for t in range(30):
        obs = env.step(t % 2)[0][..., 0]
    screen = env.unwrapped.ale.getScreenGrayscale()
    top, bottom, left, right = spec.crop
    ground = 87 if name == "Pong" else 0
    assert (screen[top:bottom, left:right] != ground).any() and (obs.astype(int) - ground > 10).any()
    walls = [screen[top - 1, left:right], screen[bottom:, left:right]]  # What lies outside does not move.
    assert (walls[0] == walls[0][0]).all()
    assert env.action_space.n == 3


def test_the_ale_that_is_not_there_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match=r"cannot create ALE/Pong-v5: .*; pip install 'gymnasium\[atari\]'"):
        make_real(TASKS["Pong"].real)


@pytest.mark.parametrize(
    ("spec", "fps"),
    [
        (RealSpec("ALE/Pong-v5"), 15),
        (RealSpec("ale_py:ALE/Pong-v5", {"frameskip": 1}, action_repeat=2), 30),
        (RealSpec("ale_py:ALE/Pong-v5", {"frameskip": (2, 5)}), 20),  # 2, 3 or 4
        (CAR, 12.5),
    ],
)
def test_the_speed_is_that_of_the_machine_it_emulates(spec: RealSpec, fps: float) -> None:
    env = make_real(spec)
    assert env.metadata["render_fps"] == fps
    env.close()


@pytest.mark.parametrize("fps", [0, None, -5, "fast", float("nan")])
def test_a_speed_that_is_not_a_positive_number_is_30(monkeypatch: pytest.MonkeyPatch, fps: object) -> None:
    monkeypatch.setattr(Odd, "metadata", {"render_modes": [], "render_fps": fps})
    assert check_spec(RealSpec("Odd-v0", action_repeat=2)).fps == 15


# Probing


def test_facts_are_those_of_the_environment() -> None:
    facts, env = probe(CAR), make_real(CAR)
    assert facts.spaces == (env.observation_space, env.action_space)
    assert (facts.limit, facts.fps, facts.render_modes) == (250, 12.5, ("human", "rgb_array", "state_pixels"))
    env.close()


def test_an_environment_is_created_once_until_it_is_registered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[str] = []
    build = real._make
    monkeypatch.setattr(real, "_make", lambda spec, mode: builds.append(spec.id) or build(spec, mode))
    monkeypatch.setattr(real, "_PROBED", {})
    gym.register("Anew-v0", "toy_env:Echo", max_episode_steps=9)
    spec = RealSpec("Anew-v0")
    assert probe(spec) is probe(spec) and probe(spec).limit == 9 and builds == ["Anew-v0"]
    assert probe(RealSpec("Anew-v0", max_episode_steps=4)).limit == 4
    gym.registry.pop("Anew-v0")
    gym.register("Anew-v0", "toy_env:Echo", max_episode_steps=5)
    assert probe(spec).limit == 5 and len(builds) == 3
    gym.registry.pop("Anew-v0")


class Began(Exception):
    """The first step is about to be taken."""


@pytest.mark.parametrize("command", ["improve", "improve --family dreamerv3", "train"])
def test_commands_create_the_environment_twice_at_most_before_the_first_step(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def began(*args: object, **kwargs: object) -> None:
        raise Began

    monkeypatch.chdir(tmp_path)
    if command == "train":
        assert main(["init", ".", "--env", "CartPole-v1", "--yes"]) == 0
    else:
        command += " --env CartPole-v1 --out out"
    builds: list[str] = []
    build = real._make
    monkeypatch.setattr(real, "_make", lambda spec, mode: builds.append(spec.id) or build(spec, mode))
    monkeypatch.setattr(real, "_PROBED", {})
    monkeypatch.setattr(rounds, "collect", began)
    monkeypatch.setattr(Stream, "__init__", began)
    with pytest.raises(Began):
        main([*command.split(), "--debug"])
    # The first one tells whether observations are images.
    assert builds == ["CartPole-v1"] * (1 if command == "train" else 2)


class Plain(gym.Env):
    """An environment whose `reset` and `step` are given."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)


def plain(monkeypatch: pytest.MonkeyPatch, **fields: object) -> RealSpec:
    """An environment that exists for one test, with other attributes."""
    kind = type("Kind", (Plain,), fields)
    monkeypatch.setitem(gym.registry, "Plain-v0", EnvSpec("Plain-v0", entry_point=kind))
    return RealSpec("Plain-v0")


def old_reset(self, *, seed=None, options=None):
    return np.zeros(2, np.float32)


def reset(self, *, seed=None, options=None):
    return np.zeros(2, np.float32), {}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"reset": old_reset}, r"Plain-v0: reset returns ndarray; reset\(seed=, options=\) must return \(obs, info\)"),
        ({"reset": reset, "step": lambda self, act: (np.zeros(2), 0.0, False, {})}, r"step returns \(ndarray, float, "),
        ({"reset": lambda self: (np.zeros(2), {})}, "Plain-v0: reset does not take `seed`"),
    ],
)
def test_environments_of_the_old_gym_are_named(methods: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=message):
        check_spec(plain(monkeypatch, **methods))


def test_boards_of_pieces_are_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    board = spaces.Box(0, 10, (7, 7, 3), np.uint8)
    env = make_real(plain(monkeypatch, observation_space=board))
    assert env.observation_space.shape == (147,) and env.observation_space.dtype == np.uint8
    assert not is_image(board) and is_image(spaces.Box(0, 255, (7, 7, 3), np.uint8))


def test_long_vectors_are_rejected_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = plain(monkeypatch, observation_space=spaces.Box(-1, 1, (2500,), np.float32))
    with pytest.raises(ValueError, match="flatten to 2,500 values, but at most 2,000 .*; select the relevant ones"):
        make_real(spec)


def test_old_ids_of_games_are_known() -> None:
    code = "from wm_envs.real import probe, RealSpec; print(probe(RealSpec('Pong-v4', size=64)).fps)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(60 / 3)  # Its frame skip is 2, 3 or 4.
