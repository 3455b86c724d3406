"""Tables and text on stdout, at the width of the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

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


def say(text: str) -> None:
    """Print text on stdout; on a terminal, wrap it between words."""
    console = Console(highlight=False, markup=False)
    console.print(text, soft_wrap=not console.is_terminal)
