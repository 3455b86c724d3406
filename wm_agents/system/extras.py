"""Videos and reports: parts of a run whose errors do not end it, because its result does not depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from wm_agents.errors import describe


@contextmanager
def extra(what: str, console: Console) -> Iterator[None]:
    """A context for code that makes `what`. If it fails, the error is printed and the run continues without `what`."""
    try:
        yield
    # Renderers, codecs and displays raise any type of error, and some of them end the program.
    except (Exception, SystemExit) as error:
        reason = describe(error) if isinstance(error, Exception) else repr(error)
        console.print(f"  {what} was not made: {reason}; the run continues without it", highlight=False, markup=False)
