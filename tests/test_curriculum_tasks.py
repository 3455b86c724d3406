"""Curricula by name and from files, and what of them can be played here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wm_agents.curriculum import tasks as curriculum_tasks
from wm_agents.curriculum.tasks import Entry, _Threshold, _what_is_missing, installed, read_curriculum


def of(path: Path, text: str) -> str:
    file = path / "mine.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    "name, tasks",
    [
        ("core", [("Pong", 18, 5), ("LunarLander", 200, 50), ("CarRacing", 800, 100)]),
        ("full", [("Pong", 18, 5), ("LunarLander", 200, 50), ("Breakout", 50, 10), ("CarRacing", 800, 100)]),
        ("classic", [("Pong", 18, 5), ("Breakout", 50, 10), ("CartPole", 475, 195), ("Acrobot", -100, -200)]),
    ],
)
def test_named_curricula_have_their_tasks_with_thresholds_of_their_own(name: str, tasks: list[Any]) -> None:
    found = [(entry.name, *entry.threshold) for entry in read_curriculum(name)]
    assert found == tasks


def test_folders_are_named_for_the_environment() -> None:
    assert [entry.folder for entry in read_curriculum("core")] == ["ALE_Pong-v5", "LunarLander-v3", "CarRacing-v3"]
    assert Entry("my.module:Some/Env-v0", _Threshold(1, 1)).folder == "my.module_Some_Env-v0"


def test_a_file_lists_tasks_in_order(tmp_path: Path) -> None:
    text = """
        [[task]]
        env = "Pendulum-v1"
        threshold = -200
        quick_threshold = -900.5
        max_generations = 30
        [[task]]
        name = "CartPole"
        max_episode_steps = 90
        [[task]]
        env = "Acrobot-v1"
        threshold = -90.0
        [[task]]
        name = "Pong"
        threshold = 21.0
        """
    assert read_curriculum(of(tmp_path, text)) == [
        Entry("Pendulum-v1", _Threshold(-200.0, -900.5), None, 30),
        Entry("CartPole-v1", _Threshold(475.0, 195.0), "CartPole", None, 90),
        Entry("Acrobot-v1", _Threshold(-90.0, -90.0), "Acrobot"),
        Entry("ALE/Pong-v5", _Threshold(21.0, 21.0), "Pong"),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ('[[task]]\nnam = "Pong"', "task 1: unknown field 'nam'; did you mean 'name'?"),
        ('[[tasks]]\nname = "Pong"', "unknown field 'tasks'; did you mean 'task'?"),
        ('[[task]]\nname = "Pong"\n[[task]]\nname = "Lunarlander"', "task 2: unknown name 'Lunarlander'; did you mean"),
        ("", "must contain a [[task]] table for each task, got None"),
        ("task = 3", "must contain a [[task]] table for each task, got 3"),
        ("[[task]]\nthreshold = 3.0", "a task must have either name or env"),
        ('[[task]]\nname = "Pong"\nenv = "ALE/Pong-v5"', "a task must have either name or env"),
        ('[[task]]\nenv = "Pendulum-v1"', "Pendulum-v1 needs a threshold"),
        ('[[task]]\nname = "Pong"\nthreshold = "18"', "threshold must be a finite number, got '18'"),
        ('[[task]]\nname = "Pong"\nthreshold = true', "threshold must be a finite number, got True"),
        ('[[task]]\nname = "Pong"\nthreshold = nan', "threshold must be a finite number, got nan"),
        ('[[task]]\nname = "Pong"\nmax_generations = 0', "max_generations must be a whole number of at least 1, got 0"),
        (
            '[[task]]\nname = "Pong"\nmax_generations = 1.5',
            "max_generations must be a whole number of at least 1, got 1.5",
        ),
        ("[[task]]\nname = 3", "name must be a text, got 3"),
        ('[[task]]\nname = "Pong"\n[[task]]\nenv = "ALE/Pong-v5"\nthreshold = 1', "ALE/Pong-v5 more than once"),
        ("[[task", "is not valid TOML"),
    ],
)
def test_files_are_read_strictly(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_curriculum(of(tmp_path, text))
    assert message in str(error.value) and "mine.toml" in str(error.value)


def test_unknown_curricula_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown curriculum 'clasic'; did you mean 'classic'\?, or the path"):
        read_curriculum("clasic")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_curriculum(str(tmp_path / "none.toml"))


def test_what_is_not_installed_is_left_out_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curriculum_tasks, "find_spec", lambda name: None if name == "Box2D" else object())
    playable, missing = installed(read_curriculum("full"))
    assert [entry.name for entry in playable] == ["Pong", "Breakout"]
    assert missing == dict.fromkeys(("LunarLander", "CarRacing"), 'pip install "gymnasium[box2d]"')


def test_atari_is_left_out_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curriculum_tasks, "find_spec", lambda name: None if name == "ale_py" else object())
    playable, missing = installed(read_curriculum("classic"))
    assert [entry.name for entry in playable] == ["CartPole", "Acrobot"]
    assert missing["Pong"] == 'pip install "gymnasium[atari]"'


def test_all_is_there() -> None:
    assert installed(read_curriculum("full"))[1] == {}
    assert _what_is_missing("no_such_module_at_all:Env-v0") == "the module no_such_module_at_all is not installed"


def test_a_wrong_id_is_an_error_and_not_left_out() -> None:
    with pytest.raises(ValueError, match="LunarLanderr-v3 is not an installed environment.*LunarLander"):
        _what_is_missing("LunarLanderr-v3")
