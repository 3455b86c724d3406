"""Settings of a new project: the recipe of a known environment, or defaults."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from wm_agents.errors import ConfigurationError
from wm_agents.loops.online_config import online_recipe, seen_by
from wm_agents.loops.recipes import PROJECT_RECIPES, ImproveConfig, recipe_for
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.families import FAMILIES, Family, build, config_class, resolve
from wm_agents.spaces import action_type_of
from wm_agents.training.config import TrainingConfig
from wm_envs.action import act_dim
from wm_envs.real import limited, probe
from wm_envs.registry import RealSpec

FOR_VECTORS, FOR_PIXELS = "ensemble:default", "vmc:small"
QUICK: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("CartPole-v1", "ensemble"): {
        "training": {"total_steps": 1500},
        "data": {"num_steps": 2000},
        "online_collection": {"warmup_transitions": 1000, "rounds": 2},
        "controller": {"iterations": 20},
    }
}
"""Shorter than the recipe, for a first result in minutes (see docs/project.md)."""
Values = dict[str, Any]


def usual(
    environment: str, model: str | None, name: str, kwargs: Values | None = None, wrapper: str | None = None
) -> Values:
    """The values of a new wm.toml; `kwargs` are arguments of the environment.

    Args:
        wrapper: see `RealSpec.wrapper`.

    Raises:
        ValueError: the environment is not supported, or not by this family.
    """
    recipe = recipe_of(environment, kwargs, wrapper)
    model = model or (FOR_VECTORS if recipe.spec.size is None else FOR_PIXELS)
    family, size = resolve(model) or (None, None)
    if family is None:
        raise ConfigurationError(
            f"unknown model {model!r}; expected family:size of `wm models list`, such as {FOR_VECTORS}"
        )
    row = FAMILIES[family]
    online = row.learns == "online"
    spec = seen_by(family, recipe.spec) if online else recipe.spec
    recipe = replace(recipe, spec=limited(spec))
    obs_space, act_space = probe(recipe.spec).spaces
    seen = {
        "obs_shape": list(obs_space.shape or ()),
        "action_dim": act_dim(act_space),
        "action_type": action_type_of(act_space),
    }
    values: Values = {
        "project_name": name,
        "environment": environment,
        "model": model,
        "architecture": seen,
        "training": {"seed": 1, "device": "auto", "output_dir": "outputs"},
        "data": {"source": "gym", **_seen_as(recipe.spec)},
    }
    more = _online(family, environment, recipe.spec) if online else _rounds(row, recipe)
    quick = QUICK.get((environment, family), {})
    for section in {**more, **quick}:
        values[section] = {**values.get(section, {}), **more.get(section, {}), **quick.get(section, {})}
    cfg = config_class(family).from_size(str(size)).fitting(obs_space)
    if row.settings:
        own = _own(getattr(recipe, row.settings))
        values["architecture"] |= {k: v for k, v in own.items() if v != cfg.to_dict()[k]}
    with torch.device("meta"):  # Checks whether the model fits the environment, without allocating weights.
        build(family, cfg, obs_space, act_space)
    return values


def recipe_of(environment: str, kwargs: Values | None = None, wrapper: str | None = None) -> ImproveConfig:
    """The recipe of a known environment, or default settings; `kwargs` are arguments of the environment."""
    kwargs = kwargs or {}
    for known in PROJECT_RECIPES.values():
        if known.spec.id == environment and wrapper is None:
            return replace(known, spec=replace(known.spec, kwargs={**known.spec.kwargs, **kwargs}))
    return recipe_for(RealSpec(environment, kwargs, wrapper=wrapper))


def _own(cfg: WorldModelConfig) -> Values:
    """The fields of the recipe's model that differ from the defaults of its size."""
    return {k: v for k, v in cfg.to_dict().items() if v != type(cfg)().to_dict()[k]}


def _rounds(row: Family, recipe: ImproveConfig) -> Values:
    part: TrainingConfig = getattr(recipe, row.training)
    training: Values = {"total_steps": part.total_steps, "batch_size": part.batch_size}
    if "training.sequence_length" not in row.unused:
        training["sequence_length"] = recipe.window
    return {
        "training": training,
        "data": {"num_steps": recipe.random_steps + (recipe.rounds - 1) * recipe.round_steps},
        "online_collection": {
            "enabled": True,
            "warmup_transitions": recipe.random_steps,
            "rounds": recipe.rounds,
        },
        "controller": {"kind": recipe.controller, "iterations": recipe.generations, "horizon": recipe.horizon},
    }


def _online(family: str, environment: str, spec: RealSpec) -> Values:
    cfg = online_recipe(family, environment, spec)
    return {
        "training": {
            "batch_size": cfg.batch_size,
            "sequence_length": cfg.length,
            "learning_rate": cfg.learning_rate,
        },
        "data": {"num_steps": cfg.real_steps},
        "online_collection": {
            "enabled": True,
            "warmup_transitions": cfg.prefill,
            "collect_steps_per_update": cfg.batch_size * cfg.length / cfg.ratio,
        },
    }


def _seen_as(spec: RealSpec) -> Values:
    """The preprocessing settings that differ from the defaults."""
    plain, names = asdict(RealSpec(spec.id)), {"kwargs": "env_kwargs"}
    own = {k: v for k, v in asdict(spec).items() if v != plain[k]}
    return {names.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in own.items()}
