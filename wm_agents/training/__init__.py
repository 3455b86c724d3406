"""The training loop, its settings and its callbacks; names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wm_agents.data.batch import Batch
    from wm_agents.data.replay import ReplayBuffer
    from wm_agents.models.loss import LossOutput
    from wm_agents.training.config import TrainingConfig
    from wm_agents.training.loss_window import NonFiniteLoss
    from wm_agents.training.trainer import Trainer, TrainingResult, train

__all__ = [
    "Batch", "LossOutput", "NonFiniteLoss", "ReplayBuffer", "Trainer", "TrainingConfig", "TrainingResult", "train",
]  # fmt: skip

PLACES = {
    "wm_agents.data.batch": ("Batch",),
    "wm_agents.data.replay": ("ReplayBuffer",),
    "wm_agents.training.config": ("TrainingConfig",),
    "wm_agents.models.loss": ("LossOutput",),
    "wm_agents.training.loss_window": ("NonFiniteLoss",),
    "wm_agents.training.trainer": ("Trainer", "TrainingResult", "train"),
}


def __getattr__(name: str) -> Any:
    for module, names in PLACES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
