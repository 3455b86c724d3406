"""The dream as an environment: known answers in an exact model, and Gymnasium's contract with a V-M-C."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo
from gymnasium.wrappers import vector as vector_wrappers
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from tiny import save_tiny
from toy import Toy, toy_starts

from wm_agents.pretrained import load_model, load_starts
from wm_envs.dream import DreamConfig, DreamEnv, DreamVectorEnv
from wm_envs.registry import TASKS, RealSpec
from wm_envs.world_model import Latent, Step

MODES = list(AutoresetMode)
SAME, NEXT, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED


def dreams(model: Toy | None = None, num: int = 3, **kwargs: Any) -> DreamVectorEnv:
    return DreamVectorEnv(model or Toy(), toy_starts(), num, **kwargs)


def at(*x: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([[value, 0.0] for value in x])}


def moves(*x: float) -> np.ndarray:
    return np.array(x, np.float32)[:, None]


@functools.cache
def tiny(tmp: Path) -> str:
    return save_tiny(tmp, TASKS["CarRacing"].real, horizon=20)


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny(tmp_path_factory.getbasetemp() / "tiny")


# Known answers


def test_a_dream_is_the_model() -> None:
    envs = dreams()
    obs, info = envs.reset(options={"start": at(0, 1, 2)})
    assert obs.tolist() == [[0, 0], [1, 0], [2, 0]] and obs.dtype == np.float32 and info == {}
    obs, rew, term, trunc, info = envs.step(moves(0.5, -1, 0.25))
    assert obs.tolist() == [[0.5, 0.5], [0, -1], [2.25, 0.25]]
    assert rew.tolist() == [0.5, -1, 0.25] and rew.dtype == np.float64
    assert not term.any() and not trunc.any() and term.dtype == trunc.dtype == bool and info == {}


def test_resets_draw_from_the_bank_that_is_asked_for() -> None:
    envs = dreams(num=200)
    low, _ = envs.reset(seed=0)
    high, _ = envs.reset(seed=0, options={"start": "anywhere"})
    assert low[:, 0].min() >= -1 and low[:, 0].max() <= 1 and len(set(low[:, 0])) > 40
    assert high[:, 0].min() >= 10 and high[:, 0].max() <= 20
    chosen, _ = dreams(num=200, start="anywhere").reset(seed=0)
    np.testing.assert_array_equal(chosen, high)


def test_a_dream_ends_where_cont_falls_below_a_half() -> None:
    envs = dreams(Toy(end=1.0), autoreset_mode=DISABLED)
    envs.reset(options={"start": at(0, 0.5, 1)})
    _, _, term, trunc, _ = envs.step(moves(1, 1, 0))
    assert term.tolist() == [False, True, False] and not trunc.any()


def test_a_dream_is_cut_at_its_horizon() -> None:
    envs = dreams(horizon=3, autoreset_mode=DISABLED)
    envs.reset(seed=0)
    cut = [envs.step(moves(0, 0, 0))[2:4] for _ in range(3)]
    assert [trunc.tolist() for _, trunc in cut] == [[False] * 3, [False] * 3, [True] * 3]
    assert not any(term.any() for term, _ in cut)


def test_a_dream_is_cut_after_n_steps_without_a_positive_reward() -> None:
    envs = dreams(stall=2, autoreset_mode=DISABLED)
    envs.reset(seed=0)
    rewards = [(1, 0, -1), (-1, 0, 0.5), (0, 1, 0), (1, 1, -1), (1, 1, 1)]
    steps = [envs.step(moves(*rew)) for rew in rewards]
    assert [trunc.tolist() for *_, trunc, _ in steps] == [
        [False, False, False],
        [False, True, False],
        [True, True, False],
        [True, True, True],
        [True, True, True],
    ]
    assert [rew.tolist() for _, rew, *_ in steps] == [[1, 0, -1], [-1, 0, 0.5], [0, 0, 0], [0, 0, -1], [0, 0, 0]]
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    assert [envs.step(moves(0, 0, 0))[3][0] for _ in range(3)] == [False, True, True]


def test_an_end_on_the_last_step_is_both_terminated_and_truncated() -> None:
    env = DreamEnv(Toy(end=1.0), toy_starts(), horizon=1)
    env.reset(options={"start": at(1)})
    assert env.step(np.array([1.0]))[2:4] == (True, True)


def test_temperature_scales_the_spread_and_deterministic_has_none() -> None:
    def spread(**kwargs: Any) -> float:
        envs = dreams(Toy(noise=1.0), 2000, **kwargs)
        envs.reset(seed=0, options={"start": at(*[0] * 2000)})
        return float(envs.step(np.zeros((2000, 1), np.float32))[0][:, 0].std())

    assert spread() == pytest.approx(1, abs=0.05)
    assert spread(temperature=4.0) == pytest.approx(2, abs=0.1)
    assert spread(deterministic=True) == 0


# Autoreset


def test_same_step_resets_ended_rows_in_place_and_shows_what_they_ended_with() -> None:
    envs = dreams(Toy(end=5.0), autoreset_mode=SAME)
    envs.reset(seed=0, options={"start": at(0, 5, 2)})
    obs, rew, term, _, info = envs.step(moves(1, 1, 1))
    assert term.tolist() == [False, True, False] and rew.tolist() == [1, 1, 1]
    assert obs[[0, 2]].tolist() == [[1, 1], [3, 1]] and -1 <= obs[1, 0] <= 1
    assert info["final_obs"][1].tolist() == [6, 1] and info["final_obs"][0] is None
    for name in ("_final_obs", "_final_info"):
        assert info[name].tolist() == [False, True, False]
    assert info["final_info"] == {}
    after = envs.step(moves(0.5, 0.5, 0.5))
    assert after[0][1, 0] == pytest.approx(obs[1, 0] + 0.5) and after[4] == {}


def test_next_step_opens_the_episode_one_step_later() -> None:
    envs = dreams(Toy(end=5.0), autoreset_mode=AutoresetMode.NEXT_STEP)
    envs.reset(seed=0, options={"start": at(0, 5, 2)})
    obs, _, term, _, info = envs.step(moves(1, 1, 1))
    assert obs[1].tolist() == [6, 1] and term[1] and info == {}
    obs, rew, term, _, _ = envs.step(moves(1, 1, 1))
    assert rew.tolist() == [1, 0, 1] and not term.any() and -1 <= obs[1, 0] <= 1 and obs[0, 0] == 2


def test_disabled_holds_ended_rows_until_the_mask_resets_them() -> None:
    envs = dreams(Toy(end=5.0), autoreset_mode=DISABLED, horizon=9)
    envs.reset(seed=0, options={"start": at(0, 5, 2)})
    first = envs.step(moves(1, 1, 1))
    second = envs.step(moves(1, 1, 1))
    assert first[0][1].tolist() == second[0][1].tolist() == [6, 1]
    assert second[1].tolist() == [1, 0, 1] and second[2].tolist() == [False, True, False]
    obs, _ = envs.reset(options={"reset_mask": np.array([False, True, False])})
    assert obs[[0, 2]].tolist() == [[2, 1], [4, 1]] and -1 <= obs[1, 0] <= 1
    assert not envs.step(moves(0, 0, 0))[2].any()


@pytest.mark.parametrize(("mode", "rows"), [(DISABLED, [3, 2, 2, 1, 1]), (NEXT, [3, 2, 3, 2, 3]), (SAME, [3] * 5)])
def test_rows_that_ended_are_not_dreamed_on(mode: AutoresetMode, rows: list[int]) -> None:
    class Counting(Toy):
        def step(self, latent: Latent, act: torch.Tensor, **how: Any) -> Step:
            dreamed.append(len(act))
            return super().step(latent, act, **how)

    dreamed: list[int] = []
    envs = dreams(Counting(noise=0.1, end=5.0), autoreset_mode=mode)
    envs.reset(seed=0, options={"start": at(4.5, 0.5, 2.5)})
    for _ in range(5):
        envs.step(moves(1, 1, 1))
    assert dreamed == rows
    assert envs.steps == sum(rows)


def test_a_row_dreams_the_same_whether_its_neighbours_have_ended() -> None:
    def follow(*starts: float) -> np.ndarray:
        envs = dreams(Toy(noise=0.1, end=5.0), autoreset_mode=DISABLED)
        envs.reset(seed=0, options={"start": at(*starts)})
        return np.stack([envs.step(moves(0.5, 0.5, 0.1))[0][2] for _ in range(9)])

    np.testing.assert_array_equal(follow(5, 3, 0), follow(0, 0, 0))


def test_a_row_s_next_dream_does_not_depend_on_how_long_it_waited_for_it() -> None:
    def next_dream(waits: int) -> list[float]:
        envs = dreams(Toy(noise=0.1, end=5.0), 2, autoreset_mode=DISABLED)
        envs.reset(seed=0, options={"start": at(0, 5)})
        for _ in range(waits):
            envs.step(moves(0, 1))
        envs.reset(options={"reset_mask": np.array([False, True])})
        return [float(envs.step(moves(0, 0))[0][1, 0]) for _ in range(5)]

    assert next_dream(1) == next_dream(64) == next_dream(2100)


def test_the_horizon_counts_each_row_s_own_steps() -> None:
    envs = dreams(horizon=3, autoreset_mode=DISABLED)
    envs.reset(seed=0)
    envs.step(moves(0, 0, 0))
    envs.reset(options={"reset_mask": np.array([True, False, False])})
    cut = [envs.step(moves(0, 0, 0))[3].tolist() for _ in range(4)]
    assert cut == [[False] * 3, [False, True, True], [True] * 3, [True] * 3]


# Seeds


def test_the_same_seed_and_actions_give_the_same_dream_and_others_another() -> None:
    def play(seed: int) -> np.ndarray:
        envs = dreams(Toy(noise=0.3))
        first, _ = envs.reset(seed=seed)
        return np.stack([first, *(envs.step(moves(0.1, 0.2, 0.3))[0] for _ in range(5))])

    np.testing.assert_array_equal(play(3), play(3))
    assert (play(3) != play(4)).any()


def test_row_i_seeded_s_is_the_single_dream_seeded_s_plus_i(model: str) -> None:
    net, artifact = load_model(model)
    kwargs = {"starts": load_starts(artifact), "obs": "latent", "horizon": 7}
    envs = DreamVectorEnv(net, num_envs=5, **kwargs)
    envs.action_space.seed(0)
    acts = [envs.action_space.sample() for _ in range(20)]
    many = [envs.reset(seed=10)[0], *(envs.step(act)[0] for act in acts)]
    for row in (0, 4):
        env = DreamEnv(net, **kwargs)
        one = [env.reset(seed=10 + row)[0]]
        for act in acts:
            obs, _, term, trunc, _ = env.step(act[row])
            one.append(env.reset()[0] if term or trunc else obs)
        np.testing.assert_allclose(np.stack(many)[:, row], one, atol=1e-5)


def test_seeds_may_be_listed_and_none_continues() -> None:
    envs, other = dreams(Toy(noise=0.3)), dreams(Toy(noise=0.3))
    a, _ = envs.reset(seed=[5, 9, 7])
    b, _ = other.reset(seed=5)
    assert (a == b).all(1).tolist() == [True, False, True]
    c, _ = envs.reset(seed=[None, 6, None])
    d, _ = other.reset()
    assert (c[[0, 2]] == d[[0, 2]]).all() and c[1].tolist() == b[1].tolist()


# What belongs to whom


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("obs", ["pixels", "latent"])
def test_writing_in_what_was_given_does_not_change_the_dream(mode: AutoresetMode, obs: str) -> None:
    envs = dreams(Toy(noise=0.1, end=2.0), autoreset_mode=mode, obs=obs, horizon=4)
    plain = dreams(Toy(noise=0.1, end=2.0), autoreset_mode=mode, obs=obs, horizon=4)
    envs.reset(seed=0)[0][:] = 77
    plain.reset(seed=0)
    for _ in range(12):
        got, want = envs.step(moves(0.5, 0.5, 0.5)), plain.step(moves(0.5, 0.5, 0.5))
        for a, b in zip(got[:4], want[:4], strict=True):
            np.testing.assert_array_equal(a, b)
            a[...] = True


def test_a_start_that_was_given_is_not_written_in() -> None:
    start = at(0, 1, 2)
    envs = dreams()
    envs.reset(options={"start": start})[0][:] = 77
    envs.step(moves(1, 1, 1))
    assert start["x"][:, 0].tolist() == [0, 1, 2]


# The official checkers


TOYS = [Toy(noise=0.1, pixels=True), Toy(noise=0.1), Toy(pixels=True, act_space=spaces.Discrete(3))]


@pytest.mark.parametrize("toy", TOYS, ids=["pixels", "vectors", "choices"])
@pytest.mark.parametrize("obs", ["pixels", "latent"])
def test_the_official_checkers_pass_without_a_warning(toy: Toy, obs: str) -> None:
    spec = gym.envs.registration.EnvSpec("Toy-v0", functools.partial(DreamEnv, toy, toy_starts()))
    env = gym.make(spec, obs=obs).unwrapped
    check_env(env)  # Makes and renders every mode.
    check_env_sb3(env)


@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric:UserWarning")  # CarRacing's own pedals.
@pytest.mark.parametrize("obs", ["pixels", "latent"])
def test_the_official_checkers_pass_a_made_dream(model: str, obs: str) -> None:
    env = gym.make("Dream-v0", model=model, obs=obs)
    check_env(env.unwrapped)
    check_env_sb3(env)


def test_videos_and_statistics_of_a_dream(model: str, tmp_path: Path) -> None:
    env = gym.make("Dream-v0", model=model, obs="latent", horizon=5, render_mode="rgb_array")
    env = RecordEpisodeStatistics(RecordVideo(env, str(tmp_path / "one"), episode_trigger=lambda _: True))
    env.reset(seed=0)
    steps = [env.step(env.action_space.sample()) for _ in range(5)]
    assert steps[-1][3] and steps[-1][4]["episode"]["l"] == 5
    assert steps[-1][4]["episode"]["r"] == pytest.approx(sum(step[1] for step in steps))
    env.close()
    assert [path.suffix for path in (tmp_path / "one").iterdir()] == [".mp4"]


@pytest.mark.parametrize("mode", ["NEXT_STEP", "DISABLED"])
def test_videos_and_statistics_of_a_vector_of_dreams(model: str, mode: str, tmp_path: Path) -> None:
    envs = gym.make_vec("Dream-v0", 2, model=model, horizon=5, render_mode="rgb_array", autoreset_mode=mode)
    envs = vector_wrappers.RecordVideo(envs, str(tmp_path / mode), episode_trigger=lambda _: True)
    envs = vector_wrappers.RecordEpisodeStatistics(envs)
    envs.reset(seed=0)
    steps = [envs.step(envs.action_space.sample()) for _ in range(5)]
    assert steps[-1][4]["episode"]["l"].tolist() == [5, 5]
    np.testing.assert_allclose(steps[-1][4]["episode"]["r"], sum(step[1] for step in steps))
    envs.close()
    assert [path.suffix for path in (tmp_path / mode).iterdir()] == [".mp4"]


def test_statistics_of_a_vector_that_resets_in_the_same_step() -> None:
    envs = vector_wrappers.RecordEpisodeStatistics(dreams(horizon=3, autoreset_mode=SAME))
    envs.reset(seed=0)
    infos = [envs.step(moves(0.5, 1, 0))[4] for _ in range(6)]
    assert infos[2]["episode"]["r"].tolist() == infos[5]["episode"]["r"].tolist() == [1.5, 3, 0]


# Rendering


def test_frames_are_the_decoded_rows() -> None:
    envs = dreams(Toy(pixels=True), render_mode="rgb_array", obs="latent")
    envs.reset(options={"start": at(0, 5, -5)})
    frames = envs.render()
    assert isinstance(frames, tuple) and [int(frame[0, 0, 0]) for frame in frames] == [100, 105, 95]
    assert frames[0].shape == (40, 40, 3) and frames[0].dtype == np.uint8
    assert dreams(Toy(pixels=True)).render() is None


def test_a_window_shows_the_dream() -> None:
    pygame = pytest.importorskip("pygame")
    env = DreamEnv(Toy(pixels=True), toy_starts(), render_mode="human")
    env.metadata = {**env.metadata, "render_fps": 1000}
    env.reset(options={"start": at(50)})
    assert pygame.display.get_surface().get_size() == (480, 480)
    assert pygame.display.get_surface().get_at((5, 5))[:3] == (150, 150, 150)
    env.step(np.array([1.0]))
    assert pygame.display.get_surface().get_at((5, 5))[:3] == (151, 151, 151)
    assert env.render() is None
    env.close()
    env.close()
    assert not pygame.display.get_init()


def test_no_display_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    env = DreamEnv(Toy(pixels=True), toy_starts(), render_mode="human")
    with pytest.raises(RuntimeError, match="needs a display, got none .*use render_mode='rgb_array' with RecordVideo"):
        env.reset()


class Pole(Toy):
    """Sees x as the position of a cart that stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.obs_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def decode(self, latent: Latent) -> torch.Tensor:
        return torch.nn.functional.pad(latent["x"][:, :1], (0, 3))


def test_dreams_of_vectors_are_drawn_as_their_environment_or_as_bars() -> None:
    sizes = {"CartPole-v1": (400, 600, 3), None: (400, 400, 3)}
    for drawing, size in sizes.items():
        envs = dreams(Pole(), render_mode="rgb_array", drawing=drawing)
        envs.reset(options={"start": at(0, 1, 1)})
        frames = envs.render()
        assert [frame.shape for frame in frames] == [size] * 3
        np.testing.assert_array_equal(frames[1], frames[2])
        assert (frames[0] != frames[1]).any()


def test_a_dream_reports_what_its_frames_are() -> None:
    cases = [(Pole(), "CartPole-v1", "drawing"), (Pole(), None, "bars"), (Toy(pixels=True), None, "decoded")]
    for model, drawing, word in cases:
        for env in (dreams(model, drawing=drawing), DreamEnv(model, toy_starts(), drawing=drawing)):
            assert env.metadata["drawn"].split()[0] == word


def test_a_window_shows_a_dream_of_vectors() -> None:
    pygame = pytest.importorskip("pygame")
    env = DreamEnv(Pole(), toy_starts(), render_mode="human", drawing="CartPole-v1", fps=1000)
    env.reset(options={"start": at(0)})
    assert pygame.display.get_surface().get_size() == (600, 400)
    assert pygame.display.get_surface().get_at((300, 300))[:3] == (0, 0, 0)  # The cart.
    env.close()


def test_a_saved_dream_of_vectors_is_recorded_as_its_environment(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", RealSpec("CartPole-v1"), horizon=5)
    env = gym.make("Dream-v0", model=model, render_mode="rgb_array")
    assert env.metadata["drawn"] == "drawing of the observation"
    env = RecordVideo(env, str(tmp_path / "film"), episode_trigger=lambda _: True)
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
    assert env.render().shape == (400, 600, 3)
    env.close()
    assert [path.suffix for path in (tmp_path / "film").iterdir()] == [".mp4"]


# Precision


def test_bf16_dreams_stay_close_to_fp32(model: str, native_bf16: None) -> None:
    net, artifact = load_model(model)
    runs = []
    for precision in ("fp32", "bf16"):
        envs = DreamVectorEnv(net, load_starts(artifact), 8, obs="latent", precision=precision, deterministic=True)
        envs.reset(seed=0)
        runs.append([envs.step(np.full((8, 3), 0.5, np.float32)) for _ in range(5)])
        assert runs[-1][0][0].dtype == np.float32 and all(leaf.dtype == torch.float32 for leaf in envs.latent.values())
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=0.1)
        np.testing.assert_allclose(a[1], b[1], atol=0.05)
    assert (runs[0][-1][0] != runs[1][-1][0]).any()


# Bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num": 0}, "num_envs must be at least 1, got 0"),
        ({"obs": "state"}, "obs must be 'pixels' or 'latent', got 'state'"),
        ({"temperature": 0}, r"DreamConfig.temperature must be a number above 0 \(deterministic=True .*, got 0"),
        ({"temperature": -1.0}, "temperature must be a number above 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"horizon": 0}, "horizon must be a whole number of at least 1, or None, got 0"),
        ({"stall": 0}, "stall must be a whole number of at least 1, or None, got 0"),
        ({"start": "middle"}, r"start must be one of \['anywhere', 'begin'\], got 'middle'"),
        ({"precision": "fp16"}, "precision must be 'fp32', 'bf16' or 'auto', got 'fp16'"),
        (
            {"autoreset_mode": "Never"},
            r"autoreset_mode must be one of \['NEXT_STEP', .*, got 'Never'",
        ),
        (
            {"model": Toy(pixels=True), "render_mode": "ansi"},
            r"render_mode must be None or one of \['rgb_array'\], got",
        ),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dreams(**kwargs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"begin": 1}, r"unknown reset options \['begin'\]; known are 'start' and 'reset_mask'"),
        ({"start": "middle"}, r"start must be one of \['anywhere', 'begin'\] or a latent, got 'middle'"),
        ({"start": 3}, r"start must be a latent, a dict of tensors \['x'\], got 3"),
        ({"start": {"y": torch.zeros(3, 2)}}, r"start must be a latent, a dict of tensors \['x'\], got \['y'\]"),
        ({"start": at(1)}, r"start\['x'\] must be \(3, 2\) with at least one row, got \(1, 2\)"),
        ({"reset_mask": np.array([1, 0, 0])}, r"reset_mask must be \(3,\) bool, got \(3,\) int64"),
        ({"reset_mask": np.array([True])}, r"reset_mask must be \(3,\) bool, got \(1,\) bool"),
        ({"reset_mask": np.zeros(3, bool)}, "reset_mask selects no row"),
    ],
)
def test_wrong_reset_options_are_named_and_lose_nothing(options: dict[str, Any], message: str) -> None:
    envs = dreams(Toy(noise=0.1))
    before, _ = envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.reset(seed=1, options=options)
    after = envs.step(moves(0, 0, 0))[0]
    assert np.abs(after - before).max() < 1


def test_the_first_reset_must_take_all_rows() -> None:
    with pytest.raises(ValueError, match="the first reset must reset every row; omit reset_mask"):
        dreams().reset(options={"reset_mask": np.array([True, False, True])})


def test_seeds_of_another_number_of_rows_are_named() -> None:
    with pytest.raises(ValueError, match="seed must be one int or 3 of them, got 2"):
        dreams().reset(seed=[1, 2])


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 1)), r"actions must be \(3, 1\) for Box.*, got \(2, 1\)"),
        (np.zeros(3), r"actions must be \(3, 1\) for Box.*, got \(3,\)"),
        (np.full((3, 1), "left"), "act must be numeric for Box.*, got dtype <U4"),
        (moves(0, np.nan, 0), "act must be finite for Box.*, got NaN or infinity; the policy has diverged"),
    ],
)
def test_wrong_actions_are_named_and_lose_nothing(actions: np.ndarray, message: str) -> None:
    envs = dreams()
    envs.reset(options={"start": at(0, 1, 2)})
    with pytest.raises(ValueError, match=message):
        envs.step(actions)
    assert envs.step(moves(0, 0, 0))[0][:, 0].tolist() == [0, 1, 2]


def test_a_choice_that_does_not_exist_is_named() -> None:
    env = DreamEnv(Toy(act_space=spaces.Discrete(3)), toy_starts())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"act must be in Discrete\(3\), got values from 3 to 3"):
        env.step(3)


@pytest.mark.parametrize("call", ["step", "render"])
def test_a_step_before_the_first_reset_is_named(call: str) -> None:
    envs = dreams(Toy(pixels=True), render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before step\(\) or render\(\)"):
        envs.step(moves(0, 0, 0)) if call == "step" else envs.render()


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (
            {"begin": {"x": torch.zeros(0, 2)}},
            r"starts\['begin'\]\['x'\] must be .* at least one row, got \(0, 2\)",
        ),
        ({"begin": {"x": torch.zeros(4, 3)}}, r"starts\['begin'\]\['x'\] must be \(4, 2\) .*, got \(4, 3\)"),
        ({"begin": {"h": torch.zeros(4, 2)}}, r"starts\['begin'\] must be a latent, a dict of tensors \['x'\]"),
    ],
)
def test_banks_that_do_not_fit_the_model_are_named(starts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DreamVectorEnv(Toy(), starts)


class Doubtful(Toy):
    """Members are apart by |x| of the moment before; where asked to, it draws its own ends: at odd steps of x."""

    members = 2

    def __init__(self, draws: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.draws = draws

    def step(self, latent: Latent, act: torch.Tensor, **kwargs: Any) -> Step:
        out = super().step(latent, act, **kwargs)
        end = out.latent["x"][:, 0] > 0.5 if self.draws else None
        return out._replace(end=end)

    def disagreement(self, latent: Latent, act: torch.Tensor, ahead: Latent) -> torch.Tensor:
        return latent["x"][:, 0].abs()


ZERO = {"begin": {"x": torch.zeros(1, 2)}}


def doubtful(**kwargs: Any) -> DreamVectorEnv:
    model = Doubtful(**kwargs.pop("model", {}))
    envs = DreamVectorEnv(model, ZERO, 2, autoreset_mode="disabled", **kwargs)
    envs.reset(seed=0)
    return envs


def test_pessimism_takes_the_disagreement_from_the_reward() -> None:
    envs = doubtful(pessimism=0.5)
    act = np.array([[1.0], [-1.0]], np.float32)
    rews = [envs.step(act)[1] for _ in range(3)]
    np.testing.assert_allclose(rews, [[1, -1], [0.5, -1.5], [0, -2]])


def test_disagreement_is_in_info_on_request() -> None:
    envs = doubtful(disagreement=True)
    act = np.array([[1.0], [-0.5]], np.float32)
    envs.step(act)
    *_, info = envs.step(act)
    np.testing.assert_allclose(info["disagreement"], [1, 0.5])
    assert info["_disagreement"].all()
    env = DreamEnv(Doubtful(), ZERO, disagreement=True)
    env.reset(seed=0)
    assert env.step(np.ones(1, np.float32))[4] == {"disagreement": 0.0}


def test_disagreement_is_not_computed_unless_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> torch.Tensor:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(Doubtful, "disagreement", refuse)
    envs, act = doubtful(), np.ones((2, 1), np.float32)
    assert envs.step(act)[4] == {}
    for name, value in [("disagreement", True), ("pessimism", 0.5), ("max_disagreement", 9.0)]:
        envs = doubtful()
        setattr(envs, name, value)  # As SB3's `set_attr` does in the middle of a training run.
        with pytest.raises(AssertionError, match="nobody asked"):
            envs.step(act)


def test_a_dream_ends_where_the_members_disagree_too_much() -> None:
    envs = doubtful(max_disagreement=0.8)
    act = np.array([[1.0], [0.5]], np.float32)
    terms = [envs.step(act)[2] for _ in range(3)]
    np.testing.assert_array_equal(terms, [[False, False], [True, False], [True, True]])


def test_a_row_that_has_ended_reports_no_disagreement() -> None:
    envs = doubtful(max_disagreement=0.8)
    act = np.array([[1.0], [0.1]], np.float32)
    for _ in range(3):
        *_, info = envs.step(act)
    np.testing.assert_array_equal(info["_disagreement"], [False, True])
    assert info["disagreement"][0] == 0


def test_ends_that_the_model_draws_count_and_not_the_cut_off() -> None:
    envs = doubtful(model={"draws": True, "end": -1e9})  # cont is 0 everywhere.
    assert not envs.step(np.array([[0.4], [0.3]], np.float32))[2].any()
    np.testing.assert_array_equal(envs.step(np.array([[0.4], [0.1]], np.float32))[2], [True, False])


def test_the_cut_off_moves_where_a_dream_ends() -> None:
    class Unsure(Toy):
        def step(self, latent: Latent, act: torch.Tensor, **kwargs: Any) -> Step:
            return super().step(latent, act, **kwargs)._replace(cont=torch.full((len(act),), 0.4))

    for cut_off, ends in ((0.5, True), (0.3, False)):
        envs = DreamVectorEnv(Unsure(), ZERO, 1, cut_off=cut_off)
        envs.reset(seed=0)
        assert envs.step(np.zeros((1, 1), np.float32))[2][0] == ends


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cut_off": 0.0}, "cut_off must be a number above 0 and below 1, got 0.0"),
        ({"pessimism": -1.0}, "pessimism must be a number of at least 0, got -1.0"),
        ({"max_disagreement": 0.0}, "max_disagreement must be a number above 0, or None, got 0.0"),
    ],
)
def test_limits_out_of_range_are_rejected(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DreamVectorEnv(Toy(), ZERO, 1, **kwargs)


def test_a_config_says_how_a_dream_is_dreamed_and_keywords_change_it() -> None:
    dream = DreamConfig(temperature=0.5, horizon=7, stall=3, cut_off=0.2)
    envs = DreamVectorEnv(Toy(), ZERO, 2, dream, temperature=1.5)
    assert (envs.temperature, envs.horizon, envs.stall, envs.cut_off) == (1.5, 7, 3, 0.2)
    with pytest.raises(TypeError, match="tempeture"):
        DreamVectorEnv(Toy(), ZERO, 2, dream, tempeture=1.5)


@pytest.mark.parametrize("asks", [{"pessimism": 1.0}, {"max_disagreement": 1.0}, {"disagreement": True}])
def test_what_asks_all_members_needs_an_ensemble(asks: dict[str, Any]) -> None:
    message = "need an ensemble of at least 2 members, Toy is a single model"
    with pytest.raises(ValueError, match=message):
        DreamVectorEnv(Toy(), ZERO, 1, **asks)
    envs = DreamVectorEnv(Toy(), ZERO, 1)
    envs.reset(seed=0)
    for name, value in asks.items():
        setattr(envs, name, value)
    with pytest.raises(ValueError, match=message):
        envs.step(np.zeros((1, 1), np.float32))


def test_settings_of_a_single_dream_change_through_wrappers() -> None:
    env = gym.wrappers.TimeLimit(DreamEnv(Toy(noise=1.0), toy_starts(), horizon=5), 9)
    env.set_wrapper_attr("temperature", 0.25)
    env.set_wrapper_attr("horizon", 2)
    dream = env.unwrapped
    assert dream.temperature == dream.envs.temperature == 0.25
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(2)] == [False, True]
    with pytest.raises(AttributeError, match="'DreamEnv' object has no attribute 'temprature'"):
        _ = dream.temprature


def test_a_pickled_dream_is_the_same_dream() -> None:
    env = DreamEnv(Toy(noise=1.0), toy_starts())
    env.reset(seed=3)
    sent = pickle.loads(pickle.dumps(env))
    for _ in range(5):
        np.testing.assert_array_equal(sent.step(np.zeros(1, np.float32))[0], env.step(np.zeros(1, np.float32))[0])


def test_seeds_may_be_integers_of_numpy() -> None:
    envs = DreamVectorEnv(Toy(), toy_starts(), 3)
    first, _ = envs.reset(seed=3)
    np.testing.assert_array_equal(envs.reset(seed=np.int64(3))[0], first)
    np.testing.assert_array_equal(envs.reset(seed=list(np.arange(3, 6)))[0], first)


def test_gymnasium_collects_the_frames_of_a_dream() -> None:
    env = gym.make("Dream-CartPole-v0", render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(0)
    assert len(env.render()) == 2
