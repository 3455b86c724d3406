"""The base class of model configs: frozen, with named sizes, saved as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
from typing_extensions import Self  # A dependency of torch; in `typing` from Python 3.11 on.

from wm_agents.errors import ConfigurationError, check_names, did_you_mean, strict
from wm_agents.spaces import SHAPE, is_shape
from wm_agents.system.files import read_json, write_json
from wm_envs.fields import at_least, check_fields, fail

WANTED = "the directory of a saved model, or a saved config"
TRAINING_FIELDS = (
    "total_steps", "batch_size", "sequence_length", "learning_rate", "optimizer", "weight_decay",
    "grad_clip", "gradient_accumulation_steps", "warmup_steps", "scheduler", "min_lr",
    "plateau_patience", "plateau_factor", "ema_decay", "mixed_precision", "mixed_precision_dtype",
    "tf32", "use_gradient_checkpointing", "compile_model", "device", "seed", "output_dir",
    "log_interval", "eval_interval", "save_interval", "patience",
)  # fmt: skip
"""The fields of `TrainingConfig`, which is in a higher layer; a test compares the two."""
ELSEWHERE = {
    **dict.fromkeys(TRAINING_FIELDS, "it is a field of TrainingConfig"),
    **dict.fromkeys(("encoder_type", "decoder_type"), "the observation shape determines encoder and decoder"),
}
"""Explanations for names that are not fields of a model config."""


@strict(ELSEWHERE)
@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Settings of a world model; each family has a subclass.

    The three fields here are optional. If they are set, the spaces of the model must match them.
    """

    family: ClassVar[str] = ""
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Field values by size name, as in `family:size`."""

    obs_shape: tuple[int, ...] | None = None
    """(D,) for vectors, (H, W, C) or (C, H, W) for frames; None: that of the environment."""
    action_dim: int | None = field(default=None, metadata=at_least(1))
    """Width of an encoded action: dimensions of a Box, number of Discrete actions; None: that of the
    environment."""
    action_type: Literal["continuous", "discrete"] | None = None
    """continuous: a Box of `action_dim` dimensions; discrete: `action_dim` discrete actions."""

    def __post_init__(self) -> None:
        if self.obs_shape is not None:
            if not is_shape(self.obs_shape):
                fail(self, "obs_shape", SHAPE)
            object.__setattr__(self, "obs_shape", tuple(int(n) for n in self.obs_shape))
        check_fields(self)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> Self:
        """The config of a named size, with `overrides` for single fields.

        Raises:
            ConfigurationError: unknown size or field.
        """
        if size not in cls.SIZES:
            hint = did_you_mean(size, cls.SIZES)
            raise ConfigurationError(
                f"size of {cls.__name__} must be one of {', '.join(cls.SIZES)}, got {size!r}{hint}"
            )
        return cls.from_dict({**cls.SIZES[size], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from plain values, with lists for tuples.

        Raises:
            ConfigurationError: unknown field; the message suggests the nearest.
        """
        check_names(values, [f.name for f in fields(cls)], cls.__name__, ELSEWHERE)
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)

    def fitting(self, obs_space: gym.Space[Any]) -> Self:
        """The settings adapted to an observation space, such as no convolutions for vectors."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes`."""
        check_names(changes, [f.name for f in fields(self)], type(self).__name__, ELSEWHERE)
        return replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write JSON to `path` if it ends in .json, else to config.json in the directory `path`.

        Raises:
            ConfigurationError: the directory contains a saved model, whose config.json would be lost.
        """
        path = _file(Path(path))
        if path.exists() and "files" in read_json(path, WANTED):
            raise ConfigurationError(f"{path} belongs to a saved model; give another directory or a .json file")
        write_json(path, {"family": self.family, "model": self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file of `save`, or the config of a saved model: a directory or its config.json.

        The result is an instance of the config class of its family.

        Raises:
            FileNotFoundError: the file does not exist.
            ConfigurationError: it is not a model config, or belongs to a family of another class.
        """
        from wm_agents.models.families import config_class

        path = _file(Path(path))
        facts = read_json(path, WANTED)
        if not isinstance(facts.get("family"), str) or not isinstance(facts.get("model"), dict):
            raise ConfigurationError(f"{path} is not a model config: it must contain 'family' and 'model'")
        kind = config_class(facts["family"])
        if not issubclass(kind, cls):
            raise ConfigurationError(
                f"{path} is a {kind.__name__}, not a {cls.__name__}; load it with WorldModelConfig.load"
            )
        return kind.from_dict(facts["model"])


def _file(path: Path) -> Path:
    if path.suffix == ".json":
        return path
    return path / "config.json"
