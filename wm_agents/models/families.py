"""The families of world models, their sizes and aliases, and how to build a model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from wm_agents.errors import ConfigurationError, did_you_mean
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.model import Model


class Family(NamedTuple):
    """The module and class names of a family. The module is imported only when a model is built."""

    module: str
    model: str
    config: str
    about: str
    obs_shape: tuple[int, ...]
    """Observation shape for which `get_model_info` counts parameters."""
    action_dim: int

    def part(self, name: str) -> Any:
        return getattr(importlib.import_module(f"wm_agents.models.{self.module}"), name)


FAMILIES = {
    "vmc": Family(
        "vmc", "VMC", "VMCConfig", "V-M-C of Ha & Schmidhuber 2018: a VAE and an MDN-RNN", (64, 64, 3), 3
    ),
    "ensemble": Family(
        "ensemble", "Ensemble", "EnsembleConfig", "probabilistic ensemble on vectors, after PETS and MBPO", (8,), 2
    ),
    "objects": Family(
        "objects",
        "Objects",
        "ObjectsConfig",
        "objects on a static background, with discrete predictions",
        (160, 160, 1),
        3,
    ),
    "dreamerv3": Family(
        "dreamerv3", "DreamerV3", "DreamerV3Config", "DreamerV3 of Hafner et al.: a recurrent state-space model",
        (64, 64, 3), 6,
    ),
    "tdmpc2": Family(
        "tdmpc2", "TDMPC2", "TDMPC2Config", "TD-MPC2 of Hansen et al. 2024: a decoder-free model for planning", (39,), 6
    ),
}  # fmt: skip

ALIASES = {
    "vmc": "vmc:small",
    "ensemble": "ensemble:default",
    "objects": "objects:default",
    "dreamer": "dreamerv3:size12m",
    "dreamerv3": "dreamerv3:size12m",
    "dreamer-ci": "dreamerv3:ci",
    "dreamer-small": "dreamerv3:size12m",
    "dreamer-medium": "dreamerv3:size50m",
    "dreamer-large": "dreamerv3:size200m",
    "dreamerv3:official": "dreamerv3:size200m",
    "tdmpc": "tdmpc2:5m",
    "tdmpc2": "tdmpc2:5m",
    "tdmpc2-ci": "tdmpc2:ci",
    "tdmpc-small": "tdmpc2:5m",
    "tdmpc-medium": "tdmpc2:48m",
    "tdmpc-large": "tdmpc2:317m",
}
FAMILY_ALIASES = {"dreamer": "dreamerv3", "tdmpc": "tdmpc2"}


def build(
    family: str, values: Mapping[str, Any] | WorldModelConfig, obs_space: gym.Space[Any], act_space: gym.Space[Any]
) -> Model:
    """Build a new model of `family` from its config or from a dict of its values.

    Raises:
        ConfigurationError: the family is unknown, or `values` do not fit its config.
        ValueError: the family does not support the spaces.
    """
    kind = config_class(family)
    cfg = values if isinstance(values, WorldModelConfig) else kind.from_dict(values)
    model: Model = FAMILIES[family].part(FAMILIES[family].model)(cfg, obs_space, act_space)
    return model


def config_class(family: str) -> type[WorldModelConfig]:
    """The config class of a family.

    Raises:
        ConfigurationError: the family is unknown.
    """
    if family not in FAMILIES:
        hint = did_you_mean(str(family), FAMILIES)
        raise ConfigurationError(f"family must be one of {', '.join(map(repr, FAMILIES))}, got {family!r}{hint}")
    kind: type[WorldModelConfig] = FAMILIES[family].part(FAMILIES[family].config)
    return kind


def resolve(name: str) -> tuple[str, str] | None:
    """(family, size) of a preset or alias, or None if `name` can only be a saved model.

    Raises:
        ConfigurationError: `name` has the form of a preset, but the family or size is unknown.
    """
    family, colon, size = ALIASES.get(name, name).partition(":")
    if not colon or (Path(name) / "config.json").exists():
        return None
    family = FAMILY_ALIASES.get(family, family)
    sizes = config_class(family).SIZES
    if size not in sizes:
        hint = did_you_mean(size, sizes, cutoff=0.3)
        raise ConfigurationError(f"size of {family} must be one of {', '.join(sizes)}, got {size!r}{hint}")
    return family, size
