"""What a training run is told; frozen, checked, saved as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from wm_agents.errors import ConfigurationError, strict
from wm_agents.system.files import read_json, write_json

CHOICES = {
    "optimizer": ("adamw", "adam", "sgd", "rmsprop", "laprop"),
    "scheduler": ("none", "constant", "linear", "cosine", "onecycle", "plateau"),
    "mixed_precision": (True, False, "auto"),
    "mixed_precision_dtype": ("bfloat16", "float16"),
    "use_gradient_checkpointing": (True, False),
    "compile_model": (True, False),
    "tf32": (True, False),
}


@strict()
@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a `Trainer`. A step is one step of the optimizer."""

    total_steps: int = 100_000
    batch_size: int = 16
    """Rows a batch: of what is drawn from a replay buffer, or by whoever draws the batches."""
    sequence_length: int = 50
    """Steps of the windows that are drawn from a replay buffer."""
    learning_rate: float = 3e-4
    """The highest: where `onecycle` peaks and the others begin, after the warm-up."""
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "laprop"] = "adamw"
    """`sgd` has momentum 0.9; `laprop` is DreamerV3's, with adaptive gradient clipping of its own."""
    weight_decay: float = 0.0
    grad_clip: float | None = 100.0
    """Largest gradient norm over all parameters together, or over those of each clip group of the model."""
    gradient_accumulation_steps: int = 1
    """Batches whose mean gradient is one step."""
    warmup_steps: int = 0
    """The learning rate rises from 0 over so many steps."""
    scheduler: Literal["none", "constant", "linear", "cosine", "onecycle", "plateau"] = "none"
    """How the learning rate falls until `total_steps`: `none` and `constant` keep it, `plateau` lowers it when
    validations no longer improve."""
    min_lr: float = 0.0
    """`linear` and `cosine` end here, and `plateau` never goes below."""
    plateau_patience: int = 5
    """Validations without improvement after which `plateau` multiplies the learning rate."""
    plateau_factor: float = 0.5
    ema_decay: float | None = None
    """A moving average of the weights, this much of it kept at each step, is what is validated and kept as best, and
    what a finished training leaves in the model."""
    mixed_precision: bool | Literal["auto"] = False
    """Compute in `mixed_precision_dtype` where that is safe; `auto` does where a short trial finds it faster."""
    mixed_precision_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """`float16` scales the loss, and needs CUDA."""
    tf32: bool = True
    """Whether CUDA may multiply float32 matrices as TF32."""
    use_gradient_checkpointing: bool = False
    """Compute the model's heavy parts (its class names them) again for the backward pass instead of keeping them:
    less memory, more time, the same gradients."""
    compile_model: bool = False
    """`torch.compile` the loss: the first steps take a minute, the others less."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    output_dir: str = "outputs"
    """Where a run keeps its checkpoints, unless its Trainer is given a folder."""
    log_interval: int = 100
    """Steps between metrics, which are means over them."""
    eval_interval: int = 1000
    """Steps between validations."""
    save_interval: int = 1000
    """Steps between checkpoints."""
    patience: int | None = None
    """Validations without improvement after which training stops; None never stops early."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not any(value == choice and type(value) is type(choice) for choice in choices):
                self._fail(name, f"one of {', '.join(map(str, choices))}")
        intervals = ("log_interval", "eval_interval", "save_interval")
        for name in ("total_steps", "batch_size", "sequence_length", "gradient_accumulation_steps", *intervals):
            self._check_number(name, 1, whole=True)
        for name in ("seed", "warmup_steps", "plateau_patience"):
            self._check_number(name, 0, whole=True)
        for name in ("weight_decay", "min_lr", "learning_rate"):
            self._check_number(name, 0)
        if self.learning_rate == 0:
            self._fail("learning_rate", "above 0")
        if self.min_lr > self.learning_rate:
            self._fail("min_lr", f"at most learning_rate ({self.learning_rate:g})")
        if self.patience is not None:
            self._check_number("patience", 1, whole=True)
        if self.grad_clip is not None:
            self._check_number("grad_clip", 0)
            if self.grad_clip == 0:
                self._fail("grad_clip", "above 0, or None for no clipping")
        if not 0 < self.plateau_factor < 1:
            self._fail("plateau_factor", "between 0 and 1")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            self._fail("ema_decay", "between 0 and 1, or None for no average")
        if self.scheduler == "onecycle" and self.warmup_steps:
            self._fail("warmup_steps", "0 with onecycle, which warms up by itself")
        if self.optimizer == "laprop" and self.weight_decay:
            self._fail("weight_decay", "0 with laprop, which has none")
        if not isinstance(self.output_dir, str) or not self.output_dir:
            self._fail("output_dir", "a folder's name")

    def rng(self, step: int) -> np.random.Generator:
        """The generator to draw batch `step` with: a function of the seed and the step, so that resume is exact."""
        return np.random.default_rng((self.seed, step))

    def generator(self, step: int) -> torch.Generator:
        """The same for torch."""
        return torch.Generator().manual_seed(int(self.rng(step).integers(2**63)))

    def replace(self, **changes: Any) -> TrainingConfig:
        """The same settings with `changes`."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build from plain values; an unknown name fails and says which one is nearest."""
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is nothing.
            ConfigurationError: it is no JSON object, or has an unknown name or a wrong value.
        """
        return cls.from_dict(read_json(Path(path), "what TrainingConfig.save wrote"))

    def _check_number(self, name: str, low: int, whole: bool = False) -> None:
        value = getattr(self, name)
        kinds = (int,) if whole else (int, float)
        if type(value) not in kinds or not low <= value < float("inf"):
            self._fail(name, f"a {'whole ' if whole else ''}number of at least {low}")

    def _fail(self, name: str, expected: str) -> None:
        raise ConfigurationError(f"TrainingConfig.{name} must be {expected}, got {getattr(self, name)!r}")
