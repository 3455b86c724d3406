"""Fields of config dataclasses: type checks, descriptions of types, and docstrings."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser

WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a table", Mapping: "a table",
}  # fmt: skip


def is_kind(value: Any, hint: Any) -> bool:
    """Whether a field of type `hint` accepts `value`, which may come from TOML or JSON; a list counts as a
    tuple."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return any(is_kind(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, list | tuple) and _each_fits(value, args)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in WORDS or hint is type(None):
        return type(value) is hint
    return not isinstance(hint, type) or isinstance(value, hint)  # Other types are not checked further.


def in_words(hint: Any) -> str:
    """A description of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(f"{arg!r}" for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        many = len(args) == 2 and args[1] is Ellipsis
        return f"a list of {'' if many else f'{len(args)} '}{in_words(args[0]).removeprefix('a ')}s"
    return WORDS.get(origin or hint, str(hint))


def _each_fits(values: Any, args: tuple[Any, ...]) -> bool:
    if len(args) == 2 and args[1] is Ellipsis:
        return all(is_kind(value, args[0]) for value in values)
    return len(values) == len(args) and all(map(is_kind, values, args))


def field_docs(kind: type) -> dict[str, str]:
    """The docstring below each field of a config, by name, including inherited fields."""
    docs: dict[str, str] = {}
    for part in reversed(kind.__mro__[:-1]):
        docs |= {p.arg_name: p.description or "" for p in docstring_parser.parse_from_object(part).params}
    return {f.name: " ".join(docs.get(f.name, "").split()) for f in fields(kind)}
