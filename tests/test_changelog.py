"""The gate of the changelog: what users can see has a line in it."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

import pytest

import wm_agents
from wm_agents.cli import app as cli
from wm_agents.models.saved import STORE
from wm_envs.registry import TASKS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CHANGELOG.md").read_text()


def setup_cfg() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_what_is_new_is_on_top() -> None:
    first = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)[0]
    assert first in ("Unreleased", setup_cfg()["metadata"]["version"])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_line(name: str) -> None:
    assert re.search(rf"`wm (\w+, )*{name}\b", TEXT), f"`wm {name}` has no line in CHANGELOG.md"


@pytest.mark.parametrize("name", [task.dream_id for task in TASKS.values() if (STORE / task.model).is_dir()])
def test_every_dream_that_ships_has_a_line(name: str) -> None:
    assert f"`{name}`" in TEXT, f"{name} has no line in CHANGELOG.md"


@pytest.mark.parametrize("name", [n for n in wm_agents.__all__ if n.islower()])
def test_every_public_function_has_a_line(name: str) -> None:
    assert f"`{name}`" in TEXT, f"{name} has no line in CHANGELOG.md"


@pytest.mark.parametrize("name", ["hub", "docs", "web", "export"])
def test_every_extra_that_users_install_has_a_line(name: str) -> None:
    assert name in setup_cfg()["options.extras_require"]
    assert re.search(rf"extra `{name}`", TEXT), f"the extra {name} has no line in CHANGELOG.md"
