"""Imports point downward: between the packages, and between the folders of wm_agents, inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["wm_envs", "policies", "wm_agents", "scripts"]
"""Each may import those before it."""
LAYERS = [
    ["errors"],
    ["system"],
    ["spaces", "strips"],
    ["data", "checkpoint", "video"],
    ["hub", "degraded"],
    ["models"],
    ["pretrained", "training"],
    ["factory", "control"],
    ["evaluation"],
    ["loops"],
    ["curriculum", "project"],
    ["web"],
    ["cli"],
]
"""The folders and doors of wm_agents, lowest first; each may import those of the layers before its own."""
SHELL = {"curriculum", "project", "web", "cli"}
"""What only serves users; the core above never imports it."""
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, inside functions too; `from p import m` counts as `p.m`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(dotted: str) -> str | None:
    """The folder or door of wm_agents that a dotted name lies in; None for the package itself and for others."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "wm_agents" and len(parts) > 1 and parts[1] in RANK else None


def dotted_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("package", PACKAGES[:-1])
def test_package_imports_only_what_lies_below_it(package: str) -> None:
    above = {*PACKAGES[PACKAGES.index(package) + 1 :], "tests"}
    files = sorted((ROOT / package).rglob("*.py"))
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for line, name in imports(file.read_text())
        if name.split(".")[0] in above
    ]
    assert files and not wrong, wrong


def test_every_folder_has_a_layer() -> None:
    rooms = {path.stem for path in (ROOT / "wm_agents").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert rooms - {"__init__", "__main__"} == set(RANK)


@pytest.mark.parametrize("room", RANK)
def test_folder_imports_only_what_lies_below_it(room: str) -> None:
    wrong = []
    for file in sorted((ROOT / "wm_agents").rglob("*.py")):
        if room_of(dotted_name(file)) != room:
            continue
        for line, name in imports(file.read_text()):
            other = room_of(name)
            if other is not None and other != room and RANK[other] >= RANK[room]:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, wrong


def test_the_core_lies_below_the_shell() -> None:
    assert min(RANK[room] for room in SHELL) > max(rank for room, rank in RANK.items() if room not in SHELL)


def test_an_import_inside_a_function_is_seen() -> None:
    found = [name for _, name in imports("def f():\n    from wm_agents.data import x\n    import torch")]
    assert found == ["wm_agents.data.x", "torch"] and room_of(found[0]) == "data" and room_of(found[1]) is None
