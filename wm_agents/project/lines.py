"""The line of each key in a TOML text, which TOML parsers do not report."""

from __future__ import annotations

import re

KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
DOTTED = rf"{KEY}(?:\s*\.\s*{KEY})*"
TABLE = re.compile(rf"^\s*\[\[?\s*({DOTTED})\s*\]\]?")
ENTRY = re.compile(rf"^\s*({DOTTED})\s*=")
STRINGS = re.compile(r'"""|\'\'\'|"(?:\\.|[^"\\])*"|\'[^\']*\'|#.*')


def find_lines(text: str) -> dict[str, int]:
    """The line, from 1, of every table and key by dotted name; keys of an inline table have the line of the
    table."""
    lines: dict[str, int] = {}
    table, depth, quote = "", 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:  # Inside a multi-line string.
            _, end, line = line.partition(quote)
            if not end:
                continue
            quote = ""
        elif depth == 0 and (found := TABLE.match(line)):
            table = _plain(found[1])
            lines.setdefault(table, number)
            continue
        elif depth == 0 and (found := ENTRY.match(line)):
            lines.setdefault(".".join(filter(None, (table, _plain(found[1])))), number)
            line = line[found.end() :]
        bare, quote = _without_strings(line)
        depth = max(depth + sum(map(bare.count, "[{")) - sum(map(bare.count, "]}")), 0)
    return lines


def line_of(lines: dict[str, int], name: str) -> int | None:
    """The line of a key, or else of the table or value that contains it."""
    while name and name not in lines:
        name = name.rpartition(".")[0]
    return lines.get(name)


def _plain(dotted: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in re.findall(KEY, dotted))


def _without_strings(line: str) -> tuple[str, str]:
    """A line without strings and comments, and the quotes of a string that continues on the next line."""
    bare, at = "", 0
    while found := STRINGS.search(line, at):
        bare, at = bare + line[at : found.start()], found.end()
        if found[0] in ('"""', "'''"):
            end = line.find(found[0], at)
            if end < 0:
                return bare, found[0]
            at = end + 3
    return bare + line[at:], ""
