"""wm_envs <- policies <- wm_agents <- scripts, tests: nothing imports against the arrows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "wm_envs": {"wm_envs"},
    "policies": {"wm_envs", "policies"},
    "wm_agents": {"wm_envs", "policies", "wm_agents"},
}
OURS = {*MAY_IMPORT, "scripts", "tests"}


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of every import, inside functions too; relative ones count as `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, package if node.level else str(node.module).split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_what_lies_below_it(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for line, name in imports(file.read_text(), package)
        if name in OURS - MAY_IMPORT[package]
    ]
    assert files and not wrong, wrong


def test_an_import_inside_a_function_is_seen() -> None:
    found = [name for _, name in imports("def f():\n    from wm_agents.data import x\n    import torch", "p")]
    assert found == ["wm_agents", "torch"]
