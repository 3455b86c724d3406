"""Tables, text and JSON on stdout."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from wm_agents.system.strict_json import strict_json

GAP, LAST = 3, 16
"""Number of spaces between columns, and minimum width of the last column."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout and wrap its last column; in a narrow terminal, print several lines per row."""
    console = Console(highlight=False, markup=False)
    rows = list(rows)
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=i < len(columns) - 1)
    for row in rows:
        made.add_row(*row)
    fixed = sum(max(cell_len(cell) for cell in (name, *cells)) + GAP for name, *cells in zip(columns[:-1], *rows))
    if fixed + LAST <= console.width:
        console.print(made)
        return
    for first, *rest in rows:
        console.print(first, soft_wrap=True)
        for name, cell in zip(columns[1:], rest):
            console.print(f"  {name}: {cell}", soft_wrap=True)


_held: list[str] | None = None  # The JSON of the command that runs inside `json_alone`.


def print_json(values: Any) -> None:
    """Print one JSON object on stdout; inside `json_alone`, at the end of the block."""
    text = json.dumps(strict_json(values))
    if _held is None:
        print(text)
    else:
        _held.append(text)


@contextmanager
def json_alone() -> Iterator[None]:
    """In this block, only `print_json` writes to stdout.

    Other output, such as that of environments, of their libraries and of worker processes, goes to stderr.
    """
    global _held
    sys.stdout.flush()
    out = os.dup(1)
    os.dup2(2, 1)
    held: list[str] = []
    _held = held
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _held = None
        ctypes.CDLL(None).fflush(None)  # Text that C libraries have buffered.
        os.dup2(out, 1)
        os.close(out)
        for text in held:
            print(text)


def say(text: str) -> None:
    """Print text on stdout; on a terminal, wrap it between words."""
    console = Console(highlight=False, markup=False)
    console.print(text, soft_wrap=not console.is_terminal)
