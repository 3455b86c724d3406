"""Text is UTF-8 on disk whatever the locale: every read and write of text names its encoding."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for name in ("wm_envs", "policies", "wm_agents", "scripts") for path in (ROOT / name).rglob("*.py"))


def unnamed(source: str) -> list[str]:
    """The calls that read or write text in the encoding of the locale."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call) for call in calls if is_text(call) and not any(k.arg == "encoding" for k in call.keywords)
    ]


def is_text(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(attr="read_text" | "write_text"):
            return True
        case ast.Name("open"):
            mode = call.args[1:2]
        case ast.Attribute(value=ast.Name("os" | "archive" | "webbrowser"), attr="open"):
            return False
        case ast.Attribute(attr="open"):
            mode = call.args[:1]
        case ast.Attribute(attr="fdopen"):
            mode = call.args[1:2]
        case ast.Attribute(attr="TemporaryFile"):
            mode = call.args[:1] or [ast.Constant("w+b")]
        case _:
            return False
    mode += [k.value for k in call.keywords if k.arg == "mode"]
    return "b" not in "".join(str(part.value) for part in mode if isinstance(part, ast.Constant))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_read_and_write_of_text_names_its_encoding(path: Path) -> None:
    assert unnamed(path.read_text(encoding="utf-8")) == []


def test_a_call_in_the_encoding_of_the_locale_is_found() -> None:
    bad = ["p.read_text()", "p.write_text(x)", "open(p)", "open(p, 'w')", "p.open('a')", "os.fdopen(1, 'w')"]
    good = ["p.read_text(encoding='utf-8')", "open(p, 'rb')", "p.open('wb')", "os.open(p, 0)", "write_text(p, x)"]
    assert unnamed("\n".join([*bad, *good])) == bad
