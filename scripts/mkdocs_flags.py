"""A hook of mkdocs: `<!-- flags: wm evaluate -->` becomes the table of the command's flags, from its real parser."""

from __future__ import annotations

import re
from typing import Any

from wm_agents.cli.app import parser_of

MARK = re.compile(r"<!-- flags: wm (.+?) -->")
OF_THE_PARSER = ("help", "print_config", "print_shtab")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return MARK.sub(lambda found: flags_table(found[1]), markdown)


def flags_table(command: str) -> str:
    """The flags of a command as a table in Markdown."""
    rows = [row for action in _actions(command) if action.dest not in OF_THE_PARSER for row in [_row(action)]]
    return "\n".join(["| flag | default | meaning |", "| --- | --- | --- |", *rows])


def _actions(command: str) -> list[Any]:
    name, *rest = command.split()
    _, parser, _ = parser_of(name, rest)
    parser.add_spellings()
    return list(parser._actions)


def _row(action: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.dest}`"
    default = "" if action.default is None or "SUPPRESS" in str(action.default) else f"`{_plain(action.default)}`"
    about = " ".join(str(action.help or "").split()).replace("%%", "%")
    return f"| {flags} | {default} | {_escaped(about)} |"


def _plain(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value).replace("|", "\\|")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
