"""World models by name: `create_world_model` creates or loads a model, the other functions describe them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, overload

import gymnasium as gym
import torch

from wm_agents.errors import ConfigurationError, did_you_mean
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.families import ALIASES, FAMILIES, build, config_class, resolve
from wm_agents.models.model import Model
from wm_agents.spaces import Env, action_space_of, action_type_of, limit_of, space_from_dict, space_of, spaces_of
from wm_agents.system.files import read_json
from wm_agents.system.hardware import find_device
from wm_envs.action import act_dim

__all__ = ["ALIASES", "FAMILIES", "Model", "build", "create_world_model", "get_config", "get_model_info", "list_models"]


class ModelInfo(TypedDict):
    """The result of `get_model_info`."""

    name: str
    family: str
    size: str
    """Size of the preset; `stored` for a saved model."""
    description: str
    parameters: int
    """Counted for these observations and actions."""
    obs_shape: tuple[int, ...]
    action_dim: int


def create_world_model(
    model: str | Path,
    *,
    obs_shape: tuple[int, ...] | None = None,
    action_dim: int | None = None,
    action_type: str | None = None,
    env: Env | None = None,
    device: str | torch.device = "cpu",
    **overrides: Any,
) -> Model:
    """Create a new model from a preset, or load a saved one.

    Args:
        model: a preset `family:size` or its alias, the directory of a saved model, the name of a shipped one,
            or `org/name[@revision]` on the Hub.
        obs_shape: (D,) for vectors; (H, W, C) or (C, H, W) for uint8 frames with 1 or 3 channels, in that
            order.
        action_dim: dimensions of a continuous action in [-1, 1], or number of discrete actions.
        action_type: "continuous" (default) or "discrete".
        env: an environment or its id, which defines the spaces instead of the three arguments above. With an
            id, images are resized to 64x64 as by `make_real`.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best available.
        overrides: fields of the family's config; only for presets.

    Raises:
        ConfigurationError: a name, size, shape or field is unknown or does not fit; the message suggests the
            nearest.
    """
    place = find_device(device)
    asked = _Asked(obs_shape, action_dim, action_type, env)
    preset = None
    if isinstance(model, str):
        preset = resolve(model)
    if preset is None:
        return _load(model, asked, overrides, place)
    obs_space, act_space = asked.spaces(str(model))
    cfg = _config(*preset, obs_space, act_space, overrides, asked.limit())
    return build(cfg.family, cfg, obs_space, act_space).to(place)


def get_config(
    model: str,
    *,
    obs_shape: tuple[int, ...] | None = None,
    action_dim: int | None = None,
    action_type: str | None = None,
    env: Env | None = None,
    **overrides: Any,
) -> WorldModelConfig:
    """The config that `create_world_model` would use, as an instance of the family's config class.

    Raises:
        ConfigurationError: as for `create_world_model`.
    """
    preset = resolve(model)
    if preset is None:
        from wm_agents.models.saved import model_path

        cfg = WorldModelConfig.load(_found(model_path, model))
        if overrides:
            raise ConfigurationError(_keeps_its_own(model, overrides))
        return cfg
    asked = _Asked(obs_shape, action_dim, action_type, env)
    if asked == _Asked(None, None, None, None):
        return config_class(preset[0]).from_size(preset[1], **overrides)
    return _config(*preset, *asked.spaces(model), overrides, asked.limit())


@overload
def list_models(verbose: Literal[False] = False) -> list[str]: ...
@overload
def list_models(verbose: Literal[True]) -> dict[str, ModelInfo]: ...
def list_models(verbose: bool = False) -> list[str] | dict[str, ModelInfo]:
    """Names of all presets and shipped models; with `verbose`, the `get_model_info` of each."""
    names = [f"{family}:{size}" for family in FAMILIES for size in config_class(family).SIZES] + _stored()
    if verbose:
        return {name: get_model_info(name) for name in names}
    return names


def get_model_info(model: str) -> ModelInfo:
    """Describe a preset, an alias or a saved model. Parameters are counted without allocating weights.

    Raises:
        ConfigurationError: there is no such model.
    """
    preset = resolve(model)
    obs_space: gym.Space[Any]
    if preset is not None:
        about = FAMILIES[preset[0]]
        obs_space, act_space = space_of(about.obs_shape), action_space_of(about.action_dim)
        cfg, name, size = _config(*preset, obs_space, act_space, {}), ":".join(preset), preset[1]
    else:
        from wm_agents.models.saved import model_path

        path = _found(model_path, model)
        facts = read_json(path / "config.json", "a saved model")
        try:
            obs_space, act_space = (space_from_dict(facts["spaces"][name]) for name in ("obs", "act"))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"{path / 'config.json'} does not describe a saved model: {error!r}") from error
        cfg, name, size = WorldModelConfig.load(path), str(model), "stored"
    return {
        "name": name,
        "family": cfg.family,
        "size": size,
        "description": FAMILIES[cfg.family].about,
        "parameters": _count_parameters(cfg, obs_space, act_space),
        "obs_shape": tuple(obs_space.shape or ()),
        "action_dim": act_dim(act_space),
    }


def _count_parameters(cfg: WorldModelConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> int:
    """Number of trained weights, counted without allocating them."""
    with torch.device("meta"):
        net = build(cfg.family, cfg, obs_space, act_space)
    return net.num_parameters


class _Asked(NamedTuple):
    """The arguments about observations and actions."""

    obs_shape: tuple[int, ...] | None
    action_dim: int | None
    action_type: str | None
    env: Env | None

    def spaces(self, model: str) -> tuple[gym.Space[Any], gym.Space[Any]]:
        if self.env is not None:
            if twice := [name for name in self._fields[:3] if getattr(self, name) is not None]:
                raise ConfigurationError(f"pass either env or {' and '.join(twice)}, not both")
            return spaces_of(self.env)
        if self.obs_shape is None or self.action_dim is None:
            lacking = [name for name in self._fields[:2] if getattr(self, name) is None]
            raise ConfigurationError(
                f"{model} needs {' and '.join(lacking)}, such as obs_shape=(8,) and action_dim=2, or env="
            )
        return space_of(self.obs_shape), action_space_of(self.action_dim, self.action_type)

    def limit(self) -> int | None:
        """Maximum steps of an episode, if known."""
        if self.env is None:
            return None
        return limit_of(self.env)


def _config(
    family: str,
    size: str,
    obs_space: gym.Space[Any],
    act_space: gym.Space[Any],
    overrides: Mapping[str, Any],
    limit: int | None = None,
) -> WorldModelConfig:
    """The config of a preset for the given spaces and episodes of `limit` steps."""
    cfg = config_class(family).from_size(size).fitting(obs_space)
    if limit is not None and hasattr(cfg, "episode_length"):
        overrides = {"episode_length": limit, **overrides}
    if overrides:
        cfg = cfg.replace(**overrides)
    kind = action_type_of(act_space)
    return cfg.replace(obs_shape=obs_space.shape or None, action_dim=act_dim(act_space), action_type=kind)


def _load(model: str | Path, asked: _Asked, overrides: Mapping[str, Any], device: torch.device) -> Model:
    """Load a saved model, and check that it matches the arguments."""
    from wm_agents.models.saved import load_model, model_path

    path = _found(model_path, model)
    if overrides:
        raise ConfigurationError(_keeps_its_own(model, overrides))
    net = load_model(path, str(device))[0]
    said = {"obs_shape": asked.obs_shape, "action_dim": asked.action_dim, "action_type": asked.action_type}
    if asked.env is not None:
        obs_space, act_space = spaces_of(asked.env)
        said = {
            "obs_shape": obs_space.shape,
            "action_dim": act_dim(act_space),
            "action_type": action_type_of(act_space),
        }
    has = {"obs_shape": net.obs_space.shape, "action_dim": net.actions, "action_type": action_type_of(net.act_space)}
    for name, value in said.items():
        if isinstance(value, list):
            value = tuple(value)
        if value is not None and value != has[name]:
            raise ConfigurationError(f"{model} has {name} {has[name]}, got {value}; omit it to load the model")
    return net


def _keeps_its_own(model: str | Path, overrides: Mapping[str, Any]) -> str:
    return f"{model} is a saved model and keeps its config; remove {', '.join(overrides)}, or start from a preset"


def _found(model_path: Any, model: str | Path) -> Path:
    """The directory of a saved model, or an error that suggests the nearest name."""
    try:
        path: Path = model_path(str(model))
    except FileNotFoundError as error:
        names = [*ALIASES, *(f"{family}:{size}" for family in FAMILIES for size in config_class(family).SIZES)]
        hint = did_you_mean(str(model), [*names, *_stored()])
        if not hint:
            hint = f"; families are {', '.join(FAMILIES)}, presets have the form family:size, see list_models()"
        raise ConfigurationError(f"no model {str(model)!r}: {error}{hint}") from None
    return path


def _stored() -> list[str]:
    """Names of shipped models."""
    from wm_agents.models.saved import STORE

    return sorted(path.parent.name for path in STORE.glob("*/config.json"))
