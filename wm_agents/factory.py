"""The families of world models by name: what `config.json` calls `family` and what it is built with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from wm_agents.models.ensemble import Ensemble, EnsembleConfig
from wm_agents.models.vmc import VMC, VMCConfig

Model = VMC | Ensemble

FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {"vmc": (VMC, VMCConfig), "ensemble": (Ensemble, EnsembleConfig)}


def build(family: str, values: Mapping[str, Any], obs_space: gym.Space[Any], act_space: gym.Space[Any]) -> Model:
    """A new model of `family` from the values of its config.

    Raises:
        ValueError: there is no such family, or the spaces are none it can take.
        TypeError: `values` are not its config's.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(map(repr, FAMILIES))}, got {family!r}")
    kind, config = FAMILIES[family]
    model: Model = kind(config(**values), obs_space, act_space)
    return model
