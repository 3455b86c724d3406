"""Commands with verbs: in `wm NAME VERB ...` each verb is a function, and its flags are the arguments.

An argument with default False becomes a switch; `as_json` is the switch `--json`. A first argument of type
str is positional, even if it has a default. A verb returns its exit code, or None for 0.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import docstring_parser
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from wm_agents.cli.flags import Parser

Verb = Callable[..., int | None]
WRONG_FLAGS = 2
GAP, LAST = 3, 16
"""Space between columns, and the minimum width of the last column."""


def run(verbs: Mapping[str, Verb], args: list[str], prog: str) -> int:
    """Call the verb `args[0]` and return its exit code; 2 for an unknown verb or invalid flags."""
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, verbs))
        rows = "\n".join(f"  {name:<{width}}  {_about(verb)}" for name, verb in verbs.items())
        print(f"usage: {prog} VERB [flags]\n\n{rows}\n\n`{prog} VERB --help` lists the flags of a verb.")
        return 0
    name, *rest = args
    if name not in verbs:
        near = get_close_matches(name, verbs, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(verbs)}"
        print(f"{prog}: unknown verb {name!r}; {hint}", file=sys.stderr)
        return WRONG_FLAGS
    return call(verbs[name], rest, f"{prog} {name}")


def call(verb: Verb, args: list[str], prog: str) -> int:
    """Parse `args` as the arguments of `verb`, call it and return its exit code."""
    return verb(**parse(verb, args, prog)) or 0


def parse(verb: Verb, args: list[str], prog: str) -> dict[str, Any]:
    """The arguments of `verb`. Invalid flags exit with 2 and a line that suggests the nearest valid flag."""
    docs = docstring_parser.parse(verb.__doc__ or "")
    parser = Parser(prog=prog, description="\n\n".join(filter(None, (docs.short_description, docs.long_description))))
    told = {param.arg_name: param.description for param in docs.params}
    params = inspect.signature(verb).parameters
    switches = [name for name, param in params.items() if param.default is False]
    first = [name for name in list(params)[:1] if isinstance(params[name].default, str)]
    for name in first:
        parser.add_argument(name, nargs="?", default=params[name].default, help=told[name])
    parser.add_function_arguments(verb, as_positional=True, fail_untyped=True, skip={*first, *switches})
    for name in switches:
        flag = "--json" if name == "as_json" else f"--{name}"
        parser.add_argument(flag, dest=name, action="store_true", help=told[name])
    return dict(vars(parser.instantiate(parser.parse_args(args))))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout and wrap its last column; in a narrow terminal print several lines per row."""
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


def _about(verb: Verb) -> str:
    return (docstring_parser.parse(verb.__doc__ or "").short_description or "").rstrip(".")
