"""What an installation brings: three packages and two entry points."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from setuptools import Distribution, find_packages

ROOT = Path(__file__).parents[1]


def test_three_packages_and_no_more_are_installed() -> None:
    find = setup_cfg()["options.packages.find"]
    packages = find_packages(str(ROOT), include=find["include"].split())
    assert {name.split(".")[0] for name in packages} == {"wm_envs", "policies", "wm_agents"}
    on_disk = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in ROOT.glob("w*_*/**/__init__.py")}
    assert on_disk <= set(packages)


def test_a_wheel_carries_the_marker_of_types_and_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = Distribution()
    distribution.parse_config_files(["setup.cfg"])
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    files = {f"{package}/{name}" for package, _, _, names in command.data_files for name in names}
    assert {f"{package}/py.typed" for package in ("wm_envs", "policies", "wm_agents")} <= files
    assert any(name.endswith("model.safetensors") for name in files)


USED_AS = {"opencv-python-headless": "cv2", "mkdocs-material": "name: material", "pytest-xdist": "--dist"}
"""What stands where a package is used, if not its own name."""


def test_every_dependency_and_every_extra_is_used() -> None:
    cfg = setup_cfg()
    extras = cfg["options.extras_require"]
    wanted = re.findall(r"^\s*([\w-]+)", "\n".join([cfg["options"]["install_requires"], *extras.values()]), re.M)
    files = [file for folder in ("wm_envs", "policies", "wm_agents", "scripts", "tests") for file in python(folder)]
    imports = [line for file in files for line in file.read_text().splitlines() if re.match(r"\s*(import|from) ", line)]
    used = "\n".join([*imports, (ROOT / "Makefile").read_text(), (ROOT / "mkdocs.yml").read_text()])
    assert len(wanted) > 20
    idle = {name for name in wanted if USED_AS.get(name, name.replace("-", "_")) not in used}
    assert idle == {"pillow"}  # Minari imports it without requiring it.


def python(folder: str) -> Iterable[Path]:
    return (ROOT / folder).rglob("*.py")


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
    files = [file for folder in ("wm_envs", "policies", "wm_agents", "scripts") for file in python(folder)]
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


def test_a_wheel_has_no_file_of_an_earlier_build_and_leaves_none(tmp_path: Path) -> None:
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("wm_envs", "policies", "wm_agents", "build/lib/wm_agents"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "build/lib/wm_agents/removed.py").touch()
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", "wheels"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = ZipFile(wheel).namelist()
    assert "wm_agents/__init__.py" in names and "wm_agents/removed.py" not in names
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["lib"]
