"""`wm config`: what a preset, a saved model or a wm.toml says, how two of them differ, whether a wm.toml is right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm_agents.cli.models import find
from wm_agents.cli.printing import say, table
from wm_agents.fields import field_docs
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.families import config_class, resolve
from wm_agents.project.json_schema import project_schema
from wm_agents.project.schema import SECTIONS
from wm_agents.project.settings import load_project
from wm_agents.project.translate import training_of
from wm_agents.system.files import PROJECT_FILE
from wm_agents.training.config import TrainingConfig

DIFFERENT = 1


def show(name: str = PROJECT_FILE, as_json: bool = False) -> None:
    """Show every setting with its value and what it means.

    Args:
        name: a preset as family:size, an alias, a saved model, or a wm.toml or its folder.
        as_json: one JSON object on stdout.
    """
    values, meanings = read(name)
    if as_json:
        print(json.dumps(values))
        return
    table(
        ("setting", "value", "meaning"), ((key, _text(value), meanings.get(key, "")) for key, value in values.items())
    )


def diff(one: str, other: str, as_json: bool = False) -> int:
    """Show where two configurations differ; exits with 1 if they do. Of a wm.toml, a preset is compared with the model.

    Args:
        one: a preset, a saved model, or a wm.toml or its folder.
        other: the same.
        as_json: one JSON object on stdout, by setting, with both values.
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
        print(json.dumps(differing))
    elif differing:
        rows = (
            (key, _text(a) if key in left else "-", _text(b) if key in right else "-")
            for key, (a, b) in differing.items()
        )
        table(("setting", one, other), rows)
    else:
        say("no difference")
    return DIFFERENT if differing else 0


def validate(path: str = PROJECT_FILE) -> None:
    """Check a wm.toml: every unknown key, wrong type, value out of range and contradiction at once, by line.

    Args:
        path: the file, or a folder that holds one.
    """
    project = load_project(path)
    say(f"{path}: {project.model} on {project.environment}; nothing is wrong with it")


def schema(model: str | None = None) -> None:
    """Print the JSON Schema of a wm.toml, for editors.

    Args:
        model: a preset, whose settings [architecture] then takes; those of any family otherwise.
    """
    print(json.dumps(project_schema(None if model is None else _family(model)), indent=2))


def read(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """All settings of what `name` names, dotted, and what they mean.

    Raises:
        ConfigurationError: it names nothing, or what it names is wrong.
        FileNotFoundError: what it names is no model.
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
    """Whether `name` is a wm.toml, or a folder that holds one."""
    return Path(name).suffix == ".toml" or (Path(name) / PROJECT_FILE).is_file()


def _model_of(values: dict[str, Any]) -> dict[str, Any]:
    """The family and the model's own settings of a project; of anything else, all there is."""
    inner = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("architecture.")}
    return {"family": values["family"], **inner} if inner else values


def _family(model: str) -> str:
    from wm_agents.errors import ConfigurationError

    found = resolve(model)
    if found is None:
        raise ConfigurationError(f"model must be a preset such as vmc:small, got {model!r}; `wm models list` has them")
    return found[0]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections under dotted names; what is free-form inside them stays whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= _flat(value, f"{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


VERBS = {"show": show, "diff": diff, "validate": validate, "schema": schema}
