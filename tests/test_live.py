"""Live frames: the newest real observation as an image, at most so often, and never a reason to fail."""

from __future__ import annotations

import os
from concurrent.futures import Future
from pathlib import Path

import cv2
import gymnasium as gym
import numpy as np
import pytest
from toy_env import make_random

from wm_agents.data import collect as collecting
from wm_agents.data.collect import CollectConfig, collect
from wm_agents.data.live import LIVE, LiveFrames, LiveView
from wm_agents.data.worker import ShardTask
from wm_agents.loops.online_config import OnlineConfig
from wm_agents.loops.recipes import ImproveConfig
from wm_envs.registry import RealSpec

IMAGES = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
ECHO = RealSpec("toy_env:Echo-v0", {"pixels": True})


def frame(red: int) -> np.ndarray:
    return np.full((8, 8, 3), (red, 0, 0), np.uint8)


def red_of(path: Path) -> int:
    return int(cv2.imread(str(path))[0, 0, 2])


def test_the_image_is_replaced_at_most_so_often(tmp_path: Path) -> None:
    now, path = [0.0], tmp_path / LIVE
    live = LiveFrames(LiveView(path, 4), IMAGES, "Some-v0", lambda: now[0])
    for moment, red, shown in ((0.0, 10, 10), (0.1, 20, 10), (0.24, 30, 10), (0.25, 40, 40), (9.0, 50, 50)):
        now[0] = moment
        live.show(frame(red))
        assert red_of(path) == shown, moment
    assert [file.name for file in tmp_path.iterdir()] == [LIVE]


@pytest.mark.parametrize("view", [None, 0.0])
def test_nothing_is_written_where_nothing_is_asked_for(view: float | None, tmp_path: Path) -> None:
    asked = None if view is None else LiveView(tmp_path / LIVE, view)
    LiveFrames(asked, IMAGES, "Some-v0").show(frame(1))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_nothing_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    LiveFrames(LiveView(tmp_path / LIVE, 4), IMAGES, "Some-v0").show(frame(1))
    assert not (tmp_path / LIVE).exists()


def test_collection_shows_its_episodes(tmp_path: Path) -> None:
    view = LiveView(tmp_path / LIVE, 1000)
    collect(CollectConfig(ECHO, str(tmp_path / "data"), steps=20, seed=0, procs=0, live=view), make_random)
    assert cv2.imread(str(tmp_path / LIVE)).shape[2] == 3


def test_only_one_process_shows_its_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []

    class Pool:
        size = 3

        def __init__(self, *_: object) -> None: ...

        def submit(self, function: object, task: ShardTask) -> Future[None]:
            shown.append(task.live is not None)
            future: Future[None] = Future()
            future.cancel()
            return future

        def close(self) -> None: ...

        kill = close

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "make_pool", Pool)
    monkeypatch.setattr(collecting, "finished", interrupted)
    cfg = CollectConfig(ECHO, str(tmp_path), steps=10**6, seed=0, procs=3, live=LiveView(tmp_path / LIVE, 4))
    with pytest.raises(KeyboardInterrupt):
        collect(cfg, make_random)
    assert shown == [True, False, False]


def test_how_often_is_no_setting_of_a_run() -> None:
    improve = ImproveConfig(ECHO, "out", live_fps=1.0)
    online = OnlineConfig(ECHO, "out", "dreamerv3", "ci", live_fps=1.0)
    assert "live_fps" not in improve.to_dict() and "live_fps" not in online.to_dict()
