"""An environment that is not here is answered with the nearest ids and with what brings it."""

from __future__ import annotations

import builtins
import pickle
from typing import Any

import gymnasium as gym
import pytest

from wm_agents.cli import app as cli
from wm_envs import env_id
from wm_envs.env_id import LackingEnv, UnknownEnv
from wm_envs.real import make_real, spec_for
from wm_envs.registry import RealSpec


def told(name: str) -> str:
    with pytest.raises(ValueError) as raised:
        spec_for(name)
    return str(raised.value)


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("CartPol-v1", "CartPole-v1 (gymnasium[classic-control]), CartPole-v0 (gymnasium[classic-control]), "),
        ("lunarlander", "LunarLander-v3 (gymnasium[box2d]), LunarLanderContinuous-v3 (gymnasium[box2d]), "),
        ("LunarLander-v2", "LunarLander-v3 (gymnasium[box2d]), "),
        ("CartPole-v7", "CartPole-v1 (gymnasium[classic-control]), "),
        ("ALE/Pon-v5", "ALE/Pong-v5 (gymnasium[atari]), "),
    ],
)
def test_an_unknown_id_gets_the_three_nearest_and_their_extras(name: str, near: str) -> None:
    text = told(name)
    assert text.startswith(f"no environment {name!r} is installed; the nearest are {near}")
    assert text.count(", ") == 2


def test_the_ids_of_a_named_module_come_first() -> None:
    text = told("toy_env:Ecco-v0")
    assert text == "the module toy_env registers no environment 'Ecco-v0'; the nearest are Echo-v0"


def test_an_unknown_id_without_a_module_may_be_that_of_one() -> None:
    assert told("Mine-v0").endswith("; for an id that a module registers write module:Mine-v0")


def test_the_error_is_gymnasiums_too() -> None:
    with pytest.raises(gym.error.UnregisteredEnv) as raised:
        spec_for("CartPol-v1")
    assert isinstance(raised.value, UnknownEnv)


def test_ids_of_other_packages_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_id, "find_spec", lambda name: None)
    text = told("MiniGrid-Empty-5x5-v0")
    assert text.endswith(
        "is provided by minigrid: pip install minigrid, then use the id minigrid:MiniGrid-Empty-5x5-v0"
    )


def test_dreams_are_not_near() -> None:
    assert not [name for name in env_id._nearest("Dream-CartPole-v0", 20) if name.startswith(("Dream-", "Real-"))]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: Any, **kwargs: Any) -> None:
        raise gym.error.DependencyNotInstalled('Box2D is not installed, run `pip install "gymnasium[box2d]"`')

    monkeypatch.setattr(gym, "make", lacking)
    want = "cannot create LunarLander-v3: Box2D is not installed; pip install 'gymnasium[box2d]'"
    assert told("LunarLander-v3") == want
    with pytest.raises(LackingEnv):
        spec_for("LunarLander-v3")


def test_a_missing_ale_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name == "ale_py":
            raise ModuleNotFoundError("No module named 'ale_py'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert told("ALE/Pong-v5").endswith("No module named 'ale_py'; pip install 'gymnasium[atari]'")


def test_a_missing_module_is_named() -> None:
    assert told("no_such_module:Foo-v0") == (
        "cannot create no_such_module:Foo-v0: the module no_such_module is not installed"
    )


def test_ataris_older_ids_are_known() -> None:
    assert make_real(RealSpec("PongNoFrameskip-v4")).observation_space.shape == (210, 160, 3)


def test_commands_say_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["improve", "--env", "CartPol-v1"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("wm improve: no environment 'CartPol-v1' is installed; the nearest are CartPole-v1")
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [UnknownEnv("CartPole-v7"), LackingEnv("nowhere:Odd-v0", ImportError("no"))])
def test_the_errors_come_out_of_worker_processes(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
