"""What an installation brings: three packages and two entry points."""

from __future__ import annotations

import importlib.metadata
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[1]


def test_three_packages_and_no_more_are_installed() -> None:
    find = setup_cfg()["options.packages.find"]
    packages = find_packages(str(ROOT), include=find["include"].split())
    assert {name.split(".")[0] for name in packages} == {"wm_envs", "policies", "wm_agents"}
    on_disk = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in ROOT.glob("w*_*/**/__init__.py")}
    assert on_disk <= set(packages)


def test_the_command_and_the_environments_are_declared() -> None:
    declared = setup_cfg()["options.entry_points"]
    assert declared["console_scripts"].strip() == "wm = wm_agents.cli:main"
    assert declared["gymnasium.envs"].strip() == "__root__ = wm_envs:register_envs"


def test_the_installed_metadata_agrees() -> None:
    points = importlib.metadata.distribution(setup_cfg()["metadata"]["name"]).entry_points
    assert {(p.group, p.name, p.value) for p in points} == {
        ("console_scripts", "wm", "wm_agents.cli:main"),
        ("gymnasium.envs", "__root__", "wm_envs:register_envs"),
    }


def setup_cfg() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser
