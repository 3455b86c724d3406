"""`wm config`: show, compare and validate the settings of presets, saved models and wm.toml files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm_agents.cli.models import find
from wm_agents.cli.printing import print_json, say, table
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.families import config_class, resolve
from wm_agents.project.json_schema import project_schema
from wm_agents.project.schema import SECTIONS
from wm_agents.project.settings import load_project
from wm_agents.project.translate import training_of
from wm_agents.system.files import PROJECT_FILE
from wm_agents.training.config import TrainingConfig
from wm_envs.fields import field_docs

DIFFERENT = 1


def show(name: str = PROJECT_FILE, as_json: bool = False) -> None:
    """Show every setting with its value and its meaning.

    Args:
        name: a preset (family:size), an alias, a saved model, or a wm.toml or its folder.
        as_json: print one JSON object on stdout.
    """
    values, meanings = read(name)
    if as_json:
        print_json(values)
        return
    table(
        ("setting", "value", "meaning"), ((key, _text(value), meanings.get(key, "")) for key, value in values.items())
    )


def diff(one: str, other: str, as_json: bool = False) -> int:
    """Show the settings in which two configurations differ; the exit code is 1 if they differ.

    Comparing a wm.toml with a preset or a saved model compares only the model's settings.

    Args:
        one: a preset, a saved model, or a wm.toml or its folder.
        other: the configuration to compare with, named in the same way.
        as_json: print one JSON object on stdout: both values of each setting.
    """
    (left, _), (right, _) = read(one), read(other)
    if is_project(one) != is_project(other):
        left, right = _model_of(left), _model_of(right)
    differing = {
        key: [left.get(key), right.get(key)]
        for key in [*left, *(key for key in right if key not in left)]
        if left.get(key) != right.get(key) or (key in left) != (key in right)
    }
    if as_json:
        print_json(differing)
    elif differing:
        table(("setting", one, other), ((key, _shown(left, key), _shown(right, key)) for key in differing))
    else:
        say("no differences")
    return DIFFERENT if differing else 0


def validate(path: str = PROJECT_FILE) -> None:
    """Check a wm.toml and report all errors with their line: unknown keys, wrong types and invalid values.

    Args:
        path: the file, or the folder that contains it.
    """
    project = load_project(path)
    say(f"{path}: {project.model} on {project.environment}, no errors")


def schema(model: str | None = None) -> None:
    """Print the JSON Schema of a wm.toml, for editors.

    Args:
        model: a preset; [architecture] then accepts only the settings of its family. By default those of any
            family.
    """
    print(json.dumps(project_schema(None if model is None else _family(model)), indent=2))


def read(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return all settings of the preset, saved model or project `name` under dotted names, and their
    meanings.

    Raises:
        ConfigurationError: nothing has this name, or its configuration is invalid.
        FileNotFoundError: the folder contains no model.
    """
    if is_project(name):
        project = load_project(name)
        kinds: dict[str, type] = {**SECTIONS, "training": TrainingConfig, "architecture": config_class(project.family)}
        values = project.to_dict()
        size: WorldModelConfig = kinds["architecture"].from_size(project.size)  # type: ignore[attr-defined]
        values["architecture"] = {**size.to_dict(), **values["architecture"]}
        values["training"] = training_of(project).to_dict()
        meanings = {f"{part}.{key}": text for part, kind in kinds.items() for key, text in field_docs(kind).items()}
        return _flat({**values, "family": project.family}), meanings
    preset = resolve(name)
    cfg = config_class(preset[0]).from_size(preset[1]) if preset else WorldModelConfig.load(find(name))
    return {"family": cfg.family, **cfg.to_dict()}, field_docs(type(cfg))


def is_project(name: str) -> bool:
    """Return whether `name` is a wm.toml or a folder that contains one."""
    return Path(name).suffix == ".toml" or (Path(name) / PROJECT_FILE).is_file()


def _model_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return the model and its settings if `values` is a project, else all values."""
    inner = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("architecture.")}
    return {"family": values["family"], **inner} if inner else values


def _family(model: str) -> str:
    from wm_agents.errors import ConfigurationError

    found = resolve(model)
    if found is None:
        raise ConfigurationError(f"model must be a preset such as vmc:small, got {model!r}; see `wm models list`")
    return found[0]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten sections to dotted names; free-form dicts inside them stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= _flat(value, f"{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(values: dict[str, Any], key: str) -> str:
    return _text(values[key]) if key in values else "-"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


VERBS = {"show": show, "diff": diff, "validate": validate, "schema": schema}
