"""What a training run is told; frozen, checked, saved as JSON."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wm_agents.atomic import write_json

CHOICES = {
    "optimizer": ("adam", "adamw", "rmsprop"),
    "scheduler": ("constant", "onecycle", "plateau"),
    "mixed_precision": ("auto", True, False),
}


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one `Trainer.fit`. An update is one gradient step."""

    total_steps: int = 10_000
    batch_size: int = 64
    """Rows a batch: for whoever draws the batches."""
    learning_rate: float = 1e-3
    """The highest learning rate: where `onecycle` peaks and `plateau` begins."""
    optimizer: Literal["adam", "adamw", "rmsprop"] = "adam"
    weight_decay: float = 0.0
    scheduler: Literal["constant", "onecycle", "plateau"] = "constant"
    plateau_patience: int = 5
    """Validations without improvement after which `plateau` multiplies the learning rate."""
    plateau_factor: float = 0.5
    min_lr: float = 0.0
    """`plateau` never goes below."""
    grad_clip: float | None = None
    """Largest gradient norm over all parameters together."""
    mixed_precision: bool | Literal["auto"] = "auto"
    """`auto` takes bfloat16 autocast where the device multiplies it natively."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    log_interval: int = 50
    """Updates between metrics, which are means over them."""
    eval_interval: int = 500
    save_interval: int = 500
    patience: int | None = None
    """Validations without improvement after which training stops; None never stops early."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                self._fail(name, f"one of {', '.join(map(str, choices))}")
        for name in ("total_steps", "batch_size", "log_interval", "eval_interval", "save_interval"):
            self._check_number(name, 1, whole=True)
        for name in ("seed", "plateau_patience"):
            self._check_number(name, 0, whole=True)
        for name in ("weight_decay", "min_lr"):
            self._check_number(name, 0)
        self._check_number("learning_rate", 0)
        if self.learning_rate == 0:
            self._fail("learning_rate", "above 0")
        if self.patience is not None:
            self._check_number("patience", 1, whole=True)
        if self.grad_clip is not None:
            self._check_number("grad_clip", 0)
            if self.grad_clip == 0:
                self._fail("grad_clip", "above 0, or None for no clipping")
        if not 0 < self.plateau_factor < 1:
            self._fail("plateau_factor", "between 0 and 1")

    def rng(self, update: int) -> np.random.Generator:
        """The generator to draw batch `update` with: a function of the seed and the update, so that resume is exact."""
        return np.random.default_rng((self.seed, update))

    def replace(self, **changes: Any) -> TrainingConfig:
        """The same settings with `changes`."""
        _check_names(changes)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build from plain values; an unknown name fails and says which one is nearest."""
        _check_names(values)
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text()))

    def _check_number(self, name: str, low: int, whole: bool = False) -> None:
        value = getattr(self, name)
        kinds = (int,) if whole else (int, float)
        if type(value) not in kinds or not low <= value < float("inf"):
            self._fail(name, f"a {'whole ' if whole else ''}number from {low} up")

    def _fail(self, name: str, expected: str) -> None:
        raise ValueError(f"TrainingConfig.{name} must be {expected}, got {getattr(self, name)!r}")


def _check_names(values: dict[str, Any]) -> None:
    known = [f.name for f in fields(TrainingConfig)]
    for name in values:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown field {name!r} of TrainingConfig; did you mean {nearest!r}?")
