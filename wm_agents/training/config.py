"""Settings of a training run; frozen, checked, saved as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from wm_agents.errors import strict
from wm_agents.system.files import read_json, write_json
from wm_envs.fields import above, at_least, below, check_fields, fail


@strict()
@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a `Trainer`. A step is one step of the optimizer."""

    total_steps: int = field(default=100_000, metadata=at_least(1))
    """Optimizer steps."""
    batch_size: int = field(default=16, metadata=at_least(1))
    """Windows per batch."""
    sequence_length: int = field(default=50, metadata=at_least(1))
    """Steps per window."""
    learning_rate: float = field(default=3e-4, metadata=above(0))
    """Maximum learning rate: the peak of `onecycle`, the rate after the warm-up for other schedulers."""
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "laprop"] = "adamw"
    """`sgd` uses momentum 0.9; `laprop` is that of DreamerV3, with adaptive gradient clipping."""
    weight_decay: float = field(default=0.0, metadata=at_least(0))
    """Weight decay."""
    grad_clip: float | None = field(default=100.0, metadata=above(0))
    """Maximum gradient norm over all parameters, or over each clip group of the model; None: no clipping."""
    gradient_accumulation_steps: int = field(default=1, metadata=at_least(1))
    """Batches accumulated per optimizer step."""
    warmup_steps: int = field(default=0, metadata=at_least(0))
    """Steps over which the learning rate rises from 0."""
    scheduler: Literal["none", "constant", "linear", "cosine", "onecycle", "plateau"] = "none"
    """Learning rate until `total_steps`: `none` and `constant` keep it, `plateau` lowers it when validations
    no longer improve."""
    min_lr: float = field(default=0.0, metadata=at_least(0))
    """Final learning rate of `linear` and `cosine`, and minimum of `plateau`."""
    plateau_patience: int = field(default=5, metadata=at_least(0))
    """Validations without improvement before `plateau` lowers the learning rate."""
    plateau_factor: float = field(default=0.5, metadata=above(0) | below(1))
    """Factor by which `plateau` multiplies the learning rate."""
    ema_decay: float | None = field(default=None, metadata=above(0) | below(1))
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
    seed: int = field(default=0, metadata=at_least(0))
    """Random seed."""
    output_dir: str = "outputs"
    """Folder for checkpoints, unless the Trainer gets a folder."""
    log_interval: int = field(default=100, metadata=at_least(1))
    """Steps between metrics, which are averaged over these steps."""
    eval_interval: int = field(default=1000, metadata=at_least(1))
    """Steps between validations."""
    save_interval: int = field(default=1000, metadata=at_least(1))
    """Steps between checkpoints."""
    patience: int | None = field(default=None, metadata=at_least(1))
    """Validations without improvement before training stops; None: no early stopping."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.min_lr > self.learning_rate:
            fail(self, "min_lr", f"at most learning_rate ({self.learning_rate:g})")
        if self.scheduler == "onecycle" and self.warmup_steps:
            fail(self, "warmup_steps", "0 with onecycle, which includes a warm-up")
        if self.optimizer == "laprop" and self.weight_decay:
            fail(self, "weight_decay", "0 with laprop, which does not support it")
        if not self.output_dir:
            fail(self, "output_dir", "the name of a folder")

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
