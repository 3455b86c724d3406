"""Errors of what is asked for, and the nearest right name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigurationError(ValueError):
    """Settings that name what does not exist, or that do not go together."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` with the name nearest to `name`, or nothing where none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_names(names: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuse fields that `owner` does not have; the nearest right one is named.

    Raises:
        ConfigurationError: one of `names` is not `known`.
    """
    known = list(known)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(sorted(known))}"
            raise ConfigurationError(f"unknown field {name!r} of {owner}{hint}")
