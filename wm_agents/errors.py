"""Configuration errors with the nearest valid name, and what commands print and exit with."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import wraps
from types import MappingProxyType
from typing import Any, TypeVar

from wm_envs.fields import ConfigurationError as ConfigurationError

T = TypeVar("T")
NOWHERE: Mapping[str, str] = MappingProxyType({})

EXIT_ERROR, EXIT_STOPPED = 1, 2
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
CLEAR = (ValueError, OSError, RuntimeError, ArithmeticError)
"""Errors whose message is enough; other errors are printed with their type, because they may be bugs."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` with the known name nearest to `name`, or an empty string."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    if near:
        return f"; did you mean {near[0]!r}?"
    return ""


def check_names(names: Iterable[str], known: Iterable[str], owner: str, elsewhere: Mapping[str, str] = NOWHERE) -> None:
    """Raise an error for names that `owner` does not have, and suggest the nearest valid one.

    Args:
        elsewhere: explanations for names that belong to another class.

    Raises:
        ConfigurationError: one of `names` is not `known`.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise ConfigurationError(f"unknown field {name!r} of {owner}{_hint(name, known, elsewhere)}")


def _hint(name: str, known: list[str], elsewhere: Mapping[str, str]) -> str:
    near = get_close_matches(name, [*known, *elsewhere], n=1)
    if not near:
        return f"; it has {', '.join(sorted(known))}"
    why = elsewhere.get(near[0], "")
    if near[0] == name:
        return f"; {why}"
    return f"; did you mean {near[0]!r}?" + (f" ({why})" if why else "")


def strict(elsewhere: Mapping[str, str] = NOWHERE) -> Callable[[type[T]], type[T]]:
    """Make a dataclass check its field names with `check_names`."""

    def decorate(kind: type[T]) -> type[T]:
        init: Callable[..., None] = kind.__init__
        known = [f.name for f in fields(kind)]  # type: ignore[arg-type]

        @wraps(init)
        def checked(self: T, *args: Any, **values: Any) -> None:
            check_names(values, known, kind.__name__, elsewhere)
            init(self, *args, **values)

        kind.__init__ = checked  # type: ignore[method-assign, assignment]
        return kind

    return decorate


def describe(error: Exception) -> str:
    """The message of an error, with its type if it may be a bug."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        text += "; free disk space, then run the same command again"
    if (isinstance(error, CLEAR) and text) or (isinstance(error, ImportError) and "pip install" in text):
        return text
    return f"{type(error).__name__}: {text} (--debug prints the traceback)"
