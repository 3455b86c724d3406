"""JSON Schema of config dataclasses, with which editors complete and check a wm.toml."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from typing import Any, Literal, Union, get_args, get_origin

from wm_agents.models.families import FAMILIES, config_class
from wm_agents.project.schema import SECTIONS
from wm_agents.training.config import TrainingConfig
from wm_envs.fields import field_docs, fields_of

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}


def project_schema(family: str | None) -> dict[str, Any]:
    """The schema of a wm.toml for `family`, or for any family."""
    sections = {name: _section_schema(kind) for name, kind in {**SECTIONS, "training": TrainingConfig}.items()}
    kinds = [_section_schema(config_class(name)) for name in ([family] if family else FAMILIES)]
    texts = {name: {"type": "string"} for name in ("project_name", "environment", "model")}
    return {
        "$schema": DRAFT,
        "title": "wm.toml",
        "type": "object",
        "properties": {**texts, "architecture": kinds[0] if family else {"anyOf": kinds}, **sections},
        "required": ["environment", "model"],
        "additionalProperties": False,
    }


def _section_schema(kind: type) -> dict[str, Any]:
    """The schema of a config dataclass: types, allowed values, ranges, defaults, descriptions."""
    meanings = field_docs(kind)
    properties: dict[str, Any] = {}
    for f, hint in fields_of(kind).values():
        properties[f.name] = _type_schema(hint)
        properties[f.name].get("items", properties[f.name]).update(f.metadata)
        if f.default is not MISSING and f.default is not None:
            properties[f.name]["default"] = list(f.default) if isinstance(f.default, tuple) else f.default
        if meanings[f.name]:
            properties[f.name]["description"] = meanings[f.name]
    return {"title": kind.__name__, "type": "object", "properties": properties, "additionalProperties": False}


def _type_schema(hint: Any) -> dict[str, Any]:
    """The schema of a Python type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        parts = [
            _type_schema(arg) for arg in args if arg is not type(None)
        ]  # TOML has no null; None means that the key is absent.
        if len(parts) == 1:
            return parts[0]
        return {"anyOf": parts}
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
    if origin is tuple and args[-1] is not Ellipsis:
        length = {"minItems": len(args), "maxItems": len(args)}
        return {"type": "array", "prefixItems": [_type_schema(arg) for arg in args], **length}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object"}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"type": "array", "items": _type_schema(args[0])}
    raise TypeError(f"no JSON Schema for {hint}")
