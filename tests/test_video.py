"""Films: real and dream of the same moment, streamed into a file that players can read."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from tiny import save_tiny
from torch import Tensor
from toy_env import Echo

from policies.policy import RandomPolicy
from wm_agents import video
from wm_agents.pretrained import load_model, load_policy
from wm_agents.video import Frame, Pair, compose, real_and_dream, record, record_real, write_video
from wm_envs.dream import DreamConfig
from wm_envs.real import make_real
from wm_envs.registry import RealSpec
from wm_envs.world_model import Latent, Step

LENGTH = 12
ECHO = RealSpec("Echo-v0", {"pixels": True, "length": LENGTH})


class EchoModel:
    """Knows Echo exactly: the latent is the step count and the last action, both seen in the frame."""

    obs_space = Echo(pixels=True).observation_space
    act_space = Echo().action_space
    feat_dim = 2
    device = torch.device("cpu")

    def __init__(self, ends_at: int = 99, wrong_by: int = 0) -> None:
        self.ends_at, self.wrong_by = ends_at, wrong_by

    def initial(self, num: int) -> Latent:
        return {"t": torch.zeros(num), "last": torch.zeros(num)}

    def encode(
        self, obs: Tensor, latent: Latent | None = None, act: Tensor | None = None, first: Tensor | None = None
    ) -> Latent:
        return {"t": obs[:, 0, 0, 0].float(), "last": obs[:, 0, 0, 1].float() / 127 - 1}

    def step(self, latent: Latent, act: Tensor, *, temperature: float = 1.0, generator: object = None) -> Step:
        self.temperature = temperature
        t = latent["t"] + 1
        return Step({"t": t, "last": act[:, 0]}, act[:, 0], (t != self.ends_at).float())

    def decode(self, latent: Latent) -> Tensor:
        obs = torch.zeros(len(latent["t"]), 16, 16, 3)
        obs[..., 0] = (latent["t"] + self.wrong_by)[:, None, None]
        obs[..., 1] = torch.round(127 * (latent["last"] + 1))[:, None, None]
        return obs.to(torch.uint8)

    def feat(self, latent: Latent) -> Tensor:
        return torch.stack([latent["t"], latent["last"]], dim=1)


class VectorEchoModel(EchoModel):
    """The same of Echo's vectors."""

    obs_space = Echo().observation_space

    def encode(self, obs: Tensor, *args: object, **kwargs: object) -> Latent:
        return {"t": obs[:, 0], "last": obs[:, 1]}

    def decode(self, latent: Latent) -> Tensor:
        return torch.stack([latent["t"], latent["last"]], dim=1)


class Shown(Echo):
    """Echo that renders itself: gray of 10 times the step, on one canvas that it draws over."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    broken = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.canvas = np.zeros((40, 80, 3), np.uint8)

    def render(self) -> Frame:
        if self.broken:
            raise ImportError("no such library")
        self.canvas[:] = 10 * self.t
        return self.canvas


if "Shown-v0" not in gym.registry:
    gym.register("Shown-v0", entry_point=Shown)
SHOWN = RealSpec("Shown-v0", {"length": LENGTH})
VECTORS = RealSpec("Echo-v0", {"length": LENGTH})


def pairs_of(
    model: EchoModel, resync_every: int | None = None, spec: RealSpec = ECHO, mode: str | None = None
) -> list[Pair]:
    envs = SyncVectorEnv([partial(make_real, spec, mode)], autoreset_mode=AutoresetMode.DISABLED)
    pairs = list(real_and_dream(envs, model, RandomPolicy(model.act_space), seed=3, resync_every=resync_every))
    envs.close()
    return pairs


def read(path: Path) -> tuple[float, str, list[Frame]]:
    """Frames a second, codec and frames of an mp4, by a reader that is not the writer's."""
    film = cv2.VideoCapture(str(path))
    frames = []
    while (got := film.read())[0]:
        frames.append(got[1][..., ::-1])
    codec = int(film.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()
    fps = film.get(cv2.CAP_PROP_FPS)
    film.release()
    return fps, codec, frames


def gray(num: int, shape: tuple[int, ...] = (32, 48, 3)) -> Iterator[Frame]:
    return (np.full(shape, 3 * i % 256, np.uint8) for i in range(num))


@pytest.mark.parametrize("resync_every", [None, 1, 5])
def test_an_exact_model_dreams_every_real_frame_at_its_own_moment(resync_every: int | None) -> None:
    pairs = pairs_of(EchoModel(), resync_every)
    assert [pair.real[0, 0, 0] for pair in pairs] == list(range(LENGTH + 1))  # The first and the last frame, too.
    for pair in pairs:
        np.testing.assert_array_equal(pair.real, pair.dream)
        assert pair.dream_return == pytest.approx(pair.real_return, abs=1e-5)
    assert len({tuple(pair.real[0, 0]) for pair in pairs}) == LENGTH + 1


def test_the_dream_starts_from_the_real_frame_and_again_at_every_resync() -> None:
    assert [pair.age for pair in pairs_of(EchoModel())] == list(range(LENGTH + 1))
    assert [pair.age for pair in pairs_of(EchoModel(), 5)] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2]


def test_a_resync_takes_over_what_was_really_earned() -> None:
    class Generous(EchoModel):
        def step(self, *args, **kwargs) -> Step:
            return super().step(*args, **kwargs)._replace(rew=torch.full((1,), 100.0))

    pairs = pairs_of(Generous(), 5)
    assert pairs[4].dream_return == pytest.approx(400)
    assert pairs[5].dream_return == pairs[5].real_return


def test_a_dream_that_ends_earns_no_more_until_it_starts_again() -> None:
    pairs = pairs_of(EchoModel(ends_at=3), 8)
    assert [pair.over for pair in pairs] == [i in range(3, 8) for i in range(LENGTH + 1)]
    assert len({pair.dream_return for pair in pairs[3:8]}) == 1


def test_the_consumer_of_the_pairs_stays_outside_inference_mode() -> None:
    envs = SyncVectorEnv([partial(make_real, ECHO)], autoreset_mode=AutoresetMode.DISABLED)
    for _ in real_and_dream(envs, EchoModel(), RandomPolicy(EchoModel.act_space), seed=0):
        assert not torch.is_inference_mode_enabled()
    envs.close()


def test_a_recording_can_be_read_back_and_shows_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Echo, "metadata", {"render_modes": [], "render_fps": 20})
    path = tmp_path / "films" / "echo.mp4"
    model = EchoModel(wrong_by=100)
    num = record(path, ECHO, model, RandomPolicy(model.act_space), DreamConfig(temperature=1.5), seed=0)
    assert model.temperature == 1.5
    fps, codec, frames = read(path)
    assert num == len(frames) == LENGTH + 1
    assert (fps, codec) == (20, "h264")
    pair = Pair(np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 200, np.uint8), 0, 0, 0, False)
    assert frames[0].shape == compose(pair).shape == (384 + 28, 2 * 384, 3)
    reds = [[int(half[100, 100, 0]) for half in np.split(frame, 2, axis=1)] for frame in frames]
    assert all(abs(dream - real - 100) < 20 for real, dream in reds), reds
    assert [p.name for p in path.parent.iterdir()] == ["echo.mp4"]


def test_a_video_runs_at_the_real_speed_when_actions_are_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "metadata", {"render_modes": [], "render_fps": 20})
    spec = replace(ECHO, action_repeat=4)
    assert record(tmp_path / "echo.mp4", spec, EchoModel(), RandomPolicy(EchoModel.act_space), seed=0) == 4
    assert read(tmp_path / "echo.mp4")[0] == 5


@pytest.mark.parametrize("shape", [(16, 16, 3), (96, 96, 3), (210, 160, 3), (101, 99, 3), (400, 600, 3)])
def test_panels_keep_their_shape_and_have_even_sides(shape: tuple[int, int, int]) -> None:
    black = np.zeros(shape, np.uint8)
    height, width, _ = compose(Pair(black, black + 255, -12.3, 45.6, 50, True)).shape
    assert height % 2 == 0 and width % 2 == 0
    assert (height - 28) / (width / 2) == shape[0] / shape[1]


def test_frames_are_streamed(tmp_path: Path) -> None:
    alive: weakref.WeakSet = weakref.WeakSet()

    class Tracked(np.ndarray):
        """Can be put in a set, by identity."""

        __hash__ = object.__hash__  # type: ignore[assignment]
        __eq__ = object.__eq__  # type: ignore[assignment]

    def frames() -> Iterator[Frame]:
        for i in range(2000):
            assert len(alive) <= 3, f"{len(alive)} frames are held at frame {i}"
            frame = np.full((16, 16, 3), i % 256, np.uint8).view(Tracked)
            alive.add(frame)
            yield frame

    assert write_video(tmp_path / "long.mp4", frames(), 50) == 2000
    assert len(read(tmp_path / "long.mp4")[2]) == 2000


def test_nothing_is_left_when_the_frames_break_off(tmp_path: Path) -> None:
    def frames() -> Iterator[Frame]:
        yield from gray(20)
        raise ArithmeticError("the model broke")

    with pytest.raises(ArithmeticError, match="the model broke"):
        write_video(tmp_path / "film.mp4", frames(), 30)
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_is_there_outlives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_video(path, gray(3), 30)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"frame 1 must be \(32, 48, 3\) as before, got \(16, 16, 3\)"):
        write_video(path, iter([*gray(1), *gray(1, (16, 16, 3))]), 30)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_frame_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "film.mp4", iter([]), 30)


def test_a_failing_ffmpeg_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"film\.mp4: ffmpeg .*"):
        write_video(tmp_path / "film.mp4", gray(3), 0)  # ffmpeg refuses this speed.
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_frames_own_stays_what_it_is(tmp_path: Path) -> None:
    def frames() -> Iterator[Frame]:
        yield from gray(2)
        raise FileNotFoundError("no such level")

    with pytest.raises(FileNotFoundError, match="^no such level$"):
        write_video(tmp_path / "film.mp4", frames(), 30)


def test_an_ffmpeg_that_dies_at_the_end_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(FFMPEG_VideoWriter):
        def close(self) -> None:
            self.proc.stdin.flush()
            self.proc.kill()
            super().close()

    monkeypatch.setattr(video, "FFMPEG_VideoWriter", Dying)
    with pytest.raises(OSError, match=r"film\.mp4: ffmpeg exited with status -9; check whether the disk is full"):
        write_video(tmp_path / "film.mp4", gray(3), 30)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_closed_when_the_model_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(EchoModel):
        def step(self, *args, **kwargs) -> Step:
            raise ArithmeticError("no next step")

    closed = []
    monkeypatch.setattr(Echo, "close", lambda self: closed.append(True), raising=False)
    with pytest.raises(ArithmeticError, match="no next step"):
        record(tmp_path / "film.mp4", ECHO, Broken(), RandomPolicy(EchoModel.act_space), seed=0)
    assert closed
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_resync_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resync_every must be at least 1 step, or None, got 0"):
        record(tmp_path / "film.mp4", ECHO, EchoModel(), RandomPolicy(EchoModel.act_space), seed=0, resync_every=0)


# Models of vectors, and the real environment alone


def test_drawings_of_a_dream_stand_beside_the_real_environments_own_rendering_of_the_same_moment() -> None:
    pairs = pairs_of(VectorEchoModel(), spec=SHOWN, mode="rgb_array")
    assert [pair.real[0, 0, 0] for pair in pairs] == [10 * t for t in range(LENGTH + 1)]
    for t, pair in enumerate(pairs):
        assert pair.drawn and pair.dream.shape == (400, 400, 3)
        # The first bar is the step count, bounds -100 and 100.
        assert (pair.dream[:200, 50] != 255).any(axis=-1).sum() == pytest.approx(2 * t, abs=2)


def test_real_vectors_without_a_rendering_are_drawn_too() -> None:
    for pair in pairs_of(VectorEchoModel(), spec=VECTORS):
        np.testing.assert_array_equal(pair.real, pair.dream)


def test_a_rendering_is_brought_to_the_height_of_the_drawing() -> None:
    real, dream = np.zeros((40, 80, 3), np.uint8), np.full((400, 400, 3), 255, np.uint8)
    both = compose(Pair(real, dream, 0, 0, 0, False, drawn=True))
    assert both.shape == (400 + 28, 800 + 400, 3)
    assert (both[200, :800] == 0).all() and (both[200, 800:] == 255).all()


def test_large_frames_with_even_sides_are_not_enlarged() -> None:
    large = np.zeros((400, 600, 3), np.uint8)
    assert compose(Pair(large, large, 0, 0, 0, False)).shape == (428, 1200, 3)


def test_a_dream_of_vectors_is_recorded_at_the_real_speed(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    num = record(path, SHOWN, VectorEchoModel(), RandomPolicy(EchoModel.act_space), seed=0)
    fps, _, frames = read(path)
    assert (num, len(frames), fps) == (LENGTH + 1, LENGTH + 1, 20)
    grays = [int(frame[200, 400, 0]) for frame in frames]
    np.testing.assert_allclose(grays, 10 * np.arange(LENGTH + 1), atol=4)


def test_a_saved_model_of_cart_pole_is_recorded(tmp_path: Path) -> None:
    spec = RealSpec("CartPole-v1", max_episode_steps=6)
    net, artifact = load_model(save_tiny(tmp_path / "model", spec))
    assert record(tmp_path / "film.mp4", spec, net, load_policy(net, artifact), seed=0) == 7
    frame = read(tmp_path / "film.mp4")[2][0]
    assert frame.shape == (428, 1200, 3)
    real, dream = frame[:400, :600].astype(int), frame[:400, 600:].astype(int)  # Of the same moment.
    assert (real < 128).any() and (np.abs(real - dream).max(axis=-1) > 64).mean() < 0.005


def test_the_real_environment_is_recorded_alone(tmp_path: Path) -> None:
    class Counts(RandomPolicy):
        def act(self, obs: np.ndarray) -> np.ndarray:
            seen.append(obs[0, 0])
            return super().act(obs)

    seen: list[float] = []
    assert record_real(tmp_path / "film.mp4", SHOWN, Counts(EchoModel.act_space), seed=0) == LENGTH + 1
    fps, codec, frames = read(tmp_path / "film.mp4")
    assert (fps, codec, frames[0].shape) == (20, "h264", (4 * 40 + 28, 4 * 80, 3))
    np.testing.assert_allclose([int(f[80, 80, 0]) for f in frames], 10 * np.arange(LENGTH + 1), atol=4)
    assert seen == list(range(LENGTH))  # It acts on observations, not on what is filmed.


def test_frames_keep_the_size_of_the_first_if_a_renderer_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shown, "render", lambda self: np.full((32 + 2 * self.t, 48, 3), 10 * self.t, np.uint8))
    assert record_real(tmp_path / "film.mp4", SHOWN, RandomPolicy(EchoModel.act_space), seed=0) == LENGTH + 1
    frames = read(tmp_path / "film.mp4")[2]
    assert {frame.shape for frame in frames} == {(8 * 32 + 28, 8 * 48, 3)}
    np.testing.assert_allclose([int(f[80, 80, 0]) for f in frames], 10 * np.arange(LENGTH + 1), atol=4)


def test_an_environment_that_renders_nothing_is_recorded_as_drawn(tmp_path: Path) -> None:
    assert record_real(tmp_path / "film.mp4", VECTORS, RandomPolicy(EchoModel.act_space), seed=0) == LENGTH + 1
    assert read(tmp_path / "film.mp4")[2][0].shape == (428, 400, 3)


def test_a_renderer_that_lacks_something_is_named_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shown, "broken", True)
    with pytest.warns(UserWarning, match="cannot render Shown-v0, so the video shows drawings instead: no such lib"):
        record_real(tmp_path / "film.mp4", SHOWN, RandomPolicy(EchoModel.act_space), seed=0)
    assert read(tmp_path / "film.mp4")[2][0].shape == (428, 400, 3)
