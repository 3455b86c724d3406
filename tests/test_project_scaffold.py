"""`wm init` writes a project that can be read back, whole or not at all, and never asks in a pipe."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
import toy_env
import toy_line
from waiting import HANG_S

from wm_agents.cli import app as cli
from wm_agents.errors import ConfigurationError
from wm_agents.loops.recipes import PROJECT_RECIPES
from wm_agents.project import scaffold
from wm_agents.project.defaults import usual
from wm_agents.project.scaffold import write_project
from wm_agents.project.settings import load_project
from wm_agents.project.translate import spec_of
from wm_envs.env_id import UnknownEnv
from wm_envs.real import probe
from wm_envs.registry import RealSpec

FILES = ["wm.toml", "train.py", "inference.py", "dataset.py", "README.md"]
assert toy_env and toy_line  # Registered.


def wm(*args: str) -> int:
    try:
        return cli.main(list(args))
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


@pytest.mark.parametrize(
    ("env", "model", "family"),
    [
        ("CartPole-v1", None, "ensemble"),
        ("CartPole-v1", "dreamerv3:ci", "dreamerv3"),
        ("Pendulum-v1", "tdmpc2:1m", "tdmpc2"),
        ("Pendulum-v1", "vmc:small", "vmc"),
        ("CarRacing-v3", None, "vmc"),
        ("FrozenLake-v1", None, "ensemble"),
        ("toy_line:Line-v0", None, "ensemble"),
    ],
)
def test_what_is_written_can_be_read(env: str, model: str | None, family: str, tmp_path: Path) -> None:
    assert write_project(tmp_path / "my", env, model) == FILES
    project = load_project(tmp_path / "my")
    assert (project.environment, project.family, project.project_name) == (env, family, "my")
    assert project.online_collection.enabled and project.data.source == "gym"
    assert sorted(os.listdir(tmp_path / "my")) == sorted(FILES) and os.listdir(tmp_path) == ["my"]
    for name in ("train.py", "inference.py", "dataset.py"):
        compile((tmp_path / "my" / name).read_text(), name, "exec")
    assert f"A dream of {env}, by {project.model}." in (tmp_path / "my" / "README.md").read_text()


def test_arguments_of_the_environment_are_written(tmp_path: Path) -> None:
    flags = ("--yes", "--env-kwargs", '{"size": 2}')
    assert wm("init", str(tmp_path / "my"), "--env", "odd_env:Sized-v0", *flags) == 0
    assert spec_of(load_project(tmp_path / "my")) == RealSpec("odd_env:Sized-v0", {"size": 2}, size=64)
    values = usual("CartPole-v1", None, "my", {"sutton_barto_reward": True})
    assert values["data"]["env_kwargs"] == {"sutton_barto_reward": True}


def test_a_known_environment_begins_with_what_worked_for_it() -> None:
    values = usual("ALE/Pong-v5", None, "my")
    assert values["data"]["crop"] == [34, 194, 0, 160] and values["data"]["actions"] == [0, 2, 3]
    assert values["architecture"]["rew_head"] == "classes" and values["architecture"]["obs_shape"] == [64, 64, 1]
    assert values["controller"]["kind"] == "ppo"
    assert values["online_collection"]["rounds"] == PROJECT_RECIPES["Pong"].rounds
    values = usual("ALE/Breakout-v5", "tdmpc2:ci", "my")  # Whole games, in threes.
    assert values["data"]["stack"] is True and "lives_end" not in values["data"]
    assert values["architecture"]["obs_shape"] == [64, 64, 3]
    assert "stack" not in usual("ALE/Breakout-v5", "dreamerv3:ci", "my")["data"]
    values = usual("CartPole-v1", "ensemble:ci", "my")
    assert values["training"]["total_steps"] == 1500 and values["data"]["num_steps"] == 2000
    assert usual("CartPole-v1", "vmc:ci", "my")["data"]["num_steps"] == 1400  # The recipe's own.


def test_every_line_of_the_file_reports_what_it_is_for(tmp_path: Path) -> None:
    write_project(tmp_path / "my", "CartPole-v1")
    text = (tmp_path / "my" / "wm.toml").read_text()
    assert "# Exploration steps before training. At least 1.\nwarmup_transitions = 1000" in text
    assert "Further fields of EnsembleConfig: members, layers, term_weight." in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("model", ["ensemble:ci", "tdmpc2:1m"])
def test_an_environment_without_a_limit_to_its_episodes_gets_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wm("init", "my", "--env", "Blackjack-v1", "--model", model, "--yes") == 0
    note = "Blackjack-v1 has no episode limit, so this sets one."
    assert f"{note} [data] max_episode_steps = 1000\n" in capsys.readouterr().err
    text = (tmp_path / "my" / "wm.toml").read_text()
    assert f"\n# {note} Episode limit in agent steps" in text and "\nmax_episode_steps = 1000" in text
    project = load_project("my")
    assert project.data.max_episode_steps == 1000 and probe(spec_of(project)).limit == 1000


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an empty folder; give another folder, or use --force"):
        write_project(tmp_path, "CartPole-v1")
    assert os.listdir(tmp_path) == ["notes.txt"]
    (tmp_path / "outputs").mkdir()
    (tmp_path / "wm.toml").write_text("old")
    write_project(tmp_path, "CartPole-v1", force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "outputs").is_dir()
    assert load_project(tmp_path).family == "ensemble"
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "notes.txt", "outputs"])
    with pytest.raises(FileExistsError):
        write_project(tmp_path / "notes.txt", "CartPole-v1")


def test_an_empty_folder_is_written_into_and_stays_the_same_folder(tmp_path: Path) -> None:
    here = tmp_path.stat().st_ino
    write_project(tmp_path, "CartPole-v1")
    assert tmp_path.stat().st_ino == here and sorted(os.listdir(tmp_path)) == sorted(FILES)


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownEnv):
        write_project(tmp_path / "my", "CartPol-v1")
    with pytest.raises(ConfigurationError, match="did you mean 'default'"):
        write_project(tmp_path / "my", "CartPole-v1", "ensemble:defualt")
    with pytest.raises(ConfigurationError, match="unknown model .* expected family:size"):
        write_project(tmp_path / "my", "CartPole-v1", "mine")
    with pytest.raises(ValueError, match="an ensemble needs a Box of vectors"):
        write_project(tmp_path / "my", "CarRacing-v3", "ensemble:default")

    def full(*args: object, **kwargs: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_project(tmp_path / "my", "CartPole-v1")
    assert os.listdir(tmp_path) == []


def test_the_command_writes_and_reports_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wm("init", "my", "--env", "CartPole-v1", "--yes") == 0
    out, err = capsys.readouterr()
    assert out == "" and err == "my: wm.toml, train.py, inference.py, dataset.py, README.md\nnext: cd my && wm train\n"
    assert wm("init", "my", "--env", "CartPole-v1") == 1
    assert "or use --force" in capsys.readouterr().err
    assert wm("init", "my", "--env", "CartPole-v1", "--model", "vmc:ci", "--force") == 0
    assert load_project("my").model == "vmc:ci"


class Screen(io.StringIO):
    """A terminal to write to."""

    def isatty(self) -> bool:
        return True


def test_in_a_pipe_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("CartPole-v1\n"))
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    assert wm("init", str(tmp_path / "my")) == 1
    assert (
        screen.getvalue() == "wm init: an environment is required; give it with --env ID, such as --env CartPole-v1\n"
    )
    assert not (tmp_path / "my").exists()


def test_on_a_terminal_it_asks(tmp_path: Path) -> None:
    code = "import sys; from wm_agents.cli.app import main; sys.exit(main(sys.argv[1:]))"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "init", str(tmp_path / "my")], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    for question, answer in ((b"environment [CartPole-v1]: ", b"Pendulum-v1\n"), (b"model [", b"\n")):
        while question not in seen:
            assert select.select([ours], [], [], HANG_S)[0], seen
            seen += os.read(ours, 1000)
        os.write(ours, answer)
    assert process.wait(HANG_S) == 0
    project = load_project(tmp_path / "my")
    assert (project.environment, project.model) == ("Pendulum-v1", "ensemble:default")


def test_an_unknown_environment_gets_the_nearest_three_and_what_brings_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wm("init", str(tmp_path / "my"), "--env", "CartPol-v1", "--yes") == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "wm init: no environment 'CartPol-v1' is installed; the nearest are CartPole-v1 (gymnasium[cla"
    )
    assert err.count("-v") == 5 and err.count("\n") == 1 and os.listdir(tmp_path) == []


def test_files_are_staged_beside_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    files = scaffold.files

    def look(values: dict) -> dict[str, str]:
        seen.append(os.listdir(tmp_path))
        return files(values)

    monkeypatch.setattr(scaffold, "files", look)
    write_project(tmp_path / "deep" / "my", "CartPole-v1")
    assert os.listdir(tmp_path / "deep") == ["my"] and seen == [[]]
