"""The pages: their code runs, their commands parse, their links lead somewhere, and no command lacks a place."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.dom.minidom
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from wm_agents.cli import app as cli
from wm_agents.cli.flags import Parser
from wm_agents.curriculum.tasks import read_curriculum
from wm_agents.models.families import FAMILIES
from wm_agents.models.saved import STORE
from wm_agents.project.settings import load_project

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
ELSEWHERE = {"sb3.md": "test_sb3.py", "models.md": "test_factory.py", "training.md": "test_training.py"}
"""Pages whose Python the tests of their subject run."""
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(wm [^`\n]+)`")
PLACEHOLDER = re.compile(r"[<>…|]|\.\.\.|\b[A-Z]{2,}\b")
STARTS = ("wm ", "python ", "make ")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


def commands(page: Path) -> Iterator[str]:
    """What a reader would type: lines of shell blocks and of indented code, and `wm ...` in the running text."""
    text = page.read_text()
    lines = [line for block in blocks(page, "bash", "sh", "") for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.strip() for line in FENCE.sub("", text).splitlines() if line.startswith("    ")]
    for part in (part for line in lines for part in line.split(" && ")):
        plain = part.split("  #")[0].strip()
        if plain.startswith(STARTS) and not PLACEHOLDER.search(plain):
            yield plain
    for found in INLINE.findall(FENCE.sub("", text)):
        if not PLACEHOLDER.search(found) and (" --" in found or len(found.split()) > 2):
            yield found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


WITH_CODE = [page for page in PAGES if blocks(page, "python") and page.name not in ELSEWHERE]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(STORE / "ensemble-cartpole", tmp_path / "runs" / "my_model")
    monkeypatch.chdir(tmp_path)
    module = type(sys)("page")
    monkeypatch.setitem(sys.modules, "page", module)
    module.__dict__["__name__"] = "page"
    monkeypatch.syspath_prepend(tmp_path)
    with mock.patch.dict(FAMILIES):  # A page adds a family.
        for block in blocks(page, "python"):
            if named := re.match(r"# (\w+\.py)\n", block):  # A file of the reader.
                (tmp_path / named[1]).write_text(block)
                continue
            exec(compile(block, name_of(page), "exec"), module.__dict__)


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_pages_that_are_run_elsewhere_are(page: str, test: str) -> None:
    text = (ROOT / "tests" / test).read_text()
    assert page in text and "exec(" in text


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=name_of)
def test_toml_is_read_by_what_it_is_for(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        if "[[task]]" in block:
            assert read_curriculum(str(file))
        elif "environment" in block:
            assert load_project(file).environment
        else:
            import_module("tomllib" if sys.version_info >= (3, 11) else "toml").loads(block)


class Parsed(Exception):
    """The flags were right."""


def parse(command: str) -> None:
    """Parse a command by its real parser, and go no further."""
    plain = Parser.parse_args

    def and_no_further(self: Parser, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        raise Parsed

    name, *flags = shlex.split(command)[1:]
    assert name in cli.COMMANDS, f"{command}: there is no {name}"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(Parser, "parse_args", and_no_further)
        _, parser, flags = cli.parser_of(name, cli._trusting(flags))
        parser.arguments(flags)


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=name_of)
def test_the_commands_of_the_page_parse(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in dict.fromkeys(c for c in commands(page) if c != "wm --help"):
        first, *rest = shlex.split(command)
        if first == "make":
            assert set(rest) <= set(targets), command
        elif first == "python" and rest[0] == "-m":
            assert find_spec(rest[1]) is not None, command
        elif first == "python":
            script = ROOT / rest[0]
            assert script.is_file(), command
            if "curriculum" in script.name:
                parse(shlex.join(["wm", "curriculum", *rest[1:]]))
                continue
            known = script.read_text()
            lacking = [f for f in rest[1:] if f.startswith("--") and f'"{f.partition("=")[0]}"' not in known]
            assert not lacking, f"{command}: {script.name} has no {lacking}"
        else:
            try:
                parse(command)
            except SystemExit as stop:
                told = capsys.readouterr().err
                mentioned = ("required" in told and " --" not in command) or "expected one argument" in told
                assert stop.code == 0 or mentioned, f"{name_of(page)}: {command}: {told}"


def test_wrong_commands_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    parse("wm evaluate Dream-CartPole-v0 --episodes 3")
    for wrong in ("wm evaluate", "wm evaluate a --episode 3", "wm models info a --jsn"):
        with pytest.raises(SystemExit):
            parse(wrong)
    with pytest.raises(AssertionError, match="there is no evalute"):
        parse("wm evalute a")


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as mkdocs makes them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", head) for head in heads)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)}: {target}"
        assert page.parent != DOCS or DOCS in file.parents, f"{name_of(page)}: {target} is not on the site"
        assert not anchor or anchor in slugs(file), f"{name_of(page)}: {target}; it has {sorted(slugs(file))}"


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(entries: Any) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else pages(value)

    assert sorted(pages(settings["nav"])) == sorted(page.name for page in DOCS.glob("*.md"))
    assert settings["strict"] is True


def test_every_command_has_its_section_with_its_flags() -> None:
    text = (DOCS / "commands.md").read_text()
    for name in cli.COMMANDS:
        assert re.search(rf"^### wm {name}\b", text, re.MULTILINE), name
        assert f"<!-- flags: wm {name}" in text, name
    assert text.count("### wm ") == text.count("<!-- flags: wm ")


def test_flags_come_from_the_real_parsers() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        hook = import_module("mkdocs_flags")
    finally:
        sys.path.pop(0)
    page = hook.on_page_markdown("before\n<!-- flags: wm evaluate -->\nafter")
    assert page.startswith("before\n| flag | default | meaning |\n") and page.endswith("\nafter")
    assert "| `--episodes` | `100` | number of real episodes, and of dreamed ones. |" in page
    for mark in re.findall(r"<!-- flags: wm (.+?) -->", (DOCS / "commands.md").read_text()):
        assert hook.flags_table(mark).count("\n") >= 2, mark


def test_the_image_is_well_formed() -> None:
    assert xml.dom.minidom.parse(str(DOCS / "data_flow.svg")).documentElement.tagName == "svg"
    assert (DOCS / "real_vs_dream.gif").stat().st_size <= 3e6


@pytest.mark.slow
def test_the_first_page_leads_to_a_verified_dream(tmp_path: Path) -> None:
    lines = "\n".join(blocks(DOCS / "index.md", "bash")).splitlines()
    script = "\n".join(line for line in lines if not line.startswith("pip install"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "verified (quick)" in done.stdout + done.stderr and (tmp_path / "my" / "mine.mp4").is_file()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("WARNING")], done.stderr
    assert "<code>--episodes</code>" in (tmp_path / "commands" / "index.html").read_text()
