"""The short helps name flags that exist, say what is required, and load nothing heavy."""

from __future__ import annotations

import pytest
from test_import_time import loaded

from wm_agents.cli import app as cli
from wm_agents.cli.brief import BRIEFS
from wm_agents.loops.recipes import RECIPES
from wm_envs.registry import TASKS

ONLINE = "flags for online training"


@pytest.mark.parametrize("name", BRIEFS)
def test_every_flag_of_a_short_help_exists(name: str) -> None:
    forms = {"": [], ONLINE: ["--family", "dreamerv3"]} if name == "improve" else {"": ["--model", "vmc:small"]}
    known = {}
    for title, flags in forms.items():
        _, parser, _ = cli.parser_of(name, flags)
        parser.add_spellings()
        known[title] = {flag for action in parser._actions for flag in action.option_strings}
    for title, flags in BRIEFS[name].flags.items():
        for flag in flags:
            word = flag.split()[0].replace("_", "-")
            assert word == "--help-all" or word in known[title if title in known else ""], flag


def test_the_short_help_is_short_and_names_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    for help_flag in ("--help", "-h"):
        assert cli.main(["improve", help_flag]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") < 110 and max(map(len, text.splitlines())) <= 100
    assert "required, one of the two:\n  --env ID" in text and "--help-all" in text
    assert set(TASKS) == set(RECIPES) and all(task in text for task in RECIPES)


def test_all_flags_are_listed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["improve", "--help-all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--shard-episodes" in text and "--ppo.gae-lambda" in text
    assert "--out OUT Folder for data, checkpoints and results; the same command resumes in it. (required" in text
    assert "to import the module first. (required" in text


@pytest.mark.parametrize("name", BRIEFS)
def test_a_short_help_loads_nothing_heavy(name: str) -> None:
    code = f"from wm_agents.cli.app import main\nassert main([{name!r}, '--help']) == 0"
    assert loaded(code) == set()
