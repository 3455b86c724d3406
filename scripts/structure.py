"""The structure of the packages in numbers: folders, layers, imports, public names, density, lengths.

python scripts/structure.py                    this checkout
python scripts/structure.py --against FOLDER   also another checkout, such as an older one
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("wm_envs", "policies", "wm_agents")
SHELL = ("curriculum", "project", "cli", "tools", "web")
"""Folders of wm_agents that only serve users; the rest is the core."""
DENSE_LINE = 110
BARS = {
    "public classes and functions": 350,
    "conditional expressions per 100 code lines": 1.5,
    "statements with several conditionals": 0,
    "longest file": 450,
}
"""The highest values that the project aims at."""

Imports = dict[str, set[str]]
"""The rooms that each room imports."""


class File(NamedTuple):
    """A Python file of the packages."""

    name: str
    """Dotted."""
    room: str
    text: str
    tree: ast.Module


def read(root: Path) -> list[File]:
    """All files of the packages. The room of a file is its folder, or the file itself if it is in the root of a
    package."""
    files = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            text = path.read_text(encoding="utf-8")
            files.append(File(".".join(parts), _room(parts), text, ast.parse(text)))
    return files


def _room(parts: tuple[str, ...]) -> str:
    return ".".join(parts[:2]) if parts[0] == "wm_agents" else parts[0]


def imports(files: list[File]) -> Imports:
    """The imports between rooms, including those inside functions."""
    known = {file.room for file in files}
    found: Imports = defaultdict(set)
    for file in files:
        for node in ast.walk(file.tree):
            for name in _imported(node):
                parts = tuple(name.split("."))
                room = _room(parts)
                if parts[0] in PACKAGES and room in known and room != file.room:
                    found[file.room].add(room)
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def cycles(graph: Imports) -> list[list[str]]:
    """Groups of rooms that import each other, directly or through others."""
    reach = {room: _reachable(graph, room) for room in graph}
    groups = {
        tuple(sorted(o for o in reach[room] if room in reach.get(o, ()))) for room in graph if room in reach[room]
    }
    return [list(group) for group in sorted(groups)]


def _reachable(graph: Imports, room: str) -> set[str]:
    seen: set[str] = set()
    ahead = list(graph.get(room, ()))
    while ahead:
        other = ahead.pop()
        if other not in seen:
            seen.add(other)
            ahead.extend(graph.get(other, ()))
    return seen


def layers(graph: Imports, rooms: set[str]) -> int:
    """The longest chain of imports, in rooms; rooms of a cycle count once."""
    depth: dict[str, int] = {}
    together = {room: tuple(group) for group in cycles(graph) for room in group}

    def down(room: str, above: frozenset[str]) -> int:
        if room not in depth:
            group = together.get(room, (room,))
            below = {other for member in group for other in graph.get(member, ())} - set(group) - above
            depth[room] = 1 + max((down(other, above | set(group)) for other in below), default=0)
        return depth[room]

    return max(down(room, frozenset()) for room in rooms)


def measure(root: Path) -> dict[str, float]:
    """The measures of a checkout, by name."""
    files = read(root)
    graph, rooms = imports(files), {file.room for file in files}
    lines = {file.name: len(file.text.splitlines()) for file in files}
    conditionals = sum(isinstance(node, ast.IfExp) for file in files for node in ast.walk(file.tree))
    code = sum(_code_lines(file.text) for file in files)
    names = Counter(name for file in files for name in _public(file))
    shared = _used_outside(files, root)
    return {
        "files": len(files),
        "lines": sum(lines.values()),
        "rooms": len(rooms),
        "layers": layers(graph, rooms),
        "arrows between rooms": sum(map(len, graph.values())),
        "rooms in import cycles": sum(map(len, cycles(graph))),
        "public classes and functions": names.total(),
        "of these, used outside their folder": sum(f"{f.name}.{name}" in shared for f in files for name in _public(f)),
        "public names with two meanings": sum(count > 1 for count in names.values()),
        "conditional expressions per 100 code lines": round(100 * conditionals / code, 2),
        "statements with several conditionals": sum(map(_dense, files)),
        "comprehensions over two lines": sum(map(_long_comprehensions, files)),
        f"lines over {DENSE_LINE} characters": sum(len(x) > DENSE_LINE for f in files for x in f.text.splitlines()),
        "longest file": max(lines.values()),
        "files in the core": sum(not _in_shell(file) for file in files),
    }


def _dense(file: File) -> int:
    """Statements with more than one conditional expression of their own."""
    statements = (node for node in ast.walk(file.tree) if isinstance(node, ast.stmt))
    return sum(sum(isinstance(part, ast.IfExp) for part in _parts(node)) > 1 for node in statements)


def _parts(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement, without those of the statements inside it."""
    inside = [node for node in ast.iter_child_nodes(statement) if not isinstance(node, ast.stmt)]
    while inside:
        node = inside.pop()
        yield node
        inside += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]


def _long_comprehensions(file: File) -> int:
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    found = (node for node in ast.walk(file.tree) if isinstance(node, kinds))
    return sum((node.end_lineno or node.lineno) - node.lineno > 1 for node in found)


def _in_shell(file: File) -> bool:
    parts = file.name.split(".")
    return parts[0] == "wm_agents" and len(parts) > 1 and parts[1] in SHELL


def _public(file: File) -> list[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in file.tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def _used_outside(files: list[File], root: Path) -> set[str]:
    """Dotted names that a file of another folder, a script or a page of the documentation uses."""
    known = {file.name for file in files}
    folders = {file.name: file.name.rpartition(".")[0] for file in files}
    trees = [(folders[file.name], file.tree) for file in files]
    trees += [("scripts", ast.parse(path.read_text(encoding="utf-8"))) for path in (root / "scripts").rglob("*.py")]
    found: set[str] = set()
    for folder, tree in trees:
        modules: dict[str, str] = {}
        for node in ast.walk(tree):
            for name in _imported(node):
                if name in known:
                    modules[name.rpartition(".")[2]] = name
                elif folders.get(name.rpartition(".")[0], folder) != folder:
                    found.add(name)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            module = modules.get(node.value.id)
            if module is not None and folders[module] != folder:
                found.add(f"{module}.{node.attr}")
    pages = [path for path in (root / "docs").rglob("*.md") if path.name != "log.md"]
    for path in (root / "README.md", *pages):
        text = path.read_text(encoding="utf-8")
        found.update(re.findall(r"(?:wm_envs|policies|wm_agents)(?:\.\w+)+", text))
        for module, names in re.findall(r"from ([\w.]+) import ([\w, ]+)", text):
            found.update(f"{module}.{name.strip()}" for name in names.split(","))
    return found


def _code_lines(text: str) -> int:
    """Number of lines that are not only a comment or docstring."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    held: set[int] = set()
    previous = tokenize.NEWLINE
    for token in tokens:
        is_docstring = token.type == tokenize.STRING and previous in (
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
        )
        if token.type not in skipped and not is_docstring:
            held.update(range(token.start[0], token.end[0] + 1))
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            previous = token.type
    return len(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout, whose numbers are printed first")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    roots = [root for root in (args.against, ROOT) if root is not None]
    columns = [measure(root) for root in roots]
    if args.json:
        print(json.dumps(columns[-1]))
        return
    for name in columns[0]:
        bar = f"   bar {BARS[name]:g}" if name in BARS else ""
        print(f"{name:<44}" + "".join(f"{column[name]:>10,}" for column in columns) + bar)


if __name__ == "__main__":
    main()
