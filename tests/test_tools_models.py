"""`wm models`, and how every tool reads its verbs and flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import save_tiny

from wm_agents import factory, hub
from wm_agents.cli import app as cli
from wm_agents.cli.printing import table
from wm_agents.factory import list_models
from wm_envs.registry import RealSpec


def wm(*args: str) -> int:
    try:
        return cli.main(["models", *args])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def test_the_list_has_every_preset_and_the_scores_of_what_ships(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wm("list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list_models()
    assert found["ensemble-cartpole"]["real_score"] == "500.0 ± 0.0"
    assert found["vmc:small"]["real_score"] is None and found["vmc:small"]["parameters"] == 928_746
    monkeypatch.setattr(factory, "list_models", lambda verbose: found)
    assert wm("list") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in found) and "928,746" in out


def test_info_describes_presets_and_of_saved_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("info", "dreamer-ci", "--json") == 0
    preset = json.loads(capsys.readouterr().out)
    assert (preset["name"], preset["size"]) == ("dreamerv3:ci", "ci") and preset["config"]["deter_dim"] > 0
    path = save_tiny(tmp_path / "m", RealSpec("CartPole-v1"))
    assert wm("info", path, "--json") == 0
    saved = json.loads(capsys.readouterr().out)
    assert saved["size"] == "stored" and saved["starts"] == {"begin": 8, "anywhere": 8} and saved["dreams"]
    assert saved["real"]["id"] == "CartPole-v1" and saved["controllers"] == ["linear"] and saved["card"] == "# tiny\n"
    assert wm("info", path) == 0
    out = capsys.readouterr().out
    assert "# tiny" in out and "Discrete(2)" in out


def test_a_name_that_is_none_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("info", "dreamerv3:size12n") == 1
    assert capsys.readouterr().err.endswith("got 'size12n'; did you mean 'size12m'?\n")


def test_pull_and_push_pass_on_what_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(save_tiny(tmp_path / "m", RealSpec("CartPole-v1")))
    pushed: list[object] = []
    monkeypatch.setattr(hub, "resolve", lambda name: path)
    monkeypatch.setattr(hub, "push_to_hub", lambda *args, **kwargs: pushed.append((args, kwargs)) or "https://there")
    assert wm("pull", "org/pole") == 0
    assert wm("pull", "org/pole", "--out", str(tmp_path / "mine")) == 0
    assert capsys.readouterr().out == f"{path}\n{tmp_path / 'mine'}\n"
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == sorted(f.name for f in path.iterdir())
    assert wm("pull", "org/pole", "--out", str(tmp_path)) == 1
    assert "exists; choose another directory" in capsys.readouterr().err
    assert wm("push", str(path), "org/pole", "--private", "--message", "hello") == 0
    assert pushed == [((str(path), "org/pole"), {"private": True, "commit_message": "hello"})]
    assert capsys.readouterr().out == "https://there\n"


def test_verbs_are_listed_and_a_wrong_one_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm() == wm("--help") == 0
    assert capsys.readouterr().out.count("usage: wm models VERB [flags]\n\n  list  List the presets") == 2
    assert wm("ifno") == 2
    assert capsys.readouterr().err == "wm models: unknown verb 'ifno'; did you mean 'info'?\n"
    assert wm("zzz") == 2
    assert "expected one of list, info, pull, push" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("info", "wm models info: the following arguments are required: name; `wm models info --help`"),
        ("info a --jsn", "did you mean --json?"),
        ("push a", "the following arguments are required: repo"),
    ],
)
def test_wrong_flags_exit_with_2_and_a_hint(args: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wm(*args.split()) == 2
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


def test_help_of_a_verb_has_the_words_of_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    assert wm("push", "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "usage: wm models push" in out and "create the repository as a private one." in out


def test_narrow_terminals_lose_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("dreamerv3:size12m", "8,849,603", "a long text that has to be broken somewhere or other")]
    for width in ("20", "50", "200"):
        monkeypatch.setenv("COLUMNS", width)
        table(("model", "parameters", "what"), rows)
        out = capsys.readouterr().out
        assert all(word in out for word in (*rows[0][:2], "somewhere")), out
        assert "\x1b" not in out
