"""The families of world models, their sizes and aliases, and how to build a model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import gymnasium as gym

from wm_agents.errors import ConfigurationError, did_you_mean
from wm_agents.models.config import WorldModelConfig
from wm_agents.models.model import Model

Place = str | Callable[..., Any]


class Family(NamedTuple):
    """All that commands need to know of a family. A class or function may be given as `module:name`, which is imported
    when it is used."""

    model: Place
    """The subclass of `Model`"""
    config: Place
    """The subclass of `WorldModelConfig`"""
    about: str
    obs_shape: tuple[int, ...]
    """Observation shape for which `get_model_info` counts parameters."""
    action_dim: int
    sizes: tuple[str, str]
    """Default size for vectors, and for images"""
    learns: Literal["rounds", "online"] = "rounds"
    """rounds: fitted to all data in each round, with a controller trained in its dreams; online: between real steps,
    with its own policy"""
    learner: Place = "wm_agents.loops.fit:fit_windows"
    """In rounds: a function (model, RoundData) -> Fitted. Online: makes a `Learner` of the model; "" if the model is
    one"""
    settings: str = ""
    """The field of `ImproveConfig` with the config of its model; "" for `size` and `overrides`"""
    training: str = "dynamics"
    """The field of `ImproveConfig` with its training settings"""
    first_fit: int = 1
    """In rounds: the first round takes this multiple of the updates"""
    online: Mapping[str, Any] = MappingProxyType({})
    """Default fields of `OnlineConfig`"""
    online_pixels: Mapping[str, Any] = MappingProxyType({})
    """Those that differ for images"""
    stacks: bool = False
    """Online, images are stacked, because the model has no memory"""
    unused: Mapping[str, str] = MappingProxyType({})
    """Keys of a wm.toml without effect, with the reason"""


FAMILIES = {
    "vmc": Family(
        "wm_agents.models.vmc:VMC", "wm_agents.models.vmc:VMCConfig",
        "V-M-C of Ha & Schmidhuber 2018: a VAE and an MDN-RNN", (64, 64, 3), 3, ("small", "small"),
        learner="wm_agents.loops.fit:fit_vmc", settings="model", training="memory",
    ),
    "ensemble": Family(
        "wm_agents.models.ensemble:Ensemble", "wm_agents.models.ensemble:EnsembleConfig",
        "probabilistic ensemble on vectors, after PETS and MBPO", (8,), 2, ("default", "default"),
        learner="wm_agents.loops.fit:fit_members", settings="ensemble",
        unused={"training.sequence_length": "an ensemble is trained on single steps"},
    ),
    "objects": Family(
        "wm_agents.models.objects:Objects", "wm_agents.models.objects:ObjectsConfig",
        "objects on a static background, with discrete predictions", (160, 160, 1), 3, ("default", "default"),
        learner="wm_agents.loops.fit:fit_objects", settings="objects",
        first_fit=4,  # The weights are from scratch in the first round only.
        unused={"training.sequence_length": "`architecture.history` sets its number of frames"},
    ),
    "dreamerv3": Family(
        "wm_agents.models.dreamerv3:DreamerV3", "wm_agents.models.dreamerv3:DreamerV3Config",
        "DreamerV3 of Hafner et al.: a recurrent state-space model", (64, 64, 3), 6, ("size1m", "size12m"),
        learns="online", learner="wm_agents.training.dreamer_agent:DreamerLearner",
        # The published learning rate and warm-up, used here for pixels, are for millions of steps.
        online={"batch_size": 16, "length": 32, "ratio": 256.0, "optimizer": "laprop", "learning_rate": 3e-4,
                "grad_clip": None, "warmup_steps": 100, "real_steps": 10_000, "prefill": 500},
        online_pixels={"length": 64, "ratio": 128.0, "learning_rate": 4e-5, "warmup_steps": 1000,
                       "real_steps": 100_000, "prefill": 2000},
    ),
    "tdmpc2": Family(
        "wm_agents.models.tdmpc2:TDMPC2", "wm_agents.models.tdmpc2:TDMPC2Config",
        "TD-MPC2 of Hansen et al. 2024: a decoder-free model for planning", (39,), 6, ("1m", "5m"),
        learns="online", learner="", stacks=True,
        online={"batch_size": 256, "length": 3, "ratio": 768.0, "optimizer": "adam", "learning_rate": 3e-4,
                "grad_clip": 20.0, "warmup_steps": 0, "real_steps": 10_000, "prefill": 1000},
        online_pixels={"real_steps": 100_000},
    ),
}  # fmt: skip
"""Families by name. `FAMILIES["mine"] = Family(...)` adds one; installed packages add theirs by entry points."""
ENTRY_POINTS = "wm_agents.families"
"""The group of entry points `name = module:ROW` of packages with families."""

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
    cfg = values
    if not isinstance(values, WorldModelConfig):
        cfg = kind.from_dict(values)
    model: Model = load(FAMILIES[family].model)(cfg, obs_space, act_space)
    return model


def load(place: Place) -> Any:
    """A class or function, imported if it is given as `module:name`."""
    if not isinstance(place, str):
        return place
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def names(learns: Literal["rounds", "online"]) -> list[str]:
    """The families that are trained in this way."""
    return [name for name, row in FAMILIES.items() if row.learns == learns]


def default_family(image: bool) -> str:
    """The family for environments whose observations are images, or vectors."""
    return "vmc" if image else "ensemble"


def config_class(family: str) -> type[WorldModelConfig]:
    """The config class of a family.

    Raises:
        ConfigurationError: the family is unknown.
    """
    if family not in FAMILIES:
        hint = did_you_mean(str(family), FAMILIES)
        raise ConfigurationError(f"family must be one of {', '.join(map(repr, FAMILIES))}, got {family!r}{hint}")
    kind: type[WorldModelConfig] = load(FAMILIES[family].config)
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


def _add_installed() -> None:
    """Add the families of installed packages."""
    for point in entry_points(group=ENTRY_POINTS):
        FAMILIES.setdefault(point.name, point.load())


_add_installed()
