"""What the configs of all families share: a config is frozen, has sizes by name, and is saved as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

import gymnasium as gym
import numpy as np
from typing_extensions import Self  # Comes with torch; `typing` has it from Python 3.11 on.

from wm_agents.errors import ConfigurationError, check_names, did_you_mean, strict
from wm_agents.fields import in_words, is_kind
from wm_agents.spaces import SHAPE, is_shape
from wm_agents.system.files import read_json, write_json

ACTION_TYPES = ("continuous", "discrete")
WANTED = "a saved model's directory or a saved config"
TRAINING_FIELDS = (
    "total_steps", "batch_size", "sequence_length", "learning_rate", "optimizer", "weight_decay",
    "grad_clip", "gradient_accumulation_steps", "warmup_steps", "scheduler", "min_lr",
    "plateau_patience", "plateau_factor", "ema_decay", "mixed_precision", "mixed_precision_dtype",
    "tf32", "use_gradient_checkpointing", "compile_model", "device", "seed", "output_dir",
    "log_interval", "eval_interval", "save_interval", "patience",
)  # fmt: skip
"""Of `TrainingConfig`, which lies a layer above; a test compares the two."""
ELSEWHERE = {
    **dict.fromkeys(TRAINING_FIELDS, "it is a field of TrainingConfig, for the training"),
    **dict.fromkeys(("encoder_type", "decoder_type"), "encoder and decoder follow from the observations' shape"),
}
"""What is said of names that no config of a model has."""


@strict(ELSEWHERE)
@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Settings of a world model; each family derives its own from it.

    The three fields here say what a model was asked for. A model is built for spaces, which must agree with them.
    """

    family: ClassVar[str] = ""
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Values by the name of a size, as in `family:size`."""

    obs_shape: tuple[int, ...] | None = None
    """(D,) for vectors, (H, W, C) or (C, H, W) for frames; None takes whatever the environment shows."""
    action_dim: int | None = None
    """Width of an encoded action: numbers of a Box, choices of a Discrete; None takes what the environment has."""
    action_type: Literal["continuous", "discrete"] | None = None
    """A Box of actions, or one choice of `action_dim`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        if self.obs_shape is not None:
            if not is_shape(self.obs_shape):
                self.fail("obs_shape", SHAPE)
            object.__setattr__(self, "obs_shape", tuple(int(n) for n in self.obs_shape))
        if self.action_dim is not None and (type(self.action_dim) is not int or self.action_dim < 1):
            self.fail("action_dim", "a whole number above 0")
        if self.action_type is not None and self.action_type not in ACTION_TYPES:
            self.fail("action_type", "'continuous' or 'discrete'")
        hints = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if not is_kind(value, hints[field.name]):
                self.fail(field.name, in_words(hints[field.name]))
            if isinstance(value, float) and not math.isfinite(value) and value != field.default:
                self.fail(field.name, "a finite number")

    def check_least(self, low: int, *names: str) -> None:
        """Refuse numbers below `low`.

        Raises:
            ConfigurationError: which field, and what it holds.
        """
        hints = get_type_hints(type(self))
        for name in names:
            if getattr(self, name) < low:
                self.fail(name, f"{in_words(hints[name])} from {low} up")

    def check_above_0(self, *names: str) -> None:
        """Refuse 0 and less.

        Raises:
            ConfigurationError: which field, and what it holds.
        """
        for name in names:
            if not getattr(self, name) > 0:
                self.fail(name, "above 0")

    def check_share(self, *names: str) -> None:
        """Refuse numbers outside 0 to 1.

        Raises:
            ConfigurationError: which field, and what it holds.
        """
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                self.fail(name, "from 0 to 1")

    def fail(self, name: str, expected: str) -> None:
        """Say what `name` must be and is not.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(f"{type(self).__name__}.{name} must be {expected}, got {getattr(self, name)!r}")

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> Self:
        """The config of a size by name, `overrides` replacing fields of it.

        Raises:
            ConfigurationError: there is no such size or field.
        """
        if size not in cls.SIZES:
            hint = did_you_mean(size, cls.SIZES)
            raise ConfigurationError(
                f"size of {cls.__name__} must be one of {', '.join(cls.SIZES)}, got {size!r}{hint}"
            )
        return cls.from_dict({**cls.SIZES[size], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain values, lists standing for tuples.

        Raises:
            ConfigurationError: a field does not exist, and which one is nearest.
        """
        check_names(values, [f.name for f in fields(cls)], cls.__name__, ELSEWHERE)
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain)

    def fitting(self, obs_space: gym.Space[Any]) -> Self:
        """The same settings with what must follow from the observations, such as no convolutions for vectors."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return asdict(self)

    def replace(self, **changes: Any) -> Self:
        """The same settings with `changes`."""
        check_names(changes, [f.name for f in fields(self)], type(self).__name__, ELSEWHERE)
        return replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Write as JSON: into `path` where it ends in .json, else into the directory `path` as config.json.

        Raises:
            ConfigurationError: there is a saved model, whose config.json says more.
        """
        path = _file(Path(path))
        if path.exists() and "files" in read_json(path, WANTED):
            raise ConfigurationError(f"{path} belongs to a saved model; give another directory, or a file .json")
        write_json(path, {"family": self.family, "model": self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote, or the config of a saved model: a directory or its config.json.

        The config is of its family's own class, whichever class it is asked of.

        Raises:
            FileNotFoundError: there is none.
            ConfigurationError: it is no config of ours, or another family's than this class's.
        """
        from wm_agents.models.families import config_class

        path = _file(Path(path))
        facts = read_json(path, WANTED)
        if not isinstance(facts.get("family"), str) or not isinstance(facts.get("model"), dict):
            raise ConfigurationError(f"{path} is no config of a world model: it needs 'family' and 'model'")
        kind = config_class(facts["family"])
        if not issubclass(kind, cls):
            raise ConfigurationError(
                f"{path} holds a {kind.__name__}, not a {cls.__name__}; load it as WorldModelConfig"
            )
        return kind.from_dict(facts["model"])


def _file(path: Path) -> Path:
    return path if path.suffix == ".json" else path / "config.json"
