"""World models: data, training, dreams and evaluation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wm_agents.errors import ConfigurationError
    from wm_agents.factory import create_world_model, get_config, get_model_info, list_models
    from wm_agents.models.config import WorldModelConfig
    from wm_agents.models.dreamerv3 import DreamerV3Config
    from wm_agents.models.ensemble import EnsembleConfig
    from wm_agents.models.tdmpc2 import TDMPC2Config
    from wm_agents.models.vmc import VMCConfig

__all__ = [
    "ConfigurationError",
    "DreamerV3Config",
    "EnsembleConfig",
    "TDMPC2Config",
    "VMCConfig",
    "WorldModelConfig",
    "create_world_model",
    "get_config",
    "get_model_info",
    "list_models",
]

_MODULES = {
    "ConfigurationError": "errors",
    "DreamerV3Config": "models.dreamerv3",
    "EnsembleConfig": "models.ensemble",
    "TDMPC2Config": "models.tdmpc2",
    "VMCConfig": "models.vmc",
    "WorldModelConfig": "models.config",
    "create_world_model": "factory",
    "get_config": "factory",
    "get_model_info": "factory",
    "list_models": "factory",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing the package does not import torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
