"""The preflight finds what would break a long run, and says what to do about it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import register, registry
from rich.console import Console

from wm_agents.loops import preflight
from wm_agents.loops.preflight import (
    GB,
    Finding,
    check_device,
    check_disk,
    check_env,
    check_memory,
    check_video,
    estimate,
    free_memory,
    look,
    show,
)
from wm_agents.loops.recipes import ImproveConfig
from wm_envs.registry import RealSpec


class Odd(gym.Env[Any, Any]):
    """Shows what it is told to, and nothing else."""

    action_space = spaces.Discrete(2)

    def __init__(self, fault: str = "", pixels: bool = True) -> None:
        self.fault, self.t = fault, 0
        box = spaces.Box(0, 255, (40, 40, 3), np.uint8)
        self.observation_space = box if pixels else spaces.Box(-9, 9, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self._obs(), 0.0, False, False, {}

    def _obs(self) -> Any:
        shape, dtype = self.observation_space.shape, self.observation_space.dtype
        obs = np.zeros(shape, dtype)
        if self.fault != "black":
            obs.flat[:2] = [1, 0 if self.fault == "still" else self.t % 100 / (1 if dtype == np.uint8 else 20)]
        if self.fault == "nan" and self.t:
            obs[0] = np.nan
        return obs[:-1] if self.fault == "shape" else obs


@pytest.fixture
def odd() -> Iterator[str]:
    register("Strange-v0", entry_point=Odd)
    yield "Strange-v0"
    registry.pop("Strange-v0")


def spec(odd: str, fault: str, pixels: bool = True) -> RealSpec:
    return RealSpec(odd, {"fault": fault, "pixels": pixels})


def test_sane_environments_are_reported_by_what_they_show(odd: str) -> None:
    assert check_env(spec(odd, "")) == "frames of 40x40x3, Discrete(2)"
    assert check_env(RealSpec("CartPole-v1")) == "vectors of 4, Discrete(2)"


@pytest.mark.parametrize(
    "fault, pixels, message",
    [
        ("black", True, "all pixels of the frame have the value 0 after 50 steps"),
        ("still", True, "observations did not change in 50 random steps"),
        ("still", False, "observations did not change in 50 random steps"),
        ("shape", True, "observations must be (40, 40, 3) uint8 as declared by its space, got (39, 40, 3) uint8"),
        ("nan", False, "finite"),
    ],
)
def test_frames_that_teach_nothing_are_found(odd: str, fault: str, pixels: bool, message: str) -> None:
    with pytest.raises(ValueError) as error:
        check_env(spec(odd, fault, pixels))
    assert message in str(error.value) and "Strange-v0" in str(error.value)


def test_looks_can_be_left_out(odd: str) -> None:
    check_env(spec(odd, "black"), frames=False)
    check_env(spec(odd, "shape"), sizes=False)
    with pytest.raises(ValueError, match="not finite"):
        check_env(spec(odd, "nan", pixels=False), sizes=False)


def test_a_video_is_written_and_read_back(tmp_path: Path) -> None:
    assert check_video(tmp_path) == "11 frames of mp4 written and read"
    assert not [*tmp_path.iterdir()]


def test_a_video_that_is_not_what_was_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = preflight.write_video
    monkeypatch.setattr(preflight, "write_video", lambda path, frames, fps: write(path, (f // 2 for f in frames), fps))
    with pytest.raises(ValueError, match="the test video was decoded wrongly: expected 11 frames, got 11 with"):
        check_video(tmp_path)


def test_free_disk_is_compared_with_what_is_needed(tmp_path: Path) -> None:
    assert "GB free" in check_disk(tmp_path / "new", 1)
    with pytest.raises(ValueError, match=r"about 1000000.0 GB needed"):
        check_disk(tmp_path, int(1e6 * GB))


def test_free_memory_is_compared_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_memory", lambda: int(2 * GB))
    assert check_memory(int(GB)) == "2.0 GB free, about 1.0 GB needed"
    with pytest.raises(ValueError, match=r"2.0 GB free, about 3.0 GB needed"):
        check_memory(int(3 * GB))
    monkeypatch.setattr(preflight, "free_memory", lambda: None)
    assert "is unknown" in check_memory(int(GB))


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 4096 kB\n")
    assert free_memory(meminfo, tmp_path) == 4096 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert free_memory(meminfo, tmp_path) == 4096 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_memory(meminfo, tmp_path) == 4000
    assert free_memory(tmp_path / "none", tmp_path / "none") is None


def test_a_device_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check_device("auto") == "cpu"
    with pytest.raises(ValueError, match="device .cuda. is not on this machine"):
        check_device("cuda")


def test_estimates_follow_the_data_and_hold_for_what_was_measured() -> None:
    car = ImproveConfig(RealSpec("CarRacing-v3", size=64), out="", rounds=12, random_steps=60_000, round_steps=25_000)
    needs = estimate(car, procs=2)
    # A run of 12 rounds took 0.74 GB in all, at 1,090 bytes a frame.
    assert 335_000 * 1090 < needs.disk < 4 * 0.74 * GB and GB < needs.memory < 6 * GB
    assert estimate(replace(car, random_steps=10_000_000), procs=2).disk < (5.0 + 2) * GB  # max_gb holds.
    assert estimate(replace(car, spec=RealSpec("CarRacing-v3", size=32)), procs=2).disk < needs.disk
    assert estimate(car, procs=2, films=100).disk - needs.disk == int(0.5 * GB)
    pole = estimate(ImproveConfig(RealSpec("CartPole-v1"), out="", rounds=1, controller="ppo"), procs=1)
    assert pole.disk < 0.2 * GB and pole.memory < needs.memory


def test_findings_are_printed_with_what_to_do() -> None:
    def fail() -> str:
        raise OSError("no\nroom")

    good, bad = look("disk", lambda: "fine", "buy one"), look("disk", fail, "buy one")
    assert (good, bad) == (Finding("disk", True, "fine"), Finding("disk", False, "no room", "buy one"))
    out = io.StringIO()
    assert not show([good, bad], Console(file=out, width=200)) and show([good], Console(file=io.StringIO()))
    assert out.getvalue().splitlines() == ["  ok   disk: fine", "  FAIL disk: no room", "       -> buy one"]


def test_no_display_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    assert "needs a display" in (preflight.display_error() or "")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert preflight.display_error() is None
