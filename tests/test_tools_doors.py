"""Doors: each opens what its call says, steps all of its rows, and is timed as it should be."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import gymnasium as gym
import pytest
import toy_env
from gymnasium.utils import performance
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny import save_tiny

from policies.sb3 import DreamVecEnv
from wm_agents.cli import doors
from wm_agents.cli.doors import Door, OpenDoor, Way, by_turns
from wm_envs.dream import DreamEnv, DreamVectorEnv
from wm_envs.registry import RealSpec


@pytest.fixture(scope="module")
def pole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"model": save_tiny(tmp_path_factory.mktemp("doors") / "pole", RealSpec("CartPole-v1"))}


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock on which a second passes each time it is read."""
    clock = iter(range(10_000))
    monkeypatch.setattr(doors, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))


KINDS = {
    "gym.make": DreamEnv,
    "SyncVectorEnv": SyncVectorEnv,
    "native vector": DreamVectorEnv,
    "make_vec_env": DummyVecEnv,
    "DreamVecEnv": DreamVecEnv,
}


CALLS = {"gym": gym, "make_vec_env": make_vec_env, "DreamVecEnv": DreamVecEnv}
"""What a call is made of."""


def test_every_way_is_known_here() -> None:
    assert {*KINDS, "AsyncVectorEnv"} == {*get_args(Way)}


@pytest.mark.parametrize("way", KINDS)
def test_a_door_opens_what_its_call_says(way: Way, pole: dict[str, Any]) -> None:
    rows = 1 if way == "gym.make" else 3
    door = Door(way, "Dream-v0", rows, {**pole, "obs": "latent"})
    with closing(doors.make(door)) as env, closing(eval(door.call, CALLS)) as again:
        assert type(env.unwrapped if way != "make_vec_env" else env) is KINDS[way]
        assert type(env) is type(again) and getattr(env, "num_envs", 1) == getattr(again, "num_envs", 1) == rows
        assert env.observation_space == again.observation_space


def test_the_call_of_processes_names_the_mode_of_gymnasium() -> None:
    assert Door("AsyncVectorEnv", "CartPole-v1", 2).call == "gym.make_vec('CartPole-v1', 2, 'async')"
    with closing(doors.make(Door("AsyncVectorEnv", "CartPole-v1", 2))) as envs:
        assert isinstance(envs, AsyncVectorEnv) and envs.num_envs == 2


@pytest.mark.parametrize("way", ["gym.make", "SyncVectorEnv", "make_vec_env"])
def test_a_step_moves_every_row_and_describes_the_first_one_s_end(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    acted = []
    step = toy_env.Echo.step
    monkeypatch.setattr(toy_env.Echo, "step", lambda self, act: acted.append(float(act[0])) or step(self, act))
    monkeypatch.setattr(toy_env.Echo, "metadata", {"render_modes": ["rgb_array"], "render_fps": 30})  # SB3 asks for it.
    monkeypatch.setattr(doors, "WARM_UP", 0)
    rows = 1 if way == "gym.make" else 3
    with closing(OpenDoor(Door(way, "Echo-v0", rows, {"length": 4}))) as opened:
        assert [opened.step() for _ in range(4)] == [False, False, False, True]
        assert len(acted) == 4 * rows and len(set(acted)) == len(acted)
        assert opened.step() is False  # It was reset.


def test_a_spell_counts_the_steps_of_all_rows(ticks: None) -> None:
    with closing(OpenDoor(Door("SyncVectorEnv", "Echo-v0", 3, {"length": 100}))) as opened:
        assert opened.spell(5) == 3 * 5 / 5


def test_a_spell_of_whole_episodes_lasts_to_the_end_of_one(ticks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "WARM_UP", 0)
    stepped = []
    with closing(OpenDoor(Door("gym.make", "Echo-v0", 1, {"length": 8}, whole_episodes=True))) as opened:
        step = opened.step
        opened.step = lambda: stepped.append(1) or step()
        assert opened.spell(3) == 1 and len(stepped) == 8
        assert opened.spell(9) == 1 and len(stepped) == 8 + 16
        monkeypatch.setattr(doors, "LONGEST", 2)
        assert opened.spell(3) == 1 and len(stepped) == 8 + 16 + 6


def test_turns_are_taken_until_there_was_time_for_each(ticks: None) -> None:
    called: list[str] = []
    spells = {name: (lambda name=name: called.append(name) or float(len(called))) for name in ("new", "old")}
    assert by_turns(spells, 2) == {"new": [1, 3, 5, 7], "old": [2, 4, 6, 8]}
    assert called == ["new", "old"] * 4


def test_gymnasium_s_own_figure_is_for_its_own_interfaces(pole: dict[str, Any], monkeypatch) -> None:
    for door in (Door("gym.make", "Dream-v0", 1, pole), Door("native vector", "Dream-v0", 2, pole)):
        with closing(OpenDoor(door)) as opened:
            assert opened.gymnasium_figure(0.01) > 0
    with closing(OpenDoor(Door("make_vec_env", "Dream-v0", 2, pole))) as opened:
        assert opened.gymnasium_figure(0.01) is None
    monkeypatch.delattr(performance, "benchmark_step")  # As in older versions.
    with closing(OpenDoor(Door("gym.make", "Dream-v0", 1, pole))) as opened:
        assert opened.gymnasium_figure(0.01) is None


def test_one_door_after_another_is_served_and_a_broken_one_ends_nothing(pole: dict[str, Any]) -> None:
    door = Door("native vector", "Dream-v0", 2, pole)
    asked = [
        json.dumps(Door("gym.make", "Nowhere-v0")),
        json.dumps(door),
        "spell 0.01",
        "gymnasium_figure 0.01",
        "close",
    ]
    answers = io.StringIO()
    doors.answer(io.StringIO("".join(f"{line}\n" for line in asked)), answers)
    package, failed, opened, spell, figure = (json.loads(line) for line in answers.getvalue().splitlines())
    assert Path(package["package"]).parts[-2:] == ("wm_envs", "__init__.py")
    assert "NameNotFound" in failed["failed"] and opened == {"call": door.call}
    assert spell["spell"] > 0 and figure["gymnasium_figure"] > 0
