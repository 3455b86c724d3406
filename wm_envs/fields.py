"""Fields of config dataclasses: their types, ranges and docstrings, declared once and checked in one place.

    horizon: int = field(default=3, metadata=at_least(1))

    def __post_init__(self) -> None:
        check_fields(self)

What remains in `__post_init__` are relations between fields, which `fail` reports in the same form.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import Field, fields
from functools import cache
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import numpy as np

WORDS = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a table", Mapping: "a table",
}  # fmt: skip
Range = dict[str, float]
"""The metadata of a field: keywords of JSON Schema. A tuple has that range in each of its items."""
BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("at least", operator.ge),
    "exclusiveMinimum": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "exclusiveMaximum": ("below", operator.lt),
}


class ConfigurationError(ValueError):
    """Settings that name something unknown, or that contradict each other."""


class FieldError(ConfigurationError):
    """A field of a config has an invalid value."""

    def __init__(self, owner: str, name: str, expected: str, value: object) -> None:
        super().__init__(owner, name, expected, value)
        self.owner, self.name, self.expected, self.value = owner, name, expected, value

    @property
    def problem(self) -> str:
        """The error without the name of the field."""
        return f"must be {self.expected}, got {self.value!r}"

    def __str__(self) -> str:
        return f"{self.owner}.{self.name} {self.problem}"


def at_least(low: float) -> Range:
    """Metadata of a field whose minimum is `low`."""
    return {"minimum": low}


def above(low: float) -> Range:
    """Metadata of a field that must be above `low`."""
    return {"exclusiveMinimum": low}


def at_most(high: float) -> Range:
    """Metadata of a field whose maximum is `high`."""
    return {"maximum": high}


def below(high: float) -> Range:
    """Metadata of a field that must be below `high`."""
    return {"exclusiveMaximum": high}


def share() -> Range:
    """Metadata of a field between 0 and 1."""
    return at_least(0) | at_most(1)


def check_fields(config: object) -> None:
    """Check the type and the range of every field of a dataclass. NumPy scalars become Python numbers.

    Raises:
        FieldError: a field has an invalid value.
    """
    kind: type = type(config)
    for name, (field, hint) in fields_of(kind).items():
        value = getattr(config, name)
        if isinstance(value, np.generic):
            value = value.item()
            object.__setattr__(config, name, value)  # The dataclass may be frozen.
        if (expected := _mismatch(field, hint, value)) is not None:
            fail(config, name, expected + ", or None" * _has_type(None, hint))


def check_value(kind: type, name: str, value: Any) -> str | None:
    """Return what the field `name` of the dataclass `kind` must be, or None if `value` fits."""
    return _mismatch(*fields_of(kind)[name], value)


def _mismatch(field: Field[Any], hint: Any, value: Any) -> str | None:
    """Return what a field of type `hint` must be, or None if `value` fits."""
    if not _has_type(value, hint):
        return _describe(field, hint)
    if isinstance(value, float) and not math.isfinite(value):
        if value == field.default:
            return None
        return "a finite number"
    if _in_range(value, field.metadata):
        return None
    return _describe(field, hint)


def fail(config: object, name: str, expected: str) -> NoReturn:
    """Raise the error that field `name` of a config is not `expected`.

    Raises:
        FieldError: always.
    """
    raise FieldError(type(config).__name__, name, expected, getattr(config, name))


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings in which `new` differs from `old`, for an error message, such as `sigma was 0.1, now 0.2`."""
    return "; ".join(f"{name} was {old[name]!r}, now {new[name]!r}" for name in old if old[name] != new[name])


def _in_range(value: Any, metadata: Mapping[str, float]) -> bool:
    """Whether a number, or each item of a tuple, lies in the range of `metadata`; other values do."""
    if isinstance(value, tuple | list):
        return all(_in_range(item, metadata) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return all(holds(value, metadata[key]) for key, (_, holds) in BOUNDS.items() if key in metadata)


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a field of type `hint` accepts `value`, which may come from TOML or JSON; a list counts as a
    tuple."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (Union, types.UnionType):
        return any(_has_type(value, arg) for arg in args)
    if origin is tuple:
        return isinstance(value, list | tuple) and _each_fits(value, args)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in WORDS or hint is type(None):
        return type(value) is hint
    return not isinstance(hint, type) or isinstance(value, hint)  # Other types are not checked further.


def _describe(field: Field[Any], hint: Any) -> str:
    """A description of the type and the range of a field."""
    bounds = _describe_range(field.metadata)
    joint = " "
    if bounds.startswith("at"):
        joint = " of "
    return (_describe_type(hint) + joint + bounds).rstrip()


def _describe_range(metadata: Mapping[str, float]) -> str:
    """A range in words, such as "above 0 and at most 1"; empty for any value."""
    if all(metadata.get(key) == bound for key, bound in share().items()):
        return "between 0 and 1"
    return " and ".join(f"{words} {metadata[key]:,}" for key, (words, _) in BOUNDS.items() if key in metadata)


def _describe_type(hint: Any) -> str:
    """A description of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " * (len(args) > 1) + ", ".join(f"{arg!r}" for arg in args)
    if origin in (Union, types.UnionType):
        plain = [arg for arg in args if arg is not type(None) and not getattr(arg, "_is_protocol", False)]
        return " or ".join(map(_describe_type, plain))
    if origin is tuple:
        many = len(args) == 2 and args[1] is Ellipsis
        return f"a list of {'' if many else f'{len(args)} '}{_describe_type(args[0]).removeprefix('a ')}s"
    return WORDS.get(origin or hint, str(hint))


def field_docs(kind: type) -> dict[str, str]:
    """For each field of a config, also inherited ones: the docstring below it and the range of its values."""
    from docstring_parser import parse_from_object

    docs: dict[str, str] = {}
    for part in reversed(kind.__mro__[:-1]):
        docs |= {param.arg_name: param.description or "" for param in parse_from_object(part).params}
    return {field.name: " ".join([*docs.get(field.name, "").split(), *range_note(field)]) for field in fields(kind)}


def range_note(field: Field[Any]) -> list[str]:
    """The range of a field as a sentence for its help, if it has one."""
    bounds = _describe_range(field.metadata)
    if bounds:
        return [f"{bounds[0].upper()}{bounds[1:]}."]
    return []


@cache
def fields_of(kind: Hashable) -> dict[str, tuple[Field[Any], Any]]:
    """The fields of a dataclass with their types, by name."""
    assert isinstance(kind, type), kind
    hints = get_type_hints(kind)
    return {field.name: (field, hints[field.name]) for field in fields(kind)}


def _each_fits(values: Any, args: tuple[Any, ...]) -> bool:
    if len(args) == 2 and args[1] is Ellipsis:
        return all(_has_type(value, args[0]) for value in values)
    return len(values) == len(args) and all(map(_has_type, values, args))
