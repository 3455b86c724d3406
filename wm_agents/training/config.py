"""Settings of a training run; frozen, checked, saved as JSON."""

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
    """Optimizer steps."""
    batch_size: int = 16
    """Windows per batch."""
    sequence_length: int = 50
    """Steps per window."""
    learning_rate: float = 3e-4
    """Maximum learning rate: the peak of `onecycle`, the rate after the warm-up for other schedulers."""
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "laprop"] = "adamw"
    """`sgd` uses momentum 0.9; `laprop` is that of DreamerV3, with adaptive gradient clipping."""
    weight_decay: float = 0.0
    """Weight decay."""
    grad_clip: float | None = 100.0
    """Maximum gradient norm over all parameters, or over each clip group of the model; None: no clipping."""
    gradient_accumulation_steps: int = 1
    """Batches accumulated per optimizer step."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    scheduler: Literal["none", "constant", "linear", "cosine", "onecycle", "plateau"] = "none"
    """Learning rate until `total_steps`: `none` and `constant` keep it, `plateau` lowers it when validations
    no longer improve."""
    min_lr: float = 0.0
    """Final learning rate of `linear` and `cosine`, and minimum of `plateau`."""
    plateau_patience: int = 5
    """Validations without improvement before `plateau` lowers the learning rate."""
    plateau_factor: float = 0.5
    """Factor by which `plateau` multiplies the learning rate."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is validated, saved as best and kept in
    the model after training; None: no average."""
    mixed_precision: bool | Literal["auto"] = False
    """Use automatic mixed precision with `mixed_precision_dtype`; `auto`: if a short trial finds it
    faster."""
    mixed_precision_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """`float16` uses loss scaling and needs CUDA."""
    tf32: bool = True
    """Allow TF32 for float32 matrix products on CUDA."""
    use_gradient_checkpointing: bool = False
    """Recompute encoder and decoder in the backward pass: less memory, more time, the same gradients."""
    compile_model: bool = False
    """Apply `torch.compile` to the loss; the first steps then take about a minute."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    seed: int = 0
    """Random seed."""
    output_dir: str = "outputs"
    """Folder for checkpoints, unless the Trainer gets a folder."""
    log_interval: int = 100
    """Steps between metrics, which are averaged over these steps."""
    eval_interval: int = 1000
    """Steps between validations."""
    save_interval: int = 1000
    """Steps between checkpoints."""
    patience: int | None = None
    """Validations without improvement before training stops; None: no early stopping."""

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
            self._fail("warmup_steps", "0 with onecycle, which includes a warm-up")
        if self.optimizer == "laprop" and self.weight_decay:
            self._fail("weight_decay", "0 with laprop, which does not support it")
        if not isinstance(self.output_dir, str) or not self.output_dir:
            self._fail("output_dir", "the name of a folder")

    def rng(self, step: int) -> np.random.Generator:
        """The generator for batch `step`, a function of seed and step, so that resuming is exact."""
        return np.random.default_rng((self.seed, step))

    def generator(self, step: int) -> torch.Generator:
        """The same for torch."""
        return torch.Generator().manual_seed(int(self.rng(step).integers(2**63)))

    def replace(self, **changes: Any) -> TrainingConfig:
        """A copy with `changes`."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """Build from plain values; an error for an unknown name suggests the nearest."""
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> TrainingConfig:
        """Read a file of `save`.

        Raises:
            FileNotFoundError: the file does not exist.
            ConfigurationError: it is not a JSON object, or has an unknown name or an invalid value.
        """
        return cls.from_dict(read_json(Path(path), "a file of TrainingConfig.save"))

    def _check_number(self, name: str, low: int, whole: bool = False) -> None:
        value = getattr(self, name)
        kinds = (int,) if whole else (int, float)
        if type(value) not in kinds or not low <= value < float("inf"):
            self._fail(name, f"a {'whole ' if whole else ''}number of at least {low}")

    def _fail(self, name: str, expected: str) -> None:
        raise ConfigurationError(f"TrainingConfig.{name} must be {expected}, got {getattr(self, name)!r}")
