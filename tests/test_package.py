"""What an installation brings: three packages and two entry points."""

from __future__ import annotations

import ast
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


LATER = {
    "typing": {"Self", "Never", "assert_never", "assert_type", "LiteralString", "Unpack", "TypeVarTuple", "NotRequired",
               "Required", "reveal_type", "override", "TypeIs"},
    "enum": {"StrEnum"}, "datetime": {"UTC"}, "itertools": {"batched"}, "contextlib": {"chdir"},
}  # fmt: skip
"""Names that came after Python 3.10, the oldest that setup.cfg promises."""


def test_nothing_needs_a_newer_python_than_is_promised() -> None:
    assert setup_cfg()["options"]["python_requires"] == ">=3.10"
    files = [
        file for package in ("wm_envs", "policies", "wm_agents", "scripts") for file in (ROOT / package).rglob("*.py")
    ]
    wrong = []
    for file in files:
        tree = ast.parse(file.read_text(), feature_version=(3, 10))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in LATER:
                wrong += [f"{file.relative_to(ROOT)}: {a.name}" for a in node.names if a.name in LATER[node.module]]
            elif isinstance(node, getattr(ast, "TryStar", ())):
                wrong.append(f"{file.relative_to(ROOT)}: except*")
    assert wrong == []


def setup_cfg() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser
