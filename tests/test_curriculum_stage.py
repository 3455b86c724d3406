"""Controllers of a curriculum at play: evaluations, films, the window, and what a warm start is worth."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import SPEC, save_tiny

from policies.play import EpisodePool, EpisodeResult, EpisodeTask
from wm_agents.curriculum import player as stage
from wm_agents.curriculum import show as watch
from wm_agents.curriculum import warm_start
from wm_agents.curriculum.config import CurriculumConfig
from wm_agents.curriculum.player import Stage
from wm_agents.curriculum.task_run import _copy_whole
from wm_agents.data.dataset import write_shard
from wm_agents.data.episode import Episode
from wm_agents.loops.recipes import ImproveConfig, seeded
from wm_agents.models.vmc import VMC, VMCConfig
from wm_agents.pretrained import load_model, load_policy, load_starts, save_model
from wm_agents.training.config import TrainingConfig
from wm_envs.real import make_real
from wm_envs.registry import RealSpec


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny(tmp_path_factory.mktemp("models") / "tiny"))


class Pool(EpisodePool):
    opened: list[Any] = []  # noqa: RUF012

    def __init__(self, spec: RealSpec, make_policy: Any, procs: int, count: Any = None) -> None:
        super().__init__(spec, make_policy, 0, count)
        self.opened.append(self)
        self.closed = False

    def play(self, jobs: Iterable[EpisodeTask]) -> Iterator[EpisodeResult]:
        yield from reversed([*super().play(jobs)])  # As they end, not as they were asked for.

    def close(self) -> None:
        self.closed = True


class Window:
    opened: list[Any] = []  # noqa: RUF012

    def __init__(self, fps: int) -> None:
        self.fps, self.frames, self.closed = fps, 0, False
        self.opened.append(self)

    def show(self, frame: Any) -> None:
        self.frames += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    Pool.opened, Window.opened = [], []
    monkeypatch.setattr(stage, "EpisodePool", Pool)
    monkeypatch.setattr(stage, "Window", Window)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def test_an_evaluation_plays_one_episode_a_seed_with_the_model_at_hand(tiny: Path, tmp_path: Path) -> None:
    still = tmp_path / "still"  # The same model with another controller, which does nothing.
    model, artifact = load_model(tiny)
    policy = load_policy(model, artifact)
    policy.weights[:] = 0
    save_model(still, model, SPEC, load_starts(artifact), horizon=6, card="", policy=policy)
    on = Stage(CurriculumConfig(procs=1))
    first, again = (on.play(SPEC, tiny, range(910_000, 910_003)) for _ in range(2))
    assert first == again and len(first.returns) == 3 and first.steps == 18
    assert first.returns[0] == on.play(SPEC, tiny, range(910_000, 910_001)).returns[0]
    assert on.play(SPEC, still, range(910_000, 910_003)).returns != first.returns
    assert len(Pool.opened) == 1  # The processes stay from one evaluation to the next.
    on.play(RealSpec("CarRacing-v3", size=32, action_repeat=4, max_episode_steps=5), tiny, range(910_000, 910_001))
    assert [pool.closed for pool in Pool.opened] == [True, False]
    on.close()
    assert [pool.closed for pool in Pool.opened] == [True, True]


def film_facts(path: Path) -> tuple[int, float]:
    reader = cv2.VideoCapture(str(path))
    facts = int(reader.get(cv2.CAP_PROP_FRAME_COUNT)), reader.get(cv2.CAP_PROP_FPS)
    reader.release()
    return facts


def test_videos_run_at_the_real_speed_unless_reported_otherwise(tiny: Path, tmp_path: Path) -> None:
    assert Stage(CurriculumConfig()).film(tiny, tmp_path / "a.mp4", 910_000) == 6  # Steps.
    Stage(CurriculumConfig(fps=30)).film(tiny, tmp_path / "b.mp4", 910_000)
    assert film_facts(tmp_path / "a.mp4") == (7, 12.5)  # 50 frames a second, four a step.
    assert film_facts(tmp_path / "b.mp4") == (7, 30.0)


def test_videos_end_after_the_most_frames(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST_FRAMES", 3)
    assert watch.film(tiny, tmp_path / "a.mp4", seed=910_000) == 3


def test_a_model_of_vectors_is_recorded_too(tmp_path: Path) -> None:
    pole = save_tiny(tmp_path / "pole", RealSpec("CartPole-v1", max_episode_steps=4))
    frames = watch.film(Path(pole), tmp_path / "a.mp4", seed=910_000)
    assert frames == film_facts(tmp_path / "a.mp4")[0] == 5


def test_nothing_is_shown_unless_it_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    assert Stage(CurriculumConfig()).show(tiny, 910_000, tmp_path / "watch.mp4") == 0
    assert not Window.opened and not (tmp_path / "watch.mp4").exists()


def test_one_window_is_for_the_whole_run(tiny: Path, tmp_path: Path) -> None:
    on = Stage(CurriculumConfig(visualize=True, eval_fps=90))
    for _ in range(2):
        assert on.show(tiny, 910_000, tmp_path / "watch.mp4") == 6
        on.leave()
    (window,) = Window.opened
    assert (window.fps, window.frames, window.closed) == (90, 14, False)
    on.close()
    assert window.closed


@pytest.mark.parametrize("flags", [{"window_reuse": False}, {"close_on_completion": True}])
def test_windows_can_be_closed_earlier(tiny: Path, tmp_path: Path, flags: dict[str, bool]) -> None:
    on = Stage(CurriculumConfig(visualize=True, **flags))  # type: ignore[arg-type]
    on.show(tiny, 910_000, tmp_path / "watch.mp4")
    assert Window.opened[0].closed is (not flags.get("window_reuse", True))
    on.leave()
    on.show(tiny, 910_000, tmp_path / "watch.mp4")
    assert len(Window.opened) == 2 and Window.opened[0].closed
    on.close()


@pytest.mark.parametrize("flags", [{"render_mode": "rgb_array"}, {}])
def test_a_video_takes_the_windows_place(
    tiny: Path, tmp_path: Path, flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not flags:
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
            monkeypatch.delenv(name, raising=False)
    path = tmp_path / "watch.mp4"
    path.write_bytes(b"of the evaluation before")
    Stage(CurriculumConfig(visualize=True, **flags)).show(tiny, 910_000, path)
    assert film_facts(path)[0] == 7 and not Window.opened


def test_a_directory_is_copied_whole_or_not_at_all(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, copy = tmp_path / "deep" / "copy", shutil.copytree

    def fail(source: Path, target: Path) -> None:
        copy(source, target)
        (target / "config.json").unlink()
        raise OSError("full")

    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(OSError, match="full"):
        _copy_whole(tiny, target)
    assert not target.exists()
    monkeypatch.setattr(shutil, "copytree", copy)
    _copy_whole(tiny, target)
    assert {path.name for path in target.iterdir()} == {path.name for path in tiny.iterdir()}
    assert [path.name for path in target.parent.iterdir()] == ["copy"]
    _copy_whole(tmp_path / "none", target)  # What is there stays.


SMALL = VMCConfig(z_dim=4, hidden=8, mixtures=2)
VISION = TrainingConfig(
    total_steps=20, batch_size=8, learning_rate=3e-3, mixed_precision=False, eval_interval=5, save_interval=20
)
CAR = ImproveConfig(RealSpec("CarRacing-v3", size=32), out="", model=SMALL, vision=VISION)


def saved(path: Path, spec: RealSpec, cfg: VMCConfig, level: float) -> Path:
    """An untrained model whose V has one weight that tells it from others."""
    env = make_real(spec)
    torch.manual_seed(0)
    model = VMC(cfg, env.observation_space, env.action_space)
    env.close()
    with torch.no_grad():
        for weights in model.vision.parameters():
            weights.fill_(level)
            break
    starts = {"begin": model.initial(1), "anywhere": model.initial(1)}
    save_model(path, model, spec, starts, horizon=6, card="")
    return path


def test_v_begins_with_the_last_task_whose_v_fits(tmp_path: Path) -> None:
    fits = [saved(tmp_path / str(i), RealSpec("CarRacing-v3", size=32), SMALL, i) for i in range(2)]
    other = saved(tmp_path / "wide", RealSpec("CarRacing-v3", size=32), VMCConfig(z_dim=6, hidden=8, mixtures=2), 0.5)
    vector = saved(tmp_path / "pole", RealSpec("CartPole-v1"), VMCConfig(vision="identity", hidden=8, mixtures=2), 0.5)
    assert warm_start.find_source(CAR, [*fits, other, vector]) == fits[1]
    assert warm_start.find_source(CAR, [other, vector]) is None
    assert warm_start.find_source(ImproveConfig(RealSpec("CartPole-v1"), out=""), [vector]) is None


def test_what_a_warm_start_is_worth_is_measured(tmp_path: Path, learning_seed: int) -> None:
    cfg, rng = seeded(CAR, learning_seed), np.random.default_rng(learning_seed)
    episodes = []
    for i in range(6):  # A bright square on a dark ground.
        obs = np.full((21, 32, 32, 3), 40, np.uint8)
        y, x = rng.integers(0, 24, 2)
        obs[:, y : y + 8, x : x + 8] = 220
        episodes.append(Episode(obs, np.zeros((20, 3), np.float32), np.zeros(20, np.float32), False, True, i, {}))
    write_shard(tmp_path / "data", "seed-0000000", episodes, {})
    plain = saved(tmp_path / "plain", CAR.spec, SMALL, 0.0)
    before = warm_start.compare(cfg, plain, tmp_path / "data", tmp_path / "run", updates=10)
    assert before["updates"] == 10 and before.keys() == {
        "updates", "first_warm", "val_warm", "first_cold", "val_cold", "helped",
    }  # fmt: skip
    assert before["val_cold"] < before["first_cold"]  # It learns.
    trained = tmp_path / "trained"
    shutil.copytree(plain, trained)
    model, artifact = load_model(trained)
    assert isinstance(model, VMC)
    model.vision.load_state_dict(load_file(tmp_path / "run" / "cold" / "best.safetensors"))
    save_model(trained, model, CAR.spec, load_starts(artifact), horizon=6, card="")
    after = warm_start.compare(cfg, trained, tmp_path / "data", tmp_path / "run", updates=10)
    assert after["first_cold"] == before["first_cold"] and after["val_cold"] == before["val_cold"]
    assert after["first_warm"] < after["first_cold"] and after["helped"] is True


def test_the_steps_of_a_killed_evaluation_are_counted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Pool, jobs: Iterable[EpisodeTask]) -> Iterator[EpisodeResult]:
        yield next(iter(EpisodePool.play(self, jobs)))
        raise KeyboardInterrupt

    first = Stage(CurriculumConfig(procs=1))
    first.begin(tmp_path, 0)
    assert first.play(SPEC, tiny, range(910_000, 910_002)).steps == 12  # Two episodes of six steps.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pool, "play", die)
        first.play(SPEC, tiny, range(910_002, 910_004))
    resumed = Stage(CurriculumConfig(procs=1))
    resumed.begin(tmp_path, 12)
    assert resumed.play(SPEC, tiny, range(910_002, 910_004)).steps == 6 + 12
    assert resumed.play(SPEC, tiny, range(910_004, 910_005)).steps == 6
